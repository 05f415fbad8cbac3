// agent.ts: the agent's end of the wire for these tests, written from README.md and not shared with the product's
// client, so that each checks the other. `Sandbox` is berth-init as PID 1 of namespaces of its own; `Agent` is one
// connection to it. An Agent keeps every frame, checks that output has no gap and no repeat, and acknowledges it.
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, rm } from 'node:fs/promises'
import { createConnection, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

export const build = process.env.BERTH_INIT_BUILD ?? join(import.meta.dirname, '../build')
export const MAIN = 1
export const TTY = 2
export const STDIN = 4
export const NO_NEW_PRIVS = 8
export const STDERR_TO_STDOUT = 16
/** Of Linux; Node does not know it. */
const ESHUTDOWN = 108
export const ALL_CAPS = (1n << 41n) - 1n

export type Frame = { readonly type: number; readonly stream: number; readonly proc: number; readonly payload: Buffer }
export type Spawn = {
  readonly argv: readonly (string | Buffer)[]
  readonly env?: readonly string[]
  readonly cwd?: string
  readonly flags?: number
  readonly uid?: number
  readonly gid?: number
  readonly groups?: readonly number[]
  readonly bounding?: bigint
  readonly effective?: bigint
  readonly inheritable?: bigint
  readonly ambient?: bigint
  readonly rlimits?: readonly (readonly [number, bigint, bigint])[]
  readonly timeoutMs?: number
  readonly graceMs?: number
  readonly oomScoreAdj?: number
  readonly size?: readonly [rows: number, cols: number]
  readonly ringBytes?: number
}

export const u32 = (...values: number[]) => {
  const b = Buffer.alloc(4 * values.length)
  values.forEach((v, i) => {
    b.writeUInt32LE(v >>> 0, 4 * i)
  })
  return b
}
export const u64 = (...values: bigint[]) => {
  const b = Buffer.alloc(8 * values.length)
  values.forEach((v, i) => {
    b.writeBigUInt64LE(v, 8 * i)
  })
  return b
}
const u16 = (...values: readonly number[]) => Buffer.from(values.flatMap((v) => [v & 255, v >> 8]))
const string = (s: string | Buffer) => Buffer.concat([u32(Buffer.byteLength(s)), Buffer.from(s)])
const list = (items: readonly (string | Buffer)[]) => Buffer.concat([u32(items.length), ...items.map(string)])

export function spawnPayload(s: Spawn): Buffer {
  const groups = s.groups ?? []
  const rlimits = s.rlimits ?? []
  const effective = s.effective ?? ALL_CAPS
  return Buffer.concat([
    u32(s.flags ?? 0, s.uid ?? 0, s.gid ?? 0, groups.length, ...groups),
    u64(s.bounding ?? ALL_CAPS, effective & heldCaps, s.inheritable ?? 0n, s.ambient ?? 0n),
    u32(rlimits.length),
    ...rlimits.map(([resource, soft, hard]) => Buffer.concat([u32(resource), u64(soft, hard)])),
    u32(s.timeoutMs ?? 0, s.graceMs ?? 0, s.oomScoreAdj ?? 0),
    u16(...(s.size ?? [24, 80])),
    u32(s.ringBytes ?? 0),
    string(s.cwd ?? '/'),
    list(s.argv),
    list(s.env ?? ['PATH=/usr/sbin:/usr/bin:/sbin:/bin']),
  ])
}

/** What this machine's root holds; asking for more is refused, as it should be. */
let heldCaps = ALL_CAPS
export function holdOnly(caps: bigint): void {
  heldCaps = caps
}

export function frame(type: number, proc = 0, payload: Buffer = Buffer.alloc(0), stream = 0): Buffer {
  const header = Buffer.alloc(12)
  header.writeUInt32LE(payload.length, 0)
  header.writeUInt8(type, 4)
  header.writeUInt8(stream, 5)
  header.writeUInt32LE(proc, 8)
  return Buffer.concat([header, payload])
}

export type Exit = {
  readonly kind: 'exited' | 'signaled'
  readonly code: number
  readonly cause: number
  readonly userUs: bigint
  readonly maxRssBytes: bigint
  readonly wallNs: bigint
}
export const exitOf = (f: Frame): Exit => ({
  kind: f.payload.readUInt8(0) === 0 ? 'exited' : 'signaled',
  code: f.payload.readInt32LE(1),
  cause: f.payload.readUInt8(5),
  userUs: f.payload.readBigUInt64LE(7),
  maxRssBytes: f.payload.readBigUInt64LE(23),
  wallNs: f.payload.readBigUInt64LE(31),
})
export const failureOf = (f: Frame) => ({ stage: f.payload.readUInt8(0), errno: f.payload.readInt32LE(1) })
export const errorOf = (f: Frame) => ({
  proc: f.proc,
  errno: f.payload.readUInt32LE(0),
  message: f.payload.subarray(8).toString(),
})

type Output = { chunks: Buffer[]; end: bigint; keep: boolean }

export class Agent {
  readonly frames: Frame[] = []
  closed = false
  acknowledges = true
  /** Called with each new piece of output, of any stream. */
  onData: (bytes: Buffer) => void = () => undefined
  private rest: Buffer = Buffer.alloc(0)
  private waiting: (() => void)[] = []
  /** Per stream, where this connection's next DATA must begin. */
  private readonly told = new Map<string, bigint>()
  private readonly outputs: Map<string, Output>

  /** @param before the agent that was here: what it kept of the output is taken over, as from its disk */
  constructor(
    readonly socket: Socket,
    before?: Agent,
  ) {
    this.outputs = before?.outputs ?? new Map()
    socket.on('data', (d: Buffer) => this.receive(d))
    socket.on('error', () => this.end())
    socket.on('close', () => this.end())
  }

  private end(): void {
    this.closed = true
    this.wake()
  }

  private wake(): void {
    for (const w of this.waiting.splice(0)) w()
  }

  private receive(bytes: Buffer): void {
    this.rest = this.rest.length > 0 ? Buffer.concat([this.rest, bytes]) : bytes
    while (this.rest.length >= 12 && this.rest.length >= 12 + this.rest.readUInt32LE(0)) {
      const end = 12 + this.rest.readUInt32LE(0)
      const f = {
        type: this.rest.readUInt8(4),
        stream: this.rest.readUInt8(5),
        proc: this.rest.readUInt32LE(8),
        payload: this.rest.subarray(12, end),
      }
      this.rest = this.rest.subarray(end)
      this.book(f)
    }
    this.wake()
  }

  private book(f: Frame): void {
    if (f.type !== 69) {
      this.frames.push(f)
      return
    }
    const o = this.outputOf(f.proc, f.stream)
    const key = `${f.proc}/${f.stream}`
    const offset = f.payload.readBigUInt64LE(0)
    const expected = this.told.get(key)
    if (offset > o.end || (expected !== undefined && offset !== expected))
      throw new Error(`proc ${key}: data at ${offset}, told to ${expected}, kept to ${o.end}`)
    const end = offset + BigInt(f.payload.length - 8)
    this.told.set(key, end)
    if (end <= o.end) {
      if (this.acknowledges) this.ack(f.proc, f.stream, o.end) // an earlier one may be lost
      return
    }
    const fresh = f.payload.subarray(8 + Number(o.end - offset))
    this.onData(fresh)
    if (o.keep) o.chunks.push(Buffer.from(fresh))
    o.end = end
    if (this.acknowledges) this.ack(f.proc, f.stream, o.end)
  }

  private outputOf(proc: number, stream: number): Output {
    const key = `${proc}/${stream}`
    const o = this.outputs.get(key) ?? { chunks: [], end: 0n, keep: true }
    this.outputs.set(key, o)
    return o
  }

  countOnly(proc: number, stream: number): void {
    this.outputOf(proc, stream).keep = false
  }
  output(proc: number, stream = 1): Buffer {
    return Buffer.concat(this.outputOf(proc, stream).chunks)
  }
  text(proc: number, stream = 1): string {
    return this.output(proc, stream).toString()
  }
  received(proc: number, stream = 1): bigint {
    return this.outputOf(proc, stream).end
  }

  send(type: number, proc = 0, payload: Buffer = Buffer.alloc(0), stream = 0): void {
    this.socket.write(frame(type, proc, payload, stream))
  }
  spawn(proc: number, s: Spawn): void {
    this.send(2, proc, spawnPayload(s))
  }
  stdin(proc: number, offset: bigint, bytes: Buffer | string): void {
    this.send(3, proc, Buffer.concat([u64(offset), Buffer.from(bytes)]))
  }
  signal(proc: number, signo: number, scope: number): void {
    this.send(5, proc, Buffer.concat([u32(signo), Buffer.from([scope])]))
  }
  ack(proc: number, stream: number, offset: bigint): void {
    if (!this.closed) this.send(7, proc, u64(offset), stream)
  }

  /** The first value that `look` finds in what has come or comes; rejects with the frames seen on time-out. */
  async until<T>(what: string, look: () => T | undefined | false, timeoutMs = 20_000): Promise<T> {
    const deadline = Date.now() + timeoutMs
    for (;;) {
      const found = look()
      if (found !== undefined && found !== false) return found
      const left = deadline - Date.now()
      if (left <= 0 || this.closed) throw new Error(`${this.closed ? 'closed' : 'timed out'}: ${what}; ${this.story()}`)
      await new Promise<void>((wake) => {
        const timer = setTimeout(wake, left)
        this.waiting.push(() => {
          clearTimeout(timer)
          wake()
        })
      })
    }
  }
  private story(): string {
    const last = this.frames.slice(-12).map((f) => `${f.type}/${f.proc}:${f.payload.toString('hex').slice(0, 40)}`)
    return `last frames ${last.join(' ')}`
  }
  of(type: number, proc: number, stream = 0): Frame | undefined {
    return this.frames.find((f) => f.type === type && f.proc === proc && f.stream === stream)
  }
  frame(type: number, proc = 0, stream = 0): Promise<Frame> {
    return this.until(`frame ${type} of ${proc}`, () => this.of(type, proc, stream))
  }
  async exit(proc: number): Promise<Exit> {
    const ended = await this.until(`end of ${proc}`, () => this.of(71, proc) ?? this.of(68, proc))
    if (ended.type === 68) throw new Error(`${proc} never ran: ${JSON.stringify(failureOf(ended))}`)
    return exitOf(ended)
  }
  /** Spawns under the numbers from `proc` on until it is not refused because the sandbox is being cleared. */
  async spawnWhenCleared(proc: number, s: Spawn): Promise<number> {
    this.spawn(proc, s)
    const told = await this.until(`start of ${proc}`, () => this.of(67, proc) ?? this.of(68, proc))
    return told.type === 68 && failureOf(told).errno === ESHUTDOWN ? this.spawnWhenCleared(proc + 1, s) : proc
  }
  async run(proc: number, s: Spawn): Promise<Exit> {
    this.spawn(proc, s)
    return this.exit(proc)
  }
  async gone(): Promise<void> {
    const quiet = () => this.closed || undefined
    if (!this.closed) await this.until('close', quiet).catch((e: unknown) => this.closed || Promise.reject(e))
  }
  drop(): void {
    this.socket.destroy()
    this.end()
  }
}

export class Sandbox {
  private constructor(
    readonly path: string,
    private readonly dir: string,
    readonly host: ChildProcess,
    private readonly ended: Promise<unknown>,
  ) {}

  static async start(): Promise<Sandbox> {
    const dir = await mkdtemp(join(tmpdir(), 'berth-init-'))
    const path = join(dir, 'init.sock')
    const inside = ['unshare', '--pid', '--fork', '--kill-child', '--mount-proc', join(build, 'berth-init')]
    const host = spawn(join(build, 'berth-enter'), ['--listen', path, '--', ...inside], { stdio: 'inherit' })
    return new Sandbox(path, dir, host, once(host, 'exit'))
  }

  /** A greeted connection. The socket file appears a moment after the start: tried until it does. */
  async connect({ greet = true, after }: { greet?: boolean; after?: Agent } = {}): Promise<Agent> {
    for (const deadline = Date.now() + 10_000; ; await new Promise((r) => setTimeout(r, 2))) {
      const socket = createConnection(this.path)
      const up = await new Promise<boolean>((done) => {
        socket.once('connect', () => done(true)).once('error', () => done(false))
      })
      if (!up && Date.now() < deadline) continue
      if (!up) throw new Error(`nobody listens at ${this.path}`)
      const agent = new Agent(socket, after)
      if (greet) {
        agent.send(1, 0, u32(1))
        await agent.frame(65)
      }
      return agent
    }
  }

  /** PID 1's exit code, once it has ended. */
  async exitCode(): Promise<number | null> {
    await this.ended
    return this.host.exitCode
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.host.kill('SIGKILL')
    await this.ended
    await rm(this.dir, { recursive: true })
  }
}
