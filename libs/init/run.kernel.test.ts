import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, readFileSync } from 'node:fs'
import { Socket } from 'node:net'
import { constants } from 'node:os'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { afterEach, beforeEach, describe, expect, test } from '@jest/globals'

const program = join(process.env.BERTH_INIT_BUILD ?? join(import.meta.dirname, 'build'), 'berth-run')
const { errno, signals } = constants

const u32 = (value: number) => {
  const bytes = Buffer.alloc(4)
  bytes.writeUInt32LE(value)
  return bytes
}
const string = (text: string) => Buffer.concat([u32(Buffer.byteLength(text)), Buffer.from(text)])
const list = (texts: readonly string[]) => Buffer.concat([u32(texts.length), ...texts.map(string)])
const startOf = (argv: readonly string[], env: readonly string[] = ['PATH=/usr/bin:/bin'], cwd = '/') =>
  Buffer.concat([string(cwd), list(argv), list(env)])
function frame(type: number, id: number, payload = Buffer.alloc(0)): Buffer {
  return Buffer.concat([u32(payload.length), Buffer.from([type, 0, 0, 0]), u32(id), payload])
}

interface End {
  readonly kind: number
  readonly value: number
}

/** berth-run and our end of its socket. */
class Runner {
  readonly ends = new Map<number, End>()
  readonly output = new Map<string, Buffer[]>()
  #buffered = Buffer.alloc(0)

