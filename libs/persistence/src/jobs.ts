// jobs.ts: reading jobs, and what callers and nodes tell of them.
import {
  type AttemptId,
  type AttemptState,
  Failure,
  type JobId,
  type JobState,
  type NodeId,
  type ResourceUsage,
  type TenantId,
} from '@berth/contracts'
import { cancelUnfinished } from './cancel.js'
import { endAttempt } from './ending.js'
import { acknowledge, openReconciler } from './overdue.js'
import type { Access, AttemptOutput, JobFilter, Jobs, PageRequest } from './repositories.js'
import type { Statement, Store } from './store.js'
import {
  type ChangeRow,
  changeOf,
  type ForgetRow,
  forgetCommand,
  type JobRow,
  jobColumns,
  jobOf,
  labelConditions,
} from './views.js'

const jobNotFound = (id: JobId) => new Failure('job_not_found', `there is no job ${id}`)

const visible = (access: Access, tenantId: TenantId): boolean => access === 'operator' || access.tenantId === tenantId

const readJob: Statement = { name: 'read_job', text: `SELECT ${jobColumns} FROM jobs j WHERE j.id = $1` }

async function get(store: Store, access: Access, id: JobId) {
  const [row] = await store.rows<JobRow>(readJob, [id])
  if (!row || !visible(access, row.tenant_id)) throw jobNotFound(id)
  return jobOf(row)
}

function listStatement(access: Access, filter: JobFilter, page: PageRequest) {
  const values: unknown[] = []
  const parameter = (value: unknown) => `$${values.push(value)}`
  const conditions = [
    access === 'operator' ? [] : [`j.tenant_id = ${parameter(access.tenantId)}`],
    page.after === undefined ? [] : [`j.id < ${parameter(page.after)}`],
    filter.batchId === undefined ? [] : [`j.batch_id = ${parameter(filter.batchId)}`],
    filter.state === undefined ? [] : [`j.state = ANY(${parameter(filter.state)})`],
    labelConditions('j.labels', filter.label ?? [], parameter),
  ].flat()
  const where = conditions.length > 0 ? `WHERE ${conditions.join(' AND ')}` : ''
  const text = `SELECT ${jobColumns} FROM jobs j ${where} ORDER BY j.id DESC LIMIT ${parameter(page.limit + 1)}`
  return { text, values }
}

async function list(store: Store, access: Access, filter: JobFilter, page: PageRequest) {
  const { text, values } = listStatement(access, filter, page)
  const rows = await store.rows<JobRow>({ text }, values)
  const items = rows.slice(0, page.limit).map(jobOf)
  return { items, next: rows.length > page.limit ? (items.at(-1)?.id ?? null) : null }
}

interface OutputRow {
  readonly tenant_id: TenantId
  readonly id: AttemptId | null
  readonly number: number
  readonly node_id: NodeId
  readonly state: AttemptState
  readonly usage: ResourceUsage | null
  readonly stdout: Buffer | null
  readonly stderr: Buffer | null
}

const readOutput: Statement = {
  name: 'read_output',
  text: `SELECT j.tenant_id, a.id, a.number, a.node_id, a.state, a.usage, a.stdout, a.stderr
         FROM jobs j LEFT JOIN attempts a ON a.job_id = j.id AND a.number = coalesce($2, j.attempt_count)
         WHERE j.id = $1`,
}

async function output(store: Store, access: Access, id: JobId, attempt?: number): Promise<AttemptOutput | undefined> {
  const [row] = await store.rows<OutputRow>(readOutput, [id, attempt ?? null])
  if (!row || !visible(access, row.tenant_id)) throw jobNotFound(id)
  if (row.id === null) return undefined
  const { number, state, usage, stdout, stderr } = row
  return { attemptId: row.id, number, nodeId: row.node_id, state, usage, stdout, stderr }
}

const readOwner: Statement = { name: 'read_job_owner', text: 'SELECT tenant_id FROM jobs WHERE id = $1' }

async function requestCancel(store: Store, access: Access, id: JobId, by: string): ReturnType<Jobs['requestCancel']> {
  const [row] = await store.rows<{ tenant_id: TenantId }>(readOwner, [id])
  if (!row || !visible(access, row.tenant_id)) throw jobNotFound(id)
  const { cancels } = await cancelUnfinished(store, row.tenant_id, [id], 'canceled', by)
  const job = await get(store, access, id)
  return cancels[0] ? { job, cancel: cancels[0] } : { job }
}

const deleteJobs = (name: string, choice: string): Statement => ({
  name,
  text: `WITH doomed AS MATERIALIZED (${choice}), held AS MATERIALIZED (
      SELECT a.id, a.node_id, a.generation FROM attempts a JOIN doomed d ON d.id = a.job_id
    ), gone AS (
      DELETE FROM jobs j USING doomed d WHERE j.id = d.id RETURNING j.id, j.batch_id
    )
    SELECT (SELECT count(*)::integer FROM gone) AS jobs,
      (SELECT coalesce(array_agg(DISTINCT batch_id) FILTER (WHERE batch_id IS NOT NULL), '{}') FROM gone) AS batches,
      (SELECT coalesce(json_agg(json_build_object('id', h.id, 'node_id', h.node_id, 'generation', h.generation)), '[]')
       FROM held h) AS attempts`,
})

const deleteOne = deleteJobs('delete_job', 'SELECT id FROM jobs WHERE id = $1 AND finished_at IS NOT NULL FOR UPDATE')

const deleteExpired = deleteJobs(
  'delete_expired_jobs',
  'SELECT id FROM jobs WHERE expires_at <= $1 ORDER BY expires_at LIMIT $2 FOR UPDATE SKIP LOCKED',
)

