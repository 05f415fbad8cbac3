// restart.ts: what the end of a run of a sandbox means by its restart policy: another run, and when, or that it is over.
// Only for ends that nobody asked for: a stop by request, or by a clock, is final whatever the policy.
import type { RestartPolicy, SandboxReasonCode, SandboxState } from '@berth/contracts'

/** The first wait; each further one in a row is twice as long. */
export const RESTART_FIRST_MS = 100
export const RESTART_MOST_MS = 60_000
/** A run that held this long was a good one: what is counted in a row begins anew. */
export const RESTART_RESET_MS = 10_000

export interface EndedRun {
  readonly reason: SandboxReasonCode
  /** How long it ran; null if it never did. */
  readonly ranMs: number | null
  /** Restarts in a row that led to it. */
  readonly inRow: number
}

export type AfterRun =
  | { readonly kind: 'restart'; readonly waitMs: number; readonly inRow: number }
  | { readonly kind: 'over'; readonly state: Extract<SandboxState, 'stopped' | 'failed'> }

/** What is wrong with the spec is wrong again the next time. */
const hopeless: ReadonlySet<SandboxReasonCode> = new Set([
  'command_not_found',
  'command_not_executable',
  'working_dir_not_found',
  'user_not_found',
  'image_not_found',
])

/** A run that never was has failed, and so has one whose restarts were given up. */
export function afterRun({ policy, maxRetries }: RestartPolicy, ended: EndedRun): AfterRun {
  const { reason, ranMs } = ended
  const neverRan = hopeless.has(reason) || reason === 'start_failed' || reason === 'image_unavailable'
  const over: AfterRun = { kind: 'over', state: neverRan ? 'failed' : 'stopped' }
  if (policy === 'no' || hopeless.has(reason)) return over
  if (policy === 'on-failure' && reason === 'completed') return over
  const inRow = ranMs !== null && ranMs >= RESTART_RESET_MS ? 0 : ended.inRow
  if (policy === 'on-failure' && inRow >= (maxRetries ?? Number.POSITIVE_INFINITY))
    return { kind: 'over', state: 'failed' }
  return { kind: 'restart', waitMs: restartWaitMs(inRow), inRow: inRow + 1 }
}

/** Wait before a restart that follows `inRow` others. */
export const restartWaitMs = (inRow: number): number => Math.min(RESTART_MOST_MS, RESTART_FIRST_MS * 2 ** inRow)
