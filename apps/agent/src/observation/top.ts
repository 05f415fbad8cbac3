// top.ts: the processes of a sandbox, as the host's /proc shows them. Any of them may end while it is looked at: then it
// is left out. Arguments are as long as a process makes them, so only so much of each is read.
import { closeSync, openSync, readFileSync, readSync } from 'node:fs'
import { setImmediate as turn } from 'node:timers/promises'
import { type IdRange, ignore, KiB, MiB, type SandboxProcess } from '@berth/contracts'
import { type FoundProcess, parseArguments, parseStat, parseStatus, processList } from './top.plan.js'

/** Most processes that are listed. */
const MAX_PROCESSES = 10_000
/** Most bytes of the arguments of one process; once all together have ALL_ARGUMENTS, only FEW of each. */
const ARGUMENTS = 4 * KiB
const ALL_ARGUMENTS = 4 * MiB
const FEW = 64
/** Processes looked at before others get their turn. */
const AT_ONCE = 64

export async function listProcesses(
  hostPids: readonly number[],
  ids: IdRange,
  users: ReadonlyMap<number, string>,
): Promise<SandboxProcess[]> {
  const found: FoundProcess[] = []
  let bytes = 0
  for (const [i, hostPid] of hostPids.slice(0, MAX_PROCESSES).entries()) {
    if (i % AT_ONCE === AT_ONCE - 1) await turn()
    const process = look(hostPid, bytes < ALL_ARGUMENTS ? ARGUMENTS : FEW)
    if (!process) continue
    bytes += process.arguments.reduce((sum, word) => sum + word.length, 0)
    found.push(process)
  }
  return processList(found, ids, users, bootedAt())
}

function look(hostPid: number, argumentBytes: number): FoundProcess | undefined {
  try {
    const directory = `/proc/${hostPid}`
    const stat = parseStat(readFileSync(`${directory}/stat`, 'utf8'))
    const status = parseStatus(readFileSync(`${directory}/status`, 'utf8'))
    return stat && status && { hostPid, stat, status, arguments: argumentsOf(directory, argumentBytes) }
  } catch (error) {
    // ESRCH: it ended between open and read.
    return ignore(error, 'ENOENT', 'ESRCH')
  }
}

function argumentsOf(directory: string, limit: number): readonly string[] {
  const file = openSync(`${directory}/cmdline`, 'r')
  try {
    const buffer = Buffer.alloc(limit + 1)
    const length = readSync(file, buffer, 0, buffer.length, 0)
    return parseArguments(buffer.subarray(0, Math.min(length, limit)), length > limit)
  } finally {
    closeSync(file)
  }
}

function bootedAt(): number {
  const [uptime = '0'] = readFileSync('/proc/uptime', 'utf8').split(' ')
  return Date.now() - Number(uptime) * 1000
}
