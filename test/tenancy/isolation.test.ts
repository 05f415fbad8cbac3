import { routes } from '@berth/contracts'
import { beforeAll, expect, test } from '@jest/globals'
import { z } from 'zod'
import { operator, run, sh, stdout, type TestTenant, tenant } from '../support/berth.js'

let mine: TestTenant
let other: TestTenant
const ids: Record<string, string> = { stream: 'stdout' }

beforeAll(async () => {
  mine = await tenant()
  other = await tenant()
  const job = await run(mine, sh('echo mine'))
  const batch = await mine.post('/v1/batches', { jobs: [{ command: ['true'] }] })
  const key = await mine.post('/v1/keys', { name: 'mine' })
  const sandbox = await mine.post('/v1/sandboxes', { name: 'mine' })
  Object.assign(ids, { jobId: job.id, batchId: batch.body.id, keyId: key.body.id, sandbox: sandbox.body.id })
})

const tenantRoutes = routes.filter((r) => r.path.includes(':') && !['operator', 'node', 'public'].includes(r.scope))

test('there are routes to check', () => expect(tenantRoutes.length).toBeGreaterThan(6))

test.each(tenantRoutes.map((r) => [`${r.method} ${r.path}`, r] as const))(
  '%s of another tenant is not found',
  async (_, route) => {
    const path = route.path.replace(/:(\w+)/g, (_whole, name: string) => ids[name] ?? `missing-${name}`)
    expect(path).not.toContain('missing-')
    const json = { body: '{}', headers: { 'content-type': 'application/json' } }
    const response = await other.raw(route.method, path, route.body instanceof z.ZodType ? json : {})
    expect(response.status).toBe(404)
    expect(await response.json()).toMatchObject({ code: expect.stringMatching(/_not_found$/) })
  },
)

test('lists show nothing of another tenant', async () => {
  expect((await other.get('/v1/jobs')).body.items).toEqual([])
  expect((await other.get(`/v1/jobs?batchId=${ids.batchId}`)).body.items).toEqual([])
  expect((await other.get('/v1/keys')).body.items.map((key: { name: string }) => key.name)).toEqual(['test'])
  expect((await other.get('/v1/usage')).body.period.jobs).toBe(0)
  expect((await other.get('/v1/sandboxes')).body.items).toEqual([])
  expect((await other.get('/v1/sandboxes/mine')).body.code).toBe('sandbox_not_found')
  expect((await other.get('/v1/events?limit=1000')).body.items).toEqual([])
  expect((await mine.get('/v1/events')).body.items.length).toBeGreaterThan(2)
})

test('two tenants never share a host id', async () => {
  const map = async (t: TestTenant) =>
    stdout(await run(t, { command: ['cat', '/proc/self/uid_map'] }))
      .trim()
      .split(/\s+/)
  const [a, b] = [await map(mine), await map(other)]
  expect(a[0]).toBe('0')
  expect(Math.abs(Number(a[1]) - Number(b[1]))).toBeGreaterThanOrEqual(65_536)
  expect(Number(a[1])).toBeGreaterThanOrEqual(1_000_000)
})

test('operators see every tenant', async () => {
  const answer = await operator().get(`/v1/tenants/${mine.id}`)
  expect(answer.body).toMatchObject({ id: mine.id, state: 'active' })
})
