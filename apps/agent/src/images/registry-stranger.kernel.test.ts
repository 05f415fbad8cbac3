// Registries of strangers: what they learn, whom they hold up, and who gets a login.
import { Failure } from '@berth/contracts'
import { afterAll, afterEach, beforeAll, beforeEach, expect, test } from '@jest/globals'
import {
  accessTo,
  digestOf,
  type FaultyProxy,
  imageOf,
  startProxy,
  type TestImage,
  type TestRegistry,
} from './registry.fixture.js'
import { TestStore } from './store.fixture.js'
import { isBlob, Transfers } from './transfers.fixture.js'

let on: Transfers
let registry: TestRegistry
let proxy: FaultyProxy
let image: TestImage
let lower: Buffer
let store: TestStore

beforeAll(async () => {
  on = await Transfers.start()
  ;({ registry, proxy, image, lower } = on)
})
afterAll(() => on.close())
beforeEach(async () => {
  store = await TestStore.open()
  on.reset()
})
afterEach(() => TestStore.removeAll())

const reference = () => `${proxy.host}/team/app:1`
const pull = () => store.pull(reference(), accessTo(proxy))
const layers = (change: (size: number) => object) => ({
  manifest: (made: readonly { readonly size: number }[]) => ({
    layers: made.map((layer) => ({ ...layer, ...change(layer.size) })),
  }),
})

test('what somebody else has tells a stranger nothing, its size least of all', async () => {
  const strange = await startProxy(registry)
  strange.trouble = ({ path, method }) => {
    const known = path.includes('/manifests/') || path.endsWith(digestOf(image.config))
    if (method === 'HEAD') return { kind: 'answer', status: 200 }
    const sizes = layers((size) => ({ size: size + 1 }))
    const body = path.includes('/manifests/') ? imageOf([lower], sizes).manifest : imageOf([lower]).config
    return known || path.endsWith(digestOf(body))
      ? { kind: 'answer', status: 200, body }
      : { kind: 'answer', status: 404 }
  }
  const asking = async () => {
    const refused = await store.pull(`${strange.host}/a/b:1`, accessTo(strange)).catch((error: Error) => error)
    return refused instanceof Failure ? [refused.code, refused.message] : refused
  }
  const before = await asking()
  await pull()
  expect(await asking()).toEqual(before)
  expect(before).toEqual(['registry_denied', expect.any(String)])
  await strange.close()
})

test('a registry that does not come to an end holds up nobody who asks another', async () => {
  const slow = await startProxy(registry)
  slow.trouble = (asked) => (on.isLayer(asked) ? { kind: 'drip' } : undefined)
  const leaving = new AbortController()
  const waiting = store.pull(`${slow.host}/team/app:1`, accessTo(slow), { signal: leaving.signal })
  while (!slow.asked.some((asked) => on.isLayer(asked))) await new Promise((done) => setImmediate(done))
  expect((await pull()).image).toMatchObject(on.held())
  leaving.abort(new Error('gone'))
  await expect(waiting).rejects.toThrow('gone')
  await slow.close()
})

test('where a redirect leads nobody is told the login, whatever they ask', async () => {
  const other = await startProxy(registry)
  const basic = `Basic ${Buffer.from('a:b').toString('base64')}`
  const token = { status: 200, body: Buffer.from('{"token":"t"}') }
  other.trouble = ({ path }) =>
    path.startsWith('/token')
      ? { kind: 'answer', ...token }
      : { kind: 'answer', status: 401, headers: { 'www-authenticate': `Bearer realm="${other.url}/token"` } }
  proxy.trouble = (asked) => {
    if (asked.headers.authorization !== basic)
      return { kind: 'answer', status: 401, headers: { 'www-authenticate': 'Basic realm="x"' } }
    return isBlob(asked)
      ? { kind: 'answer', status: 307, headers: { location: `${other.url}${asked.path}` } }
      : undefined
  }
  const access = accessTo(proxy, { login: { username: 'a', password: 'b' } })
  await expect(store.pull(reference(), access)).rejects.toMatchObject({ code: 'registry_denied' })
  expect(other.asked.length).toBeGreaterThan(0)
  expect(other.asked.filter(({ headers }) => headers.authorization)).toEqual([])
  await other.close()
})
