import { expect, test } from '@jest/globals'
import fc from 'fast-check'
import { bucketOf, RateLimit } from './rate-limit.js'

test('a burst of a tenth of a minute passes, then the tenant’s rate', () => {
  const limit = new RateLimit(1)
  const passes = (from: number, n: number) =>
    Array.from({ length: n }, () => limit.take('a', 600, from)).filter((s) => s.retryAfterS === undefined).length
  expect(passes(0, 100)).toBe(60)
  expect(passes(1000, 100)).toBe(10)
  expect(passes(1050, 100)).toBe(0)
  expect(passes(61_000, 1000)).toBe(60)
})

test('a refused request says when to come back, and is let through then', () => {
  const limit = new RateLimit(1)
  for (let i = 0; i < 10; i++) limit.take('a', 60, 0)
  const refused = limit.take('a', 60, 0)
  expect(refused).toMatchObject({ limit: 60, remaining: 0, retryAfterS: 1 })
  expect(limit.take('a', 60, 1000).retryAfterS).toBeUndefined()
})

test('one tenant’s flood leaves the other’s bucket alone', () => {
  const limit = new RateLimit(1)
  for (let i = 0; i < 100; i++) limit.take('noisy', 60, 0)
  expect(limit.take('quiet', 60, 0)).toMatchObject({ remaining: 9, retryAfterS: undefined })
})

test('a rate of nothing lets nothing through, and a raised one acts at once', () => {
  const limit = new RateLimit(1)
  expect(limit.take('a', 0, 0).retryAfterS).toBeGreaterThan(0)
  expect(limit.take('a', 6000, 1000).retryAfterS).toBeUndefined()
})

test('replicas share the rate', () => {
  expect(bucketOf(6000, 3).perMs * 3).toBeCloseTo(bucketOf(6000, 1).perMs)
  expect(bucketOf(6000, 3).capacity).toBe(200)
})

test('over any schedule no more passes than the bucket and its refill', () => {
  fc.assert(
    fc.property(
      fc.integer({ min: 1, max: 6000 }),
      fc.array(fc.integer({ min: -50, max: 2000 }), { maxLength: 300 }),
      (rpm, steps) => {
        const limit = new RateLimit(1)
        const { capacity, perMs } = bucketOf(rpm, 1)
        let now = 1_000_000
        let elapsed = 0
        let passed = 0
        for (const step of steps) {
          now += step
          elapsed += Math.max(0, step)
          if (limit.take('a', rpm, now).retryAfterS === undefined) passed++
        }
        expect(passed).toBeLessThanOrEqual(capacity + elapsed * perMs + 1e-6)
      },
    ),
  )
})
