// sandbox-overdue.ts: what heartbeats show of sandboxes, and what should have happened to them and has not. Like
// overdue.ts it looks at rows only; each thing found is decided again on the row as it is when it is changed.
import type { NodeId, SandboxId } from '@berth/contracts'
import {
  back,
  compareStanding,
  DELETE_WARNING_MS,
  deleted,
  deletionWarning,
  hurried,
  INSIST_AFTER_MS,
  MISSING_MS,
  missing,
  nodeRemoved,
  RESEND_AFTER_MS,
  type SandboxDue,
  type SandboxRecord,
  type SandboxStep,
  sandboxDue,
  silent,
  startGivenUp,
  stepTo,
} from '@berth/domain'
import type { ChangedSandbox, HeartbeatBody, SandboxChange, Sandboxes } from './repositories.js'
import { changedBy, changeSandboxes } from './sandbox-apply.js'
import { applyCommands } from './sandbox-rows.js'
import type { Statement, Store } from './store.js'

/** Rows of each kind that one call deals with; the rest is found by the next. */
const PER_CALL = 500

interface WantedRow {
  readonly id: SandboxId
  readonly generation: number
  readonly acknowledgedGeneration: number
  readonly missingSince: Date | null
  readonly silent: boolean
}

const wantedSandboxes: Statement = {
  name: 'wanted_sandboxes',
  text: `SELECT id, generation, acknowledged_generation AS "acknowledgedGeneration", missing_since AS "missingSince",
           lost_from IS NOT NULL AS silent
         FROM sandboxes WHERE node_id = $1 AND phase <> 'removed'`,
}

const acknowledge: Statement = {
  name: 'acknowledge_sandboxes',
  text: `UPDATE sandboxes s SET acknowledged_generation = a.generation
         FROM unnest($2::text[], $3::integer[]) AS a(id, generation)
         WHERE s.id = a.id AND s.node_id = $1 AND s.acknowledged_generation < a.generation
           AND a.generation <= s.generation`,
}

const noteMissing: Statement = {
  name: 'note_missing_sandboxes',
  text: `UPDATE sandboxes SET missing_since = CASE WHEN id = ANY($2) THEN $4::timestamptz END
         WHERE node_id = $1 AND id = ANY($2 || $3::text[])`,
}

async function changeAll(
  store: Store,
  ids: readonly SandboxId[],
  decide: (record: SandboxRecord, now: Date) => SandboxStep | undefined,
): Promise<readonly ChangedSandbox[]> {
  const changed: ChangedSandbox[] = []
  for (const id of ids) {
    const applied = await changeSandboxes(store, null, { id }, decide)
    if (applied) changed.push(changedBy(applied))
  }
  return changed
}

/** The step to a record that the API itself has concluded; none where it is the same. */
const concluded = (before: SandboxRecord, after: SandboxRecord, now: Date): SandboxStep | undefined =>
  after === before ? undefined : stepTo(before, after, now, { by: 'api' })

/** Compares a node's list with what it is to have. @returns what it must delete, and what has changed by its return */
export async function compareSandboxes(
  store: Store,
  nodeId: NodeId,
  said: HeartbeatBody['sandboxes'],
  now: Date,
): Promise<{ readonly unwanted: readonly SandboxId[]; readonly changed: readonly SandboxChange[] }> {
  const wanted = await store.rows<WantedRow>(wantedSandboxes, [nodeId])
  const found = compareStanding(wanted, said)
  const { acknowledged } = found
  if (acknowledged.length > 0) {
    const generations = acknowledged.map(({ generation }) => generation)
    await store.rows(acknowledge, [nodeId, acknowledged.map(({ id }) => id), generations])
  }
  if (found.missing.length + found.found.length > 0)
    await store.rows(noteMissing, [nodeId, found.missing, found.found, now])
  const listed = new Set(said.map(({ id }) => id))
  const returned = wanted.filter((row) => row.silent && listed.has(row.id)).map(({ id }) => id)
  const changed = await changeAll(store, returned, (record, at) => concluded(record, back(record), at))
  return { unwanted: found.strange, changed: changed.map(({ change }) => change) }
}

const sandboxesOn: Statement = {
  name: 'sandboxes_on_node',
  text: `SELECT id FROM sandboxes WHERE node_id = $1 AND phase <> 'removed' ORDER BY id LIMIT ${PER_CALL}`,
}

/** An operator has removed the node: its sandboxes are lost. */
export async function loseSandboxesOf(store: Store, nodeId: NodeId): Promise<readonly SandboxChange[]> {
  const changed: SandboxChange[] = []
  // Ends: nothing is placed on the node any more, and each round leaves fewer on it.
  for (;;) {
    const ids = (await store.rows<{ id: SandboxId }>(sandboxesOn, [nodeId])).map(({ id }) => id)
    if (ids.length === 0) return changed
    const lost = await changeAll(store, ids, (record, now) =>
      record.nodeId === nodeId ? concluded(record, nodeRemoved(record, nodeId, now), now) : undefined,
    )
    changed.push(...lost.map(({ change }) => change))
  }
}

