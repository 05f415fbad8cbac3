// line.plan.ts: the order in which builds that wait for room are tried.
//
// Between tenants whoever has the fewest builds that go on comes first, then who waits longest; a tenant's own are in the order
// in which they came. The first of a tenant that finds nothing ends the tenant's turns of this round: else a large one would
// wait for as long as small ones keep coming. Others are tried after it, and may take what is too small for it. So that this
// does not go on for ever, its node is kept for it from time to time, for longer each time; and so that one which never fits
// (jobs may have the room, or other replicas' builds) does not keep a node empty for ever, only from time to time.
import type { TenantId } from '@berth/contracts'

/** For how long others go past a build that finds no room, and how long its node is kept for it then, the first time. */
const PASS_MS = 10_000
const KEEP_MS = 10_000

export interface InLine {
  readonly tenantId: TenantId
  /** Grows with each that comes. */
  readonly number: number
}

/**
 * Who is tried next.
 * @param running builds of a tenant that go on
 * @param done tenants that have found out in this round that they must wait
 */
export function nextInLine<L extends InLine>(
  line: readonly L[],
  running: ReadonlyMap<TenantId, number>,
  done: ReadonlySet<TenantId>,
): L | undefined {
  const before = (a: L, b: L) =>
    ((running.get(a.tenantId) ?? 0) - (running.get(b.tenantId) ?? 0) || a.number - b.number) < 0
  return line
    .filter(({ tenantId }) => !done.has(tenantId))
    .reduce<L | undefined>((best, one) => (best && !before(one, best) ? best : one), undefined)
}

/** Whether a node is kept for a build that has found no room for so long. */
export function isKeptFor(shortMs: number): boolean {
  let left = shortMs
  for (let keepMs = KEEP_MS; ; keepMs *= 2) {
    if (left < PASS_MS) return false
    left -= PASS_MS
    if (left < keepMs) return true
    left -= keepMs
  }
}
