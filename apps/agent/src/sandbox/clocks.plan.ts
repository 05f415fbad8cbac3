// clocks.plan.ts: which of a sandbox's clocks runs out next, and when that has to be said. The node keeps three of the
// four, also while the API is away (the fourth, `deleteAfterMs`, is about a sandbox that has ended). All times are Unix
// milliseconds.
//
//   maxLifetimeMs   from the start by request; a restart by policy does not begin it anew, a pause does not stop it
//   idleTimeoutMs   from the last activity; it stands still while there is activity, and in pause
//   pausedForMs     from the pause
//
// None counts from before `from`, when a clock was last set.

import type { Clocks } from '@berth/contracts'

export interface ClockTimes {
  /** When a clock was last set. */
  readonly from: number
  /** When the present run by request began; undefined while nothing of it has run. */
  readonly startedAt: number | undefined
  /** Undefined where there was none yet. */
  readonly lastActivityAt: number | undefined
  /** There is activity now. */
  readonly active: boolean
  /** Undefined unless it is paused. */
  readonly pausedAt: number | undefined
}

export type NodeClock = Exclude<keyof Clocks, 'deleteAfterMs'>

export interface Deadline {
  readonly clock: NodeClock
  readonly at: number
  /** When to warn of it. */
  readonly warnAt: number
}

/** The warning comes this long before the end, or at nine tenths of a clock that is shorter than ten times that. */
const WARNING_MS = 60_000

/** The clock that runs out first; undefined where none runs. */
export function nextDeadline(clocks: Clocks, times: ClockTimes): Deadline | undefined {
  const { from, startedAt, lastActivityAt, active, pausedAt } = times
  if (startedAt === undefined) return undefined
  const since = (...moments: (number | undefined)[]) => Math.max(from, startedAt, ...moments.map((at) => at ?? 0))
  const deadlines = [
    deadline('maxLifetimeMs', clocks.maxLifetimeMs, since()),
    active || pausedAt !== undefined
      ? undefined
      : deadline('idleTimeoutMs', clocks.idleTimeoutMs, since(lastActivityAt)),
    pausedAt === undefined ? undefined : deadline('pausedForMs', clocks.pausedForMs, since(pausedAt)),
  ]
  return deadlines.reduce((first, next) => (next && (!first || next.at < first.at) ? next : first), undefined)
}

function deadline(clock: NodeClock, length: number | null, since: number): Deadline | undefined {
  if (length === null) return undefined
  const at = since + length
  return { clock, at, warnAt: at - Math.min(WARNING_MS, length / 10) }
}

/** Why a run that a clock ended has ended. */
export const clockReasons = {
  maxLifetimeMs: { code: 'lifetime_over', message: 'its maximum lifetime was over', by: 'agent' },
  idleTimeoutMs: { code: 'idle', message: 'it was idle for as long as it may be', by: 'agent' },
  pausedForMs: { code: 'paused_too_long', message: 'it was paused for as long as it may be', by: 'agent' },
} as const satisfies Record<NodeClock, object>
