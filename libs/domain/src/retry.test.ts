import { RetryPolicy } from '@berth/contracts'
import { describe, expect, test } from '@jest/globals'
import fc from 'fast-check'
import { afterAttempt, backoffMs, type Ended, type History, retryKind } from './retry.js'
import { now } from './sample.fixture.js'

const policy = RetryPolicy.parse({ maxAttempts: 3, backoffMs: '1s', factor: 3, maxBackoffMs: '5s' })
const failed: Ended = { outcome: 'failed', reason: 'exit_nonzero', exitCode: 1, signal: null, oomKilled: false }
const first: History = { number: 1, deadline: null, cancelRequested: false }

test.each<[string, Partial<Ended>, ReturnType<typeof retryKind>]>([
  ['a non-zero exit', {}, 'error'],
  ['a signal', { reason: 'signaled', exitCode: null, signal: 'SIGSEGV' }, 'error'],
  ['a command that does not exist', { reason: 'command_not_found', exitCode: 127 }, 'error'],
  ['out of memory', { reason: 'oom_killed', exitCode: null, signal: 'SIGKILL', oomKilled: true }, 'oom'],
  ['a time-out', { outcome: 'timed_out', reason: 'timeout', exitCode: null, signal: 'SIGKILL' }, 'timeout'],
  ['a passed deadline', { outcome: 'timed_out', reason: 'deadline_exceeded', exitCode: null }, undefined],
  ['a lost node', { outcome: 'lost', reason: 'node_lost', exitCode: null }, 'lost'],
  ['a sandbox that did not start', { reason: 'start_failed', exitCode: null }, 'lost'],
  ['an image that could not be brought', { reason: 'image_unavailable', exitCode: null }, 'lost'],
  ['an unknown image', { reason: 'image_not_found', exitCode: null }, undefined],
  ['an unknown user', { reason: 'user_not_found', exitCode: null }, undefined],
  ['success', { outcome: 'succeeded', reason: 'completed', exitCode: 0 }, undefined],
  ['a cancel', { outcome: 'canceled', reason: 'canceled', exitCode: null }, undefined],
])('%s is answered by the policy as %p → %s', (_, change, kind) => {
  expect(retryKind({ ...failed, ...change })).toBe(kind)
})

describe('after a failure', () => {
  test('tries again after the back-off, which grows up to its limit', () => {
    expect(afterAttempt(policy, failed, first, now)).toEqual({
      kind: 'retry',
      notBefore: new Date(now.getTime() + 1000),
    })
    expect([1, 2, 3, 4].map((n) => backoffMs(policy, n))).toEqual([1000, 3000, 5000, 5000])
  })
  test.each<[string, Partial<History>]>([
    ['the attempts are used up', { number: 3 }],
    ['somebody asked for its end', { cancelRequested: true }],
    ['the deadline comes before the next attempt', { deadline: new Date(now.getTime() + 1000) }],
  ])('ends as failed when %s', (_, change) => {
    expect(afterAttempt(policy, failed, { ...first, ...change }, now)).toEqual({ kind: 'final', state: 'failed' })
  })
  test('ends where the policy does not speak of this end', () => {
    expect(afterAttempt({ ...policy, on: ['oom'] }, failed, first, now).kind).toBe('final')
  })
})

test('a lost last attempt fails the job, or cancels it where that was asked for', () => {
  const lost: Ended = { outcome: 'lost', reason: 'node_lost', exitCode: null, signal: null, oomKilled: false }
  expect(afterAttempt(policy, lost, { ...first, number: 3 }, now)).toEqual({ kind: 'final', state: 'failed' })
  expect(afterAttempt(policy, lost, { ...first, cancelRequested: true }, now)).toEqual({
    kind: 'final',
    state: 'canceled',
  })
})

test('law: at most maxAttempts attempts, each wait between the first and the largest', () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 1, max: 20 }),
      fc.integer({ min: 0, max: 5000 }),
      fc.double({ min: 1, max: 10, noNaN: true }),
      (max, backoff, factor) => {
        const given = { ...policy, maxAttempts: max, backoffMs: backoff, factor }
        let number = 1
        for (;;) {
          const verdict = afterAttempt(given, failed, { ...first, number }, now)
          if (verdict.kind === 'final') break
          const wait = verdict.notBefore.getTime() - now.getTime()
          expect(wait).toBeGreaterThanOrEqual(Math.min(backoff, given.maxBackoffMs))
          expect(wait).toBeLessThanOrEqual(given.maxBackoffMs)
          number++
        }
        expect(number).toBe(max)
      },
    ),
  )
})
