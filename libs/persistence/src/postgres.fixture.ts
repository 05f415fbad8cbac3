// A private, migrated Postgres for one test file: socket only, in a directory of its own, run by user `postgres`
// because Postgres refuses to run as root.
import { execFile } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { chown, mkdtemp, readdir, readFile, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import {
  type ApplySandbox,
  type AttemptFinished,
  Capacity,
  JobSpec,
  mintId,
  type NodeId,
  type Quota,
  type RunAttempt,
  type SandboxReport,
  SandboxSpec,
  type TenantId,
} from '@berth/contracts'
import pg from 'pg'
import { openDatabase } from './database.js'
import { migrate } from './migrate.js'
import type { Clock, Database, Ids } from './repositories.js'

const run = promisify(execFile)

export interface Postgres extends AsyncDisposable {
  readonly url: string
  /** Ends the server as a crash would, and starts it again. */
  crash(): Promise<void>
}

async function binaries(): Promise<string> {
  const versions = (await readdir('/usr/lib/postgresql')).sort((a, b) => Number(b) - Number(a))
  return `/usr/lib/postgresql/${versions[0]}/bin`
}

export async function startPostgres(): Promise<Postgres> {
  const bin = await binaries()
  const [uid, gid] = (await run('id', ['-u', 'postgres'])).stdout
    .concat((await run('id', ['-g', 'postgres'])).stdout)
    .trim()
    .split('\n')
    .map(Number)
  if (uid === undefined || gid === undefined) throw new Error('there is no user postgres')
  const directory = await mkdtemp(join(tmpdir(), 'berth-postgres-'))
  await chown(directory, uid, gid)
  const data = join(directory, 'data')
  const asPostgres = { uid, gid, cwd: directory, env: { PATH: process.env.PATH, LC_ALL: 'C.UTF-8' } }
  const start = () =>
    run(
      join(bin, 'pg_ctl'),
      [
        '-D',
        data,
        '-w',
        '-l',
        join(directory, 'log'),
        '-o',
        `-c listen_addresses= -c unix_socket_directories=${directory}`,
        'start',
      ],
      asPostgres,
    )
  await run(join(bin, 'initdb'), ['-D', data, '-U', 'berth', '-A', 'trust', '--no-sync'], asPostgres)
  await start()
  const url = `postgresql://berth@localhost/postgres?host=${directory}`
  await migrate(url)
  return {
    url,
    crash: async () => {
      process.kill(Number((await readFile(join(data, 'postmaster.pid'), 'utf8')).split('\n')[0]), 'SIGKILL')
      await start()
    },
    [Symbol.asyncDispose]: async () => {
      await run(join(bin, 'pg_ctl'), ['-D', data, '-m', 'immediate', '-w', 'stop'], asPostgres)
      await rm(directory, { recursive: true })
    },
  }
}

/** A clock that tests move by hand. */
export class HandClock implements Clock {
  constructor(private time = Date.parse('2026-01-01T00:00:00Z')) {}
  now(): Date {
    return new Date(this.time)
  }
  advance(ms: number): void {
    this.time += ms
  }
}

// Each id one millisecond later than the one before: ids then sort in the order in which they were made.
let minted = Date.parse('2026-01-01T00:00:00Z')
export const testIds: Ids = { mint: (kind) => mintId(kind, minted++, randomBytes(10)) }

export const openTestDatabase = (url: string, clock: Clock = new HandClock(), poolSize = 10): Database =>
  openDatabase({ url, poolSize, clock, ids: testIds })

export const spec = (fields: Partial<Parameters<typeof JobSpec.parse>[0] & object> = {}): JobSpec =>
  JobSpec.parse({ command: ['true'], limits: { memoryBytes: '16m', diskBytes: '16m' }, ...fields })

export const sandboxSpec = (fields: Partial<Parameters<typeof SandboxSpec.parse>[0] & object> = {}): SandboxSpec =>
  SandboxSpec.parse({ limits: { memoryBytes: '16m', diskBytes: '16m', cpus: 0.1 }, ...fields })

/** What a node says of a sandbox that is as its command wants it. */
export const reportOf = (
  command: ApplySandbox,
  sequence: number,
  change: Partial<SandboxReport> = {},
): SandboxReport => ({
  kind: 'sandbox',
  sandboxId: command.sandboxId,
  generation: command.generation,
  sequence,
  state: command.desired,
  phase: command.desired === 'deleted' ? 'removed' : command.desired,
  reason: null,
  run: command.run,
  restarts: 0,
  phases: { placeMs: 1, imageMs: 2, rootfsMs: 3, networkMs: 4, startMs: 5, readyMs: 15 },
  startedAt: null,
  endedAt: null,
  lastActivityAt: null,
  endsAt: null,
  ends: [],
  notes: [],
  ...change,
})

export const roomy: Capacity = Capacity.parse({ cpus: 1000, memoryBytes: 2 ** 44, diskBytes: 2 ** 44, sandboxes: 1000 })

export const debian = { reference: 'debian:latest', digest: `sha256:${'a'.repeat(64)}`, sizeBytes: 1 }

let names = 0
export const unique = (prefix: string) => `${prefix}-${names++}`

export const givenTenant = async (db: Database, quota: Partial<Quota> = {}): Promise<TenantId> =>
  (await db.tenants.create({ name: unique('tenant'), quota })).id

export async function givenNode(db: Database, capacity: Partial<Capacity> = {}, platform?: string): Promise<NodeId> {
  const { id } = await db.nodes.create({ name: unique('node'), tokenHash: randomBytes(32) })
  await db.nodes.join(id, {
    ...standing(capacity),
    runtime: 'crun 1',
    platform,
    streams: { url: 'https://127.0.0.1:1', certificate: 'pem' },
  })
  return id
}

/** A heartbeat's body. */
export const standing = (
  capacity: Partial<Capacity> = {},
  commands: readonly RunAttempt[] = [],
  sandboxes: readonly ApplySandbox[] = [],
) => ({
  capacity: { ...roomy, ...capacity },
  images: [debian],
  sandboxes: sandboxes.map(({ sandboxId, generation }) => ({ id: sandboxId, generation })),
  attempts: commands.map(({ attemptId, generation }) => ({ id: attemptId, generation })),
  tenants: [],
})

/** A node's report that the attempt ended, well unless said otherwise. */
export const finished = (command: RunAttempt, at: Date, change: Partial<AttemptFinished> = {}): AttemptFinished => ({
  kind: 'finished',
  attemptId: command.attemptId,
  generation: command.generation,
  outcome: 'succeeded',
  exitCode: 0,
  signal: null,
  oomKilled: false,
  reason: { code: 'completed', message: 'exit code 0', by: 'sandbox' },
  usage: {
    wallMs: 10,
    cpuMs: 5,
    peakMemoryBytes: 1000,
    stdout: { bytes: 3, keptBytes: 3, truncated: false },
    stderr: { bytes: 0, keptBytes: 0, truncated: false },
  },
  phases: { placeMs: 1, imageMs: 1, rootfsMs: 2, startMs: 3, runMs: 4, finishMs: 5 },
  startedAt: at.toISOString(),
  finishedAt: at.toISOString(),
  stdout: Buffer.from('out').toString('base64'),
  stderr: '',
  ...change,
})

export const failed = {
  outcome: 'failed',
  exitCode: 1,
  reason: { code: 'exit_nonzero', message: 'exit code 1', by: 'sandbox' },
} as const

export async function query<Row extends pg.QueryResultRow>(url: string, text: string, values: readonly unknown[] = []) {
  const client = new pg.Client({ connectionString: url })
  await client.connect()
  try {
    return (await client.query<Row>(text, [...values])).rows
  } finally {
    await client.end()
  }
}

/**
 * Counters that differ from the sums they stand for, jobs with other than the right number of current attempts, and
 * tenants whose events have gaps. Empty when the books are right.
 */
export const bookkeepingErrors = (url: string) =>
  query(
    url,
    `SELECT 'tenant' AS kind, u.tenant_id AS id, to_json(u) AS counters, to_json(s) AS sums
     FROM tenant_usage u CROSS JOIN LATERAL (
       SELECT coalesce(sum(unfinished), 0) AS unfinished, coalesce(sum(running), 0) AS running,
         coalesce(sum(sandbox), 0) AS sandboxes, coalesce(sum(cpu), 0) AS cpu, coalesce(sum(memory), 0) AS memory,
         coalesce(sum(disk), 0) AS disk
       FROM (
         SELECT 1 AS unfinished, r AS running, 0 AS sandbox, r * cpu_millis AS cpu, r * memory_bytes AS memory,
           r * disk_bytes AS disk
         FROM jobs j, LATERAL (SELECT (j.state IN ('placed', 'running'))::integer AS r) running
         WHERE j.tenant_id = u.tenant_id AND j.finished_at IS NULL
         UNION ALL SELECT 1, 1, 0, cpu_millis, memory_bytes, disk_bytes
         FROM builds c WHERE c.tenant_id = u.tenant_id AND c.state = 'running'
         UNION ALL SELECT 0, 0, 1, r * cpu_millis, r * memory_bytes, disk_bytes
         FROM sandboxes b, LATERAL (SELECT b.holds::integer AS r) held
         WHERE b.tenant_id = u.tenant_id AND b.deleted_at IS NULL) have) s
     WHERE (u.unfinished_jobs, u.running_jobs, u.sandboxes, u.running_cpu_millis, u.running_memory_bytes,
       u.running_disk_bytes) <> (s.unfinished, s.running, s.sandboxes, s.cpu, s.memory, s.disk)
     UNION ALL
     SELECT 'node', n.id, to_json(n), to_json(s) FROM nodes n CROSS JOIN LATERAL (
       SELECT coalesce(sum(runs), 0) AS sandboxes, coalesce(sum(cpu), 0) AS cpu, coalesce(sum(memory), 0) AS memory,
         coalesce(sum(disk), 0) AS disk
       FROM (
         SELECT 1 AS runs, j.cpu_millis AS cpu, j.memory_bytes AS memory, j.disk_bytes AS disk
         FROM attempts a JOIN jobs j ON j.id = a.job_id WHERE a.node_id = n.id AND a.finished_at IS NULL
         UNION ALL SELECT parallel, cpu_millis, memory_bytes, disk_bytes
         FROM builds c WHERE c.node_id = n.id AND c.state = 'running'
         UNION ALL SELECT r, r * cpu_millis, r * memory_bytes, disk_bytes
         FROM sandboxes b, LATERAL (SELECT b.holds::integer AS r) held
         WHERE b.node_id = n.id AND b.phase <> 'removed') have) s
     WHERE (n.used_sandboxes, n.used_cpu_millis, n.used_memory_bytes, n.used_disk_bytes)
       <> (s.sandboxes, s.cpu, s.memory, s.disk)
     UNION ALL
     SELECT 'job', j.id, to_json(j), to_json(s) FROM jobs j CROSS JOIN LATERAL (
       SELECT count(*) AS current FROM attempts a WHERE a.job_id = j.id AND a.finished_at IS NULL) s
     WHERE s.current <> (j.state IN ('placed', 'running'))::integer
     UNION ALL
     SELECT 'events', u.tenant_id, to_json(u), to_json(s) FROM tenant_usage u CROSS JOIN LATERAL (
       SELECT count(*) AS events, coalesce(max(e.number), 0) AS last FROM events e WHERE e.tenant_id = u.tenant_id) s
     WHERE u.event_number <> s.last OR s.events <> s.last
     UNION ALL
     SELECT 'images', u.tenant_id, to_json(u), to_json(s) FROM tenant_usage u CROSS JOIN LATERAL (
       SELECT coalesce(sum(d.bytes), 0) AS bytes FROM (
         SELECT max(l.bytes) AS bytes FROM image_layers l WHERE l.owner = u.tenant_id GROUP BY l.diff_id) d) s
     WHERE u.image_bytes <> s.bytes`,
  )
