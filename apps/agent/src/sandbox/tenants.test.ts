import { randomBytes } from 'node:crypto'
import { mintId, TenantId } from '@berth/contracts'
import type { CgroupLimits, Cgroups } from '@berth/host'
import { createLogger } from '@berth/telemetry'
import { afterEach, beforeEach, expect, jest, test } from '@jest/globals'
import { TenantGroups } from './tenants.js'

const tenant = TenantId.parse(mintId('tenant', 1, randomBytes(10)))
const log = createLogger({ name: 'test', level: 'silent' })
const limits = { memoryBytes: 1000, cpus: 1.5, pids: 10 }

let calls: (readonly [string, string] | readonly [string, string, CgroupLimits | undefined])[]
let refuses: boolean
let groups: TenantGroups
beforeEach(() => {
  void jest.useFakeTimers()
  calls = []
  refuses = false
  const cgroups: Pick<Cgroups, 'create' | 'remove'> = {
    create: (group, given) => {
      if (refuses) throw new Error('EINVAL')
      calls.push(['create', group, given])
    },
    remove: async (group) => void calls.push(['remove', group]),
  }
  groups = new TenantGroups(cgroups, 'berth', log)
})
afterEach(() => {
  jest.useRealTimers()
})

const made = { memoryBytes: 1000, cpuMillis: 1500, pids: 10 }

test('is made when it is needed, with the newest limits, and once', () => {
  groups.limit(tenant, { ...limits, pids: 5 })
  groups.limit(tenant, limits)
  groups.ensure(tenant)
  groups.ensure(tenant)
  groups.limit(tenant, { ...limits })
  expect(calls).toEqual([['create', `berth/${tenant}`, made]])
})

test('newer limits hold at once; what the kernel refuses is left as it was', () => {
  groups.limit(tenant, limits)
  groups.ensure(tenant)
  groups.limit(tenant, { ...limits, pids: 20 })
  expect(calls.at(-1)).toEqual(['create', `berth/${tenant}`, { ...made, pids: 20 }])
  refuses = true
  groups.limit(tenant, { ...limits, cpus: 0.1 })
  expect(calls).toHaveLength(2)
  expect(() => groups.ensure(tenant)).toThrow('EINVAL')
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
  expect(calls).toHaveLength(1)
  groups.release(tenant)
  await jest.advanceTimersByTimeAsync(31_000)
  expect(calls.at(-1)).toEqual(['remove', `berth/${tenant}`])
  groups.limit(tenant, limits)
  groups.ensure(tenant)
  expect(calls).toHaveLength(3)
})
