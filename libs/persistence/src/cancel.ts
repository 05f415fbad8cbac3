// cancel.ts: asking for the end of unfinished jobs. Queued ones end at once; of those that a node has, the row says
// what is wanted and the node is told, again and again, until it has heard.
import type { CancelAttempt, JobId, TenantId } from '@berth/contracts'
import { endQueued } from './ending.js'
import type { Addressed, JobChange } from './repositories.js'
import type { Statement, Store } from './store.js'
import { type CancelRow, cancelCommand } from './views.js'

// A job keeps its first cause: a cancel after a passed deadline changes nothing, nor the other way round.
const markCanceled: Statement = {
  name: 'mark_canceled',
  text: `WITH job AS MATERIALIZED (
      SELECT id FROM jobs WHERE id = ANY($1) AND state IN ('placed', 'running') AND cancel_cause IS NULL
      ORDER BY id FOR UPDATE
    ), marked AS (
      UPDATE jobs j SET cancel_cause = $2, cancel_by = $3, cancel_requested_at = $4 FROM job WHERE j.id = job.id
      RETURNING j.id, j.cancel_cause, j.cancel_by
    )
    UPDATE attempts a SET generation = a.generation + 1, commanded_at = $4 FROM marked m
    WHERE a.job_id = m.id AND a.finished_at IS NULL
    RETURNING a.id, a.node_id, a.generation, m.cancel_cause, m.cancel_by`,
}

const notCanceled: Statement = {
  name: 'not_canceled',
  text: `SELECT id FROM jobs WHERE id = ANY($1) AND finished_at IS NULL AND cancel_cause IS NULL`,
}

export interface Canceled {
  readonly cancels: readonly Addressed<CancelAttempt>[]
  readonly changed: readonly JobChange[]
}

/** A job may be placed, or queued for its next attempt, between two looks; more often than this it is not. */
const LOOKS = 10

/**
 * Ends those of a tenant's jobs that are queued, and marks those on a node. Ended ones, and those already marked, stay
 * as they are.
 */
export async function cancelUnfinished(
  store: Store,
  tenantId: TenantId,
  ids: readonly JobId[],
  cause: CancelAttempt['cause'],
  by: string,
): Promise<Canceled> {
  const cancels: Addressed<CancelAttempt>[] = []
  const changed: JobChange[] = []
  let open = ids
  for (let look = 0; look < LOOKS && open.length > 0; look++) {
    changed.push(...(await endQueued(store, tenantId, open, cause, by)))
    const rows = await store.rows<CancelRow>(markCanceled, [open, cause, by, store.clock.now()])
    cancels.push(...rows.map(cancelCommand))
    open = (await store.rows<{ id: JobId }>(notCanceled, [open])).map(({ id }) => id)
  }
  return { cancels, changed }
}
