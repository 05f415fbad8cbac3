// Streamed bodies, streamed answers and WebSockets: a client, the API's whole pipeline around controllers of this test,
// a node's stream server of this test, and Postgres for keys.
import { once } from 'node:events'
import { mkdtemp, rm } from 'node:fs/promises'
import { request as httpRequest, type IncomingMessage } from 'node:http'
import { connect } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { setTimeout as delay } from 'node:timers/promises'
import {
  Failure,
  type KeyId,
  mintId,
  NodeId,
  type Route as RouteRecord,
  route,
  SandboxId,
  sandboxParams,
  type TenantId,
} from '@berth/contracts'
import {
  newGrantKeys,
  nodeCertificate,
  openStreams,
  type SandboxHandler,
  type StreamServerHandle,
  serveStreams,
} from '@berth/node-rpc'
import { afterAll, beforeAll, beforeEach, describe, expect, test } from '@jest/globals'
import { Controller, Inject, Module } from '@nestjs/common'
import { NestFactory } from '@nestjs/core'
import { FastifyAdapter, type NestFastifyApplication } from '@nestjs/platform-fastify'
import { pino } from 'pino'
import { WebSocket } from 'ws'
import { z } from 'zod'
import {
  givenTenant,
  HandClock,
  openTestDatabase,
  type Postgres,
  startPostgres,
} from '../../../../libs/persistence/src/postgres.fixture.js'
import { heldBytes } from '../../../../test/support/memory.js'
import { Drain } from '../operations/drain.js'
import { newSecrets, Secrets } from '../secrets.js'
import { NodeDoors } from '../streams/node-doors.js'
import { passOn, SandboxCalls } from '../streams/sandbox-calls.js'
import { Watch } from '../streams/watch.js'
import { CLOCK, DATABASE, type Database, LOG, STREAMS } from '../tokens.js'
import { Auth, hashOf, newSecret } from './auth.js'
import { Idempotency } from './idempotency.js'
import { jsonLines, serverSentEvents } from './lines.js'
import { installPipeline, requestId } from './pipeline.js'
import { ProblemFilter } from './problem.filter.js'
import { RateLimit } from './rate-limit.js'
import { type Call, Route } from './route.decorator.js'

const MiB = 1024 ** 2
const log = pino({ level: 'silent' })

const common = {
  scope: 'sandboxes:write',
  rate: 'write',
  tag: 'test',
  idempotency: 'none',
  params: sandboxParams,
} as const
const upload = route({
  ...common,
  ...{ id: 'upload', method: 'PUT', path: '/v1/test/:sandbox/files', summary: '' },
  query: z.strictObject({ path: z.string().max(4096) }),
  body: 'bytes',
  reply: { 200: z.object({ bytes: z.number() }) },
  errors: [],
})
const local = route({
  ...common,
  ...{ id: 'local', method: 'POST', path: '/v1/test/:sandbox/local', summary: '' },
  body: z.object({ a: z.number() }),
  reply: { 201: z.object({ a: z.number() }), 200: z.object({ a: z.number() }) },
  errors: [],
})
const download = route({
  ...common,
  ...{ id: 'download', method: 'GET', path: '/v1/test/:sandbox/files', summary: '' },
  reply: { 200: 'bytes', 206: 'bytes' },
  errors: ['range_not_satisfiable'],
})
const lines = route({
  ...common,
  ...{ id: 'lines', method: 'GET', path: '/v1/test/:sandbox/lines', summary: '' },
  reply: { 200: { kind: 'ndjson', item: z.object({ i: z.number() }) } },
  errors: [],
})
const events = route({
  ...common,
  ...{ id: 'events', method: 'GET', path: '/v1/test/:sandbox/events', summary: '' },
  reply: { 200: { kind: 'events', item: z.object({ i: z.number() }) } },
  errors: [],
})
const attach = route({
  ...common,
  ...{ id: 'attach', method: 'GET', path: '/v1/test/:sandbox/socket', summary: '' },
  query: z.strictObject({ since: z.coerce.number().int().min(0).optional() }),
  reply: { 101: 'socket' },
  errors: ['upgrade_required'],
})
const own = route({
  ...common,
  ...{ id: 'own', method: 'GET', path: '/v1/test/:sandbox/own', summary: '' },
  reply: { 101: 'socket' },
  errors: ['upgrade_required'],
})
const routes: readonly RouteRecord[] = [upload, local, download, lines, events, attach, own]

