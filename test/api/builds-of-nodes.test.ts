// What the API does of a build, whatever its node does: a node that is told what to say. Builds of real nodes are in
// builds.test.ts.
import { createHash, randomBytes } from 'node:crypto'
import { request } from 'node:http'
import { buffer } from 'node:stream/consumers'
import { BuildProgress, type BuildStep, Failure, GiB, type HeldImage, NodeBuild, SolveBuild } from '@berth/contracts'
import type { RestCall } from '@berth/node-rpc'
import { afterAll, beforeAll, beforeEach, describe, expect, test } from '@jest/globals'
import { type Api, operator, stack, tenant, until } from '../support/berth.js'
import { FakeNode } from '../support/fake-node.js'

let node: FakeNode
beforeAll(async () => {
  node = await FakeNode.start({}, { serves: true })
  const api = await tenant()
  // The API asks only every few seconds which base images there are.
  await until('its image is known', async () => {
    const { items } = (await api.get(`/v1/images?reference=${node.image}`)).body
    return items.length > 0 || undefined
  })
})
afterAll(async () => {
  await node[Symbol.asyncDispose]()
})

const digest = () => `sha256:${createHash('sha256').update(randomBytes(16)).digest('hex')}`
const imageOf = (bytes = 100): HeldImage => {
  const diffId = digest()
  const settings = { env: [], entrypoint: [], command: [], workingDir: null, user: null, stopSignal: null }
  return {
    ...{ digest: digest(), manifestDigest: digest(), platform: 'linux/amd64', createdAt: null, history: [] },
    layers: [{ diffId, digest: diffId, mediaType: 'tar', sizeBytes: 1, unpackedBytes: bytes }],
    settings: { ...settings, labels: {}, exposedPorts: [], volumes: [] },
  }
}
const at = new Date(0).toISOString()
const begin = (vertex: number, name: string): BuildStep => ({ step: 'begin', vertex, name, stage: null, at })
const end = (vertex: number, error: string | null = null): BuildStep => ({
  ...{ step: 'end', vertex, at, ms: 12, exitCode: error === null ? 0 : 1, error, layer: null },
})
const output = (vertex: number, data: string): BuildStep => ({
  ...{ step: 'output', vertex, stream: 'stdout', data, at },
})

/** What the node was told, and what it says. */
interface Script {
  references?: readonly string[]
  places?: Readonly<Record<string, { readonly line: number; readonly instruction: string }>>
  solve?: (call: RestCall) => AsyncIterable<BuildStep> | readonly BuildStep[]
}
interface Seen {
  build?: NodeBuild
  context?: Buffer
  images?: Record<string, string>
  /** Builds that were ended by the API. */
  readonly ended: string[]
}
let seen: Seen
function scripted({ references = [], places, solve = () => [] }: Script): void {
  seen = { ended: [] }
  node.builds = async (call) => {
    const [, id = '', word] = call.rest
    if (call.method === 'DELETE') {
      seen.ended.push(id)
      call.answer(204)
    } else if (call.method === 'PUT') {
      seen.build = await call.json(NodeBuild)
      call.answer(204)
    } else if (word === 'context') {
      seen.context = await buffer(call.body)
      call.answer(200, { references, ...(places && { places }) })
    } else {
      seen.images = (await call.json(SolveBuild)).images
      await call.lines(solve(call))
    }
  }
}
beforeEach(() => scripted({}))

/** Larger than any real node, so that builds come to the one that is told what to say. */
const QUOTA = { memoryBytes: 2 ** 44, cpus: 1000 }
const LARGE = `memoryBytes=${1024 * GiB}&parallel=1`
const post = (api: Api, query = '', init: RequestInit = {}) =>
  api.raw('POST', `/v1/builds?${LARGE}&${query}`, { body: 'the context', ...init })
const problem = async (answer: Response) => {
  const body = Object(await answer.json())
  return { status: answer.status, ...body }
}
const linesOf = async (response: Response): Promise<BuildProgress[]> =>
  (await response.text())
    .trim()
    .split('\n')
    .map((line) => BuildProgress.parse(JSON.parse(line)))
const used = async (api: Api) => (await api.get('/v1/usage')).body.now

