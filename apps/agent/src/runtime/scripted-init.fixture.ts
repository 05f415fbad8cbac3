// scripted-init.fixture.ts: the other end of berth-init's socket, which says what a test wants it to say.

import { mkdtempSync, rmSync } from 'node:fs'
import { createServer, type Server, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

export interface Request {
  readonly type: number
  readonly stream: number
  readonly proc: number
  readonly payload: Buffer
}

export const request = {
  hello: 1,
  spawn: 2,
  stdin: 3,
  stdinEof: 4,
  signal: 5,
  resize: 6,
  ack: 7,
  forget: 8,
  shutdown: 9,
} as const

export const u64 = (...values: readonly number[]) => {
  const bytes = Buffer.alloc(8 * values.length)
  for (const [i, value] of values.entries()) bytes.writeBigUInt64LE(BigInt(value), 8 * i)
  return bytes
}
const u32 = (value: number) => {
  const bytes = Buffer.alloc(4)
  bytes.writeUInt32LE(value)
  return bytes
}

/** What the greeting says of a process. */
export interface KnownProcess {
  readonly proc: number
  readonly state?: 0 | 1 | 2 | 3
  readonly stdoutStart?: number
  readonly stdinExpected?: number
}

/** One connection of the agent. */
export class Connection {
  readonly requests: Request[] = []
  closed = false
  #rest: Buffer = Buffer.alloc(0)
  #wake: (() => void)[] = []

  constructor(readonly socket: Socket) {
    socket.on('data', (bytes) => this.#receive(bytes))
    socket.on('error', () => undefined)
    socket.on('close', () => {
      this.closed = true
      for (const wake of this.#wake.splice(0)) wake()
    })
  }

  send(type: number, proc: number, payload: Buffer = Buffer.alloc(0), stream = 0): void {
    const header = Buffer.alloc(12)
    header.writeUInt32LE(payload.length, 0)
    header.writeUInt8(type, 4)
    header.writeUInt8(stream, 5)
    header.writeUInt32LE(proc, 8)
    this.socket.write(Buffer.concat([header, payload]))
  }

  async greet(known: readonly KnownProcess[] = []): Promise<void> {
    await this.next(request.hello)
    this.send(65, 0, Buffer.concat([u32(1), u32(known.length)]))
    for (const { proc, state = 1, stdoutStart = 0, stdinExpected = 0 } of known)
      this.send(66, proc, Buffer.concat([Buffer.of(state), u32(7), u64(stdoutStart, stdoutStart, 0, 0, stdinExpected)]))
  }

  started = (proc: number, pid = 7) => this.send(67, proc, Buffer.concat([u32(pid), u64(1)]))
  failed = (proc: number, stage: number, errno: number) =>
    this.send(68, proc, Buffer.concat([Buffer.of(stage), u32(errno)]))
  data = (proc: number, offset: number, text: string, stream = 1) =>
    this.send(69, proc, Buffer.concat([u64(offset), Buffer.from(text)]), stream)
  eof = (proc: number, total: number, stream: number) => this.send(70, proc, u64(total), stream)
  stdinAck = (proc: number, offset: number) => this.send(72, proc, u64(offset))
  exit(proc: number, code: number): void {
    const payload = Buffer.alloc(39)
    payload.writeInt32LE(code, 1)
    this.send(71, proc, payload)
  }

  /** The first request of a type (and process) that is there or comes; later calls look further on. */
  async next(type: number, proc?: number): Promise<Request> {
    for (;;) {
      const at = this.requests.findIndex((r) => r.type === type && (proc === undefined || r.proc === proc))
      if (at >= 0) {
        const [found] = this.requests.splice(at, 1)
        if (found) return found
      }
      if (this.closed) throw new Error(`closed without a request of type ${type}`)
      await new Promise<void>((wake) => this.#wake.push(wake))
    }
  }

  drop(): void {
    this.socket.destroy()
  }

  #receive(bytes: Buffer): void {
    this.#rest = Buffer.concat([this.#rest, bytes])
    while (this.#rest.length >= 12 && this.#rest.length >= 12 + this.#rest.readUInt32LE(0)) {
      const end = 12 + this.#rest.readUInt32LE(0)
      this.requests.push({
        type: this.#rest.readUInt8(4),
        stream: this.#rest.readUInt8(5),
        proc: this.#rest.readUInt32LE(8),
        payload: this.#rest.subarray(12, end),
      })
      this.#rest = this.#rest.subarray(end)
    }
    for (const wake of this.#wake.splice(0)) wake()
  }
}

export class ScriptedInit {
  readonly #connections: Connection[] = []
  #wake: (() => void)[] = []

  private constructor(
    readonly path: string,
    private readonly directory: string,
    private readonly server: Server,
  ) {
    server.on('connection', (socket) => {
      this.#connections.push(new Connection(socket))
      for (const wake of this.#wake.splice(0)) wake()
    })
  }

  static async listen(): Promise<ScriptedInit> {
    const directory = mkdtempSync(join(tmpdir(), 'berth-scripted-'))
    const path = join(directory, 'init.sock')
    const server = createServer()
    await new Promise<void>((listening) => server.listen(path, listening))
    return new ScriptedInit(path, directory, server)
  }

  /** The n-th connection, from 0, now or when it comes. */
  async connection(n: number): Promise<Connection> {
    for (;;) {
      const found = this.#connections[n]
      if (found) return found
      await new Promise<void>((wake) => this.#wake.push(wake))
    }
  }

  /** Nobody can connect any more. */
  stop(): void {
    this.server.close()
    for (const connection of this.#connections) connection.drop()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.stop()
    rmSync(this.directory, { recursive: true, force: true })
  }
}
