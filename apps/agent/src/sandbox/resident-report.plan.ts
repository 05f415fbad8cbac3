// resident-report.plan.ts: what a sandbox is, as it is told to the API. A container that is only there for leases is
// nobody's business: of such a sandbox what it was before is told.

import type { ApplySandbox, SandboxPhase, SandboxReport } from '@berth/contracts'
import type { Deadline } from './clocks.plan.js'
import type { ResidentPhase } from './resident.plan.js'
import type { ResidentState } from './resident-record.js'

const phases: Readonly<Record<ResidentPhase, SandboxPhase>> = {
  fresh: 'placing',
  preparing: 'rootfs',
  down: 'stopped',
  starting: 'starting',
  up: 'running',
  freezing: 'pausing',
  frozen: 'paused',
  stopping: 'stopping',
  clearing: 'stopping',
  waiting: 'backing_off',
  removing: 'removing',
  removed: 'removed',
}

type Told = Pick<SandboxReport, 'state' | 'phase'>

/** State and phase as users and operators see them. */
export function toldOf({ phase, hidden, outcome, pausedAt, next }: ResidentState): Told {
  // One that is ended out of its pause is told as paused until it is over: nobody resumed it.
  const resumed = pausedAt === null ? 'running' : 'paused'
  const resting = outcome?.state ?? 'stopped'
  if (hidden && phase !== 'removing' && phase !== 'removed') return { state: resting, phase: 'stopped' }
  const told = (state: Told['state']): Told => ({ state, phase: phases[phase] })
  switch (phase) {
    case 'fresh':
      return outcome ? { state: outcome.state, phase: 'stopped' } : told('creating')
    case 'preparing':
    case 'starting':
    case 'waiting':
      return told('creating')
    case 'up':
    case 'freezing':
      return told('running')
    case 'frozen':
      return told('paused')
    case 'stopping':
      return told(resumed)
    case 'clearing':
      return told(next ? 'creating' : resumed)
    case 'down':
    case 'removing':
      return told(resting)
    case 'removed':
      return told('deleted')
  }
}

const iso = (at: number | null) => (at === null ? null : new Date(at).toISOString())

export function reportOf(
  command: Pick<ApplySandbox, 'sandboxId' | 'generation'>,
  state: ResidentState,
  deadline: Deadline | undefined,
): SandboxReport {
  const told = toldOf(state)
  const over = told.state === 'stopped' || told.state === 'failed' || told.phase === 'backing_off'
  return {
    kind: 'sandbox',
    sandboxId: command.sandboxId,
    generation: command.generation,
    sequence: state.sequence,
    ...told,
    reason: over ? (state.outcome?.reason ?? null) : null,
    run: state.run,
    restarts: state.restart,
    phases: state.phases,
    startedAt: iso(state.startedAt),
    endedAt: iso(state.endedAt),
    lastActivityAt: iso(state.lastActivityAt),
    endsAt: deadline ? { at: new Date(deadline.at).toISOString(), clock: deadline.clock } : null,
    ends: state.ends,
    notes: state.notes,
  }
}
