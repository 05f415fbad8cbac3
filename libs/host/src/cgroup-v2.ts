import { existsSync, mkdirSync } from 'node:fs'
import { errnoOf, Fault } from '@berth/contracts'
import {
  ancestry,
  type CgroupLimits,
  type Cgroups,
  type CgroupTraffic,
  type CgroupUsage,
  checkGroup,
  cpuQuota,
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

const wanted: readonly string[] = ['cpu', 'memory', 'pids', 'cpuset', 'io']

/**
 * cgroup v2 (Documentation/admin-guide/cgroup-v2.rst): one directory a group. Controllers reach a group only where
 * all its ancestors pass them down, which `create` sees to; by the kernel's rule those ancestors hold no process.
 */
export class CgroupsV2 implements Cgroups {
  readonly #root: string

  /** @param root where cgroup2 is mounted */
  constructor(root: string) {
    this.#root = root
  }

  paths(group: string): ReadonlyMap<string, string> {
    const directory = this.#directory(group)
    return new Map(this.#controllers().map((name) => [name, directory]))
  }

  create(group: string, limits: CgroupLimits = {}): void {
    const isNew = !existsSync(this.#directory(group))
    const available = this.#controllers().filter((name) => wanted.includes(name))
    let parent = this.#root
    try {
      for (const part of ancestry(group)) {
        passDown(parent, available)
        parent = `${this.#root}/${part}`
        makeDirectory(parent)
      }
      this.setLimits(group, limits)
    } catch (error) {
      if (isNew) removeDirectories(this.#directory(group))
      throw error
    }
  }

  setLimits(group: string, limits: CgroupLimits): void {
    const directory = this.#directory(group)
    const { memoryBytes, memoryReservationBytes, cpuMillis, cpuShares, cpuset, pids, ioWeight } = limits
    if (memoryBytes !== undefined) {
      writeControl(`${directory}/memory.max`, memoryBytes)
      // Missing where the kernel has no swap accounting. Lifting the limit lifts it for swap as well.
      const swap = `${directory}/memory.swap.max`
      if (readControl(swap) !== undefined) writeControl(swap, memoryBytes === 'max' ? 'max' : (limits.swapBytes ?? 0))
    }
    if (memoryReservationBytes !== undefined)
      writeControl(`${directory}/memory.low`, memoryReservationBytes === 'max' ? 0 : memoryReservationBytes)
    if (cpuMillis !== undefined) {
      const { periodUs, quotaUs } = cpuQuota(cpuMillis, limits.cpuPeriodUs)
      writeControl(`${directory}/cpu.max`, `${quotaUs ?? 'max'} ${periodUs}`)
    }
    if (cpuShares !== undefined) writeControl(`${directory}/cpu.weight`, scaled(cpuShares, [2, 262_144]))
    if (cpuset !== undefined) writeControl(`${directory}/cpuset.cpus`, cpuset === 'all' ? '\n' : cpuset)
    if (pids !== undefined) writeControl(`${directory}/pids.max`, pids)
    if (ioWeight !== undefined) weigh(directory, ioWeight)
  }

  usage(group: string): CgroupUsage | undefined {
    const directory = this.#directory(group)
    if (readControl(`${directory}/cgroup.procs`) === undefined) return undefined
    const memoryBytes = readNumber(`${directory}/memory.current`)
    const peak = readControl(`${directory}/memory.peak`) // since Linux 5.19; before it the best known is the present
    return {
      cpuUsageUs: readKeyed(`${directory}/cpu.stat`, 'usage_usec'),
      cpuThrottledUs: readKeyed(`${directory}/cpu.stat`, 'throttled_usec'),
      memoryBytes,
      memoryPeakBytes: peak === undefined ? memoryBytes : Number(peak),
      oomKills: readKeyed(`${directory}/memory.events`, 'oom_kill'),
      pids: readNumber(`${directory}/pids.current`),
      pidsRefused: readKeyed(`${directory}/pids.events`, 'max'),
    }
  }

  countDisks(_group: string): void {
    // `io.stat` counts wherever the controller is passed down.
  }

  traffic(group: string): CgroupTraffic | undefined {
    const directory = this.#directory(group)
    if (readControl(`${directory}/cgroup.procs`) === undefined) return undefined
    // A line for each device: `8:0 rbytes=4096 wbytes=0 rios=…`.
    const served = readControl(`${directory}/io.stat`) ?? ''
    return {
      cacheBytes: readKeyed(`${directory}/memory.stat`, 'inactive_file'),
      readBytes: sumOf(served, /\brbytes=(\d+)/g),
      writtenBytes: sumOf(served, /\bwbytes=(\d+)/g),
    }
  }

  children(group: string): readonly string[] {
    return [...subgroups(this.#directory(group))].sort()
  }

  processes(group: string): readonly number[] {
    return uniquePids(processesBelow(this.#directory(group)))
  }

  weighsIo(group: string): boolean {
    const directory = this.#directory(group)
    return ['io.weight', 'io.bfq.weight'].some((name) => readControl(`${directory}/${name}`) !== undefined)
  }

  freeze(group: string): Promise<void> {
    const directory = this.#directory(group)
    return freezeBy(
      group,
      () => writeControl(`${directory}/cgroup.freeze`, 1),
      () => readKeyed(`${directory}/cgroup.events`, 'frozen') === 1,
      () => this.thaw(group),
    )
  }

  thaw(group: string): void {
    writeUnlessGone(`${this.#directory(group)}/cgroup.freeze`, 0)
  }

  frozen(group: string): boolean {
    return readControl(`${this.#directory(group)}/cgroup.freeze`) === '1'
  }

  async kill(group: string): Promise<void> {
    const directory = this.#directory(group)
    if (readControl(`${directory}/cgroup.procs`) === undefined) return
    writeUnlessGone(`${directory}/cgroup.kill`, 1) // Linux 5.14; forks meanwhile are killed as well
    await persist(`kill the processes of cgroup ${group}`, () => this.processes(group).length === 0)
  }

  async remove(group: string): Promise<void> {
    const directory = this.#directory(group)
    await persist(`remove cgroup ${group}`, () => removeDirectories(directory))
  }

  #controllers(): readonly string[] {
    return (readControl(`${this.#root}/cgroup.controllers`) ?? '').split(' ').filter((name) => name !== '')
  }

  #directory(group: string): string {
    return `${this.#root}/${checkGroup(group)}`
  }
}

function makeDirectory(directory: string): void {
  try {
    mkdirSync(directory)
  } catch (error) {
    if (errnoOf(error) !== 'EEXIST') throw new Fault(`make cgroup ${directory}`, { cause: error })
  }
}

/** Enables controllers for the children of a group, writing only what is not enabled yet. */
function passDown(directory: string, controllers: readonly string[]): void {
  const file = `${directory}/cgroup.subtree_control`
  const enabled = (readControl(file) ?? '').split(' ')
  const missing = controllers.filter((name) => !enabled.includes(name))
  if (missing.length > 0) writeControl(file, missing.map((name) => `+${name}`).join(' '))
}

/** A weight of v1 on v2's scale of 1 … 10,000, as the OCI runtimes convert it. */
const scaled = (value: number, [least, most]: readonly [number, number]) =>
  Math.round(1 + ((value - least) * 9999) / (most - least))

/** BFQ has a file and a scale of its own: v1's. @throws Fault where the kernel has neither */
function weigh(directory: string, weight: number | 'default'): void {
  const [bfq, usual] = [`${directory}/io.bfq.weight`, `${directory}/io.weight`]
  if (readControl(bfq) !== undefined) writeControl(bfq, weight === 'default' ? 100 : weight)
  else if (weight !== 'default') writeControl(usual, scaled(weight, [10, 1000]))
  else if (readControl(usual) !== undefined) writeControl(usual, 100)
}