@Controller()
class TestController {
  constructor(@Inject(SandboxCalls) private readonly calls: SandboxCalls) {}

  @Route(upload)
  upload({ principal, params, query, stream, signal }: Call<typeof upload>) {
    const request = { method: 'PUT', path: ['files'], query, body: stream, signal } as const
    return this.calls.json(principal, params.sandbox, request, z.object({ bytes: z.number() }))
  }

  @Route(local)
  async local({ body, status }: Call<typeof local>) {
    if (body.a === 1) status(201)
    return body
  }

  @Route(download)
  async download(call: Call<typeof download>) {
    const { principal, params, signal, asking } = call
    const { range } = asking.headers
    const headers = range === undefined ? {} : { range }
    return passOn(
      call,
      await this.calls.call(principal, params.sandbox, { method: 'GET', path: ['files'], headers, signal }),
    )
  }

  @Route(lines)
  async lines({ signal }: Call<typeof lines>) {
    return jsonLines(counting(signal))
  }

  @Route(events)
  async events({ signal }: Call<typeof events>) {
    return serverSentEvents(
      (async function* () {
        for await (const { i } of counting(signal)) yield { id: String(i), event: 'count', data: { i, text: 'a\nb' } }
      })(),
      signal,
    )
  }

  @Route(attach)
  attach({ principal, params, query, signal, socket }: Call<typeof attach>) {
    return this.calls.attach(principal, params.sandbox, { path: ['execs', 'x', 'socket'], query, signal }, socket)
  }

  @Route(own)
  async own({ socket }: Call<typeof own>) {
    await socket()
    throw new Failure('exec_not_found', 'gone in the meantime')
  }
}

/** What streams count from and to, and when they may go on. */
const counter = { made: 0, to: 3, left: false, step: async (_i: number): Promise<void> => undefined }
async function* counting(signal: AbortSignal) {
  try {
    for (let i = 0; i < counter.to; i++) {
      signal.throwIfAborted()
      counter.made = i
      yield { i, ...(counter.to > 1000 ? { text: 'x'.repeat(1000) } : {}) }
      await counter.step(i)
    }
  } finally {
    counter.left = true
  }
}

const nodeId = NodeId.parse(mintId('node', 1, Buffer.alloc(10)))
const sandboxId = SandboxId.parse(mintId('sandbox', 1, Buffer.alloc(10)))
const clock = new HandClock()
const keys = newGrantKeys()

let dir: string
let postgres: Postgres
let db: Database
let node: StreamServerHandle
let files: SandboxHandler['request']
let execs: NonNullable<SandboxHandler['socket']>
let app: NestFastifyApplication
let drain: Drain
let url: string

beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), 'berth-streaming-'))
  postgres = await startPostgres()
  const identity = await nodeCertificate(dir)
  node = await serveStreams({
    ...{ ...identity, host: '127.0.0.1', port: 0, nodeId, log, grantKey: () => keys.publicKey },
    output: async (call) => call.answer(204),
    sandbox: {
      files: { request: (call) => files(call) },
      execs: { request: async (call) => call.answer(204), socket: (call, accept) => execs(call, accept) },
    },
  })
  const real = openTestDatabase(postgres.url, clock)
  db = {
    ...real,
    nodes: { ...real.nodes, streams: async () => ({ url: node.url, certificate: identity.certificate }) },
    sandboxes: {
      ...real.sandboxes,
      locate: async (access, ref) => {
        if (ref !== 'box' || access === 'operator') throw new Failure('sandbox_not_found', `no sandbox ${ref}`)
        return { id: sandboxId, tenantId: access.tenantId, nodeId, state: 'running' }
      },
    },
  }
  app = await startApi()
  drain = app.get(Drain)
  url = await app.getUrl()
})
afterAll(async () => {
  await app.close()
  await node.close()
  await db.close()
  await postgres[Symbol.asyncDispose]()
  await rm(dir, { recursive: true })
})

