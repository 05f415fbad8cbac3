// Pulls and pushes against Debian's docker-registry, with a proxy in front that goes wrong.
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { Failure } from '@berth/contracts'
import { mediaTypes } from '@berth/oci'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from '@jest/globals'
import { Progress } from './progress.js'
import { push } from './push.js'
import {
  type Asked,
  accessTo,
  digestOf,
  type FaultyProxy,
  imageOf,
  LOGIN,
  noise,
  publish,
  publishManifest,
  startProxy,
  startRegistry,
  type TestImage,
  type TestRegistry,
  type Trouble,
  tarOf,
} from './registry.fixture.js'
import { forever, TestStore, times } from './store.fixture.js'
import { zstdTool } from './zstd.fixture.js'

let registry: TestRegistry
let proxy: FaultyProxy
let image: TestImage
let store: TestStore
let lower: Buffer
let upper: Buffer

beforeAll(async () => {
  registry = await startRegistry()
  proxy = await startProxy(registry)
  lower = await tarOf({ 'bin/': null, 'bin/sh': noise(400_000), 'etc/motd': 'hello' })
  upper = await tarOf({ 'etc/': null, 'etc/.wh.motd': '', 'app/data': noise(300_000) })
  image = imageOf([lower, upper])
  await publish(registry, 'team/app', '1', image)
})
afterAll(async () => {
  await proxy.close()
  await registry.close()
})
beforeEach(async () => {
  store = await TestStore.open()
  proxy.asked.length = 0
  proxy.trouble = () => undefined
})
afterEach(() => store.remove())

const reference = () => `${proxy.host}/team/app:1`
const pull = (more: Parameters<TestStore['pull']>[2] = {}) => store.pull(reference(), accessTo(proxy), more)
const blobOf = (asked: Asked) => asked.method === 'GET' && /\/blobs\//.test(asked.path)
const isLayer = (asked: Asked, index = 0) =>
  blobOf(asked) && asked.path.endsWith(digestOf(image.blobs[index] ?? Buffer.alloc(0)))
/** The first so many requests that match go wrong. */
const troubled = (count: number, matches: (asked: Asked) => boolean, trouble: Trouble) => {
  let left = count
  proxy.trouble = (asked) => (matches(asked) && left-- > 0 ? trouble : undefined)
}
const held = () => ({
  digest: digestOf(image.config),
  manifestDigest: digestOf(image.manifest),
  layers: image.blobs.map((blob, i) => ({
    diffId: digestOf(image.tars[i] ?? blob),
    digest: digestOf(blob),
    mediaType: `${mediaTypes.layer}+gzip`,
    sizeBytes: blob.length,
    unpackedBytes: [400_005, 300_000][i],
  })),
})
/** Nothing is kept of it but what is right. */
async function expectClean(...blobs: Buffer[]) {
  expect(await store.problems()).toEqual([])
  expect(store.inventory()).toEqual({
    blobs: blobs.map((blob) => digestOf(blob).slice(7)).sort(),
    layers: [],
    partial: [],
    images: [],
    incoming: [],
  })
}

