import { createHash } from 'node:crypto'
import { readdirSync, readFileSync, readlinkSync } from 'node:fs'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { setTimeout as pause } from 'node:timers/promises'
import type { ExecFrame } from '@berth/contracts'
import type { WebSocket } from '@berth/node-rpc'
import { afterAll, afterEach, beforeAll, describe, expect, test } from '@jest/globals'
import { ExecNode } from './exec-node.fixture.js'

let node: ExecNode
beforeAll(async () => {
  node = await ExecNode.open()
})
afterAll(() => node[Symbol.asyncDispose]())
afterEach(async () => {
  for (const { id } of (await node.json('GET', [])).items) await node.call('DELETE', [id])
})

const MiB = 1024 ** 2
const sh = (script: string, more: object = {}) => ({ command: ['sh', '-c', script], ...more })
const start = async (spec: object): Promise<string> => (await node.json('POST', [], { json: spec })).id
const waitFor = (id: string) => node.json('GET', [id], { query: { wait: 'ended', timeoutMs: '60s', output: true } })

async function* framesOf(body: Readable): AsyncGenerator<ExecFrame> {
  let rest = ''
  for await (const chunk of body.setEncoding('utf8')) {
    const lines = (rest + chunk).split('\n')
    rest = lines.pop() ?? ''
    for (const line of lines) yield JSON.parse(line)
  }
  expect(rest).toBe('')
}
async function until(what: string, probe: () => Promise<boolean> | boolean): Promise<void> {
  const end = Date.now() + 20_000
  while (!(await probe())) {
    if (Date.now() > end) throw new Error(`not in time: ${what}`)
    await pause(10)
  }
}

/** What came over a socket, put together by stream. */
class Listener {
  readonly output: Record<string, Buffer[]> = { stdout: [], stderr: [] }
  // biome-ignore lint/suspicious/noExplicitAny: frames of every shape, checked by each test
  readonly told: any[] = []
  bytes = 0
  closed: { code: number; reason: string } | undefined

  constructor(readonly socket: WebSocket) {
    socket.on('message', (data, binary) => {
      if (!Buffer.isBuffer(data)) throw new Error('a frame that is not whole')
      if (!binary) {
        this.told.push(JSON.parse(data.toString()))
        return
      }
      this.bytes += data.length - 1
      this.output[data[0] === 1 ? 'stdout' : 'stderr']?.push(data.subarray(1))
    })
    socket.on('close', (code, reason) => {
      this.closed = { code, reason: reason.toString() }
    })
    socket.resume()
  }
  text(stream = 'stdout'): string {
    return Buffer.concat(this.output[stream] ?? []).toString()
  }
  input(text: string): void {
    this.socket.send(Buffer.concat([Buffer.of(0), Buffer.from(text)]))
  }
  control(frame: object): void {
    this.socket.send(JSON.stringify(frame))
  }
  types(): string[] {
    return this.told.map(({ type }) => type)
  }
}
const attach = async (id: string, query = {}) => new Listener(await node.socket(id, query))

