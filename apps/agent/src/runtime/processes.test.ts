import { createLogger } from '@berth/telemetry'
import { afterEach, beforeEach, describe, expect, test } from '@jest/globals'
import type { SpawnRequest } from './init-wire.js'
import { MAIN, type OutputSink, Processes, UnknownProcess } from './processes.js'
import { request, ScriptedInit } from './scripted-init.fixture.js'

const log = createLogger({ name: 'test', level: 'silent' })
let init: ScriptedInit
let processes: Processes
beforeEach(async () => {
  init = await ScriptedInit.listen()
  processes = Processes.open({ socket: init.path, log, timeoutMs: 10_000 })
})
afterEach(async () => {
  processes.close()
  await init[Symbol.asyncDispose]()
})

/** Keeps text; says that it is stored when the test wants it. */
class Kept implements OutputSink {
  text = ''
  resumedAt: number | undefined
  holding = false
  #held: (() => void)[] = []

  resume(offset: number): void {
    this.resumedAt = offset
  }
  append(offset: number, bytes: Buffer, stored: (offset: number) => void): void {
    this.text += bytes.subarray(Math.max(0, this.text.length - offset)).toString()
    const end = this.text.length
    this.#held.push(() => stored(end))
    if (!this.holding) this.store()
  }
  store(): void {
    this.holding = false
    for (const store of this.#held.splice(0)) store()
  }
  async settled(): Promise<void> {
    while (this.#held.length > 0) await new Promise((resolve) => setImmediate(resolve))
  }
}
const sinks = () => ({ stdout: new Kept(), stderr: new Kept() })
const spawn = (more: Partial<SpawnRequest> = {}): SpawnRequest => ({
  flags: 4,
  uid: 0,
  gid: 0,
  groups: [],
  capabilities: { bounding: 0n, effective: 0n, inheritable: 0n, ambient: 0n },
  limits: [],
  timeoutMs: 0,
  graceMs: 0,
  oomScoreAdj: 0,
  rows: 0,
  columns: 0,
  ringBytes: 0,
  cwd: '/',
  argv: ['true'],
  env: [],
  ...more,
})

describe('a process', () => {
  test('is started, its output stored and acknowledged, its end told after that', async () => {
    const out = sinks()
    out.stdout.holding = true
    const process = processes.run(MAIN, spawn(), out)
    const connection = await init.connection(0)
    await connection.greet()
    await connection.next(request.spawn, MAIN)
    connection.started(MAIN, 12)
    expect(await process.started).toMatchObject({ kind: 'started', pid: 12 })
    connection.data(MAIN, 0, 'hello')
    connection.exit(MAIN, 3)
    let ended = false
    void process.ended.then(() => {
      ended = true
    })
    connection.send(73, 0, Buffer.alloc(8)) // an answer of no process changes nothing
    await new Promise((resolve) => setTimeout(resolve, 20))
    expect(ended).toBe(false)
    out.stdout.store()
    expect((await connection.next(request.ack, MAIN)).payload.readBigUInt64LE()).toBe(5n)
    expect(await process.ended).toMatchObject({ kind: 'exited', exit: { exitCode: 3 } })
    process.forget()
    await connection.next(request.forget, MAIN)
  })

  test('that cannot be executed, or whose request is refused, says why', async () => {
    const [a, b] = [processes.run(1, spawn(), sinks()), processes.run(2, spawn(), sinks())]
    const connection = await init.connection(0)
    await connection.greet()
    connection.failed(1, 4, 2)
    const invalid = Buffer.alloc(8)
    invalid.writeUInt32LE(22)
    connection.send(73, 2, invalid)
    expect(await a.started).toEqual({ kind: 'failed', stage: 'exec', errno: 2 })
    expect(await b.ended).toEqual({ kind: 'failed', stage: 'setup', errno: 22 })
  })

  test('gets its input within the window, and its end after the last byte', async () => {
    const process = processes.run(1, spawn(), sinks())
    const connection = await init.connection(0)
    await connection.greet()
    await connection.next(request.spawn)
    const written = process.write(0, Buffer.alloc(100_000, 'x'))
    await process.endInput(100_000)
    const first = await connection.next(request.stdin)
    expect(first.payload.length).toBe(8 + 65_536)
    connection.stdinAck(1, 40_000)
    const second = await connection.next(request.stdin)
    expect(second.payload.length).toBe(8 + 100_000 - 65_536)
    expect((await connection.next(request.stdinEof)).payload.readBigUInt64LE()).toBe(100_000n)
    connection.stdinAck(1, 100_000)
    await written
    expect(process.stdinAccepted).toBe(100_000)
  })

  test('without input refuses it; one that has ended, too', async () => {
    const process = processes.run(1, spawn({ flags: 0 }), sinks())
    const other = processes.run(2, spawn(), sinks())
    await expect(process.write(0, Buffer.from('x'))).rejects.toMatchObject({ code: 'wrong_state' })
    const connection = await init.connection(0)
    await connection.greet()
    connection.exit(2, 0)
    await other.ended
    await expect(other.write(0, Buffer.from('x'))).rejects.toMatchObject({ code: 'wrong_state' })
  })

  test('is signalled and resized, also before there is a connection', async () => {
    const process = processes.run(1, spawn(), sinks())
    process.resize(1, 2)
    process.resize(24, 80)
    process.signal(15, 'group')
    const connection = await init.connection(0)
    await connection.greet()
    expect((await connection.next(request.resize)).payload).toEqual(Buffer.of(24, 0, 80, 0))
    expect((await connection.next(request.signal)).payload).toEqual(Buffer.of(15, 0, 0, 0, 1))
    expect(connection.requests.filter(({ type }) => type === request.resize)).toEqual([])
  })

  test('tells when nobody holds its output any more', async () => {
    const process = processes.run(1, spawn(), sinks())
    const connection = await init.connection(0)
    await connection.greet()
    connection.exit(1, 0)
    await process.ended
    connection.data(1, 0, 'late')
    connection.eof(1, 4, 1)
    connection.eof(1, 0, 2)
    await process.outputEnded
  })
})

describe('a broken connection', () => {
  test('is opened again: known processes go on, input and output where they were', async () => {
    const out = sinks()
    const process = processes.run(1, spawn(), out)
    const first = await init.connection(0)
    await first.greet()
    await first.next(request.spawn)
    first.started(1)
    first.data(1, 0, 'abc')
    await first.next(request.ack)
    const written = process.write(0, Buffer.from('0123456789'))
    await first.next(request.stdin)
    first.drop()
    const second = await init.connection(1)
    await second.greet([{ proc: 1, stdoutStart: 3, stdinExpected: 4 }])
    second.started(1)
    second.stdinAck(1, 4)
    const rest = await second.next(request.stdin)
    expect(rest.payload.subarray(8).toString()).toBe('456789')
    second.data(1, 3, 'def')
    second.stdinAck(1, 10)
    second.exit(1, 0)
    await written
    expect(await process.ended).toMatchObject({ kind: 'exited' })
    expect([out.stdout.text, out.stdout.resumedAt]).toEqual(['abcdef', 3])
    expect(second.requests.some(({ type }) => type === request.spawn)).toBe(false)
  })

  test('before the request to start arrived: it is sent again, with its input from the first byte', async () => {
    const process = processes.run(1, spawn(), sinks())
    const first = await init.connection(0)
    await first.greet()
    const written = process.write(0, Buffer.from('all of it'))
    await process.endInput(9)
    await first.next(request.stdinEof)
    first.drop()
    const second = await init.connection(1)
    await second.greet()
    await second.next(request.spawn, 1)
    expect((await second.next(request.stdin)).payload.subarray(8).toString()).toBe('all of it')
    await second.next(request.stdinEof)
    second.stdinAck(1, 9)
    await written
  })

  test('input that was not acknowledged counts against the window', async () => {
    const process = processes.run(1, spawn(), sinks())
    const connection = await init.connection(0)
    const written = process.write(0, Buffer.alloc(300_000)).catch(() => undefined)
    await connection.greet([{ proc: 1, stdinExpected: 131_072 }])
    connection.stdinAck(1, 91_072)
    const next = await connection.next(request.stdin)
    expect([next.payload.readBigUInt64LE(), next.payload.length]).toEqual([131_072n, 8 + 65_536 - 40_000])
    processes.close()
    await written
  })

  test('that cannot be opened again is the end of all', async () => {
    const process = processes.run(1, spawn(), sinks())
    const connection = await init.connection(0)
    await connection.greet()
    await connection.next(request.spawn)
    init.stop()
    expect(await process.ended).toMatchObject({ kind: 'gone' })
    await process.outputEnded
    expect(await processes.closed).toBeInstanceOf(Error)
    const late = processes.run(2, spawn(), sinks())
    expect(await late.started).toMatchObject({ kind: 'gone' })
  })

  test('that ends again and again without a word is the end, too', async () => {
    const process = processes.run(1, spawn(), sinks())
    for (let i = 0; i < 3; i++) {
      const connection = await init.connection(i)
      await connection.greet()
      await connection.next(request.spawn)
      connection.drop()
    }
    expect(await process.ended).toMatchObject({ kind: 'gone' })
  })

  test('a process that init has forgotten is gone, not started twice', async () => {
    const process = processes.run(1, spawn(), sinks())
    const first = await init.connection(0)
    await first.greet()
    first.started(1)
    await process.started
    first.drop()
    const second = await init.connection(1)
    await second.greet()
    expect(await process.ended).toMatchObject({ kind: 'gone' })
    expect(second.requests.some(({ type }) => type === request.spawn)).toBe(false)
  })

  test('a shutdown is told again', async () => {
    const first = await init.connection(0)
    await first.greet()
    await processes.known()
    processes.shutdown(500)
    await first.next(request.shutdown)
    first.drop()
    const second = await init.connection(1)
    await second.greet()
    expect((await second.next(request.shutdown)).payload.readUInt32LE()).toBe(500)
  })
})

describe('after a restart of the agent', () => {
  test('nothing is read until all are claimed; what nobody claims is killed and forgotten', async () => {
    const connection = await init.connection(0)
    await connection.greet([{ proc: 1 }, { proc: 5 }, { proc: 9, state: 2 }])
    for (const proc of [1, 5, 9]) connection.started(proc)
    connection.data(5, 0, 'kept')
    expect((await processes.known()).map(({ proc }) => proc)).toEqual([1, 5, 9])
    const out = sinks()
    processes.run(5, spawn(), out)
    processes.run(1, spawn(), sinks())
    expect(processes.allocate()).toBe(10)
    processes.endOthers()
    await connection.next(request.ack, 5)
    expect(out.stdout.text).toBe('kept')
    connection.exit(9, 0)
    await connection.next(request.forget, 9)
    expect(connection.requests.some(({ type }) => type === request.spawn || type === request.signal)).toBe(false)
  })

  test('a running process that nobody claims is killed', async () => {
    const connection = await init.connection(0)
    await connection.greet([{ proc: 4 }])
    processes.endOthers()
    const kill = await connection.next(request.signal, 4)
    expect(kill.payload).toEqual(Buffer.of(9, 0, 0, 0, 1))
    connection.exit(4, 0)
    await connection.next(request.forget, 4)
  })

  test('a request to forget that was lost is made good', async () => {
    const process = processes.run(1, spawn(), sinks())
    processes.endOthers()
    const first = await init.connection(0)
    await first.greet()
    first.exit(1, 0)
    await process.ended
    process.forget()
    await first.next(request.forget, 1)
    first.drop()
    const second = await init.connection(1)
    await second.greet([{ proc: 1, state: 2 }])
    second.exit(1, 0)
    await second.next(request.forget, 1)
  })

  test('a frozen sandbox is waited for', async () => {
    let frozen = true
    let asked = 0
    const isFrozen = () => {
      asked += 1
      return frozen
    }
    const patient = Processes.open({ socket: init.path, log, timeoutMs: 5, frozen: isFrozen })
    const connection = await init.connection(1)
    const process = patient.run(1, spawn(), sinks())
    process.signal(15, 'process')
    while (asked < 3) await new Promise((resolve) => setTimeout(resolve, 1))
    await connection.greet([{ proc: 1 }])
    await connection.next(request.signal, 1)
    const other = Processes.open({ socket: init.path, log, timeoutMs: 5, frozen: isFrozen })
    frozen = false
    expect(await other.closed).toBeInstanceOf(Error)
    await expect(other.known()).rejects.toThrow('reach berth-init')
    patient.close()
    expect(await patient.closed).toBeUndefined()
  })

  test('letting go does not wait for a frozen sandbox', async () => {
    const patient = Processes.open({ socket: init.path, log, timeoutMs: 5, frozen: () => true })
    await init.connection(1)
    patient.close()
    expect(await patient.closed).toBeUndefined()
  })
})

describe('going on with a process of an agent before', () => {
  test('what berth-init knows goes on, what it does not know is not started', async () => {
    const [known, unknown] = [sinks(), sinks()]
    const going = processes.resume(5, 4, known)
    const never = processes.resume(6, 4, unknown)
    const connection = await init.connection(0)
    await connection.greet([{ proc: 5, stdoutStart: 3, stdinExpected: 2 }])
    expect(await never.ended).toMatchObject({ kind: 'gone', error: expect.any(UnknownProcess) })
    connection.started(5)
    await going.started
    expect(known.stdout.resumedAt).toBe(3)
    await going.write(undefined, Buffer.alloc(0))
    expect(going.stdinAccepted).toBe(2)
    expect(connection.requests.some(({ type }) => type === request.spawn)).toBe(false)
  })
})
