// What the control plane promises about sandboxes when parts of it are killed: against a node that obeys and runs
// nothing. What becomes of real ones is shown elsewhere.
import { afterAll, beforeAll, beforeEach, expect, test } from '@jest/globals'
import { type TestTenant, tenant, until } from '../support/berth.js'
import { crash, redisCli, restart, restored } from '../support/crash.js'
import { FakeNode } from '../support/fake-node.js'

let node: FakeNode
let t: TestTenant
beforeAll(async () => {
  node = await FakeNode.start()
  t = await tenant({ sandboxes: 500, cpus: 500, memoryBytes: 2 ** 44 })
})
// Also before each try of a test whose last one failed in the middle.
beforeEach(restored, 120_000)
afterAll(async () => {
  await restored()
  await node?.[Symbol.asyncDispose]()
}, 120_000)

const body = () => ({ image: node.image, limits: { memoryBytes: '16m', diskBytes: '16m', cpus: 0.1 } })

test('with Redis emptied all the time every sandbox still runs, and stops', async () => {
  let emptying = true
  const emptied = (async () => {
    while (emptying) await redisCli('FLUSHALL')
  })()
  const made = await Promise.all(Array.from({ length: 30 }, () => t.post('/v1/sandboxes', body())))
  emptying = false
  await emptied
  for (const { body: box } of made)
    expect((await t.get(`/v1/sandboxes/${box.id}?wait=running&timeoutMs=60s`)).body.state).toBe('running')
  await redisCli('FLUSHALL')
  await Promise.all(made.map(({ body: box }) => t.post(`/v1/sandboxes/${box.id}/stop`)))
  await redisCli('FLUSHALL')
  for (const { body: box } of made)
    expect((await t.get(`/v1/sandboxes/${box.id}?wait=stopped&timeoutMs=60s`)).body.state).toBe('stopped')
}, 180_000)

test('the API killed in the middle of creating: what was answered is there, and all that is there comes to run', async () => {
  const answered: string[] = []
  const creating = Array.from({ length: 40 }, async (_, i) => {
    const answer = await t
      .post('/v1/sandboxes', { ...body(), labels: { round: 'killed', n: `${i}` } })
      .catch(() => undefined)
    if (answer?.status === 201) answered.push(answer.body.id)
  })
  await Promise.race(creating)
  await crash('api')
  await Promise.all(creating)
  await restart('api')
  await until('the API is back', async () => ((await t.get('/v1/tenant')).status === 200 ? true : undefined))
  const listed = (await t.get('/v1/sandboxes?label=round=killed&limit=200')).body.items
  const ids = listed.map(({ id }: { id: string }) => id)
  for (const id of answered) expect(ids).toContain(id)
  for (const id of ids)
    expect((await t.get(`/v1/sandboxes/${id}?wait=running&timeoutMs=60s`)).body.state).toBe('running')
  const running = (await t.get('/v1/sandboxes?state=running&limit=200')).body.items.length
  expect((await t.get('/v1/usage')).body.now.memoryBytes).toBe(running * 16 * 2 ** 20)
}, 180_000)

test('of a node that falls silent all are lost, and as they were when it is back', async () => {
  await using silent = await FakeNode.start()
  const made = await t.post('/v1/sandboxes?wait=running', { ...body(), image: silent.image })
  const { id } = made.body
  await silent.stop()
  expect((await t.get(`/v1/sandboxes/${id}?wait=lost&timeoutMs=2m`)).body).toMatchObject({
    state: 'lost',
    reason: { code: 'node_lost' },
  })
  expect((await t.post(`/v1/sandboxes/${id}/start`)).body).toMatchObject({ code: 'wrong_state', state: 'lost' })
  await silent.beat()
  expect((await t.get(`/v1/sandboxes/${id}`)).body.state).toBe('running')
  const gone = await t.delete(`/v1/sandboxes/${id}?force=true`)
  expect([gone.status, gone.body.state]).toEqual([202, 'deleted'])
}, 180_000)
