// Events: a list to read, and a stream that can be left and taken up again without losing or repeating one.
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals'
import { client, sh, submit, type TestTenant, tenant } from '../support/berth.js'
import { FakeNode } from '../support/fake-node.js'

let node: FakeNode
let t: TestTenant
beforeAll(async () => {
  node = await FakeNode.start()
  t = await tenant({ sandboxes: 500, cpus: 500, memoryBytes: 2 ** 44 })
})
afterAll(async () => {
  await node?.[Symbol.asyncDispose]()
})

const box = (api = t) =>
  api.post('/v1/sandboxes?wait=running', {
    ...{ image: node.image, limits: { memoryBytes: '16m', diskBytes: '16m', cpus: 0.1 } },
  })

interface Seen {
  readonly id: number
  readonly type: string
  readonly subject: string
}

/** Reads a stream until `enough`, then leaves it. */
async function read(query: string, enough: (seen: readonly Seen[]) => boolean, api = t, headers = {}) {
  const leave = new AbortController()
  const response = await api.raw('GET', `/v1/events/stream${query}`, { headers, signal: leave.signal })
  const seen: Seen[] = []
  let text = ''
  try {
    for await (const chunk of response.body ?? []) {
      text += Buffer.from(chunk).toString()
      const frames = text.split('\n\n')
      text = frames.pop() ?? ''
      for (const frame of frames) {
        const data = /^data: (.*)$/m.exec(frame)?.[1]
        if (data === undefined) continue
        const event = JSON.parse(data)
        expect(frame).toContain(`id: ${event.id}\n`)
        expect(frame).toContain(`event: ${event.type}\n`)
        seen.push({ id: Number(event.id), type: event.type, subject: event.subject })
      }
      if (enough(seen)) break
    }
  } finally {
    leave.abort()
  }
  return seen
}

describe('a stream', () => {
  test('tells what happens from now on, as it happens', async () => {
    await box()
    const first = await t.get('/v1/events?limit=1000')
    const reading = read('', (seen) => seen.length >= 2)
    // It begins with the next event once it is open; before that there is nothing to wait for.
    let made = await box()
    for (let i = 0; i < 20 && (await Promise.race([reading, undefined])) === undefined; i++) made = await box()
    const seen = await reading
    expect(made.status).toBe(201)
    expect(seen[0]?.id).toBeGreaterThan(first.body.items.length)
    expect(new Set(seen.map(({ type }) => type))).toEqual(new Set(['sandbox.created', 'sandbox.running']))
  })

  test('that is left and taken up again loses and repeats nothing, while much happens', async () => {
    const own = await tenant({ sandboxes: 500, cpus: 500, memoryBytes: 2 ** 44 })
    const writing = Promise.all(Array.from({ length: 40 }, () => box(own)))
    const seen: Seen[] = []
    while (seen.length < 80) {
      const last = seen.at(-1)?.id
      const headers = last === undefined ? {} : { 'last-event-id': `${last}` }
      const part = await read(
        '?fromStart=true',
        (some) => some.length >= 7 || seen.length + some.length >= 80,
        own,
        headers,
      )
      seen.push(...part)
    }
    await writing
    expect(seen.map(({ id }) => id)).toEqual(seen.map((_, i) => i + 1))
  })

  test('tells only what is asked for', async () => {
    const own = await tenant()
    const [a, b] = [await box(own), await box(own)]
    await own.delete(`/v1/sandboxes/${a.body.id}?force=true`)
    await own.delete(`/v1/sandboxes/${b.body.id}?force=true`)
    const deleted = await read('?fromStart=true&type=sandbox.deleted', (seen) => seen.length >= 2, own)
    expect(deleted.map(({ subject }) => subject)).toEqual([a.body.id, b.body.id])
    const one = await read(`?fromStart=true&subject=${b.body.id}`, (seen) => seen.length >= 3, own)
    expect(one.map(({ type }) => type)).toEqual(['sandbox.created', 'sandbox.running', 'sandbox.deleted'])
  })

  test('ends when its key is revoked', async () => {
    const key = (await t.post('/v1/keys', { name: 'short' })).body
    const reading = read('', () => false, { ...t, ...client(key.secret) })
    await t.delete(`/v1/keys/${key.id}`)
    await reading.catch(() => undefined)
    expect((await client(key.secret).get('/v1/events')).body.code).toBe('key_revoked')
  })

  test.each(['x', '-1', '1e3'])('refuses to go on after %s', async (id) => {
    const response = await t.raw('GET', '/v1/events/stream', { headers: { 'last-event-id': id } })
    expect(response.status).toBe(400)
    await response.body?.cancel()
  })
})

test('jobs tell their states', async () => {
  const own = await tenant()
  const id = await submit(own, sh('exit 3'))
  await own.get(`/v1/jobs/${id}?wait=finished`)
  const { body } = await own.get(`/v1/events?subject=${id}`)
  const types = body.items.map(({ type }: { type: string }) => type)
  expect([types[0], types.at(-1)]).toEqual(['job.placed', 'job.failed'])
  expect(body.items.at(-1).data).toMatchObject({ exitCode: 3, reason: { code: 'exit_nonzero' } })
})

test('lists go on after an event', async () => {
  const own = await tenant()
  await box(own)
  const { body } = await own.get('/v1/events?limit=1')
  expect(body.items.map(({ type }: { type: string }) => type)).toEqual(['sandbox.created'])
  const rest = await own.get(`/v1/events?after=${body.items[0].id}`)
  expect(rest.body.items.map(({ type }: { type: string }) => type)).toEqual(['sandbox.running'])
  expect((await own.get('/v1/events?after=x')).status).toBe(400)
})