describe('a pull', () => {
  test('brings an image whole: verified, unpacked, told of, and found again after a restart', async () => {
    const { image: got, steps } = await pull()
    expect(got).toMatchObject(held())
    expect(steps).toEqual(
      image.blobs.map((blob) => ({
        ...{ step: 'layer', digest: digestOf(blob), state: 'done', bytes: blob.length, totalBytes: blob.length },
      })),
    )
    expect(await store.problems()).toEqual([])
    await store.reopen()
    const resolved = store.images.resolve('whatever', got.digest)
    expect(resolved).toMatchObject({ digest: got.digest, config: { command: ['/bin/sh'] } })
    const [top = '', base = ''] = resolved?.layers ?? []
    expect(readdirSync(join(top, 'app'))).toEqual(['data'])
    expect(readFileSync(join(base, 'etc/motd'), 'utf8')).toBe('hello')
    expect(store.images.resolve('team/app:1')).toBeUndefined()
    expect(store.images.list()).toEqual([
      { digest: got.digest, sizeBytes: 700_005, heldSince: expect.stringMatching(/Z$/) },
    ])
  })

  test('of what is here fetches no layer, once the registry says that it may', async () => {
    await pull()
    proxy.asked.length = 0
    const { steps } = await pull()
    expect(proxy.asked.filter(blobOf)).toEqual([])
    expect(proxy.asked.filter(({ method }) => method === 'HEAD')).toHaveLength(3)
    expect(steps.map((step) => step.step === 'layer' && step.state)).toEqual(['done', 'done'])
  })

  test('by digest, of an index and of Docker’s media types', async () => {
    const docker = imageOf([lower], {
      layerType: 'application/vnd.docker.image.rootfs.diff.tar.gzip',
      manifest: { mediaType: mediaTypes.dockerManifest },
    })
    const typed = { ...docker, mediaType: mediaTypes.dockerManifest }
    await publish(registry, 'team/docker', 'amd', typed)
    const entry = (bytes: Buffer, architecture: string) => ({
      ...{ mediaType: mediaTypes.dockerManifest, digest: digestOf(bytes), size: bytes.length },
      platform: { os: 'linux', architecture },
    })
    const native = process.arch === 'arm64' ? 'arm64' : 'amd64'
    const manifests = [entry(Buffer.from('other'), 's390x'), entry(docker.manifest, native)]
    const index = Buffer.from(JSON.stringify({ schemaVersion: 2, mediaType: mediaTypes.dockerList, manifests }))
    proxy.trouble = ({ path }) =>
      path.endsWith('manifests/all')
        ? { kind: 'answer', status: 200, headers: { 'content-type': mediaTypes.dockerList }, body: index }
        : undefined
    const { image: got } = await store.pull(`${proxy.host}/team/docker:all`, accessTo(proxy))
    expect(got.manifestDigest).toBe(digestOf(docker.manifest))
    const byDigest = await store.pull(`${proxy.host}/team/docker@${digestOf(docker.manifest)}`, accessTo(proxy))
    expect(byDigest.image).toEqual(got)
    await expect(
      store.pull(`${proxy.host}/team/docker:all`, accessTo(proxy), { platform: 'linux/s390x' }),
    ).rejects.toMatchObject({ code: 'platform_unsupported' })
  })

  test('of layers packed by zstd and not at all', async () => {
    for (const [type, pack] of [
      [`${mediaTypes.layer}+zstd`, zstdTool],
      [mediaTypes.layer, (tar: Buffer) => tar],
    ] as const) {
      const packed = imageOf([lower], { layerType: type, pack })
      await publish(registry, 'team/packed', '1', packed)
      const { image: got } = await store.pull(`${proxy.host}/team/packed:1`, accessTo(proxy))
      expect(got.layers[0]).toMatchObject({ diffId: digestOf(lower), mediaType: type })
    }
    expect(await store.problems()).toEqual([])
  })

  test('that two ask for at once fetches each layer once', async () => {
    const [a, b] = await Promise.all([pull(), pull()])
    expect(a.image).toEqual(b.image)
    expect(proxy.asked.filter((asked) => isLayer(asked))).toHaveLength(1)
    expect(proxy.asked.filter((asked) => isLayer(asked, 1))).toHaveLength(1)
  })

  test('stops at once when its caller goes, and the next one goes on', async () => {
    proxy.trouble = (asked) => (isLayer(asked) ? { kind: 'slow' } : undefined)
    const leaving = new AbortController()
    const pulling = pull({ signal: leaving.signal })
    while (!proxy.asked.some((asked) => isLayer(asked))) await new Promise((done) => setImmediate(done))
    leaving.abort(new Error('gone'))
    await expect(pulling).rejects.toThrow('gone')
    expect(store.inventory().images).toEqual([])
    proxy.trouble = () => undefined
    expect((await pull()).image).toMatchObject(held())
  })
})