  private constructor(
    readonly child: ChildProcess,
    readonly socket: Socket,
  ) {
    socket.on('data', (chunk: Buffer) => this.#receive(chunk))
    socket.on('error', () => socket.destroy())
  }

  static async start(): Promise<Runner> {
    const child = spawn(program, [], { stdio: ['ignore', 'ignore', 'inherit', 'pipe'], env: {} })
    await once(child, 'spawn')
    const socket = child.stdio[3]
    if (!(socket instanceof Socket)) throw new Error('no socket')
    return new Runner(child, socket)
  }

  send(...frames: readonly Buffer[]): void {
    this.socket.write(Buffer.concat(frames))
  }

  async end(id: number): Promise<End> {
    await until(`end of ${id}`, () => this.ends.has(id))
    return this.ends.get(id) ?? { kind: -1, value: -1 }
  }

  text(id: number, stream = 1): string {
    return Buffer.concat(this.output.get(`${id}/${stream}`) ?? []).toString()
  }

  async gone(): Promise<number | null> {
    if (this.child.exitCode === null && this.child.signalCode === null) await once(this.child, 'exit')
    return this.child.exitCode
  }

  #receive(chunk: Buffer): void {
    this.#buffered = Buffer.concat([this.#buffered, chunk])
    for (;;) {
      if (this.#buffered.length < 12) return
      const size = 12 + this.#buffered.readUInt32LE(0)
      if (this.#buffered.length < size) return
      const payload = Buffer.from(this.#buffered.subarray(12, size))
      const [type, stream, id] = [this.#buffered[4], this.#buffered[5], this.#buffered.readUInt32LE(8)]
      if (type === 65) this.output.set(`${id}/${stream}`, [...(this.output.get(`${id}/${stream}`) ?? []), payload])
      else this.ends.set(id, { kind: payload.readUInt8(0), value: payload.readInt32LE(1) })
      this.#buffered = this.#buffered.subarray(size)
    }
  }
}

async function until(what: string, condition: () => boolean): Promise<void> {
  for (const end = Date.now() + 60_000; !condition(); await delay(5))
    if (Date.now() > end) throw new Error(`never: ${what}`)
}

/** Dead, at most not yet reaped by the system's init. */
const dead = (pid: number) => {
  try {
    return / Z /.test(readFileSync(`/proc/${pid}/stat`, 'utf8'))
  } catch {
    return true
  }
}

const EXITED = 0
const SIGNALED = 1
const NOT_STARTED = 2
const [START, KILL] = [1, 2]

let runner: Runner
beforeEach(async () => {
  runner = await Runner.start()
})
afterEach(async () => {
  runner.socket.destroy()
  await runner.gone()
})

describe('a program', () => {
  test('has its arguments, environment, directory and null input; both its streams and its end are told', async () => {
    const script = 'echo "$A $1"; pwd >&2; cat; exit 7'
    runner.send(frame(START, 9, startOf(['sh', '-c', script, 'sh', 'two words\n'], ['A=b', 'PATH=/bin'], '/usr')))
    expect(await runner.end(9)).toEqual({ kind: EXITED, value: 7 })
    expect([runner.text(9, 1), runner.text(9, 2)]).toEqual(['b two words\n\n', '/usr\n'])
  })

  test('holds nothing of ours: three descriptors, no blocked or ignored signal, a process group of its own', async () => {
    const script = 'ls /proc/self/fd | wc -l; grep -E "^Sig(Blk|Ign)" /proc/self/status; ps -o pgid= -p $$; echo $$'
    runner.send(frame(START, 1, startOf(['sh', '-c', script])))
    await runner.end(1)
    const [fds, blocked, ignored, group, pid] = runner.text(1).trim().split('\n')
    expect(Number(fds)).toBe(4) // ls holds the directory that it lists
    expect([blocked, ignored]).toEqual(['SigBlk:\t0000000000000000', 'SigIgn:\t0000000000000000'])
    expect(group?.trim()).toBe(pid)
  })

  test.each([
    ['is not there', ['/no/such'], errno.ENOENT],
    ['is not in PATH', ['no-such-program'], errno.ENOENT],
    ['is not executable', ['/etc/passwd'], errno.EACCES],
    ['has no name', [], errno.EINVAL],
  ] as const)('that %s is not started', async (_, argv, error) => {
    runner.send(frame(START, 1, startOf(argv)))
    expect(await runner.end(1)).toEqual({ kind: NOT_STARTED, value: error })
    runner.send(frame(START, 1, startOf(['true'])))
    await until('the number is free again', () => runner.ends.get(1)?.kind === EXITED)
  })

  test('is killed with its group', async () => {
    runner.send(frame(START, 1, startOf(['sh', '-c', 'sleep 1000 & echo $!; wait'])))
    await until('it has begun', () => runner.text(1) !== '')
    runner.send(frame(KILL, 1))
    expect(await runner.end(1)).toEqual({ kind: SIGNALED, value: signals.SIGKILL })
    await until('its child too', () => dead(Number(runner.text(1))))
    runner.send(frame(KILL, 1), frame(KILL, 77), frame(START, 2, startOf(['true'])))
    expect(await runner.end(2)).toEqual({ kind: EXITED, value: 0 })
  })

  test('that leaves a daemon with its pipes is over soon', async () => {
    runner.send(frame(START, 1, startOf(['sh', '-c', 'sleep 1000 & echo $!'])))
    expect(await runner.end(1)).toEqual({ kind: EXITED, value: 0 })
    process.kill(Number(runner.text(1)), 'SIGKILL')
  })

  test('that floods is held up while nobody reads, and loses nothing', async () => {
    runner.socket.pause()
    const flood = 'head -c 20000000 /dev/zero; echo over >&2'
    runner.send(frame(START, 1, startOf(['sh', '-c', flood])), frame(START, 2, startOf(['true'])))
    await delay(100) // so that it has begun, where it can
    expect(runner.output.size).toBe(0)
    const resident = Number(/VmRSS:\s+(\d+)/.exec(readFileSync(`/proc/${runner.child.pid}/status`, 'utf8'))?.[1])
    expect(resident).toBeLessThan(process.env.BERTH_INIT_BUILD ? 64 * 1024 : 4 * 1024)
    runner.socket.resume()
    expect(await runner.end(1)).toEqual({ kind: EXITED, value: 0 })
    expect(runner.text(1).length).toBe(20_000_000)
    expect(await runner.end(2)).toEqual({ kind: EXITED, value: 0 })
  })
})

test('as many as it knows run at once, one more is refused, and all of them end', async () => {
  const ids = Array.from({ length: 256 }, (_, i) => i + 1)
  runner.send(...ids.map((id) => frame(START, id, startOf(['sleep', '1000']))), frame(START, 257, startOf(['true'])))
  expect(await runner.end(257)).toEqual({ kind: NOT_STARTED, value: errno.EAGAIN })
  runner.send(...ids.map((id) => frame(KILL, id)))
  for (const id of ids) expect(await runner.end(id)).toEqual({ kind: SIGNALED, value: signals.SIGKILL })
})

test('a number that is taken is refused', async () => {
  runner.send(frame(START, 5, startOf(['sleep', '1000'])), frame(START, 5, startOf(['true'])))
  expect(await runner.end(5)).toEqual({ kind: NOT_STARTED, value: errno.EEXIST })
})

test.each([
  ['an unknown frame', frame(3, 1)],
  ['a payload beyond the limit', Buffer.concat([u32(1 << 20), Buffer.from([START, 0, 0, 0]), u32(1)])],
  ['the number 0', frame(START, 0, startOf(['true']))],
])('%s ends it, and what it started', async (_, bytes) => {
  runner.send(frame(START, 1, startOf(['sh', '-c', 'echo $$; exec sleep 1000'])))
  await until('it runs', () => runner.text(1) !== '')
  runner.send(bytes)
  expect(await runner.gone()).toBe(0)
  await until('its program is dead', () => dead(Number(runner.text(1))))
})

test.each([
  ['a string that ends after the payload', Buffer.concat([string('/'), u32(1), u32(100), Buffer.from('true')])],
  ['more words than there are bytes', Buffer.concat([string('/'), u32(4000)])],
  ['more words than it takes', Buffer.concat([string('/'), u32(0xffff_ffff)])],
  ['a NUL in an argument', startOf(['echo', 'a\0b'])],
  ['bytes behind the end', Buffer.concat([startOf(['true']), Buffer.from('x')])],
  ['nothing', Buffer.alloc(0)],
])('a START with %s is refused, and the next one is not', async (_, payload) => {
  runner.send(frame(START, 1, payload), frame(START, 2, startOf(['echo', 'still here'])))
  expect(await runner.end(1)).toEqual({ kind: NOT_STARTED, value: errno.EINVAL })
  expect(await runner.end(2)).toEqual({ kind: EXITED, value: 0 })
  expect(runner.text(2)).toBe('still here\n')
})

test('frames may come in any pieces', async () => {
  const all = Buffer.concat([1, 2, 3].map((id) => frame(START, id, startOf(['echo', `number ${id}`]))))
  for (let at = 0; at < all.length; at += 7)
    await new Promise((sent) => runner.socket.write(all.subarray(at, at + 7), sent))
  for (const id of [1, 2, 3]) {
    await runner.end(id)
    expect(runner.text(id)).toBe(`number ${id}\n`)
  }
})

describe('killed in between', () => {
  test('it takes its programs along', async () => {
    runner.send(frame(START, 1, startOf(['sh', '-c', 'echo $$; exec sleep 1000'])))
    await until('it runs', () => runner.text(1) !== '')
    runner.child.kill('SIGKILL')
    await until('its program is dead', () => dead(Number(runner.text(1))))
  })

  test('an agent that is killed leaves neither it nor its programs', async () => {
    const script = `
      const child = require('node:child_process').spawn(${JSON.stringify(program)}, [], {
        stdio: ['ignore', 'ignore', 'inherit', 'pipe'], env: {} })
      child.stdio[3].write(Buffer.from(${JSON.stringify(
        frame(START, 1, startOf(['sh', '-c', 'echo $$ $PPID; exec sleep 1000'])).toString('base64'),
      )}, 'base64'))
      child.stdio[3].on('data', (chunk) => process.stdout.write(chunk.subarray(12)))`
    const agent = spawn(process.execPath, ['-e', script], { stdio: ['ignore', 'pipe', 'inherit'] })
    const [told]: Buffer[] = await once(agent.stdout, 'data')
    const pids = String(told).trim().split(' ').map(Number)
    expect(pids).toHaveLength(2)
    for (const pid of pids) expect(existsSync(`/proc/${pid}`)).toBe(true)
    agent.kill('SIGKILL')
    for (const pid of pids) await until(`${pid} is dead`, () => dead(pid))
  })
})
