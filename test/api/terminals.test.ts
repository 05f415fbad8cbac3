import { afterAll, beforeAll, expect, test } from '@jest/globals'
import { WebSocket } from 'ws'
import { client, stack, type TestTenant, tenant, until } from '../support/berth.js'
import { crash, memoryOf, restart } from '../support/crash.js'

const sockets: WebSocket[] = []
let mine: TestTenant
let sandbox: string
beforeAll(async () => {
  mine = await tenant({ terminals: 6 })
  sandbox = await newSandbox(mine)
})
afterAll(async () => {
  for (const socket of sockets) socket.terminate()
  await mine.delete(`/v1/sandboxes/${sandbox}?force=true`)
})

async function newSandbox(of: TestTenant): Promise<string> {
  const made = await of.post('/v1/sandboxes?wait=running&timeoutMs=60s', { image: 'debian' })
  expect(made.body).toMatchObject({ state: 'running' })
  return made.body.id
}

interface Opened {
  readonly id: string
  readonly ticket: string
}

async function open(spec: object = {}): Promise<Opened> {
  const made = await mine.post(`/v1/sandboxes/${sandbox}/terminals`, spec)
  expect(made).toMatchObject({ status: 201 })
  return { id: made.body.id, ticket: made.body.ticket.ticket }
}

const close = (id: string) => mine.delete(`/v1/sandboxes/${sandbox}/terminals/${id}`)
const described = async (id: string) => (await mine.get(`/v1/sandboxes/${sandbox}/terminals/${id}`)).body

/** A viewer that keeps what it was told. */
class View {
  readonly socket: WebSocket
  readonly chunks: Buffer[] = []
  // biome-ignore lint/suspicious/noExplicitAny: frames of every shape, checked by each test
  readonly told: any[] = []
  offset = 0
  closed: { readonly code: number; readonly reason: string } | undefined
  refused: number | undefined

  constructor(path: string, headers: Record<string, string> = {}) {
    this.socket = new WebSocket(stack().url.replace(/^http/, 'ws') + path, { headers })
    sockets.push(this.socket)
    this.socket.on('message', (data, binary) => {
      const bytes = Buffer.isBuffer(data) ? data : Buffer.alloc(0)
      if (binary) this.#take(bytes.subarray(1))
      else this.#hear(JSON.parse(bytes.toString()))
    })
    this.socket.on('close', (code, reason) => {
      this.closed = { code, reason: reason.toString() }
    })
    this.socket.on('unexpected-response', (_, response) => {
      this.refused = response.statusCode
      response.resume()
    })
    this.socket.on('error', () => undefined)
  }

  #drawing = false

  #take(bytes: Buffer): void {
    if (!this.#drawing) this.offset += bytes.length
    this.#drawing = false
    this.chunks.push(bytes)
  }

  // biome-ignore lint/suspicious/noExplicitAny: as above
  #hear(frame: any): void {
    this.told.push(frame)
    if (frame.type === 'ready') this.offset = frame.offset
    if (frame.type !== 'screen') return
    this.offset = frame.offset
    this.#drawing = true
  }

  get text(): string {
    return Buffer.concat(this.chunks).toString('utf8')
  }

  type(text: string): void {
    this.socket.send(Buffer.concat([Buffer.of(0), Buffer.from(text)]))
  }

  control(frame: object): void {
    this.socket.send(JSON.stringify(frame))
  }

  /** Waits until it was shown something. */
  async shows(wanted: string | RegExp): Promise<void> {
    const fits = () => (typeof wanted === 'string' ? this.text.includes(wanted) : wanted.test(this.text))
    await until(`shown ${String(wanted)}`, async () => (fits() ? true : undefined), 30_000).catch((error) => {
      throw new Error(`${error.message}; shown: ${JSON.stringify(this.text.slice(-500))}`)
    })
  }

  async hears(type: string): Promise<Record<string, unknown>> {
    return until(`told ${type}`, async () => this.told.find((frame) => frame.type === type), 30_000)
  }

  ended(): Promise<{ readonly code: number; readonly reason: string }> {
    return until('closed', async () => this.closed, 30_000)
  }
}

const byTicket = (id: string, ticket: string, query = '') =>
  new View(`/v1/sandboxes/${sandbox}/terminals/${id}/socket?ticket=${ticket}${query}`)
const byKey = (id: string, query = '') =>
  new View(`/v1/sandboxes/${sandbox}/terminals/${id}/socket?${query}`, { authorization: `Bearer ${mine.key}` })

