// spawner.ts: programs started by berth-run (libs/init/run.c) instead of by this process. Node forks itself for every
// program, and a fork of a large process copies its page tables: measured 11 ms at 200 MB of heap, during which
// nothing else of the process runs, against 1 ms by berth-run. It ends with this process and kills what it started,
// so nothing outlives a crash.
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { Socket } from 'node:net'
import { constants } from 'node:os'
import { Fault } from '@berth/contracts'

/** Of libs/init/README.md. */
const HEADER_BYTES = 12
const MAX_PAYLOAD_BYTES = 256 * 1024
const MAX_WORDS = 4096
const MAX_RUNS = 256
const requests = { start: 1, kill: 2 } as const
const replies = { output: 65, ended: 66 } as const
const SIGNALED = 1
const NOT_STARTED = 2

/** What a program says, and how it ends; `ended` or `failed` comes once and last. */
export interface Listener {
  output(stream: 'stdout' | 'stderr', bytes: Buffer): void
  ended(exitCode: number | undefined, signal: NodeJS.Signals | undefined): void
  /** It was never started, or what became of it is not known. */
  failed(cause: unknown): void
}

export interface Running {
  /** SIGKILL to its process group. After its end this does nothing. */
  kill(): void
}

export class Spawner {
  readonly #child: ChildProcess
  readonly #socket: Socket
  readonly #runs = new Map<number, Listener>()
  #buffered: Buffer = Buffer.alloc(0)
  #nextId = 1
  #over = false
  #onEnd: () => void = () => undefined

  private constructor(child: ChildProcess, socket: Socket) {
    this.#child = child
    this.#socket = socket
    socket.on('data', (chunk: Buffer) => this.#receive(chunk))
    socket.on('error', () => socket.destroy()) // `close` follows and tells everybody
    socket.on('close', () => this.#end())
    // Neither keeps this process alive: who waits for a program has a timer of his own.
    child.unref()
    socket.unref()
  }

  /** Starts berth-run. @throws Fault when it cannot be started */
  static async open(program: string): Promise<Spawner> {
    const child = spawn(program, [], { stdio: ['ignore', 'ignore', 'inherit', 'pipe'], cwd: '/', env: {} })
    try {
      await once(child, 'spawn')
    } catch (cause) {
      throw new Fault(`start ${program}`, { cause })
    }
    const socket = child.stdio[3]
    if (!(socket instanceof Socket)) throw new Fault(`start ${program}`, { cause: new Error('it has no socket') })
    return new Spawner(child, socket)
  }

  /** Told once, when berth-run has ended, whatever ended it. */
  onEnd(tell: () => void): void {
    this.#onEnd = tell
  }

  /** False once berth-run has ended, and while it has its hands full. */
  get usable(): boolean {
    return !this.#over && this.#runs.size < MAX_RUNS
  }

  /**
   * Starts a program with /dev/null as its input.
   * @returns undefined for one that this cannot start because its arguments are too large or hold a NUL byte
   */
  start(
    argv: readonly string[],
    place: { readonly cwd: string; readonly env: Readonly<Record<string, string>> },
    listener: Listener,
  ): Running | undefined {
    const env = Object.entries(place.env).map(([name, value]) => `${name}=${value}`)
    const payload = encodeStart(place.cwd, argv, env)
    if (!payload) return undefined
    const id = this.#nextId
    this.#nextId = (id % 0xffff_ffff) + 1
    this.#runs.set(id, listener)
    this.#send(requests.start, id, payload)
    return { kill: () => void (this.#runs.has(id) && this.#send(requests.kill, id, Buffer.alloc(0))) }
  }

  /** Kills what runs, and ends berth-run. */
  async close(): Promise<void> {
    const exited =
      this.#child.exitCode === null && this.#child.signalCode === null ? once(this.#child, 'exit') : undefined
    this.#child.ref()
    this.#socket.destroy()
    await exited
  }

  #send(type: number, id: number, payload: Buffer): void {
    const header = Buffer.alloc(HEADER_BYTES)
    header.writeUInt32LE(payload.length, 0)
    header.writeUInt8(type, 4)
    header.writeUInt32LE(id, 8)
    this.#socket.write(Buffer.concat([header, payload]))
  }

  #receive(chunk: Buffer): void {
    this.#buffered = this.#buffered.length === 0 ? chunk : Buffer.concat([this.#buffered, chunk])
    let at = 0
    while (this.#buffered.length - at >= HEADER_BYTES) {
      const end = at + HEADER_BYTES + this.#buffered.readUInt32LE(at)
      if (this.#buffered.length < end) break
      const [type, stream] = [this.#buffered.readUInt8(at + 4), this.#buffered.readUInt8(at + 5)]
      this.#tell(type, stream, this.#buffered.readUInt32LE(at + 8), this.#buffered.subarray(at + HEADER_BYTES, end))
      at = end
    }
    this.#buffered = this.#buffered.subarray(at)
  }

  #tell(type: number, stream: number, id: number, payload: Buffer): void {
    const listener = this.#runs.get(id)
    if (!listener) return
    if (type === replies.output) listener.output(stream === 1 ? 'stdout' : 'stderr', payload)
    else this.#ended(id, listener, payload)
  }

  #ended(id: number, listener: Listener, payload: Buffer): void {
    this.#runs.delete(id)
    const [kind, value] = [payload.readUInt8(0), payload.readInt32LE(1)]
    if (kind === NOT_STARTED) listener.failed(systemError(value))
    else if (kind === SIGNALED) listener.ended(undefined, signalName(value))
    else listener.ended(value, undefined)
  }

  #end(): void {
    this.#over = true
    this.#onEnd()
    const left = [...this.#runs.values()]
    this.#runs.clear()
    for (const listener of left) listener.failed(new Error('berth-run ended, and killed the program with it'))
  }
}

/** @returns undefined when it is too large, or holds a NUL byte */
function encodeStart(cwd: string, argv: readonly string[], env: readonly string[]): Buffer | undefined {
  const words = [cwd, ...argv, ...env]
  if (argv.length > MAX_WORDS || env.length > MAX_WORDS || words.some((word) => word.includes('\0'))) return undefined
  const parts = [
    ...string(cwd),
    number(argv.length),
    ...argv.flatMap(string),
    number(env.length),
    ...env.flatMap(string),
  ]
  const payload = Buffer.concat(parts)
  return payload.length > MAX_PAYLOAD_BYTES ? undefined : payload
}

function number(value: number): Buffer {
  const bytes = Buffer.alloc(4)
  bytes.writeUInt32LE(value)
  return bytes
}

function string(text: string): Buffer[] {
  const bytes = Buffer.from(text)
  return [number(bytes.length), bytes]
}

const nameOf = (table: Readonly<Record<string, number>>, value: number) =>
  Object.entries(table).find(([, known]) => known === value)?.[0]

const signals: ReadonlyMap<number, NodeJS.Signals> = new Map(
  Object.keys(constants.signals).flatMap((name) => (isSignal(name) ? [[constants.signals[name], name] as const] : [])),
)
function isSignal(name: string): name is NodeJS.Signals {
  return name in constants.signals
}
const signalName = (value: number): NodeJS.Signals => signals.get(value) ?? 'SIGKILL'

/** As Node makes them: with the name of the error in `code`. */
function systemError(errno: number): Error {
  const code = nameOf(constants.errno, errno) ?? `errno ${errno}`
  return Object.assign(new Error(`spawn ${code}`), { code, errno: -errno })
}
