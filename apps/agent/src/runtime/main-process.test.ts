// A berth-init of the test's own on a socket: what the real one does between two frames is not for a test to choose.
import { mkdtempSync, rmSync } from 'node:fs'
import { createServer, type Server, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, expect, test } from '@jest/globals'
import { MAX_DATA_BYTES, STDIN_WINDOW_BYTES } from './init-wire.js'
import { MainProcess, type OutputSink } from './main-process.js'

interface Frame {
  readonly type: number
  readonly payload: Buffer
}

/** Types of libs/init/README.md. */
const SPAWN = 2
const STDIN = 3
const STDIN_EOF = 4
const replies = { hello: 65, state: 66, stdinAck: 72 } as const
const RUNNING = 1

let directory: string
let server: Server
let accepted: FakeInit[]
let waiting: ((init: FakeInit) => void)[]

/** One connection, as berth-init sees it. */
class FakeInit {
  readonly frames: Frame[] = []
  #bytes = Buffer.alloc(0)
  #watchers: (() => void)[] = []

  constructor(readonly socket: Socket) {
    socket.on('data', (chunk) => {
      this.#bytes = Buffer.concat([this.#bytes, chunk])
      for (let size = this.#size(); size !== undefined; size = this.#size()) {
        this.frames.push({ type: this.#bytes.readUInt8(4), payload: Buffer.from(this.#bytes.subarray(12, size)) })
        this.#bytes = this.#bytes.subarray(size)
      }
      for (const wake of this.#watchers.splice(0)) wake()
    })
    socket.on('error', () => socket.destroy())
  }

  async until(condition: (frames: readonly Frame[]) => boolean): Promise<void> {
    while (!condition(this.frames)) await new Promise<void>((wake) => this.#watchers.push(wake))
  }

  send(type: number, proc: number, ...parts: readonly Buffer[]): void {
    const payload = Buffer.concat(parts)
    const header = Buffer.alloc(12)
    header.writeUInt32LE(payload.length, 0)
    header.writeUInt8(type, 4)
    header.writeUInt32LE(proc, 8)
    this.socket.write(Buffer.concat([header, payload]))
  }

  get input(): Buffer {
    return Buffer.concat(this.#stdin().map(({ payload }) => payload.subarray(8)))
  }

  get firstOffset(): number | undefined {
    const [first] = this.#stdin()
    return first && Number(first.payload.readBigUInt64LE(0))
  }

  has(type: number): boolean {
    return this.frames.some((frame) => frame.type === type)
  }

  #stdin(): readonly Frame[] {
    return this.frames.filter(({ type }) => type === STDIN)
  }

  #size(): number | undefined {
    const size = this.#bytes.length < 12 ? Number.POSITIVE_INFINITY : 12 + this.#bytes.readUInt32LE(0)
    return this.#bytes.length < size ? undefined : size
  }
}

const u32 = (value: number) => {
  const bytes = Buffer.alloc(4)
  bytes.writeUInt32LE(value)
  return bytes
}
const u64 = (value: number) => {
  const bytes = Buffer.alloc(8)
  bytes.writeBigUInt64LE(BigInt(value))
  return bytes
}

const nextConnection = () => new Promise<FakeInit>((resolve) => waiting.push(resolve))

const deaf: OutputSink = { resume: () => undefined, append: () => undefined, settled: async () => undefined }

function start(stdin: Buffer): MainProcess {
  return new MainProcess({
    socket: join(directory, 'init.sock'),
    stdin,
    sinks: { stdout: deaf, stderr: deaf },
    onStarted: () => undefined,
    timeoutMs: 30_000,
    spawn: {
      flags: 5,
      uid: 0,
      gid: 0,
      groups: [],
      capabilities: { bounding: 0n, effective: 0n, inheritable: 0n, ambient: 0n },
      limits: [],
      timeoutMs: 0,
      graceMs: 0,
      oomScoreAdj: 0,
      rows: 24,
      columns: 80,
      ringBytes: 0,
      cwd: '/',
      argv: ['cat'],
      env: [],
    },
  })
}

beforeEach(async () => {
  directory = mkdtempSync(join(tmpdir(), 'berth-main-'))
  accepted = []
  waiting = []
  server = createServer((socket) => {
    const init = new FakeInit(socket)
    accepted.push(init)
    waiting.shift()?.(init)
  })
  await new Promise<void>((listening) => server.listen(join(directory, 'init.sock'), listening))
})
afterEach(async () => {
  for (const { socket } of accepted) socket.destroy()
  await new Promise((closed) => server.close(closed))
  rmSync(directory, { recursive: true })
})

test('after a reconnect, input that was not acknowledged counts against the window', async () => {
  const stdin = Buffer.alloc(5 * STDIN_WINDOW_BYTES, 'x')
  const connected = nextConnection()
  const main = start(stdin)
  const init = await connected
  await init.until((frames) => frames.length > 0)
  const expected = 2 * STDIN_WINDOW_BYTES
  const acknowledged = expected - 40_000
  init.send(replies.hello, 0, u32(1), u32(1))
  init.send(replies.state, 1, Buffer.from([RUNNING]), u32(9), ...[0, 0, 0, 0, expected].map(u64))
  init.send(replies.stdinAck, 1, u64(acknowledged))
  const room = STDIN_WINDOW_BYTES - 40_000
  await init.until(() => init.input.length >= room)
  expect(init.firstOffset).toBe(expected)
  expect(init.input.length).toBe(room)
  expect(init.has(SPAWN)).toBe(false)

  init.send(replies.stdinAck, 1, u64(expected + room))
  await init.until(() => init.input.length >= room + MAX_DATA_BYTES)
  expect(init.input.length).toBe(room + MAX_DATA_BYTES)
  main.abandon()
  await main.ended
})

test('a command that was lost on its way is sent again, with its input from the first byte', async () => {
  const stdin = Buffer.from('all of it')
  const connected = nextConnection()
  const main = start(stdin)
  const first = await connected
  await first.until((frames) => frames.length > 0)
  first.send(replies.hello, 0, u32(1), u32(0))
  await first.until(() => first.has(STDIN_EOF))
  const again = nextConnection()
  first.socket.destroy()

  const second = await again
  await second.until((frames) => frames.length > 0)
  second.send(replies.hello, 0, u32(1), u32(0))
  await second.until(() => second.has(STDIN_EOF))
  expect(second.has(SPAWN)).toBe(true)
  expect(second.input).toEqual(stdin)
  main.abandon()
  await main.ended
})
