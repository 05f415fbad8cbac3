// ending.plan.ts: how a run came to its end, and what that says by itself, whatever was wanted of it: for jobs
// (outcome.plan.ts) and for sandboxes that stay (sandbox-end.plan.ts) alike.

import type { ReasonCode } from '@berth/contracts'
import type { MainEnd } from '../runtime/processes.js'

/** Why a run never got as far as its command. */
export type NotRun = {
  readonly kind: 'notRun'
  readonly code: Extract<ReasonCode, 'image_not_found' | 'image_unavailable' | 'user_not_found' | 'start_failed'>
  readonly message: string
  /** Another start would come to the same, whatever the restart policy. */
  readonly final?: boolean
}

/** Somebody ended it before there was anything to end. */
export type Withdrawn = { readonly kind: 'withdrawn' }

export type Ending = MainEnd | NotRun | Withdrawn

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

/** What an ending says of itself. */
export interface OwnReason {
  readonly code: Extract<
    ReasonCode,
    | 'completed'
    | 'exit_nonzero'
    | 'signaled'
    | 'oom_killed'
    | 'command_not_found'
    | 'command_not_executable'
    | 'working_dir_not_found'
    | 'user_not_found'
    | 'image_not_found'
    | 'image_unavailable'
    | 'start_failed'
    | 'sandbox_lost'
  >
  readonly message: string
  readonly by: 'sandbox' | 'agent'
}

export interface ExitStatus {
  readonly exitCode: number | null
  readonly signal: string | null
}

/** A command that could not be executed gets a shell's 126 or 127. */
export function statusOf(ending: Ending): ExitStatus {
  if (ending.kind === 'exited') {
    const { exitCode, signal } = ending.exit
    return { exitCode: exitCode ?? null, signal: signal === undefined ? null : signalName(signal) }
  }
  if (ending.kind === 'failed' && ending.stage === 'exec')
    return { exitCode: ending.errno === ENOENT ? 127 : 126, signal: null }
  return { exitCode: null, signal: null }
}

/**
 * Whether it ended for want of memory. A command that went on without a child of its own did not; one that never came
 * to run had a limit so small that not even the container could be set up.
 */
export const endedByMemory = (ending: Ending, oomKills: number) =>
  oomKills > 0 && ending.kind !== 'withdrawn' && !(ending.kind === 'exited' && ending.exit.exitCode === 0)

const reason = (code: OwnReason['code'], message: string, by: OwnReason['by'] = 'sandbox'): OwnReason => ({
  code,
  message: message.slice(0, 2000),
  by,
})

export const outOfMemory = (bytes: number): OwnReason =>
  reason(
    'oom_killed',
    `ran out of memory: the limit is ${bytes} bytes for the sandbox, and less if its tenant's is reached`,
  )

/** The reason that lies in the ending itself. */
export function ownReason(ending: Exclude<Ending, Withdrawn>): OwnReason {
  switch (ending.kind) {
    case 'exited':
      return exited(ending.exit)
    case 'failed':
      return failed(ending)
    case 'gone':
      return reason('sandbox_lost', `the sandbox vanished: ${ending.error.message}`, 'agent')
    case 'notRun':
      return reason(ending.code, ending.message, 'agent')
  }
}

function exited({ exitCode, signal }: Extract<MainEnd, { kind: 'exited' }>['exit']): OwnReason {
  if (signal !== undefined) return reason('signaled', `ended by ${signalName(signal)}`)
  if (exitCode === 0) return reason('completed', 'exit code 0')
  return reason('exit_nonzero', `exit code ${exitCode}`)
}

function failed({ stage, errno }: Extract<MainEnd, { kind: 'failed' }>): OwnReason {
  const why = errorNames[errno] ?? `errno ${errno}`
  if (stage === 'exec' && errno === ENOENT)
    return reason('command_not_found', 'the command, or the interpreter it names, was not found')
  if (stage === 'exec') return reason('command_not_executable', `the command could not be executed: ${why}`)
  if (stage === 'cwd') return reason('working_dir_not_found', `the working directory could not be entered: ${why}`)
  return reason('start_failed', `berth-init could not start the command (${stage}): ${why}`)
}
