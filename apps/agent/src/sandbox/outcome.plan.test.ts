import { describe, expect, test } from '@jest/globals'
import { type Circumstances, decideOutcome, type Ending, signalName } from './outcome.plan.js'

const numbers = { ENOENT: 2, ENOEXEC: 8, EAGAIN: 11, EACCES: 13 } as const
const nothing: Circumstances = {
  cancel: undefined,
  oomKills: 0,
  overdue: false,
  limits: { memoryBytes: 64, timeoutMs: 1000 },
}
const exit = (exitCode: number, cause: 'itself' | 'timeout' | 'shutdown' = 'itself'): Ending => ({
  kind: 'exited',
  exit: { exitCode, signal: undefined, cause, cpuMs: 1, peakMemoryBytes: 1, wallMs: 1 },
})
const killed = (signal: number, cause: 'itself' | 'timeout' = 'itself'): Ending => ({
  kind: 'exited',
  exit: { exitCode: undefined, signal, cause, cpuMs: 1, peakMemoryBytes: 1, wallMs: 1 },
})
const failed = (stage: 'fork' | 'setup' | 'cwd' | 'exec' | 'rlimit', errno: keyof typeof numbers): Ending => ({
  kind: 'failed',
  stage,
  errno: numbers[errno],
})
const gone: Ending = { kind: 'gone', error: new Error('connection refused') }
const notRun = (code: 'image_not_found' | 'user_not_found' | 'start_failed'): Ending => ({
  kind: 'notRun',
  code,
  message: 'because',
})
const oom = { oomKills: 1 }
const canceled = { cancel: { cause: 'canceled', by: 'key_1' } } as const
const deadline = { cancel: { cause: 'deadline_exceeded', by: 'api' } } as const

describe('decideOutcome', () => {
  test.each<[string, Ending, Partial<Circumstances>, string, string, number | null, string | null, boolean]>([
    ['exit 0', exit(0), {}, 'succeeded', 'completed', 0, null, false],
    ['exit 3', exit(3), {}, 'failed', 'exit_nonzero', 3, null, false],
    ['own exit 137 is no kill', exit(137), {}, 'failed', 'exit_nonzero', 137, null, false],
    ['a crash', killed(11), {}, 'failed', 'signaled', null, 'SIGSEGV', false],
    ['a kill that is no OOM', killed(9), {}, 'failed', 'signaled', null, 'SIGKILL', false],
    ['killed for memory', killed(9), oom, 'failed', 'oom_killed', null, 'SIGKILL', true],
    ['failed since a child was killed for memory', exit(1), oom, 'failed', 'oom_killed', 1, null, true],
    ['a child killed for memory, and fine nevertheless', exit(0), oom, 'succeeded', 'completed', 0, null, false],
    ['timeout, by SIGTERM', killed(15, 'timeout'), {}, 'timed_out', 'timeout', null, 'SIGTERM', false],
    ['timeout, handled with exit 0', exit(0, 'timeout'), {}, 'timed_out', 'timeout', 0, null, false],
    ['timeout goes before OOM', killed(9, 'timeout'), oom, 'timed_out', 'timeout', null, 'SIGKILL', false],
    ['overdue', gone, { overdue: true }, 'timed_out', 'timeout', null, null, false],
    ['canceled', killed(15), canceled, 'canceled', 'canceled', null, 'SIGTERM', false],
    ['canceled, handled with exit 0', exit(0), canceled, 'canceled', 'canceled', 0, null, false],
    ['canceled goes before timeout', killed(9, 'timeout'), canceled, 'canceled', 'canceled', null, 'SIGKILL', false],
    ['canceled and out of memory', killed(9), { ...canceled, ...oom }, 'canceled', 'canceled', null, 'SIGKILL', true],
    ['deadline', killed(15), deadline, 'timed_out', 'deadline_exceeded', null, 'SIGTERM', false],
    ['deadline before the start', { kind: 'withdrawn' }, deadline, 'timed_out', 'deadline_exceeded', null, null, false],
    ['canceled before the start', { kind: 'withdrawn' }, canceled, 'canceled', 'canceled', null, null, false],
    ['no such program', failed('exec', 'ENOENT'), {}, 'failed', 'command_not_found', 127, null, false],
    ['not executable', failed('exec', 'EACCES'), {}, 'failed', 'command_not_executable', 126, null, false],
    ['no binary format', failed('exec', 'ENOEXEC'), {}, 'failed', 'command_not_executable', 126, null, false],
    ['no such directory', failed('cwd', 'ENOENT'), {}, 'failed', 'working_dir_not_found', null, null, false],
    ['no fork', failed('fork', 'EAGAIN'), {}, 'failed', 'start_failed', null, null, false],
    ['sandbox gone', gone, {}, 'lost', 'sandbox_lost', null, null, false],
    ['sandbox gone for memory', gone, oom, 'failed', 'oom_killed', null, null, true],
    ['unknown image', notRun('image_not_found'), {}, 'failed', 'image_not_found', null, null, false],
    ['unknown user', notRun('user_not_found'), {}, 'failed', 'user_not_found', null, null, false],
    ['too little memory even to start', notRun('start_failed'), oom, 'failed', 'oom_killed', null, null, true],
    ['the runtime refused', notRun('start_failed'), {}, 'failed', 'start_failed', null, null, false],
  ])('%s', (_, ending, about, outcome, code, exitCode, signal, oomKilled) => {
    const decided = decideOutcome(ending, { ...nothing, ...about })
    expect(decided).toMatchObject({ outcome, exitCode, signal, oomKilled, reason: { code } })
    expect(decided.reason.message).not.toBe('')
  })

  test('who canceled is told', () => {
    expect(decideOutcome(killed(15), { ...nothing, ...canceled }).reason.by).toBe('key_1')
  })
})

test('signals have the names that kill(1) lists', () => {
  expect([1, 6, 9, 15, 29, 34].map(signalName)).toEqual(['SIGHUP', 'SIGABRT', 'SIGKILL', 'SIGTERM', 'SIGIO', 'SIG34'])
})
