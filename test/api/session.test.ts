import { execFileSync } from 'node:child_process'
import { expect, test } from '@jest/globals'
import { client, operator, stack, type TestTenant, tenant, until } from '../support/berth.js'

const ours = { 'x-berth-session': '1' }

const ask = (method: string, path: string, headers: Record<string, string>, body?: unknown) =>
  fetch(stack().url + path, {
    method,
    headers: { ...headers, ...(body === undefined ? {} : { 'content-type': 'application/json' }) },
    ...(body === undefined ? {} : { body: JSON.stringify(body) }),
  })

/** Status and code of an answer that should be a problem. */
async function refusal(answer: Response): Promise<readonly [number, string]> {
  const { code = '' }: { code?: string } = JSON.parse((await answer.text()) || '{}')
  return [answer.status, code]
}

async function signIn(t: TestTenant, headers: Record<string, string> = {}) {
  const answer = await ask('POST', '/v1/session', { ...ours, ...headers }, { apiKey: t.key })
  expect(answer.status).toBe(201)
  const setCookie = answer.headers.get('set-cookie') ?? ''
  return { cookie: setCookie.split(';')[0] ?? '', setCookie, session: await answer.json() }
}

test('a key becomes a cookie that scripts cannot read and other sites cannot use', async () => {
  const t = await tenant()
  const { cookie, setCookie, session } = await signIn(t)
  expect(setCookie).toMatch(/^berth=brs_[\w-]{43}; Path=\/; Max-Age=43(200|199); HttpOnly; SameSite=Strict$/)
  expect(session).toMatchObject({ tenant: { id: t.id }, scopes: expect.arrayContaining(['jobs:write']) })
  expect(JSON.stringify(session)).not.toMatch(/br[a-z]_/)
  const mine = await ask('GET', '/v1/session', { ...ours, cookie })
  expect(await mine.json()).toEqual(session)
  expect((await ask('GET', '/v1/jobs', { ...ours, cookie })).status).toBe(200)
})

test('a form, an image or a script of another site gets nothing done', async () => {
  const t = await tenant()
  const { cookie } = await signIn(t)
  const origin = 'https://evil.example'
  for (const headers of [{ cookie }, { cookie, origin }, { cookie, origin: stack().url }]) {
    expect(await refusal(await ask('GET', '/v1/jobs', headers))).toEqual([401, 'unauthenticated'])
    const made = await ask('POST', '/v1/jobs', headers, { command: ['true'] })
    expect(made.status).toBe(401)
    expect((await ask('DELETE', '/v1/session', headers)).status).toBe(403)
  }
  const foreign = await ask('POST', '/v1/jobs', { ...ours, cookie, origin }, { command: ['true'] })
  expect(await refusal(foreign)).toEqual([403, 'origin_forbidden'])
  const login = await ask('POST', '/v1/session', { ...ours, origin }, { apiKey: t.key })
  expect(await refusal(login)).toEqual([403, 'origin_forbidden'])
  const preflight = await ask('OPTIONS', '/v1/jobs', { origin, 'access-control-request-headers': 'x-berth-session' })
  expect(preflight.headers.get('access-control-allow-origin')).toBeNull()
  expect((await t.get('/v1/jobs')).body.items).toEqual([])
})

test('a cookie from before the sign-in is worth nothing after it', async () => {
  const t = await tenant()
  const planted = `berth=brs_${'A'.repeat(43)}`
  const { cookie } = await signIn(t, { cookie: planted })
  expect(cookie).not.toBe(planted)
  expect((await ask('GET', '/v1/session', { ...ours, cookie: planted })).status).toBe(401)
  expect((await ask('GET', '/v1/session', { ...ours, cookie: `${planted}; ${cookie}` })).status).toBe(401)
  const again = await signIn(t, { cookie })
  expect((await ask('GET', '/v1/session', { ...ours, cookie })).status).toBe(401)
  expect((await ask('GET', '/v1/session', { ...ours, cookie: again.cookie })).status).toBe(200)
})

test('it ends with its key, and with its tenant’s suspension, within a second', async () => {
  const t = await tenant()
  const made = await t.post('/v1/keys', { name: 'browser' })
  const browser = await signIn({ ...t, key: made.body.secret })
  expect((await ask('GET', '/v1/session', { ...ours, cookie: browser.cookie })).status).toBe(200)
  await t.delete(`/v1/keys/${made.body.id}`)
  const code = async (cookie: string) => (await refusal(await ask('GET', '/v1/session', { ...ours, cookie })))[1]
  await until('refused', async () => ((await code(browser.cookie)) === 'key_revoked' ? true : undefined), 1500)
  const other = await signIn(t)
  await operator().patch(`/v1/tenants/${t.id}`, { state: 'suspended' })
  await until('refused', async () => ((await code(other.cookie)) === 'tenant_suspended' ? true : undefined), 1500)
})

test('two tabs share a session, and signing out in one ends both', async () => {
  const t = await tenant()
  const { cookie } = await signIn(t)
  const out = await ask('DELETE', '/v1/session', { ...ours, cookie, origin: stack().url })
  expect(out.status).toBe(204)
  expect(out.headers.get('set-cookie')).toMatch(/^berth=; Path=\/; Max-Age=0;/)
  expect((await ask('GET', '/v1/jobs', { ...ours, cookie })).status).toBe(401)
})

test('a key of another kind, of no scope, or of nobody does not sign in', async () => {
  const t = await tenant()
  const narrow = await t.post('/v1/keys', { name: 'narrow', scopes: ['jobs:read'] })
  for (const [apiKey, status] of [
    [stack().operatorKey, 403],
    [narrow.body.secret, 403],
    ['brt_'.padEnd(47, 'x'), 401],
    ['', 401],
    ['x'.repeat(257), 400],
  ] as const)
    expect((await ask('POST', '/v1/session', ours, { apiKey })).status).toBe(status)
  expect(client(t.key).key).toBe(t.key)
})

test('neither key nor token is in a log', async () => {
  const t = await tenant()
  const { cookie } = await signIn(t)
  const token = cookie.slice('berth='.length)
  await ask('GET', '/v1/jobs', { ...ours, cookie })
  for (const secret of [t.key, token]) {
    const args = ['-c', 'grep -rlF -- "$1" "$2" || true', 'sh', secret, `${stack().dataDir}/logs`]
    expect(execFileSync('sh', args, { encoding: 'utf8' })).toBe('')
  }
})