describe('one call', () => {
  test('runs a command and answers with its output, exit code and usage', async () => {
    const exec = await node.run(sh('echo out; printf "gr\\303\\274n" >&2; exit 3'))
    expect(exec).toMatchObject({
      state: 'exited',
      exitCode: 3,
      signal: null,
      timedOut: false,
      oomKilled: false,
      message: null,
      stdout: { bytes: 4, from: 0 },
      stderr: { bytes: 5, from: 0 },
      output: {
        stdout: { data: 'out\n', encoding: 'utf8', truncated: false },
        stderr: { data: 'grün', encoding: 'utf8', truncated: false },
      },
    })
    expect(exec.pid).toBeGreaterThan(1)
    expect(exec.usage.wallMs).toBeGreaterThan(0)
    expect(exec.usage.peakMemoryBytes).toBeGreaterThan(0)
    expect(exec.id).toMatch(/^exe_/)
  })

  test('environment, directory, user by name and groups are its own or the sandbox’s', async () => {
    const exec = await node.run(
      sh('echo "$A|$HOME|$(pwd)|$(id -u):$(id -g)|$(id -G)"', {
        env: { A: 'x y' },
        user: 'app',
        workingDir: '/tmp',
        groups: ['extra', '77'],
      }),
    )
    const [a, home, cwd, ids, groups] = exec.output.stdout.data.trim().split('|')
    expect([a, home, cwd, ids]).toEqual(['x y', '/home/app', '/tmp', '1000:1000'])
    expect(groups.split(' ').toSorted()).toEqual(['1000', '2000', '77'])
  })

  test('a user that the sandbox added itself is found', async () => {
    await node.run(sh('echo "later:x:4321:0::/:/bin/sh" >> /etc/passwd'))
    expect((await node.run({ command: ['id', '-u'], user: 'later' })).output.stdout.data).toBe('4321\n')
    expect(await node.run({ command: ['id'], user: 'nobody' })).toMatchObject({ state: 'failed', exitCode: null })
  })

  test.each([
    [['/no/such'], 127],
    [['no-such'], 127],
    [['/bin/not-executable'], 126],
    [['/etc'], 126],
  ])('%j fails with exit code %i', async (command, exitCode) => {
    expect(await node.run({ command })).toMatchObject({ state: 'failed', exitCode, message: expect.any(String) })
  })

  test('a timeout, a signal and memory that runs out are told apart', async () => {
    expect(await node.run({ command: ['sleep', '1000'], timeoutMs: 50 })).toMatchObject({
      ...{ state: 'exited', timedOut: true, signal: 'SIGTERM', oomKilled: false },
    })
    expect(await node.run(sh('kill -SEGV $$'))).toMatchObject({ timedOut: false, signal: 'SIGSEGV', message: null })
    expect(await node.run(sh('exec tail /dev/zero'))).toMatchObject({
      ...{ state: 'exited', timedOut: false, signal: 'SIGKILL', oomKilled: true },
      message: expect.stringMatching(/out of memory/),
    })
    expect(await node.run(sh('kill -KILL $$'))).toMatchObject({ signal: 'SIGKILL', oomKilled: false })
  })

  test('answers in time though it runs on, and can be waited for again', async () => {
    const query = { wait: 'ended', timeoutMs: '20ms', output: true }
    const exec = await node.json('POST', [], { json: sh('read -r x; exit 4', { stdin: true }), query })
    expect(exec).toMatchObject({ state: 'running', endedAt: null })
    expect(exec.output).toBeUndefined()
    await node.json('POST', [exec.id, 'input'], { body: Readable.from([Buffer.from('go\n')]) })
    expect(await waitFor(exec.id)).toMatchObject({ state: 'exited', exitCode: 4 })
  })

  test('whole input comes with it', async () => {
    const input = Buffer.from('x'.repeat(300_000))
    const exec = await node.run({ command: ['wc', '-c'], input: input.toString('base64') })
    expect(exec.output.stdout.data.trim()).toBe('300000')
    expect(exec.stdinBytes).toBe(300_000)
  })

  test('bytes that are no text come as they are', async () => {
    const exec = await node.run(sh('printf "\\377\\000\\001"'))
    expect(exec.output.stdout).toMatchObject({ encoding: 'base64', data: Buffer.of(255, 0, 1).toString('base64') })
  })

  test('of much output the last MiB comes with it, and the rest can be read', async () => {
    const exec = await node.run(sh('seq 1 400000'))
    expect(exec.output.stdout).toMatchObject({ truncated: true, bytes: 2_688_895 })
    expect(exec.output.stdout.data).toHaveLength(MiB)
    expect(exec.output.stdout.data).toMatch(/\n400000\n$/)
    const { body, headers } = await node.call('GET', [exec.id, 'output', 'stdout'], { query: { since: 2_688_888 } })
    expect(headers['berth-offset']).toBe('2688888')
    expect(Buffer.concat(await body.toArray()).toString()).toBe('400000\n')
  })
})

