// store.ts: one connection pool for Prisma (lists and edits) and for plain SQL (the hot path), and what every use of
// it needs: time limits, bounded retries of what Postgres asks to be retried, and errors that say what was attempted.
import { Fault, InvalidRequest, invariant } from '@berth/contracts'
import { PrismaPg } from '@prisma/adapter-pg'
import pg from 'pg'
import { PrismaClient } from './generated/client.js'
import type { Clock, Ids } from './repositories.js'

export interface StoreOptions {
  /** `postgresql://user@host/database`; a Unix socket's directory goes into `?host=/path`. */
  readonly url: string
  /** Most connections at a time, at least 2. */
  readonly poolSize: number
  readonly clock: Clock
  readonly ids: Ids
}

/** A statement that connections prepare once, under its name; one without a name is planned each time. */
export interface Statement {
  readonly name?: string
  readonly text: string
}

export interface Session {
  /**
   * @typeParam Row shape of a row, as the statement beside it selects it: int8 as number, json parsed, times as Date
   * @throws Fault naming the statement
   */
  rows<Row extends pg.QueryResultRow>(statement: Statement, values: readonly unknown[]): Promise<readonly Row[]>
}

export interface Store extends Session {
  readonly clock: Clock
  readonly ids: Ids
  /**
   * Runs `work` in a transaction (read committed); again where Postgres broke it off for a conflict.
   * @throws OutcomeUnknown where it may have been committed; after anything else it was not
   */
  transaction<T>(work: (session: Session) => Promise<T>): Promise<T>
  /** Prisma's client, with its errors turned into faults. @param attempted for the fault, e.g. `list keys` */
  prisma<T>(attempted: string, use: (client: PrismaClient) => Promise<T>): Promise<T>
  exclusively<T>(name: string, work: () => Promise<T>): Promise<T | undefined>
  close(): Promise<void>
}

/** The answer to COMMIT was lost: whether there was one to tell, only a look at what would be there tells. */
export class OutcomeUnknown extends Fault {
  constructor(cause: unknown) {
    super('commit', { cause })
    this.name = 'OutcomeUnknown'
  }
}

// serialization_failure, deadlock_detected (PostgreSQL, appendix A). Lock order makes the second unlikely, not
// impossible: foreign keys take share locks of their own.
const retryable = new Set(['40001', '40P01'])
const RETRIES = 6

/** SQLSTATE of what is behind an error, through any number of wraps. */
export function sqlState(error: unknown): string | undefined {
  for (let at = error; at instanceof Error; at = at.cause) if (at instanceof pg.DatabaseError) return at.code
  return undefined
}

/** Name of the constraint that a statement broke, where it broke one (class 23). */
export function brokenConstraint(error: unknown): string | undefined {
  for (let at = error; at instanceof Error; at = at.cause)
    if (at instanceof pg.DatabaseError && at.code?.startsWith('23')) return at.constraint
  return undefined
}

// invalid_text_representation, untranslatable_character, character_not_in_repertoire (PostgreSQL, appendix A): what
// JSON text may hold and Postgres' text may not, in practice half of a surrogate pair.
const badText = new Set(['22P02', '22P05', '22021'])

/** @throws InvalidRequest where the text of labels cannot be stored */
export async function storing<T>(work: Promise<T>): Promise<T> {
  try {
    return await work
  } catch (error) {
    if (!badText.has(sqlState(error) ?? '')) throw error
    const message = 'text must be well-formed Unicode: no NUL, no half of a surrogate pair'
    throw new InvalidRequest([{ field: 'labels', message }])
  }
}

const int8 = pg.types.builtins.INT8
const count = (text: string): number => {
  const value = Number(text)
  invariant(Number.isSafeInteger(value), `${text} does not fit a number`)
  return value
}
// The default gives int8 as text. Nothing here counts beyond 2^53: quotas end at 2^50.
const types: pg.CustomTypesConfig = {
  getTypeParser: (oid, format) => (oid === int8 && format !== 'binary' ? count : pg.types.getTypeParser(oid, format)),
}

