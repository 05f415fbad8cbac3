// ending.ts: the end of an attempt, and of jobs that never ran.
//
// What an end means is decided on what was read without a lock, and applied by one statement that checks that nothing
// the decision rests on has changed; where it has, both are done again. So locks are held for the length of one
// statement and its commit, and what the attempt held is given back exactly once: by whoever's statement finds it
// unfinished. Lock order: tenant_usage, nodes, jobs, attempts.
import {
  type AttemptFinished,
  type AttemptId,
  type AttemptState,
  BrokenInvariant,
  type JobId,
  type JobState,
  type NodeId,
  type RetryPolicy,
  type TenantId,
} from '@berth/contracts'
import {
  type AttemptEvent,
  afterAttempt,
  attemptLifecycle,
  type JobEvent,
  jobLifecycle,
  type Verdict,
} from '@berth/domain'
import type { JobChange } from './repositories.js'
import type { Statement, Store } from './store.js'
import { type ChangeRow, changeOf } from './views.js'

/** How an attempt ended; what a node reports, or what is concluded from its silence. */
export type AttemptEnd = Omit<AttemptFinished, 'kind' | 'attemptId' | 'generation'> & {
  /** Whether the node itself told so. */
  readonly reported: boolean
}

interface EndingRow {
  readonly state: AttemptState
  readonly number: number
  readonly generation: number
  readonly node_id: NodeId
  readonly job_id: JobId
  readonly tenant_id: TenantId
  readonly placed_at: Date
  readonly job_state: JobState
  readonly batch_id: JobChange['batchId']
  readonly deadline: Date | null
  readonly canceling: boolean
  readonly retention_ms: number
  readonly retry: RetryPolicy
}

const readEnding: Statement = {
  name: 'read_ending',
  text: `SELECT a.state, a.number, a.generation, a.node_id, a.job_id, a.tenant_id, a.placed_at, j.state AS job_state,
                j.batch_id, j.deadline, j.cancel_cause IS NOT NULL AS canceling, j.retention_ms, j.spec->'retry' AS retry
         FROM attempts a JOIN jobs j ON j.id = a.job_id WHERE a.id = $1`,
}