/** Steps that end only when the API lets go. */
async function* endless(signal: AbortSignal): AsyncGenerator<BuildStep> {
  yield begin(0, 'RUN sleep inf')
  await new Promise((gone) => signal.addEventListener('abort', gone, { once: true }))
}

describe('a build', () => {
  test('sends options and context to its node, streams what happens, and names the image', async () => {
    const mine = await tenant(QUOTA)
    const image = imageOf()
    scripted({
      solve: () => [
        ...[begin(0, 'FROM scratch'), { step: 'cached', vertex: 0 } as const, begin(1, 'RUN make')],
        ...[output(1, 'made\n'), end(1), { step: 'done', image } as const],
      ],
    })
    const query = 'tag=app&tag=team/app:1&target=last&arg=A=1&label=l=2&noCache=true&timeoutMs=5m&cpus=2&pids=9'
    const headers = { 'berth-build-secret': 'key=aHVudGVyMg==', 'berth-dockerfile': 'RlJPTSBzY3JhdGNo' }
    const response = await post(mine, query, { headers })
    expect([response.status, response.headers.get('content-type')]).toEqual([200, 'application/x-ndjson'])
    const lines = await linesOf(response)
    expect(lines.map(({ step }) => step)).toEqual([...['created', 'begin', 'cached', 'begin', 'output', 'end', 'done']])
    const [created, done] = [lines[0], lines.at(-1)]
    if (created?.step !== 'created' || done?.step !== 'done') throw new Error('another stream')
    expect(created).toMatchObject({ nodeId: node.id, parallel: 1 })
    expect(done).toMatchObject({
      build: { id: created.build, state: 'succeeded', tags: ['app:latest', 'team/app:1'], image: image.digest },
      image: { digest: image.digest, references: ['app:latest', 'team/app:1'], visibility: 'tenant' },
    })
    expect(seen.context?.toString()).toBe('the context')
    expect(seen.build).toMatchObject({
      ...{ tenantId: mine.id, dockerfileText: 'FROM scratch', target: 'last', args: { A: '1' }, labels: { l: '2' } },
      ...{ secrets: { key: 'aHVudGVyMg==' }, noCache: true, parallel: 1, runTimeoutMs: 300_000 },
      ...{ limits: { cpus: 2, memoryBytes: 1024 * GiB, pids: 9, diskBytes: 4 * GiB }, maxContextBytes: 2 * GiB },
    })
    const path = `/v1/builds/${created.build}`
    const kept = await mine.get(path)
    expect(kept.body).toMatchObject({ state: 'succeeded', reason: null, startedAt: expect.any(String) })
    expect(kept.body.steps).toMatchObject([{ state: 'cached' }, { name: 'RUN make', state: 'done', ms: 12 }])
    const log = (await mine.get(`${path}/log`)).body
    expect(log.split('\n')).toEqual(expect.arrayContaining(['#1 RUN make', '#1 0.000 made', '#1 DONE 0.0s']))
    expect(JSON.stringify(kept.body) + log).not.toContain('aHVudGVyMg==')
    expect((await mine.get('/v1/builds?state=succeeded')).body.items).toHaveLength(1)
    expect((await mine.get('/v1/builds?state=running')).body.items).toEqual([])
    expect(await used(mine)).toMatchObject({ unfinishedJobs: 0, runningJobs: 0, cpus: 0, diskBytes: 0 })
    const events = (await mine.get(`/v1/events?subject=${created.build}`)).body.items
    expect(events.map(({ type }: { type: string }) => type)).toEqual(['build.started', 'build.succeeded'])
  })

  test('that fails is a problem with where and the last output, or the last line of the stream', async () => {
    const mine = await tenant(QUOTA)
    const failed = { code: 'build_failed', message: 'exit code 1', line: 3, instruction: 'RUN false' } as const
    scripted({
      solve: () => [begin(0, 'RUN false'), output(0, 'boom\n'), end(0, 'exit code 1'), { step: 'failed', ...failed }],
    })
    expect(await problem(await post(mine, 'wait=done&tag=app'))).toMatchObject({
      status: 422,
      code: 'build_failed',
      detail: 'exit code 1',
      line: 3,
      instruction: 'RUN false',
      output: 'boom\n',
    })
    expect((await linesOf(await post(mine))).at(-1)).toEqual({ step: 'failed', ...failed })
    expect((await mine.get('/v1/builds')).body.items).toMatchObject([
      ...[1, 2].map(() => ({ state: 'failed', reason: { code: 'build_failed', line: 3, instruction: 'RUN false' } })),
    ])
    expect((await mine.get('/v1/images?reference=app')).body.items).toEqual([])
    expect(await used(mine)).toMatchObject({ runningJobs: 0, memoryBytes: 0 })
  })

  test('is refused over a quota before anything of its context is read', async () => {
    const mine = await tenant({ ...QUOTA, concurrentJobs: 0 })
    expect(await problem(await post(mine))).toMatchObject({ status: 403, quota: 'concurrentJobs' })
    const small = await tenant()
    expect((await post(small)).status).toBe(403)
    expect(seen.build).toBeUndefined()
  })

  test('waits for room as long as it may', async () => {
    const mine = await tenant({ ...QUOTA, concurrentJobs: 1 })
    let solved = 0
    scripted({
      solve: (call) => (solved++ === 0 ? endless(call.signal) : [{ step: 'done', image: imageOf() }]),
    })
    const first = await post(mine)
    const [{ id }] = (await mine.get('/v1/builds')).body.items
    expect(await problem(await post(mine, 'queueMs=0s'))).toMatchObject({ status: 403, quota: 'concurrentJobs' })
    const second = post(mine, 'wait=done')
    await until('the first one runs', async () => solved === 1 || undefined)
    expect((await mine.get('/v1/builds')).body.items).toHaveLength(1)
    await mine.post(`/v1/builds/${id}/cancel`)
    expect((await second).status).toBe(201)
    expect((await linesOf(first)).at(-1)).toMatchObject({ code: 'build_canceled' })
  })

  test('waits for tenants that have fewer, also where one of its own tenant has ended', async () => {
    scripted({ solve: (call) => endless(call.signal) })
    const [mine, other] = [await tenant(QUOTA), await tenant(QUOTA)]
    // Two of these are on the node at once.
    const large = (api: Api) => post(api, 'cpus=400')
    const open = [await large(mine), await large(mine)]
    const theirs = large(other)
    const next = large(mine)
    const ids = async (api: Api) =>
      (await api.get('/v1/builds?state=running')).body.items.map(({ id }: { id: string }) => id)
    const [id] = await ids(mine)
    await mine.post(`/v1/builds/${id}/cancel`)
    open.push(await theirs)
    expect([await ids(mine), await ids(other)]).toEqual([[expect.anything()], [expect.anything()]])
    await other.post(`/v1/builds/${await ids(other)}/cancel`)
    open.push(await next)
    expect(await ids(mine)).toHaveLength(2)
    for (const one of await ids(mine)) await mine.post(`/v1/builds/${one}/cancel`)
    for (const one of open) expect((await linesOf(one)).at(-1)).toMatchObject({ code: 'build_canceled' })
  })

  test('whose image is over the quota of images fails, and names nothing', async () => {
    const mine = await tenant({ ...QUOTA, imageBytes: 99 })
    scripted({ solve: () => [{ step: 'done', image: imageOf(100) }] })
    const answer = await problem(await post(mine, 'wait=done&tag=app'))
    expect(answer).toMatchObject({ status: 403, quota: 'imageBytes' })
    expect(seen.build?.maxBytes).toBe(99)
    expect((await mine.get('/v1/images?reference=app')).body.items).toEqual([])
    expect((await mine.get('/v1/builds')).body.items).toMatchObject([{ state: 'failed' }])
  })
})