async function startApi(): Promise<NestFastifyApplication> {
  const made = newSecrets()
  const secrets = new Secrets({ ...made, grantPrivateKey: keys.privateKey, grantPublicKey: keys.publicKey })
  @Module({
    controllers: [TestController],
    providers: [
      { provide: DATABASE, useValue: db },
      { provide: CLOCK, useValue: { now: () => new Date() } },
      { provide: LOG, useValue: log },
      { provide: STREAMS, useFactory: openStreams },
      { provide: Secrets, useValue: secrets },
      ...[Auth, Drain, Idempotency, NodeDoors, Watch, SandboxCalls],
    ],
  })
  class TestModule {}
  const filter = new ProblemFilter(routes, log)
  const adapter = new FastifyAdapter({
    genReqId: (raw: IncomingMessage) => requestId(raw.headers['x-request-id']),
    exposeHeadRoutes: false,
    requestTimeout: 0,
    skipMiddie: true,
    multipart: false,
  })
  const made2 = await NestFactory.create<NestFastifyApplication>(TestModule, adapter, {
    logger: false,
    bodyParser: false,
  })
  made2.useGlobalFilters(filter)
  installPipeline(adapter.getInstance(), {
    auth: made2.get(Auth),
    rateLimit: new RateLimit(1),
    idempotency: made2.get(Idempotency),
    clock: { now: () => new Date() },
    log,
    publicOrigin: undefined,
  })
  await made2.listen(0, '127.0.0.1')
  return made2
}

let secret: string
let keyId: KeyId
let tenantId: TenantId
beforeEach(async () => {
  Object.assign(counter, { made: 0, to: 3, left: false, step: async () => undefined })
  const tenant = await givenTenant(db)
  tenantId = tenant
  secret = newSecret('brt')
  const key = {
    tenantId: tenant,
    name: 'test',
    hash: hashOf(secret),
    hint: 'brt_',
    scopes: ['sandboxes:write' as const],
  }
  keyId = (await db.keys.create(key)).id
})

const auth = () => ({ authorization: `Bearer ${secret}` })
const ask = (path: string, init: RequestInit = {}) =>
  fetch(`${url}/v1/test${path}`, { ...init, headers: { ...auth(), ...Object.fromEntries(new Headers(init.headers)) } })
const socketTo = (path: string, headers: Record<string, string> = auth()) =>
  new WebSocket(`${url.replace('http', 'ws')}/v1/test${path}`, { headers })

/** Status and problem of a refused socket. */
async function refused(socket: WebSocket) {
  const [, answer]: [unknown, IncomingMessage] = await new Promise((resolve) =>
    socket.once('unexpected-response', (...args) => resolve(args)),
  )
  const text = Buffer.concat(await answer.toArray()).toString()
  return { status: answer.statusCode, type: answer.headers['content-type'], body: JSON.parse(text) }
}

async function until(what: string, holds: () => boolean, limitMs = 20_000): Promise<void> {
  const end = performance.now() + limitMs
  while (!holds()) {
    if (performance.now() > end) throw new Error(`not within ${limitMs} ms: ${what}`)
    await delay(10)
  }
}

/** A request whose body is written by hand. */
function put(path: string, headers: Record<string, string | number> = {}) {
  const request = httpRequest(`${url}/v1/test${path}`, { method: 'PUT', headers: { ...auth(), ...headers } })
  request.on('error', () => undefined)
  const answer = once(request, 'response').then(async ([response]: IncomingMessage[]) => ({
    status: response?.statusCode,
    headers: response?.headers,
    body: JSON.parse(Buffer.concat((await response?.toArray()) ?? []).toString()),
  }))
  answer.catch(() => undefined)
  return { request, answer }
}

const count: SandboxHandler['request'] = async (call) => {
  let bytes = 0
  for await (const chunk of call.body) bytes += chunk.length
  call.answer(200, { bytes })
}

