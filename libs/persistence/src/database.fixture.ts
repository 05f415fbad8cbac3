// database.fixture.ts: the set-up of a test file that works on the repositories. Importing it is the set-up: a Postgres of the
// file's own, and the repositories over it by a clock that tests move by hand. After each test the books must be right, and
// every row goes: tenants and nodes of the tests before would take the work of the next ones.
import { afterAll, afterEach, beforeAll, expect } from '@jest/globals'
import {
  bookkeepingErrors,
  HandClock,
  openTestDatabase,
  type Postgres,
  query,
  startPostgres,
} from './postgres.fixture.js'
import type { Database } from './repositories.js'

export const clock = new HandClock()
export let postgres: Postgres
export let db: Database

beforeAll(async () => {
  postgres = await startPostgres()
  db = openTestDatabase(postgres.url, clock, 20)
})
afterAll(async () => {
  await db.close()
  await postgres[Symbol.asyncDispose]()
})
afterEach(async () => {
  expect(await bookkeepingErrors(postgres.url)).toEqual([])
  await query(postgres.url, `TRUNCATE ${await tables()} CASCADE`)
})

/** All but the migrations'. */
async function tables(): Promise<string> {
  const text = `SELECT string_agg(quote_ident(tablename), ', ') AS names FROM pg_tables
    WHERE schemaname = 'public' AND tablename <> '_prisma_migrations'`
  const [row] = await query<{ names: string }>(postgres.url, text)
  if (!row) throw new Error('there are no tables')
  return row.names
}
