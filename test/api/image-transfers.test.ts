// What the API makes of what nodes do with images. The node is one of the test's own, that does nothing: it says what the
// test wants said. What real nodes do is in images.test.ts.
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { type HeldImage, ImageProgress, type ImageStep, MiB, PullImage, PushImage } from '@berth/contracts'
import type { RestCall } from '@berth/node-rpc'
import { afterAll, beforeAll, beforeEach, describe, expect, test } from '@jest/globals'
import { type Api, operator, tenant, until } from '../support/berth.js'
import { crash, restored } from '../support/crash.js'
import { FakeNode } from '../support/fake-node.js'

const digest = () => `sha256:${randomBytes(32).toString('hex')}`
const layerOf = (unpackedBytes: number, diffId = digest()) => ({
  ...{ diffId, digest: diffId, mediaType: 'application/vnd.oci.image.layer.v1.tar+gzip', sizeBytes: 1, unpackedBytes },
})
const imageOf = (layers: HeldImage['layers']): HeldImage => ({
  digest: digest(),
  manifestDigest: digest(),
  platform: 'linux/amd64',
  createdAt: '2025-01-01T00:00:00Z',
  layers,
  history: [{ createdAt: '2025-01-01T00:00:00Z', createdBy: 'COPY . /', comment: '', emptyLayer: false }],
  settings: {
    ...{ env: ['A=1'], entrypoint: [], command: ['sh'], workingDir: null, user: null, stopSignal: null },
    ...{ labels: { stage: 'test' }, exposedPorts: [], volumes: [] },
  },
})
const done = (image: HeldImage, references: string[] = []): ImageStep => ({
  step: 'done',
  images: [{ image, references }],
})
const moving = (): ImageStep => ({ step: 'layer', digest: digest(), state: 'fetching', bytes: 1, totalBytes: 2 })

let node: FakeNode
beforeAll(async () => {
  // With more room than any other node, so that images come here.
  node = await FakeNode.start({ diskBytes: 2 ** 46 }, { serves: true })
})
afterAll(async () => {
  await node[Symbol.asyncDispose]()
})
beforeEach(() => {
  node.images = async () => {
    throw new Error('the test has not said what the node does')
  }
})

/** What the node is asked for, by the word that says so. */
const asked = (call: RestCall) => call.rest[1]
const answers = (...steps: ImageStep[]) => {
  node.images = async (call) => {
    call.body.resume()
    await call.lines(steps)
  }
}
const pull = (api: Api, reference: string, wait = '?wait=done') => api.post(`/v1/images/pull${wait}`, { reference })

async function have(api: Api, reference: string, image = imageOf([layerOf(100)])): Promise<HeldImage> {
  answers(done(image))
  const answer = await pull(api, reference)
  if (answer.status !== 201) throw new Error(JSON.stringify(answer.body))
  node.held.add(image.digest)
  return image
}

const of = (name: string) => `/v1/images/${encodeURIComponent(name)}`
const linesOf = async (response: Response): Promise<ImageProgress[]> =>
  (await response.text())
    .trim()
    .split('\n')
    .map((line) => ImageProgress.parse(JSON.parse(line)))

