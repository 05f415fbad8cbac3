// Forks whose end Postgres could not tell: its connection was ended while it committed. Whether there are sandboxes then
// is found out, and told, as their node keeps the files that they begin with for them or not at all.
import { Fault, mintId, SnapshotId } from '@berth/contracts'
import { afterEach, expect, test } from '@jest/globals'
import { db, postgres } from './database.fixture.js'
import { givenNode, givenTenant, openTestDatabase, query, sandboxSpec } from './postgres.fixture.js'
import { OutcomeUnknown } from './store.js'

const by = 'key_test'
const sql = (text: string) => query(postgres.url, text)
/** Where nobody comes to the database of the test. */
const aside = (text: string) => query(postgres.url.replace('/postgres?', '/template1?'), text)

/** @param between before it is asked for, of a sandbox that is there */
async function forkOf(name: string, between: () => Promise<unknown> = async () => undefined, database = db) {
  const tenantId = await givenTenant(db)
  await givenNode(db)
  const { sandbox } = await db.sandboxes.create({ tenantId, spec: sandboxSpec(), start: true, by })
  const snapshot = SnapshotId.parse(mintId('snapshot', Date.now(), new Uint8Array(10)))
  const specs = [sandboxSpec({ name: `${name}-1` }), sandboxSpec({ name: `${name}-2` })]
  const origin = { sandbox: sandbox.id, snapshot }
  await between()
  const forked = database.sandboxes.fork({ tenantId, origin, specs, start: true, by }).catch((error: unknown) => error)
  const there = async () => (await db.sandboxes.list({ tenantId }, {}, { limit: 9 })).items.map(({ name }) => name)
  return { forked, there }
}

/** Ends the connection that waits for this in the middle of its COMMIT. */
async function endCommitThatWaits(event: string): Promise<void> {
  for (let tries = 0; tries < 2000; tries++) {
    const ended = await aside(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity
      WHERE wait_event = '${event}' AND query = 'COMMIT' AND pid <> pg_backend_pid()`)
    if (ended.length > 0) return
    await new Promise((resolve) => setTimeout(resolve, 5))
  }
  throw new Error(`nobody waits for ${event}`)
}

/** Commits are done here, and then wait for a replica that never comes. */
async function replica(name: string): Promise<void> {
  await sql(`ALTER SYSTEM SET synchronous_standby_names = '${name}'`)
  await sql('SELECT pg_reload_conf()')
  for (let tries = 0; tries < 2000; tries++) {
    const [row] = await query<{ names: string }>(
      postgres.url,
      `SELECT current_setting('synchronous_standby_names') AS names`,
    )
    if (row?.names === name) return
    await new Promise((resolve) => setTimeout(resolve, 5))
  }
  throw new Error('the configuration is never read')
}

/** Commits of sandboxes take long, and are not done before. */
async function slowCommits(): Promise<void> {
  await sql(`CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(60); RETURN NULL; END'`)
  await sql(`CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON sandboxes DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (NEW.origin IS NOT NULL) EXECUTE FUNCTION slow()`)
}

afterEach(async () => {
  await sql('DROP FUNCTION IF EXISTS slow CASCADE')
})

test('a fork that was committed, and whose answer was lost, is a fork', async () => {
  const { forked, there } = await forkOf('made', () => replica('nobody'))
  try {
    await endCommitThatWaits('SyncRep')
  } finally {
    await replica('')
  }
  expect(await forked).toMatchObject([
    { sandbox: { name: 'made-1' }, command: { command: { kind: 'sandbox', desired: 'running' } } },
    { sandbox: { name: 'made-2' } },
  ])
  expect(await there()).toEqual(expect.arrayContaining(['made-1', 'made-2']))
})

test('one that was broken off while it was committed is none', async () => {
  await slowCommits()
  const { forked, there } = await forkOf('broken')
  await endCommitThatWaits('PgSleep')
  const error = await forked
  expect(error).toBeInstanceOf(Fault)
  expect(error).not.toBeInstanceOf(OutcomeUnknown)
  expect(await there()).toEqual([null])
})

test('where Postgres does not tell that any more, it is said that nobody knows', async () => {
  await slowCommits()
  const other = openTestDatabase(postgres.url, undefined, 2)
  try {
    const { forked } = await forkOf('unknown', undefined, other)
    await aside('ALTER DATABASE postgres ALLOW_CONNECTIONS false')
    await endCommitThatWaits('PgSleep')
    expect(await forked).toBeInstanceOf(OutcomeUnknown)
  } finally {
    await aside('ALTER DATABASE postgres ALLOW_CONNECTIONS true')
    await other.close()
  }
})
