// outcome.plan.ts: what an attempt's end means. Several things may be true of one end (a job that was canceled while it
// ran out of memory); what is told is, in this order: it never ran · somebody ended it · its timeout did · memory ran
// out · the sandbox vanished · its own exit. A cancel goes before the timeout because a person asked for it.

import type { AttemptFinished, ReasonCode } from '@berth/contracts'
import { type Ending, endedByMemory, type OwnReason, outOfMemory, ownReason, statusOf } from './ending.plan.js'

export type { Ending, NotRun } from './ending.plan.js'
export { signalName } from './ending.plan.js'

export interface Circumstances {
  readonly cancel: { readonly cause: 'canceled' | 'deadline_exceeded'; readonly by: string } | undefined
  /** Processes of the sandbox that the kernel killed for memory. */
  readonly oomKills: number
  /** The agent ended it since berth-init had not, well after its timeout. */
  readonly overdue: boolean
  readonly limits: { readonly memoryBytes: number; readonly timeoutMs: number }
}

export type Outcome = Pick<AttemptFinished, 'outcome' | 'exitCode' | 'signal' | 'oomKilled' | 'reason'>

/** The outcome and reason of an attempt. */
export function decideOutcome(ending: Ending, about: Circumstances): Outcome {
  const status = statusOf(ending)
  const oomKilled = endedByMemory(ending, about.oomKills)
  if (ending.kind === 'notRun')
    return { ...status, oomKilled, ...own(oomKilled ? outOfMemory(about.limits.memoryBytes) : ownReason(ending)) }
  if (about.cancel) return { ...status, oomKilled, ...canceled(about.cancel) }
  if (about.overdue || (ending.kind === 'exited' && ending.exit.cause === 'timeout'))
    return { ...status, oomKilled: false, ...timedOut(about.limits.timeoutMs) }
  if (oomKilled) return { ...status, oomKilled, ...own(outOfMemory(about.limits.memoryBytes)) }
  if (ending.kind === 'withdrawn')
    return { ...status, oomKilled, ...verdict('canceled', 'canceled', 'canceled before it started', 'agent') }
  return { ...status, oomKilled, ...own(ownReason(ending)) }
}

type Verdict = Pick<Outcome, 'outcome' | 'reason'>

const verdict = (outcome: Outcome['outcome'], code: ReasonCode, message: string, by = 'sandbox'): Verdict => ({
  outcome,
  reason: { code, message, by },
})

function own(reason: OwnReason): Verdict {
  const outcome = reason.code === 'completed' ? 'succeeded' : reason.code === 'sandbox_lost' ? 'lost' : 'failed'
  return { outcome, reason }
}

function canceled({ cause, by }: NonNullable<Circumstances['cancel']>): Verdict {
  if (cause === 'canceled') return verdict('canceled', 'canceled', 'canceled on request', by)
  return verdict('timed_out', 'deadline_exceeded', 'the deadline of the job passed', by)
}

const timedOut = (timeoutMs: number) =>
  verdict('timed_out', 'timeout', `ran longer than its timeout of ${timeoutMs} ms`)