const poolOf = ({ url, poolSize }: StoreOptions): pg.Pool => {
  const pool = new pg.Pool({
    connectionString: url,
    max: poolSize,
    types,
    application_name: 'berth',
    keepAlive: true,
    connectionTimeoutMillis: 5_000,
    idleTimeoutMillis: 60_000,
    // Nothing here takes long by itself; these end what hangs on a lock or on a client that died in a transaction.
    statement_timeout: 15_000,
    lock_timeout: 10_000,
    idle_in_transaction_session_timeout: 15_000,
    query_timeout: 20_000,
  })
  // An idle connection that breaks is taken out by the pool itself; without a listener it would end the process. The
  // next query tells whether Postgres is gone.
  pool.on('error', () => undefined)
  // One that is in use breaks between two statements of a transaction: the pool does not listen then, the next statement
  // tells.
  pool.on('connect', (client) => client.on('error', () => undefined))
  return pool
}

const run = async <Row extends pg.QueryResultRow>(
  on: pg.Pool | pg.PoolClient,
  statement: Statement,
  values: readonly unknown[],
): Promise<readonly Row[]> => {
  try {
    return (await on.query<Row>({ ...statement, values: [...values] })).rows
  } catch (cause) {
    throw new Fault(`statement ${statement.name ?? 'list'}`, { cause })
  }
}

async function again<T>(work: () => Promise<T>): Promise<T> {
  for (let tries = 1; ; tries++) {
    try {
      return await work()
    } catch (error) {
      if (tries >= RETRIES || !retryable.has(sqlState(error) ?? '')) throw error
      // Jittered, so that those who collided do not collide again.
      await new Promise((resolve) => setTimeout(resolve, Math.random() * 5 * 2 ** tries))
    }
  }
}

async function connect(pool: pg.Pool): Promise<pg.PoolClient> {
  try {
    return await pool.connect()
  } catch (cause) {
    throw new Fault('connect to Postgres', { cause })
  }
}

async function commit(client: pg.PoolClient): Promise<void> {
  try {
    await run(client, { name: 'commit', text: 'COMMIT' }, [])
  } catch (error) {
    // Of a conflict Postgres says that it has rolled back; of what ends a connection it may be the last word after the commit.
    throw retryable.has(sqlState(error) ?? '') || brokenConstraint(error) ? error : new OutcomeUnknown(error)
  }
}

async function transact<T>(pool: pg.Pool, work: (session: Session) => Promise<T>): Promise<T> {
  const client = await connect(pool)
  let broken: Error | undefined
  try {
    await run(client, { name: 'begin', text: 'BEGIN' }, [])
    const result = await work({ rows: (statement, values) => run(client, statement, values) })
    await commit(client)
    return result
  } catch (error) {
    await client.query('ROLLBACK').catch((cause: Error) => {
      broken = cause
    })
    throw error
  } finally {
    // A connection that cannot even roll back is closed, which rolls back too.
    client.release(broken)
  }
}

async function withAdvisoryLock<T>(pool: pg.Pool, name: string, work: () => Promise<T>): Promise<T | undefined> {
  const client = await connect(pool)
  let broken: Error | undefined
  try {
    const lock: Statement = {
      name: 'try_lock',
      text: 'SELECT pg_try_advisory_lock(hashtextextended($1, 7433)) AS taken',
    }
    const [row] = await run<{ taken: boolean }>(client, lock, [name])
    if (!row?.taken) return undefined
    try {
      return await work()
    } finally {
      await client.query('SELECT pg_advisory_unlock(hashtextextended($1, 7433))', [name]).catch((cause: Error) => {
        broken = cause
      })
    }
  } finally {
    client.release(broken)
  }
}

/** Opens the pool; connects when first used. */
export function openStore(options: StoreOptions): Store {
  const pool = poolOf(options)
  const client = new PrismaClient({ adapter: new PrismaPg(pool) })
  return {
    clock: options.clock,
    ids: options.ids,
    rows: (statement, values) => again(() => run(pool, statement, values)),
    transaction: (work) => again(() => transact(pool, work)),
    prisma: async (attempted, use) => {
      try {
        return await use(client)
      } catch (cause) {
        throw new Fault(attempted, { cause })
      }
    },
    exclusively: (name, work) => withAdvisoryLock(pool, name, work),
    close: async () => {
      await client.$disconnect()
      await pool.end()
    },
  }
}