describe('its base images', () => {
  test('are the tenant’s own, or those of the node; what nobody has is pulled to the node', async () => {
    const mine = await tenant(QUOTA)
    const [base, image] = [imageOf(), imageOf()]
    const layer = { step: 'layer', digest: digest(), state: 'fetching', bytes: 1, totalBytes: 2 } as const
    node.images = async (call) => {
      call.body.resume()
      await call.lines([layer, { step: 'done', images: [{ image: base, references: [] }] }])
    }
    scripted({ references: ['team/base', node.image], solve: () => [{ step: 'done', image }] })
    const lines = await linesOf(await post(mine))
    expect(lines.map(({ step }) => step)).toEqual(['created', 'pull', 'pulled', 'done'])
    expect(lines[1]).toMatchObject({ reference: 'team/base', layer: layer.digest, state: 'fetching' })
    const images = { 'team/base': base.digest, [node.image]: `sha256:${'f'.repeat(64)}` }
    expect(seen.images).toEqual(images)
    node.held.add(base.digest)
    // Now it has it.
    expect((await linesOf(await post(mine))).map(({ step }) => step)).toEqual(['created', 'done'])
    expect(seen.images).toEqual(images)
    expect((await linesOf(await post(mine, 'platform=linux/arm64'))).at(-1)).toMatchObject({
      ...{ step: 'failed', code: 'platform_unsupported' },
    })
  })

  test('are brought to the node where it lacks them', async () => {
    const mine = await tenant(QUOTA)
    const base = imageOf()
    scripted({ solve: () => [{ step: 'done', image: imageOf() }] })
    expect((await linesOf(await post(mine)))[0]).toMatchObject({ nodeId: node.id })
    await using other = await FakeNode.start({ diskBytes: 2 ** 46 }, { serves: true })
    other.images = (call) => call.lines([{ step: 'done', images: [{ image: base, references: [] }] }])
    expect((await mine.post('/v1/images/pull?wait=done', { reference: 'team/far' })).status).toBe(201)
    const brought: unknown[] = []
    node.images = async (call) => {
      if (call.method === 'GET') throw new Failure('image_not_found', 'not here')
      brought.push(call.rest.slice(1))
      await call.lines([{ step: 'done', images: [{ image: base, references: [] }] }])
    }
    scripted({ references: ['team/far'], solve: () => [{ step: 'done', image: imageOf() }] })
    const lines = await linesOf(await post(mine))
    expect(lines.map(({ step }) => step)).toEqual(['created', 'pulled', 'done'])
    expect(lines[0]).toMatchObject({ nodeId: node.id })
    expect(brought).toEqual([[base.digest, 'bring']])
    expect(seen.images).toEqual({ 'team/far': base.digest })
  })

  test.each([
    ['Not A Name', 'dockerfile_invalid'],
    [`sha256:${'9'.repeat(64)}`, 'image_not_found'],
    ['127.0.0.1:1/x', 'policy_forbidden'],
  ])('%s: fails it with %s, where it is named', async (reference, code) => {
    const mine = await tenant(QUOTA)
    const place = { line: 3, instruction: `FROM ${reference} AS base` }
    scripted({ references: [reference], places: { [reference]: place } })
    const failed = { code, ...place, message: expect.stringMatching(/^line 3, FROM: /) }
    expect((await linesOf(await post(mine))).at(-1)).toMatchObject({ step: 'failed', ...failed })
    expect((await mine.get('/v1/builds')).body.items).toMatchObject([{ state: 'failed', reason: failed }])
  })
})