describe('a pull', () => {
  test('streams what the node does, and ends with the image under its name', async () => {
    const mine = await tenant()
    const image = imageOf([layerOf(100)])
    const seen: PullImage[] = []
    const [first, second] = [moving(), moving()]
    node.images = async (call) => {
      seen.push(await call.json(PullImage))
      await call.lines([first, { step: 'retry', message: 'again' }, second, done(image)])
    }
    const response = await mine.raw('POST', '/v1/images/pull', {
      body: JSON.stringify({ reference: 'team/app' }),
      headers: { 'content-type': 'application/json' },
    })
    expect([response.status, response.headers.get('content-type')]).toEqual([200, 'application/x-ndjson'])
    const lines = await linesOf(response)
    expect(lines.slice(0, 3)).toEqual([first, { step: 'retry', message: 'again' }, second])
    expect(lines[3]).toMatchObject({
      step: 'done',
      images: [{ digest: image.digest, references: ['team/app:latest'] }],
    })
    expect(seen).toMatchObject([
      {
        reference: 'docker.io/team/app:latest',
        access: {
          endpoints: ['https://registry-1.docker.io'],
          login: null,
          certificates: null,
          privateAddresses: false,
        },
        maxBytes: 32 * 1024 * MiB,
      },
    ])
    expect((await mine.get('/v1/images?reference=team/app')).body.items).toHaveLength(1)
    expect((await mine.get(of('team/app'))).body).toMatchObject({
      ...{ digest: image.digest, visibility: 'tenant', sizeBytes: 100, uniqueBytes: 100, settings: { env: ['A=1'] } },
    })
    expect((await mine.get(`${of('docker.io/team/app:latest')}/history`)).body.items).toMatchObject([
      { createdBy: 'COPY . /', sizeBytes: 100, digest: image.layers[0]?.diffId },
    ])
  })

  test.each([
    ['registry_denied', 502],
    ['registry_unreachable', 502],
    ['image_invalid', 422],
    ['platform_unsupported', 422],
  ] as const)(
    'that fails at once with %s is a problem; one that fails later tells it in its stream',
    async (code, status) => {
      const mine = await tenant()
      answers({ step: 'failed', code, message: 'as the node says' })
      expect(await pull(mine, 'a', '')).toMatchObject({ status, body: { code, detail: 'as the node says' } })
      expect(await pull(mine, 'a')).toMatchObject({ status, body: { code } })
      answers(moving(), { step: 'failed', code, message: 'as the node says' })
      expect(await pull(mine, 'a')).toMatchObject({ status, body: { code } })
      const response = await mine.raw('POST', '/v1/images/pull', {
        body: JSON.stringify({ reference: 'a' }),
        headers: { 'content-type': 'application/json' },
      })
      expect((await linesOf(response)).at(-1)).toEqual({ step: 'failed', code, message: 'as the node says' })
      expect((await mine.get('/v1/images?reference=a')).body.items).toEqual([])
    },
  )

  test('that its client leaves ends on the node, and lists nothing', async () => {
    const mine = await tenant()
    let left = false
    node.images = async (call) => {
      call.signal.addEventListener('abort', () => {
        left = true
      })
      await call.lines(endless(call.signal))
    }
    const leaving = new AbortController()
    const response = await mine.raw('POST', '/v1/images/pull', {
      ...{ body: JSON.stringify({ reference: 'a' }), headers: { 'content-type': 'application/json' } },
      signal: leaving.signal,
    })
    expect(response.status).toBe(200)
    leaving.abort()
    await until('the node is left', async () => left || undefined)
    expect((await mine.get('/v1/images?reference=a')).body.items).toEqual([])
  })

  test.each(['', 'team/UPPER', 'Team/app', 'a b', 'http://a/b', 'a:b:c', `a@sha256:short`, '../../etc', '[::1]'])(
    '%j is no reference',
    async (reference) => {
      const mine = await tenant()
      expect(await pull(mine, reference)).toMatchObject({
        ...{ status: 400, body: { code: 'invalid_request', errors: [{ field: 'reference' }] } },
      })
      if (reference !== '') expect((await mine.get(of(reference))).status).toBe(400)
    },
  )

  test.each(['127.0.0.1:1/a', 'localhost/a', 'localhost:5/a', '169.254.169.254/latest/meta-data', '10.0.0.1:5000/a'])(
    'from %s, which the operator has not listed, is forbidden, and no node is asked',
    async (reference) => {
      const mine = await tenant()
      expect(await pull(mine, reference)).toMatchObject({ status: 403, body: { code: 'policy_forbidden' } })
      await have(mine, 'pushed')
      const push = await mine.post(`${of('pushed')}/push?wait=done`, { reference })
      expect(push).toMatchObject({ status: 403, body: { code: 'policy_forbidden' } })
    },
  )
})

