import { Fault } from '@berth/contracts'
import { afterAll, beforeAll, expect, test } from '@jest/globals'
import { type Postgres, query, startPostgres, testIds } from './postgres.fixture.js'
import { openStore, type Store } from './store.js'

let postgres: Postgres
let store: Store
beforeAll(async () => {
  postgres = await startPostgres()
  store = openStore({ url: postgres.url, poolSize: 2, clock: { now: () => new Date() }, ids: testIds })
})
afterAll(async () => {
  await store.close()
  await postgres[Symbol.asyncDispose]()
})

const backend = { text: 'SELECT pg_backend_pid() AS pid' }
const end = (pid: number | undefined) => query(postgres.url, `SELECT pg_terminate_backend(${pid})`)
/** Long enough for the server's last word to have come. */
const said = () => new Promise((resolve) => setTimeout(resolve, 200))

test('a connection that is ended between two statements of a transaction fails that transaction, and no more', async () => {
  const transaction = store.transaction(async (session) => {
    const [row] = await session.rows<{ pid: number }>(backend, [])
    await end(row?.pid)
    await said()
    return session.rows(backend, [])
  })
  await expect(transaction).rejects.toBeInstanceOf(Fault)
  expect(await store.rows({ text: 'SELECT 1 AS one' }, [])).toEqual([{ one: 1 }])
})

test('a connection that is ended while it holds a lock loses it, and no more', async () => {
  const done = await store.exclusively('lock', async () => {
    const rows = await query(postgres.url, `SELECT pid FROM pg_locks WHERE locktype = 'advisory'`)
    for (const { pid } of rows as { pid: number }[]) await end(pid)
    await said()
    return 'done'
  })
  expect(done).toBe('done')
  expect(await store.exclusively('lock', async () => 'again')).toBe('again')
})
