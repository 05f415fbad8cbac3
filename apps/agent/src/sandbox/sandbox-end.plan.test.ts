import { SandboxEnd } from '@berth/contracts'
import { describe, expect, test } from '@jest/globals'
import type { Ending } from './ending.plan.js'
import { type EndCircumstances, sandboxEnd } from './sandbox-end.plan.js'

const usage = {
  cpuUsageUs: 1_500,
  cpuThrottledUs: 2_000,
  memoryBytes: 1,
  memoryPeakBytes: 4096,
  oomKills: 0,
  pids: 1,
  pidsRefused: 3,
}
const about: EndCircumstances = {
  run: 2,
  restart: 1,
  stop: undefined,
  memoryBytes: 1000,
  usage,
  startedAt: new Date(1000),
  endedAt: new Date(3500),
}
const exit = (exitCode: number | undefined, signal?: number): Ending => ({
  kind: 'exited',
  exit: { exitCode, signal, cause: 'itself', cpuMs: 1, peakMemoryBytes: 1, wallMs: 2345.678 },
})
const gone: Ending = { kind: 'gone', error: new Error('refused') }
const withdrawn: Ending = { kind: 'withdrawn' }
const notRun: Ending = { kind: 'notRun', code: 'image_not_found', message: 'no such image' }
const stop = { code: 'idle', message: 'idle', by: 'agent' } as const
const oom = { ...usage, oomKills: 1 }

describe('the reason', () => {
  test.each<[string, Ending, Partial<EndCircumstances>, string, string, number | null, string | null, boolean]>([
    ['its own exit', exit(0), {}, 'completed', 'sandbox', 0, null, false],
    ['exit 3', exit(3), {}, 'exit_nonzero', 'sandbox', 3, null, false],
    ['a crash', exit(undefined, 11), {}, 'signaled', 'sandbox', null, 'SIGSEGV', false],
    ['a stop, whatever the exit', exit(0), { stop }, 'idle', 'agent', 0, null, false],
    ['a stop by SIGKILL', exit(undefined, 9), { stop }, 'idle', 'agent', null, 'SIGKILL', false],
    ['a stop of an idle sandbox', gone, { stop }, 'idle', 'agent', null, null, false],
    ['memory', exit(undefined, 9), { usage: oom }, 'oom_killed', 'sandbox', null, 'SIGKILL', true],
    ['memory, and stopped', exit(undefined, 9), { usage: oom, stop }, 'idle', 'agent', null, 'SIGKILL', true],
    ['a child killed for memory', exit(0), { usage: oom }, 'completed', 'sandbox', 0, null, false],
    ['vanished', gone, {}, 'sandbox_lost', 'agent', null, null, false],
    ['its init killed for memory', gone, { usage: oom }, 'oom_killed', 'sandbox', null, null, true],
    ['never ran', notRun, {}, 'image_not_found', 'agent', null, null, false],
    ['never ran, and stopped', notRun, { stop }, 'image_not_found', 'agent', null, null, false],
    ['withdrawn', withdrawn, { stop }, 'idle', 'agent', null, null, false],
    ['withdrawn for a new start', withdrawn, {}, 'requested', 'agent', null, null, false],
    [
      'no such program',
      { kind: 'failed', stage: 'exec', errno: 2 },
      {},
      'command_not_found',
      'sandbox',
      127,
      null,
      false,
    ],
  ])('%s', (_, ending, more, code, by, exitCode, signal, oomKilled) => {
    const end = sandboxEnd(ending, { ...about, ...more })
    expect(end).toMatchObject({ exitCode, signal, oomKilled, reason: { code, by, at: about.endedAt.toISOString() } })
    expect(SandboxEnd.parse(end)).toEqual(end)
  })
})

test('what it used is told where it ran and its group was still there', () => {
  expect(sandboxEnd(exit(0), about)).toMatchObject({
    run: 2,
    restart: 1,
    startedAt: '1970-01-01T00:00:01.000Z',
    usage: { wallMs: 2345.68, cpuMs: 1.5, cpuThrottledMs: 2, peakMemoryBytes: 4096, oomKills: 0, pidsRefused: 3 },
  })
  expect(sandboxEnd(gone, about).usage?.wallMs).toBe(2500)
  expect(sandboxEnd(gone, { ...about, usage: undefined }).usage).toBeNull()
  expect(sandboxEnd(notRun, { ...about, startedAt: undefined }).usage).toBeNull()
})
