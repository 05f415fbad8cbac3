import { existsSync, mkdirSync } from 'node:fs'
import { errnoOf, Fault, ignore } from '@berth/contracts'
import {
  ancestry,
  type CgroupLimits,
  type Cgroups,
  type CgroupTraffic,
  type CgroupUsage,
  checkGroup,
  cpuQuota,
  disks,
  freezeBy,
  persist,
  processesBelow,
  readControl,
  readKeyed,
  readNumber,
  removeDirectories,
  subgroups,
  sumOf,
  uniquePids,
  writeControl,
  writeUnlessGone,
} from './cgroup.js'

/** A mounted hierarchy; several controllers may share one (`cpu,cpuacct`), a named one (`name=systemd`) has none. */
export interface Hierarchy {
  readonly path: string
  readonly controllers: readonly string[]
}

/** cgroup v1 (Documentation/admin-guide/cgroup-v1): the same group is a directory in each hierarchy. */
export class CgroupsV1 implements Cgroups {
  readonly #hierarchies: readonly Hierarchy[]

  constructor(hierarchies: readonly Hierarchy[]) {
    this.#hierarchies = hierarchies
  }

  paths(group: string): ReadonlyMap<string, string> {
    checkGroup(group)
    return new Map(this.#hierarchies.flatMap((h) => h.controllers.map((name) => [name, `${h.path}/${group}`] as const)))
  }

  create(group: string, limits: CgroupLimits = {}): void {
    const made = this.#directories(group).filter((directory) => !existsSync(directory))
    try {
      for (const hierarchy of this.#hierarchies)
        for (const part of ancestry(group)) this.#make(hierarchy, `${hierarchy.path}/${part}`)
      this.setLimits(group, limits)
    } catch (error) {
      for (const directory of made) removeDirectories(directory)
      throw error
    }
  }

  setLimits(group: string, limits: CgroupLimits): void {
    const { memoryBytes, memoryReservationBytes, cpuMillis, cpuShares, cpuset, pids, ioWeight } = limits
    if (memoryBytes !== undefined) this.#limitMemory(group, memoryBytes, limits.swapBytes ?? 0)
    if (memoryReservationBytes !== undefined) {
      const bytes = memoryReservationBytes === 'max' ? -1 : memoryReservationBytes
      writeControl(`${this.#path(group, 'memory')}/memory.soft_limit_in_bytes`, bytes)
    }
    if (cpuMillis !== undefined) this.#limitCpu(group, cpuMillis, limits.cpuPeriodUs)
    if (cpuShares !== undefined) writeControl(`${this.#path(group, 'cpu')}/cpu.shares`, cpuShares)
    if (cpuset !== undefined) this.#limitCpuset(group, cpuset)
    if (pids !== undefined) writeControl(`${this.#path(group, 'pids')}/pids.max`, pids)
    if (ioWeight !== undefined) this.#weigh(group, ioWeight)
  }

  usage(group: string): CgroupUsage | undefined {
    const [cpu, cpuacct] = [this.#path(group, 'cpu'), this.#path(group, 'cpuacct')]
    const [memory, pids] = [this.#path(group, 'memory'), this.#path(group, 'pids')]
    const nanoseconds = readControl(`${cpuacct}/cpuacct.usage`)
    if (nanoseconds === undefined) return undefined
    return {
      cpuUsageUs: Math.round(Number(nanoseconds) / 1000),
      cpuThrottledUs: Math.round(readKeyed(`${cpu}/cpu.stat`, 'throttled_time') / 1000),
      memoryBytes: readNumber(`${memory}/memory.usage_in_bytes`),
      memoryPeakBytes: readNumber(`${memory}/memory.max_usage_in_bytes`),
      oomKills: readKeyed(`${memory}/memory.oom_control`, 'oom_kill'),
      pids: readNumber(`${pids}/pids.current`),
      pidsRefused: readKeyed(`${pids}/pids.events`, 'max'),
    }
  }

  countDisks(group: string): void {
    const directory = this.paths(group).get('blkio')
    const file = `${directory}/blkio.throttle.read_bps_device`
    if (directory === undefined || readControl(file) === undefined) return
    // 0: no limit. A disk may be gone by now.
    for (const disk of disks()) writeUnlessGone(file, `${disk} 0`)
  }

  traffic(group: string): CgroupTraffic | undefined {
    const stat = `${this.#path(group, 'memory')}/memory.stat`
    if (readControl(stat) === undefined) return undefined
    // Lines such as `8:0 Read 4096`, a device and a kind each.
    const served = this.#served(group)
    return {
      cacheBytes: readKeyed(stat, 'total_inactive_file'),
      readBytes: sumOf(served, /^\S+ Read (\d+)$/gm),
      writtenBytes: sumOf(served, /^\S+ Write (\d+)$/gm),
    }
  }

  children(group: string): readonly string[] {
    return [...new Set(this.#directories(group).flatMap((directory) => subgroups(directory)))].sort()
  }

  processes(group: string): readonly number[] {
    return uniquePids(this.#directories(group).flatMap((directory) => processesBelow(directory)))
  }

  weighsIo(group: string): boolean {
    return this.#weightFile(group) !== undefined
  }

  freeze(group: string): Promise<void> {
    const file = this.#freezer(group)
    return freezeBy(
      group,
      () => writeControl(file, 'FROZEN'),
      () => readControl(file) === 'FROZEN',
      () => this.thaw(group),
    )
  }

  thaw(group: string): void {
    writeUnlessGone(this.#freezer(group), 'THAWED')
  }

  frozen(group: string): boolean {
    return ['FROZEN', 'FREEZING'].includes(readControl(this.#freezer(group)) ?? '')
  }

  async kill(group: string): Promise<void> {
    const limit = `${this.#path(group, 'pids')}/pids.max`
    const before = readControl(limit)
    // No more forks: a fork bomb cannot outrun the loop. Here and below, the group may be removed at any moment by
    // whoever cleans up after its last process, and then there is nothing to kill or to set.
    if (before !== undefined) writeUnlessGone(limit, 0)
    await persist(`kill the processes of cgroup ${group}`, () => {
      const alive = this.processes(group)
      for (const pid of alive) killNow(pid)
      // What is frozen takes no signal; once it is thawed SIGKILL comes before anything else (freezer-subsystem.rst).
      if (alive.length > 0) this.thaw(group)
      return alive.length === 0
    })
    if (before !== undefined) writeUnlessGone(limit, before)
  }

  async remove(group: string): Promise<void> {
    const directories = this.#directories(group)
    await persist(`remove cgroup ${group}`, () => !directories.map(removeDirectories).includes(false))
  }

  #path(group: string, controller: string): string {
    const path = this.paths(group).get(controller)
    if (path === undefined)
      throw new Fault(`find the ${controller} controller`, { cause: new Error('no hierarchy of it is mounted') })
    return path
  }

  #directories(group: string): readonly string[] {
    checkGroup(group)
    return this.#hierarchies.map((hierarchy) => `${hierarchy.path}/${group}`)
  }

  #make(hierarchy: Hierarchy, directory: string): void {
    try {
      mkdirSync(directory)
    } catch (error) {
      if (errnoOf(error) === 'EEXIST') return
      throw new Fault(`make cgroup ${directory}`, { cause: error })
    }
    if (hierarchy.controllers.includes('cpuset')) inheritCpuset(directory)
  }

  #limitMemory(group: string, bytes: number | 'max', swapBytes: number): void {
    const directory = this.#path(group, 'memory')
    const value = bytes === 'max' ? -1 : bytes
    const total = bytes === 'max' ? -1 : bytes + swapBytes
    const limit = `${directory}/memory.limit_in_bytes`
    const withSwap = `${directory}/memory.memsw.limit_in_bytes`
    const before = readControl(withSwap) // missing where the kernel does not account swap
    const grows = bytes === 'max' || bytes + swapBytes > Number(before)
    // limit <= limit with swap must hold after each write, so growing starts at the other end than shrinking.
    if (before !== undefined && grows) writeControl(withSwap, total)
    writeControl(limit, value)
    if (before !== undefined && !grows) writeControl(withSwap, total)
  }

  #limitCpu(group: string, millis: number | 'max', wantedPeriod: number | undefined): void {
    const directory = this.#path(group, 'cpu')
    const [periodFile, quotaFile] = [`${directory}/cpu.cfs_period_us`, `${directory}/cpu.cfs_quota_us`]
    const { periodUs, quotaUs = -1 } = cpuQuota(millis, wantedPeriod)
    const [period, quota] = [readNumber(periodFile), readNumber(quotaFile)]
    try {
      // A quota that fits the old period may be too much for the new one, and the other way round.
      if (period !== periodUs) writeControl(quotaFile, -1)
      if (period !== periodUs) writeControl(periodFile, periodUs)
      writeControl(quotaFile, quotaUs)
    } catch (error) {
      // The kernel refuses less than a group below has, and more than the one above: it is not left without a limit.
      if (period !== 0) writeUnlessGone(periodFile, period)
      if (quota !== 0) writeUnlessGone(quotaFile, quota)
      throw error
    }
  }

  #limitCpuset(group: string, cpus: string): void {
    const directory = this.#path(group, 'cpuset')
    writeControl(`${directory}/cpuset.cpus`, cpus === 'all' ? (readControl(`${directory}/../cpuset.cpus`) ?? '') : cpus)
  }

  #freezer(group: string): string {
    return `${this.#path(group, 'freezer')}/freezer.state`
  }

  #served(group: string): string {
    const directory = this.paths(group).get('blkio')
    return (directory && readControl(`${directory}/blkio.throttle.io_service_bytes_recursive`)) ?? ''
  }

  /** Its name depends on the scheduler; with none of them there is no weight. */
  #weightFile(group: string): string | undefined {
    const directory = this.#path(group, 'blkio')
    const files = ['blkio.weight', 'blkio.bfq.weight'].map((name) => `${directory}/${name}`)
    return files.find((file) => readControl(file) !== undefined)
  }

  #weigh(group: string, weight: number | 'default'): void {
    const file = this.#weightFile(group)
    if (weight === 'default' && file === undefined) return
    if (file === undefined)
      throw new Fault(`weigh disk access of ${group}`, { cause: new Error('this kernel has no blkio.weight') })
    // CFQ's (before Linux 5.0) and BFQ's: block/cfq-iosched.c, block/bfq-iosched.h.
    const usual = file.endsWith('bfq.weight') ? 100 : 500
    writeControl(file, weight === 'default' ? usual : weight)
  }
}

/** A new cpuset is empty, and no process can be put into it until it names CPUs and memory nodes. */
function inheritCpuset(directory: string): void {
  for (const file of ['cpuset.cpus', 'cpuset.mems']) {
    const inherited = readControl(`${directory}/../${file}`)
    if (inherited && readControl(`${directory}/${file}`) === '') writeControl(`${directory}/${file}`, inherited)
  }
}

function killNow(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL')
  } catch (error) {
    ignore(error, 'ESRCH')
  }
}
