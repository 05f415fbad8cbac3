import { defaultQuota, GiB } from '@berth/contracts'
import { expect, test } from '@jest/globals'
import fc from 'fast-check'
import { costOf, fits, fitsQueue, neverFits, type TenantUse, toMillis, withRunning } from './quota.js'

const idle: TenantUse = { unfinishedJobs: 0, runningJobs: 0, cpuMillis: 0, memoryBytes: 0, diskBytes: 0 }
const quota = { ...defaultQuota, concurrentJobs: 3, cpus: 0.3, memoryBytes: 2 * GiB, diskBytes: 2 * GiB }
const small = { cpuMillis: 100, memoryBytes: GiB / 2, diskBytes: GiB / 2 }

test('names the quota in the way, in the unit of the quota', () => {
  const busy = { ...idle, cpuMillis: 250 }
  expect(fits(quota, busy, small)).toEqual({ quota: 'cpus', limit: 0.3, used: 0.25, asked: 0.1 })
  expect(fits(quota, { ...idle, runningJobs: 3 }, small)?.quota).toBe('concurrentJobs')
  expect(fits(quota, { ...idle, memoryBytes: 2 * GiB }, small)?.quota).toBe('memoryBytes')
  expect(fits(quota, { ...idle, diskBytes: 2 * GiB }, small)?.quota).toBe('diskBytes')
})

test('a quota can be used up to the last bit', () => {
  const two = withRunning(withRunning(idle, small), small)
  expect(fits(quota, two, small)).toBeUndefined()
  expect(fits(quota, withRunning(two, small), small)).toBeDefined()
})

test('a job larger than the quota never fits, whatever runs', () => {
  expect(neverFits(quota, { ...small, memoryBytes: 2 * GiB + 1 })).toMatchObject({ quota: 'memoryBytes', used: 0 })
  expect(neverFits(quota, small)).toBeUndefined()
})

test('queueing is bounded by unfinished jobs alone', () => {
  const use = { ...idle, unfinishedJobs: 9 }
  const ten = { ...quota, unfinishedJobs: 10 }
  expect(fitsQueue(ten, use, 1)).toBeUndefined()
  expect(fitsQueue(ten, use, 2)).toEqual({ quota: 'unfinishedJobs', limit: 10, used: 9, asked: 2 })
})

test('the smallest share of a CPU still counts', () => {
  expect(toMillis(0.0001)).toBe(1)
  expect(toMillis(1.1)).toBe(1100)
  const limits = { memoryBytes: 1, cpus: 0.25, pids: 2, diskBytes: 3, shmBytes: 0, openFiles: 16, outputBytes: 0 }
  expect(costOf({ limits })).toEqual({ cpuMillis: 250, memoryBytes: 1, diskBytes: 3 })
})

test('law: whatever is admitted while it fits stays within every quota', () => {
  const cost = fc.record({
    cpuMillis: fc.integer({ min: 1, max: 400 }),
    memoryBytes: fc.integer({ min: 1, max: GiB }),
    diskBytes: fc.integer({ min: 1, max: GiB }),
  })
  fc.assert(
    fc.property(fc.array(cost, { maxLength: 30 }), (costs) => {
      const use = costs.reduce<TenantUse>((sum, one) => (fits(quota, sum, one) ? sum : withRunning(sum, one)), idle)
      expect(use.runningJobs).toBeLessThanOrEqual(quota.concurrentJobs)
      expect(use.cpuMillis).toBeLessThanOrEqual(quota.cpus * 1000)
      expect(use.memoryBytes).toBeLessThanOrEqual(quota.memoryBytes)
      expect(use.diskBytes).toBeLessThanOrEqual(quota.diskBytes)
    }),
  )
})