describe('bad requests', () => {
  test('unknown execs and unknown paths are not there', async () => {
    for (const [method, rest] of [
      ['GET', ['nothing']],
      ['GET', ['nothing', 'stream']],
      ['GET', ['nothing', 'output', 'stdout']],
      ['DELETE', ['nothing']],
    ] as const)
      await expect(node.call(method, rest)).rejects.toMatchObject({ code: 'exec_not_found' })
    await expect(node.call('POST', ['nothing', 'signal'], { json: { signal: 15 } })).rejects.toMatchObject({
      code: 'exec_not_found',
    })
    await expect(node.socket('nothing')).rejects.toMatchObject({ code: 'exec_not_found' })
    await expect(node.call('PUT', [])).rejects.toThrow(/route_not_found/)
    await expect(node.call('GET', ['x', 'output', 'stdin'])).rejects.toMatchObject({ code: 'invalid_request' })
  })

  test('what makes no sense is refused, and names the field', async () => {
    await expect(node.call('POST', [], { json: { command: [] } })).rejects.toMatchObject({
      code: 'invalid_request',
      message: expect.stringMatching(/command/),
    })
    await expect(
      node.call('POST', [], { json: sh('true', { tty: { rows: 0, columns: 100_000 } }) }),
    ).rejects.toMatchObject({ code: 'invalid_request' })
  })

  test('in a sandbox that is paused nothing is started', async () => {
    node.state = 'paused'
    await expect(node.run(sh('true'))).rejects.toMatchObject({ code: 'wrong_state' })
    node.state = 'running'
  })
})

describe('streams', () => {
  test('lines of JSON: the beginning, both streams as they come, and the end after the last byte', async () => {
    const { body } = await node.call('POST', ['stream'], { json: sh('echo one; echo two >&2; exit 7') })
    const frames: ExecFrame[] = []
    for await (const frame of framesOf(body)) frames.push(frame)
    expect(frames[0]).toMatchObject({ type: 'started', exec: expect.any(String), pid: expect.any(Number) })
    expect(frames.slice(1, -1)).toEqual(
      expect.arrayContaining([
        { type: 'stdout', offset: 0, data: 'one\n', encoding: 'utf8' },
        { type: 'stderr', offset: 0, data: 'two\n', encoding: 'utf8' },
      ]),
    )
    expect(frames.at(-1)).toMatchObject({ type: 'end', exec: { state: 'exited', exitCode: 7 } })
  })

  test('characters that the command cuts come whole', async () => {
    const { body } = await node.call('POST', ['stream'], {
      json: sh('printf "a\\342"; sleep 0.1; printf "\\202"; sleep 0.1; printf "\\254b"'),
    })
    let text = ''
    for await (const frame of framesOf(body))
      if (frame.type === 'stdout') {
        expect(frame.encoding).toBe('utf8')
        text += frame.data
      }
    expect(text).toBe('a€b')
  })

  test('a caller that leaves ends nothing, and goes on where it was', async () => {
    const gone = new AbortController()
    const { body } = await node.call('POST', ['stream'], {
      json: sh('echo first; read -r x; echo "second $x"', { id: 'resumed', stdin: true }),
      signal: gone.signal,
    })
    for await (const frame of framesOf(body)) if (frame.type === 'stdout') break
    gone.abort()
    await node.json('POST', ['resumed', 'input'], { body: Readable.from([Buffer.from('go\n')]), query: { end: true } })
    const again = await node.call('GET', ['resumed', 'stream'], { query: { stdout: 6 } })
    const texts: string[] = []
    for await (const frame of framesOf(again.body)) if (frame.type === 'stdout') texts.push(frame.data)
    expect(texts.join('')).toBe('second go\n')
  })

  test('100 MiB: a fast reader gets all of it, a slow one a gap, and neither waits for the other', async () => {
    const bytes = 100 * MiB
    // A MiB for each line of input, which comes when the fast reader has the one before: it is never behind.
    const mebibytes = `while read -r x; do yes 0123456789abcde | head -c ${MiB}; done`
    const id = await start(sh(mebibytes, { outputBytes: '8m', stdin: true }))
    const more = (text: string, query = {}) =>
      node.json('POST', [id, 'input'], { body: Readable.from([Buffer.from(text)]), query })
    await more('\n')
    const slow = await node.call('GET', [id, 'stream'])
    const { body } = await node.call('GET', [id, 'output', 'stdout'], { query: { follow: true } })
    const fast = createHash('sha256')
    let length = 0
    for await (const chunk of body) {
      fast.update(chunk)
      const before = length
      length += chunk.length
      if (Math.floor(before / MiB) === Math.floor(length / MiB)) continue
      if (length < bytes) await more('\n')
      else await more('', { end: true })
    }
    const whole = createHash('sha256')
    const block = Buffer.from('0123456789abcde\n'.repeat(65_536))
    for (let i = 0; i < 100; i++) whole.update(block)
    expect(length).toBe(bytes)
    expect(fast.digest('hex')).toBe(whole.digest('hex'))

    let at = 0
    let gaps = 0
    for await (const frame of framesOf(slow.body)) {
      if (frame.type === 'gap') {
        expect(frame.offset).toBeGreaterThan(at)
        at = frame.offset
        gaps += 1
      }
      if (frame.type !== 'stdout') continue
      expect(frame.offset).toBe(at)
      const expected = block.subarray(at % 16, (at % 16) + frame.data.length)
      if (frame.data !== expected.toString()) throw new Error(`other bytes at ${at}`)
      at += frame.data.length
    }
    expect(gaps).toBeGreaterThan(0)
    expect(at).toBe(bytes)
    expect(await waitFor(id)).toMatchObject({ stdout: { bytes } })
  })

  test('raw output without following ends where it is', async () => {
    const id = await start(sh('echo so far; exec sleep 1000'))
    await until('output', async () => (await node.json('GET', [id])).stdout.bytes === 7)
    const { body } = await node.call('GET', [id, 'output', 'stdout'])
    expect(Buffer.concat(await body.toArray()).toString()).toBe('so far\n')
  })
})