describe('trouble on the way', () => {
  test('a cut connection goes on where it was cut', async () => {
    troubled(2, (asked) => isLayer(asked), { kind: 'cut', after: 100_000 })
    const { image: got, steps } = await pull()
    expect(got).toMatchObject(held())
    expect(steps.filter(({ step }) => step === 'retry')).toHaveLength(2)
    const ranges = proxy.asked.filter((asked) => isLayer(asked)).map(({ headers }) => headers.range)
    expect(ranges[0]).toBeUndefined()
    // All that arrived before the reset counts, which may be less than was sent.
    const [, second, third] = ranges.map((range) => Number(/^bytes=(\d+)-$/.exec(range ?? '')?.[1] ?? 0))
    expect(third).toBeGreaterThanOrEqual(second ?? 0)
    expect(third).toBeLessThanOrEqual(200_000)
    expect(await store.problems()).toEqual([])
  })

  test.each<[string, Trouble]>([
    ['a body that ends too early', { kind: 'end', after: 1000 }],
    ['silence', { kind: 'silence', after: 1000 }],
    ['500', { kind: 'answer', status: 500 }],
    ['503 with Retry-After', { kind: 'answer', status: 503, headers: { 'retry-after': '0' } }],
    ['429', { kind: 'answer', status: 429, headers: { 'retry-after': '1' } }],
  ])('%s is tried again', async (_what, trouble) => {
    troubled(1, (asked) => isLayer(asked), trouble)
    const { image: got, steps } = await pull()
    expect(got).toMatchObject(held())
    expect(steps.filter(({ step }) => step === 'retry')).toHaveLength(1)
  })

  test('of the manifest and of the configuration too', async () => {
    troubled(1, ({ path }) => path.includes('/manifests/'), { kind: 'cut', after: 10 })
    expect((await pull()).image).toMatchObject(held())
    await store.images.drop(digestOf(image.config))
    troubled(2, ({ path }) => path.endsWith(digestOf(image.config)), { kind: 'answer', status: 502 })
    expect((await pull()).image).toMatchObject(held())
  })

  test('that does not end is told, and what came is kept for the next', async () => {
    proxy.trouble = (asked) => (isLayer(asked) ? { kind: 'answer', status: 500 } : undefined)
    await expect(pull()).rejects.toMatchObject({ code: 'registry_unreachable' })
    await store.images.collect(new Set())
    expect(store.inventory()).toMatchObject({ images: [], layers: [] })
    expect(await store.problems()).toEqual([])
    proxy.trouble = () => undefined
    expect((await pull()).image).toMatchObject(held())
  })

  test('a wrong byte is found, and nothing is kept', async () => {
    proxy.trouble = (asked) => (isLayer(asked) || isLayer(asked, 1) ? { kind: 'corrupt' } : undefined)
    await expect(pull()).rejects.toMatchObject({ code: 'image_invalid' })
    await store.images.collect(new Set())
    const { blobs, partial } = store.inventory()
    expect(blobs.sort()).toEqual([image.config, image.manifest].map((blob) => digestOf(blob).slice(7)).sort())
    expect(partial.every((name) => name !== digestOf(image.blobs[0] ?? lower).slice(7)) || partial.length <= 1).toBe(
      true,
    )
    expect(await store.problems()).toEqual([])
  })

  test('a part of another time that does not fit is dropped, and fetched anew', async () => {
    const part = await store.images.content.part(digestOf(image.blobs[0] ?? lower))
    await part.append(noise(5000))
    await part.close()
    expect((await pull()).image).toMatchObject(held())
  })

  test('a mirror that is away, lacks it or lies is passed by; its login is not sent', async () => {
    const gone = { kind: 'answer', status: 404 } as const
    for (const trouble of [gone, { kind: 'corrupt' }, { kind: 'answer', status: 500 }] as const) {
      const fresh = await TestStore.open()
      proxy.asked.length = 0
      proxy.trouble = (asked) => (trouble.kind === 'corrupt' && !blobOf(asked) ? undefined : trouble)
      const access = accessTo(registry, { endpoints: [proxy.url, registry.url], login: LOGIN })
      const { image: got } = await fresh.pull(`${registry.host}/team/app:1`, access)
      expect(got).toMatchObject(held())
      expect(proxy.asked.length).toBeGreaterThan(0)
      expect(proxy.asked.filter(({ headers }) => headers.authorization)).toEqual([])
      fresh.remove()
    }
  })
})

