import { type ChildProcess, spawn } from 'node:child_process'
import { Fault } from '@berth/contracts'

/** What became of a process: one shape for success, failure, timeout and cancel. */
export interface ProcessResult {
  readonly argv: readonly string[]
  /** Undefined when a signal ended it. */
  readonly exitCode: number | undefined
  readonly signal: NodeJS.Signals | undefined
  readonly stdout: string
  readonly stderr: string
  readonly timedOut: boolean
  readonly canceled: boolean
  /** More than `maxOutputBytes` came on stdout or stderr; the rest was read and dropped. */
  readonly truncated: boolean
  /** Milliseconds from the spawn to the end. */
  readonly wallMs: number
}

export interface RunOptions {
  /** After so many milliseconds the process group is killed. Default 30,000. */
  readonly timeoutMs?: number
  /** Kept bytes per stream. Default 1 MiB. */
  readonly maxOutputBytes?: number
  readonly cwd?: string
  /** The whole environment. By default PATH and LC_ALL=C only: a child never inherits the caller's secrets. */
  readonly env?: Readonly<Record<string, string>>
  /** Without it stdin is /dev/null. */
  readonly stdin?: string | Uint8Array
  readonly signal?: AbortSignal
}

/** What a child gets where nothing is said: never the secrets of its parent. */
export const bareEnvironment = {
  PATH: '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin',
  LC_ALL: 'C',
} as const

/** A daemonised descendant may keep the pipes open; after the process itself ended they are given this long. */
const heldOpenMs = 250

/**
 * Runs a program to its end. Never a shell; an exit code is a result, never an exception. At the timeout, or when
 * `signal` aborts, the whole process group is killed with SIGKILL.
 * @throws Fault when the program could not be started at all (ENOENT, EACCES, E2BIG, …)
 */
export function run(argv: readonly [string, ...string[]], options: RunOptions = {}): Promise<ProcessResult> {
  const started = performance.now()
  const [program, ...args] = argv
  const limit = options.maxOutputBytes ?? 1024 * 1024
  return new Promise((resolve, reject) => {
    const failed = (cause: unknown) => reject(new Fault(`start ${program}`, { cause }))
    const child = start(program, args, options, failed)
    if (!child) return
    const stdout = collect(child.stdout, limit)
    const stderr = collect(child.stderr, limit)
    const why = { timedOut: false, canceled: false }
    const end = (reason: keyof typeof why) => {
      if (child.exitCode !== null || child.signalCode !== null) return
      why[reason] = true
      killGroup(child)
    }
    const onAbort = () => end('canceled')
    const timer = setTimeout(() => end('timedOut'), options.timeoutMs ?? 30_000)
    let drain: NodeJS.Timeout | undefined
    const settle = () => {
      clearTimeout(timer)
      clearTimeout(drain)
      options.signal?.removeEventListener('abort', onAbort)
    }
    child.on('error', (cause) => {
      settle()
      failed(cause)
    })
    child.on('exit', () => {
      clearTimeout(timer)
      drain = setTimeout(() => {
        child.stdout?.destroy()
        child.stderr?.destroy()
      }, heldOpenMs)
    })
    child.on('close', (code, signal) => {
      settle()
      const [out, err] = [stdout(), stderr()]
      const wallMs = performance.now() - started
      const truncated = out.truncated || err.truncated
      resolve({
        argv,
        exitCode: code ?? undefined,
        signal: signal ?? undefined,
        stdout: out.text,
        stderr: err.text,
        ...why,
        truncated,
        wallMs,
      })
    })
    options.signal?.addEventListener('abort', onAbort)
    if (options.signal?.aborted) onAbort()
  })
}

/** The result itself when it exited 0. @throws CommandFailed otherwise */
export function expectSuccess(result: ProcessResult): ProcessResult {
  if (result.exitCode !== 0) throw new CommandFailed(result)
  return result
}

/** A program ended in another way than exit 0; the message holds reason, command and what it said on stderr. */
export class CommandFailed extends Fault {
  constructor(readonly result: ProcessResult) {
    super(printable(result.argv), { cause: new Error(`${reasonOf(result)}: ${said(result)}`) })
    this.name = 'CommandFailed'
  }
}

/** argv as text for messages and logs only: words with anything unusual are JSON strings. */
export function printable(argv: readonly string[]): string {
  return argv.map((word) => (/^[\w@%+=:,./-]+$/.test(word) ? word : JSON.stringify(word))).join(' ')
}

function reasonOf(result: ProcessResult): string {
  if (result.timedOut) return `timed out after ${Math.round(result.wallMs)} ms`
  if (result.canceled) return 'canceled'
  if (result.signal) return `ended by ${result.signal}`
  return `exit code ${result.exitCode}`
}

function said(result: ProcessResult): string {
  const text = (result.stderr.trim() || result.stdout.trim()).slice(-2000)
  return text || 'no output'
}

function start(
  program: string,
  args: readonly string[],
  options: RunOptions,
  failed: (cause: unknown) => void,
): ChildProcess | undefined {
  try {
    // `detached` makes it the leader of a process group of its own, which is what a timeout kills.
    const child = spawn(program, args, {
      cwd: options.cwd,
      env: options.env ?? bareEnvironment,
      detached: true,
      stdio: [options.stdin === undefined ? 'ignore' : 'pipe', 'pipe', 'pipe'],
    })
    // EPIPE: a program may end without reading its input, and its exit code tells what that meant.
    child.stdin?.on('error', () => child.stdin?.destroy())
    child.stdin?.end(options.stdin)
    return child
  } catch (cause) {
    failed(cause) // E2BIG, or a NUL byte in an argument, is thrown at once
    return undefined
  }
}

function killGroup(child: ChildProcess): void {
  if (child.pid === undefined) return
  try {
    process.kill(-child.pid, 'SIGKILL')
  } catch {
    child.kill('SIGKILL') // the group is gone or was never made; the child is ours until its exit is seen
  }
}

function collect(stream: NodeJS.ReadableStream | null, limit: number) {
  const chunks: Buffer[] = []
  let kept = 0
  let truncated = false
  stream?.on('data', (chunk: Buffer) => {
    const room = limit - kept
    if (chunk.length > room) truncated = true
    if (room <= 0) return
    const part = chunk.length > room ? chunk.subarray(0, room) : chunk
    chunks.push(part)
    kept += part.length
  })
  return () => ({ text: Buffer.concat(chunks).toString('utf8'), truncated })
}
