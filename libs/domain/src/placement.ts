// placement.ts: which node takes a job. Two passes: `feasible` drops nodes that cannot (state, silence, capacity),
// `score` prefers, in this order: image present, spread of the tenant, fullest fit. Spread keeps one node's loss from
// taking a whole tenant; fullest fit leaves whole nodes free for large jobs.
// Invariant: never chooses a node whose free < asked. The caller may still lose the race; then it asks again.
import type { NodeId, NodeState, TenantId } from '@berth/contracts'
import type { Cost } from './quota.js'

/** A node whose last sign of life is older than this is taken to be lost. Heartbeats come every 2 s. */
export const NODE_SILENT_MS = 15_000

/** What a node has, or what of it is given out. */
export interface NodeRoom extends Cost {
  readonly sandboxes: number
}

export interface NodeSnapshot {
  readonly id: NodeId
  readonly state: NodeState
  readonly capacity: NodeRoom
  readonly used: NodeRoom
  /** Names as jobs may write them. */
  readonly images: ReadonlySet<string>
  /** Current attempts by tenant; tenants without any may be absent. */
  readonly tenants: ReadonlyMap<TenantId, number>
  readonly lastSeenAt: Date | null
}

/** What placement needs to know of a job. */
export interface Placeable {
  readonly tenantId: TenantId
  readonly image: string
  readonly cost: Cost
}

const room = (have: NodeRoom, used: NodeRoom, cost: Cost): boolean =>
  used.sandboxes + 1 <= have.sandboxes &&
  used.cpuMillis + cost.cpuMillis <= have.cpuMillis &&
  used.memoryBytes + cost.memoryBytes <= have.memoryBytes &&
  used.diskBytes + cost.diskBytes <= have.diskBytes

const empty: NodeRoom = { cpuMillis: 0, memoryBytes: 0, diskBytes: 0, sandboxes: 0 }

const takesWork = (node: NodeSnapshot, now: Date): boolean =>
  node.state === 'ready' && node.lastSeenAt !== null && now.getTime() - node.lastSeenAt.getTime() <= NODE_SILENT_MS

/** Whether the node can take the job now. */
export const feasible = (node: NodeSnapshot, job: Placeable, now: Date): boolean =>
  takesWork(node, now) && room(node.capacity, node.used, job.cost)

/** Whether the node could take the job if nothing else ran there. */
export const feasibleWhenEmpty = (node: NodeSnapshot, job: Placeable, now: Date): boolean =>
  takesWork(node, now) && room(node.capacity, empty, job.cost)

const part = (used: number, have: number) => (have > 0 ? used / have : 1)

/** How full the fullest of the node's resources is, 0 … 1. */
const fullness = ({ capacity, used }: NodeSnapshot): number =>
  Math.max(
    part(used.sandboxes, capacity.sandboxes),
    part(used.cpuMillis, capacity.cpuMillis),
    part(used.memoryBytes, capacity.memoryBytes),
    part(used.diskBytes, capacity.diskBytes),
  )

/** Negative when `a` is the better node. Ids break ties, so that equal input gives an equal choice. */
function compare(a: NodeSnapshot, b: NodeSnapshot, job: Placeable): number {
  const image = Number(b.images.has(job.image)) - Number(a.images.has(job.image))
  if (image !== 0) return image
  const spread = (a.tenants.get(job.tenantId) ?? 0) - (b.tenants.get(job.tenantId) ?? 0)
  if (spread !== 0) return spread
  return fullness(b) - fullness(a) || (a.id < b.id ? -1 : 1)
}

/** The node that takes the job; undefined when none can now. */
export function choose(nodes: readonly NodeSnapshot[], job: Placeable, now: Date): NodeSnapshot | undefined {
  let best: NodeSnapshot | undefined
  for (const node of nodes)
    if (feasible(node, job, now) && (best === undefined || compare(node, best, job) < 0)) best = node
  return best
}

/** The node after it has taken the job. */
export const withJob = (node: NodeSnapshot, job: Placeable): NodeSnapshot => ({
  ...node,
  used: {
    sandboxes: node.used.sandboxes + 1,
    cpuMillis: node.used.cpuMillis + job.cost.cpuMillis,
    memoryBytes: node.used.memoryBytes + job.cost.memoryBytes,
    diskBytes: node.used.diskBytes + job.cost.diskBytes,
  },
  tenants: new Map(node.tenants).set(job.tenantId, (node.tenants.get(job.tenantId) ?? 0) + 1),
})