describe('input', () => {
  test('goes on by offset over any number of requests; a gap is refused, a repeat dropped', async () => {
    const id = await start({ command: ['cat'], stdin: true })
    const write = (text: string, query = {}) =>
      node.json('POST', [id, 'input'], { body: Readable.from([Buffer.from(text)]), query })
    expect(await write('hello ')).toEqual({ stdinBytes: 6 })
    expect(await write('lo world', { offset: 3 })).toEqual({ stdinBytes: 11 })
    await expect(write('x', { offset: 12 })).rejects.toMatchObject({ code: 'input_gap', data: { stdinBytes: 11 } })
    expect(await write('', { end: true })).toEqual({ stdinBytes: 11 })
    expect((await waitFor(id)).output.stdout.data).toBe('hello world')
    await expect(write('late')).rejects.toMatchObject({ code: 'wrong_state' })
  })

  test('a caller that vanishes half-way leaves what it wrote, and another goes on', async () => {
    const id = await start({ command: ['busybox', 'sha256sum'], stdin: true })
    const gone = new AbortController()
    const half = async function* () {
      yield Buffer.alloc(100_000, 'a')
      await pause(50)
      gone.abort()
      await pause(1000)
      yield Buffer.from('never')
    }
    const broken = node.call('POST', [id, 'input'], {
      body: Readable.from(half()),
      query: { offset: 0 },
      signal: gone.signal,
    })
    await expect(broken).rejects.toThrow()
    await until('the first half', async () => (await node.json('GET', [id])).stdinBytes === 100_000)
    const rest = Readable.from([Buffer.alloc(50_000, 'b')])
    await node.json('POST', [id, 'input'], { body: rest, query: { offset: 100_000, end: true } })
    const hash = createHash('sha256').update(Buffer.alloc(100_000, 'a')).update(Buffer.alloc(50_000, 'b'))
    expect((await waitFor(id)).output.stdout.data).toBe(`${hash.digest('hex')}  -\n`)
  })

  test('where none was asked for there is none', async () => {
    const exec = await node.run({ command: ['cat'] })
    expect(exec).toMatchObject({ exitCode: 0, stdout: { bytes: 0 } })
    const id = await start(sh('exec sleep 1000'))
    const write = node.json('POST', [id, 'input'], { body: Readable.from([Buffer.from('x')]) })
    await expect(write).rejects.toMatchObject({ code: 'wrong_state' })
  })
})

