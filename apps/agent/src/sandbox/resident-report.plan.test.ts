import { SandboxReport, sandboxReasonCodes } from '@berth/contracts'
import { describe, expect, test } from '@jest/globals'
import { applySandbox } from './node.fixture.js'
import { type ResidentPhase, residentPhases } from './resident.plan.js'
import { freshState, type ResidentState } from './resident-record.js'
import { reportOf, toldOf } from './resident-report.plan.js'

const reason = { code: 'exit_nonzero', message: 'exit code 1', at: '2026-01-01T00:00:00.000Z', by: 'sandbox' } as const
const outcome: ResidentState['outcome'] = { state: 'stopped', reason }
const state = (phase: ResidentPhase, more: Partial<ResidentState> = {}): ResidentState => ({
  ...freshState,
  phase,
  ...more,
})

describe('state and phase', () => {
  test.each<[ResidentPhase, Partial<ResidentState>, string, string]>([
    ['fresh', {}, 'creating', 'placing'],
    ['fresh', { outcome: { ...outcome, state: 'failed' } }, 'failed', 'stopped'],
    ['preparing', {}, 'creating', 'rootfs'],
    ['down', {}, 'stopped', 'stopped'],
    ['down', { outcome: { ...outcome, state: 'failed' } }, 'failed', 'stopped'],
    ['starting', {}, 'creating', 'starting'],
    ['up', {}, 'running', 'running'],
    ['freezing', {}, 'running', 'pausing'],
    ['frozen', { pausedAt: 1 }, 'paused', 'paused'],
    ['stopping', {}, 'running', 'stopping'],
    ['stopping', { pausedAt: 1 }, 'paused', 'stopping'],
    ['clearing', {}, 'running', 'stopping'],
    ['clearing', { next: { run: 1, restart: 1 } }, 'creating', 'stopping'],
    ['waiting', { next: { run: 1, restart: 1 } }, 'creating', 'backing_off'],
    ['removing', { outcome }, 'stopped', 'removing'],
    ['removed', {}, 'deleted', 'removed'],
    ['starting', { hidden: true, outcome }, 'stopped', 'stopped'],
    ['up', { hidden: true }, 'stopped', 'stopped'],
    ['stopping', { hidden: true, outcome: { ...outcome, state: 'failed' } }, 'failed', 'stopped'],
    ['clearing', { hidden: true }, 'stopped', 'stopped'],
  ])('%s %j', (phase, more, told, toldPhase) => {
    expect(toldOf(state(phase, more))).toEqual({ state: told, phase: toldPhase })
  })
})

test('a report of every phase is one that the API takes', () => {
  const command = applySandbox()
  const deadline = { clock: 'maxLifetimeMs', at: 5000, warnAt: 4000 } as const
  for (const phase of residentPhases)
    for (const more of [{}, { outcome }, { hidden: true, outcome, startedAt: 1, endedAt: 2, lastActivityAt: 3 }]) {
      const report = reportOf(command, state(phase, { sequence: 1, ...more }), deadline)
      expect(SandboxReport.parse(report)).toEqual(report)
    }
})

test('the reason is told while it is over or waits, and not while it runs', () => {
  const command = applySandbox()
  const told = (phase: ResidentPhase) => reportOf(command, state(phase, { outcome }), undefined).reason
  expect([told('down'), told('waiting')]).toEqual([reason, reason])
  expect([told('up'), told('starting'), told('stopping')]).toEqual([null, null, null])
  expect(sandboxReasonCodes).toContain(reason.code)
})
