import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import { ApiError, createKey, createTenant, deleteJob, JobId, listJobs, route, Unreachable } from '@berth/contracts'
import { afterEach, expect, test } from '@jest/globals'
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
  const server = createServer((request, response) => {
    seen.push(request)
    request.resume()
    request.on('end', () => handle(request, response, seen.length))
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
  return { client, seen }
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
