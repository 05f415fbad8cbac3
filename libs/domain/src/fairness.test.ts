import { describe, expect, test } from '@jest/globals'
import fc from 'fast-check'
import { offerInTurn, type Pick, schedule, type Waiting } from './fairness.js'
import { withJob } from './placement.js'
import { cost, jobId, node, now, queued, tenantId, waiting } from './sample.fixture.js'

const flood = (tenant: number, from: number, length: number, cpus = 1) =>
  Array.from({ length }, (_, i) => queued(tenant, from + i, cpus, 10_000))
const big = (n: number) => node(n, { capacity: { ...cost(1000, 2 ** 50), diskBytes: 2 ** 50, sandboxes: 100_000 } })
const countOf = (picks: readonly Pick[], tenant: number) =>
  picks.filter(({ job }) => job.tenantId === tenantId(tenant)).length

describe('the order', () => {
  test('ten thousand jobs of one tenant do not delay the one of another', () => {
    const tenants = [waiting(1, flood(1, 0, 10_000)), waiting(2, [queued(2, 99_999)])]
    expect(schedule(tenants, [big(1)], 2, now).map(({ job }) => job.tenantId)).toContain(tenantId(2))
  })
  test('interleaves tenants of equal weight', () => {
    const tenants = [1, 2, 3].map((tenant) => waiting(tenant, flood(tenant, tenant * 1000, 20)))
    const order = schedule(tenants, [big(1)], 9, now).map(({ job }) => job.tenantId)
    for (const part of [order.slice(0, 3), order.slice(3, 6), order.slice(6, 9)]) expect(new Set(part).size).toBe(3)
  })
  test('gives a tenant of double weight twice as much', () => {
    const tenants = [waiting(1, flood(1, 0, 50), { weight: 2 }), waiting(2, flood(2, 1000, 50))]
    const picks = schedule(tenants, [big(1)], 30, now)
    expect([countOf(picks, 1), countOf(picks, 2)]).toEqual([20, 10])
  })
  test('counts what runs already', () => {
    const use = { unfinishedJobs: 9, runningJobs: 4, cpuMillis: 0, memoryBytes: 0, diskBytes: 0 }
    const tenants = [waiting(1, flood(1, 0, 5), { use }), waiting(2, flood(2, 1000, 5))]
    expect(countOf(schedule(tenants, [big(1)], 4, now), 2)).toBe(4)
  })
  test('among equals, who was served longest ago, however old the other queue is', () => {
    const old = waiting(1, flood(1, 0, 100), { lastPlacedAt: new Date(now.getTime() - 1) })
    expect(schedule([old, waiting(2, [queued(2, 999, 8, 2)])], [node(1)], 1, now)[0]?.job.id).toBe(jobId(999))
  })
  test('among equals, who waited longest', () => {
    const tenants = [waiting(1, [queued(1, 1, 1, 5)]), waiting(2, [queued(2, 2, 1, 6)])]
    expect(schedule(tenants, [big(1)], 1, now)[0]?.job.id).toBe(jobId(2))
  })
})

describe('a job that does not fit', () => {
  test("the tenant's quota holds up the tenant's later ones, and no other tenant", () => {
    const narrow = waiting(1, [queued(1, 1, 5), queued(1, 2, 1)])
    const tenants = [{ ...narrow, quota: { ...narrow.quota, cpus: 4 } }, waiting(2, [queued(2, 3)])]
    expect(schedule(tenants, [big(1)], 9, now).map(({ job }) => job.id)).toEqual([jobId(3)])
  })
  test('any node now keeps the node free that could hold it', () => {
    const half = node(1, { used: { ...cost(4), sandboxes: 4 } })
    const tenants = [
      waiting(1, [queued(1, 1, 6, 10)]),
      waiting(2, flood(2, 100, 10), { use: { ...waiting(2, []).use, runningJobs: 4 } }),
    ]
    expect(schedule(tenants, [half], 10, now)).toEqual([])
    const empty = schedule(tenants, [node(1)], 10, now)
    expect(empty.map(({ job }) => job.id).slice(0, 1)).toEqual([jobId(1)])
  })
  test('any node, even empty, holds up nobody, not its own tenant either', () => {
    const tenants = [waiting(1, [queued(1, 1, 500), queued(1, 2, 1)]), waiting(2, [queued(2, 3)])]
    expect(schedule(tenants, [node(1)], 9, now).map(({ job }) => job.id)).toEqual([jobId(2), jobId(3)])
  })
})

