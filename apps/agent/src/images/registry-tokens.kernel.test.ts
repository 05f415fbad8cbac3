// Tokens for docker-registry, which checks what they say, by password and by identity token.
import type { RegistryLogin } from '@berth/contracts'
import { afterAll, beforeAll, beforeEach, expect, test } from '@jest/globals'
import { Progress } from './progress.js'
import { push } from './push.js'
import {
  accessTo,
  digestOf,
  type FaultyProxy,
  LOGIN,
  startProxy,
  startRegistry,
  type TestRegistry,
} from './registry.fixture.js'
import { forever, TestStore, times } from './store.fixture.js'
import { Tokens } from './tokens.fixture.js'
import { givenTransfers } from './transfers.fixture.js'

const on = givenTransfers()
let tokens: Tokens
let registry: TestRegistry
let proxy: FaultyProxy
beforeAll(async () => {
  tokens = await Tokens.start()
  registry = await startRegistry({ tokens })
  proxy = await startProxy(registry)
})
afterAll(async () => {
  await proxy.close()
  await registry.close()
  await tokens[Symbol.asyncDispose]()
})
beforeEach(() => {
  Object.assign(tokens, { status: undefined, rotates: false, identityToken: 'identity token', forbidden: [] })
  tokens.asked.length = 0
  proxy.asked.length = 0
})

const byToken = (identityToken = tokens.identityToken): RegistryLogin => ({ username: 'alice', identityToken })

/** Pushes the image of all tests under a name. */
async function pushTo(name: string, login: RegistryLogin, mountFrom: string[] = []) {
  const { image } = await on.pull()
  const request = { digest: image.digest, reference: `${proxy.host}/${name}`, mountFrom }
  await push(on.store.images, { ...request, access: accessTo(proxy, { login }) }, forever, new Progress(), times)
}
async function pullFrom(name: string, login: RegistryLogin | null) {
  const other = await TestStore.open()
  const { image } = await other.pull(`${proxy.host}/${name}`, accessTo(proxy, { login }))
  expect(image).toMatchObject(on.held())
}

test('an identity token gets tokens by POST, and is told to the token server only', async () => {
  await pushTo('team/tokens:1', byToken())
  await pullFrom('team/tokens:1', byToken())
  expect(tokens.asked.map(({ method }) => method)).toEqual(['POST', 'POST'])
  expect(tokens.asked[0]).toEqual({
    ...{ method: 'POST', authorization: undefined, query: {} },
    form: {
      ...{ grant_type: 'refresh_token', refresh_token: 'identity token', service: 'registry of the tests' },
      ...{ client_id: 'berth', scope: expect.stringContaining('repository:team/tokens:pull') },
    },
  })
  expect(JSON.stringify(proxy.asked)).not.toContain('identity token')
})

test('an identity token that is none, or not any more, is denied', async () => {
  await expect(pullFrom('team/tokens:1', byToken('another'))).rejects.toMatchObject({ code: 'registry_denied' })
  expect(tokens.asked.map(({ method }) => method)).toEqual(['POST'])
})

test('a token server that gives another identity token with a token gets that one the next time', async () => {
  tokens.rotates = true
  // The first token is not taken any more when the layers are asked for, both at once.
  let first: string | undefined
  proxy.trouble = ({ path, headers }) => {
    first ??= headers.authorization
    if (headers.authorization !== first || !on.image.blobs.some((blob) => path.endsWith(digestOf(blob))))
      return undefined
    const challenge = `Bearer realm="${tokens.url}/token",service="registry of the tests"`
    return { kind: 'answer', status: 401, headers: { 'www-authenticate': challenge } }
  }
  try {
    await pullFrom('team/tokens:1', byToken())
  } finally {
    proxy.trouble = () => undefined
  }
  expect(tokens.asked.map(({ form }) => form.refresh_token)).toEqual(['identity token', 'identity token 1'])
})

test.each([404, 405])('a password goes by POST to a token server whose GET answers %s', async (status) => {
  await pullFrom('team/tokens:1', { ...LOGIN })
  expect(tokens.asked.map(({ method }) => method)).toEqual(['GET'])
  tokens.status = status
  tokens.asked.length = 0
  await pullFrom('team/tokens:1', { ...LOGIN })
  expect(tokens.asked).toMatchObject([
    { method: 'GET' },
    { method: 'POST', form: { grant_type: 'password', ...LOGIN, client_id: 'berth' } },
  ])
  await expect(pullFrom('team/tokens:1', { ...LOGIN, password: 'wrong' })).rejects.toMatchObject({
    code: 'registry_denied',
  })
  tokens.asked.length = 0
  // Who has no login has nothing to send by POST.
  await expect(pullFrom('team/tokens:1', null)).rejects.toMatchObject({ code: 'registry_unreachable' })
  expect(tokens.asked.map(({ method }) => method)).toEqual(['GET'])
})

test('a registry that wants a password gets no identity token', async () => {
  const locked = await startRegistry({ login: true })
  const before = await startProxy(locked)
  try {
    const access = accessTo(before, { login: byToken() })
    await expect(on.store.pull(`${before.host}/team/app:1`, access)).rejects.toMatchObject({ code: 'registry_denied' })
    expect(before.asked.filter(({ headers }) => headers.authorization)).toEqual([])
  } finally {
    await before.close()
    await locked.close()
  }
})

test('a blob is mounted from a repository that the token is for too, and else sent', async () => {
  const bodies = () => proxy.asked.filter(({ headers }) => Number(headers['content-length'] ?? 0) > 0)
  const layer = digestOf(on.image.blobs[0] ?? on.lower)
  await pushTo('team/mounted:1', byToken(), ['team/tokens'])
  expect(bodies().map(({ path }) => path)).toEqual(['/v2/team/mounted/manifests/1'])
  await pullFrom('team/mounted:1', byToken())
  proxy.asked.length = 0
  tokens.forbidden = ['team/tokens']
  await pushTo('team/sent:1', byToken(), ['team/tokens'])
  expect(bodies()).toHaveLength(4)
  expect(proxy.asked.filter(({ path }) => path.startsWith('/v2/team/tokens/')).at(0)?.path).toContain(layer)
  await pullFrom('team/sent:1', byToken())
})
