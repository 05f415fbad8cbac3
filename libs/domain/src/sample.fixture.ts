// Builders of snapshots for the tests of placement and fairness.
import { defaultQuota, GiB, JobId, MiB, mintId, NodeId, TenantId } from '@berth/contracts'
import type { QueuedJob, Waiting } from './fairness.js'
import type { NodeSnapshot } from './placement.js'

const bytes = (n: number) => Uint8Array.from({ length: 10 }, (_, i) => (n >> (8 * (9 - i))) & (i > 5 ? 255 : 0))

export const now = new Date('2026-01-01T00:00:00Z')
export const tenantId = (n: number) => TenantId.parse(mintId('tenant', 0, bytes(n)))
export const nodeId = (n: number) => NodeId.parse(mintId('node', 0, bytes(n)))
export const jobId = (n: number) => JobId.parse(mintId('job', 0, bytes(n)))

/** A ready, empty node of 8 CPUs, 8 GiB, 8 GiB of disk and 8 sandboxes. */
export const node = (n: number, change: Partial<NodeSnapshot> = {}): NodeSnapshot => ({
  id: nodeId(n),
  state: 'ready',
  capacity: { cpuMillis: 8000, memoryBytes: 8 * GiB, diskBytes: 8 * GiB, sandboxes: 8 },
  used: { cpuMillis: 0, memoryBytes: 0, diskBytes: 0, sandboxes: 0 },
  images: new Set(['debian']),
  tenants: new Map(),
  lastSeenAt: now,
  ...change,
})

export const cost = (cpus: number, memory = 64 * MiB) => ({
  cpuMillis: cpus * 1000,
  memoryBytes: memory,
  diskBytes: MiB,
})

export const queued = (tenant: number, n: number, cpus = 1, waited = 0): QueuedJob => ({
  id: jobId(n),
  tenantId: tenantId(tenant),
  image: 'debian',
  cost: cost(cpus),
  waitingSince: new Date(now.getTime() - waited),
})

/** A tenant with `jobs` queued and generous quotas. */
export const waiting = (tenant: number, jobs: readonly QueuedJob[], change: Partial<Waiting> = {}): Waiting => ({
  tenantId: tenantId(tenant),
  weight: 1,
  quota: { ...defaultQuota, concurrentJobs: 1000, cpus: 1000, memoryBytes: 1000 * GiB },
  use: { unfinishedJobs: jobs.length, runningJobs: 0, cpuMillis: 0, memoryBytes: 0, diskBytes: 0 },
  lastPlacedAt: null,
  queue: jobs,
  ...change,
})
