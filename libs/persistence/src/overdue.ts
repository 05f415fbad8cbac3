// overdue.ts: finds by looking at rows what should have happened and has not, and acts on it. Nothing needs to be
// remembered between calls but one thing: since when this process could have heard of nodes. Were the API or Postgres
// away for longer than a node may be silent, every node would look lost on return.
import { type AttemptId, type JobId, MiB, type NodeId, type TenantId } from '@berth/contracts'
import { MISSING_MS, NODE_SILENT_MS, overdue, RESEND_AFTER_MS } from '@berth/domain'
import { cancelUnfinished } from './cancel.js'
import { type AttemptEnd, endAttempt } from './ending.js'
import type { Addressed, JobChange, Jobs, PlacedAttempt, Reconciled } from './repositories.js'
import type { Statement, Store } from './store.js'
import { type CancelRow, cancelCommand, runCommands } from './views.js'

/** Rows of each kind that one call deals with; the rest is found by the next. */
const PER_CALL = 500
/** Standard input that one call sends again at most. */
const MAX_STDIN_PER_CALL = 32 * MiB
/** Reconciling happens every second; a longer gap than this means that nobody listened meanwhile. */
const GAP_MS = 5_000

const acknowledgeAttempts: Statement = {
  name: 'acknowledge_attempts',
  text: `UPDATE attempts a SET acknowledged_generation = s.generation
         FROM unnest($2::text[], $3::integer[]) AS s(id, generation)
         WHERE a.id = s.id AND a.node_id = $1 AND a.finished_at IS NULL
           AND a.acknowledged_generation < s.generation AND s.generation <= a.generation`,
}

/** Notes which generations the node has seen. */
export async function acknowledge(store: Store, nodeId: NodeId, attempts: Parameters<Jobs['acknowledge']>[1]) {
  if (attempts.length === 0) return
  const values = [nodeId, attempts.map(({ id }) => id), attempts.map(({ generation }) => generation)]
  await store.rows(acknowledgeAttempts, values)
}

const passedDeadlines: Statement = {
  name: 'passed_deadlines',
  text: `SELECT id, tenant_id FROM jobs
         WHERE deadline <= $1 AND finished_at IS NULL AND cancel_cause IS NULL ORDER BY deadline LIMIT ${PER_CALL}`,
}

async function endDeadlines(store: Store, now: Date) {
  const rows = await store.rows<{ id: JobId; tenant_id: TenantId }>(passedDeadlines, [now])
  const cancels: Reconciled['cancels'][number][] = []
  const changed: JobChange[] = []
  for (const tenantId of new Set(rows.map((row) => row.tenant_id))) {
    const ids = rows.filter((row) => row.tenant_id === tenantId).map(({ id }) => id)
    const done = await cancelUnfinished(store, tenantId, ids, 'deadline_exceeded', 'api')
    cancels.push(...done.cancels)
    changed.push(...done.changed)
  }
  return { cancels, changed }
}

const markSilent: Statement = {
  name: 'mark_silent_nodes',
  text: `UPDATE nodes SET state = 'lost' WHERE state IN ('ready', 'draining') AND last_seen_at < $1`,
}

const lostAttempts: Statement = {
  name: 'lost_attempts',
  text: `SELECT a.id, n.state IS DISTINCT FROM 'lost' AND n.id IS NOT NULL AS node_lives
         FROM attempts a LEFT JOIN nodes n ON n.id = a.node_id
         WHERE a.finished_at IS NULL AND (n.id IS NULL OR n.state = 'lost' OR a.missing_since <= $1)
         ORDER BY a.id LIMIT ${PER_CALL}`,
}

/** The end of an attempt that nobody can tell of. */
export const lostEnd = (code: 'node_lost' | 'sandbox_lost', message: string, at: Date): AttemptEnd => ({
  outcome: 'lost',
  exitCode: null,
  signal: null,
  oomKilled: false,
  reason: { code, message, by: 'api' },
  usage: null,
  phases: { placeMs: null, imageMs: null, rootfsMs: null, startMs: null, runMs: null, finishMs: null },
  startedAt: null,
  finishedAt: at.toISOString(),
  stdout: '',
  stderr: '',
  reported: false,
})

