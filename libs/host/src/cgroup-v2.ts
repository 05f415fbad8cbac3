import { mkdirSync } from 'node:fs'
import { errnoOf, Fault } from '@berth/contracts'
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

const wanted: readonly string[] = ['cpu', 'memory', 'pids', 'cpuset', 'io']
const periodUs = 100_000
const leastQuotaUs = 1_000

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
    checkGroup(group)
    const available = this.#controllers().filter((name) => wanted.includes(name))
    let parent = this.#root
    for (const part of ancestry(group)) {
      passDown(parent, available)
      parent = `${this.#root}/${part}`
      makeDirectory(parent)
    }
    this.setLimits(group, limits)
  }

  setLimits(group: string, limits: CgroupLimits): void {
    const directory = this.#directory(group)
    const { memoryBytes, cpuMillis, pids } = limits
    if (memoryBytes !== undefined) {
      writeControl(`${directory}/memory.max`, memoryBytes)
      // Missing where the kernel has no swap accounting. Lifting the limit lifts it for swap as well.
      const swap = `${directory}/memory.swap.max`
      if (readControl(swap) !== undefined) writeControl(swap, memoryBytes === 'max' ? 'max' : 0)
    }
    if (cpuMillis !== undefined) writeControl(`${directory}/cpu.max`, `${quota(cpuMillis)} ${periodUs}`)
    if (pids !== undefined) writeControl(`${directory}/pids.max`, pids)
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

  children(group: string): readonly string[] {
    return [...subgroups(this.#directory(group))].sort()
  }

  processes(group: string): readonly number[] {
    return uniquePids(processesBelow(this.#directory(group)))
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

const quota = (millis: number | 'max') =>
  millis === 'max' ? 'max' : Math.max(leastQuotaUs, Math.round((millis * periodUs) / 1000))
