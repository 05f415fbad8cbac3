import { type ChildProcess, spawn } from 'node:child_process'
import { Fault } from '@berth/contracts'
import { type Listener, type Running, Spawner } from './spawner.js'

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
  /** Of output: `latin1` has a character for each byte, and loses none that is no UTF-8. Default UTF-8. */
  readonly encoding?: 'utf8' | 'latin1'
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

/** berth-run is started again this long after something ended it. */
const restartMs = 1000

let spawner: Spawner | undefined

/**
 * Has every further `run` of this process start its program by berth-run, which costs a large process a fraction of
 * what its own fork does. While there is none, because something killed it, programs are started from here.
 * @param program path of berth-run
 * @returns what ends that
 * @throws Fault when it cannot be started
 */
export async function spawnThrough(program: string): Promise<AsyncDisposable> {
  let wanted = true
  let restart: NodeJS.Timeout | undefined
  const open = async () => {
    const opened = await Spawner.open(program)
    spawner = opened
    opened.onEnd(() => {
      spawner = undefined
      // One that cannot be started is missed by nobody: everything works without.
      if (wanted) restart = setTimeout(() => void open().catch(() => undefined), restartMs).unref()
    })
  }
  await open()
  return {
    async [Symbol.asyncDispose]() {
      wanted = false
      clearTimeout(restart)
      await spawner?.close()
    },
  }
}

/**
 * Runs a program to its end. Never a shell; an exit code is a result, never an exception. At the timeout, or when
 * `signal` aborts, the whole process group is killed with SIGKILL.
 * @throws Fault when the program could not be started at all (ENOENT, EACCES, E2BIG, …)
 */
export function run(argv: readonly [string, ...string[]], options: RunOptions = {}): Promise<ProcessResult> {
  const started = performance.now()
  const limit = options.maxOutputBytes ?? 1024 * 1024
  return new Promise((resolve, reject) => {
    const output = { stdout: new Collected(limit), stderr: new Collected(limit) }
    const why = { timedOut: false, canceled: false }
    let over = false
    const settle = () => {
      over = true
      clearTimeout(timer)
      options.signal?.removeEventListener('abort', onAbort)
    }
    const listener: Listener = {
      output: (stream, bytes) => output[stream].add(bytes),
      failed(cause) {
        settle()
        reject(new Fault(`start ${argv[0]}`, { cause }))
      },
      ended(exitCode, signal) {
        settle()
        const { stdout, stderr } = output
        const truncated = stdout.truncated || stderr.truncated
        const wallMs = performance.now() - started
        // One that exited by itself was not killed, even if that was asked for meanwhile.
        const killed = exitCode === undefined ? why : { timedOut: false, canceled: false }
        const said = { stdout: stdout.text(options.encoding), stderr: stderr.text(options.encoding) }
        resolve({ argv, exitCode, signal, ...said, ...killed, truncated, wallMs })
      },
    }
    let running: Running | undefined
    const end = (reason: keyof typeof why) => {
      if (over) return
      why[reason] = true
      running?.kill()
    }
    const onAbort = () => end('canceled')
    const timer = setTimeout(() => end('timedOut'), options.timeoutMs ?? 30_000)
    running = start(argv, options, listener)
    options.signal?.addEventListener('abort', onAbort)
    if (options.signal?.aborted) onAbort()
  })
}

function start(argv: readonly [string, ...string[]], options: RunOptions, listener: Listener): Running | undefined {
  const { cwd = process.cwd(), env = bareEnvironment, stdin } = options
  const elsewhere = stdin === undefined && spawner?.usable ? spawner.start(argv, { cwd, env }, listener) : undefined
  return elsewhere ?? startHere(argv, options, listener)
}

/** The result itself when it exited 0. @throws CommandFailed otherwise */
export function expectSuccess(result: ProcessResult): ProcessResult {
  if (result.exitCode !== 0) throw new CommandFailed(result)
  return result
}

/** Also that nothing of its output was left out. @throws CommandFailed, Fault */
export function expectWhole(result: ProcessResult): ProcessResult {
  if (expectSuccess(result).truncated) throw new Fault(printable(result.argv), { cause: 'it said more than is read' })
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

/** Starts a program as a child of this process. */
function startHere(
  [program, ...args]: readonly [string, ...string[]],
  options: RunOptions,
  listener: Listener,
): Running | undefined {
  let child: ChildProcess
  try {
    // `detached` makes it the leader of a process group of its own, which is what a timeout kills.
    child = spawn(program, args, {
      cwd: options.cwd,
      env: options.env ?? bareEnvironment,
      detached: true,
      stdio: [options.stdin === undefined ? 'ignore' : 'pipe', 'pipe', 'pipe'],
    })
  } catch (cause) {
    listener.failed(cause) // E2BIG, or a NUL byte in an argument, is thrown at once
    return undefined
  }
  // EPIPE: a program may end without reading its input, and its exit code tells what that meant.
  child.stdin?.on('error', () => child.stdin?.destroy())
  child.stdin?.end(options.stdin)
  child.stdout?.on('data', (chunk: Buffer) => listener.output('stdout', chunk))
  child.stderr?.on('data', (chunk: Buffer) => listener.output('stderr', chunk))
  let drain: NodeJS.Timeout | undefined
  child.on('error', listener.failed)
  child.on('exit', () => {
    drain = setTimeout(() => {
      child.stdout?.destroy()
      child.stderr?.destroy()
    }, heldOpenMs)
  })
  child.on('close', (code, signal) => {
    clearTimeout(drain)
    listener.ended(code ?? undefined, signal ?? undefined)
  })
  return { kill: () => killGroup(child) }
}

function killGroup(child: ChildProcess): void {
  if (child.pid === undefined || child.exitCode !== null || child.signalCode !== null) return
  try {
    process.kill(-child.pid, 'SIGKILL')
  } catch {
    child.kill('SIGKILL') // the group is gone or was never made; the child is ours until its exit is seen
  }
}

/** The first bytes of a stream. */
class Collected {
  readonly #chunks: Buffer[] = []
  #room: number
  truncated = false

  constructor(limit: number) {
    this.#room = limit
  }

  text(encoding: 'utf8' | 'latin1' = 'utf8'): string {
    return Buffer.concat(this.#chunks).toString(encoding)
  }

  add(chunk: Buffer): void {
    if (chunk.length > this.#room) this.truncated = true
    if (this.#room <= 0) return
    // A copy: the chunk may be part of a buffer that holds much else.
    const part = Buffer.from(chunk.subarray(0, this.#room))
    this.#chunks.push(part)
    this.#room -= part.length
  }
}
