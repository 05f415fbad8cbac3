// views.ts: rows of jobs and attempts → what the API shows and what nodes are told. Rows are trusted: only this
// library writes them, from values that contracts' schemas have passed.
import {
  type AttemptId,
  type BatchId,
  type CancelAttempt,
  type IdRange,
  type Job,
  type JobId,
  type JobSpec,
  type NodeId,
  type Quota,
  type RunAttempt,
  type TenantId,
  type TenantLimits,
} from '@berth/contracts'
import type { PlacedAttempt } from './repositories.js'
import type { Session, Statement } from './store.js'

/** SQL that writes a timestamptz as RFC 3339 in UTC with milliseconds, as contracts' `Time`. */
export const iso = (column: string): string => `to_char(${column} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')`

/** Lists rows of `jobs j` as `JobRow`. The output of attempts is left out: it may be 128 KiB each. */
export const jobColumns = `
  j.spec, j.stdin_bytes, j.tenant_id,
  json_build_object(
    'id', j.id, 'batchId', j.batch_id, 'state', j.state, 'exitCode', j.exit_code, 'signal', j.signal,
    'oomKilled', j.oom_killed, 'reason', j.reason, 'usage', j.usage,
    'createdAt', ${iso('j.created_at')}, 'notBefore', ${iso('j.not_before')}, 'startedAt', ${iso('j.started_at')},
    'finishedAt', ${iso('j.finished_at')}, 'expiresAt', ${iso('j.expires_at')},
    'attempts', (
      SELECT coalesce(json_agg(json_build_object(
        'id', a.id, 'number', a.number, 'state', a.state, 'nodeId', a.node_id, 'exitCode', a.exit_code,
        'signal', a.signal, 'oomKilled', a.oom_killed, 'reason', a.reason, 'usage', a.usage,
        'phases', '{"imageMs": null}'::jsonb || a.phases,
        'placedAt', ${iso('a.placed_at')}, 'startedAt', ${iso('a.started_at')},
        'finishedAt', ${iso('a.finished_at')}) ORDER BY a.number), '[]')
      FROM attempts a WHERE a.job_id = j.id)
  ) AS view`

/** The spec as stored: whole but for standard input. */
export type StoredSpec = Omit<JobSpec, 'stdin'>

export interface JobRow {
  readonly spec: StoredSpec
  readonly stdin_bytes: number
  readonly tenant_id: TenantId
  readonly view: Omit<Job, 'spec' | 'output'>
}

export const jobOf = ({ view, spec, stdin_bytes }: JobRow): Job => ({
  id: view.id,
  batchId: view.batchId,
  state: view.state,
  spec: { ...spec, stdinBytes: stdin_bytes },
  exitCode: view.exitCode,
  signal: view.signal,
  oomKilled: view.oomKilled,
  reason: view.reason,
  usage: view.usage,
  attempts: view.attempts,
  createdAt: view.createdAt,
  notBefore: view.notBefore,
  startedAt: view.startedAt,
  finishedAt: view.finishedAt,
  expiresAt: view.expiresAt,
})

/** `key=value` or `key` each, as SQL conditions on a column of labels. Keys hold no `=`, so the first one parts. */
export const labelConditions = (
  column: string,
  labels: readonly string[],
  parameter: (value: unknown) => string,
): readonly string[] =>
  labels.map((label) => {
    const at = label.indexOf('=')
    if (at < 0) return `${column} ? ${parameter(label)}`
    return `${column} @> ${parameter(JSON.stringify({ [label.slice(0, at)]: label.slice(at + 1) }))}::jsonb`
  })

/** Columns of `tenants t` that quotas are made of. */
export const quotaColumns = `
  t.quota_unfinished_jobs, t.quota_concurrent_jobs, t.quota_cpu_millis, t.quota_memory_bytes, t.quota_disk_bytes,
  t.quota_pids, t.quota_requests_per_minute, t.quota_sandboxes, t.quota_terminals, t.quota_image_bytes`

export interface QuotaRow {
  readonly quota_unfinished_jobs: number
  readonly quota_concurrent_jobs: number
  readonly quota_cpu_millis: number
  readonly quota_memory_bytes: number
  readonly quota_disk_bytes: number
  readonly quota_pids: number
  readonly quota_requests_per_minute: number
  readonly quota_sandboxes: number
  readonly quota_terminals: number
  readonly quota_image_bytes: number
}

