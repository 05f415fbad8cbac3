// build.ts: what a build holds while it goes on, and where it goes. Its cache is on the node that did the last one, which is
// worth more than anything that placement weighs otherwise; after that more commands at the same time are, and images of the
// tenant that need not be brought.
import type { BuildLimits, NodeId, Quota, TenantId } from '@berth/contracts'
import { keepFor } from './fairness.js'
import { feasible, feasibleWhenEmpty, fullness, type NodeSnapshot, type Placeable } from './placement.js'
import { type Cost, fits, fitsQueue, type Shortage, type TenantUse, toMillis } from './quota.js'
import { mayTake, type TurnLimits } from './turns.js'

/** Builds of a node at once: each has files, memory and processes of its agent, whatever it runs. */
export const NODE_BUILDS: TurnLimits = { all: 32, each: Number.POSITIVE_INFINITY }

/** A node as placement sees it; `images` are those of the tenant that it has. */
export interface BuildNode extends NodeSnapshot {
  /** Whether it did the tenant's last build. */
  readonly last: boolean
  /** That it does now, and the tenant's among them. */
  readonly builds: { readonly taken: number; readonly own: number }
}

export interface WantedBuild {
  readonly tenantId: TenantId
  /** Of each command. */
  readonly limits: BuildLimits
  /** Null: that of whatever node. */
  readonly platform: string | null
  /** Most commands at the same time, at least 1. */
  readonly parallel: number
}

export interface BuildPlace {
  readonly nodeId: NodeId
  readonly parallel: number
  readonly cost: Cost
}

/** Why a build has no place now, and whether it will never have one, whatever ends. */
export interface NoPlace {
  /** The quota that even one command at a time is too much for; null: no node has room for that. */
  readonly shortage: Shortage | null
  readonly forGood: boolean
  /** The node that it could have once others end there: whoever keeps that free for it lets it in sooner. Null: none. */
  readonly keep: NodeId | null
}

/** What a build holds of quota and node: so many commands, and disk for the context besides. */
export const buildCost = ({ cpus, memoryBytes, diskBytes }: BuildLimits, parallel: number): Cost => ({
  cpuMillis: toMillis(cpus) * parallel,
  memoryBytes: memoryBytes * parallel,
  diskBytes: diskBytes * (parallel + 1),
})

/** Its images are brought. */
const placeable = ({ tenantId, platform }: WantedBuild, cost: Cost): Placeable => ({
  tenantId,
  image: '',
  platform,
  cost,
})

const hasTurn = ({ builds: { taken, own } }: BuildNode): boolean => mayTake(NODE_BUILDS, taken, own)

/** Each command is a container of the node, as a job is. */
const roomFor = (node: BuildNode, wanted: WantedBuild, { parallel, cost }: BuildPlace, now: Date): boolean => {
  if (!hasTurn(node)) return false
  const used = { ...node.used, sandboxes: node.used.sandboxes + parallel - 1 }
  return feasible({ ...node, used }, placeable(wanted, cost), now)
}

const idle: TenantUse = { unfinishedJobs: 0, runningJobs: 0, cpuMillis: 0, memoryBytes: 0, diskBytes: 0 }

/**
 * Where a build goes, with as many commands at the same time as quota and node allow.
 * @param kept nodes that are kept for others, for the moment
 */
export function placeBuild(
  nodes: readonly BuildNode[],
  quota: Quota,
  use: TenantUse,
  wanted: WantedBuild,
  now: Date,
  kept: ReadonlySet<NodeId> = new Set(),
): BuildPlace | NoPlace {
  const least = buildCost(wanted.limits, 1)
  const overBy = (used: TenantUse) => fitsQueue(quota, used, 1) ?? fits(quota, used, least)
  const never = overBy(idle)
  if (never) return { shortage: never, forGood: true, keep: null }
  const shortage = overBy(use)
  if (shortage) return { shortage, forGood: false, keep: null }
  const open = nodes.filter(({ id }) => !kept.has(id))
  const places = open.flatMap((node) =>
    Array.from({ length: wanted.parallel }, (_, i) => {
      const parallel = i + 1
      return { node, place: { nodeId: node.id, parallel, cost: buildCost(wanted.limits, parallel) } }
    }).filter(({ place }) => !fits(quota, use, place.cost) && roomFor(node, wanted, place, now)),
  )
  const [best] = places.sort((a, b) => compare(a, b, wanted))
  if (best) return best.place
  // One that is silent now may be back in a moment.
  const heard = nodes.map((node) => ({ ...node, lastSeenAt: now }))
  const some = heard.some((node) => feasibleWhenEmpty(node, placeable(wanted, least), now))
  // Where it is turns that lack, the next one that is free is not taken by anything larger.
  const keep = keepFor(open.filter(hasTurn), placeable(wanted, least), now)
  return { shortage: null, forGood: nodes.length > 0 && !some, keep: keep?.id ?? null }
}

interface Candidate {
  readonly node: BuildNode
  readonly place: BuildPlace
}

/** Negative when `a` is the better place. Ids break ties, so that equal input gives an equal choice. */
function compare(a: Candidate, b: Candidate, { tenantId }: WantedBuild): number {
  return (
    Number(b.node.last) - Number(a.node.last) ||
    b.place.parallel - a.place.parallel ||
    b.node.images.size - a.node.images.size ||
    (a.node.tenants.get(tenantId) ?? 0) - (b.node.tenants.get(tenantId) ?? 0) ||
    fullness(b.node) - fullness(a.node) ||
    (a.node.id < b.node.id ? -1 : 1)
  )
}
