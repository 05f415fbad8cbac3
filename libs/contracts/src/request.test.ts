import { expect, test } from '@jest/globals'
import fc from 'fast-check'
import { z } from 'zod'
import { answerOf, deleteJob, pathOf, queryOf, requestOf, route, streamEvents, valuesOf, writeFile } from './index.js'

test('paths and queries are escaped, lists repeated, undefined left out', () => {
  expect(pathOf(deleteJob, { jobId: 'a/../b' })).toBe('/v1/jobs/a%2F..%2Fb')
  expect(queryOf({ label: ['a=b', 'c&d'], cursor: undefined, limit: 5 })).toBe('?label=a%3Db&label=c%26d&limit=5')
  expect(queryOf({})).toBe('')
})

test('a body is JSON, unless the route takes bytes', () => {
  const common = { id: 'x', method: 'POST', path: '/x', scope: 'public', rate: 'none', tag: 't', summary: 's' } as const
  const json = route({ ...common, body: z.object({ a: z.number() }), reply: { 204: 'empty' }, errors: [] })
  expect(requestOf(json, { body: { a: 1 } })).toEqual({ method: 'POST', path: '/x', body: '{"a":1}' })
  const given = { params: { sandbox: 's' }, query: { path: '/a b' } }
  expect(requestOf(writeFile, given)).toEqual({
    method: 'PUT',
    path: '/v1/sandboxes/s/files?path=%2Fa+b',
    body: undefined,
  })
})

test('an empty answer is undefined, and one that the route does not list is an error', () => {
  expect(answerOf(deleteJob, 204, '')).toBeUndefined()
  expect(() => answerOf(deleteJob, 200, '{}')).toThrow('HTTP 200')
})

const numbers = route({
  ...({ id: 'n', method: 'GET', path: '/n', scope: 'public', rate: 'none', tag: 't', summary: 's' } as const),
  reply: { 200: { kind: 'ndjson', item: z.object({ n: z.string() }) } },
  errors: [],
})

async function* cut(bytes: Uint8Array, sizes: readonly number[]): AsyncGenerator<Uint8Array> {
  let at = 0
  for (const size of sizes) {
    yield bytes.subarray(at, at + size)
    at += size
  }
  yield bytes.subarray(at)
}

async function all<T>(values: AsyncIterable<T>): Promise<readonly T[]> {
  const found: T[] = []
  for await (const value of values) found.push(value)
  return found
}

test('values are the same however their bytes are cut, in the middle of characters too', async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.record({ n: fc.string({ unit: 'grapheme' }) })),
      fc.array(fc.integer({ min: 0, max: 7 })),
      async (values, sizes) => {
        const text = values.map((value) => `${JSON.stringify(value)}\n`).join('')
        expect(await all(valuesOf(numbers, cut(new TextEncoder().encode(text), sizes)))).toEqual(values)
      },
    ),
  )
})

test('a value that is not of the route is refused, not passed on', async () => {
  const bytes = new TextEncoder().encode('{"n":"1"}\n{"m":2}\n')
  await expect(all(valuesOf(numbers, cut(bytes, [])))).rejects.toThrow('is not as expected')
})

test('server-sent events give their data; comments, ids and names are passed over', async () => {
  const event = { id: '7', type: 'job.queued', at: '2026-01-01T00:00:00Z', subject: 'job_1', by: 'api', data: {} }
  const text = `: hello\r\n\r\nid: 7\r\nevent: job.queued\r\ndata: ${JSON.stringify(event)}\r\n\r\n: ping\n\n`
  expect(await all(valuesOf(streamEvents, cut(new TextEncoder().encode(text), [3, 20])))).toEqual([event])
})
