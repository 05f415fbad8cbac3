// stats.ts: what a sandbox uses now: counters of its control group, of its network namespace, of its layer.
//
// Memory is told as Docker tells it: without the page cache that the kernel would give back first (`inactive_file`), so
// that reading a large file does not look like a leak. The peak is the kernel's, with the cache. Bytes read and written
// are those of requests to disks that the sandbox's own processes made: what the kernel writes back later for it counts
// on cgroup v2 only.
import { readFileSync } from 'node:fs'
import { Failure, ignore, type SandboxId, type SandboxStats } from '@berth/contracts'
import type { Cgroups } from '@berth/host'
import type { LiveSandbox } from '../sandbox/live.js'
import type { Pool } from '../storage/pool.js'

/** What a look at all layers is believed for, in milliseconds: it is a program that is run. */
const DISK_FOR_MS = 3000

export interface StatsParts {
  readonly cgroups: Pick<Cgroups, 'usage' | 'traffic' | 'processes'>
  readonly pool: Pick<Pool, 'fill'>
}

type Measured = Pick<LiveSandbox, 'id' | 'group' | 'spec'>

export class Stats {
  readonly #parts: StatsParts
  #disk: { readonly at: number; readonly fill: ReturnType<Pool['fill']> } | undefined

  constructor(parts: StatsParts) {
    this.#parts = parts
  }

  /** @throws Failure wrong_state where it does not run */
  async sample({ id, group, spec }: Measured): Promise<SandboxStats> {
    const { cgroups } = this.#parts
    const [usage, traffic] = [cgroups.usage(group), cgroups.traffic(group)]
    if (!usage || !traffic) throw new Failure('wrong_state', `sandbox ${id} does not run`)
    const network = networkOf(cgroups.processes(group))
    return {
      at: new Date().toISOString(),
      cpuMs: usage.cpuUsageUs / 1000,
      cpuThrottledMs: usage.cpuThrottledUs / 1000,
      cpus: null,
      memoryBytes: Math.max(0, usage.memoryBytes - traffic.cacheBytes),
      memoryPeakBytes: usage.memoryPeakBytes,
      memoryLimitBytes: spec.limits.memoryBytes,
      oomKills: usage.oomKills,
      // berth-init is ours, not the tenant's.
      pids: Math.max(0, usage.pids - 1),
      pidsLimit: spec.limits.pids,
      diskBytes: await this.#diskOf(id),
      diskLimitBytes: spec.limits.diskBytes,
      readBytes: traffic.readBytes,
      writtenBytes: traffic.writtenBytes,
      ...network,
    }
  }

  /** A sample each interval, until the signal is aborted. @throws as `sample`, of the first one */
  async *samples(live: Measured, intervalMs: number, signal: AbortSignal): AsyncGenerator<SandboxStats> {
    let before: SandboxStats | undefined
    while (!signal.aborted) {
      const sample = await this.sample(live).catch((error: unknown) => {
        // It stopped: the stream has come to its end.
        if (before && error instanceof Failure && error.code === 'wrong_state') return undefined
        throw error
      })
      if (!sample) return
      yield { ...sample, cpus: before ? cpusBetween(before, sample) : null }
      before = sample
      await pause(intervalMs, signal)
    }
  }

  async #diskOf(id: SandboxId): Promise<number | null> {
    const now = Date.now()
    if (!this.#disk || now - this.#disk.at > DISK_FOR_MS || now < this.#disk.at) {
      const fill = this.#parts.pool.fill()
      this.#disk = { at: now, fill }
      fill.catch(() => {
        this.#disk = undefined
      })
    }
    return (await this.#disk.fill).get(id)?.usedBytes ?? null
  }
}

function cpusBetween(before: SandboxStats, after: SandboxStats): number {
  const wallMs = Date.parse(after.at) - Date.parse(before.at)
  return wallMs <= 0 ? 0 : Math.round(((after.cpuMs - before.cpuMs) / wallMs) * 1000) / 1000
}

/** What the network of any of the processes counted, loopback aside; nothing where none of them is left to ask. */
function networkOf(hostPids: readonly number[]): { readonly receivedBytes: number; readonly sentBytes: number } {
  for (const pid of hostPids) {
    const text = read(`/proc/${pid}/net/dev`)
    if (text !== undefined) return parseNetwork(text)
  }
  return { receivedBytes: 0, sentBytes: 0 }
}

/** Of /proc/<pid>/net/dev: two lines of heads, then `name: 16 numbers` (received bytes first, sent bytes ninth). */
export function parseNetwork(text: string): { readonly receivedBytes: number; readonly sentBytes: number } {
  let [receivedBytes, sentBytes] = [0, 0]
  for (const line of text.split('\n').slice(2)) {
    const [, name, numbers = ''] = /^\s*([^:\s]+):\s*(.*)$/.exec(line) ?? []
    if (name === undefined || name === 'lo') continue
    const fields = numbers.split(/\s+/)
    receivedBytes += Number(fields[0] ?? 0)
    sentBytes += Number(fields[8] ?? 0)
  }
  return { receivedBytes, sentBytes }
}

function read(path: string): string | undefined {
  try {
    return readFileSync(path, 'utf8')
  } catch (error) {
    // EINVAL: a zombie has no network namespace any more.
    return ignore(error, 'ENOENT', 'ESRCH', 'EINVAL')
  }
}

function pause(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const done = () => {
      clearTimeout(timer)
      signal.removeEventListener('abort', done)
      resolve()
    }
    const timer = setTimeout(done, ms)
    signal.addEventListener('abort', done, { once: true })
    if (signal.aborted) done()
  })
}
