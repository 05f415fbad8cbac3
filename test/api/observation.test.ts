// Logs, top, stats, diff and inspect through the API, of real sandboxes: bytes and values as anybody would see them.
import type { LogEntry } from '@berth/contracts'
import { beforeAll, describe, expect, test } from '@jest/globals'
import { type Answer, type TestTenant, tenant, until } from '../support/berth.js'

const MiB = 1024 ** 2
let t: TestTenant
beforeAll(async () => {
  t = await tenant({ sandboxes: 100, cpus: 100, memoryBytes: 2 ** 44, diskBytes: 2 ** 44 })
})

const small = { limits: { memoryBytes: '64m', diskBytes: '64m', cpus: 0.5 } }
const sh = (script: string) => ({ command: ['sh', '-c', script] })
const path = (id: string, rest = '') => `/v1/sandboxes/${id}${rest}`

async function made(fields: object): Promise<string> {
  const answer = await t.post('/v1/sandboxes?wait=running&timeoutMs=60s', { ...small, ...fields })
  if (answer.status !== 201) throw new Error(`create: ${JSON.stringify(answer.body)}`)
  return answer.body.id
}
const gone = (id: string) => t.delete(path(id, '?force=true'))
const stop = (id: string) => t.post(path(id, '/stop?wait=stopped&timeoutMs=60s'), { graceMs: 0 })

/** The values of a stream of lines that ends. */
async function lines(at: string): Promise<Answer['body'][]> {
  const response = await t.raw('GET', at)
  if (response.status !== 200) throw new Error(`${at}: ${response.status} ${await response.text()}`)
  expect(response.headers.get('content-type')).toBe('application/x-ndjson')
  const text = await response.text()
  return text
    .split('\n')
    .filter(Boolean)
    .map((line) => JSON.parse(line))
}
const logged = async (id: string, query = '') =>
  (await lines(path(id, `/logs${query}`))).map(({ text }: LogEntry) => text).join('')

/** Reads a stream until it has seen enough, then leaves it. */
async function readUntil(at: string, enough: (text: string) => boolean): Promise<string> {
  const leave = new AbortController()
  const response = await t.raw('GET', at, { signal: leave.signal })
  let text = ''
  for await (const chunk of response.body ?? []) {
    text += Buffer.from(chunk).toString()
    if (enough(text)) break
  }
  leave.abort()
  return text
}

describe('logs', () => {
  test('are of both streams, by tail, position, time and stream, and outlive the run', async () => {
    const id = await made(sh('for i in 1 2 3; do echo out $i; echo err $i >&2; sleep 0.2; done; exec sleep 1000'))
    await until('all of it', async () => ((await logged(id)).includes('err 3') ? true : undefined))
    const all: LogEntry[] = await lines(path(id, '/logs'))
    expect(await logged(id, '?stream=stdout')).toBe('out 1\nout 2\nout 3\n')
    expect(await logged(id, '?stream=stderr&tail=2')).toBe('err 2\nerr 3\n')
    expect(await logged(id, '?tail=0')).toBe('')
    const [first, last] = [all[0], all.at(-1)]
    expect(await logged(id, `?since=${first?.offset}`)).toBe(
      all
        .slice(1)
        .map(({ text }) => text)
        .join(''),
    )
    expect(await logged(id, `?since=${last?.at}`)).toContain(last?.text ?? '-')
    expect(await logged(id, `?until=${first?.at}`)).toBe('')
    await stop(id)
    expect(await logged(id, '?stream=stdout')).toBe('out 1\nout 2\nout 3\n')
    expect(await (await t.raw('GET', path(id, '/logs/raw?stream=stderr'))).text()).toBe('err 1\nerr 2\nerr 3\n')
    await gone(id)
    // Where a sandbox is is believed for less than a second.
    const over = await until('it is gone', async () => {
      const response = await t.raw('GET', path(id, '/logs'))
      const text = await response.text()
      return response.status === 200 ? undefined : { status: response.status, ...JSON.parse(text) }
    })
    expect(over).toMatchObject({ status: 410, code: 'output_gone' })
  })

  test('are followed as they come, and the stream ends with the sandbox', async () => {
    const id = await made(sh('i=0; while :; do i=$((i+1)); echo line $i; sleep 0.05; done'))
    await readUntil(path(id, '/logs?follow=true'), (text) => text.includes('line 20\\n'))
    const response = await t.raw('GET', path(id, '/logs/raw?follow=true&tail=1'))
    const reading = response.text()
    await gone(id)
    expect(await reading).toMatch(/^line \d+\n/)
  })

  test('of 100 MiB are rotated while they are followed, and the rest is whole', async () => {
    const bytes = 100 * MiB
    const id = await made({
      ...sh(`yes 0123456789abcde | head -c ${bytes}; echo end >&2; exec sleep 1000`),
      logs: { maxBytes: '2m', maxFiles: 3 },
    })
    await readUntil(path(id, '/logs?follow=true&stream=stderr'), (text) => text.includes('end\\n'))
    const kept = await (await t.raw('GET', path(id, '/logs/raw?stream=stdout'))).text()
    expect(kept.length).toBeGreaterThan(4 * MiB)
    expect(kept.length).toBeLessThanOrEqual(6 * MiB)
    expect(kept.endsWith('0123456789abcde\n')).toBe(true)
    expect(kept.slice(kept.indexOf('\n') + 1).replaceAll('0123456789abcde\n', '')).toBe('')
    const [oldest]: LogEntry[] = await lines(path(id, '/logs?since=0'))
    expect(oldest?.offset).toBeGreaterThan(bytes - 6 * MiB)
    await gone(id)
  }, 180_000)
})

