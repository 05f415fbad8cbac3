// sandbox-due.ts: what is overdue for a sandbox, from its record and the time alone. Its node's silence is judged
// elsewhere (placement.ts, reconcile.ts): all of this is about a sandbox whose node lives.
import type { SandboxReason } from '@berth/contracts'
import { MISSING_MS, RESEND_AFTER_MS } from './reconcile.js'
import type { SandboxEvent, SandboxRecord } from './sandbox.js'

/** A command that has arrived is repeated after this long in a phase that should pass: it asks for the report anew. */
export const INSIST_AFTER_MS = 30_000
/** A start that has got no further for this long is given up. */
export const START_DEADLINE_MS = 5 * 60_000
/** A stop that is not done this long after its grace is repeated without any. */
export const STOP_DEADLINE_MS = 60_000
/** The warning before a deletion comes this long before it, or a tenth of the clock where that is shorter. */
export const DELETE_WARNING_MS = 60_000

/**
 * `missing`: given up as lost. `delete`: its clock has run out. `give_up`, `hurry`: its start or its stop takes too
 * long. `resend`: its command once more. `warn`: it will soon be deleted.
 */
export type SandboxDue = 'missing' | 'delete' | 'give_up' | 'hurry' | 'resend' | 'warn'

const warningAt = ({ deleteAt, spec }: SandboxRecord): number =>
  (deleteAt?.getTime() ?? Number.POSITIVE_INFINITY) - Math.min(DELETE_WARNING_MS, (spec.clocks.deleteAfterMs ?? 0) / 10)

function transient(record: SandboxRecord, since: (time: Date) => number): SandboxDue | undefined {
  const { state, desired, phase, phaseSince, requestedAt, stop, spec } = record
  const starting = desired === 'running' && state === 'creating' && phase !== 'backing_off'
  if (starting && since(phaseSince) >= START_DEADLINE_MS) return 'give_up'
  const grace = stop.graceMs ?? spec.stopGraceMs
  const ending = desired === 'stopped' && ['creating', 'running', 'paused'].includes(state)
  if (ending && record.holds && grace > 0 && since(requestedAt) >= grace + STOP_DEADLINE_MS) return 'hurry'
  return undefined
}

/** The one thing that is due now; what else may be is due again after it. */
export function sandboxDue(record: SandboxRecord, now: Date): SandboxDue | undefined {
  const since = (time: Date) => now.getTime() - time.getTime()
  if (record.missingSince !== null && since(record.missingSince) >= MISSING_MS) return 'missing'
  if (record.deleteAt !== null && record.deleteAt <= now) return 'delete'
  const late = transient(record, since)
  if (late) return late
  const pending = record.acknowledgedGeneration < record.generation
  const open = record.nodeId !== null && (pending || !record.settled)
  if (open && since(record.commandedAt) >= (pending ? RESEND_AFTER_MS : INSIST_AFTER_MS)) return 'resend'
  return !record.deleteWarned && warningAt(record) <= now.getTime() ? 'warn' : undefined
}

const acted = (record: SandboxRecord, reason: SandboxReason, graceMs: number | null, now: Date): SandboxRecord => ({
  ...record,
  desired: 'stopped',
  stop: { graceMs, signal: null, reason: { code: reason.code, message: reason.message, by: reason.by } },
  generation: record.generation + 1,
  requestedAt: now,
})

/** A start that does not get on has failed. What it holds is free when the node has cleaned up. */
export function startGivenUp(record: SandboxRecord, now: Date): SandboxRecord {
  const message = `it got no further than ${record.phase} for ${START_DEADLINE_MS / 60_000} minutes`
  const reason = { code: 'start_failed', message, at: now.toISOString(), by: 'api' } as const
  return { ...acted(record, reason, 0, now), state: 'failed', reason, endedAt: now }
}

/** The same stop, without grace. */
export const hurried = (record: SandboxRecord, now: Date): SandboxRecord =>
  acted(record, { ...record.stop.reason, at: now.toISOString() }, 0, now)

/** The warning before a deletion, and that it was given. */
export function deletionWarning(record: SandboxRecord, now: Date): { after: SandboxRecord; events: SandboxEvent[] } {
  const data = { clock: 'deleteAfterMs', endsAt: record.deleteAt?.toISOString() ?? null, run: record.run }
  const event = { type: 'sandbox.warning', at: now.toISOString(), subject: record.id, by: 'api', data } as const
  return { after: { ...record, deleteWarned: true }, events: [event] }
}
