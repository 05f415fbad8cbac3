// resident.plan.ts: the life of a sandbox that stays, as a table and one decision. What is wanted of it arrives whole
// (any command may be lost, repeated or overtaken), so the next step follows from what is wanted and what is, never
// from what was asked last. The loop in resident.ts carries steps out; nothing else decides.
//
//   fresh → preparing → down ⇄ starting → up ⇄ freezing, frozen → stopping → clearing → down, or waiting → starting
//                        └→ removing → removed
//
// In `preparing`, `starting`, `freezing`, `clearing` and `removing` an operation is under way, which ends by itself.

import type { ApplySandbox } from '@berth/contracts'
import { lifecycle } from '@berth/domain'
import type { Deadline, NodeClock } from './clocks.plan.js'

/**
 * - `fresh`    nothing of it is on the node but its command
 * - `down`     its writable layer is there, and no container
 * - `up`       its container runs; of a hidden one there is no run (see `Observed.hidden`)
 * - `stopping` it was told to end; killed when its grace is over
 * - `clearing` the run has ended, what it held is released
 * - `waiting`  the restart policy starts it again when the back-off is over
 */
export const residentPhases = [
  ...(['fresh', 'preparing', 'down', 'starting', 'up', 'freezing', 'frozen', 'stopping', 'clearing'] as const),
  ...(['waiting', 'removing', 'removed'] as const),
] as const
export type ResidentPhase = (typeof residentPhases)[number]

/** `done` and `failed` are of the operation that is under way; `ended`: the container, or the start, came to an end. */
export const residentEvents = [
  ...(['prepare', 'start', 'freeze', 'thaw', 'stop', 'ended', 'wait', 'rest', 'remove', 'done', 'failed'] as const),
] as const
export type ResidentEvent = (typeof residentEvents)[number]

export const residentLifecycle = lifecycle<ResidentPhase, ResidentEvent>(residentPhases, {
  fresh: { prepare: 'preparing', remove: 'removing' },
  preparing: { done: 'down', failed: 'fresh' },
  down: { start: 'starting', remove: 'removing' },
  starting: { done: 'up', ended: 'clearing' },
  up: { freeze: 'freezing', stop: 'stopping', ended: 'clearing' },
  freezing: { done: 'frozen', failed: 'up', ended: 'clearing' },
  frozen: { thaw: 'up', stop: 'stopping', ended: 'clearing' },
  stopping: { stop: 'stopping', ended: 'clearing' },
  clearing: { done: 'down', wait: 'waiting', failed: 'clearing' },
  waiting: { start: 'starting', rest: 'down', remove: 'removing' },
  removing: { done: 'removed', failed: 'removing' },
  removed: {},
})

export interface Desire {
  readonly desired: ApplySandbox['desired']
  readonly generation: number
  /** Starts by request. */
  readonly run: number
  /** From being told to end until it is killed, by the newest command. */
  readonly graceMs: number
  /** Who needs its processes although it is stopped. */
  readonly leases: number
  /** Until then a hidden container stays after the last of them. */
  readonly hiddenUntil: number
}

/** What is, as the loop knows it. Times are Unix milliseconds. */
export interface Observed {
  readonly phase: ResidentPhase
  /** The container, if any, is only there for leases: no main process, and for everybody else it is stopped. */
  readonly hidden: boolean
  /** The newest run that was begun, or passed over because it was to stop before that. */
  readonly run: number
  /** Of `preparing` and `starting`: it is being broken off. */
  readonly aborted: boolean
  /** Of `fresh`: the run whose preparation failed. */
  readonly failedRun: number | undefined
  /** Of `waiting`: what comes next, and when. After a failed operation: when it is tried again. */
  readonly next: { readonly run: number; readonly restart: number } | undefined
  readonly retryAt: number
  /** Of `stopping`. */
  readonly killAt: number
  readonly killed: boolean
  /** The newest command that was taken into account for the stop. */
  readonly stopGeneration: number
  /** Limits of the group, and that of the writable layer, are not what the spec says; tried again after `resizeAt`. */
  readonly limitsDiffer: boolean
  readonly diskDiffers: boolean
  readonly resizeAt: number
  /** The clock that runs out next. */
  readonly deadline: Deadline | undefined
  /** The end of the clock that was warned of last. */
  readonly warnedOf: number | undefined
}

export type Step =
  | { readonly do: 'wait'; readonly until?: number }
  | { readonly do: 'prepare' | 'abort' | 'freeze' | 'thaw' | 'kill' | 'skip' | 'rest' | 'remove' | 'resize' | 'clear' }
  | { readonly do: 'start'; readonly run: number; readonly restart: number; readonly hidden: boolean }
  | { readonly do: 'stop'; readonly killAt: number; readonly clock?: NodeClock }
  | { readonly do: 'warn'; readonly deadline: Deadline }
  | { readonly do: 'end' }

const WAIT: Step = { do: 'wait' }
const until = (...times: readonly (number | undefined)[]): Step => {
  const at = Math.min(...times.map((time) => time ?? Number.POSITIVE_INFINITY))
  return Number.isFinite(at) ? { do: 'wait', until: at } : WAIT
}

