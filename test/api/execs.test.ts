import { createHash } from 'node:crypto'
import { request } from 'node:http'
import { afterEach, beforeAll, describe, expect, test } from '@jest/globals'
import { type Answer, stack, type TestTenant, tenant, until } from '../support/berth.js'
import { crash, memoryOf, restart } from '../support/crash.js'
import { Attached } from '../support/socket.js'

const MiB = 1024 ** 2
let t: TestTenant
let sandbox: string

beforeAll(async () => {
  t = await tenant()
  const made = await t.post('/v1/sandboxes?wait=running', { image: 'debian', limits: { memoryBytes: '256m' } })
  if (made.status !== 201) throw new Error(`sandbox: ${JSON.stringify(made.body)}`)
  sandbox = made.body.id
})
afterEach(async () => {
  for (const { id } of (await t.get(`${execs()}`)).body.items) await t.delete(`${execs()}/${id}`)
})

const execs = (of = sandbox) => `/v1/sandboxes/${of}/execs`
const sh = (script: string, more: object = {}) => ({ command: ['sh', '-c', script], ...more })

async function ok(answer: Promise<Answer>): Promise<Answer['body']> {
  const { status, body } = await answer
  if (status >= 300) throw new Error(`${status}: ${JSON.stringify(body)}`)
  return body
}
const run = (spec: object) => ok(t.post(`${execs()}?wait=ended&timeoutMs=60s&output=true`, spec))
const start = async (spec: object): Promise<string> => (await ok(t.post(execs(), spec))).id
const ended = (id: string) => ok(t.get(`${execs()}/${id}?wait=ended&timeoutMs=60s&output=true`))
const write = async (id: string, text: string | Buffer, query = '') => {
  const response = await t.raw('POST', `${execs()}/${id}/input${query}`, { body: text })
  return { status: response.status, body: JSON.parse(await response.text()) }
}
const attach = (id: string, query = '') => Attached.open(t, `${execs()}/${id}/socket${query}`)

// biome-ignore lint/suspicious/noExplicitAny: frames of every shape, checked by each test
async function* frames(response: Response): AsyncGenerator<any> {
  let rest = ''
  const text = new TextDecoder()
  for await (const chunk of response.body ?? []) {
    const lines = (rest + text.decode(chunk, { stream: true })).split('\n')
    rest = lines.pop() ?? ''
    for (const line of lines) yield JSON.parse(line)
  }
}

describe('one call', () => {
  test('runs a command and answers with output, exit code and usage', async () => {
    const answer = await t.post(`${execs()}?wait=ended&output=true`, sh('echo out; echo err >&2; exit 3'))
    expect(answer.status).toBe(201)
    expect(answer.body).toMatchObject({
      state: 'exited',
      exitCode: 3,
      signal: null,
      timedOut: false,
      oomKilled: false,
      stdout: { bytes: 4, from: 0 },
      output: {
        stdout: { data: 'out\n', encoding: 'utf8', bytes: 4, truncated: false },
        stderr: { data: 'err\n', encoding: 'utf8', bytes: 4, truncated: false },
      },
    })
    expect(answer.body.usage.wallMs).toBeGreaterThan(0)
    expect(answer.body.spec).toMatchObject({ command: ['sh', '-c', 'echo out; echo err >&2; exit 3'] })
    expect(answer.body.spec).not.toHaveProperty('env')
  })

  test.each([0, 1, 42, 255])('exit code %i is told as it is', async (code) => {
    expect(await run(sh(`exit ${code}`))).toMatchObject({ state: 'exited', exitCode: code })
  })

  test.each([
    [['/no/such/program'], 127],
    [['no-such-program'], 127],
    [['/etc/passwd'], 126],
    [['/etc'], 126],
  ])('%j never runs: %i, as a shell says', async (command, exitCode) => {
    expect(await run({ command })).toMatchObject({ state: 'failed', exitCode, message: expect.any(String) })
  })

  test('timeouts, signals and memory that runs out are told apart', async () => {
    expect(await run({ command: ['sleep', '1000'], timeoutMs: 100 })).toMatchObject({
      ...{ state: 'exited', timedOut: true, signal: 'SIGTERM', oomKilled: false },
    })
    expect(await run(sh('kill -SEGV $$'))).toMatchObject({ timedOut: false, signal: 'SIGSEGV', oomKilled: false })
    expect(await run(sh('exec tail /dev/zero'))).toMatchObject({ signal: 'SIGKILL', oomKilled: true, timedOut: false })
    expect(await run(sh('kill -KILL $$'))).toMatchObject({ signal: 'SIGKILL', oomKilled: false })
  })

  test('environment, directory, user and groups', async () => {
    const script = 'echo "$A|$(pwd)|$(id -u):$(id -g)|$(id -G)"'
    const spec = { env: { A: 'x y' }, workingDir: '/tmp', user: '1000:1001', groups: ['7'] }
    const exec = await run(sh(script, spec))
    expect(exec.output.stdout.data).toMatch(/^x y\|\/tmp\|1000:1001\|/)
    expect(exec.output.stdout.data.trim().split('|')[3].split(' ')).toEqual(expect.arrayContaining(['1001', '7']))
    expect((await run({ command: ['id', '-un'], user: 'nobody' })).output.stdout.data).toBe('nobody\n')
    expect(await run({ command: ['id'], user: 'no-such-user' })).toMatchObject({ state: 'failed' })
  })

  test('bytes that are no text come as they are', async () => {
    const { stdout } = (await run(sh('printf "\\377\\000\\001"'))).output
    expect(stdout).toMatchObject({ encoding: 'base64', data: Buffer.of(255, 0, 1).toString('base64') })
  })

  test('a wait ends in time, and the command goes on', async () => {
    const exec = await ok(t.post(`${execs()}?wait=ended&timeoutMs=50ms&output=true`, { command: ['sleep', '1000'] }))
    expect(exec).toMatchObject({ state: 'running', endedAt: null })
    expect(exec).not.toHaveProperty('output')
  })
})

