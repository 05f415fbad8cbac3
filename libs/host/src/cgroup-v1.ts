import { mkdirSync } from 'node:fs'
import { errnoOf, Fault, ignore } from '@berth/contracts'
import {
  ancestry,
  type CgroupLimits,
  type Cgroups,
  type CgroupUsage,
  checkGroup,
  persist,
  processesBelow,
  readControl,
  readKeyed,
  readNumber,
  removeDirectories,
  subgroups,
  uniquePids,
  writeControl,
  writeUnlessGone,
} from './cgroup.js'

/** A mounted hierarchy; several controllers may share one (`cpu,cpuacct`), a named one (`name=systemd`) has none. */
export interface Hierarchy {
  readonly path: string
  readonly controllers: readonly string[]
}

/** Period of the CPU quota in microseconds, the kernel's default. */
const periodUs = 100_000
/** The kernel refuses quotas below one millisecond. */
const leastQuotaUs = 1_000

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
    checkGroup(group)
    for (const hierarchy of this.#hierarchies)
      for (const part of ancestry(group)) this.#make(hierarchy, `${hierarchy.path}/${part}`)
    this.setLimits(group, limits)
  }

  setLimits(group: string, limits: CgroupLimits): void {
    if (limits.memoryBytes !== undefined) this.#limitMemory(group, limits.memoryBytes)
    if (limits.cpuMillis !== undefined) this.#limitCpu(group, limits.cpuMillis)
    if (limits.pids !== undefined) writeControl(`${this.#path(group, 'pids')}/pids.max`, limits.pids)
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

  children(group: string): readonly string[] {
    return [...new Set(this.#directories(group).flatMap((directory) => subgroups(directory)))].sort()
  }

  processes(group: string): readonly number[] {
    return uniquePids(this.#directories(group).flatMap((directory) => processesBelow(directory)))
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

  #limitMemory(group: string, bytes: number | 'max'): void {
    const directory = this.#path(group, 'memory')
    const value = bytes === 'max' ? -1 : bytes
    const limit = `${directory}/memory.limit_in_bytes`
    const withSwap = `${directory}/memory.memsw.limit_in_bytes`
    const before = readControl(withSwap) // missing where the kernel does not account swap
    const grows = bytes === 'max' || bytes > Number(before)
    // limit <= limit with swap must hold after each write, so growing starts at the other end than shrinking.
    const order = before === undefined ? [limit] : grows ? [withSwap, limit] : [limit, withSwap]
    for (const file of order) writeControl(file, value)
  }

  #limitCpu(group: string, millis: number | 'max'): void {
    const directory = this.#path(group, 'cpu')
    const quota = millis === 'max' ? -1 : Math.max(leastQuotaUs, Math.round((millis * periodUs) / 1000))
    writeControl(`${directory}/cpu.cfs_period_us`, periodUs)
    writeControl(`${directory}/cpu.cfs_quota_us`, quota)
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
