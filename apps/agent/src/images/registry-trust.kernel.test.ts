import { Failure } from '@berth/contracts'
import { mediaTypes } from '@berth/oci'
import { describe, expect, test } from '@jest/globals'
import { Progress } from './progress.js'
import { push } from './push.js'
import {
  accessTo,
  digestOf,
  imageOf,
  LOGIN,
  publish,
  publishManifest,
  startProxy,
  startRegistry,
  tarOf,
} from './registry.fixture.js'
import { forever, TestStore, times } from './store.fixture.js'
import { givenTransfers, isBlob } from './transfers.fixture.js'

const on = givenTransfers()
const { reference, pull } = on

/** Nothing is kept of it but what is right. */
async function expectClean(...blobs: Buffer[]) {
  expect(await on.store.problems()).toEqual([])
  expect(on.store.inventory()).toEqual({
    blobs: blobs.map((blob) => digestOf(blob).slice(7)).sort(),
    layers: [],
    partial: [],
    images: [],
    incoming: [],
  })
}

describe('what is not what it says', () => {
  const publishOdd = async (change: Parameters<typeof imageOf>[1]) => {
    const odd = imageOf([on.lower], change)
    on.proxy.trouble = ({ path, method }) => {
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
    await on.store.images.collect(new Set(), new Date(Date.now() + 7_200_000))
    await expectClean()
  })

  test('a manifest by digest that is another is refused', async () => {
    await publishOdd({})
    await expect(
      on.store.pull(`${on.proxy.host}/team/app@sha256:${'1'.repeat(64)}`, accessTo(on.proxy)),
    ).rejects.toMatchObject({
      code: 'image_invalid',
    })
    await expectClean()
  })

  test('a manifest of 100 MiB is refused before it is read', async () => {
    let sent = 0
    const large = Buffer.alloc(1 << 20, ' ')
    on.proxy.trouble = () => {
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
    await on.store.images.collect(new Set())
    expect(on.store.inventory()).toMatchObject({ images: [], layers: [] })
    // What cannot be within it is not even fetched.
    await publishOdd(layers(() => ({ size: 2 ** 40 })))
    on.proxy.asked.length = 0
    await expect(pull({ maxBytes: 500_000 })).rejects.toMatchObject({ code: 'quota_exceeded' })
    expect(on.proxy.asked.filter(isBlob)).toHaveLength(1)
    on.proxy.trouble = () => undefined
    expect((await pull({ maxBytes: 700_005 })).image).toMatchObject(on.held())
  })

  test('naming what somebody else has is no way to it', async () => {
    await pull()
    // The same blobs and diffIDs, at a registry that does not have them.
    const thief = await startProxy(on.registry)
    thief.trouble = ({ path, method }) => {
      const body = path.includes('/manifests/')
        ? on.image.manifest
        : path.endsWith(digestOf(on.image.config))
          ? on.image.config
          : undefined
      if (method === 'HEAD') return { kind: 'answer', status: 200 }
      return body ? { kind: 'answer', status: 200, body } : { kind: 'answer', status: 404 }
    }
    await expect(on.store.pull(`${thief.host}/evil/app:1`, accessTo(thief))).rejects.toMatchObject({
      code: 'registry_denied',
    })
    await thief.close()
    // A blob of the thief's own that claims to be the layer.
    const junk = await tarOf({ x: 'junk' })
    const claim = imageOf([junk], { config: { rootfs: { type: 'layers', diff_ids: [digestOf(on.lower)] } } })
    await publish(on.registry, 'evil/claim', '1', claim)
    await expect(on.store.pull(`${on.registry.host}/evil/claim:1`, accessTo(on.registry))).rejects.toMatchObject({
      code: 'image_invalid',
    })
    expect(await on.store.problems()).toEqual([])
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
        on.store.images,
        { digest: got.digest, reference: name, access, mountFrom: [] },
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
    } finally {
      await secure.close()
    }
  })

  test('a token is fetched with the login, used for its registry only, and fetched again when it expires', async () => {
    let [issued, uses] = [0, 0]
    on.proxy.trouble = ({ path, headers }) => {
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
      const challenge = `Bearer realm="${on.proxy.url}/token",service="a b",scope="repository:team/app:pull"`
      return { kind: 'answer', status: 401, headers: { 'www-authenticate': challenge } }
    }
    const { image: got } = await on.store.pull(reference(), accessTo(on.proxy, { login: { ...LOGIN } }))
    expect(got).toMatchObject(on.held())
    expect(issued).toBeGreaterThan(1)
    expect(on.proxy.asked.find(({ path }) => path.startsWith('/token'))?.path).toBe(
      '/token?service=a+b&scope=repository%3Ateam%2Fapp%3Apull',
    )
    await expect(
      on.store.pull(reference(), accessTo(on.proxy, { login: { username: 'x', password: 'y' } })),
    ).rejects.toMatchObject({
      code: 'registry_denied',
    })
  })

  test('a redirect of a blob is followed without the login', async () => {
    const cdn = await startProxy(on.registry)
    on.proxy.trouble = (asked) =>
      isBlob(asked) ? { kind: 'answer', status: 307, headers: { location: `${cdn.url}${asked.path}` } } : undefined
    const basic = `Basic ${Buffer.from('a:b').toString('base64')}`
    let challenged = false
    const redirecting = on.proxy.trouble
    on.proxy.trouble = (asked) => {
      if (asked.headers.authorization === basic) return redirecting(asked)
      challenged = true
      return { kind: 'answer', status: 401, headers: { 'www-authenticate': 'Basic realm="x"' } }
    }
    const access = accessTo(on.proxy, { login: { username: 'a', password: 'b' } })
    expect((await on.store.pull(reference(), access)).image).toMatchObject(on.held())
    expect(challenged).toBe(true)
    expect(cdn.asked.length).toBeGreaterThan(0)
    expect(cdn.asked.filter(({ headers }) => headers.authorization)).toEqual([])
    await cdn.close()
  })
})