describe('signals, sizes and deletion', () => {
  test('a signal goes to the group, or to the process alone', async () => {
    const id = await start(sh('trap "exit 9" USR1; echo up; while :; do sleep 0.05; done'))
    await until('the trap', async () => (await node.json('GET', [id])).stdout.bytes > 0)
    await node.json('POST', [id, 'signal'], { json: { signal: 'USR1', group: false } })
    expect(await waitFor(id)).toMatchObject({ exitCode: 9 })
    await expect(node.json('POST', [id, 'signal'], { json: { signal: 9 } })).rejects.toMatchObject({
      code: 'wrong_state',
    })
  })

  test('a terminal has its size, and is told another', async () => {
    const id = await start(sh('while read -r x; do busybox stty size; done', { tty: { rows: 10, columns: 20 } }))
    await node.json('POST', [id, 'resize'], { json: { rows: 30, columns: 40 } })
    await node.json('POST', [id, 'input'], { body: Readable.from([Buffer.from('\n')]), query: { end: true } })
    expect((await waitFor(id)).output.stdout.data).toMatch(/30 40\r\n$/)
    const plain = await start(sh('exec sleep 1000'))
    await expect(node.json('POST', [plain, 'resize'], { json: { rows: 1, columns: 1 } })).rejects.toMatchObject({
      code: 'wrong_state',
    })
  })

  test('deleting kills, and those who wait or read are told', async () => {
    const id = await start(sh('echo $$; exec sleep 1000'))
    const waiting = waitFor(id)
    const reading = await node.call('GET', [id, 'stream'])
    const socket = await attach(id)
    await until('output', () => socket.bytes > 0)
    const broken = reading.body.toArray()
    const outcomes = Promise.allSettled([waiting, broken])
    expect((await node.call('DELETE', [id])).status).toBe(204)
    const [waited, read] = await outcomes
    expect(waited).toMatchObject({ status: 'rejected', reason: { code: 'exec_not_found' } })
    expect(read.status).toBe('rejected')
    await until('close', () => socket.closed !== undefined)
    expect(socket.closed).toMatchObject({ code: 4404 })
    await expect(node.json('GET', [id])).rejects.toMatchObject({ code: 'exec_not_found' })
    expect((await node.run(sh(`kill -0 ${socket.text().trim()} 2>/dev/null || echo dead`))).output.stdout.data).toBe(
      'dead\n',
    )
  })

  test('what a command leaves in the background lives on, and may write', async () => {
    const exec = await node.run(sh('(sleep 0.3; echo late; sleep 1000) & echo $!'))
    expect(exec).toMatchObject({ state: 'exited', exitCode: 0 })
    const background = exec.output.stdout.data.trim()
    await until('late output', async () => (await node.json('GET', [exec.id])).stdout.bytes > exec.stdout.bytes)
    expect(await node.run(sh(`kill ${background}`))).toMatchObject({ exitCode: 0 })
  })
})

describe('the same id', () => {
  test('finds the first one; with another request it is refused', async () => {
    const spec = sh('echo once >> /tmp/count; cat /tmp/count', { id: 'chosen' })
    const [first, second] = await Promise.all([node.run(spec), node.run(spec)])
    expect(first.output.stdout.data).toBe('once\n')
    expect(second).toEqual(first)
    await expect(node.run(sh('true', { id: 'chosen' }))).rejects.toMatchObject({ code: 'id_taken' })
  })
})