describe('a build ends at once, gives back what it holds, and its node is told', () => {
  const begun = async (mine: Api, init: RequestInit = {}) => {
    scripted({ solve: (call) => endless(call.signal) })
    const response = await post(mine, 'tag=app', init)
    const id = await until('the build runs', async () => {
      const [build] = (await mine.get('/v1/builds')).body.items
      return build?.startedAt ? build.id : undefined
    })
    expect(await used(mine)).toMatchObject({ runningJobs: 1, memoryBytes: 1024 * GiB })
    return { response, id }
  }
  const ended = async (mine: Api, id: string, state: string, code: string) => {
    const build = await until('the build has ended', async () => {
      const { body } = await mine.get(`/v1/builds/${id}`)
      return body.endedAt === null ? undefined : body
    })
    expect(build).toMatchObject({ state, reason: { code } })
    expect(await used(mine)).toMatchObject({ runningJobs: 0, memoryBytes: 0, diskBytes: 0 })
    await until('the node is told', async () => seen.ended.includes(id) || undefined)
    expect((await mine.get('/v1/images?reference=app')).body.items).toEqual([])
  }

  test('when it is canceled', async () => {
    const mine = await tenant(QUOTA)
    const { response, id } = await begun(mine)
    const answer = await mine.post(`/v1/builds/${id}/cancel`)
    expect(answer).toMatchObject({ status: 200, body: { id, state: 'canceled' } })
    expect((await linesOf(response)).at(-1)).toMatchObject({ step: 'failed', code: 'build_canceled' })
    await ended(mine, id, 'canceled', 'build_canceled')
    expect((await mine.post(`/v1/builds/${id}/cancel`)).body).toMatchObject({ state: 'canceled' })
    expect((await (await tenant()).post(`/v1/builds/${id}/cancel`)).body.code).toBe('build_not_found')
  })

  test('when its client goes', async () => {
    const mine = await tenant(QUOTA)
    const leaving = new AbortController()
    const { id } = await begun(mine, { signal: leaving.signal })
    leaving.abort()
    await ended(mine, id, 'canceled', 'build_canceled')
  })

  test('when its client goes before all of the context is sent', async () => {
    const mine = await tenant(QUOTA)
    scripted({})
    const headers = { authorization: `Bearer ${mine.key}`, 'transfer-encoding': 'chunked' }
    const sending = request(`${stack().url}/v1/builds?${LARGE}`, { method: 'POST', headers })
    sending.on('error', () => undefined)
    sending.write('the beginning')
    const id = await until('the build is there', async () => (await mine.get('/v1/builds')).body.items[0]?.id)
    sending.destroy()
    await ended(mine, id, 'canceled', 'build_canceled')
  })

  test('when its time is over', async () => {
    const mine = await tenant(QUOTA)
    scripted({ solve: (call) => endless(call.signal) })
    const answer = await problem(await post(mine, 'wait=done&timeoutMs=1s&tag=app'))
    expect(answer).toMatchObject({ status: 422, code: 'build_timed_out' })
    await ended(mine, answer.build, 'failed', 'build_timed_out')
  })

  test('when its node is removed, and says so', async () => {
    const mine = await tenant(QUOTA)
    await using other = await FakeNode.start({}, { serves: true })
    other.builds = (call) => node.builds(call)
    await operator().patch(`/v1/nodes/${node.id}`, { state: 'draining' })
    try {
      const { response, id } = await begun(mine)
      expect((await mine.get(`/v1/builds/${id}`)).body.nodeId).toBe(other.id)
      await other.leaveQueue()
      await operator().delete(`/v1/nodes/${other.id}`)
      const why = { code: 'node_unreachable', message: expect.stringContaining('removed') }
      expect((await linesOf(response)).at(-1)).toMatchObject({ step: 'failed', ...why })
      expect((await mine.get(`/v1/builds/${id}`)).body).toMatchObject({ state: 'failed', reason: why })
      expect(await used(mine)).toMatchObject({ runningJobs: 0, memoryBytes: 0, diskBytes: 0 })
    } finally {
      await operator().patch(`/v1/nodes/${node.id}`, { state: 'ready' })
    }
  })

  test('when its node goes away in the middle', async () => {
    const mine = await tenant(QUOTA)
    scripted({ solve: () => [begin(0, 'RUN x')] })
    expect((await linesOf(await post(mine))).at(-1)).toMatchObject({ step: 'failed', code: 'node_unreachable' })
    const [{ id }] = (await mine.get('/v1/builds')).body.items
    await ended(mine, id, 'failed', 'node_unreachable')
  })
})