describe('what is not what it says', () => {
  const publishOdd = async (change: Parameters<typeof imageOf>[1]) => {
    const odd = imageOf([lower], change)
    proxy.trouble = ({ path, method }) => {
      if (method !== 'GET') return { kind: 'answer', status: 404 }
      const blob = [...odd.blobs, odd.config].find((one) => path.endsWith(digestOf(one)))
      const body = path.includes('/manifests/') ? odd.manifest : blob
      return body ? { kind: 'answer', status: 200, headers: { 'content-type': odd.mediaType }, body } : undefined
    }
    return odd
  }
  const layers = (change: (size: number) => object) => ({
    manifest: (made: readonly { readonly size: number }[]) => ({
      layers: made.map((layer) => ({ ...layer, ...change(layer.size) })),
    }),
  })

  test.each<[string, Parameters<typeof imageOf>[1], string]>([
    ['a larger size', layers((size) => ({ size: size + 1 })), 'image_invalid'],
    ['a smaller size', layers((size) => ({ size: size - 1 })), 'image_invalid'],
    [
      'another diffID',
      { config: { rootfs: { type: 'layers', diff_ids: [`sha256:${'0'.repeat(64)}`] } } },
      'image_invalid',
    ],
    [
      'more diffIDs',
      { config: { rootfs: { type: 'layers', diff_ids: Array(2).fill(digestOf(Buffer.alloc(0))) } } },
      'image_invalid',
    ],
    ['another packing', { pack: (tar) => tar, layerType: `${mediaTypes.layer}+gzip` }, 'image_invalid'],
    ['zstd that is none', { pack: (tar) => tar, layerType: `${mediaTypes.layer}+zstd` }, 'image_invalid'],
    ['a layer of another kind', { layerType: 'application/x-tar' }, 'image_invalid'],
    ['another architecture', { config: { architecture: 's390x' } }, 'platform_unsupported'],
    ['another system', { config: { os: 'windows' } }, 'platform_unsupported'],
  ])('%s is refused, and nothing of it is used', async (_what, change, code) => {
    await publishOdd(change)
    await expect(pull()).rejects.toMatchObject({ code })
    await store.images.collect(new Set(), new Date(Date.now() + 7_200_000))
    await expectClean()
  })

  test('a manifest by digest that is another is refused', async () => {
    await publishOdd({})
    await expect(store.pull(`${proxy.host}/team/app@sha256:${'1'.repeat(64)}`, accessTo(proxy))).rejects.toMatchObject({
      code: 'image_invalid',
    })
    await expectClean()
  })

  test('a manifest of 100 MiB is refused before it is read', async () => {
    let sent = 0
    const large = Buffer.alloc(1 << 20, ' ')
    proxy.trouble = () => {
      sent++
      return {
        kind: 'answer',
        status: 200,
        headers: { 'content-type': mediaTypes.manifest },
        body: Buffer.alloc(100 << 20, large),
      }
    }
    await expect(pull()).rejects.toMatchObject({ code: 'image_invalid' })
    expect(sent).toBe(1)
    await expectClean()
  })

  test('more than the quota allows is refused', async () => {
    await expect(pull({ maxBytes: 500_000 })).rejects.toMatchObject({ code: 'quota_exceeded' })
    await store.images.collect(new Set())
    expect(store.inventory()).toMatchObject({ images: [], layers: [] })
    expect((await pull({ maxBytes: 700_005 })).image).toMatchObject(held())
  })

  test('naming what somebody else has is no way to it', async () => {
    await pull()
    // The same blobs and diffIDs, at a registry that does not have them.
    const thief = await startProxy(registry)
    thief.trouble = ({ path, method }) => {
      const body = path.includes('/manifests/')
        ? image.manifest
        : path.endsWith(digestOf(image.config))
          ? image.config
          : undefined
      if (method === 'HEAD') return { kind: 'answer', status: 200 }
      return body ? { kind: 'answer', status: 200, body } : { kind: 'answer', status: 404 }
    }
    await expect(store.pull(`${thief.host}/evil/app:1`, accessTo(thief))).rejects.toMatchObject({
      code: 'registry_denied',
    })
    await thief.close()
    // A blob of the thief's own that claims to be the layer.
    const junk = await tarOf({ x: 'junk' })
    const claim = imageOf([junk], { config: { rootfs: { type: 'layers', diff_ids: [digestOf(lower)] } } })
    await publish(registry, 'evil/claim', '1', claim)
    await expect(store.pull(`${registry.host}/evil/claim:1`, accessTo(registry))).rejects.toMatchObject({
      code: 'image_invalid',
    })
    expect(await store.problems()).toEqual([])
  })
})

