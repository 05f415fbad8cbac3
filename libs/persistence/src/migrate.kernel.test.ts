import { cp, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, test } from '@jest/globals'
import { migrate } from './migrate.js'
import { type Postgres, query, startPostgres } from './postgres.fixture.js'

let postgres: Postgres
beforeAll(async () => {
  postgres = await startPostgres()
})
afterAll(async () => {
  await postgres[Symbol.asyncDispose]()
})

const migrations = join(import.meta.dirname, '../../../prisma/migrations')

test('migrating again applies nothing, also when many do at once', async () => {
  const all = await Promise.all(Array.from({ length: 5 }, () => migrate(postgres.url)))
  expect(all.flat()).toEqual([])
})

test('one of many that start at once applies each migration', async () => {
  await query(postgres.url, 'CREATE DATABASE fresh')
  const url = postgres.url.replace('/postgres?', '/fresh?')
  const all = await Promise.all(Array.from({ length: 5 }, () => migrate(url)))
  expect(all.flat()).toEqual([...new Set(all.flat())])
  expect(all.flat().length).toBeGreaterThan(0)
})

test('a migration that fails leaves nothing behind, and the earlier ones in place', async () => {
  const copy = await mkdtemp(join(tmpdir(), 'berth-migrations-'))
  try {
    await cp(migrations, copy, { recursive: true })
    await cp(join(copy, '20261124000000_first'), join(copy, '99990101000000_bad'), { recursive: true })
    await writeFile(join(copy, '99990101000000_bad/migration.sql'), 'CREATE TABLE half (id int); SELECT 1 / 0;')
    await expect(migrate(postgres.url, copy)).rejects.toThrow('99990101000000_bad: division by zero')
    expect(await query(postgres.url, `SELECT 1 FROM information_schema.tables WHERE table_name = 'half'`)).toEqual([])
    await writeFile(join(copy, '99990101000000_bad/migration.sql'), 'SELECT 1')
    await writeFile(join(copy, '20261124000000_first/migration.sql'), 'SELECT 2')
    await expect(migrate(postgres.url, copy)).rejects.toThrow('changed after it was applied')
  } finally {
    await rm(copy, { recursive: true })
  }
})

const sqlTypes: Readonly<Record<string, string>> = {
  String: 'text',
  Int: 'integer',
  BigInt: 'bigint',
  Float: 'double precision',
  Boolean: 'boolean',
  DateTime: 'timestamp with time zone',
  Bytes: 'bytea',
}

/** Columns that a schema declares, one `table.column type nullable` each. The generated client tells less than this. */
function declaredColumns(schema: string): readonly string[] {
  return [...schema.matchAll(/^model \w+ \{([^}]*)@@map\("(\w+)"\)\n\}/gm)].flatMap(([, body = '', table]) =>
    [...body.matchAll(/^ {2}(\w+) +(\w+)(\[\])?(\?)?(.*)$/gm)].flatMap(
      ([, name, prisma = '', list, optional, rest = '']) => {
        const type = prisma === 'Json' ? (rest.includes('@db.Json') ? 'json' : 'jsonb') : sqlTypes[prisma]
        if (type === undefined) return []
        const column = /@map\("(\w+)"\)/.exec(rest)?.[1] ?? name
        return [`${table}.${column} ${list ? 'ARRAY' : type} ${optional ? 'YES' : 'NO'}`]
      },
    ),
  )
}

test('schema.prisma and the migrated database have the same columns', async () => {
  const declared = declaredColumns(await readFile(join(migrations, '../schema.prisma'), 'utf8'))
  expect(declared.length).toBeGreaterThan(90)
  const found = await query<{ line: string }>(
    postgres.url,
    `SELECT table_name || '.' || column_name || ' ' || data_type || ' ' || is_nullable AS line
     FROM information_schema.columns WHERE table_schema = 'public' AND table_name <> '_prisma_migrations'`,
  )
  expect(found.map(({ line }) => line).sort()).toEqual([...declared].sort())
})