test('a shell over a socket: what is typed runs, its size follows, and its exit is told', async () => {
  const { id, ticket } = await open({ rows: 30, columns: 100 })
  const view = byTicket(id, ticket)
  expect(await view.hears('ready')).toMatchObject({ terminal: id, mode: 'write', rows: 30, columns: 100 })
  view.type('stty size; echo $((6*7))-done\r')
  await view.shows(/30 100[\s\S]*42-done/)
  view.control({ type: 'resize', rows: 40, columns: 132 })
  await view.hears('resize')
  view.type('stty size\r')
  await view.shows('40 132')
  view.control({ type: 'ping', id: 7 })
  expect(await view.hears('pong')).toMatchObject({ id: 7 })
  view.type('exit 3\r')
  expect(await view.hears('exit')).toMatchObject({ exitCode: 3, signal: null })
  expect((await view.ended()).code).toBe(1000)
  expect(await described(id)).toMatchObject({ state: 'ended', exitCode: 3 })
})

test('a ticket is good once, and only for its terminal', async () => {
  const { id, ticket } = await open()
  const other = await open()
  const view = byTicket(id, ticket)
  await view.hears('ready')
  const again = byTicket(id, ticket)
  await until('refused', async () => again.refused, 20_000)
  expect(again.refused).toBe(401)
  const elsewhere = byTicket(id, other.ticket)
  await until('refused', async () => elsewhere.refused, 20_000)
  expect(elsewhere.refused).toBe(401)
  view.socket.close()
  await Promise.all([close(id), close(other.id)])
})

test('who comes back sees the screen, alternate buffer included; with since, every byte once', async () => {
  const { id } = await open({ rows: 24, columns: 80 })
  const first = byKey(id)
  await first.hears('screen')
  first.type('echo before-the-cut\r')
  await first.shows(/before-the-cut[\s\S]*before-the-cut/)
  const offset = first.offset
  first.socket.terminate()
  const writer = byKey(id)
  await writer.hears('screen')
  writer.type('printf "while-away-%s\\n" 1\r')
  await writer.shows('while-away-1')
  const resumed = byKey(id, `since=${offset}`)
  await resumed.shows('while-away-1')
  expect(resumed.told.some(({ type }) => type === 'screen')).toBe(false)
  writer.type('vi /etc/os-release 2>/dev/null || less /etc/os-release\r')
  await writer.shows('PRETTY_NAME')
  await until('the screen of late viewers', async () => {
    const late = byKey(id, 'mode=read')
    await late.hears('screen')
    await until('drawn', async () => (late.chunks.length > 0 ? true : undefined))
    late.socket.close()
    return late.text.includes('PRETTY_NAME') ? true : undefined
  })
  await close(id)
})

test('readers look and do not type; writers share one terminal', async () => {
  const { id } = await open()
  const [writer, reader] = [byKey(id), byKey(id, 'mode=read')]
  await Promise.all([writer.hears('screen'), reader.hears('screen')])
  expect(await described(id)).toMatchObject({ viewers: { writers: 1, readers: 1 } })
  reader.type('echo from-the-reader\r')
  expect(await reader.hears('error')).toMatchObject({ code: 'wrong_state' })
  writer.type('echo from-the-$((1+1))nd\r')
  await reader.shows('from-the-2nd')
  expect(writer.text).not.toContain('from-the-reader')
  await close(id)
  expect((await reader.ended()).code).toBe(1000)
})