describe('where a registry may send us', () => {
  test('without the operator’s word, to no private address', async () => {
    await expect(on.store.pull(reference(), accessTo(on.proxy, { privateAddresses: false }))).rejects.toMatchObject({
      code: 'registry_unreachable',
    })
    const named = { url: on.proxy.url.replace('127.0.0.1', 'localhost'), certificate: null }
    await expect(on.store.pull(reference(), accessTo(named, { privateAddresses: false }))).rejects.toMatchObject({
      code: 'registry_unreachable',
    })
    expect(on.proxy.asked).toEqual([])
  })

  test.each([
    'http://169.254.169.254/latest/meta-data',
    'http://[fe80::1]/',
    'file:///etc/passwd',
    'http://[::ffff:a9fe:a9fe]/',
  ])('a redirect to %s is refused', async (location) => {
    on.proxy.trouble = (asked) => (isBlob(asked) ? { kind: 'answer', status: 307, headers: { location } } : undefined)
    await expect(pull()).rejects.toEqual(expect.any(Failure))
    await expect(pull()).rejects.toMatchObject({ code: 'registry_unreachable' })
  })

  test('redirects end', async () => {
    on.proxy.trouble = ({ path }) => ({ kind: 'answer', status: 302, headers: { location: `${path}x` } })
    await expect(pull()).rejects.toThrow('too many redirects')
  })

  test('nor does a token server lead to such an address', async () => {
    const challenge = 'Bearer realm="http://169.254.169.254/token"'
    on.proxy.trouble = () => ({ kind: 'answer', status: 401, headers: { 'www-authenticate': challenge } })
    await expect(pull()).rejects.toMatchObject({ code: 'registry_unreachable' })
  })

  test('a name that there is not is told as such', async () => {
    const nothing = `${on.registry.host}/team/nothing:1`
    await expect(on.store.pull(nothing, accessTo(on.registry))).rejects.toMatchObject({
      code: 'registry_denied',
      message: expect.stringMatching(`there is no ${nothing}, or not for you$`),
    })
    const nobody = { url: 'http://127.0.0.1:1', certificate: null }
    await expect(on.store.pull('127.0.0.1:1/a/b:1', accessTo(nobody))).rejects.toMatchObject({
      code: 'registry_unreachable',
    })
  })
})

test('indexes in indexes end', async () => {
  const entry = (bytes: Buffer) => ({ mediaType: mediaTypes.index, digest: digestOf(bytes), size: bytes.length })
  const indexOf = (inner: Buffer) =>
    Buffer.from(JSON.stringify({ schemaVersion: 2, mediaType: mediaTypes.index, manifests: [entry(inner)] }))
  let inner = on.image.manifest
  await publishManifest(on.registry, 'team/app', 'deep', inner, on.image.mediaType)
  for (let depth = 0; depth < 6; depth++) {
    inner = indexOf(inner)
    await publishManifest(on.registry, 'team/app', 'deep', inner, mediaTypes.index)
  }
  await expect(on.store.pull(`${on.registry.host}/team/app:deep`, accessTo(on.registry))).rejects.toThrow(
    'without an end',
  )
})