describe('a streamed body', () => {
  test.each([
    ['JSON that is none', 'application/json', '{"a":'],
    ['a form', 'application/x-www-form-urlencoded', 'a=b'],
    ['a type that is none', 'no type; at all', 'x'],
    ['nothing', 'text/plain', ''],
  ])('may be anything: %s', async (_, type, body) => {
    files = count
    const answer = await ask('/box/files?path=/a', { method: 'PUT', body, headers: { 'content-type': type } })
    expect([answer.status, await answer.json()]).toEqual([200, { bytes: body.length }])
  })

  test('has no limit, and passes through with flat memory', async () => {
    files = count
    const { request, answer } = put('/box/files?path=/a')
    const chunk = Buffer.alloc(MiB)
    const before = heldBytes()
    let peak = 0
    for (let i = 0; i < 300; i++) {
      if (!request.write(chunk)) await once(request, 'drain')
      if (i % 32 === 31) peak = Math.max(peak, heldBytes())
    }
    request.end()
    expect(await answer).toMatchObject({ status: 200, body: { bytes: 300 * MiB } })
    expect(peak - before).toBeLessThan(64 * MiB)
  })

  test('of a client that vanishes fails on the node, and aborts its handler', async () => {
    const seen: unknown[] = []
    let signal: AbortSignal | undefined
    files = async (call) => {
      signal = call.signal
      try {
        for await (const chunk of call.body) seen.push(chunk.length)
      } catch (error) {
        seen.push(error)
        throw error
      }
    }
    const { request } = put('/box/files?path=/a')
    request.write('some')
    await until('some of it came', () => seen.length === 1)
    request.destroy()
    await until('it failed', () => seen.length === 2 && signal?.aborted === true)
    expect(seen[1]).toMatchObject({ code: 'unavailable' })
  })

  test.each<[string, string, number, string]>([
    ['no such sandbox', '/other/files?path=/a', 404, 'sandbox_not_found'],
    ['a query that is wrong', '/box/files?paht=/a', 400, 'invalid_request'],
    ['a path of 5,000 characters', `/box/files?path=${'a'.repeat(5000)}`, 400, 'invalid_request'],
  ])('is not asked for with %s', async (_, path, status, code) => {
    const { request, answer } = put(path, { expect: '100-continue', 'content-length': 5 })
    let asked = false
    request.once('continue', () => {
      asked = true
    })
    request.flushHeaders()
    expect(await answer).toMatchObject({ status, body: { code }, headers: { connection: 'close' } })
    expect(asked).toBe(false)
  })

  test('is not asked for without a key', async () => {
    const { request, answer } = put('/box/files?path=/a', { authorization: '', expect: '100-continue' })
    request.flushHeaders()
    expect(await answer).toMatchObject({ status: 401, body: { code: 'unauthenticated' } })
  })

  test('is asked for when it is wanted, where the client waits for that', async () => {
    files = count
    const { request, answer } = put('/box/files?path=/a', { expect: '100-continue', 'content-length': 5 })
    request.flushHeaders()
    await once(request, 'continue')
    request.end('12345')
    expect(await answer).toMatchObject({ status: 200, body: { bytes: 5 } })
  })

  test('that is refused in the middle gets its answer, and is not read on', async () => {
    files = async (call) => {
      call.body.resume()
      await once(call.body, 'data')
      throw new Failure('disk_full', 'no room')
    }
    const { request, answer } = put('/box/files?path=/a', { 'content-length': 10_000 * MiB })
    const chunk = Buffer.alloc(64 * 1024)
    const write = () => {
      while (!request.destroyed && request.write(chunk));
    }
    request.on('drain', write)
    write()
    expect(await answer).toMatchObject({ status: 507, body: { code: 'disk_full', detail: 'no room' } })
    await until('the connection is closed', () => request.destroyed)
  })
})

describe('a body of JSON', () => {
  test('is asked for too, and its type still matters', async () => {
    const post = (type: string, body: string) =>
      ask('/box/local', { method: 'POST', body, headers: { 'content-type': type } })
    expect((await post('application/json', '{"a":1}')).status).toBe(201)
    expect((await post('application/json', '{"a":2}')).status).toBe(200)
    for (const type of ['application/octet-stream', 'text/plain'])
      expect((await post(type, '{"a":1}')).status).toBe(415)
    const request = httpRequest(`${url}/v1/test/box/local`, {
      method: 'POST',
      headers: { ...auth(), 'content-type': 'application/json', 'content-length': 7, expect: '100-continue' },
    })
    request.flushHeaders()
    await once(request, 'continue')
    request.end('{"a":1}')
    expect((await once(request, 'response'))[0].statusCode).toBe(201)
  })
})

