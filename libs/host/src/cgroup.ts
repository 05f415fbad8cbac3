import { readdirSync, readFileSync, rmdirSync, writeFileSync } from 'node:fs'
import { setTimeout as delay } from 'node:timers/promises'
import { errnoOf, Fault, ignore } from '@berth/contracts'

/** Limits of a group; what is not given stays as it is, `max` lifts the limit. Memory counts page cache too. */
export interface CgroupLimits {
  readonly memoryBytes?: number | 'max'
  /** Beside the memory, which has to be given with it. Default: none, unless the memory is `max` */
  readonly swapBytes?: number
  /** What the kernel leaves to the group under memory pressure, if it can. */
  readonly memoryReservationBytes?: number | 'max'
  /** Thousandths of a CPU; 1500 is one and a half. */
  readonly cpuMillis?: number | 'max'
  /** Period of the CPU limit, which has to be given with it. Default: 100 ms, the kernel's */
  readonly cpuPeriodUs?: number
  /** Weight under contention as cgroup v1 counts it, 2 … 262,144; 1,024 is the kernel's default. */
  readonly cpuShares?: number
  /** CPUs such as `0-3,6`; `all` are those of the parent. */
  readonly cpuset?: string
  readonly pids?: number | 'max'
  /** Weight of disk access under contention, 10 … 1,000; `default` is the kernel's, and fine where it has no weights. */
  readonly ioWeight?: number | 'default'
}

export interface CgroupUsage {
  /** Microseconds of CPU since the group was made, its sub-groups included. */
  readonly cpuUsageUs: number
  /** Microseconds in which it wanted to run but its CPU quota was spent. */
  readonly cpuThrottledUs: number
  readonly memoryBytes: number
  readonly memoryPeakBytes: number
  /** Processes that the kernel's out-of-memory killer ended. */
  readonly oomKills: number
  readonly pids: number
  /** Forks refused since the pids limit was reached. */
  readonly pidsRefused: number
}

/** What is told of a group besides its usage, to those who look at it closely. */
export interface CgroupTraffic {
  /** Page cache that the kernel would give back before anything else; part of `memoryBytes`. */
  readonly cacheBytes: number
  /** Of requests to disks that its processes made. */
  readonly readBytes: number
  readonly writtenBytes: number
}

/**
 * The control groups of this machine, whichever version. A group is named by its path below the root of every
 * hierarchy, without a leading slash: `berth/ten_…/att_…`. The berth agent makes the parents (instance and tenant);
 * the OCI runtime makes the groups of the containers below them.
 */
export interface Cgroups {
  /** Controller (`memory`, `cpu`, …) → directory of the group; on v2 all are the same directory. */
  paths(group: string): ReadonlyMap<string, string>
  /**
   * Makes the group and its ancestors and sets its limits; one that exists just gets the limits.
   * @throws Fault as `setLimits`; a group that was not there is not there then
   */
  create(group: string, limits?: CgroupLimits): void
  /** @throws Fault when the group is gone, the kernel refuses a value, or has no such limit */
  setLimits(group: string, limits: CgroupLimits): void
  /** @returns undefined when there is no such group (any more) */
  usage(group: string): CgroupUsage | undefined
  /**
   * Lets the kernel count what groups below `group` read from and write to disks, those that there are now. On v1 kernels
   * since 6.10 do so only for disks that somebody throttles; throttling one by nothing is enough.
   */
  countDisks(group: string): void
  /** As `usage`. Without a controller for disks nothing was read or written. */
  traffic(group: string): CgroupTraffic | undefined
  /** Names of the direct sub-groups, sorted; none when the group is not there. */
  children(group: string): readonly string[]
  /** Processes (host pids) in the group and below, sorted; none when the group is not there. */
  processes(group: string): readonly number[]
  /** Whether this kernel can weigh disk access of the groups below `group`. */
  weighsIo(group: string): boolean
  /** Stops everything in the group and below where it is. @throws Fault, with all of it going on, when it takes 5 s */
  freeze(group: string): Promise<void>
  /** Lets it go on; what is not frozen, or not there, is fine. */
  thaw(group: string): void
  /** Whether it is frozen, or on the way to it. */
  frozen(group: string): boolean
  /**
   * Kills everything in the group and below, also what forks meanwhile, also what is frozen: that is not seen to go on.
   * @throws Fault when some live on after 5 s
   */
  kill(group: string): Promise<void>
  /** Removes the group and everything below; a missing one is fine. @throws Fault when processes keep it for 5 s */
  remove(group: string): Promise<void>
}

/** How long kill and remove try: a process may sit in an uninterruptible wait for that long at most. */
const patienceMs = 5_000

/** @throws Fault unless the name is a plain relative path: it is joined to sysfs directories as it stands */
export function checkGroup(group: string): string {
  const parts = group.split('/')
  if (!parts.every((part) => /^[\w:-][\w.:-]{0,127}$/.test(part)))
    throw new Fault(`name the cgroup ${JSON.stringify(group)}`, { cause: new Error('not a plain relative path') })
  return group
}

