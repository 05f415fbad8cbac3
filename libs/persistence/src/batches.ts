// batches.ts: jobs made in one call, and seen as one.
import {
  type Batch,
  type BatchId,
  Failure,
  type JobId,
  type JobState,
  jobStates,
  type TenantId,
} from '@berth/contracts'
import { cancelUnfinished } from './cancel.js'
import type { Access, Batches } from './repositories.js'
import type { Statement, Store } from './store.js'
import { iso } from './views.js'

interface BatchRow {
  readonly id: BatchId
  readonly tenant_id: TenantId
  readonly name: string | null
  readonly total: number
  readonly created_at: string
  readonly finished_at: string | null
  readonly counts: Readonly<Partial<Record<JobState, number>>>
}

const readOne: Statement = {
  name: 'read_batch',
  text: `SELECT b.id, b.tenant_id, b.name, b.total, ${iso('b.created_at')} AS created_at, c.counts, CASE WHEN c.unfinished = 0
           THEN ${iso('c.finished_at')} END AS finished_at
         FROM batches b CROSS JOIN LATERAL (
           SELECT coalesce(json_object_agg(s.state, s.jobs), '{}') AS counts, max(s.finished_at) AS finished_at,
             coalesce(sum(s.jobs) FILTER (WHERE s.state IN ('queued', 'placed', 'running')), 0) AS unfinished
           FROM (SELECT j.state, count(*) AS jobs, max(j.finished_at) AS finished_at FROM jobs j
                 WHERE j.batch_id = b.id GROUP BY j.state) s) c
         WHERE b.id = $1`,
}

/** @throws batch_not_found */
export async function readBatch(store: Store, access: Access, id: BatchId): Promise<Batch> {
  const [row] = await store.rows<BatchRow>(readOne, [id])
  if (!row || (access !== 'operator' && access.tenantId !== row.tenant_id))
    throw new Failure('batch_not_found', `there is no batch ${id}`)
  const count = (state: JobState) => row.counts[state] ?? 0
  return {
    id: row.id,
    name: row.name,
    createdAt: row.created_at,
    finishedAt: row.finished_at,
    counts: {
      queued: count('queued'),
      placed: count('placed'),
      running: count('running'),
      succeeded: count('succeeded'),
      failed: count('failed'),
      timed_out: count('timed_out'),
      canceled: count('canceled'),
    },
    total: row.total,
  }
}

const unfinishedJobs: Statement = {
  name: 'unfinished_jobs_of_batch',
  text: `SELECT id, tenant_id FROM jobs WHERE batch_id = $1 AND state = ANY($2) ORDER BY id`,
}

async function cancel(store: Store, access: Access, id: BatchId, by: string): ReturnType<Batches['cancel']> {
  await readBatch(store, access, id)
  const unfinished = jobStates.filter((state) => ['queued', 'placed', 'running'].includes(state))
  const jobs = await store.rows<{ id: JobId; tenant_id: TenantId }>(unfinishedJobs, [id, unfinished])
  const [first] = jobs
  const ids = jobs.map((job) => job.id)
  const done = first
    ? await cancelUnfinished(store, first.tenant_id, ids, 'canceled', by)
    : { cancels: [], changed: [] }
  return { batch: await readBatch(store, access, id), ...done }
}

export const openBatches = (store: Store): Batches => ({
  get: (access, id) => readBatch(store, access, id),
  cancel: (access, id, by) => cancel(store, access, id, by),
})
