// placement.ts: which node takes a job or a sandbox. Two passes: `feasible` drops nodes that cannot (state, silence, capacity),
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
  /** Current attempts and existing sandboxes by tenant; tenants without any may be absent. */
  readonly tenants: ReadonlyMap<TenantId, number>
  /** Of the images that it runs; null: it does not say. */
  readonly platform?: string | null
  readonly lastSeenAt: Date | null
}

/** What placement needs to know of a job. */
export interface Placeable {
  readonly tenantId: TenantId
  readonly image: string
  /** Whether only nodes that have the image can take it: it cannot be brought to others. */
  readonly pinned?: boolean
  /** What the image is for; null: not known. */
  readonly platform?: string | null
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

/** Operating system and processor; a variant of that is for the node to judge. */
const machineOf = (platform: string): string => platform.split('/', 2).join('/')

/** Whether a node runs what is for a platform, as far as both are known. */
export const runs = (
  { platform: own = null }: Pick<NodeSnapshot, 'platform'>,
  { platform = null }: Pick<Placeable, 'platform'>,
): boolean => own === null || platform === null || machineOf(own) === machineOf(platform)

const startable = (node: NodeSnapshot, job: Placeable): boolean =>
  node.images.has(job.image) || (job.pinned !== true && runs(node, job))

/** Whether the node can take the job now. */
export const feasible = (node: NodeSnapshot, job: Placeable, now: Date): boolean =>
  takesWork(node, now) && startable(node, job) && room(node.capacity, node.used, job.cost)

/** Whether the node could take the job if nothing else ran there. */
export const feasibleWhenEmpty = (node: NodeSnapshot, job: Placeable, now: Date): boolean =>
  takesWork(node, now) && startable(node, job) && room(node.capacity, empty, job.cost)

const part = (used: number, have: number) => (have > 0 ? used / have : 1)

/** How full the fullest of the node's resources is, 0 … 1. */
export const fullness = ({ capacity, used }: NodeSnapshot): number =>
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

/** What placement needs to know of a sandbox. One that is not started takes its disk only. */
export interface PlaceableSandbox extends Placeable {
  readonly starts: boolean
}

export interface ChosenNode {
  readonly node: NodeSnapshot
  /** Why this one, for people. */
  readonly because: string
}

/**
 * The node for a sandbox, which stays there and must find room to run: undefined when none can have its image and has room.
 * One that is not started goes where it could be started now, or else where it could be if nothing else ran there.
 */
export function chooseForSandbox(
  nodes: readonly NodeSnapshot[],
  sandbox: PlaceableSandbox,
  now: Date,
): ChosenNode | undefined {
  const suitable = nodes.filter((node) => feasibleWhenEmpty(node, sandbox, now))
  const ready = choose(suitable, sandbox, now)
  if (ready) return { node: ready, because: because(nodes, suitable, ready, sandbox, now) }
  if (sandbox.starts) return undefined
  const { diskBytes } = sandbox.cost
  const stopped = { ...sandbox, cost: { cpuMillis: 0, memoryBytes: 0, diskBytes } }
  const roomy = suitable.map((node) => ({ ...node, used: { ...node.used, sandboxes: node.used.sandboxes - 1 } }))
  const node = suitable.find(({ id }) => id === choose(roomy, stopped, now)?.id)
  return node && { node, because: because(nodes, suitable, node, stopped, now) }
}

function because(
  nodes: readonly NodeSnapshot[],
  suitable: readonly NodeSnapshot[],
  chosen: NodeSnapshot,
  job: Placeable,
  now: Date,
): string {
  const living = nodes.filter((node) => takesWork(node, now)).length
  const present = chosen.images.has(job.image)
  const open = suitable.filter((node) => feasible(node, job, now) && (!present || node.images.has(job.image)))
  const has = chosen.tenants.get(job.tenantId) ?? 0
  const others = open.filter(({ id }) => id !== chosen.id)
  const what = present ? `have image ${job.image} and room` : `have room, and none of these has image ${job.image} yet`
  const found = `${open.length || 1} of ${living} ready nodes ${what}`
  if (others.length === 0) return found
  const fewest = others.every(({ tenants }) => (tenants.get(job.tenantId) ?? 0) > has)
  const full = `${Math.round(fullness(chosen) * 100)} %`
  return `${found}; this one has ${fewest ? 'fewest' : 'as few as any'} of the tenant (${has})${fewest ? '' : `, and is fullest (${full})`}`
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