describe('an answer that streams', () => {
  test('passes on status, type and range', async () => {
    files = async (call) => {
      const { range } = call.request.headers
      if (range === 'bytes=9-') throw new Failure('range_not_satisfiable', 'beyond', { size: 5 })
      const head = { 'content-type': 'text/plain', 'content-length': 2, 'x-internal': '1' }
      if (range)
        await call.bytes(Readable.from([Buffer.from('bc')]), {
          status: 206,
          headers: { ...head, 'content-range': 'bytes 1-2/5' },
        })
      else await call.bytes(Readable.from([Buffer.from('abcde')]))
    }
    const whole = await ask('/box/files')
    expect([whole.status, whole.headers.get('content-type'), await whole.text()]).toEqual([
      ...[200, 'application/octet-stream', 'abcde'],
    ])
    const part = await ask('/box/files', { headers: { range: 'bytes=1-2' } })
    expect([part.status, part.headers.get('content-range'), part.headers.get('content-length')]).toEqual([
      ...[206, 'bytes 1-2/5', '2'],
    ])
    expect(part.headers.get('x-internal')).toBeNull()
    expect(await part.text()).toBe('bc')
    const beyond = await ask('/box/files', { headers: { range: 'bytes=9-' } })
    expect([beyond.status, await beyond.json()]).toMatchObject([416, { code: 'range_not_satisfiable', size: 5 }])
  })

  test('ends within a second, unfinished, when its key is revoked', async () => {
    files = async (call) => {
      await call.bytes(new Readable({ read: () => undefined }))
    }
    const answer = await ask('/box/files')
    expect(answer.status).toBe(200)
    await db.keys.revoke({ tenantId }, keyId)
    await expect(answer.text()).rejects.toThrow()
  })

  test('of lines comes line by line, and is left with the client', async () => {
    let go: () => void = () => undefined
    counter.step = () => new Promise((resolve) => (go = resolve))
    const stop = new AbortController()
    const answer = await ask('/box/lines', { signal: stop.signal })
    expect(answer.headers.get('content-type')).toBe('application/x-ndjson')
    const reader = answer.body?.getReader()
    const text = async () => Buffer.from((await reader?.read())?.value ?? []).toString()
    expect(await text()).toBe('{"i":0}\n')
    go()
    expect(await text()).toBe('{"i":1}\n')
    stop.abort()
    await until('it is left', () => {
      go()
      return counter.left
    })
  })

  test('is made no faster than it is read', async () => {
    counter.to = 1_000_000
    const connection = connect(Number(new URL(url).port), '127.0.0.1')
    connection.write(`GET /v1/test/box/lines HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer ${secret}\r\n\r\n`)
    await once(connection, 'readable')
    let last = -1
    for (let quiet = 0; quiet < 10; quiet++) {
      if (counter.made !== last) quiet = 0
      last = counter.made
      await delay(50)
    }
    expect(last).toBeLessThan(32_000)
    connection.destroy()
    await until('it is left', () => counter.left)
  })

  test('of events has the form of the standard', async () => {
    const answer = await ask('/box/events')
    expect(answer.headers.get('content-type')).toContain('text/event-stream')
    expect(await answer.text()).toBe(
      `retry: 1000\n\n${[0, 1, 2].map((i) => `id: ${i}\nevent: count\ndata: {"i":${i},"text":"a\\nb"}\n\n`).join('')}`,
    )
  })
})

