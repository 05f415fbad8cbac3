import { type ChildProcess, spawn } from 'node:child_process'
import { constants } from 'node:os'
import type { Readable, Writable } from 'node:stream'
import { Fault, ignore } from '@berth/contracts'
import { bareEnvironment } from './run.js'

/** How a process ended. */
export interface ProcessEnd {
  /** Undefined when a signal ended it. */
  readonly exitCode: number | undefined
  readonly signal: number | undefined
}

/** A process that runs on, with its input and output as streams. On a terminal there is no `stderr`. */
export interface StreamedProcess {
  readonly pid: number
  readonly stdin: Writable | undefined
  readonly stdout: Readable
  readonly stderr: Readable | undefined
  /** Resolves at its end. What it left behind may hold its output beyond that. */
  readonly ended: Promise<ProcessEnd>
  /** Of its terminal; without one nothing happens. */
  resize(rows: number, columns: number): void
}

export interface StreamOptions {
  readonly cwd?: string
  /** The whole environment; see `RunOptions`. */
  readonly env?: Readonly<Record<string, string>>
  /** Without it stdin is /dev/null. */
  readonly stdin?: boolean
}

/**
 * Starts a program, never a shell, as the leader of a process group of its own, and leaves its streams to the caller.
 * They must be read, or destroyed: a program that writes waits for its reader.
 * @throws Fault when it could not be started (ENOENT, EACCES, E2BIG, …)
 */
export async function stream(
  argv: readonly [string, ...string[]],
  options: StreamOptions = {},
): Promise<StreamedProcess> {
  const [program, ...args] = argv
  try {
    const child = spawn(program, args, {
      cwd: options.cwd,
      env: options.env ?? bareEnvironment,
      detached: true,
      stdio: [options.stdin ? 'pipe' : 'ignore', 'pipe', 'pipe'],
    })
    await spawned(child)
    return streamed(child)
  } catch (cause) {
    throw new Fault(`start ${program}`, { cause })
  }
}

/** Sends a signal to a process or, with `group`, to the group that it leads. One that is gone is fine. */
export function sendSignal(pid: number, signal: number, group: boolean): void {
  try {
    process.kill(group ? -pid : pid, signal)
  } catch (error) {
    ignore(error, 'ESRCH')
  }
}

function spawned(child: ChildProcess): Promise<void> {
  return new Promise((resolve, reject) => {
    child.once('spawn', resolve)
    child.once('error', reject)
  })
}

function streamed(child: ChildProcess): StreamedProcess {
  const { pid, stdin, stdout, stderr } = child
  if (pid === undefined || !stdout || !stderr) throw new Error('it has no streams')
  // EPIPE: it may end without reading its input.
  stdin?.on('error', () => stdin.destroy())
  const ended = new Promise<ProcessEnd>((resolve) => {
    child.once('exit', (code, signal) => resolve({ exitCode: code ?? undefined, signal: numberOf(signal) }))
  })
  return { pid, stdin: stdin ?? undefined, stdout, stderr, ended, resize: () => undefined }
}

const numberOf = (signal: NodeJS.Signals | null) => (signal === null ? undefined : constants.signals[signal])
