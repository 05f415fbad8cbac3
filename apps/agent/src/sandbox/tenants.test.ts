import { randomBytes } from 'node:crypto'
import { mintId, TenantId } from '@berth/contracts'
import type { CgroupLimits } from '@berth/host'
import { createLogger } from '@berth/telemetry'
import { afterEach, beforeEach, expect, jest, test } from '@jest/globals'
import { type TenantCgroups, TenantGroups } from './tenants.js'

const tenant = TenantId.parse(mintId('tenant', 1, randomBytes(10)))
const log = createLogger({ name: 'test', level: 'silent' })
const limits = { memoryBytes: 1000, cpus: 1.5, pids: 10 }

let calls: (readonly [string, string] | readonly [string, string, CgroupLimits | undefined])[]
/** Limits that the kernel refuses. */
let refuses: readonly (keyof CgroupLimits)[]
let there: boolean
let groups: TenantGroups
beforeEach(() => {
  void jest.useFakeTimers()
  calls = []
  refuses = []
  there = false
  const usage = { cpuUsageUs: 0, cpuThrottledUs: 0, memoryBytes: 0, memoryPeakBytes: 0, oomKills: 0, pids: 0 }
  const cgroups: TenantCgroups = {
    create: (group) => {
      there = true
      calls.push(['create', group])
    },
    setLimits: (group, given) => {
      if (refuses.some((name) => given[name] !== undefined)) throw new Error('EINVAL')
      calls.push(['setLimits', group, given])
    },
    usage: () => (there ? { ...usage, pidsRefused: 0 } : undefined),
    remove: async (group) => {
      there = false
      calls.push(['remove', group])
    },
  }
  groups = new TenantGroups(cgroups, 'berth', log)
})
afterEach(() => {
  jest.useRealTimers()
})

const group = `berth/${tenant}`
/** What the group was given since the last look, the latest of each. */
const given = () => {
  const limits = calls.splice(0).map(([, , limits]) => limits)
  return Object.assign({}, ...limits)
}
const made = { memoryBytes: 1000, cpuMillis: 1500, pids: 10 }

test('is made when it is needed, with the newest limits, and once', () => {
  groups.limit(tenant, { ...limits, pids: 5 })
  groups.limit(tenant, limits)
  groups.ensure(tenant)
  groups.ensure(tenant)
  groups.limit(tenant, { ...limits })
  expect(calls.filter(([what]) => what === 'create')).toEqual([['create', group]])
  expect([calls.length, given()]).toEqual([4, made])
})

test('newer limits hold at once; what the kernel refuses is left as it was', () => {
  groups.limit(tenant, limits)
  groups.ensure(tenant)
  groups.limit(tenant, { ...limits, pids: 20 })
  expect(given()).toEqual({ ...made, pids: 20 })
  refuses = ['cpuMillis']
  const less = { memoryBytes: 900, cpus: 0.1, pids: 9 }
  groups.limit(tenant, less)
  expect(given()).toEqual({ memoryBytes: 900, pids: 9 })
  expect(() => groups.ensure(tenant)).toThrow('EINVAL')
  expect(groups.standing()).toEqual([{ id: tenant, limits: null }])
  refuses = []
  groups.renew(tenant, less)
  expect(given()).toEqual({ memoryBytes: 900, pids: 9, cpuMillis: 100 })
  expect(groups.standing()).toEqual([{ id: tenant, limits: less }])
})

test('what was refused is given again where the limits of before are to hold again', () => {
  groups.limit(tenant, limits)
  groups.ensure(tenant)
  refuses = ['cpuMillis']
  groups.limit(tenant, { ...limits, pids: 3, cpus: 0.1 })
  refuses = []
  given()
  groups.limit(tenant, limits)
  expect(given()).toEqual(made)
})

test('what a former agent left is held to the limits that come, and what is not here is not kept', () => {
  there = true
  groups.limit(tenant, limits)
  expect(given()).toEqual(made)
  const other = TenantId.parse(mintId('tenant', 2, randomBytes(10)))
  groups.renew(other, limits)
  expect(groups.standing()).toEqual([{ id: tenant, limits }])
})

test('goes a while after its last user, unless another comes', async () => {
  groups.limit(tenant, limits)
  groups.hold(tenant)
  groups.hold(tenant)
  groups.ensure(tenant)
  groups.release(tenant)
  await jest.advanceTimersByTimeAsync(60_000)
  groups.release(tenant)
  await jest.advanceTimersByTimeAsync(20_000)
  groups.hold(tenant)
  await jest.advanceTimersByTimeAsync(60_000)
  expect(calls).toHaveLength(4)
  groups.release(tenant)
  await jest.advanceTimersByTimeAsync(31_000)
  expect(calls.at(-1)).toEqual(['remove', group])
  expect(groups.standing()).toEqual([])
  groups.limit(tenant, limits)
  groups.ensure(tenant)
  expect(calls.splice(0).at(5)).toEqual(['create', group])
})

test('has its limits also where somebody has removed it while it was empty', () => {
  there = true
  groups.limit(tenant, limits)
  given()
  there = false
  groups.ensure(tenant)
  expect(there).toBe(true)
  expect(given()).toEqual(made)
})
