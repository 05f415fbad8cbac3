import { readFileSync, writeFileSync } from 'node:fs'
import type { SandboxState } from '@berth/contracts'
import { describe, expect, test } from '@jest/globals'
import {
  type AttemptEvent,
  attemptLifecycle,
  type BuildEvent,
  buildLifecycle,
  type JobEvent,
  jobLifecycle,
  type Lifecycle,
  type SandboxRequestKind,
  sandboxLifecycle,
  sandboxRequests,
} from './lifecycle.js'

function attempt<S extends string, E extends string>(table: Lifecycle<S, E>, from: S, event: E): S | 'refused' {
  if (!table.allowed(from, event)) {
    expect(() => table.next(from, event)).toThrow(expect.objectContaining({ code: 'wrong_state' }))
    return 'refused'
  }
  return table.next(from, event)
}

const jobEvents: readonly JobEvent[] = ['place', 'start', 'succeed', 'fail', 'time_out', 'cancel', 'retry']
const attemptEvents: readonly AttemptEvent[] = ['start', 'succeed', 'fail', 'time_out', 'cancel', 'lose']

// Every pair of state and event, as one row a state; '-' is refused.
test.each([
  ['queued', 'placed - - - timed_out canceled -'],
  ['placed', '- running succeeded failed timed_out canceled queued'],
  ['running', '- - succeeded failed timed_out canceled queued'],
  ['succeeded', '- - - - - - -'],
  ['failed', '- - - - - - -'],
  ['timed_out', '- - - - - - -'],
  ['canceled', '- - - - - - -'],
] as const)('a %s job', (state, row) => {
  const got = jobEvents.map((event) => attempt(jobLifecycle, state, event))
  expect(got.map((to) => (to === 'refused' ? '-' : to)).join(' ')).toBe(row)
})

test.each([
  ['placed', 'running succeeded failed timed_out canceled lost'],
  ['running', '- succeeded failed timed_out canceled lost'],
  ['succeeded', '- - - - - -'],
  ['failed', '- - - - - -'],
  ['timed_out', '- - - - - -'],
  ['canceled', '- - - - - -'],
  ['lost', '- - - - - -'],
] as const)('a %s attempt', (state, row) => {
  const got = attemptEvents.map((event) => attempt(attemptLifecycle, state, event))
  expect(got.map((to) => (to === 'refused' ? '-' : to)).join(' ')).toBe(row)
})

const buildEvents: readonly BuildEvent[] = ['succeed', 'fail', 'cancel']
test.each([
  ['running', 'succeeded failed canceled'],
  ['succeeded', '- - -'],
  ['failed', '- - -'],
  ['canceled', '- - -'],
] as const)('a %s build', (state, row) => {
  const got = buildEvents.map((event) => attempt(buildLifecycle, state, event))
  expect(got.map((to) => (to === 'refused' ? '-' : to)).join(' ')).toBe(row)
})

// start stop kill signal restart pause resume resize edit delete force_delete
test.each([
  ['creating', 'creating creating creating - creating - - creating creating - deleted'],
  ['running', 'running running running running creating running running running running - deleted'],
  ['paused', '- paused paused paused creating paused paused paused paused - deleted'],
  ['stopped', 'creating stopped - - creating - - stopped stopped deleted deleted'],
  ['failed', 'creating failed - - creating - - failed failed deleted deleted'],
  ['lost', '- lost - - - - - - lost deleted deleted'],
  ['deleted', '- - - - - - - - - deleted deleted'],
] as const)('a %s sandbox', (state, row) => {
  const got = sandboxRequests.map((request) => attempt(sandboxLifecycle, state, request))
  expect(got.map((to) => (to === 'refused' ? '-' : to)).join(' ')).toBe(row)
})

describe('a refusal', () => {
  test('names the subject, its state, and the states that would do', () => {
    expect(() => jobLifecycle.next('failed', 'start', 'job job_1')).toThrow('job job_1 is failed; start needs placed')
  })
  test('states without events are the final ones', () => {
    expect(jobLifecycle.states.filter(jobLifecycle.isFinal)).toEqual(['succeeded', 'failed', 'timed_out', 'canceled'])
  })
})

test('docs/sandboxes.md shows the table of requests (UPDATE_GOLDEN=1 writes it)', () => {
  const path = new URL('../../../docs/sandboxes.md', import.meta.url)
  const [begin, end] = ['<!-- requests: made from libs/domain/src/lifecycle.ts -->\n', '<!-- end -->']
  const { states, allowed, next } = sandboxLifecycle
  const row = (cells: readonly string[]) => `| ${cells.join(' | ')} |\n`
  const cell = (state: SandboxState, request: SandboxRequestKind) =>
    allowed(state, request) ? `\`${next(state, request)}\`` : '-'
  const table = [
    row(['request', ...states.map((state) => `\`${state}\``)]),
    row(['request', ...states].map(() => '---')),
    ...sandboxRequests.map((request) =>
      row([request.replace('force_delete', '`delete?force=true`'), ...states.map((state) => cell(state, request))]),
    ),
  ].join('')
  const text = readFileSync(path, 'utf8')
  const golden = `${text.slice(0, text.indexOf(begin) + begin.length)}\n${table}\n${text.slice(text.indexOf(end))}`
  if (process.env.UPDATE_GOLDEN) writeFileSync(path, golden)
  expect(readFileSync(path, 'utf8')).toBe(golden)
})