describe('bad requests', () => {
  test('what is not there is 404, what makes no sense 400, in the wrong state 409', async () => {
    expect((await t.get(`${execs()}/nothing`)).body).toMatchObject({ status: 404, code: 'exec_not_found' })
    expect((await t.get(execs('sbx_00000000000000000000000000'))).body).toMatchObject({ code: 'sandbox_not_found' })
    expect((await t.get(`${execs()}/${'x'.repeat(65)}`)).status).toBe(400)
    expect((await t.get(`${execs()}/nothing/socket`)).body).toMatchObject({ status: 426, code: 'upgrade_required' })
    await expect(attach('nothing')).rejects.toThrow('refused: 404')
    for (const bad of [
      {},
      { command: [] },
      { command: ['a\0b'] },
      { command: ['x'.repeat(200_000)] },
      { command: ['true'], unknown: 1 },
      { command: ['true'], tty: { rows: 0, columns: 80 } },
      { command: ['true'], tty: { rows: 24, columns: 100_000 } },
      { command: ['true'], workingDir: 'relative' },
      { command: ['true'], timeoutMs: -1 },
      { command: ['true'], outputBytes: '1t' },
      { command: ['true'], stdin: true, input: '' },
      { command: ['true'], id: '../x' },
    ]) {
      const answer = await t.post(execs(), bad)
      expect(answer.body).toMatchObject({ status: 400, code: 'invalid_request' })
    }
    const id = await start({ command: ['true'] })
    await ended(id)
    expect((await t.post(`${execs()}/${id}/signal`, { signal: 'TERM' })).body).toMatchObject({ code: 'wrong_state' })
    expect((await t.post(`${execs()}/${id}/signal`, { signal: 'NOTHING' })).status).toBe(400)
    expect((await t.post(`${execs()}/${id}/resize`, { rows: 0, columns: 100_000 })).status).toBe(400)
  })

  test('where a sandbox does not run, no command does; what it ran before can still be read', async () => {
    const made = await ok(t.post('/v1/sandboxes?wait=running', { image: 'debian' }))
    const id = (await ok(t.post(`${execs(made.id)}?wait=ended`, sh('echo before')))).id
    const long = (await ok(t.post(execs(made.id), { command: ['sleep', '1000'] }))).id
    await ok(t.post(`/v1/sandboxes/${made.id}/pause?wait=paused`))
    expect((await t.post(execs(made.id), { command: ['true'] })).body).toMatchObject({
      status: 409,
      code: 'wrong_state',
    })
    await ok(t.post(`/v1/sandboxes/${made.id}/resume?wait=running`))
    await ok(t.post(`/v1/sandboxes/${made.id}/stop?wait=stopped`, { graceMs: 0 }))
    expect((await t.post(execs(made.id), { command: ['true'] })).body).toMatchObject({
      status: 409,
      code: 'wrong_state',
    })
    expect(await ok(t.get(`${execs(made.id)}/${id}?output=true`))).toMatchObject({
      output: { stdout: { data: 'before\n' } },
    })
    expect(['exited', 'lost']).toContain((await ok(t.get(`${execs(made.id)}/${long}`))).state)
    await ok(t.delete(`/v1/sandboxes/${made.id}`))
    await until('it is gone', async () => ((await t.get(execs(made.id))).status === 404 ? true : undefined))
  })
})

