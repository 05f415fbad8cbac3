// errand.ts: programs of the node that work for one tenant outside of its sandboxes, as those that pack their files. They
// have a control group beside the sandboxes', so that what they take of memory and CPU is the tenant's. One that a killed
// agent left is removed by the next, as any group whose name nobody knows.
import { Failure, type TenantId } from '@berth/contracts'
import type { Logger } from '@berth/telemetry'
import type { Workshop } from './steps.js'

export interface Errand {
  /** Directories of its group, of each hierarchy one. */
  readonly groups: readonly string[]
  /** Whether the kernel ended a program of it because the memory of the tenant was used up. */
  ranOutOfMemory(): boolean
  /** Ends what is left of it. @throws Fault when that lives on */
  end(): Promise<void>
}

/** Whatever shares its sandboxes have: others wait for the place that it has among those that are done at once. */
const MOST_SHARES = 262_144

let serial = 0

/** To be ended when its programs have. @throws Fault when the kernel refuses a limit of the tenant */
export function beginErrand({ cgroups, tenants }: Pick<Workshop, 'cgroups' | 'tenants'>, tenantId: TenantId): Errand {
  const group = `${tenants.group(tenantId)}/errand_${process.pid}_${serial++}`
  tenants.hold(tenantId)
  try {
    // One that is there has limits, of which the kernel may have refused some: they are those of the tenant's sandboxes too.
    if (cgroups.usage(tenants.group(tenantId)) === undefined) tenants.ensure(tenantId)
    cgroups.create(group, { cpuShares: MOST_SHARES })
  } catch (error) {
    tenants.release(tenantId)
    throw error
  }
  return {
    groups: [...new Set(cgroups.paths(group).values())],
    ranOutOfMemory: () => (cgroups.usage(group)?.oomKills ?? 0) > 0,
    async end() {
      try {
        await cgroups.kill(group)
        await cgroups.remove(group)
      } finally {
        tenants.release(tenantId)
      }
    },
  }
}

/**
 * Does work whose programs are an errand of a tenant.
 * @param work is given the directories of its group; it is over when its programs are
 * @param signal ends the work
 * @throws Failure unavailable where the tenant's memory did not last; what the work fails with
 */
export async function asErrand<T>(
  { shop, log }: { readonly shop: Pick<Workshop, 'cgroups' | 'tenants'>; readonly log: Logger },
  tenantId: TenantId,
  signal: AbortSignal,
  work: (groups: readonly string[]) => Promise<T>,
): Promise<T> {
  const errand = beginErrand(shop, tenantId)
  try {
    return await work(errand.groups)
  } catch (error) {
    if (signal.aborted || error instanceof Failure || !errand.ranOutOfMemory()) throw error
    throw new Failure('unavailable', 'the memory of the tenant on this node was used up: nothing was left for packing')
  } finally {
    await endErrand(errand, log)
  }
}

/** What becomes of it is nothing that its tenant is told of. */
export async function endErrand(errand: Errand, log: Logger): Promise<void> {
  await errand.end().catch((err: unknown) => log.error({ err }, 'errand.end_failed'))
}
