// conclusion.plan.ts: the end of a run as the record of it, and what it means for the sandbox: another start, or that it
// is over.

import type { SandboxEnd, SandboxSpec } from '@berth/contracts'
import { afterRun } from '@berth/domain'
import type { Ending } from './ending.plan.js'
import type { ResidentState } from './resident-record.js'
import { type RunUsage, sandboxEnd } from './sandbox-end.plan.js'

export interface RunEnd {
  readonly ending: Ending
  readonly usage: RunUsage | undefined
  /** Unix milliseconds; null of a run that never was. */
  readonly startedAt: number | null
  readonly endedAt: number
}

export interface Conclusion {
  readonly end: SandboxEnd
  readonly change: Partial<ResidentState>
}

/** An end that somebody asked for is final whatever the policy; one whose restart is due counts as failed until then. */
export function conclude(
  state: ResidentState,
  spec: SandboxSpec,
  { ending, usage, startedAt, endedAt }: RunEnd,
): Conclusion {
  const { run, restart, inRow, stop, begunAt } = state
  const end = sandboxEnd(ending, {
    ...{ run, restart, usage, endedAt: new Date(endedAt) },
    stop: stop?.reason,
    memoryBytes: spec.limits.memoryBytes,
    startedAt: startedAt === null ? undefined : new Date(startedAt),
  })
  const { reason } = end
  const common = {
    ends: [...state.ends, end],
    endedAt,
    startedAt,
    begunAt: begunAt ?? startedAt,
    spawned: false,
    next: null,
    retryAt: 0,
  }
  const neverRan = ending.kind === 'notRun'
  if (stop !== null || ending.kind === 'withdrawn' || (neverRan && ending.final))
    return { end, change: { ...common, outcome: { state: neverRan ? 'failed' : 'stopped', reason } } }
  const ranMs = startedAt === null ? null : endedAt - startedAt
  const after = afterRun(spec.restart, { reason: reason.code, ranMs, inRow })
  if (after.kind === 'over') return { end, change: { ...common, outcome: { state: after.state, reason } } }
  return {
    end,
    change: {
      ...common,
      outcome: { state: 'failed', reason },
      inRow: after.inRow,
      next: { run, restart: restart + 1 },
      retryAt: endedAt + after.waitMs,
    },
  }
}
