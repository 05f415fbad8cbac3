import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import { expect, test } from '@jest/globals'
import fc from 'fast-check'
import { z } from 'zod'
import {
  Failure,
  ignore,
  JobId,
  JobSpec,
  mintId,
  openApi,
  parseBytes,
  parseDuration,
  problems,
  Quota,
  type Route,
  routes,
} from './index.js'

test.each([
  ['0', 0],
  ['1024', 1024],
  ['1k', 1024],
  ['256m', 268_435_456],
  ['256MiB', 268_435_456],
  ['1.5g', 1_610_612_736],
  ['2t', 2_199_023_255_552],
  ['-1', undefined],
  ['1e3', undefined],
  ['0x10', undefined],
  ['lots', undefined],
  ['', undefined],
  ['m', undefined],
])('%s is %p bytes', (text, bytes) => expect(parseBytes(text)).toBe(bytes))

test.each([
  ['250ms', 250],
  ['10s', 10_000],
  ['1h30m', 5_400_000],
  ['7d', 604_800_000],
  ['1.5s', 1500],
  ['10', undefined],
  ['-1s', undefined],
  ['1s ', undefined],
  ['', undefined],
])('%s is %p ms', (text, ms) => expect(parseDuration(text)).toBe(ms))

test('ids are valid, and sort by time', () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 0, max: 2 ** 47 }),
      fc.integer({ min: 1, max: 2 ** 30 }),
      fc.uint8Array({ minLength: 10, maxLength: 10 }),
      fc.uint8Array({ minLength: 10, maxLength: 10 }),
      (at, later, a, b) => {
        const [first, second] = [mintId('job', at, a), mintId('job', at + later, b)]
        expect(JobId.parse(first) < JobId.parse(second)).toBe(true)
      },
    ),
  )
})

test('what a spec gives when parsed parses to the same again', () => {
  const spec = JobSpec.parse({ command: ['a'], limits: { memoryBytes: '64m' }, timeoutMs: '3s', env: { A: 'b' } })
  expect(JobSpec.parse(structuredClone(spec))).toEqual(spec)
})

test.each(['__proto__', 'constructor'])('a field called %s pollutes nothing', (name) => {
  const body: unknown = JSON.parse(
    `{"command":["true"],"env":{"${name}":"x"},"labels":{"${name === '__proto__' ? 'a' : name}":"y"}}`,
  )
  const parsed = JobSpec.safeParse(body)
  expect(Object.prototype).not.toHaveProperty('x')
  if (parsed.success) expect(Object.getPrototypeOf(parsed.data.env)).toBe(Object.prototype)
})

test('a partial quota fills nothing in', () => {
  expect(Quota.partial().parse({ cpus: 2 })).toEqual({ cpus: 2 })
})

test('every route has an id of its own, and no two are the same', () => {
  expect(new Set(routes.map((r) => r.id)).size).toBe(routes.length)
  expect(new Set(routes.map((r) => `${r.method} ${r.path}`)).size).toBe(routes.length)
})

test('the document lists every route, with its errors by status', () => {
  const document = JSON.parse(JSON.stringify(openApi(routes, '1.2.3')))
  for (const r of routes) {
    const operation = document.paths[r.path.replace(/:(\w+)/g, '{$1}')][r.method.toLowerCase()]
    expect(operation.operationId).toBe(r.id)
    for (const code of r.errors) expect(operation.responses[problems[code].status].description).toContain(code)
  }
})

test('the document tells of streamed bodies and answers, sockets and headers, and knows no others', () => {
  const made = (route: Pick<Route, 'id' | 'method' | 'reply'> & Partial<Route>): Route => ({
    ...{ path: `/v1/${route.id}`, scope: 'tenant:read', rate: 'read', tag: 't', summary: 's', errors: [] },
    ...route,
  })
  const item = z.object({ i: z.number() })
  const document = JSON.parse(
    JSON.stringify(
      openApi(
        [
          made({ id: 'up', method: 'PUT', body: 'bytes', idempotency: 'none', reply: { 200: item } }),
          made({ id: 'down', method: 'GET', headers: { Range: 'One range' }, reply: { 200: 'bytes', 206: 'bytes' } }),
          made({ id: 'lines', method: 'GET', reply: { 200: { kind: 'ndjson', item } } }),
          made({ id: 'events', method: 'GET', reply: { 200: { kind: 'events', item } } }),
          made({ id: 'socket', method: 'GET', reply: { 101: 'socket' }, errors: ['upgrade_required'] }),
        ],
        '1.2.3',
      ),
    ),
  )
  const { up, down, lines, events, socket } = Object.fromEntries(
    Object.entries<Record<string, Record<string, unknown>>>(document.paths).map(([path, operations]) => [
      path.slice('/v1/'.length),
      Object.values(operations)[0],
    ]),
  )
  const octets = { 'application/octet-stream': { schema: { type: 'string', format: 'binary' } } }
  const value = expect.objectContaining({ properties: { i: { type: 'number' } } })
  expect(up).toMatchObject({ requestBody: { required: true, content: octets }, parameters: [] })
  expect(down).toMatchObject({
    parameters: [{ name: 'Range', in: 'header', required: false, description: 'One range' }],
    responses: { 200: { content: octets }, 206: { content: octets } },
  })
  expect(lines).toMatchObject({ responses: { 200: { content: { 'application/x-ndjson': { schema: value } } } } })
  expect(events).toMatchObject({ responses: { 200: { content: { 'text/event-stream': { schema: value } } } } })
  expect(socket).toMatchObject({ responses: { 101: { description: 'A WebSocket' }, 426: {} } })
})

test('only the named error is ignored', () => {
  const gone = Object.assign(new Error('gone'), { code: 'ENOENT' })
  expect(ignore(gone, 'ENOENT')).toBeUndefined()
  expect(() => ignore(gone, 'EACCES')).toThrow('gone')
  expect(() => ignore(new Failure('job_not_found', 'x'), 'ENOENT')).toThrow('x')
})

test('docs/errors.md is what the table says (UPDATE_GOLDEN=1 writes it)', () => {
  const path = new URL('../../../docs/errors.md', import.meta.url)
  const rows = Object.entries(problems).map(([code, { status, title }]) => `| \`${code}\` | ${status} | ${title} |`)
  const text = [
    '# Errors',
    '',
    'Every error is a problem document (RFC 9457, `application/problem+json`): `type` is `urn:berth:problem:` and the code,',
    '`detail` says what, which and what to do, `requestId` finds the log line, and `errors` lists each wrong field of a',
    'request. `code` is stable. Made from `libs/contracts/src/errors.ts`.',
    '',
    '| code | status | meaning |',
    '|---|---|---|',
    ...rows,
    '',
  ].join('\n')
  if (process.env.UPDATE_GOLDEN || !existsSync(path)) writeFileSync(path, text)
  expect(readFileSync(path, 'utf8')).toBe(text)
})