describe('a socket', () => {
  test('carries output, input, half-close, signals and the end', async () => {
    const id = await start(sh('echo error >&2; cat; echo over', { stdin: true }))
    const socket = await attach(id)
    await until('started', () => socket.told.length > 0)
    expect(socket.told[0]).toMatchObject({ type: 'started', exec: id, stdinBytes: 0 })
    socket.input('grün ')
    socket.input('tea')
    socket.control({ type: 'ping' })
    await until('echo', () => socket.text() === 'grün tea')
    socket.control({ type: 'eof' })
    await until('close', () => socket.closed !== undefined)
    expect(socket.text()).toBe('grün teaover\n')
    expect(socket.text('stderr')).toBe('error\n')
    expect(socket.types()).toEqual(expect.arrayContaining(['pong', 'stdinAck']))
    expect(socket.told.at(-1)).toMatchObject({ type: 'end', exec: { state: 'exited', exitCode: 0 } })
    expect(socket.told.filter(({ type }) => type === 'stdinAck').at(-1)).toMatchObject({ offset: 9 })
    expect(socket.closed).toMatchObject({ code: 1000 })
  })

  test('many see the same, each from where it asks, and go without a trace', async () => {
    const id = await start(sh('echo 0123456789; read -r x; echo end', { stdin: true }))
    const sockets = await Promise.all([attach(id), attach(id, { stdout: 4 }), attach(id, { stdout: 99 }), attach(id)])
    await until('the first output', () => sockets[0].bytes > 0 && sockets[3].bytes > 0)
    sockets[0].socket.terminate()
    sockets[3].input('\n')
    for (const socket of sockets) await until('close', () => socket.closed !== undefined)
    expect(sockets.map((socket) => socket.text())).toEqual(['0123456789\n', '456789\nend\n', '', '0123456789\nend\n'])
  })

  test('input that is repeated at its offset is taken once', async () => {
    const id = await start({ command: ['cat'], stdin: true })
    const first = await attach(id, { stdin: 0 })
    first.input('abc')
    await until('taken', () => first.types().includes('stdinAck'))
    first.socket.terminate()
    const second = await attach(id, { stdin: 1 })
    second.input('bcde')
    second.control({ type: 'eof' })
    await until('close', () => second.closed !== undefined)
    expect(second.text()).toBe('abcde')
    const third = await attach(id, { stdin: 0 })
    await until('close', () => third.closed !== undefined)
    expect(third.text()).toBe('abcde')
  })

  test('a frame that makes no sense closes it, and nothing else', async () => {
    const id = await start({ command: ['cat'], stdin: true })
    const garbage: ((socket: Listener) => void)[] = [
      (s) => s.socket.send(Buffer.of(7, 1, 2)),
      (s) => s.socket.send(Buffer.alloc(0)),
      (s) => s.socket.send('no json'),
      (s) => s.socket.send('{"type":"unknown"}'),
      (s) => s.socket.send('{"type":"resize","rows":0,"columns":100000}'),
      (s) => s.socket.send('{"type":"signal","signal":"SIGNOTHING"}'),
      (s) => s.socket.send('[]'),
    ]
    for (const send of garbage) {
      const socket = await attach(id)
      send(socket)
      await until('close', () => socket.closed !== undefined)
      expect(socket.closed).toMatchObject({ code: 4400 })
    }
    const large = await attach(id)
    large.socket.send(Buffer.alloc(10 * MiB))
    await until('close', () => large.closed !== undefined)
    expect(large.closed?.code).toBe(1009)
    const good = await attach(id)
    good.input('still here')
    good.control({ type: 'eof' })
    await until('close', () => good.closed !== undefined)
    expect(good.text()).toBe('still here')
  })

  test('what is refused is told, and the socket stays open', async () => {
    const id = await start(sh('exec sleep 1000'))
    const socket = await attach(id)
    socket.input('x')
    socket.control({ type: 'resize', rows: 1, columns: 1 })
    await until('errors', () => socket.told.filter(({ type }) => type === 'error').length === 2)
    expect(socket.told.filter(({ type }) => type === 'error')).toEqual([
      expect.objectContaining({ code: 'wrong_state' }),
      expect.objectContaining({ code: 'wrong_state' }),
    ])
    socket.control({ type: 'signal', signal: 'KILL' })
    await until('close', () => socket.closed !== undefined)
    expect(socket.told.at(-1)).toMatchObject({ type: 'end', exec: { signal: 'SIGKILL' } })
  })

  test('one that does not read holds up nobody, and is told of the gap', async () => {
    const bytes = 60 * MiB
    const id = await start(sh(`read -r x; yes 0123456789abcde | head -c ${bytes}`, { outputBytes: '4m', stdin: true }))
    const slow = await attach(id)
    await until('started', () => slow.told.length > 0)
    slow.socket.pause()
    const fast = await attach(id)
    fast.input('\n')
    await until('all of it', () => fast.closed !== undefined)
    expect(fast.bytes + gapBytes(fast)).toBe(bytes)
    slow.socket.resume()
    await until('the slow one', () => slow.closed !== undefined)
    expect(slow.types()).toContain('gap')
    expect(slow.told.at(-1)).toMatchObject({ type: 'end', exec: { exitCode: 0 } })
    const last = slow.told.filter(({ type }) => type === 'gap').at(-1)
    expect(last.offset).toBeLessThan(bytes)
  })

  const gapBytes = (socket: Listener): number => {
    // A loaded machine may make the fast one slow as well; then it was told.
    let at = 0
    for (const { type, offset } of socket.told) if (type === 'gap') at = offset
    return at === 0 ? 0 : 60 * MiB - socket.bytes
  }

  test('a flood of input is paced by the command', async () => {
    const id = await start(sh('sleep 0.3; exec wc -c', { stdin: true }))
    const socket = await attach(id)
    for (let i = 0; i < 80; i++) socket.socket.send(Buffer.concat([Buffer.of(0), Buffer.alloc(65_536, 'i')]))
    socket.control({ type: 'eof' })
    await until('close', () => socket.closed !== undefined)
    expect(socket.text().trim()).toBe(String(80 * 65_536))
    expect(socket.types()).not.toContain('error')
  })
})