// The locking selects are one chain (`held`), so that the rows are locked in order whatever the plan.
const applyEnding: Statement = {
  name: 'apply_ending',
  text: `WITH usage AS MATERIALIZED (
      SELECT tenant_id FROM tenant_usage WHERE tenant_id = $1 FOR UPDATE
    ), node AS MATERIALIZED (
      SELECT n.id FROM usage JOIN nodes n ON n.id = $2 FOR UPDATE OF n
    ), held AS MATERIALIZED (
      SELECT count(n.id) AS nodes FROM usage u LEFT JOIN node n ON true
    ), job AS MATERIALIZED (
      SELECT j.id, j.cpu_millis, j.memory_bytes, j.disk_bytes FROM held CROSS JOIN jobs j
      WHERE j.id = $3 AND j.state = $5 AND (j.cancel_cause IS NOT NULL) = $6 FOR UPDATE OF j
    ), attempt AS (
      UPDATE attempts a SET
        state = $8, started_at = coalesce(a.started_at, $9::timestamptz), finished_at = $10::timestamptz, exit_code = $11, signal = $12,
        oom_killed = $13, reason = $14, usage = $15, phases = a.phases || $16::jsonb, stdout = $17, stderr = $18,
        reported = $19, missing_since = NULL
      FROM job WHERE a.id = $4 AND a.job_id = job.id AND a.state = $7
      RETURNING a.job_id, a.started_at
    ), ended AS (
      SELECT a.started_at, job.* FROM attempt a JOIN job ON job.id = a.job_id
    ), change_job AS (
      UPDATE jobs j SET
        state = $20, not_before = $21::timestamptz, started_at = coalesce(j.started_at, e.started_at),
        finished_at = CASE WHEN $22 THEN $10::timestamptz END, expires_at = CASE WHEN $22 THEN $23::timestamptz END,
        exit_code = CASE WHEN $22 THEN $11::integer END, signal = CASE WHEN $22 THEN $12 END,
        oom_killed = $22 AND $13, reason = CASE WHEN $22 THEN $14::jsonb END,
        usage = CASE WHEN $22 THEN $15::jsonb END
      FROM ended e WHERE j.id = e.id
    ), free_node AS (
      UPDATE nodes n SET
        used_cpu_millis = n.used_cpu_millis - e.cpu_millis, used_memory_bytes = n.used_memory_bytes - e.memory_bytes,
        used_disk_bytes = n.used_disk_bytes - e.disk_bytes, used_sandboxes = n.used_sandboxes - 1
      FROM ended e WHERE n.id = $2
    ), free_usage AS (
      UPDATE tenant_usage u SET
        unfinished_jobs = u.unfinished_jobs - $22::boolean::integer, running_jobs = u.running_jobs - 1,
        running_cpu_millis = u.running_cpu_millis - e.cpu_millis,
        running_memory_bytes = u.running_memory_bytes - e.memory_bytes,
        running_disk_bytes = u.running_disk_bytes - e.disk_bytes, event_number = u.event_number + 1
      FROM ended e WHERE u.tenant_id = $1 RETURNING u.event_number
    ), told AS (
      INSERT INTO events (tenant_id, number, type, at, subject, by, data)
      SELECT $1, f.event_number, 'job.' || $20, $27, $3, $14::jsonb ->> 'by', jsonb_build_object('attempt', $28::integer,
        'reason', $14::jsonb - 'at' - 'by', 'exitCode', $11::integer, 'signal', $12::text, 'oomKilled', $13::boolean)
      FROM free_usage f
    ), add_hour AS (
      INSERT INTO usage_hours AS h
        (tenant_id, hour, jobs, attempts, cpu_ms, wall_ms, memory_byte_ms, output_bytes)
      SELECT $1, date_trunc('hour', $10::timestamptz, 'UTC'), $22::boolean::integer, 1, $24::double precision, $25::double precision, $25::double precision * e.memory_bytes, $26::double precision
      FROM ended e
      ON CONFLICT (tenant_id, hour) DO UPDATE SET
        jobs = h.jobs + excluded.jobs, attempts = h.attempts + 1, cpu_ms = h.cpu_ms + excluded.cpu_ms,
        wall_ms = h.wall_ms + excluded.wall_ms, memory_byte_ms = h.memory_byte_ms + excluded.memory_byte_ms,
        output_bytes = h.output_bytes + excluded.output_bytes
    )
    SELECT id FROM ended`,
}

const attemptEvents: Readonly<Record<AttemptEnd['outcome'], AttemptEvent>> = {
  succeeded: 'succeed',
  failed: 'fail',
  timed_out: 'time_out',
  canceled: 'cancel',
  lost: 'lose',
}

const jobEvent = (verdict: Verdict): JobEvent => {
  if (verdict.kind === 'retry') return 'retry'
  const events = { succeeded: 'succeed', failed: 'fail', timed_out: 'time_out', canceled: 'cancel' } as const
  return events[verdict.state]
}

/** Node clocks may be off: a time is taken as told only where it lies between placement and now. */
const within = (time: string, from: Date, to: Date): Date =>
  new Date(Math.min(Math.max(Date.parse(time), from.getTime()), to.getTime()))

function verdictOn(row: EndingRow, end: AttemptEnd, now: Date): Verdict {
  const history = { number: row.number, deadline: row.deadline, cancelRequested: row.canceling }
  return afterAttempt(row.retry, { ...end, reason: end.reason.code }, history, now)
}

function endingValues(row: EndingRow, id: AttemptId, end: AttemptEnd, verdict: Verdict, now: Date): readonly unknown[] {
  const finishedAt = within(end.finishedAt, row.placed_at, now)
  const startedAt = end.startedAt === null ? null : within(end.startedAt, row.placed_at, finishedAt)
  const final = verdict.kind === 'final'
  return [
    row.tenant_id,
    row.node_id,
    row.job_id,
    id,
    row.job_state,
    row.canceling,
    row.state,
    attemptLifecycle.next(row.state, attemptEvents[end.outcome], id),
    startedAt,
    finishedAt,
    end.exitCode,
    end.signal,
    end.oomKilled,
    JSON.stringify({ ...end.reason, at: finishedAt.toISOString() }),
    end.usage === null ? null : JSON.stringify(end.usage),
    JSON.stringify(end.phases),
    Buffer.from(end.stdout, 'base64'),
    Buffer.from(end.stderr, 'base64'),
    end.reported,
    jobLifecycle.next(row.job_state, jobEvent(verdict), row.job_id),
    final ? null : verdict.notBefore,
    final,
    final ? new Date(now.getTime() + row.retention_ms) : null,
    end.usage?.cpuMs ?? 0,
    end.usage?.wallMs ?? 0,
    (end.usage?.stdout.bytes ?? 0) + (end.usage?.stderr.bytes ?? 0),
    now,
    row.number,
  ]
}

