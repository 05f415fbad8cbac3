import { once } from 'node:events'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from '@jest/globals'
import { cgroupContract, startIn, until } from './cgroup.contract.js'
import { cgroupLayout, openCgroups } from './cgroup-layout.js'
import { CgroupsV1 } from './cgroup-v1.js'
import { CgroupsV2 } from './cgroup-v2.js'

const parent = `berth-t${process.pid}`
const layout = cgroupLayout()
const { unified } = layout
const v1 = (group: string) => layout.hierarchies.map((hierarchy) => `${hierarchy.path}/${group}`)

// Each machine tests what it has; one that is hybrid tests both, v2 with what controllers its cgroup2 holds.
if (layout.hierarchies.length > 0)
  describe('v1', () => cgroupContract(() => new CgroupsV1(layout.hierarchies), v1, parent))
if (unified !== undefined)
  describe('v2', () =>
    cgroupContract(
      () => new CgroupsV2(unified),
      (group) => [`${unified}/${group}`],
      parent,
    ))

describe('limits on this machine', () => {
  const cgroups = openCgroups()
  const group = `${parent}/limited`
  const directories = () => (layout.kind === 'v2' ? [`${unified}/${group}`] : v1(group))
  const start = (script: string) => startIn(directories(), script)

  beforeEach(() => cgroups.create(group))
  afterEach(async () => {
    await cgroups.kill(parent)
    await cgroups.remove(parent)
  })

  test('memory: the hog is killed and counted, and its peak is at most the limit', async () => {
    cgroups.setLimits(group, { memoryBytes: 32 << 20 })
    const hog = await start('exec tail /dev/zero')
    const [code, signal] = await once(hog, 'exit')
    const usage = cgroups.usage(group)
    expect([code, signal]).toEqual([null, 'SIGKILL'])
    expect(usage?.oomKills).toBe(1)
    expect(usage?.memoryPeakBytes).toBeGreaterThan(16 << 20)
    expect(usage?.memoryPeakBytes).toBeLessThanOrEqual(32 << 20)
  })

  test('traffic: what is read from a disk, and the page cache that it leaves', async () => {
    cgroups.countDisks(parent)
    const directory = mkdtempSync('/var/tmp/berth-cg-')
    try {
      const file = join(directory, 'file')
      writeFileSync(file, Buffer.alloc(8 << 20, 1))
      expect(cgroups.traffic(group)).toEqual({ cacheBytes: 0, readBytes: 0, writtenBytes: 0 })
      // Out of the cache first, where it is on nobody's account but the writer's.
      await start(`sync "${file}"; dd if="${file}" iflag=nocache count=0; cat "${file}" >/dev/null; sleep 100`)
      await until('it was read', () => {
        const { cacheBytes = 0, readBytes = 0 } = cgroups.traffic(group) ?? {}
        return readBytes > 4 << 20 && cacheBytes > 4 << 20
      })
    } finally {
      rmSync(directory, { recursive: true })
    }
  })

  test('memory limits grow, shrink and are lifted', () => {
    for (const memoryBytes of [64 << 20, 16 << 20, 128 << 20, 'max', 32 << 20] as const)
      expect(() => cgroups.setLimits(group, { memoryBytes })).not.toThrow()
  })

  test('soft limit, swap, period, weight and CPUs: what was set is what the kernel has', () => {
    cgroups.setLimits(group, {
      memoryBytes: 64 << 20,
      swapBytes: 16 << 20,
      memoryReservationBytes: 32 << 20,
      cpuMillis: 500,
      cpuPeriodUs: 20_000,
      cpuShares: 512,
      cpuset: '0',
    })
    const read = (controller: string, file: string) =>
      readFileSync(`${cgroups.paths(group).get(controller)}/${file}`, 'utf8').trim()
    const expected: readonly (readonly [string, string, string])[] =
      layout.kind === 'v2'
        ? [
            ['memory', 'memory.max', String(64 << 20)],
            ['memory', 'memory.low', String(32 << 20)],
            ['cpu', 'cpu.max', '10000 20000'],
            ['cpu', 'cpu.weight', '20'],
            ['cpuset', 'cpuset.cpus', '0'],
          ]
        : [
            ['memory', 'memory.limit_in_bytes', String(64 << 20)],
            ['memory', 'memory.memsw.limit_in_bytes', String(80 << 20)],
            ['memory', 'memory.soft_limit_in_bytes', String(32 << 20)],
            ['cpu', 'cpu.cfs_period_us', '20000'],
            ['cpu', 'cpu.cfs_quota_us', '10000'],
            ['cpu', 'cpu.shares', '512'],
            ['cpuset', 'cpuset.cpus', '0'],
          ]
    expect(expected.map(([controller, file]) => [controller, file, read(controller, file)])).toEqual(expected)
    cgroups.setLimits(group, { memoryReservationBytes: 'max', cpuset: 'all', cpuMillis: 'max' })
    if (availableParallelism() > 1) expect(read('cpuset', 'cpuset.cpus')).not.toBe('0')
  })

  test('a CPU limit that the kernel refuses leaves the one before in force', () => {
    const read = (of: string, file: string) => readFileSync(`${cgroups.paths(of).get('cpu')}/${file}`, 'utf8').trim()
    const limitOf = (of: string) =>
      layout.kind === 'v2' ? read(of, 'cpu.max') : `${read(of, 'cpu.cfs_quota_us')} ${read(of, 'cpu.cfs_period_us')}`
    const below = `${group}/below`
    cgroups.setLimits(group, { cpuMillis: 1000 })
    cgroups.create(below, { cpuMillis: 500 })
    // On v1 no group may have less than one below it; v2 takes it, and the lesser holds.
    const less = { cpuMillis: 100, cpuPeriodUs: 50_000 }
    if (layout.kind === 'v2') expect(() => cgroups.setLimits(group, less)).not.toThrow()
    else {
      expect(() => cgroups.setLimits(group, less)).toThrow('cpu.cfs_quota_us')
      expect(() => cgroups.setLimits(group, { cpuMillis: 100 })).toThrow('cpu.cfs_quota_us')
      expect(() => cgroups.setLimits(below, { ...less, cpuMillis: 2000 })).toThrow('cpu.cfs_quota_us')
      expect([limitOf(group), limitOf(below)]).toEqual(['100000 100000', '50000 100000'])
    }
  })

  test('a weight of disk access is taken where the kernel has one, else refused', () => {
    const weigh = () => cgroups.setLimits(group, { ioWeight: 200 })
    if (cgroups.weighsIo(group)) expect(weigh).not.toThrow()
    else expect(weigh).toThrow(/weigh disk access|io.weight/)
    expect(() => cgroups.setLimits(group, { ioWeight: 'default' })).not.toThrow()
  })

  test('pids: forks beyond the limit are refused and counted', async () => {
    cgroups.setLimits(group, { pids: 8 })
    await start('for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 1000 & done; wait')
    await until('a refused fork', () => (cgroups.usage(group)?.pidsRefused ?? 0) > 0)
    expect(cgroups.usage(group)?.pids).toBeLessThanOrEqual(8)
  })

  test('cpu: a spinning process is held to its quota, and its time is counted', async () => {
    cgroups.setLimits(group, { cpuMillis: 100 })
    await start('while :; do :; done')
    const began = performance.now()
    await until('200 ms of CPU time', () => (cgroups.usage(group)?.cpuUsageUs ?? 0) > 200_000)
    const elapsedMs = performance.now() - began
    // A tenth of a CPU needs two seconds for it; one period of start-up may be free.
    expect(elapsedMs).toBeGreaterThan(1_000)
    expect(cgroups.usage(group)?.cpuThrottledUs).toBeGreaterThan(0)
  })

  test('a killed group can be used again: the kill leaves no limit behind', async () => {
    await start('exec sleep 1000')
    await cgroups.kill(group)
    const child = await start('exit 0')
    expect(await once(child, 'exit')).toEqual([0, null])
  })
})