describe('a push', () => {
  test('tells the node which repositories of that registry the tenant has its layers from, and no others', async () => {
    const [mine, other] = [await tenant(), await tenant()]
    const shared = layerOf(10)
    await have(mine, 'ghcr.io/team/base:1', imageOf([shared]))
    await have(mine, 'quay.io/team/elsewhere:1', imageOf([shared]))
    await have(other, 'ghcr.io/secret/base:1', imageOf([shared]))
    const app = await have(mine, 'ghcr.io/team/app:1', imageOf([shared, layerOf(1)]))
    await until(
      'the node says that it has it',
      async () => (await mine.get(of(app.digest))).body.nodes === 1 || undefined,
    )
    const seen: PushImage[] = []
    node.images = async (call) => {
      seen.push(await call.json(PushImage))
      await call.lines([done(app)])
    }
    const push = (reference?: string) => mine.post(`${of('ghcr.io/team/app:1')}/push?wait=done`, { reference })
    expect(await push('ghcr.io/team/new:1')).toMatchObject({ status: 201 })
    expect(await push()).toMatchObject({ status: 201 })
    expect(await push('registry.example.org/x:1')).toMatchObject({ status: 201 })
    expect(seen.map(({ mountFrom }) => mountFrom)).toEqual([['team/app', 'team/base'], ['team/base'], []])
  })
})

