import { once } from 'node:events'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { type Duplex, Readable } from 'node:stream'
import {
  ApiError,
  createExec,
  createKey,
  createTenant,
  deleteJob,
  ExecId,
  JobId,
  listJobs,
  route,
  Unreachable,
} from '@berth/contracts'
import { afterEach, expect, test } from '@jest/globals'
import { WebSocketServer } from 'ws'
import { z } from 'zod'
import { Client } from './client.js'
import { followOutput } from './streams.js'

type Handler = (request: IncomingMessage, response: ServerResponse, nth: number) => void

const open: { close(): Promise<void> }[] = []
afterEach(async () => {
  for (const one of open.splice(0)) await one.close()
})

/** A client of a server that answers as told; `nth` counts requests from 1. */
async function clientOf(handle: Handler, options: { readonly retries?: number } = {}) {
  const seen: IncomingMessage[] = []
  const bodies: string[] = []
  const server = createServer((request, response) => {
    seen.push(request)
    let text = ''
    request.on('data', (chunk) => {
      text += chunk
    })
    request.on('end', () => {
      bodies.push(text)
      handle(request, response, seen.length)
    })
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const { port } = server.address() as AddressInfo
  const client = new Client({ url: `http://127.0.0.1:${port}`, apiKey: 'brt_test', ...options })
  open.push({
    close: async () => {
      await client.close()
      server.closeAllConnections()
      await new Promise((resolve) => server.close(resolve))
    },
  })
  return { client, seen, bodies, server }
}

const problem = (response: ServerResponse, status: number, body: object, headers: Record<string, string> = {}) =>
  response.writeHead(status, { 'content-type': 'application/problem+json', ...headers }).end(JSON.stringify(body))

const jobId = JobId.parse(`job_${'0'.repeat(26)}`)

test('a lost answer is asked for again with the same idempotency key', async () => {
  const { client, seen } = await clientOf((_, response, nth) => {
    if (nth === 1) response.destroy()
    else response.writeHead(204).end()
  })
  await client.call(deleteJob, { params: { jobId } })
  const keys = seen.map(({ headers }) => headers['idempotency-key'])
  expect(keys).toHaveLength(2)
  expect(keys[0]).toMatch(/^[0-9a-f-]{36}$/)
  expect(keys[1]).toBe(keys[0])
  expect(seen[1]?.headers.authorization).toBe('Bearer brt_test')
})

test('a command whose answer was lost is not run twice, unless it has an id', async () => {
  const { client, seen } = await clientOf((_, response) => response.destroy(), { retries: 1 })
  const params = { sandbox: 'box' }
  await expect(client.call(createExec, { params, body: { command: ['true'] } })).rejects.toBeInstanceOf(Unreachable)
  expect(seen).toHaveLength(1)
  const named = { params, body: { id: ExecId.parse('mine'), command: ['true'] } }
  await expect(client.call(createExec, named)).rejects.toBeInstanceOf(Unreachable)
  expect(seen).toHaveLength(3)
})

test('an answer cut in the middle is asked for again, and told as unreachable in the end, as is a dead address', async () => {
  const { client, seen } = await clientOf((_, response) => {
    response.writeHead(200, { 'content-length': '100' }).write('{"items"')
    response.destroy()
  })
  await expect(client.call(listJobs, {})).rejects.toBeInstanceOf(Unreachable)
  expect(seen).toHaveLength(4)
  const nobody = new Client({ url: 'http://127.0.0.1:1', retries: 0 })
  await expect(nobody.call(listJobs, {})).rejects.toThrow(/GET \/v1\/jobs: .*ECONNREFUSED/)
  await nobody.close()
})

test('429 and 503 are waited out as the answer says, other refusals are told at once', async () => {
  const { client, seen } = await clientOf((_, response, nth) => {
    if (nth <= 2)
      problem(response, nth === 1 ? 429 : 503, { code: 'rate_limited', detail: 'slow' }, { 'retry-after': '0' })
    else problem(response, 403, { code: 'quota_exceeded', detail: 'full', requestId: 'req_1', quota: 'cpus', limit: 2 })
  })
  const failed = await client.call(listJobs, {}).catch((error: unknown) => error)
  expect(seen).toHaveLength(3)
  expect(failed).toBeInstanceOf(ApiError)
  expect(failed).toMatchObject({
    code: 'quota_exceeded',
    status: 403,
    requestId: 'req_1',
    data: { quota: 'cpus', limit: 2 },
  })
})

test('every field that is wrong is in the message', async () => {
  const errors = [
    { field: 'name', message: 'is needed' },
    { field: 'scopes', message: 'is empty' },
  ]
  const { client } = await clientOf((_, response) => problem(response, 400, { code: 'invalid_request', errors }))
  await expect(client.call(createKey, { body: { name: '' } })).rejects.toThrow('name: is needed; scopes: is empty')
})

test.each<[string, number, string, RegExp]>([
  ['of a proxy', 502, '<html>bad gateway</html>', /HTTP 502 without a problem document: <html>/],
  ['of another shape', 201, '{"id":"x"}', /the answer of POST \/v1\/tenants is not as expected/],
  ['that is no JSON', 201, 'hello', /is not as expected/],
])('an answer %s is an error that says so', async (_, status, text, message) => {
  const { client } = await clientOf((_request, response) => response.writeHead(status).end(text), { retries: 0 })
  await expect(client.call(createTenant, { body: { name: 'a' } })).rejects.toThrow(message)
})

test('an output stream goes on at the byte where a connection was lost, and each byte comes once', async () => {
  const whole = 'the quick brown fox jumps over the lazy dog'
  const { client, seen } = await clientOf((request, response, nth) => {
    const since = Number(new URL(request.url ?? '', 'http://x').searchParams.get('since'))
    response.writeHead(200, { 'content-type': 'application/octet-stream' })
    if (nth === 4) return void response.end(whole.slice(since))
    if (nth === 2) return void response.destroy()
    response.write(whole.slice(since, since + 10), () => setImmediate(() => response.destroy()))
  })
  let got = ''
  for await (const chunk of followOutput(client, jobId, 'stdout')) got += Buffer.from(chunk).toString()
  expect(got).toBe(whole)
  expect(seen.map(({ url }) => /since=(\d+)/.exec(url ?? '')?.[1])).toEqual(['0', '10', '10', '20'])
})

test('a stream that never gives a byte is given up, and one that was refused is not asked for again', async () => {
  const dead = await clientOf((_, response) => response.destroy(), { retries: 0 })
  const drain = async (client: Client, reconnects: number) => {
    for await (const _ of followOutput(client, jobId, 'stderr', { reconnects })) throw new Error('no byte was expected')
  }
  await expect(drain(dead.client, 1)).rejects.toThrow(`follow stderr of ${jobId}`)
  expect(dead.seen).toHaveLength(2)
  const refused = await clientOf((_, response) => problem(response, 410, { code: 'output_gone' }))
  await expect(drain(refused.client, 5)).rejects.toMatchObject({ code: 'output_gone' })
  expect(refused.seen).toHaveLength(1)
})

test('an abort ends a call and is told as what it is', async () => {
  const { client } = await clientOf(() => undefined)
  const stop = new AbortController()
  const call = client.call(listJobs, {}, { signal: stop.signal })
  stop.abort(new Error('enough'))
  await expect(call).rejects.toThrow('enough')
})

test('values come one by one, and a connection that breaks among them is told as unreachable', async () => {
  const count = route({
    ...{ id: 'count', method: 'GET', path: '/v1/count', scope: 'public', rate: 'none', tag: 't', summary: 's' },
    reply: { 200: { kind: 'ndjson', item: z.object({ n: z.number() }) } },
    errors: [],
  })
  const { client } = await clientOf((_, response) => {
    response.writeHead(200, { 'content-type': 'application/x-ndjson' }).write('{"n":1}\n{"n":2}\n{"n"')
    setImmediate(() => response.destroy())
  })
  const seen: number[] = []
  const read = async () => {
    for await (const { n } of client.values(count, {})) seen.push(n)
  }
  await expect(read()).rejects.toBeInstanceOf(Unreachable)
  expect(seen).toEqual([1, 2])
})

const upload = route({
  ...{
    id: 'upload',
    method: 'PUT',
    path: '/v1/x/:x',
    scope: 'public',
    rate: 'none',
    tag: 't',
    summary: 's',
    errors: [],
  },
  params: z.object({ x: z.string() }),
  query: z.object({ path: z.string() }),
  body: 'bytes',
  reply: { 200: z.object({ got: z.string() }) },
})

test('bytes are sent as they come, once, with the headers given', async () => {
  const { client, seen, bodies } = await clientOf((_, response, nth) => {
    if (nth === 1) response.end(JSON.stringify({ got: bodies[0] }))
    else problem(response, 503, { code: 'unavailable' }, { 'retry-after': '0' })
  })
  const bytes = Readable.from([Buffer.from('one '), Buffer.from('two')])
  const given = { params: { x: 'a/b' }, query: { path: '/ä' } }
  expect(await client.send(upload, given, bytes, { headers: { 'if-match': '"1"' } })).toEqual({ got: 'one two' })
  expect(seen[0]).toMatchObject({ method: 'PUT', url: '/v1/x/a%2Fb?path=%2F%C3%A4' })
  expect(seen[0]?.headers).toMatchObject({ 'if-match': '"1"', 'content-type': 'application/octet-stream' })
  await expect(client.send(upload, given, Readable.from([Buffer.from('x')]))).rejects.toMatchObject({ status: 503 })
  expect(seen).toHaveLength(2)
})

const socket = route({
  ...{ id: 'socket', method: 'GET', path: '/v1/x/:x/socket', scope: 'public', rate: 'none', tag: 't', summary: 's' },
  params: z.object({ x: z.string() }),
  reply: { 101: 'socket' },
  errors: [],
})

test('a socket loses nothing, ends with its signal, and is refused with the problem', async () => {
  const { client, server } = await clientOf(() => undefined)
  const acceptor = new WebSocketServer({ noServer: true })
  server.on('upgrade', (request: IncomingMessage, connection: Duplex, head: Buffer) => {
    if (request.url?.startsWith('/v1/x/yes'))
      acceptor.handleUpgrade(request, connection, head, (one) => one.send(request.headers.authorization ?? ''))
    else connection.end('HTTP/1.1 404 Not Found\r\nContent-Length: 25\r\n\r\n{"code":"exec_not_found"}')
  })
  const stop = new AbortController()
  const opened = await client.socket(socket, { params: { x: 'yes' } }, { signal: stop.signal })
  await new Promise((resolve) => setTimeout(resolve, 20))
  opened.resume()
  expect(String((await once(opened, 'message'))[0])).toBe('Bearer brt_test')
  const closed = once(opened, 'close')
  stop.abort(new Error('enough'))
  await closed
  await expect(client.socket(socket, { params: { x: 'no' } })).rejects.toMatchObject({ status: 404 })
  await expect(client.socket(socket, { params: { x: 'yes' } }, { signal: stop.signal })).rejects.toThrow('enough')
  const nobody = new Client({ url: 'http://127.0.0.1:1' })
  await expect(nobody.socket(socket, { params: { x: 'yes' } })).rejects.toThrow(/ECONNREFUSED/)
})