describe('who we are', () => {
  test('a private registry over TLS takes the login, and no other', async () => {
    const secure = await startRegistry({ login: true, tls: true })
    try {
      const { image: got } = await pull()
      const name = `${secure.host}/team/app:1`
      const login = { ...LOGIN }
      const access = accessTo(secure, { login })
      const pushed = await push(
        store.images,
        { digest: got.digest, reference: name, access },
        forever,
        new Progress(),
        times,
      )
      expect(pushed).toEqual(got)
      const other = await TestStore.open()
      expect((await other.pull(name, access)).image).toEqual(got)
      await expect(other.pull(name, accessTo(secure))).rejects.toMatchObject({ code: 'registry_denied' })
      const wrong = accessTo(secure, { login: { ...LOGIN, password: 'wrong' } })
      await expect(other.pull(name, wrong)).rejects.toMatchObject({ code: 'registry_denied' })
      await expect(other.pull(name, { ...access, certificates: null })).rejects.toMatchObject({
        code: 'registry_unreachable',
      })
      other.remove()
    } finally {
      await secure.close()
    }
  })

  test('a token is fetched with the login, used for its registry only, and fetched again when it expires', async () => {
    let [issued, uses] = [0, 0]
    proxy.trouble = ({ path, headers }) => {
      if (path.startsWith('/token')) {
        const basic = `Basic ${Buffer.from(`${LOGIN.username}:${LOGIN.password}`).toString('base64')}`
        if (headers.authorization !== basic) return { kind: 'answer', status: 401 }
        issued++
        return {
          kind: 'answer',
          status: 200,
          body: Buffer.from(JSON.stringify({ access_token: `t${issued}`, expires_in: 1 })),
        }
      }
      // Each is good for two requests.
      if (headers.authorization === `Bearer t${issued}` && uses++ % 2 === 0) return undefined
      const challenge = `Bearer realm="${proxy.url}/token",service="a b",scope="repository:team/app:pull"`
      return { kind: 'answer', status: 401, headers: { 'www-authenticate': challenge } }
    }
    const { image: got } = await store.pull(reference(), accessTo(proxy, { login: { ...LOGIN } }))
    expect(got).toMatchObject(held())
    expect(issued).toBeGreaterThan(1)
    expect(proxy.asked.find(({ path }) => path.startsWith('/token'))?.path).toBe(
      '/token?service=a+b&scope=repository%3Ateam%2Fapp%3Apull',
    )
    await expect(
      store.pull(reference(), accessTo(proxy, { login: { username: 'x', password: 'y' } })),
    ).rejects.toMatchObject({
      code: 'registry_denied',
    })
  })

  test('a redirect of a blob is followed without the login', async () => {
    const cdn = await startProxy(registry)
    proxy.trouble = (asked) =>
      blobOf(asked) ? { kind: 'answer', status: 307, headers: { location: `${cdn.url}${asked.path}` } } : undefined
    const basic = `Basic ${Buffer.from('a:b').toString('base64')}`
    let challenged = false
    const redirecting = proxy.trouble
    proxy.trouble = (asked) => {
      if (asked.headers.authorization === basic) return redirecting(asked)
      challenged = true
      return { kind: 'answer', status: 401, headers: { 'www-authenticate': 'Basic realm="x"' } }
    }
    const access = accessTo(proxy, { login: { username: 'a', password: 'b' } })
    expect((await store.pull(reference(), access)).image).toMatchObject(held())
    expect(challenged).toBe(true)
    expect(cdn.asked.length).toBeGreaterThan(0)
    expect(cdn.asked.filter(({ headers }) => headers.authorization)).toEqual([])
    await cdn.close()
  })
})