/** `a/b/c` → `a`, `a/b`, `a/b/c`. */
export const ancestry = (group: string): readonly string[] =>
  group.split('/').map((_, index, parts) => parts.slice(0, index + 1).join('/'))

/** Writes one value to a control file. @throws Fault naming file and value */
export function writeControl(path: string, value: string | number): void {
  try {
    writeFileSync(path, String(value), { flag: 'r+' }) // r+: a control file is never made by writing to it
  } catch (cause) {
    throw new Fault(`write ${JSON.stringify(String(value))} to ${path}`, { cause })
  }
}

/** As `writeControl`, but a group that is gone is fine. @throws Fault naming file and value */
export function writeUnlessGone(path: string, value: string | number): void {
  try {
    writeControl(path, value)
  } catch (error) {
    if (!(error instanceof Fault)) throw error
    const code = errnoOf(error.cause)
    if (code !== 'ENOENT' && code !== 'ENODEV') throw error
  }
}

/** The text of a control file without its newline; undefined when group or file is gone. */
export function readControl(path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8').trimEnd()
  } catch (error) {
    // ENODEV: the group was removed between open and read.
    return ignore(error, 'ENOENT', 'ENODEV')
  }
}

/** A number of a control file; 0 when it is gone. */
export const readNumber = (path: string) => Number(readControl(path) ?? 0)

/** The number behind `key` in a flat-keyed file such as `memory.events`; 0 when there is none. */
export function readKeyed(path: string, key: string): number {
  const line = (readControl(path) ?? '').split('\n').find((text) => text.startsWith(`${key} `))
  return line === undefined ? 0 : Number(line.slice(key.length + 1))
}

/** `major:minor` of every disk and loop device that holds something. */
export function disks(): readonly string[] {
  return readdirSync('/sys/block').flatMap((name) => {
    const [size, numbers] = [readControl(`/sys/block/${name}/size`), readControl(`/sys/block/${name}/dev`)]
    return numbers !== undefined && Number(size) > 0 && !name.startsWith('ram') ? [numbers] : []
  })
}

/** Sum of the numbers behind `form` in a control file, whose first group is the number. */
export function sumOf(text: string, form: RegExp): number {
  return [...text.matchAll(form)].reduce((sum, [, number]) => sum + Number(number), 0)
}

/** The direct sub-groups of a directory, unsorted. */
export function subgroups(directory: string): readonly string[] {
  try {
    return readdirSync(directory, { withFileTypes: true })
      .filter((entry) => entry.isDirectory())
      .map((entry) => entry.name)
  } catch (error) {
    ignore(error, 'ENOENT', 'ENODEV')
    return []
  }
}

/** Process ids in a group's directory and below; may hold duplicates. */
export function processesBelow(directory: string): readonly number[] {
  const own = (readControl(`${directory}/cgroup.procs`) ?? '').split('\n').filter((text) => text !== '')
  return [...own.map(Number), ...subgroups(directory).flatMap((name) => processesBelow(`${directory}/${name}`))]
}

/** Sorted, each once. A 0 stands for a process outside of our pid namespace, which we could not signal. */
export const uniquePids = (pids: readonly number[]) => [...new Set(pids)].filter((pid) => pid > 0).sort((a, b) => a - b)

/** Runs `attempt` until it returns true. @throws Fault naming `what` after 5 s */
export async function persist(what: string, attempt: () => boolean): Promise<void> {
  const deadline = performance.now() + patienceMs
  for (let pause = 0.5; !attempt(); pause = Math.min(pause * 2, 50)) {
    if (performance.now() > deadline) throw new Fault(what, { cause: new Error(`still there after ${patienceMs} ms`) })
    await delay(pause)
  }
}

/** The kernel's period of a CPU limit, and its least quota in microseconds (sched/core.c, min_cfs_quota_period). */
const PERIOD_US = 100_000
const LEAST_QUOTA_US = 1_000

/** A CPU limit as both versions write it: microseconds of each period, `undefined` where there is none. */
export function cpuQuota(millis: number | 'max', periodUs = PERIOD_US) {
  const quotaUs = millis === 'max' ? undefined : Math.max(LEAST_QUOTA_US, Math.round((millis * periodUs) / 1000))
  return { periodUs, quotaUs }
}

/** Freezes by `write` and waits until `done`; where that does not come to be, undoes it. */
export async function freezeBy(group: string, write: () => void, done: () => boolean, undo: () => void): Promise<void> {
  try {
    write()
    await persist(`freeze cgroup ${group}`, done)
  } catch (error) {
    undo()
    throw error
  }
}

/** Removes a directory of groups, deepest first. @returns false while processes (or dying ones) keep a part of it */
export function removeDirectories(directory: string): boolean {
  const below = subgroups(directory).map((name) => removeDirectories(`${directory}/${name}`))
  if (below.includes(false)) return false
  try {
    rmdirSync(directory)
    return true
  } catch (error) {
    if (errnoOf(error) === 'EBUSY' || errnoOf(error) === 'ENOTEMPTY') return false
    ignore(error, 'ENOENT', 'ENODEV')
    return true
  }
}