test('law: a large job is placed after as many finishes as the node holds jobs, however many small ones wait', () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 2, max: 8 }),
      fc.array(fc.nat({ max: 7 }), { minLength: 8, maxLength: 8 }),
      (cpus, ends) => {
        let small = flood(1, 0, 100)
        let held = small.slice(0, 8)
        small = small.slice(8)
        const large = queued(2, 9999, cpus, 1)
        let placed = false
        for (const end of ends) {
          held = held.filter((_, i) => i !== end % held.length)
          const one = held.reduce((sum, job) => withJob(sum, job), node(1))
          const use = { ...waiting(1, []).use, runningJobs: held.length }
          const picks = schedule([waiting(1, small, { use, lastPlacedAt: now }), waiting(2, [large])], [one], 10, now)
          placed = picks.some(({ job }) => job.id === large.id)
          if (placed) break
          expect(picks).toEqual([])
        }
        expect(placed).toBe(true)
      },
    ),
  )
})

const tenantsOf = fc
  .array(
    fc.record({
      weight: fc.integer({ min: 1, max: 3 }),
      cpus: fc.array(fc.integer({ min: 1, max: 9 }), { maxLength: 12 }),
      quota: fc.integer({ min: 1, max: 9 }),
    }),
    { maxLength: 4 },
  )
  .map((all) =>
    all.map(({ weight, cpus, quota }, t): Waiting => {
      const one = waiting(
        t,
        cpus.map((cpu, i) => queued(t, t * 100 + i, cpu)),
        { weight },
      )
      return { ...one, quota: { ...one.quota, cpus: quota } }
    }),
  )

test('law: a pass keeps quotas, capacities, the limit and the order within each tenant', () => {
  fc.assert(
    fc.property(tenantsOf, fc.integer({ min: 0, max: 3 }), fc.integer({ min: 0, max: 20 }), (tenants, count, limit) => {
      const nodes = Array.from({ length: count }, (_, n) => node(n))
      const picks = schedule(tenants, nodes, limit, now)
      expect(picks.length).toBeLessThanOrEqual(limit)
      expect(new Set(picks.map(({ job }) => job.id)).size).toBe(picks.length)
      for (const { tenantId: id, quota, queue } of tenants) {
        const mine = picks.filter(({ job }) => job.tenantId === id).map(({ job }) => job)
        expect(mine.reduce((sum, job) => sum + job.cost.cpuMillis, 0)).toBeLessThanOrEqual(quota.cpus * 1000)
        expect(mine.map((job) => queue.indexOf(job))).toEqual(
          mine.map((job) => queue.indexOf(job)).sort((a, b) => a - b),
        )
      }
      for (const one of nodes)
        expect(
          picks.filter((pick) => pick.node.id === one.id).reduce((sum, { job }) => sum + job.cost.cpuMillis, 0),
        ).toBeLessThanOrEqual(one.capacity.cpuMillis)
    }),
  )
})

test('law: while all wait and everything fits, weighted shares differ by at most one job', () => {
  fc.assert(
    fc.property(
      fc.array(fc.integer({ min: 1, max: 4 }), { minLength: 2, maxLength: 5 }),
      fc.integer({ min: 1, max: 60 }),
      (weights, limit) => {
        const taken = new Map(weights.map((_, t) => [tenantId(t), 0]))
        offerInTurn(
          weights.map((weight, t) => waiting(t, flood(t, t * 1000, 100), { weight })),
          limit,
          (job) => {
            taken.set(job.tenantId, (taken.get(job.tenantId) ?? 0) + 1)
            return 'taken'
          },
        )
        const shares = weights.map((weight, t) => (taken.get(tenantId(t)) ?? 0) / weight)
        expect(Math.max(...shares) - Math.min(...shares)).toBeLessThanOrEqual(1)
        expect([...taken.values()].reduce((sum, n) => sum + n, 0)).toBe(limit)
      },
    ),
  )
})