describe('another agent', () => {
  test('no byte of output is lost or doubled, input goes on, and what ended meanwhile is told', async () => {
    const counting = 'i=0; while [ $i -lt 3000 ]; do i=$((i+1)); echo "line $i"; done; read -r x; echo "got $x"'
    const id = await start(sh(counting, { stdin: true, id: 'counting' }))
    const meanwhile = await start(sh('read -r x; echo "$x" >&2; exit 6', { stdin: true, id: 'meanwhile' }))
    const whole = Buffer.from('x'.repeat(200_000)).toString('base64')
    const slowly = await start({ command: ['sh', '-c', 'sleep 0.5; wc -c'], input: whole, id: 'slowly' })
    await node.json('POST', [meanwhile, 'input'], { body: Readable.from([Buffer.from('go\n')]) })
    for (let i = 0; i < 3; i++) {
      await node.goDown()
      await node.comeUp()
    }
    await node.goDown()
    await pause(300)
    await node.comeUp()
    expect(await waitFor(meanwhile)).toMatchObject({ exitCode: 6, output: { stderr: { data: 'go\n' } } })
    await node.json('POST', [id, 'input'], { body: Readable.from([Buffer.from('it\n')]), query: { offset: 0 } })
    const expected = `${Array.from({ length: 3000 }, (_, i) => `line ${i + 1}\n`).join('')}got it\n`
    expect((await waitFor(id)).output.stdout.data).toBe(expected)
    expect((await waitFor(slowly)).output.stdout.data.trim()).toBe('200000')
    const { body } = await node.call('GET', [id, 'output', 'stdout'], { query: { since: 10 } })
    expect(Buffer.concat(await body.toArray()).toString()).toBe(expected.slice(10))
  })

  test('a flood goes on through it', async () => {
    const bytes = 40 * MiB
    const id = await start(sh(`yes 0123456789abcde | head -c ${bytes}`, { outputBytes: '64m' }))
    for (let i = 0; i < 4; i++) {
      await pause(20)
      await node.goDown()
      await node.comeUp()
    }
    const exec = await waitFor(id)
    expect(exec).toMatchObject({ state: 'exited', exitCode: 0, stdout: { bytes, from: 0 } })
    const { body } = await node.call('GET', [id, 'output', 'stdout'])
    const [hash, whole] = [createHash('sha256'), createHash('sha256')]
    for await (const chunk of body) hash.update(chunk)
    for (let i = 0; i < 40; i++) whole.update('0123456789abcde\n'.repeat(65_536))
    expect(hash.digest('hex')).toBe(whole.digest('hex'))
  })

  test('background processes and their output survive it as well', async () => {
    const holding = '(read -r x < /tmp/fifo; echo "late $x") & echo now'
    const exec = await node.run(sh(`busybox mkfifo /tmp/fifo; ${holding}`, { id: 'holding' }))
    expect(exec.output.stdout.data).toBe('now\n')
    await node.goDown()
    await node.comeUp()
    await node.run(sh('echo word > /tmp/fifo'))
    await until('late output', async () => (await node.json('GET', ['holding'])).stdout.bytes === 14)
    expect((await waitFor('holding')).output.stdout.data).toBe('now\nlate word\n')
  })
})