async function* endless(signal: AbortSignal): AsyncGenerator<ImageStep> {
  while (!signal.aborted) {
    yield moving()
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
}

describe('a digest that an image was pulled by', () => {
  test('leads to it, of an index too, and no tag beside it is moved', async () => {
    const [mine, other] = [await tenant(), await tenant()]
    const pinned = `team/app@${digest()}`
    const image = await have(mine, pinned.replace('@', ':1@'))
    for (const name of [pinned, pinned.replace('@', ':1@'), pinned.slice(pinned.indexOf('@') + 1)]) {
      expect((await mine.get(of(name))).body).toMatchObject({ digest: image.digest, references: [pinned] })
      expect(await other.get(of(name))).toMatchObject({ status: 404, body: { code: 'image_not_found' } })
      expect((await mine.get(`/v1/images?reference=${encodeURIComponent(name)}`)).body.items).toHaveLength(1)
    }
    expect((await mine.get(of('team/app:1'))).status).toBe(404)
    await mine.raw('PUT', `${of(pinned)}/tags/kept`)
    expect((await mine.delete(of(pinned))).body).toMatchObject({ untagged: [pinned], deleted: null })
    expect((await mine.get(of('kept'))).body.references).toEqual(['kept:latest'])
  })

  test('is not given by an archive, nor by whoever imports', async () => {
    const mine = await tenant()
    const claimed = `docker.io/library/python@${digest()}`
    answers(done(imageOf([layerOf(1)]), [claimed, 'app']))
    const loaded = await mine.raw('POST', '/v1/images/load?wait=done', { body: 'archive' })
    expect(await loaded.json()).toMatchObject({ images: [{ references: ['app:latest'] }] })
    expect((await mine.get(of(claimed))).status).toBe(404)
    const query = new URLSearchParams({ wait: 'done', reference: claimed })
    const imported = await mine.raw('POST', `/v1/images/import?${query}`, { body: 'tar' })
    expect(imported.status).toBe(400)
    expect(await imported.json()).toMatchObject({ errors: [{ field: 'reference' }] })
  })
})

describe('the beginning of an id', () => {
  const begun = (beginning: string, end: string) => ({
    ...imageOf([layerOf(1)]),
    digest: `sha256:${beginning}${end.repeat(64 - beginning.length)}`,
  })

  test('leads to the image, of its owner only, and is removed by', async () => {
    const [mine, other] = [await tenant(), await tenant()]
    const { digest } = await have(mine, 'app', begun('0b1e55ed', 'a'))
    for (const id of ['0b1e', '0b1e55eda', 'sha256:0b1e55', digest.slice('sha256:'.length)]) {
      expect((await mine.get(of(id))).body.digest).toBe(digest)
      expect(await other.get(of(id))).toMatchObject({ status: 404, body: { code: 'image_not_found' } })
      expect(await other.delete(of(id))).toMatchObject({ status: 404 })
      expect(await other.post('/v1/jobs', { image: id, command: ['true'] })).toMatchObject({ status: 404 })
    }
    expect(await mine.get(of('0b1'))).toMatchObject({ status: 404 })
    const push = await mine.post(`${of('0b1e55')}/push?wait=done`, {})
    expect(push).toMatchObject({ status: 400, body: { errors: [{ field: 'reference' }] } })
    expect((await mine.delete(of('0b1e55'))).body).toMatchObject({ untagged: ['app:latest'], deleted: digest })
  })

  test('of several is refused, and another tenant’s are not among them', async () => {
    const [mine, other] = [await tenant(), await tenant()]
    await have(mine, 'one', begun('facade', 'b'))
    await have(other, 'two', begun('facade', 'c'))
    expect((await mine.get(of('facade'))).status).toBe(200)
    await have(mine, 'three', begun('facade', 'd'))
    expect(await mine.get(of('facade'))).toMatchObject({ status: 400, body: { code: 'invalid_request' } })
    expect(await mine.delete(of('facade'))).toMatchObject({ status: 400 })
  })

  test('is a name where there is one', async () => {
    const mine = await tenant()
    const image = await have(mine, 'decade')
    await have(mine, 'other', begun('decade', 'e'))
    expect((await mine.get(of('decade'))).body.digest).toBe(image.digest)
  })
})

describe('the quota', () => {
  test('is never overshot by 50 loads at once, of which few are on nodes at a time', async () => {
    const mine = await tenant({ imageBytes: 7 * MiB })
    const shared = layerOf(MiB)
    let [now, most] = [0, 0]
    node.images = async (call) => {
      // What is in those that are there already is asked for beside.
      if (asked(call) !== 'load') throw new Error(`${asked(call)} is nothing that this test is about`)
      most = Math.max(most, ++now)
      call.body.resume()
      await new Promise((resolve) => setTimeout(resolve, 10))
      // What is told last may begin the next one before this goes on.
      now--
      await call.lines([done(imageOf([shared, layerOf(MiB)]), ['app'])])
    }
    const load = () => mine.raw('POST', '/v1/images/load?wait=done', { body: 'archive' })
    const all = await Promise.all(Array.from({ length: 50 }, load))
    const bodies = await Promise.all(all.map(async (one) => ({ status: one.status, body: await one.json() })))
    expect(bodies.filter(({ status }) => status === 201)).toHaveLength(6)
    const refused = bodies.filter(({ status }) => status !== 201)
    for (const one of refused)
      expect(one).toMatchObject({ status: 403, body: { code: 'quota_exceeded', quota: 'imageBytes', limit: 7 * MiB } })
    expect((await mine.get('/v1/usage')).body).toMatchObject({
      ...{ now: { imageBytes: 7 * MiB }, quota: { imageBytes: 7 * MiB } },
    })
    expect((await mine.get('/v1/images?dangling=true')).body.items).toHaveLength(5)
    expect((await mine.get('/v1/images?reference=app')).body.items).toHaveLength(1)
    expect(most).toBeLessThanOrEqual(4)
  })

  test('is told with what is in use of it where the node finds that it is too little', async () => {
    const mine = await tenant({ imageBytes: 1000 })
    await have(mine, 'a', imageOf([layerOf(400)]))
    const failed: ImageStep = { step: 'failed', code: 'quota_exceeded', message: 'as the node says' }
    answers(failed)
    const detail = 'as the node says: 400 of 1000 bytes are in use'
    const body = { code: 'quota_exceeded', quota: 'imageBytes', limit: 1000, used: 400, detail }
    expect(await pull(mine, 'b')).toMatchObject({ status: 403, body })
    answers(moving(), failed)
    const streamed = await mine.raw('POST', '/v1/images/load', { body: 'archive' })
    expect((await linesOf(streamed)).at(-1)).toEqual({ step: 'failed', code: 'quota_exceeded', message: detail })
  })

  test('what is left of it is what a node may take in', async () => {
    const mine = await tenant({ imageBytes: 1000 })
    await have(mine, 'a', imageOf([layerOf(400)]))
    let maxBytes: string | null = null
    node.images = async (call) => {
      maxBytes = call.query.get('maxBytes')
      call.body.resume()
      await call.lines([{ step: 'failed', code: 'archive_invalid', message: 'no' }])
    }
    expect((await mine.raw('POST', '/v1/images/load', { body: 'x' })).status).toBe(422)
    expect(maxBytes).toBe('600')
  })
})

describe('a private image', () => {
  test('is not found by another tenant, by name or digest, for anything', async () => {
    const [mine, other] = [await tenant(), await tenant()]
    const image = await have(mine, 'secret/app')
    node.images = async () => {
      throw new Error('no node is asked')
    }
    for (const name of ['secret/app', image.digest, `secret/app@${image.manifestDigest}`]) {
      const requests = [
        other.get(of(name)),
        other.get(`${of(name)}/history`),
        other.get(`${of(name)}/archive`),
        other.get(`/v1/images/archive?image=${encodeURIComponent(name)}`),
        other.post(`${of(name)}/push?wait=done`, { reference: 'x/y' }),
        other.delete(of(name)),
        other.delete(`${of(name)}/tags/x`),
        other.post('/v1/jobs', { image: name, command: ['true'] }),
        other.post('/v1/batches', { jobs: [{ image: name, command: ['true'] }] }),
        other.post('/v1/sandboxes', { image: name }),
      ]
      const tag = await other.raw('PUT', `${of(name)}/tags/x`)
      for (const answer of [...(await Promise.all(requests)), { status: tag.status, body: await tag.json() }])
        expect(answer).toMatchObject({ status: 404, body: { code: 'image_not_found' } })
    }
    const listed = (await other.get('/v1/images?limit=200')).body.items
    expect(listed.filter((one: { base: boolean }) => !one.base)).toEqual([])
    expect((await other.post('/v1/images/prune', { all: true })).body).toEqual({ deleted: [], freedBytes: 0 })
    expect((await mine.get(of('secret/app'))).status).toBe(200)
  })

  test('in use cannot be removed, which names the user; it can when that is gone', async () => {
    const mine = await tenant()
    const image = await have(mine, 'app')
    const sandbox = await until('a node that has it is known', async () => {
      const answer = await mine.post('/v1/sandboxes?start=false', { image: 'app' })
      if (answer.status !== 201) throw new Error(JSON.stringify(answer.body))
      return answer.body
    })
    const command = await node.told(sandbox.id)
    expect(command).toMatchObject({ image: image.digest, spec: { image: 'app' } })
    expect(await mine.delete(of('app'))).toMatchObject({
      ...{ status: 409, body: { code: 'image_in_use', sandboxes: [sandbox.id], jobs: [] } },
    })
    expect((await mine.post('/v1/images/prune', { all: true })).body.deleted).toEqual([])
    expect((await mine.delete(`${of('app')}?force=true`)).body).toMatchObject({
      untagged: ['app:latest'],
      deleted: null,
    })
    await mine.delete(`/v1/sandboxes/${sandbox.id}?force=true`)
    await mine.get(`/v1/sandboxes/${sandbox.id}?wait=deleted&timeoutMs=20s`)
    expect((await mine.delete(of(image.digest))).body).toMatchObject({ deleted: image.digest, freedBytes: 100 })
  })

  test('gets and loses names, and goes with the last one', async () => {
    const mine = await tenant()
    const image = await have(mine, 'app:1')
    const put = await mine.raw('PUT', `${of('app:1')}/tags/${encodeURIComponent('ghcr.io/team/app:2')}`)
    expect(await put.json()).toMatchObject({ digest: image.digest, references: ['app:1', 'ghcr.io/team/app:2'] })
    expect((await mine.delete(`${of(image.digest)}/tags/${encodeURIComponent('app:1')}`)).body.references).toEqual([
      'ghcr.io/team/app:2',
    ])
    expect((await mine.get(of('app:1'))).status).toBe(404)
    expect((await mine.delete(of('ghcr.io/team/app:2'))).body).toMatchObject({ deleted: image.digest })
    expect((await mine.get(of(image.digest))).status).toBe(404)
  })
})

describe('operators', () => {
  test('see what a tenant sees, and no tenant sees what another does', async () => {
    const [mine, other] = [await tenant(), await tenant()]
    const { digest } = await have(mine, 'app')
    const seen = async (api: Api, path: string) => (await api.get(path)).body
    const listed = (await seen(operator(), `/v1/images?tenantId=${mine.id}&reference=app`)).items
    expect(listed).toMatchObject([{ digest }])
    expect(await seen(operator(), `${of('app')}?tenantId=${mine.id}`)).toMatchObject({ digest })
    expect(await seen(operator(), of('app'))).toMatchObject({ code: 'image_not_found' })
    for (const path of ['/v1/images', of('app')])
      expect(await seen(other, `${path}?tenantId=${mine.id}`)).toMatchObject({ code: 'forbidden_scope' })
  })

  test('pull for all; tenants use it, and change nothing of it', async () => {
    const name = `public-${randomBytes(6).toString('hex')}`
    const image = await have(operator(), name)
    const mine = await tenant()
    expect((await mine.get(of(name))).body).toMatchObject({ digest: image.digest, visibility: 'public' })
    expect(await mine.delete(of(name))).toMatchObject({ status: 403, body: { code: 'policy_forbidden' } })
    expect((await mine.get('/v1/usage')).body.now.imageBytes).toBe(0)
    const own = await mine.raw('PUT', `${of(name)}/tags/mine`)
    expect(await own.json()).toMatchObject({ visibility: 'tenant' })
    expect((await mine.get('/v1/usage')).body.now.imageBytes).toBe(100)
    expect((await operator().delete(of(name))).body.deleted).toBe(image.digest)
    expect((await mine.get(of('mine'))).body.digest).toBe(image.digest)
    expect((await mine.get(of(name))).status).toBe(404)
  })
})

describe('logins for registries', () => {
  test('go to the node with a pull from that registry, and are never shown', async () => {
    const [mine, other] = [await tenant(), await tenant()]
    const password = `pw-${randomBytes(8).toString('hex')}`
    const put = await mine.raw('PUT', '/v1/registries/ghcr.io', {
      body: JSON.stringify({ username: 'me', password }),
      headers: { 'content-type': 'application/json' },
    })
    expect(put.status).toBe(200)
    const shown = [
      await put.json(),
      (await mine.get('/v1/registries')).body,
      (await mine.get('/v1/registries/ghcr.io')).body,
    ]
    expect(shown).toMatchObject([{ username: 'me' }, { items: [{ registry: 'ghcr.io' }] }, { registry: 'ghcr.io' }])
    expect(JSON.stringify(shown)).not.toContain(password)
    const logins: unknown[] = []
    node.images = async (call) => {
      logins.push((await call.json(PullImage)).access.login)
      await call.lines([{ step: 'failed', code: 'registry_denied', message: 'no' }])
    }
    await pull(mine, 'ghcr.io/a/b')
    await pull(mine, 'quay.io/a/b')
    await pull(other, 'ghcr.io/a/b')
    expect(logins).toEqual([{ username: 'me', password }, null, null])
    const identityToken = `it-${randomBytes(8).toString('hex')}`
    const again = await mine.raw('PUT', '/v1/registries/ghcr.io', {
      body: JSON.stringify({ username: 'me', identityToken }),
      headers: { 'content-type': 'application/json' },
    })
    expect([again.status, await again.text()]).toEqual([200, expect.not.stringContaining(identityToken)])
    await pull(mine, 'ghcr.io/a/b')
    expect(logins.at(-1)).toEqual({ username: 'me', identityToken })
    expect((await other.get('/v1/registries/ghcr.io')).body.code).toBe('registry_not_found')
    expect((await mine.delete('/v1/registries/ghcr.io')).status).toBe(204)
    expect((await mine.get('/v1/registries')).body.items).toEqual([])
  })
})

test('a login for Docker Hub is one, whichever of its names is written', async () => {
  const mine = await tenant()
  const put = await mine.raw('PUT', '/v1/registries/index.docker.io', {
    body: JSON.stringify({ username: 'me', password: 'correct horse' }),
    headers: { 'content-type': 'application/json' },
  })
  expect(await put.json()).toMatchObject({ registry: 'docker.io' })
  const logins: unknown[] = []
  node.images = async (call) => {
    logins.push((await call.json(PullImage)).access.login)
    await call.lines([{ step: 'failed', code: 'registry_denied', message: 'no' }])
  }
  await pull(mine, 'team/app')
  expect(logins).toMatchObject([{ username: 'me' }])
  expect((await mine.delete('/v1/registries/index.docker.io')).status).toBe(204)
  expect((await mine.get('/v1/registries')).body.items).toEqual([])
})

test('what no registry, login or label can be is refused by name', async () => {
  const mine = await tenant()
  const put = async (registry: string, body: object) => {
    const answer = await mine.raw('PUT', `/v1/registries/${encodeURIComponent(registry)}`, {
      ...{ body: JSON.stringify(body), headers: { 'content-type': 'application/json' } },
    })
    return { status: answer.status, body: await answer.json() }
  }
  const login = { username: 'me', password: 'x' }
  const bad = { status: 400, body: { code: 'invalid_request' } }
  for (const registry of ['Upper', 'a/b', 'http://a', 'a:b', '-a', 'a b', 'a\0'])
    expect(await put(registry, login)).toMatchObject(bad)
  for (const secrets of [{}, { password: 'x', identityToken: 'y' }])
    expect(await put('ghcr.io', { username: 'me', ...secrets })).toMatchObject({
      body: { errors: [{ field: 'password', message: expect.stringContaining('identityToken') }] },
    })
  for (const body of [{}, { username: 'me', identityToken: 'a\0' }, { username: 'me', identityToken: '' }])
    expect(await put('ghcr.io', body)).toMatchObject(bad)
  for (const body of [
    { ...login, more: 1 },
    { ...login, username: '' },
    { ...login, username: 'a\0' },
    { ...login, username: 'a:b' },
  ])
    expect(await put('ghcr.io', body)).toMatchObject(bad)
  for (const query of ['reference=a%00*', 'reference=A%20b', 'label=a%00', 'dangling=maybe', 'cursor=x', 'limit=0'])
    expect(await mine.get(`/v1/images?${query}`)).toMatchObject(bad)
  expect(await mine.post('/v1/images/prune', { label: ['a\0'] })).toMatchObject(bad)
  expect(await mine.raw('POST', '/v1/images/import?config=%7B', { body: 'x' })).toMatchObject({ status: 400 })
  expect(await mine.raw('POST', '/v1/images/import?config=%7B%22envs%22%3A1%7D', { body: 'x' })).toMatchObject({
    status: 400,
  })
})

describe('an archive', () => {
  test('is what the node makes of these images, under the names that were given', async () => {
    const mine = await tenant()
    const [a, b] = [await have(mine, 'a:1'), await have(mine, 'b')]
    await until('the node says that it has them', async () => (await mine.get(of('b'))).body.nodes === 1 || undefined)
    const queries: URLSearchParams[] = []
    node.images = async (call) => {
      expect(asked(call)).toBe('archive')
      queries.push(call.query)
      call.response.writeHead(200, { 'content-type': 'application/x-tar' }).end('tar')
      await once(call.response, 'close').catch(() => undefined)
    }
    const response = await mine.raw('GET', `/v1/images/archive?image=a:1&image=${b.digest}&format=oci`)
    expect([response.status, await response.text()]).toEqual([200, 'tar'])
    expect(queries[0]?.getAll('image')).toEqual([a.digest, b.digest])
    expect(queries[0]?.getAll('name')).toEqual([`${a.digest}=a:1`, `${b.digest}=b:latest`])
    expect(queries[0]?.get('format')).toBe('oci')
  })
})

test('an API that is killed during a pull leaves nothing that is listed, and the next try works', async () => {
  const mine = await tenant()
  let begun = false
  node.images = async (call) => {
    begun = true
    await call.lines(endless(call.signal))
  }
  try {
    const broken = pull(mine, 'app').catch(() => 'broken')
    await until('the pull has begun', async () => begun || undefined)
    await crash('api')
    expect(await broken).toBe('broken')
  } finally {
    await restored()
  }
  expect((await mine.get('/v1/images?reference=app')).body.items).toEqual([])
  expect((await mine.get('/v1/usage')).body.now.imageBytes).toBe(0)
  const image = await have(mine, 'app')
  expect((await mine.get(of('app'))).body.digest).toBe(image.digest)
}, 120_000)
