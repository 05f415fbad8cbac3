import { createHash, randomBytes } from 'node:crypto'
import { Fault, HOUR, KeyId, MINUTE } from '@berth/contracts'
import { expect, test } from '@jest/globals'
import { clock, db, postgres } from './database.fixture.js'
import { givenTenant, query } from './postgres.fixture.js'

const hash = (): Buffer => createHash('sha256').update(randomBytes(32)).digest()

async function givenKey() {
  const tenantId = await givenTenant(db)
  const key = await db.keys.create({ tenantId, name: 'console', hash: hash(), hint: 'brt_', scopes: ['jobs:read'] })
  return { tenantId, keyId: key.id }
}

test('a session is read with its key and tenant as they are now', async () => {
  const { tenantId, keyId } = await givenKey()
  const session = hash()
  const { expiresAt } = await db.sessions.create({ hash: session, keyId })
  expect(expiresAt.getTime()).toBe(clock.now().getTime() + 12 * HOUR)
  expect(await db.sessions.byHash(session)).toMatchObject({
    key: { id: keyId, tenantId, tenantState: 'active', scopes: ['jobs:read'], revokedAt: null },
    expiresAt,
    idleAt: new Date(clock.now().getTime() + HOUR),
  })
  await db.keys.revoke({ tenantId }, keyId)
  await db.tenants.update(tenantId, { state: 'suspended' })
  expect(await db.sessions.byHash(session)).toMatchObject({
    key: { revokedAt: clock.now(), tenantState: 'suspended' },
  })
})

test('use moves the idle end forward and never back, and the last end not at all', async () => {
  const { keyId } = await givenKey()
  const session = hash()
  const { expiresAt } = await db.sessions.create({ hash: session, keyId })
  const begun = clock.now()
  clock.advance(30 * MINUTE)
  await db.sessions.touch([session, hash()], clock.now())
  await db.sessions.touch([session], begun)
  expect(await db.sessions.byHash(session)).toMatchObject({
    expiresAt,
    idleAt: new Date(clock.now().getTime() + HOUR),
  })
})

test('the sweep deletes those that are idle or over, and no others', async () => {
  const { keyId } = await givenKey()
  const [idle, used, old] = [hash(), hash(), hash()]
  await db.sessions.create({ hash: old, keyId })
  clock.advance(11 * HOUR + 30 * MINUTE)
  await db.sessions.create({ hash: idle, keyId })
  await db.sessions.create({ hash: used, keyId })
  clock.advance(45 * MINUTE)
  await db.sessions.touch([used, old], clock.now())
  clock.advance(30 * MINUTE)
  while ((await db.sessions.expire(2)) === 2);
  const left = await Promise.all([idle, used, old].map((one) => db.sessions.byHash(one)))
  expect(left.map((one) => one !== undefined)).toEqual([false, true, false])
})

test('an ended session is gone, and ending it again changes nothing', async () => {
  const { keyId } = await givenKey()
  const session = hash()
  await db.sessions.create({ hash: session, keyId })
  await db.sessions.end(session)
  await db.sessions.end(session)
  expect(await db.sessions.byHash(session)).toBeUndefined()
})

test('a key has a hundred sessions at most: the oldest make room', async () => {
  const { keyId } = await givenKey()
  const first = hash()
  await db.sessions.create({ hash: first, keyId })
  for (let i = 0; i < 105; i++) {
    clock.advance(1)
    await db.sessions.create({ hash: hash(), keyId })
  }
  expect(await query(postgres.url, 'SELECT count(*)::integer FROM sessions WHERE key_id = $1', [keyId])).toEqual([
    { count: 100 },
  ])
  expect(await db.sessions.byHash(first)).toBeUndefined()
})

test('only the hash of a token is taken, and only for a key that exists', async () => {
  const { keyId } = await givenKey()
  await expect(db.sessions.create({ hash: randomBytes(20), keyId })).rejects.toThrow(Fault)
  await expect(db.sessions.create({ hash: hash(), keyId: KeyId.parse(`key_${'0'.repeat(26)}`) })).rejects.toThrow(Fault)
})