const silentSandboxes: Statement = {
  name: 'silent_sandboxes',
  text: `SELECT s.id FROM nodes n JOIN sandboxes s ON s.node_id = n.id AND s.phase <> 'removed'
         WHERE n.state = 'lost' AND s.state NOT IN ('lost', 'deleted') ORDER BY s.id LIMIT ${PER_CALL}`,
}

const nodeIsLost: Statement = {
  name: 'node_is_lost',
  text: `SELECT 1 AS lost FROM sandboxes s JOIN nodes n ON n.id = s.node_id WHERE s.id = $1 AND n.state = 'lost'`,
}

async function loseSilent(store: Store): Promise<readonly ChangedSandbox[]> {
  const changed: ChangedSandbox[] = []
  for (const { id } of await store.rows<{ id: SandboxId }>(silentSandboxes, [])) {
    // The node may have come back since.
    const [still] = await store.rows<{ lost: number }>(nodeIsLost, [id])
    if (still)
      changed.push(...(await changeAll(store, [id], (record, now) => concluded(record, silent(record, now), now))))
  }
  return changed
}

// A branch for each partial index. Sandboxes of silent nodes wait for their node; a deletion by the clock does not.
const overdueSandboxes: Statement = {
  name: 'overdue_sandboxes',
  text: `WITH due AS (
      (SELECT id FROM sandboxes WHERE missing_since <= $1 ORDER BY missing_since LIMIT ${PER_CALL})
      UNION (SELECT id FROM sandboxes WHERE acknowledged_generation < generation AND commanded_at <= $2
        ORDER BY commanded_at LIMIT ${PER_CALL})
      UNION (SELECT id FROM sandboxes WHERE NOT settled AND commanded_at <= $3 ORDER BY commanded_at LIMIT ${PER_CALL})
    )
    SELECT s.id FROM due JOIN sandboxes s ON s.id = due.id JOIN nodes n ON n.id = s.node_id
    WHERE n.state <> 'lost' AND s.phase <> 'removed'
    UNION SELECT id FROM (
      SELECT id FROM sandboxes WHERE delete_at <= $5 OR (delete_at <= $4 AND NOT delete_warned)
      ORDER BY delete_at LIMIT ${PER_CALL}) d`,
}

const noteCommanded: Statement = {
  name: 'note_sandboxes_commanded',
  text: 'UPDATE sandboxes SET commanded_at = $2 WHERE id = ANY($1)',
}

const clockStop = {
  graceMs: null,
  signal: null,
  reason: { code: 'retention_over', message: 'deleteAfterMs has passed', by: 'api' },
} as const

/** What is done about what is due; undefined for what needs no change of the record. */
function actOn(record: SandboxRecord, due: SandboxDue, now: Date): SandboxStep | undefined {
  switch (due) {
    case 'missing':
      return concluded(record, missing(record, now), now)
    case 'delete':
      return concluded(record, deleted(record, clockStop, now), now)
    case 'give_up':
      return concluded(record, startGivenUp(record, now), now)
    case 'hurry':
      return concluded(record, hurried(record, now), now)
    case 'warn': {
      const { after, events } = deletionWarning(record, now)
      return stepTo(record, after, now, { by: 'api', events })
    }
    case 'resend':
      return undefined
  }
}

const before = (now: Date, ms: number): Date => new Date(now.getTime() - ms)

async function actOnOverdue(store: Store, now: Date) {
  const limits = [MISSING_MS, RESEND_AFTER_MS, INSIST_AFTER_MS, -DELETE_WARNING_MS, 0].map((ms) => before(now, ms))
  const ids = (await store.rows<{ id: SandboxId }>(overdueSandboxes, limits)).map(({ id }) => id)
  const resend = new Set<SandboxId>()
  const changed = await changeAll(store, ids, (record) => {
    const due = sandboxDue(record, now)
    if (due === 'resend') resend.add(record.id)
    else resend.delete(record.id)
    return due && actOn(record, due, now)
  })
  const again = [...resend]
  if (again.length > 0) await store.rows(noteCommanded, [again, now])
  return { changed, commands: await applyCommands(store, again) }
}

export function openSandboxReconciler(store: Store): Sandboxes['reconcile'] {
  return async (now) => {
    const lost = await loseSilent(store)
    const { changed, commands } = await actOnOverdue(store, now)
    const all = [...lost, ...changed]
    return {
      resend: commands,
      changed: all.map(({ change }) => change),
      commands: all.flatMap(({ command }) => command ?? []),
      freed: all.some(({ freed }) => freed),
    }
  }
}

// Only what its node has removed: until then the record says what is still to be done there.
const expire: Statement = {
  name: 'expire_sandboxes',
  text: `WITH gone AS (
      DELETE FROM sandboxes WHERE id IN (
        SELECT id FROM sandboxes WHERE expires_at <= $1 AND phase = 'removed' ORDER BY expires_at LIMIT $2
        FOR UPDATE SKIP LOCKED)
      RETURNING 1)
    SELECT count(*)::integer AS sandboxes FROM gone`,
}

/** Deletes up to `limit` records of sandboxes that were deleted long ago. @returns how many */
export async function expireSandboxes(store: Store, limit: number): Promise<number> {
  return (await store.rows<{ sandboxes: number }>(expire, [store.clock.now(), limit]))[0]?.sandboxes ?? 0
}