describe('a WebSocket', () => {
  const echo: NonNullable<SandboxHandler['socket']> = async (call, accept) => {
    const socket = await accept()
    socket.send(`${call.rest.join('/')}?${call.query}`)
    socket.on('message', (data, binary) => socket.send(data, { binary }))
    socket.resume()
  }

  test('goes through to the node and back', async () => {
    execs = echo
    const socket = socketTo('/box/socket?since=7')
    expect(String((await once(socket, 'message'))[0])).toBe('execs/x/socket?since=7')
    socket.send('text ä')
    expect((await once(socket, 'message')).map(String)).toEqual(['text ä', 'false'])
    socket.send(Buffer.from([0, 255]))
    const [bytes, binary] = await once(socket, 'message')
    expect([bytes, binary]).toEqual([Buffer.from([0, 255]), true])
    socket.close()
    await once(socket, 'close')
  })

  test.each<[string, string, Record<string, string> | undefined, number, string]>([
    ['no key', '/box/socket', {}, 401, 'unauthenticated'],
    ['no such sandbox', '/other/socket', undefined, 404, 'sandbox_not_found'],
    ['a query that is wrong', '/box/socket?since=-1', undefined, 400, 'invalid_request'],
    ['a route that is none', '/box/nothing', undefined, 404, 'route_not_found'],
  ])('is refused by a problem with %s', async (_, path, headers, status, code) => {
    const answer = await refused(socketTo(path, headers))
    expect(answer).toMatchObject({ status, body: { code, status } })
    expect(answer.type).toContain('application/problem+json')
  })

  test('is refused by the problem that the node told', async () => {
    execs = () => Promise.reject(new Failure('exec_not_found', 'no exec x'))
    expect(await refused(socketTo('/box/socket'))).toMatchObject({ status: 404, body: { code: 'exec_not_found' } })
  })

  test('of a route that is none for sockets is answered as a plain request', async () => {
    counter.to = 1
    const [, answer]: [unknown, IncomingMessage] = await new Promise((resolve) =>
      socketTo('/box/lines').once('unexpected-response', (...args) => resolve(args)),
    )
    expect(answer.statusCode).toBe(200)
    expect(Buffer.concat(await answer.toArray()).toString()).toBe('{"i":0}\n')
  })

  test('is required of its route: a plain request is told so', async () => {
    const answer = await ask('/box/socket')
    expect([answer.status, answer.headers.get('upgrade'), await answer.text()]).toEqual([
      ...[426, 'websocket', expect.stringContaining('upgrade_required')],
    ])
    expect((await fetch(`${url}/v1/test/box/socket`)).status).toBe(401)
  })

  test('of a handler that fails later is closed with its code', async () => {
    const [code, reason] = await once(socketTo('/box/own'), 'close')
    expect([code, String(reason)]).toEqual([4404, 'exec_not_found: gone in the meantime'])
  })

  test('passes close codes on, both ways, and tells of a node that is gone', async () => {
    let closed: Promise<unknown[]> | undefined
    execs = async (_call, accept) => {
      const socket = await accept()
      closed = once(socket, 'close')
      socket.on('message', (text) => {
        if (String(text) === 'close') socket.close(4400, 'nonsense')
        else socket.terminate()
      })
      socket.resume()
    }
    const first = socketTo('/box/socket')
    await once(first, 'open')
    first.send('close')
    expect((await once(first, 'close')).map(String)).toEqual(['4400', 'nonsense'])
    const second = socketTo('/box/socket')
    await once(second, 'open')
    second.send('terminate')
    expect((await once(second, 'close'))[0]).toBe(1001)
    const third = socketTo('/box/socket')
    await once(third, 'open')
    third.close(4321, 'done')
    await once(third, 'close')
    expect((await closed)?.map(String)).toEqual(['4321', 'done'])
  })

  test('ends with 4401 when its key is revoked', async () => {
    execs = echo
    const socket = socketTo('/box/socket')
    await once(socket, 'message')
    await db.keys.revoke({ tenantId }, keyId)
    const [code, reason] = await once(socket, 'close')
    expect([code, String(reason)]).toEqual([4401, expect.stringContaining('key_revoked')])
  })

  test('ends at the node when its client vanishes', async () => {
    let closed = false
    execs = async (_call, accept) => {
      const socket = await accept()
      socket.on('close', () => {
        closed = true
      })
      socket.resume()
    }
    const socket = socketTo('/box/socket')
    await once(socket, 'open')
    socket.terminate()
    await until('the node knows', () => closed)
  })

  test('refuses a message of 10 MiB, and garbage', async () => {
    execs = echo
    const socket = socketTo('/box/socket')
    await once(socket, 'open')
    socket.send(Buffer.alloc(10 * MiB))
    expect((await once(socket, 'close'))[0]).toBe(1009)
    const connection = connect(Number(new URL(url).port), '127.0.0.1')
    connection.on('error', () => undefined)
    const key = Buffer.alloc(16).toString('base64')
    const head = ['GET /v1/test/box/socket HTTP/1.1', 'Host: x', 'Connection: Upgrade', 'Upgrade: websocket']
    head.push(`Sec-WebSocket-Key: ${key}`, 'Sec-WebSocket-Version: 13', `Authorization: Bearer ${secret}`, '', '')
    connection.write(head.join('\r\n'))
    await once(connection, 'data')
    connection.write(Buffer.alloc(4096, 0xff))
    connection.resume()
    await once(connection, 'close')
    expect((await ask('/box/lines')).status).toBe(200)
  })

  test.each([
    ['no key', []],
    ['another version', ['Sec-WebSocket-Version: 7', `Sec-WebSocket-Key: ${Buffer.alloc(16).toString('base64')}`]],
  ])('is not begun by a handshake that is none: %s', async (_, more) => {
    execs = echo
    const connection = connect(Number(new URL(url).port), '127.0.0.1')
    const head = ['GET /v1/test/box/socket HTTP/1.1', 'Host: x', 'Connection: Upgrade', 'Upgrade: websocket']
    connection.write([...head, `Authorization: Bearer ${secret}`, ...more, '', ''].join('\r\n'))
    const answer = Buffer.concat(await connection.toArray()).toString()
    expect(answer).toMatch(/^HTTP\/1.1 400 /)
    expect(answer).toContain('"code":"invalid_request"')
  })

  test('keeps memory flat where either end does not read, and loses nothing', async () => {
    const chunk = Buffer.alloc(64 * 1024, 'x')
    let sent = 0
    execs = async (_call, accept) => {
      const socket = await accept()
      const more = () => {
        while (sent < 64 * MiB && socket.bufferedAmount < MiB) {
          sent += chunk.length
          socket.send(chunk, more)
        }
      }
      more()
    }
    const socket = socketTo('/box/socket')
    let got = 0
    socket.on('message', (data: Buffer) => {
      got += data.length
    })
    await once(socket, 'open')
    socket.pause()
    let last = -1
    for (let quiet = 0; quiet < 10; quiet++) {
      if (sent !== last) quiet = 0
      last = sent
      await delay(50)
    }
    expect(last).toBeLessThan(48 * MiB)
    socket.resume()
    await until('all came', () => got === 64 * MiB)
    socket.terminate()
  })

  test('of many at once', async () => {
    execs = echo
    const all = Array.from({ length: 100 }, () => socketTo('/box/socket'))
    await Promise.all(
      all.map(async (socket, i) => {
        await once(socket, 'message')
        socket.send(`${i}`)
        expect(String((await once(socket, 'message'))[0])).toBe(`${i}`)
        socket.close()
        await once(socket, 'close')
      }),
    )
  })
})