export const quotaOf = (row: QuotaRow): Quota => ({
  unfinishedJobs: row.quota_unfinished_jobs,
  concurrentJobs: row.quota_concurrent_jobs,
  cpus: row.quota_cpu_millis / 1000,
  memoryBytes: row.quota_memory_bytes,
  diskBytes: row.quota_disk_bytes,
  pids: row.quota_pids,
  requestsPerMinute: row.quota_requests_per_minute,
  sandboxes: row.quota_sandboxes,
  terminals: row.quota_terminals,
  imageBytes: row.quota_image_bytes,
})

/** Ids of a range: as many as a 16-bit uid space, the least that images and tools expect. */
const IDS_PER_TENANT = 65_536
/** Where tenants' ids begin on a host: above those of people and of subuid ranges that distributions give out. */
const FIRST_ID = 1_000_000

export const idRange = (slot: number): IdRange => ({ base: FIRST_ID + slot * IDS_PER_TENANT, count: IDS_PER_TENANT })

export const tenantLimits = ({ memoryBytes, cpus, pids }: Quota): TenantLimits => ({ memoryBytes, cpus, pids })

/** Spec and input as they are stored: apart. */
export function splitSpec(spec: JobSpec): { readonly stored: StoredSpec; readonly stdin: Buffer | null } {
  const { stdin, ...stored } = spec
  return { stored, stdin: stdin === undefined ? null : Buffer.from(stdin, 'base64') }
}

interface CommandRow extends QuotaRow {
  readonly id: AttemptId
  readonly node_id: NodeId
  readonly generation: number
  readonly job_id: JobId
  readonly tenant_id: TenantId
  readonly uid_slot: number
  readonly placed_at: Date
  readonly spec: StoredSpec
  readonly image_digest: string | null
  readonly stdin: Buffer | null
}

const commandRows: Statement = {
  name: 'run_commands',
  text: `SELECT a.id, a.node_id, a.generation, a.job_id, a.tenant_id, a.placed_at, t.uid_slot, j.spec, j.image_digest, j.stdin,
                ${quotaColumns}
         FROM attempts a JOIN jobs j ON j.id = a.job_id JOIN tenants t ON t.id = a.tenant_id
         WHERE a.id = ANY($1) AND a.finished_at IS NULL ORDER BY a.id`,
}

/** The commands that start these attempts; those that have ended meanwhile are left out. */
export async function runCommands(session: Session, ids: readonly AttemptId[]): Promise<readonly PlacedAttempt[]> {
  if (ids.length === 0) return []
  const rows = await session.rows<CommandRow>(commandRows, [ids])
  return rows.map((row) => ({
    nodeId: row.node_id,
    command: runCommand({
      nodeId: row.node_id,
      attemptId: row.id,
      generation: row.generation,
      jobId: row.job_id,
      tenantId: row.tenant_id,
      ids: idRange(row.uid_slot),
      tenantLimits: tenantLimits(quotaOf(row)),
      ...(row.image_digest !== null && { image: row.image_digest }),
      spec: row.stdin === null ? row.spec : { ...row.spec, stdin: row.stdin.toString('base64') },
      placedAt: row.placed_at.toISOString(),
    }),
  }))
}

export const runCommand = (fields: Omit<RunAttempt, 'kind'>): RunAttempt => ({ kind: 'run', ...fields })

export interface CancelRow {
  readonly id: AttemptId
  readonly node_id: NodeId
  readonly generation: number
  readonly cancel_cause: CancelAttempt['cause']
  readonly cancel_by: string
}

export const cancelCommand = (row: CancelRow) => ({
  nodeId: row.node_id,
  command: {
    kind: 'cancel' as const,
    nodeId: row.node_id,
    attemptId: row.id,
    generation: row.generation,
    cause: row.cancel_cause,
    by: row.cancel_by,
  },
})

export interface ForgetRow {
  readonly id: AttemptId
  readonly node_id: NodeId
  readonly generation: number
}

/** One generation above the last, so that a delayed run or cancel of it is refused afterwards. */
export const forgetCommand = (row: ForgetRow) => ({
  nodeId: row.node_id,
  command: {
    kind: 'forget' as const,
    nodeId: row.node_id,
    attemptId: row.id,
    generation: row.generation + 1,
  },
})

export interface ChangeRow {
  readonly id: JobId
  readonly tenant_id: TenantId
  readonly batch_id: BatchId | null
}

export const changeOf = (row: ChangeRow, finished: boolean) => ({
  jobId: row.id,
  tenantId: row.tenant_id,
  batchId: row.batch_id,
  finished,
})
