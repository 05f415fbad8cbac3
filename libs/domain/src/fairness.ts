// fairness.ts: whose job is next, and the whole pass that places queued jobs.
//
// Weighted fair share: the tenant with the lowest running/weight goes first; among equals the one that has waited
// longest, counted from when it was last served and not from the age of its first job: else an old long queue would
// win every tie, and a job that needs a whole node would wait for the end of that queue. A job that was just placed
// counts as running, so tenants interleave, and one tenant's 10,000 jobs are never ahead of another's one.
//
// Within a tenant the order is strict: a first job that does not fit the tenant's quota now holds up those behind it,
// else a large job would wait as long as small ones keep coming. Between tenants it is the same with nodes: when the
// job whose turn it is fits no node now, the node that could hold it is kept free for it during the pass. The price is
// a node that runs partly empty until the large job fits; the gain is that it ever does. A job that no node could
// hold even when empty holds up nobody.
import type { JobId, Quota, TenantId } from '@berth/contracts'
import { choose, feasibleWhenEmpty, type NodeSnapshot, type Placeable, withJob } from './placement.js'
import { fits, type TenantUse, withRunning } from './quota.js'

export interface QueuedJob extends Placeable {
  readonly id: JobId
  /** Since when it could have run: its creation, or the end of its back-off. */
  readonly waitingSince: Date
}

/** A tenant with queued jobs: its first ones, in the order in which they must be placed. */
export interface Waiting {
  readonly tenantId: TenantId
  readonly weight: number
  readonly quota: Quota
  readonly use: TenantUse
  /** When one of its jobs was last placed. */
  readonly lastPlacedAt: Date | null
  readonly queue: readonly QueuedJob[]
}

export interface Pick {
  readonly job: QueuedJob
  readonly node: NodeSnapshot
}

/** A tenant's turn: its share, and how far into its queue the pass is. */
interface Turn {
  readonly tenant: Waiting
  use: TenantUse
  /** Jobs offered so far. */
  at: number
  /** Jobs taken in this pass, over all tenants, when this one was last served; 0 before that. */
  served: number
}

const head = (turn: Turn): QueuedJob | undefined => turn.tenant.queue[turn.at]

const waitsSince = (turn: Turn): number =>
  Math.max(head(turn)?.waitingSince.getTime() ?? 0, turn.tenant.lastPlacedAt?.getTime() ?? 0)

function before(a: Turn, b: Turn): boolean {
  const share = a.use.runningJobs / a.tenant.weight - b.use.runningJobs / b.tenant.weight
  if (share !== 0) return share < 0
  const waited = a.served - b.served || waitsSince(a) - waitsSince(b)
  // Ids sort by creation.
  return waited !== 0 ? waited < 0 : (head(a)?.id ?? '') < (head(b)?.id ?? '')
}

/** What became of an offered job: `passed` lets the tenant's next one try, `blocked` ends the tenant's turns. */
export type Offer = 'taken' | 'passed' | 'blocked'

/**
 * Offers jobs in fair order until `limit` are taken or none is left. Pure as far as `offer` is.
 * @param offer told each job with its tenant's use at that moment
 */
export function offerInTurn(
  tenants: readonly Waiting[],
  limit: number,
  offer: (job: QueuedJob, tenant: Waiting, use: TenantUse) => Offer,
): void {
  let turns: Turn[] = tenants.map((tenant) => ({ tenant, use: tenant.use, at: 0, served: 0 }))
  for (let taken = 0; taken < limit; ) {
    turns = turns.filter((turn) => head(turn) !== undefined)
    const turn = turns.reduce<Turn | undefined>((best, one) => (best && !before(one, best) ? best : one), undefined)
    const job = turn && head(turn)
    if (!turn || !job) return
    const answer = offer(job, turn.tenant, turn.use)
    if (answer === 'blocked') turns = turns.filter((one) => one !== turn)
    else turn.at++
    if (answer === 'taken') {
      turn.use = withRunning(turn.use, job.cost)
      turn.served = ++taken
    }
  }
}

/** Among nodes that could hold the job when empty, the one that has most of what it asks for free already. */
export function keepFor(nodes: readonly NodeSnapshot[], job: Placeable, now: Date): NodeSnapshot | undefined {
  const missing = ({ capacity, used }: NodeSnapshot) =>
    Math.max(0, 1 - (capacity.sandboxes - used.sandboxes)) +
    Math.max(0, job.cost.cpuMillis - (capacity.cpuMillis - used.cpuMillis)) / job.cost.cpuMillis +
    Math.max(0, job.cost.memoryBytes - (capacity.memoryBytes - used.memoryBytes)) / job.cost.memoryBytes +
    Math.max(0, job.cost.diskBytes - (capacity.diskBytes - used.diskBytes)) / job.cost.diskBytes
  const able = nodes.filter((node) => feasibleWhenEmpty(node, job, now))
  return able.reduce<NodeSnapshot | undefined>(
    (best, node) => (best && missing(best) <= missing(node) ? best : node),
    undefined,
  )
}

/**
 * The placements of one pass, in order. Assuming nothing else changes, applying all of them keeps every tenant within
 * its quota and every node within its capacity.
 * @param limit at most so many
 */
export function schedule(
  tenants: readonly Waiting[],
  nodes: readonly NodeSnapshot[],
  limit: number,
  now: Date,
): readonly Pick[] {
  const picks: Pick[] = []
  let open = nodes
  offerInTurn(tenants, limit, (job, tenant, use) => {
    if (fits(tenant.quota, use, job.cost)) return 'blocked'
    const node = choose(open, job, now)
    if (node) {
      picks.push({ job, node })
      open = open.map((one) => (one.id === node.id ? withJob(one, job) : one))
      return 'taken'
    }
    const kept = keepFor(open, job, now)
    if (kept === undefined && !nodes.some((one) => feasibleWhenEmpty(one, job, now))) return 'passed'
    open = open.filter((one) => one.id !== kept?.id)
    return 'blocked'
  })
  return picks
}