test('commands and terminals right after a sandbox is created or started wait for it', async () => {
  const { id } = await ok(t.post('/v1/sandboxes', { image: 'debian', limits: { memoryBytes: '128m' } }))
  const opened = t.post(`/v1/sandboxes/${id}/terminals`, { command: ['cat'] })
  for (let round = 0; round < 5; round++) {
    const { exitCode } = await ok(t.post(`${execs(id)}?wait=ended`, { command: ['true'] }))
    expect(exitCode).toBe(0)
    expect(await ok(t.post(`/v1/sandboxes/${id}/stop?wait=stopped`))).toMatchObject({ state: 'stopped' })
    await ok(t.post(`/v1/sandboxes/${id}/start`))
  }
  expect((await opened).status).toBe(201)
  await t.delete(`/v1/sandboxes/${id}?force=true`)
})

test('the same id and request find the first exec, another request is refused', async () => {
  const spec = sh('echo once >> /tmp/once; cat /tmp/once', { id: 'chosen' })
  const [first, second] = await Promise.all([run(spec), run(spec)])
  expect(first.output.stdout.data).toBe('once\n')
  expect(second).toEqual(first)
  expect((await t.post(execs(), sh('true', { id: 'chosen' }))).body).toMatchObject({ status: 409, code: 'id_taken' })
})

describe('streams', () => {
  test('lines of JSON from the beginning to the end', async () => {
    const response = await t.raw('POST', `${execs()}/stream`, {
      body: JSON.stringify(sh('echo one; echo two >&2; exit 7')),
      headers: { 'content-type': 'application/json' },
    })
    expect(response.headers.get('content-type')).toBe('application/x-ndjson')
    const all = []
    for await (const frame of frames(response)) all.push(frame)
    expect(all[0]).toMatchObject({ type: 'started', pid: expect.any(Number) })
    expect(all.slice(1, -1)).toEqual(
      expect.arrayContaining([
        { type: 'stdout', offset: 0, data: 'one\n', encoding: 'utf8' },
        { type: 'stderr', offset: 0, data: 'two\n', encoding: 'utf8' },
      ]),
    )
    expect(all.at(-1)).toMatchObject({ type: 'end', exec: { exitCode: 7 } })
  })

  test('100 MiB: a fast reader gets every byte, a slow one a gap, and neither waits', async () => {
    // A MiB for each line of input, which comes when the fast reader has the one before: it is never behind.
    const mebibytes = `while read -r x; do yes 0123456789abcde | head -c ${MiB}; done`
    const id = await start(sh(mebibytes, { outputBytes: '8m', stdin: true }))
    await write(id, '\n')
    // One that does not read at all, beyond what connections hold by themselves.
    const slow = request(`${stack().url}${execs()}/${id}/stream`, { headers: { authorization: `Bearer ${t.key}` } })
    const paused = new Promise<NodeJS.ReadableStream>((resolve) => slow.once('response', (r) => resolve(r.pause())))
    slow.end()
    const response = await t.raw('GET', `${execs()}/${id}/output/stdout?follow=true`)
    expect(response.headers.get('berth-offset')).toBe('0')
    const [hash, whole] = [createHash('sha256'), createHash('sha256')]
    let length = 0
    for await (const chunk of response.body ?? []) {
      hash.update(chunk)
      const before = length
      length += chunk.length
      if (Math.floor(before / MiB) === Math.floor(length / MiB)) continue
      if (length < 100 * MiB) await write(id, '\n')
      else await write(id, '', '?end=true')
    }
    for (let i = 0; i < 100; i++) whole.update('0123456789abcde\n'.repeat(65_536))
    expect(length).toBe(100 * MiB)
    expect(hash.digest('hex')).toBe(whole.digest('hex'))
    let [rest, gaps, at] = ['', 0, 0]
    for await (const chunk of (await paused).setEncoding('utf8')) {
      const lines = (rest + chunk).split('\n')
      rest = lines.pop() ?? ''
      for (const line of lines) {
        const frame = JSON.parse(line)
        if (frame.type === 'gap') gaps += 1
        if (frame.type === 'gap') at = frame.offset
        if (frame.type !== 'stdout') continue
        expect(frame.offset).toBe(at)
        at += frame.data.length
      }
    }
    expect(at).toBe(100 * MiB)
    expect(gaps).toBeGreaterThan(0)
  })

  test('a client that vanishes ends nothing, and goes on where it was', async () => {
    const gone = new AbortController()
    const response = await t.raw('POST', `${execs()}/stream`, {
      body: JSON.stringify(sh('echo first; read -r x; echo "second $x"', { id: 'resumed', stdin: true })),
      headers: { 'content-type': 'application/json' },
      signal: gone.signal,
    })
    for await (const frame of frames(response)) if (frame.type === 'stdout') break
    gone.abort()
    expect((await write('resumed', 'go\n')).body).toEqual({ stdinBytes: 3 })
    const texts: string[] = []
    for await (const frame of frames(await t.raw('GET', `${execs()}/resumed/stream?stdout=6`)))
      if (frame.type === 'stdout') texts.push(frame.data)
    expect(texts.join('')).toBe('second go\n')
  })
})