/** The one thing to do now. Repeated until it says `wait`, and again whenever something has happened. */
export function nextStep(wanted: Desire, is: Observed, now: number): Step {
  switch (is.phase) {
    case 'fresh':
      return whileFresh(wanted, is)
    case 'down':
      return whileDown(wanted, is, now)
    case 'starting':
      return outdated(wanted, is) && !is.aborted ? { do: 'abort' } : WAIT
    case 'up':
      return is.hidden ? whileHidden(wanted, is, now) : whileUp(wanted, is, now)
    case 'frozen':
      return whileUp(wanted, is, now)
    case 'stopping':
      return whileStopping(wanted, is, now)
    case 'waiting':
      return whileWaiting(wanted, is, now)
    case 'clearing':
      return again(is, now, { do: 'clear' })
    case 'removing':
      return again(is, now, { do: 'remove' })
    case 'preparing':
      return wanted.desired === 'deleted' && !is.aborted ? { do: 'abort' } : WAIT
    case 'freezing':
      return WAIT
    case 'removed':
      return { do: 'end' }
  }
}

/** An operation that failed is tried again after a while; `retryAt` is infinite while it is under way. */
const again = (is: Observed, now: number, step: Step): Step => (is.retryAt <= now ? step : until(is.retryAt))

const wantsRun = ({ desired, run }: Desire, is: Observed) =>
  (desired === 'running' || desired === 'paused') && run > is.run
const wantsEnd = ({ desired }: Desire) => desired === 'stopped' || desired === 'deleted'

/** What is running, or about to, is not what is wanted any more. */
const outdated = (wanted: Desire, is: Observed): boolean =>
  is.hidden ? wanted.desired === 'deleted' || wantsRun(wanted, is) : wantsEnd(wanted) || wanted.run > is.run

function whileFresh(wanted: Desire, is: Observed): Step {
  if (wanted.desired === 'deleted') return { do: 'remove' }
  return is.failedRun === undefined || wanted.run > is.failedRun ? { do: 'prepare' } : WAIT
}

function whileDown(wanted: Desire, is: Observed, now: number): Step {
  if (wanted.desired === 'deleted') return { do: 'remove' }
  if (is.diskDiffers && is.resizeAt <= now) return { do: 'resize' }
  if (wantsRun(wanted, is)) return { do: 'start', run: wanted.run, restart: 0, hidden: false }
  // A start that was to stop before it came here: it is over, and not waited for.
  if (wanted.run > is.run) return { do: 'skip' }
  if (wanted.leases > 0 && is.retryAt <= now) return { do: 'start', run: is.run, restart: 0, hidden: true }
  return until(is.diskDiffers ? is.resizeAt : undefined, wanted.leases > 0 ? is.retryAt : undefined)
}

function whileHidden(wanted: Desire, is: Observed, now: number): Step {
  if (outdated(wanted, is)) return { do: 'stop', killAt: now }
  if (wanted.run > is.run) return { do: 'skip' }
  if (wanted.leases > 0) return WAIT
  return wanted.hiddenUntil <= now ? { do: 'stop', killAt: now } : until(wanted.hiddenUntil)
}

function whileUp(wanted: Desire, is: Observed, now: number): Step {
  const { deadline } = is
  if (outdated(wanted, is)) return { do: 'stop', killAt: now + wanted.graceMs }
  if (deadline && deadline.at <= now) return { do: 'stop', killAt: now + wanted.graceMs, clock: deadline.clock }
  if ((is.limitsDiffer || is.diskDiffers) && is.resizeAt <= now) return { do: 'resize' }
  if (wanted.desired === 'paused' && is.phase === 'up' && is.retryAt <= now) return { do: 'freeze' }
  if (wanted.desired === 'running' && is.phase === 'frozen') return { do: 'thaw' }
  const unwarned = deadline && is.warnedOf !== deadline.at ? deadline : undefined
  if (unwarned && unwarned.warnAt <= now) return { do: 'warn', deadline: unwarned }
  return until(
    unwarned?.warnAt ?? deadline?.at,
    is.limitsDiffer || is.diskDiffers ? is.resizeAt : undefined,
    wanted.desired === 'paused' && is.phase === 'up' ? is.retryAt : undefined,
  )
}

/** A later command may shorten the grace of a stop, and not lengthen it. */
function whileStopping(wanted: Desire, is: Observed, now: number): Step {
  if (is.killed) return WAIT
  const hurry = wanted.generation > is.stopGeneration && wantsEnd(wanted) && now + wanted.graceMs < is.killAt
  if (hurry) return { do: 'stop', killAt: now + wanted.graceMs }
  return is.killAt <= now ? { do: 'kill' } : until(is.killAt)
}

function whileWaiting(wanted: Desire, is: Observed, now: number): Step {
  if (wanted.desired === 'deleted') return { do: 'remove' }
  if (wanted.desired === 'stopped') return { do: 'rest' }
  if (wantsRun(wanted, is)) return { do: 'start', run: wanted.run, restart: 0, hidden: false }
  if (is.next && is.retryAt <= now) return { do: 'start', ...is.next, hidden: false }
  return until(is.retryAt)
}
