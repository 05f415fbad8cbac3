import { type RestartPolicy, SandboxSpec } from '@berth/contracts'
import { describe, expect, test } from '@jest/globals'
import { conclude } from './conclusion.plan.js'
import type { Ending } from './ending.plan.js'
import { freshState, type ResidentState } from './resident-record.js'

const spec = (policy: RestartPolicy['policy'], maxRetries?: number) =>
  SandboxSpec.parse({ restart: { policy, ...(maxRetries === undefined ? {} : { maxRetries }) } })
const state = (more: Partial<ResidentState> = {}): ResidentState => ({
  ...freshState,
  phase: 'up',
  run: 2,
  spawned: true,
  ...more,
})
const exited = (exitCode: number): Ending => ({
  kind: 'exited',
  exit: { exitCode, signal: undefined, cause: 'itself', cpuMs: 1, peakMemoryBytes: 1, wallMs: 5 },
})
const stop: ResidentState['stop'] = {
  reason: { code: 'idle', message: 'idle', by: 'agent' },
  signal: 15,
  killAt: 0,
  generation: 1,
}
const end = (ending: Ending, startedAt: number | null = 1000) => ({
  ending,
  usage: undefined,
  startedAt,
  endedAt: 2000,
})

describe('what becomes of a sandbox whose run has ended', () => {
  test.each<[string, Partial<ResidentState>, SandboxSpec, Ending, string | undefined, number | undefined]>([
    ['it is over', {}, spec('no'), exited(1), 'stopped', undefined],
    ['its policy starts it again', {}, spec('always'), exited(0), 'failed', 2100],
    ['in a row the wait grows', { inRow: 3 }, spec('always'), exited(0), 'failed', 2800],
    ['its retries are spent', { inRow: 2 }, spec('on-failure', 2), exited(1), 'failed', undefined],
    ['it was stopped: final', { stop }, spec('always'), exited(1), 'stopped', undefined],
    ['it was withdrawn: final', {}, spec('always'), { kind: 'withdrawn' }, 'stopped', undefined],
    [
      'it could not start, and cannot',
      {},
      spec('always'),
      { kind: 'notRun', code: 'start_failed', message: 'no', final: true },
      'failed',
      undefined,
    ],
    [
      'it could not start, but may',
      {},
      spec('always'),
      { kind: 'notRun', code: 'start_failed', message: 'no' },
      'failed',
      2100,
    ],
    [
      'it could not start, and was stopped',
      { stop },
      spec('always'),
      { kind: 'notRun', code: 'start_failed', message: 'no' },
      'failed',
      undefined,
    ],
  ])('%s', (_, more, wanted, ending, outcome, retryAt) => {
    const { change } = conclude(state(more), wanted, end(ending))
    expect(change.outcome?.state).toBe(outcome)
    expect(change.next).toEqual(retryAt === undefined ? null : { run: 2, restart: 1 })
    expect(change.retryAt).toBe(retryAt ?? 0)
  })
})

test('the record is added, and nothing runs any more', () => {
  const before = state({ ends: [conclude(state({ run: 1 }), spec('no'), end(exited(0))).end], begunAt: 500 })
  const { end: record, change } = conclude(before, spec('no'), end(exited(3)))
  expect(record).toMatchObject({ run: 2, restart: 0, exitCode: 3, reason: { code: 'exit_nonzero' } })
  expect(change).toMatchObject({ spawned: false, startedAt: 1000, endedAt: 2000, begunAt: 500 })
  expect(change.ends?.map(({ run }) => run)).toEqual([1, 2])
})
