// migrate.ts: brings a database up to prisma/migrations, as `prisma migrate deploy` does and in the same table, so
// that either may be used. Prisma's own needs a schema-engine binary that is downloaded at install time; this needs
// nothing. Each migration is one transaction together with its record: none is ever half applied.
import { createHash, randomUUID } from 'node:crypto'
import { readdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { Fault, ignore } from '@berth/contracts'
import pg from 'pg'

const here = fileURLToPath(new URL('.', import.meta.url))
const directory = join(here, '../../../prisma/migrations')

/** The advisory lock that Prisma's schema engine takes while it migrates. */
const PRISMA_LOCK = 72707369

// Columns and types as Prisma's schema engine makes them.
const records = `CREATE TABLE IF NOT EXISTS "_prisma_migrations" (
  "id" varchar(36) PRIMARY KEY NOT NULL,
  "checksum" varchar(64) NOT NULL,
  "finished_at" timestamptz,
  "migration_name" varchar(255) NOT NULL,
  "logs" text,
  "rolled_back_at" timestamptz,
  "started_at" timestamptz NOT NULL DEFAULT now(),
  "applied_steps_count" integer NOT NULL DEFAULT 0
)`

interface Migration {
  readonly name: string
  readonly sql: string
  /** SHA-256 of the file, hex. */
  readonly checksum: string
}

async function readMigrations(from: string): Promise<readonly Migration[]> {
  const entries = await readdir(from, { withFileTypes: true })
  const names = entries.filter((entry) => entry.isDirectory()).map((entry) => entry.name)
  const read = names.sort().map(async (name) => {
    const sql = await readFile(join(from, name, 'migration.sql'), 'utf8').catch((error) => ignore(error, 'ENOENT'))
    return sql === undefined ? [] : [{ name, sql, checksum: createHash('sha256').update(sql).digest('hex') }]
  })
  return (await Promise.all(read)).flat()
}

async function apply(client: pg.Client, { name, sql, checksum }: Migration): Promise<void> {
  try {
    await client.query('BEGIN')
    await client.query(sql)
    await client.query(
      `INSERT INTO "_prisma_migrations" (id, checksum, migration_name, started_at, finished_at, applied_steps_count)
       VALUES ($1, $2, $3, now(), clock_timestamp(), 1)`,
      [randomUUID(), checksum, name],
    )
    await client.query('COMMIT')
  } catch (cause) {
    await client.query('ROLLBACK')
    throw new Fault(`migration ${name}`, { cause })
  }
}

async function pending(client: pg.Client, all: readonly Migration[]): Promise<readonly Migration[]> {
  const { rows } = await client.query<{ migration_name: string; checksum: string; finished_at: Date | null }>(
    'SELECT migration_name, checksum, finished_at FROM "_prisma_migrations" WHERE rolled_back_at IS NULL',
  )
  const applied = new Map(rows.map((row) => [row.migration_name, row]))
  return all.filter(({ name, checksum }) => {
    const record = applied.get(name)
    if (record && record.finished_at === null)
      throw new Fault(`migration ${name}`, { cause: 'an earlier run failed half-way; see _prisma_migrations' })
    if (record && record.checksum !== checksum)
      throw new Fault(`migration ${name}`, { cause: 'the file was changed after it was applied' })
    return record === undefined
  })
}

/**
 * Applies what is pending, in order of name. Several processes may call it at once: one works, the others wait.
 * @param from directory of migrations in Prisma's layout
 * @returns names of what was applied
 * @throws Fault where Postgres cannot be reached, a migration fails, or an applied one was edited
 */
export async function migrate(databaseUrl: string, from = directory): Promise<readonly string[]> {
  const migrations = await readMigrations(from)
  const client = new pg.Client({ connectionString: databaseUrl, connectionTimeoutMillis: 10_000 })
  try {
    await client.connect()
  } catch (cause) {
    throw new Fault('connect to Postgres', { cause })
  }
  try {
    await client.query('SELECT pg_advisory_lock($1)', [PRISMA_LOCK])
    await client.query(records)
    const todo = await pending(client, migrations)
    for (const migration of todo) await apply(client, migration)
    return todo.map(({ name }) => name)
  } finally {
    await client.end()
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const url = process.env.DATABASE_URL
  if (url === undefined) {
    process.stderr.write('DATABASE_URL is not set\n')
    process.exitCode = 2
  } else {
    const applied = await migrate(url)
    process.stdout.write(applied.map((name) => `applied ${name}\n`).join('') || 'nothing to apply\n')
  }
}
