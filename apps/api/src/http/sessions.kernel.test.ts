import { HOUR, MINUTE } from '@berth/contracts'
import { afterAll, beforeAll, beforeEach, expect, test } from '@jest/globals'
import { pino } from 'pino'
import {
  givenTenant,
  HandClock,
  openTestDatabase,
  type Postgres,
  startPostgres,
} from '../../../../libs/persistence/src/postgres.fixture.js'
import type { Database } from '../tokens.js'
import { Auth, hashOf, newSecret } from './auth.js'
import type { Asking } from './sessions.js'
import { SessionsService } from './sessions.service.js'

const ownOrigin = 'http://127.0.0.1:7433'
const log = pino({ level: 'silent' })

let postgres: Postgres
let db: Database
let auth: Auth
let sessions: SessionsService
const clock = new HandClock()
beforeAll(async () => {
  postgres = await startPostgres()
  db = openTestDatabase(postgres.url, clock)
})
afterAll(async () => {
  await db.close()
  await postgres[Symbol.asyncDispose]()
})
beforeEach(() => {
  auth = new Auth(db, clock, log)
  sessions = new SessionsService(db, auth, clock)
})

const asking = (headers: Asking['headers'] = {}): Asking => ({
  headers: { 'x-berth-session': '1', ...headers },
  ownOrigin,
  address: '192.0.2.1',
})

async function givenKey(more: { readonly expiresAt?: Date } = {}) {
  const tenantId = await givenTenant(db)
  const secret = newSecret('brt')
  const key = { tenantId, name: 'console', hash: hashOf(secret), hint: 'brt_', scopes: ['tenant:read' as const] }
  const { id } = await db.keys.create({ ...key, ...more })
  return { tenantId, keyId: id, secret }
}

const cookieOf = (setCookie: string): string => setCookie.split(';')[0] ?? ''

async function givenSession() {
  const key = await givenKey()
  const cookie = cookieOf((await sessions.begin(asking(), key.secret)).setCookie)
  return { ...key, cookie, ask: () => auth.authenticate(asking({ cookie })) }
}

/** Past what one lookup is believed for. */
const later = () => clock.advance(701)

test('a session acts with its key’s tenant and scopes', async () => {
  const { tenantId, keyId, ask } = await givenSession()
  expect(await ask()).toMatchObject({ kind: 'tenant', tenantId, keyId, scopes: new Set(['tenant:read']) })
})

test.each([
  ['no header', { 'x-berth-session': undefined }, 'unauthenticated'],
  ['another site', { origin: 'http://evil.example' }, 'origin_forbidden'],
  ['another port', { origin: 'http://127.0.0.1:8080' }, 'origin_forbidden'],
])('the cookie with %s opens nothing', async (_, headers, code) => {
  const { cookie } = await givenSession()
  await expect(auth.authenticate(asking({ cookie, ...headers }))).rejects.toMatchObject({ code })
})

test('a WebSocket needs the cookie and the right origin, and no header', async () => {
  const { cookie } = await givenSession()
  const socket = (origin: string | undefined) =>
    auth.authenticate({ ...asking(), headers: { cookie, upgrade: 'websocket', ...(origin ? { origin } : {}) } })
  await expect(socket(ownOrigin)).resolves.toMatchObject({ kind: 'tenant' })
  await expect(socket('http://evil.example')).rejects.toMatchObject({ code: 'origin_forbidden' })
  await expect(socket(undefined)).rejects.toMatchObject({ code: 'unauthenticated' })
})

test('each sign-in makes a new token, and ends the session it came with', async () => {
  const { secret, cookie, ask } = await givenSession()
  const planted = `berth=brs_${'A'.repeat(43)}`
  const second = cookieOf((await sessions.begin(asking({ cookie: planted }), secret)).setCookie)
  expect(second).not.toBe(planted)
  await expect(auth.authenticate(asking({ cookie: planted }))).rejects.toMatchObject({ code: 'unauthenticated' })
  const third = cookieOf((await sessions.begin(asking({ cookie }), secret)).setCookie)
  expect(new Set([cookie, second, third]).size).toBe(3)
  await expect(ask()).rejects.toMatchObject({ code: 'unauthenticated' })
  await expect(auth.authenticate(asking({ cookie: second }))).resolves.toMatchObject({ kind: 'tenant' })
})