test('the cache of the nodes that did builds is told, and pruned', async () => {
  const mine = await tenant(QUOTA)
  expect((await mine.get('/v1/builds/cache')).body).toEqual({ items: [], unreachable: [] })
  scripted({ solve: () => [{ step: 'done', image: imageOf() }] })
  await linesOf(await post(mine))
  const asked: unknown[] = []
  node.builds = async (call) => {
    asked.push([call.method, call.rest.slice(1), call.query.get('tenantId'), (await buffer(call.body)).toString()])
    call.answer(200, call.method === 'GET' ? { bytes: 7, entries: [] } : { removed: 2, freedBytes: 7 })
  }
  expect((await mine.get('/v1/builds/cache')).body).toEqual({
    ...{ items: [{ nodeId: node.id, bytes: 7, entries: [] }], unreachable: [] },
  })
  const pruned = await mine.post('/v1/builds/cache/prune', { unusedFor: '1h', keepBytes: '1m' })
  expect(pruned.body).toEqual({ removed: 2, freedBytes: 7, unreachable: [] })
  expect(asked).toEqual([
    ['GET', ['cache'], mine.id, ''],
    [
      ...['POST', ['cache', 'prune'], null],
      JSON.stringify({ tenantId: mine.id, unusedForMs: 3_600_000, keepBytes: 1_048_576 }),
    ],
  ])
})