describe('input', () => {
  test('by offset, half-closed, with repeats dropped and a gap refused', async () => {
    const id = await start({ command: ['cat'], stdin: true })
    expect(await write(id, 'hello ')).toEqual({ status: 200, body: { stdinBytes: 6 } })
    expect((await write(id, 'lo world', '?offset=3')).body).toEqual({ stdinBytes: 11 })
    expect((await write(id, 'x', '?offset=12')).body).toMatchObject({ status: 409, code: 'input_gap', stdinBytes: 11 })
    expect((await write(id, '!', '?offset=11&end=true')).status).toBe(200)
    expect((await ended(id)).output.stdout.data).toBe('hello world!')
    expect((await write(id, 'late')).body).toMatchObject({ code: 'wrong_state' })
  })

  test('more than any buffer holds', async () => {
    const id = await start({ command: ['sha256sum'], stdin: true })
    const input = Buffer.alloc(20 * MiB, 'berth')
    expect((await write(id, input, '?end=true')).body).toEqual({ stdinBytes: 20 * MiB })
    expect((await ended(id)).output.stdout.data.split(' ')[0]).toBe(createHash('sha256').update(input).digest('hex'))
  })
})

describe('sockets', () => {
  test('a terminal: size, input, output, resize and end', async () => {
    const id = await start({ command: ['sh'], tty: { rows: 11, columns: 22 }, env: { PS1: '$ ' } })
    const socket = await attach(id)
    socket.input('stty size\n')
    await until('the size', async () => (socket.text().includes('11 22') ? true : undefined))
    socket.control({ type: 'resize', rows: 33, columns: 44 })
    socket.input('stty size; echo $TERM\n')
    await until('the new size', async () => (socket.text().includes('33 44\r\nxterm-256color') ? true : undefined))
    socket.control({ type: 'eof' })
    expect(await socket.end()).toMatchObject({ code: 1000 })
    expect(socket.told.at(-1)).toMatchObject({ type: 'end', exec: { state: 'exited', exitCode: 0 } })
  })

  test('half-close, and both streams apart', async () => {
    const id = await start(sh('echo error >&2; cat; echo over', { stdin: true }))
    const socket = await attach(id)
    socket.input('grün ')
    socket.input('tea')
    socket.control({ type: 'eof' })
    await socket.end()
    expect([socket.text(1), socket.text(2)]).toEqual(['grün teaover\n', 'error\n'])
    expect(socket.told[0]).toMatchObject({ type: 'started', exec: id, stdinBytes: 0 })
  })

  test('garbage closes the socket with 4400, a frame of 10 MiB with 1009, and the exec lives', async () => {
    const id = await start({ command: ['cat'], stdin: true })
    const garbage = [
      Buffer.of(9, 9),
      Buffer.alloc(0),
      '{',
      '{"type":"nothing"}',
      '{"type":"resize","rows":0,"columns":100000}',
    ]
    for (const frame of garbage) {
      const socket = await attach(id)
      socket.socket.send(frame)
      expect(await socket.end()).toMatchObject({ code: 4400 })
    }
    const large = await attach(id)
    large.socket.send(Buffer.alloc(10 * MiB))
    expect((await large.end()).code).toBe(1009)
    const good = await attach(id)
    good.input('alive')
    good.control({ type: 'eof' })
    await good.end()
    expect(good.text()).toBe('alive')
  })

  test('one that does not read holds up nobody', async () => {
    const id = await start(
      sh(`read -r x; yes 0123456789abcde | head -c ${60 * MiB}`, { outputBytes: '4m', stdin: true }),
    )
    const slow = await attach(id)
    slow.socket.pause()
    const fast = await attach(id)
    fast.input('\n')
    expect(await fast.end()).toMatchObject({ code: 1000 })
    slow.socket.resume()
    expect(await slow.end()).toMatchObject({ code: 1000 })
    expect(slow.types()).toContain('gap')
    expect(slow.told.at(-1)).toMatchObject({ type: 'end', exec: { exitCode: 0 } })
  })
})