test('it ends within a second of its key: revoked, expired, or of a suspended tenant', async () => {
  const revoked = await givenSession()
  const suspended = await givenSession()
  const principal = await revoked.ask()
  await suspended.ask()
  await db.keys.revoke(revoked, revoked.keyId)
  await db.tenants.update(suspended.tenantId, { state: 'suspended' })
  later()
  await expect(revoked.ask()).rejects.toMatchObject({ code: 'key_revoked' })
  await expect(auth.confirm(principal)).rejects.toMatchObject({ code: 'key_revoked' })
  await expect(suspended.ask()).rejects.toMatchObject({ code: 'tenant_suspended' })
  const { secret } = await givenKey({ expiresAt: new Date(clock.now().getTime() + MINUTE) })
  const cookie = cookieOf((await sessions.begin(asking(), secret)).setCookie)
  clock.advance(MINUTE)
  await expect(auth.authenticate(asking({ cookie }))).rejects.toMatchObject({ code: 'key_expired' })
})

test('it ends an hour after its last use, and twelve hours after its beginning', async () => {
  const { ask } = await givenSession()
  for (let hours = 0; hours < 12; hours++) {
    await ask()
    await auth.noteUse()
    clock.advance(HOUR - 1)
  }
  await ask()
  await auth.noteUse()
  clock.advance(12)
  await expect(ask()).rejects.toMatchObject({ code: 'unauthenticated' })
  const idle = await givenSession()
  clock.advance(HOUR)
  await expect(idle.ask()).rejects.toMatchObject({ code: 'unauthenticated' })
})

test('signed out in one tab it is over in the other', async () => {
  const { cookie, ask } = await givenSession()
  const open = await ask()
  expect(await sessions.end(asking({ cookie }))).toContain('berth=; Path=/; Max-Age=0')
  await expect(ask()).rejects.toMatchObject({ code: 'unauthenticated' })
  await expect(auth.confirm(open)).rejects.toMatchObject({ code: 'unauthenticated' })
})

test('a session is no key: its token opens nothing by header', async () => {
  const { cookie } = await givenSession()
  const authorization = `Bearer ${cookie.slice('berth='.length)}`
  await expect(auth.authenticate({ ...asking(), headers: { authorization } })).rejects.toMatchObject({
    code: 'unauthenticated',
  })
})

test('signing in needs our page and a tenant’s key that may read its tenant', async () => {
  const { secret, tenantId } = await givenKey()
  await expect(sessions.begin({ ...asking(), headers: {} }, secret)).rejects.toMatchObject({ code: 'origin_forbidden' })
  await expect(sessions.begin(asking({ origin: 'http://evil.example' }), secret)).rejects.toMatchObject({
    code: 'origin_forbidden',
  })
  const narrow = newSecret('brt')
  await db.keys.create({ tenantId, name: 'n', hash: hashOf(narrow), hint: 'brt_', scopes: ['jobs:read'] })
  await expect(sessions.begin(asking(), narrow)).rejects.toMatchObject({ code: 'forbidden_scope' })
  const operator = newSecret('brt')
  await db.keys.ensureOperator({ name: 'operator', hash: hashOf(operator), hint: 'brt_' })
  await expect(sessions.begin(asking(), operator)).rejects.toMatchObject({ code: 'forbidden_scope' })
})

test('wrong keys are soon refused unseen, for their address only', async () => {
  const { secret } = await givenKey()
  for (let i = 0; i < 10; i++)
    await expect(sessions.begin(asking(), newSecret('brt'))).rejects.toMatchObject({ code: 'unauthenticated' })
  await expect(sessions.begin(asking(), secret)).rejects.toMatchObject({ code: 'rate_limited' })
  await expect(sessions.begin({ ...asking(), address: '192.0.2.2' }, secret)).resolves.toBeDefined()
})