/** How often a decision is made again because what it rests on changed: each time another statement has won. */
const ATTEMPTS = 20

/**
 * Ends an attempt and its job, or queues the job again by its policy. Frees node and quota exactly once, however often
 * and from wherever it is called.
 * @param may tells from node and generation whether the caller may end it; called again when the row has changed
 * @returns undefined where the attempt is unknown, has ended, or may not be ended by the caller
 */
export async function endAttempt(
  store: Store,
  id: AttemptId,
  end: AttemptEnd,
  may: (attempt: { readonly nodeId: NodeId; readonly generation: number }) => boolean,
): Promise<JobChange | undefined> {
  for (let tries = 0; tries < ATTEMPTS; tries++) {
    const [row] = await store.rows<EndingRow>(readEnding, [id])
    if (!row || !may({ nodeId: row.node_id, generation: row.generation })) return undefined
    if (attemptLifecycle.isFinal(row.state)) return undefined
    const now = store.clock.now()
    const verdict = verdictOn(row, end, now)
    const [ended] = await store.rows<{ id: JobId }>(applyEnding, endingValues(row, id, end, verdict, now))
    if (ended)
      return changeOf({ id: row.job_id, tenant_id: row.tenant_id, batch_id: row.batch_id }, verdict.kind === 'final')
  }
  throw new BrokenInvariant(`attempt ${id} keeps changing`)
}

const endQueuedJobs: Statement = {
  name: 'end_queued_jobs',
  text: `WITH usage AS MATERIALIZED (
      SELECT tenant_id FROM tenant_usage WHERE tenant_id = $1 FOR UPDATE
    ), job AS (
      UPDATE jobs j SET state = $3, not_before = NULL, finished_at = $4::timestamptz,
        expires_at = $4::timestamptz + j.retention_ms * interval '1 millisecond', reason = $5
      FROM usage WHERE j.id = ANY($2) AND j.tenant_id = usage.tenant_id AND j.state = 'queued'
      RETURNING j.id, j.tenant_id, j.batch_id, j.attempt_count
    ), counted AS (
      SELECT count(*)::integer AS jobs FROM job
    ), free_usage AS (
      UPDATE tenant_usage u SET unfinished_jobs = u.unfinished_jobs - c.jobs, event_number = u.event_number + c.jobs
      FROM counted c WHERE u.tenant_id = $1 RETURNING u.event_number - c.jobs AS before
    ), told AS (
      INSERT INTO events (tenant_id, number, type, at, subject, by, data)
      SELECT $1, f.before + row_number() OVER (ORDER BY job.id), 'job.' || $3, $4, job.id, $5::jsonb ->> 'by',
        jsonb_build_object('attempt', job.attempt_count, 'reason', $5::jsonb - 'at' - 'by')
      FROM free_usage f, job
    ), add_hour AS (
      INSERT INTO usage_hours AS h (tenant_id, hour, jobs)
      SELECT $1, date_trunc('hour', $4::timestamptz, 'UTC'), c.jobs FROM counted c WHERE c.jobs > 0
      ON CONFLICT (tenant_id, hour) DO UPDATE SET jobs = h.jobs + excluded.jobs
    )
    SELECT * FROM job`,
}

/**
 * Ends those of a tenant's jobs that are queued, and leaves the others alone.
 * @returns the jobs that ended
 */
export async function endQueued(
  store: Store,
  tenantId: TenantId,
  ids: readonly JobId[],
  cause: 'canceled' | 'deadline_exceeded',
  by: string,
): Promise<readonly JobChange[]> {
  const now = store.clock.now()
  const state = jobLifecycle.next('queued', cause === 'canceled' ? 'cancel' : 'time_out')
  const message = cause === 'canceled' ? 'canceled while queued' : 'the deadline passed while queued'
  const reason = JSON.stringify({ code: cause, message, at: now.toISOString(), by })
  const rows = await store.rows<ChangeRow>(endQueuedJobs, [tenantId, ids, state, now, reason])
  return rows.map((row) => changeOf(row, true))
}
