// retry.ts: what the end of an attempt means for its job: another attempt, and when, or the end.
import type { AttemptFinished, JobState, RetryPolicy } from '@berth/contracts'

export type FinalState = Extract<JobState, 'succeeded' | 'failed' | 'timed_out' | 'canceled'>

export interface Ended {
  readonly outcome: AttemptFinished['outcome']
  readonly reason: AttemptFinished['reason']['code']
  readonly exitCode: number | null
  readonly signal: string | null
  readonly oomKilled: boolean
}

export interface History {
  /** Number of the attempt that ended, from 1. */
  readonly number: number
  readonly deadline: Date | null
  /** Somebody wants the job to end. */
  readonly cancelRequested: boolean
}

export type Verdict =
  | { readonly kind: 'retry'; readonly notBefore: Date }
  | { readonly kind: 'final'; readonly state: FinalState }

/**
 * Which part of a policy speaks of this end; undefined where none does. A sandbox that could not be started, or
 * whose image could not be brought to the node, counts as lost: it is Berth's trouble, not the command's. A wrong image,
 * user or directory would be wrong again.
 */
export function retryKind(ended: Ended): RetryPolicy['on'][number] | undefined {
  if (ended.outcome === 'lost' || ended.reason === 'start_failed' || ended.reason === 'image_unavailable') return 'lost'
  if (ended.outcome === 'timed_out') return ended.reason === 'timeout' ? 'timeout' : undefined
  if (ended.outcome !== 'failed') return undefined
  if (ended.oomKilled) return 'oom'
  return ended.exitCode !== null || ended.signal !== null ? 'error' : undefined
}

/** Wait in milliseconds after attempt `number` has ended. */
export const backoffMs = (policy: RetryPolicy, number: number): number =>
  Math.min(policy.maxBackoffMs, Math.round(policy.backoffMs * policy.factor ** (number - 1)))

/** A job whose last attempt was lost has failed, unless it was to end anyway. */
const finalState = (ended: Ended, history: History): FinalState =>
  ended.outcome !== 'lost' ? ended.outcome : history.cancelRequested ? 'canceled' : 'failed'

/**
 * What follows the end of an attempt. A retry that could not start before the deadline is not waited for: the job then
 * ends at once with its true result.
 */
export function afterAttempt(policy: RetryPolicy, ended: Ended, history: History, now: Date): Verdict {
  const kind = retryKind(ended)
  const again =
    kind !== undefined && policy.on.includes(kind) && history.number < policy.maxAttempts && !history.cancelRequested
  const notBefore = new Date(now.getTime() + backoffMs(policy, history.number))
  if (!again || (history.deadline !== null && notBefore >= history.deadline))
    return { kind: 'final', state: finalState(ended, history) }
  return { kind: 'retry', notBefore }
}
