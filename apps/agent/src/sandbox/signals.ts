// signals.ts: what a process does with a signal, as the kernel tells it (proc(5), SigIgn).

import { readFileSync } from 'node:fs'
import { ignore } from '@berth/contracts'

/**
 * Whether the process with the number `pid` in its own pid namespace ignores a signal.
 * @param candidates host pids of the sandbox's processes; what has ended meanwhile ignores nothing
 */
export function ignoresSignal(candidates: readonly number[], pid: number, signal: number): boolean {
  for (const candidate of candidates) {
    const status = readStatus(candidate)
    const innermost = /^NSpid:.*\s(\d+)$/m.exec(status)?.[1]
    if (innermost !== String(pid)) continue
    const ignored = /^SigIgn:\s*([0-9a-f]+)$/m.exec(status)?.[1] ?? '0'
    return ((BigInt(`0x${ignored}`) >> BigInt(signal - 1)) & 1n) === 1n
  }
  return false
}

function readStatus(pid: number): string {
  try {
    return readFileSync(`/proc/${pid}/status`, 'utf8')
  } catch (error) {
    return ignore(error, 'ENOENT', 'ESRCH') ?? ''
  }
}