describe('where a registry may send us', () => {
  test('without the operator’s word, to no private address', async () => {
    await expect(store.pull(reference(), accessTo(proxy, { privateAddresses: false }))).rejects.toMatchObject({
      code: 'registry_unreachable',
    })
    const named = { url: proxy.url.replace('127.0.0.1', 'localhost'), certificate: null }
    await expect(store.pull(reference(), accessTo(named, { privateAddresses: false }))).rejects.toMatchObject({
      code: 'registry_unreachable',
    })
    expect(proxy.asked).toEqual([])
  })

  test.each([
    'http://169.254.169.254/latest/meta-data',
    'http://[fe80::1]/',
    'file:///etc/passwd',
    'http://[::ffff:a9fe:a9fe]/',
  ])('a redirect to %s is refused', async (location) => {
    proxy.trouble = (asked) => (blobOf(asked) ? { kind: 'answer', status: 307, headers: { location } } : undefined)
    await expect(pull()).rejects.toEqual(expect.any(Failure))
    await expect(pull()).rejects.toMatchObject({ code: 'registry_unreachable' })
  })

  test('redirects end', async () => {
    proxy.trouble = ({ path }) => ({ kind: 'answer', status: 302, headers: { location: `${path}x` } })
    await expect(pull()).rejects.toThrow('too many redirects')
  })

  test('nor does a token server lead to such an address', async () => {
    const challenge = 'Bearer realm="http://169.254.169.254/token"'
    proxy.trouble = () => ({ kind: 'answer', status: 401, headers: { 'www-authenticate': challenge } })
    await expect(pull()).rejects.toMatchObject({ code: 'registry_unreachable' })
  })

  test('a name that there is not is told as such', async () => {
    await expect(store.pull(`${registry.host}/team/nothing:1`, accessTo(registry))).rejects.toMatchObject({
      code: 'registry_denied',
    })
    const nobody = { url: 'http://127.0.0.1:1', certificate: null }
    await expect(store.pull('127.0.0.1:1/a/b:1', accessTo(nobody))).rejects.toMatchObject({
      code: 'registry_unreachable',
    })
  })
})

describe('a push', () => {
  test('skips what is there, sends the rest, and gives the digests that were pulled', async () => {
    const { image: got } = await pull()
    const [blob = lower] = image.blobs
    const half = imageOf([lower], { pack: () => blob })
    await publish(registry, 'team/copy', 'half', half)
    const progress = new Progress()
    troubled(1, ({ method }) => method === 'PUT', { kind: 'answer', status: 503 })
    const access = accessTo(proxy)
    await push(
      store.images,
      { digest: got.digest, reference: `${proxy.host}/team/copy:2`, access },
      forever,
      progress,
      times,
    )
    const states = progress.take().map((step) => (step.step === 'layer' ? step.state : step.step))
    expect(states).toEqual(['retry', 'present', 'done'])
    const other = await TestStore.open()
    expect((await other.pull(`${registry.host}/team/copy:2`, accessTo(registry))).image).toEqual(got)
    other.remove()
  })

  test('of an image that is not here, or to a registry that does not let us', async () => {
    const request = { digest: `sha256:${'9'.repeat(64)}`, reference: reference(), access: accessTo(proxy) }
    await expect(push(store.images, request, forever, new Progress(), times)).rejects.toMatchObject({
      code: 'image_not_found',
    })
    const { image: got } = await pull()
    proxy.trouble = () => ({ kind: 'answer', status: 403, body: Buffer.from('{"errors":[{"message":"no"}]}') })
    await expect(
      push(store.images, { ...request, digest: got.digest }, forever, new Progress(), times),
    ).rejects.toMatchObject({ code: 'registry_denied', message: expect.stringContaining('answers 403') })
  })
})

test('indexes in indexes end', async () => {
  const entry = (bytes: Buffer) => ({ mediaType: mediaTypes.index, digest: digestOf(bytes), size: bytes.length })
  const indexOf = (inner: Buffer) =>
    Buffer.from(JSON.stringify({ schemaVersion: 2, mediaType: mediaTypes.index, manifests: [entry(inner)] }))
  let inner = image.manifest
  await publishManifest(registry, 'team/app', 'deep', inner, image.mediaType)
  for (let depth = 0; depth < 6; depth++) {
    inner = indexOf(inner)
    await publishManifest(registry, 'team/app', 'deep', inner, mediaTypes.index)
  }
  await expect(store.pull(`${registry.host}/team/app:deep`, accessTo(registry))).rejects.toThrow('without an end')
})
