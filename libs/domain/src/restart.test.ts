import { type RestartPolicy, type SandboxReasonCode, sandboxReasonCodes } from '@berth/contracts'
import { describe, expect, test } from '@jest/globals'
import { afterRun, RESTART_MOST_MS, restartWaitMs } from './restart.js'

const on = (policy: RestartPolicy['policy'], maxRetries?: number): RestartPolicy => ({
  policy,
  ...(maxRetries === undefined ? {} : { maxRetries }),
})
const run = (reason: SandboxReasonCode, ranMs: number | null = 50, inRow = 0) => ({ reason, ranMs, inRow })

describe('policy × end', () => {
  const restart = { kind: 'restart', waitMs: 100, inRow: 1 } as const
  const stopped = { kind: 'over', state: 'stopped' } as const
  const failed = { kind: 'over', state: 'failed' } as const
  test.each<[RestartPolicy['policy'], SandboxReasonCode, object]>([
    ['no', 'completed', stopped],
    ['no', 'exit_nonzero', stopped],
    ['no', 'oom_killed', stopped],
    ['no', 'sandbox_lost', stopped],
    ['no', 'start_failed', failed],
    ['no', 'command_not_found', failed],
    ['on-failure', 'completed', stopped],
    ['on-failure', 'exit_nonzero', restart],
    ['on-failure', 'signaled', restart],
    ['on-failure', 'oom_killed', restart],
    ['on-failure', 'sandbox_lost', restart],
    ['on-failure', 'start_failed', restart],
    ['on-failure', 'user_not_found', failed],
    ['always', 'completed', restart],
    ['always', 'exit_nonzero', restart],
    ['always', 'sandbox_lost', restart],
    ['always', 'image_not_found', failed],
    ['unless-stopped', 'completed', restart],
    ['unless-stopped', 'signaled', restart],
    ['unless-stopped', 'working_dir_not_found', failed],
  ])('%s after %s', (policy, reason, expected) => {
    expect(afterRun(on(policy), run(reason))).toEqual(expected)
  })
})

test('waits double up to a minute', () => {
  expect([0, 1, 2, 3, 9, 10, 50, 2000].map(restartWaitMs)).toEqual([
    ...[100, 200, 400, 800, 51_200],
    ...[RESTART_MOST_MS, RESTART_MOST_MS, RESTART_MOST_MS],
  ])
})

test('after ten seconds of running the count begins anew', () => {
  expect(afterRun(on('always'), run('completed', 9_999, 5))).toEqual({ kind: 'restart', waitMs: 3_200, inRow: 6 })
  expect(afterRun(on('always'), run('completed', 10_000, 5))).toEqual({ kind: 'restart', waitMs: 100, inRow: 1 })
  expect(afterRun(on('always'), run('start_failed', null, 5))).toEqual({ kind: 'restart', waitMs: 3_200, inRow: 6 })
})

test('a number of retries is counted in a row, and then it has failed', () => {
  const two = on('on-failure', 2)
  expect(afterRun(two, run('exit_nonzero', 50, 1))).toMatchObject({ kind: 'restart' })
  expect(afterRun(two, run('exit_nonzero', 50, 2))).toEqual({ kind: 'over', state: 'failed' })
  expect(afterRun(two, run('exit_nonzero', 20_000, 2))).toMatchObject({ kind: 'restart', inRow: 1 })
  expect(afterRun(on('on-failure', 0), run('exit_nonzero'))).toEqual({ kind: 'over', state: 'failed' })
  expect(afterRun(on('always', 1), run('exit_nonzero', 50, 7))).toMatchObject({ kind: 'restart' })
})

test('every reason is either restarted by always, or has failed for good', () => {
  for (const reason of sandboxReasonCodes) {
    const next = afterRun(on('always'), run(reason))
    expect(next.kind === 'restart' || next.state === 'failed').toBe(true)
  }
})
