// recovery.plan.ts: what becomes of each attempt, and of each thing found on the node, when the agent starts. Pure.
// Everything that a sandbox holds is named by its attempt, so leftovers are a difference of sets.

import type { AttemptId } from '@berth/contracts'

/** What is known of one attempt: from its directory, and from asking its berth-init. */
export interface AttemptFacts {
  readonly id: AttemptId
  /** Its command was written down. */
  readonly accepted: boolean
  /** Its command may have begun to run. */
  readonly spawned: boolean
  readonly canceled: boolean
  /** Its end was written down. */
  readonly ended: boolean
  /** Its berth-init answers. */
  readonly alive: boolean
}

/**
 * - `discard`  it was not accepted when the agent was killed: it will be sent again
 * - `report`   it has ended: release what is left, tell its end again
 * - `adopt`    it runs, or has ended with nobody listening: go on with it as if nothing had been
 * - `rerun`    its command has not begun: release what was half made and begin anew
 * - `withdraw` likewise, but it was canceled meanwhile
 * - `lose`     its command had begun, and its sandbox is gone
 */
export type Fate = 'discard' | 'report' | 'adopt' | 'rerun' | 'withdraw' | 'lose'

export function fateOf(facts: AttemptFacts): Fate {
  if (facts.ended) return 'report'
  if (!facts.accepted) return 'discard'
  if (!facts.spawned) return facts.canceled ? 'withdraw' : 'rerun'
  return facts.alive ? 'adopt' : 'lose'
}

/** Things on the node that carry the name of an attempt or of a sandbox. */
export interface Holdings {
  readonly containers: readonly string[]
  readonly layers: readonly string[]
  /** Sandboxes' cgroups by tenant. */
  readonly groups: readonly { readonly tenant: string; readonly name: string }[]
}

/** What of `found` carries no name that is known: builds end with their agent, so all of theirs is among it. */
export function orphans(found: Holdings, ids: readonly string[]): Holdings {
  const known = new Set(ids)
  const unknown = (name: string) => !known.has(name)
  return {
    containers: found.containers.filter(unknown),
    layers: found.layers.filter(unknown),
    groups: found.groups.filter((group) => unknown(group.name)),
  }
}
