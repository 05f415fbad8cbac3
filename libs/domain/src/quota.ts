// quota.ts: what a job costs while it runs, and whether a tenant may have it. CPU is counted in whole thousandths, so
// that sums of many jobs come out exactly and counters return to zero.
import type { JobSpec, Quota } from '@berth/contracts'

/** What one running job holds, of its tenant's quota and of its node. */
export interface Cost {
  readonly cpuMillis: number
  readonly memoryBytes: number
  readonly diskBytes: number
}

/** What a tenant has now. `unfinishedJobs` counts queued, placed and running ones; the rest only the latter two. */
export interface TenantUse {
  readonly unfinishedJobs: number
  readonly runningJobs: number
  readonly cpuMillis: number
  readonly memoryBytes: number
  readonly diskBytes: number
}

type Counted = 'unfinishedJobs' | 'concurrentJobs' | 'cpus' | 'memoryBytes' | 'diskBytes' | 'sandboxes'

/** A quota that stands in the way; amounts in the quota's own unit (cpus are CPUs, not thousandths). */
export interface Shortage {
  readonly quota: Extract<keyof Quota, Counted>
  readonly limit: number
  readonly used: number
  readonly asked: number
}

/** Thousandths of a CPU, at least one: a job that asks for less than can be counted still counts. */
export const toMillis = (cpus: number): number => Math.max(1, Math.round(cpus * 1000))

export const costOf = (spec: Pick<JobSpec, 'limits'>): Cost => ({
  cpuMillis: toMillis(spec.limits.cpus),
  memoryBytes: spec.limits.memoryBytes,
  diskBytes: spec.limits.diskBytes,
})

const nothing: TenantUse = { unfinishedJobs: 0, runningJobs: 0, cpuMillis: 0, memoryBytes: 0, diskBytes: 0 }

const over = (quota: Shortage['quota'], limit: number, used: number, asked: number, unit = 1): Shortage | undefined =>
  used + asked > limit ? { quota, limit: limit / unit, used: used / unit, asked: asked / unit } : undefined

const overRoom = (quota: Quota, use: TenantUse, cost: Cost): Shortage | undefined =>
  over('cpus', Math.round(quota.cpus * 1000), use.cpuMillis, cost.cpuMillis, 1000) ??
  over('memoryBytes', quota.memoryBytes, use.memoryBytes, cost.memoryBytes) ??
  over('diskBytes', quota.diskBytes, use.diskBytes, cost.diskBytes)

/** Which quota keeps the job from running now; undefined where it may. */
export const fits = (quota: Quota, use: TenantUse, cost: Cost): Shortage | undefined =>
  over('concurrentJobs', quota.concurrentJobs, use.runningJobs, 1) ?? overRoom(quota, use, cost)

/** Which quota the job is too large for even when nothing else of its tenant runs; such a job would wait for ever. */
export const neverFits = (quota: Quota, cost: Cost): Shortage | undefined => fits(quota, nothing, cost)

/** Whether `count` more jobs may be queued; undefined where they may. */
export const fitsQueue = (quota: Quota, use: TenantUse, count: number): Shortage | undefined =>
  over('unfinishedJobs', quota.unfinishedJobs, use.unfinishedJobs, count)

/** What a tenant's sandboxes hold, or what of it is added: some of it may be negative. */
export interface SandboxUse extends Cost {
  /** How many exist. */
  readonly sandboxes: number
}

/** Which quota keeps the tenant from having `more`; undefined where it may. What does not grow is never refused. */
export function fitsSandbox(
  quota: Quota,
  use: TenantUse & { readonly sandboxes: number },
  more: SandboxUse,
): Shortage | undefined {
  const grown = (amount: number) => (amount > 0 ? amount : Number.NEGATIVE_INFINITY)
  return (
    over('sandboxes', quota.sandboxes, use.sandboxes, grown(more.sandboxes)) ??
    overRoom(quota, use, {
      cpuMillis: grown(more.cpuMillis),
      memoryBytes: grown(more.memoryBytes),
      diskBytes: grown(more.diskBytes),
    })
  )
}

/** The use after one more job runs. */
export const withRunning = (use: TenantUse, cost: Cost): TenantUse => ({
  ...use,
  runningJobs: use.runningJobs + 1,
  cpuMillis: use.cpuMillis + cost.cpuMillis,
  memoryBytes: use.memoryBytes + cost.memoryBytes,
  diskBytes: use.diskBytes + cost.diskBytes,
})