async function giveUpLost(store: Store, now: Date): Promise<readonly JobChange[]> {
  const missing = new Date(now.getTime() - MISSING_MS)
  const rows = await store.rows<{ id: AttemptId; node_lives: boolean }>(lostAttempts, [missing])
  const changed: JobChange[] = []
  for (const { id, node_lives } of rows) {
    const end = node_lives
      ? lostEnd('sandbox_lost', 'the node no longer knows of the attempt', now)
      : lostEnd('node_lost', 'the node of the attempt has been silent for too long, or was removed', now)
    const change = await endAttempt(store, id, end, () => true)
    if (change) changed.push(change)
  }
  return changed
}

interface PendingRow {
  readonly id: AttemptId
  readonly node_id: NodeId
  readonly generation: number
  readonly acknowledged_generation: number
  readonly commanded_at: Date
  readonly missing_since: Date | null
  readonly stdin_bytes: number
  readonly cancel_cause: CancelRow['cancel_cause'] | null
  readonly cancel_by: string
}

const pendingCommands: Statement = {
  name: 'pending_commands',
  text: `SELECT a.id, a.node_id, a.generation, a.acknowledged_generation, a.commanded_at, a.missing_since,
                j.stdin_bytes, j.cancel_cause, j.cancel_by
         FROM attempts a JOIN jobs j ON j.id = a.job_id JOIN nodes n ON n.id = a.node_id
         WHERE a.finished_at IS NULL AND a.acknowledged_generation < a.generation AND a.commanded_at <= $1
           AND n.state <> 'lost'
         ORDER BY a.commanded_at, a.id LIMIT ${PER_CALL}`,
}

const noteCommanded: Statement = {
  name: 'note_commanded',
  text: `UPDATE attempts SET commanded_at = $2 WHERE id = ANY($1) AND finished_at IS NULL`,
}

const hasCause = (row: PendingRow): row is PendingRow & CancelRow => row.cancel_cause !== null

interface Pending {
  readonly runs: readonly PlacedAttempt[]
  readonly cancels: readonly Addressed<ReturnType<typeof cancelCommand>['command']>[]
}

// A node that has seen nothing of a canceled attempt is sent its run command too: the two arrive in whatever order, and
// with both the node can report the attempt's end, where a cancel alone is about something that it never heard of.
async function pending(store: Store, now: Date): Promise<Pending> {
  const due = new Date(now.getTime() - RESEND_AFTER_MS)
  const rows = (await store.rows<PendingRow>(pendingCommands, [due])).filter(
    (row) =>
      overdue(
        {
          id: row.id,
          generation: row.generation,
          acknowledgedGeneration: row.acknowledged_generation,
          commandedAt: row.commanded_at,
          missingSince: row.missing_since,
        },
        now,
      ) === 'resend',
  )
  let bytes = 0
  const end = rows.findIndex((row, i) => {
    bytes += row.stdin_bytes
    return i > 0 && bytes > MAX_STDIN_PER_CALL
  })
  const sent = end < 0 ? rows : rows.slice(0, end)
  if (sent.length === 0) return { runs: [], cancels: [] }
  await store.rows(noteCommanded, [sent.map((row) => row.id), now])
  const unseen = sent.filter((row) => row.cancel_cause === null || row.acknowledged_generation === 0)
  return {
    runs: await runCommands(
      store,
      unseen.map((row) => row.id),
    ),
    cancels: sent.filter(hasCause).map(cancelCommand),
  }
}

/**
 * Builds `jobs.reconcile`. A node counts as silent from its last sign of life, or from when this process began to
 * listen, whichever is later.
 */
export function openReconciler(store: Store): Jobs['reconcile'] {
  let listeningSince: number | undefined
  let lastCall = 0
  return async (now) => {
    if (listeningSince === undefined || now.getTime() - lastCall > GAP_MS) listeningSince = now.getTime()
    const { cancels, changed } = await endDeadlines(store, now)
    if (now.getTime() - listeningSince > NODE_SILENT_MS)
      await store.rows(markSilent, [new Date(now.getTime() - NODE_SILENT_MS)])
    const lost = await giveUpLost(store, now)
    const open = await pending(store, now)
    // Only a call that got this far has shown that Postgres could be reached, and so could heartbeats.
    lastCall = now.getTime()
    return {
      resend: open.runs,
      cancels: [...cancels, ...open.cancels],
      lost: lost.length,
      timedOut: changed.length,
      changed: [...changed, ...lost],
    }
  }
}
