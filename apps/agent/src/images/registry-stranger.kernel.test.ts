// Registries of strangers: what they learn, whom they hold up, and who gets a login.
import { Failure } from '@berth/contracts'
import { expect, test } from '@jest/globals'
import { accessTo, digestOf, imageOf, startProxy } from './registry.fixture.js'
import { givenTransfers, isBlob } from './transfers.fixture.js'

const on = givenTransfers()
const { reference, pull } = on

const layers = (change: (size: number) => object) => ({
  manifest: (made: readonly { readonly size: number }[]) => ({
    layers: made.map((layer) => ({ ...layer, ...change(layer.size) })),
  }),
})

test('what somebody else has tells a stranger nothing, its size least of all', async () => {
  const strange = await startProxy(on.registry)
  strange.trouble = ({ path, method }) => {
    const known = path.includes('/manifests/') || path.endsWith(digestOf(on.image.config))
    if (method === 'HEAD') return { kind: 'answer', status: 200 }
    const sizes = layers((size) => ({ size: size + 1 }))
    const body = path.includes('/manifests/') ? imageOf([on.lower], sizes).manifest : imageOf([on.lower]).config
    return known || path.endsWith(digestOf(body))
      ? { kind: 'answer', status: 200, body }
      : { kind: 'answer', status: 404 }
  }
  const asking = async () => {
    const refused = await on.store.pull(`${strange.host}/a/b:1`, accessTo(strange)).catch((error: Error) => error)
    return refused instanceof Failure ? [refused.code, refused.message] : refused
  }
  const before = await asking()
  await pull()
  expect(await asking()).toEqual(before)
  expect(before).toEqual(['registry_denied', expect.any(String)])
  await strange.close()
})

test('a registry that does not come to an end holds up nobody who asks another', async () => {
  const slow = await startProxy(on.registry)
  slow.trouble = (asked) => (on.isLayer(asked) ? { kind: 'drip' } : undefined)
  const leaving = new AbortController()
  const waiting = on.store.pull(`${slow.host}/team/app:1`, accessTo(slow), { signal: leaving.signal })
  while (!slow.asked.some((asked) => on.isLayer(asked))) await new Promise((done) => setImmediate(done))
  expect((await pull()).image).toMatchObject(on.held())
  leaving.abort(new Error('gone'))
  await expect(waiting).rejects.toThrow('gone')
  await slow.close()
})

test('where a redirect leads nobody is told the login, whatever they ask', async () => {
  const other = await startProxy(on.registry)
  const basic = `Basic ${Buffer.from('a:b').toString('base64')}`
  const token = { status: 200, body: Buffer.from('{"token":"t"}') }
  other.trouble = ({ path }) =>
    path.startsWith('/token')
      ? { kind: 'answer', ...token }
      : { kind: 'answer', status: 401, headers: { 'www-authenticate': `Bearer realm="${other.url}/token"` } }
  on.proxy.trouble = (asked) => {
    if (asked.headers.authorization !== basic)
      return { kind: 'answer', status: 401, headers: { 'www-authenticate': 'Basic realm="x"' } }
    return isBlob(asked)
      ? { kind: 'answer', status: 307, headers: { location: `${other.url}${asked.path}` } }
      : undefined
  }
  const access = accessTo(on.proxy, { login: { username: 'a', password: 'b' } })
  await expect(on.store.pull(reference(), access)).rejects.toMatchObject({ code: 'registry_denied' })
  expect(other.asked.length).toBeGreaterThan(0)
  expect(other.asked.filter(({ headers }) => headers.authorization)).toEqual([])
  await other.close()
})