// A batch goes with its last job.
const deleteEmptyBatches: Statement = {
  name: 'delete_empty_batches',
  text: `DELETE FROM batches b WHERE b.id = ANY($1) AND NOT EXISTS (SELECT 1 FROM jobs j WHERE j.batch_id = b.id)`,
}

interface DeletedRow {
  readonly jobs: number
  readonly batches: readonly string[]
  readonly attempts: readonly ForgetRow[]
}

async function deleteWhole(store: Store, statement: Statement, values: readonly unknown[]) {
  return store.transaction(async (session) => {
    const [row] = await session.rows<DeletedRow>(statement, values)
    if (row && row.batches.length > 0) await session.rows(deleteEmptyBatches, [row.batches])
    return { jobs: row?.jobs ?? 0, forgotten: (row?.attempts ?? []).map(forgetCommand) }
  })
}

async function deleteEnded(store: Store, access: Access, id: JobId): ReturnType<Jobs['delete']> {
  const job = await get(store, access, id)
  const { jobs, forgotten } = await deleteWhole(store, deleteOne, [id])
  if (jobs === 1) return forgotten
  const state: JobState = job.state
  throw new Failure('wrong_state', `job ${id} is ${state}; only an ended job can be deleted, cancel it first`, {
    state,
  })
}

// All that a node tells at once, in one statement: each would take its tenant's lock for a commit of its own.
const startAttempts: Statement = {
  name: 'start_attempts',
  text: `WITH said AS MATERIALIZED (
      SELECT s.id, s.generation, s.at, a.job_id, a.tenant_id
      FROM unnest($1::text[], $2::integer[], $3::timestamptz[]) AS s(id, generation, at)
      JOIN attempts a ON a.id = s.id AND a.node_id = $4 AND a.state = 'placed' AND a.generation >= s.generation
    ), usage AS MATERIALIZED (
      SELECT u.tenant_id FROM tenant_usage u WHERE u.tenant_id IN (SELECT tenant_id FROM said)
      ORDER BY u.tenant_id FOR UPDATE
    ), job AS MATERIALIZED (
      SELECT j.id, j.tenant_id, j.batch_id FROM said s JOIN usage u ON u.tenant_id = s.tenant_id
      JOIN jobs j ON j.id = s.job_id ORDER BY j.id FOR UPDATE OF j
    ), attempt AS (
      UPDATE attempts a SET state = 'running', started_at = least(greatest(s.at, a.placed_at), $5),
        acknowledged_generation = greatest(a.acknowledged_generation, s.generation), missing_since = NULL
      FROM said s JOIN job ON job.id = s.job_id WHERE a.id = s.id AND a.state = 'placed'
      RETURNING a.started_at, a.number, a.tenant_id, a.job_id
    ), change_job AS (
      UPDATE jobs j SET state = 'running', started_at = coalesce(j.started_at, a.started_at)
      FROM attempt a WHERE j.id = a.job_id AND j.state = 'placed'
    ), counted AS (
      UPDATE tenant_usage u SET event_number = u.event_number + s.jobs
      FROM (SELECT tenant_id, count(*)::integer AS jobs FROM attempt GROUP BY tenant_id) s
      WHERE u.tenant_id = s.tenant_id RETURNING u.tenant_id, u.event_number - s.jobs AS before
    ), told AS (
      INSERT INTO events (tenant_id, number, type, at, subject, by, data)
      SELECT c.tenant_id, c.before + row_number() OVER (PARTITION BY c.tenant_id ORDER BY a.job_id), 'job.running', $5,
        a.job_id, 'agent', jsonb_build_object('attempt', a.number, 'nodeId', $4::text)
      FROM counted c JOIN attempt a ON a.tenant_id = c.tenant_id
    )
    SELECT DISTINCT job.* FROM job JOIN attempt a ON a.job_id = job.id`,
}

async function recordStarted(
  store: Store,
  nodeId: NodeId,
  reports: Parameters<Jobs['recordStarted']>[1],
): ReturnType<Jobs['recordStarted']> {
  if (reports.length === 0) return []
  const rows = await store.rows<ChangeRow>(startAttempts, [
    reports.map(({ attemptId }) => attemptId),
    reports.map(({ generation }) => generation),
    reports.map(({ at }) => at),
    nodeId,
    store.clock.now(),
  ])
  return rows.map((row) => changeOf(row, false))
}

const recordFinished = (
  store: Store,
  nodeId: NodeId,
  { attemptId, generation, kind: _, ...end }: Parameters<Jobs['recordFinished']>[1],
): ReturnType<Jobs['recordFinished']> =>
  endAttempt(
    store,
    attemptId,
    { ...end, reported: true },
    (attempt) => attempt.nodeId === nodeId && generation <= attempt.generation,
  )

export function openJobs(store: Store): Jobs {
  const reconcile = openReconciler(store)
  return {
    get: (access, id) => get(store, access, id),
    list: (access, filter, page) => list(store, access, filter, page),
    output: (access, id, attempt) => output(store, access, id, attempt),
    requestCancel: (access, id, by) => requestCancel(store, access, id, by),
    delete: (access, id) => deleteEnded(store, access, id),
    recordStarted: (nodeId, reports) => recordStarted(store, nodeId, reports),
    recordFinished: (nodeId, report) => recordFinished(store, nodeId, report),
    acknowledge: (nodeId, attempts) => acknowledge(store, nodeId, attempts),
    reconcile,
    expire: (limit) => deleteWhole(store, deleteExpired, [store.clock.now(), limit]),
  }
}
