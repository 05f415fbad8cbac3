// outcome.plan.ts: what an attempt's end means. Several things may be true of one end (a job that was canceled while it
// ran out of memory); what is told is, in this order: it never ran · somebody ended it · its timeout did · memory ran
// out · the sandbox vanished · its own exit. A cancel goes before the timeout because a person asked for it.

import type { AttemptFinished, ReasonCode } from '@berth/contracts'
import type { MainEnd } from '../runtime/processes.js'

/** Why an attempt never got as far as running its command. */
export type NotRun = {
  readonly kind: 'notRun'
  readonly code: Extract<ReasonCode, 'image_not_found' | 'user_not_found' | 'start_failed'>
  readonly message: string
}

/** A cancel came before there was anything to end. */
export type Withdrawn = { readonly kind: 'withdrawn' }

export type Ending = MainEnd | NotRun | Withdrawn

export interface Circumstances {
  readonly cancel: { readonly cause: 'canceled' | 'deadline_exceeded'; readonly by: string } | undefined
  /** Processes of the sandbox that the kernel killed for memory. */
  readonly oomKills: number
  /** The agent ended it since berth-init had not, well after its timeout. */
  readonly overdue: boolean
  readonly limits: { readonly memoryBytes: number; readonly timeoutMs: number }
}

export type Outcome = Pick<AttemptFinished, 'outcome' | 'exitCode' | 'signal' | 'oomKilled' | 'reason'>

/** Signals of Linux by their number (signal(7), x86 and arm). */
const signals = (
  'HUP INT QUIT ILL TRAP ABRT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM TERM STKFLT CHLD CONT STOP TSTP TTIN TTOU URG ' +
  'XCPU XFSZ VTALRM PROF WINCH IO PWR SYS'
).split(' ')

/** 15 → `SIGTERM`; real-time signals by their number: `SIG34`. */
export const signalName = (signal: number) => `SIG${signals[signal - 1] ?? signal}`

/** Error numbers that starting a program meets (errno(3), the same on x86 and arm). */
const ENOENT = 2
const errorNames: Readonly<Record<number, string>> = {
  1: 'EPERM',
  2: 'ENOENT',
  7: 'E2BIG',
  8: 'ENOEXEC',
  11: 'EAGAIN',
  12: 'ENOMEM',
  13: 'EACCES',
  20: 'ENOTDIR',
  21: 'EISDIR',
  22: 'EINVAL',
  26: 'ETXTBSY',
  36: 'ENAMETOOLONG',
  40: 'ELOOP',
}

/** The outcome and reason of an attempt. */
export function decideOutcome(ending: Ending, about: Circumstances): Outcome {
  if (ending.kind === 'notRun') return notRun(ending, about)
  const status = statusOf(ending)
  const oomKilled = about.oomKills > 0 && !endedWell(ending)
  if (about.cancel) return { ...status, oomKilled, ...canceled(about.cancel) }
  if (about.overdue || (ending.kind === 'exited' && ending.exit.cause === 'timeout'))
    return { ...status, oomKilled: false, ...timedOut(about.limits.timeoutMs) }
  if (oomKilled) return { ...status, oomKilled, ...outOfMemory(about.limits.memoryBytes) }
  return { ...status, oomKilled, ...ownEnd(ending) }
}

type Verdict = Pick<Outcome, 'outcome' | 'reason'>

const verdict = (outcome: Outcome['outcome'], code: ReasonCode, message: string, by = 'sandbox'): Verdict => ({
  outcome,
  reason: { code, message: message.slice(0, 2000), by },
})

const endedWell = (ending: Ending) => ending.kind === 'exited' && ending.exit.exitCode === 0

/** A command that could not be executed gets a shell's 126 or 127. */
function statusOf(ending: Exclude<Ending, NotRun>): Pick<Outcome, 'exitCode' | 'signal'> {
  if (ending.kind === 'exited') {
    const { exitCode, signal } = ending.exit
    return { exitCode: exitCode ?? null, signal: signal === undefined ? null : signalName(signal) }
  }
  if (ending.kind === 'failed' && ending.stage === 'exec')
    return { exitCode: ending.errno === ENOENT ? 127 : 126, signal: null }
  return { exitCode: null, signal: null }
}

function notRun({ code, message }: NotRun, about: Circumstances): Outcome {
  // A limit so small that not even the container could be set up.
  if (about.oomKills > 0)
    return { exitCode: null, signal: null, oomKilled: true, ...outOfMemory(about.limits.memoryBytes) }
  return { exitCode: null, signal: null, oomKilled: false, ...verdict('failed', code, message, 'agent') }
}

function canceled({ cause, by }: NonNullable<Circumstances['cancel']>): Verdict {
  if (cause === 'canceled') return verdict('canceled', 'canceled', 'canceled on request', by)
  return verdict('timed_out', 'deadline_exceeded', 'the deadline of the job passed', by)
}

const timedOut = (timeoutMs: number) =>
  verdict('timed_out', 'timeout', `ran longer than its timeout of ${timeoutMs} ms`)

const outOfMemory = (bytes: number) =>
  verdict(
    'failed',
    'oom_killed',
    `ran out of memory: the limit is ${bytes} bytes for the sandbox, and less if its tenant's is reached`,
  )

function ownEnd(ending: Exclude<Ending, NotRun>): Verdict {
  switch (ending.kind) {
    case 'exited':
      return exited(ending.exit)
    case 'failed':
      return failed(ending)
    case 'gone':
      return verdict('lost', 'sandbox_lost', `the sandbox vanished: ${ending.error.message}`, 'agent')
    case 'withdrawn':
      return verdict('canceled', 'canceled', 'canceled before it started', 'agent')
  }
}

function exited({ exitCode, signal }: Extract<MainEnd, { kind: 'exited' }>['exit']): Verdict {
  if (signal !== undefined) return verdict('failed', 'signaled', `ended by ${signalName(signal)}`)
  if (exitCode === 0) return verdict('succeeded', 'completed', 'exit code 0')
  return verdict('failed', 'exit_nonzero', `exit code ${exitCode}`)
}

function failed({ stage, errno }: Extract<MainEnd, { kind: 'failed' }>): Verdict {
  const why = errorNames[errno] ?? `errno ${errno}`
  if (stage === 'exec' && errno === ENOENT)
    return verdict('failed', 'command_not_found', 'the command, or the interpreter it names, was not found')
  if (stage === 'exec') return verdict('failed', 'command_not_executable', `the command could not be executed: ${why}`)
  if (stage === 'cwd')
    return verdict('failed', 'working_dir_not_found', `the working directory could not be entered: ${why}`)
  return verdict('failed', 'start_failed', `berth-init could not start the command (${stage}): ${why}`)
}