test('an offer of another protocol is declined by answering: the body is read, the connection kept', async () => {
  const connection = connect(Number(new URL(url).port), '127.0.0.1')
  let text = ''
  connection.on('data', (chunk) => {
    text += chunk
  })
  const head = (...more: string[]) =>
    ['POST /v1/test/box/local HTTP/1.1', 'Host: x', `Authorization: Bearer ${secret}`, ...more, '', ''].join('\r\n')
  const offer = ['Connection: Upgrade, HTTP2-Settings', 'Upgrade: h2c', 'HTTP2-Settings: AAMAAABkAAQAAP__']
  connection.write(`${head(...offer, 'Content-Type: application/json', 'Content-Length: 7')}{"a"`)
  await delay(20)
  connection.write(':1}')
  await until('the answer', () => text.includes('{"a":1}'))
  text = ''
  connection.write(`${head('Content-Type: application/json', 'Content-Length: 7')}{"a":1}`)
  await until('the next answer', () => text.includes('{"a":1}'))
  connection.destroy()
})

// The last one: the drain is of the whole process.
test('a shutdown closes sockets with 1001', async () => {
  execs = async (_call, accept) => void (await accept()).resume()
  const socket = socketTo('/box/socket')
  await once(socket, 'open')
  drain.begin()
  expect((await once(socket, 'close'))[0]).toBe(1001)
})
