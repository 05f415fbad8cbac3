// sandbox-end.plan.ts: the permanent record of how a run of a sandbox ended. What is told as the reason is, in this
// order: somebody ended it (a request, or a clock) · memory ran out · what the ending itself says.

import type { SandboxEnd, SandboxReasonCode } from '@berth/contracts'
import { type Ending, endedByMemory, outOfMemory, ownReason, statusOf } from './ending.plan.js'

/** What the control group of a run has counted. */
export interface RunUsage {
  readonly cpuUsageUs: number
  readonly cpuThrottledUs: number
  readonly memoryPeakBytes: number
  readonly oomKills: number
  readonly pidsRefused: number
}

/** Why a run is being ended. */
export interface StopReason {
  readonly code: SandboxReasonCode
  readonly message: string
  readonly by: string
}

export interface EndCircumstances {
  readonly run: number
  readonly restart: number
  /** Undefined where nobody ended it. */
  readonly stop: StopReason | undefined
  readonly memoryBytes: number
  /** Of its control group just before that goes; undefined where there was none any more. */
  readonly usage: RunUsage | undefined
  readonly startedAt: Date | undefined
  readonly endedAt: Date
}

const NOT_STARTED = { code: 'requested', message: 'ended before it had started', by: 'agent' } as const

export function sandboxEnd(ending: Ending, about: EndCircumstances): SandboxEnd {
  const { run, restart, usage, startedAt, endedAt } = about
  const oomKilled = endedByMemory(ending, usage?.oomKills ?? 0)
  return {
    run,
    restart,
    reason: { ...reasonOf(ending, oomKilled, about), at: endedAt.toISOString() },
    ...statusOf(ending),
    oomKilled,
    startedAt: startedAt?.toISOString() ?? null,
    endedAt: endedAt.toISOString(),
    usage: startedAt && usage ? usageOf(usage, ending, startedAt, endedAt) : null,
  }
}

function reasonOf(ending: Ending, oomKilled: boolean, { stop, memoryBytes }: EndCircumstances): StopReason {
  // What never ran failed for its own reason, whoever may have wanted it to end meanwhile.
  if (ending.kind === 'notRun') return oomKilled ? outOfMemory(memoryBytes) : ownReason(ending)
  if (stop) return { ...stop, message: stop.message.slice(0, 2000) }
  if (ending.kind === 'withdrawn') return NOT_STARTED
  return oomKilled ? outOfMemory(memoryBytes) : ownReason(ending)
}

function usageOf(usage: RunUsage, ending: Ending, startedAt: Date, endedAt: Date): SandboxEnd['usage'] {
  const wallMs = ending.kind === 'exited' ? ending.exit.wallMs : endedAt.getTime() - startedAt.getTime()
  return {
    wallMs: Math.max(0, round(wallMs)),
    cpuMs: round(usage.cpuUsageUs / 1000),
    cpuThrottledMs: round(usage.cpuThrottledUs / 1000),
    peakMemoryBytes: usage.memoryPeakBytes,
    oomKills: usage.oomKills,
    pidsRefused: usage.pidsRefused,
  }
}

const round = (ms: number) => Math.round(ms * 100) / 100
