// reconcile.ts: what is wanted of a node × what the node says it has. Level-triggered: it looks at both lists and not
// at what happened in between, so lost messages and restarts of either side need no case of their own.
import type { AttemptId, TenantId, TenantLimits } from '@berth/contracts'

/** A command that no heartbeat has shown as arrived is sent again after this long. */
export const RESEND_AFTER_MS = 2_000

/**
 * An attempt that the node knew and no longer lists is given up after this long. Three heartbeats: one may have been
 * written before a report overtook it.
 */
export const MISSING_MS = 6_000

/** An unfinished attempt, or a sandbox that is not removed, as Postgres has it. */
export interface Wanted<Id extends string> {
  readonly id: Id
  readonly generation: number
  readonly acknowledgedGeneration: number
  readonly commandedAt: Date
  readonly missingSince: Date | null
}
export type WantedAttempt = Wanted<AttemptId>

/** An attempt or a sandbox as the node lists it. */
export interface Said<Id extends string> {
  readonly id: Id
  readonly generation: number
}
export type SaidAttempt = Said<AttemptId>

export interface Differences<Id extends string = AttemptId> {
  /** Commands that have arrived: the node tells a newer generation than was known. */
  readonly acknowledged: readonly Said<Id>[]
  /** Acknowledged before and not listed now, for the first time. */
  readonly missing: readonly Id[]
  /** Listed again after having been missing. */
  readonly found: readonly Id[]
  /** Listed, but not wanted here. Whether the node must end them depends on how they ended; see the caller. */
  readonly strange: readonly Id[]
}

/** Compares what a node is to have with what it lists in a heartbeat. */
export function compare<Id extends string>(
  wanted: readonly Pick<Wanted<Id>, 'id' | 'generation' | 'acknowledgedGeneration' | 'missingSince'>[],
  said: readonly Said<Id>[],
): Differences<Id> {
  const byId = new Map(wanted.map((one) => [one.id, one]))
  const listed = new Set(said.map((one) => one.id))
  return {
    acknowledged: said.flatMap(({ id, generation }) => {
      const one = byId.get(id)
      if (!one) return []
      const seen = Math.min(generation, one.generation)
      return seen > one.acknowledgedGeneration ? [{ id, generation: seen }] : []
    }),
    missing: wanted
      .filter((one) => one.acknowledgedGeneration > 0 && one.missingSince === null && !listed.has(one.id))
      .map((one) => one.id),
    found: wanted.filter((one) => one.missingSince !== null && listed.has(one.id)).map((one) => one.id),
    strange: said.filter(({ id }) => !byId.has(id)).map(({ id }) => id),
  }
}

/** What a node holds a tenant to; `limits` is null where its kernel took not all of them. */
export interface HeldTenant {
  readonly id: TenantId
  readonly limits: TenantLimits | null
}

/** Which of the tenants of a node are to be held to something else there, and to what. */
export const otherLimits = (said: readonly HeldTenant[], wanted: ReadonlyMap<TenantId, TenantLimits>) =>
  said.flatMap(({ id, limits: held }) => {
    const limits = wanted.get(id)
    return limits && !(held && sameLimits(limits, held)) ? [{ tenantId: id, limits }] : []
  })

const sameLimits = (a: TenantLimits, b: TenantLimits): boolean =>
  a.memoryBytes === b.memoryBytes && a.cpus === b.cpus && a.pids === b.pids

export type Overdue = 'resend' | 'lost' | undefined

/** What is due for an attempt whose node lives: its command once more, or giving it up. */
export function overdue(attempt: WantedAttempt, now: Date): Overdue {
  const since = (time: Date) => now.getTime() - time.getTime()
  if (attempt.missingSince !== null && since(attempt.missingSince) >= MISSING_MS) return 'lost'
  const pending = attempt.acknowledgedGeneration < attempt.generation
  return pending && since(attempt.commandedAt) >= RESEND_AFTER_MS ? 'resend' : undefined
}