test('a share shows a terminal without a key until it is revoked', async () => {
  const { id } = await open()
  const path = `/v1/sandboxes/${sandbox}/terminals/${id}/shares`
  const made = await mine.post(path, { mode: 'read', validForMs: '10m' })
  expect(made.body).toMatchObject({ mode: 'read', path: expect.stringMatching(/^\/console\/share#brl_/) })
  const view = new View(`/v1/shares/${made.body.token}/socket`)
  expect(await view.hears('ready')).toMatchObject({ mode: 'read' })
  expect((await mine.get(path)).body.items).toHaveLength(1)
  expect((await mine.delete(`${path}/${made.body.id}`)).status).toBe(204)
  expect((await view.ended()).code).toBe(4401)
  expect((await mine.delete(`${path}/${made.body.id}`)).body.code).toBe('share_not_found')
  const late = new View(`/v1/shares/${made.body.token}/socket`)
  await until('refused', async () => late.refused)
  expect(late.refused).toBe(404)
  await close(id)
})

test('a revoked key cuts what it opened, tickets included', async () => {
  const key = (await mine.post('/v1/keys', { name: 'soon-revoked' })).body
  const guest = client(key.secret)
  const made = (await guest.post(`/v1/sandboxes/${sandbox}/terminals`, {})).body
  const view = byTicket(made.id, made.ticket.ticket)
  await view.hears('ready')
  await mine.delete(`/v1/keys/${key.id}`)
  expect((await view.ended()).code).toBe(4401)
  await close(made.id)
})

test('a flood with a viewer that never reads: memory stays flat, others see the end, Ctrl-C acts', async () => {
  const { id } = await open()
  const stuck = byKey(id, 'mode=read')
  await stuck.hears('ready')
  stuck.socket.pause()
  const before = await memoryOf()
  const writer = byKey(id)
  await writer.hears('screen')
  writer.type('yes flood-of-text\r')
  await until('a flood', async () => ((await described(id)).bytes > 30_000_000 ? true : undefined), 60_000)
  const during = await memoryOf()
  writer.type('\x03')
  writer.type('echo the-$((20+1))st-line\r')
  await writer.shows('the-21st-line')
  expect(during.agent - before.agent).toBeLessThan(120)
  expect(during.api - before.api).toBeLessThan(120)
  const late = byKey(id)
  await late.shows('the-21st-line')
  stuck.socket.terminate()
  await close(id)
})

test('frames that make no sense close the connection and nothing else', async () => {
  const { id } = await open()
  for (const frame of [
    'not json',
    '{"type":"resize","rows":0,"columns":80}',
    '{"type":"resize","rows":1,"columns":100000}',
  ]) {
    const view = byKey(id)
    await view.hears('ready')
    view.socket.send(frame)
    expect((await view.ended()).code).toBe(4400)
  }
  const odd = byKey(id)
  await odd.hears('ready')
  odd.socket.send(Buffer.of(9, 1, 2))
  expect((await odd.ended()).code).toBe(4400)
  const large = byKey(id)
  await large.hears('ready')
  large.socket.send(Buffer.alloc(10 * 1024 * 1024))
  expect([1009, 1006]).toContain((await large.ended()).code)
  expect(await described(id)).toMatchObject({ state: 'open' })
  const plain = await mine.get(`/v1/sandboxes/${sandbox}/terminals/${id}/socket`)
  expect(plain).toMatchObject({ status: 426, body: { code: 'upgrade_required' } })
  await close(id)
})

test('ids chosen by the caller find the terminal again; the quota holds; unknown ones are not found', async () => {
  const path = `/v1/sandboxes/${sandbox}/terminals`
  const spec = { id: 'mine', command: ['sh'] }
  const [first, again] = [await mine.post(path, spec), await mine.post(path, spec)]
  expect([first.status, again.status, again.body.id]).toEqual([201, 201, 'mine'])
  expect((await mine.post(path, { ...spec, command: ['bash'] })).body.code).toBe('id_taken')
  const made = await Promise.all(Array.from({ length: 10 }, () => mine.post(path, {})))
  const refused = made.filter(({ status }) => status !== 201)
  expect(refused).toHaveLength(5)
  expect(refused[0]?.body).toMatchObject({ code: 'quota_exceeded', quota: 'terminals', limit: 6 })
  const all = (await mine.get(path)).body.items.filter(({ state }: { state: string }) => state === 'open')
  expect(all).toHaveLength(6)
  await Promise.all(all.map(({ id }: { id: string }) => close(id)))
  expect((await mine.get(`${path}/none`)).body.code).toBe('terminal_not_found')
  const stranger = await tenant()
  expect((await stranger.get(`${path}/mine`)).body.code).toBe('sandbox_not_found')
  expect((await mine.post(path, { rows: 0 })).body.code).toBe('invalid_request')
})

test('a recording is an asciicast of what was shown', async () => {
  const { id } = await open({ record: true, command: ['sh', '-c', 'printf "caf\\303\\251 %s\\n" recorded'] })
  await until('ended', async () => ((await described(id)).state === 'ended' ? true : undefined))
  const answer = await mine.raw('GET', `/v1/sandboxes/${sandbox}/terminals/${id}/recording`)
  const [header, ...events] = (await answer.text())
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line))
  expect(header).toMatchObject({ version: 2, width: 80, height: 24 })
  expect(events.map(([, , text]) => text).join('')).toBe('café recorded\r\n')
})

test('an agent that is killed ends no terminal: viewers come back to the same screen', async () => {
  const { id } = await open()
  const view = byKey(id)
  await view.hears('screen')
  view.type('x=kept-in-the-shell; echo on-the-screen\r')
  await view.shows(/on-the-screen[\s\S]*on-the-screen/)
  await crash('agent')
  await restart('agent')
  const back = await until(
    'connected again',
    async () => {
      const again = byKey(id)
      const seen = await Promise.race([
        again.hears('screen').then(() => again),
        until('refused', async () => again.refused ?? again.closed?.code).then(() => undefined),
      ])
      return seen
    },
    60_000,
  )
  await back.shows('on-the-screen')
  back.type('echo $x-still\r')
  await back.shows('kept-in-the-shell-still')
  await close(id)
})