describe('background and deletion', () => {
  test('what a command leaves in the background survives it', async () => {
    const exec = await run(sh('sleep 1000 >/dev/null 2>&1 & echo $!'))
    expect(exec).toMatchObject({ state: 'exited', exitCode: 0 })
    expect(await run(sh(`kill ${exec.output.stdout.data}`))).toMatchObject({ exitCode: 0 })
  })

  test('deleting kills, and forgets', async () => {
    const id = await start(sh('echo $$; exec sleep 1000'))
    const socket = await attach(id)
    await until('its process', async () => (socket.bytes > 0 ? true : undefined))
    expect((await t.delete(`${execs()}/${id}`)).status).toBe(204)
    expect(await socket.end()).toMatchObject({ code: 4404 })
    expect((await t.get(`${execs()}/${id}`)).status).toBe(404)
    expect(await run(sh(`kill -0 ${socket.text()}`))).toMatchObject({ exitCode: 1 })
  })
})

describe('the agent is killed', () => {
  test('and comes again: no byte of output is lost or doubled, input goes on, ends are told', async () => {
    const counting = 'i=0; while [ $i -lt 20000 ]; do i=$((i+1)); echo "line $i"; done; read -r x; echo "got $x"'
    const id = await start(sh(counting, { stdin: true }))
    const meanwhile = await start(sh('read -r x; sleep 0.2; echo "$x" >&2; exit 6', { stdin: true }))
    const flood = await start(sh(`yes 0123456789abcde | head -c ${40 * MiB}`, { outputBytes: '64m' }))
    await write(meanwhile, 'go\n')
    await crash('agent')
    await restart('agent')
    await until(
      'the node answers',
      async () => ((await t.get(`${execs()}/${id}`)).status === 200 ? true : undefined),
      60_000,
    )
    expect(await ended(meanwhile)).toMatchObject({ state: 'exited', exitCode: 6, output: { stderr: { data: 'go\n' } } })
    expect((await write(id, 'it\n', '?offset=0')).body).toEqual({ stdinBytes: 3 })
    const expected = `${Array.from({ length: 20_000 }, (_, i) => `line ${i + 1}\n`).join('')}got it\n`
    expect((await ended(id)).output.stdout.data).toBe(expected)
    expect(await ended(flood)).toMatchObject({ exitCode: 0, stdout: { bytes: 40 * MiB, from: 0 } })
    const [hash, whole] = [createHash('sha256'), createHash('sha256')]
    for await (const chunk of (await t.raw('GET', `${execs()}/${flood}/output/stdout`)).body ?? []) hash.update(chunk)
    for (let i = 0; i < 40; i++) whole.update('0123456789abcde\n'.repeat(65_536))
    expect(hash.digest('hex')).toBe(whole.digest('hex'))
  })
})

describe('many', () => {
  test('64 at once do not mix', async () => {
    const all = await Promise.all(
      Array.from({ length: 64 }, (_, i) => {
        const input = Buffer.from(`in ${i}`).toString('base64')
        return run(sh(`cat; echo ${i} >&2; exit ${i}`, { input }))
      }),
    )
    for (const [i, exec] of all.entries())
      expect(exec).toMatchObject({ exitCode: i, output: { stdout: { data: `in ${i}` }, stderr: { data: `${i}\n` } } })
  })

  test('a thousand in a row: all right, and memory stays flat', async () => {
    const before = await memoryOf()
    for (let i = 0; i < 1000; i++) {
      const { exitCode, output } = await run({ command: ['echo', String(i)] })
      if (exitCode !== 0 || output.stdout.data !== `${i}\n`) throw new Error(`run ${i}: ${exitCode}`)
    }
    const after = await memoryOf()
    expect(after.agent - before.agent).toBeLessThan(80)
    expect(after.api - before.api).toBeLessThan(80)
    expect((await t.get(execs())).body.items.length).toBeLessThanOrEqual(1000)
    // Of what ran nothing is left in the sandbox but the two of the look itself.
    const { output } = await run(sh('for p in /proc/[0-9]*; do echo $p; done | wc -l'))
    expect(Number(output.stdout.data)).toBeLessThanOrEqual(5)
  })
})