test('top and stats tell what runs and what it uses; of a stopped sandbox there is neither', async () => {
  const id = await made({ ...sh('sleep 1001 & while :; do :; done') })
  const top = await until('both', async () => {
    const { items } = (await t.get(path(id, '/top'))).body
    return items.length >= 3 ? items : undefined
  })
  expect(top[0]).toMatchObject({ pid: 1, parentPid: 0, user: 'root' })
  expect(top.map(({ command }: Answer['body']) => command.join(' '))).toContain('sleep 1001')
  expect((await t.get(path(id, '/stats'))).body).toMatchObject({ memoryLimitBytes: 64 * MiB, cpus: null, oomKills: 0 })
  const text = await readUntil(path(id, '/stats/stream?intervalMs=300ms'), (seen) => seen.split('\n').length > 4)
  const samples = text
    .trim()
    .split('\n')
    .slice(1, 4)
    .map((line) => JSON.parse(line).cpus)
  for (const cpus of samples) expect(cpus).toBeGreaterThan(0)
  const ended = t.raw('GET', path(id, '/stats/stream')).then((response) => response.text())
  await stop(id)
  await ended
  for (const what of ['top', 'stats', 'stats/stream'])
    expect((await t.get(path(id, `/${what}`))).body).toMatchObject({ code: 'wrong_state', state: 'stopped' })
  await gone(id)
})

test('diff and inspect tell what it changed and what it runs with, also once it has stopped', async () => {
  const script =
    'echo x > /new; rm /etc/debian_version; echo x >> /etc/group; mkdir -p /a/b; echo done; exec sleep 1000'
  const id = await made({ ...sh(script), env: { A: 'b' }, hostname: 'box' })
  await until('it has', async () => ((await logged(id)) === 'done\n' ? true : undefined))
  const diff = async () => (await lines(path(id, '/diff'))).map(({ kind, path: at }) => `${kind} ${at}`)
  const want = [
    'added /a',
    'added /a/b',
    'changed /etc',
    'deleted /etc/debian_version',
    'changed /etc/group',
    'added /new',
  ]
  expect(await diff()).toEqual(want)
  const inspected = await t.get(path(id, '/inspect'))
  expect(inspected.body).toMatchObject({
    hostname: 'box',
    uid: 0,
    command: ['sh', '-c', script],
    stopSignal: 'SIGTERM',
  })
  expect(inspected.body.env).toContain('A=b')
  await stop(id)
  expect(await diff()).toEqual(want)
  expect((await t.get(path(id, '/inspect'))).status).toBe(200)
  await gone(id)
})

describe('what makes no sense is refused', () => {
  test.each([
    ['/logs?tail=-1', 'tail'],
    ['/logs?tail=lots', 'tail'],
    ['/logs?since=yesterday', 'since'],
    ['/logs?until=1', 'until'],
    ['/logs?stream=stdin', 'stream'],
    ['/logs?follow=1', 'follow'],
    ['/logs?x=1', 'x'],
    ['/stats/stream?intervalMs=1ms', 'intervalMs'],
  ])('%s', async (rest, field) => {
    const answer = await t.get(path('whatever', rest))
    expect(answer).toMatchObject({ status: 400, body: { code: 'invalid_request' } })
    expect(answer.body.errors.map((one: { field: string }) => one.field).join(' ')).toContain(field)
  })

  test.each(['/logs', '/logs/raw', '/top', '/stats', '/stats/stream', '/diff', '/inspect'])(
    '%s of no sandbox',
    async (rest) =>
      expect(await t.get(path('whatever', rest))).toMatchObject({ status: 404, body: { code: 'sandbox_not_found' } }),
  )
})
