// top.plan.ts: what /proc tells of a process, as values (proc(5)). All of it was written by the kernel but the name and
// the arguments, which are the process' own.
import type { IdRange, SandboxProcess } from '@berth/contracts'

/** USER_HZ: what the kernel counts time in for user space, on every architecture that Node runs on. */
const TICKS_PER_S = 100

export interface ProcessStat {
  readonly name: string
  readonly state: string
  readonly parentPid: number
  readonly cpuMs: number
  readonly threads: number
  /** Milliseconds from the boot to its start. */
  readonly startedMs: number
}

/** Of /proc/<pid>/stat; undefined where it is none. The name may hold anything, parentheses and spaces too. */
export function parseStat(text: string): ProcessStat | undefined {
  const [open, close] = [text.indexOf('('), text.lastIndexOf(')')]
  if (open < 0 || close < open) return undefined
  const fields = text.slice(close + 2).split(' ')
  const number = (field: number) => Number(fields[field - 3] ?? Number.NaN) // fields are numbered from 1, the name is 2
  const stat = {
    name: text.slice(open + 1, close),
    state: fields[0] ?? '',
    parentPid: number(4),
    cpuMs: ((number(14) + number(15)) * 1000) / TICKS_PER_S,
    threads: number(20),
    startedMs: (number(22) * 1000) / TICKS_PER_S,
  }
  return Object.values(stat).some((value) => Number.isNaN(value)) ? undefined : stat
}

export interface ProcessStatus {
  /** Pid in the namespace below the one of /proc: the sandbox's. */
  readonly pid: number
  /** Effective, as the host sees it. */
  readonly uid: number
  readonly residentBytes: number
}

/** Of /proc/<pid>/status; undefined where it is none, or of a process outside of any sandbox. */
export function parseStatus(text: string): ProcessStatus | undefined {
  const values = new Map(
    text.split('\n').map((line): [string, string[]] => {
      const colon = line.indexOf(':')
      return [
        line.slice(0, colon),
        line
          .slice(colon + 1)
          .trim()
          .split(/\s+/),
      ]
    }),
  )
  const pid = Number(values.get('NSpid')?.[1] ?? Number.NaN)
  const uid = Number(values.get('Uid')?.[1] ?? Number.NaN)
  if (Number.isNaN(pid) || Number.isNaN(uid)) return undefined
  // A zombie has no memory, and no line about it.
  return { pid, uid, residentBytes: Number(values.get('VmRSS')?.[0] ?? 0) * 1024 }
}

/** Arguments as /proc/<pid>/cmdline holds them, each ended by a NUL; where they were cut, the last one says so. */
export function parseArguments(bytes: Buffer, cut: boolean): string[] {
  if (bytes.length === 0) return []
  const text = bytes.toString()
  const words = (text.endsWith('\0') ? text.slice(0, -1) : text).split('\0')
  return cut ? [...words.slice(0, -1), `${words.at(-1) ?? ''}…`] : words
}

/** A process as it was found, in terms of the host. */
export interface FoundProcess {
  readonly hostPid: number
  readonly stat: ProcessStat
  readonly status: ProcessStatus
  readonly arguments: readonly string[]
}

/** The id that the kernel shows for one that is not mapped (user_namespaces(7)). */
const OVERFLOW_ID = 65_534

/**
 * Processes as the sandbox sees them, by pid.
 * @param bootedAt Unix milliseconds
 */
export function processList(
  found: readonly FoundProcess[],
  ids: IdRange,
  users: ReadonlyMap<number, string>,
  bootedAt: number,
): SandboxProcess[] {
  const pids = new Map(found.map(({ hostPid, status }) => [hostPid, status.pid]))
  return found
    .map(({ stat, status, arguments: words }) => {
      const uid = status.uid - ids.base
      const mapped = uid >= 0 && uid < ids.count
      return {
        pid: status.pid,
        // What is outside of the sandbox is nobody there.
        parentPid: pids.get(stat.parentPid) ?? 0,
        uid: mapped ? uid : OVERFLOW_ID,
        user: (mapped && users.get(uid)) || null,
        state: stat.state,
        threads: stat.threads,
        cpuMs: stat.cpuMs,
        residentBytes: status.residentBytes,
        startedAt: new Date(bootedAt + stat.startedMs).toISOString(),
        command: words.length > 0 ? [...words] : [`[${stat.name}]`],
      }
    })
    .sort((a, b) => a.pid - b.pid)
}