describe('many', () => {
  test('64 at once do not mix', async () => {
    const runs = await Promise.all(
      Array.from({ length: 64 }, (_, i) =>
        node.run(sh(`cat; echo ${i} >&2; exit ${i}`, { input: Buffer.from(`in ${i}`).toString('base64') })),
      ),
    )
    for (const [i, exec] of runs.entries())
      expect(exec).toMatchObject({ exitCode: i, output: { stdout: { data: `in ${i}` }, stderr: { data: `${i}\n` } } })
  })

  test('more than 128 are refused', async () => {
    const spec = sh('exec sleep 1000')
    const made = await Promise.allSettled(Array.from({ length: 140 }, () => start(spec)))
    expect(made.filter(({ status }) => status === 'fulfilled')).toHaveLength(128)
    const refused = made.find((one) => one.status === 'rejected')
    expect(refused).toMatchObject({ reason: { code: 'quota_exceeded', data: { quota: 'execs', limit: 128 } } })
    expect(node.occupied).toBe(128)
  })

  test('a thousand in a row leave nothing: no process, file, descriptor or memory', async () => {
    await node.run(sh('true'))
    const descriptors = () =>
      readdirSync('/proc/self/fd').filter((fd) => {
        try {
          return !/^(anon_inode|socket):/.test(readlinkSync(`/proc/self/fd/${fd}`))
        } catch {
          return false
        }
      }).length
    const before = descriptors()
    for (let i = 0; i < 1000; i++) {
      const { exitCode } = await node.run({ command: ['echo', `${i}`] })
      if (exitCode !== 0) throw new Error(`run ${i} ended with ${exitCode}`)
    }
    for (const { id } of (await node.json('GET', [])).items) await node.call('DELETE', [id])
    expect(await node.processes.known()).toBeDefined()
    expect(readdirSync(join(node.directory, 'execs'))).toEqual(['records'])
    expect(readFileSync(join(node.directory, 'execs', 'records')).length).toBeLessThan(MiB)
    expect(descriptors()).toBeLessThanOrEqual(before + 1)
    expect(node.occupied).toBe(0)
    await node.goDown()
    await node.comeUp()
    expect(await node.processes.known()).toEqual([])
  })
})
