import { readFileSync } from 'node:fs'
import { ignore } from '@berth/contracts'

/** A process that cannot be mistaken for another that got the same pid later. */
export interface ProcessIdentity {
  readonly pid: number
  /** Start time in clock ticks since boot: field 22 of proc_pid_stat(5). */
  readonly start: number
}

/** Start time of a process in clock ticks since boot, or undefined when there is none or it is a zombie. */
export function processStart(pid: number): number | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'utf8')
    // The name in parentheses may hold spaces and parentheses itself; fields are counted after the last one.
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
    return fields[0] === 'Z' ? undefined : Number(fields[19])
  } catch (error) {
    return ignore(error, 'ENOENT', 'ESRCH')
  }
}

/** True while exactly this process runs. */
export const isAlive = (process: ProcessIdentity) => processStart(process.pid) === process.start
