// tenants.ts: the control group above all sandboxes of one tenant on the node, of whatever kind. It has the limits of the
// newest command that came for the tenant, or of the API's answer to a heartbeat, which tells what the node holds its
// tenants to. It is there while anything needs it, and a while longer for what comes next.

import type { TenantId, TenantLimits } from '@berth/contracts'
import type { Cgroups } from '@berth/host'
import type { Logger } from '@berth/telemetry'

interface Tenant {
  limits: TenantLimits | undefined
  /** What the group has; undefined while there is none, or nobody knows. */
  applied: TenantLimits | undefined
  /** Limits of which the kernel did not take all. */
  refused: TenantLimits | undefined
  users: number
  idle: NodeJS.Timeout | undefined
}

const IDLE_MS = 30_000

export type TenantCgroups = Pick<Cgroups, 'create' | 'setLimits' | 'usage' | 'remove'>

export class TenantGroups {
  readonly #cgroups: TenantCgroups
  readonly #parent: string
  readonly #log: Logger
  readonly #tenants = new Map<TenantId, Tenant>()

  /** @param parent group above all tenants, e.g. `berth` */
  constructor(cgroups: TenantCgroups, parent: string, log: Logger) {
    this.#cgroups = cgroups
    this.#parent = parent
    this.#log = log
  }

  group(tenantId: TenantId): string {
    return `${this.#parent}/${tenantId}`
  }

  /** Takes the limits of a newer command; what of the tenant runs is held to them at once. */
  limit(tenantId: TenantId, limits: TenantLimits): void {
    const tenant = this.#of(tenantId)
    tenant.limits = limits
    // A former agent may have left the group with what lives in it.
    if (same(limits, tenant.applied) || this.#cgroups.usage(this.group(tenantId)) === undefined) return
    const known = same(limits, tenant.refused)
    try {
      this.ensure(tenantId)
    } catch (err) {
      // E.g. a CPU quota below that of a sandbox in it, which cgroup v1 refuses. The quota of the tenant holds at the API,
      // which answers every heartbeat until the kernel has taken all.
      if (!known) this.#log.error({ tenant: tenantId, err }, 'tenant.limit_failed')
    }
  }

  /** As `limit`, of a tenant that has something here; else nothing is kept. */
  renew(tenantId: TenantId, limits: TenantLimits): void {
    if (this.#tenants.has(tenantId)) this.limit(tenantId, limits)
  }

  /** Every tenant that has something here, and what it is held to; null where the kernel refused some of it. */
  standing(): readonly { readonly id: TenantId; readonly limits: TenantLimits | null }[] {
    return [...this.#tenants].flatMap(([id, { limits, refused }]) =>
      limits ? [{ id, limits: refused ? null : limits }] : [],
    )
  }

  /** Makes the group, with the newest limits. @throws Fault when the kernel refuses one; the others hold */
  ensure(tenantId: TenantId): void {
    const tenant = this.#of(tenantId)
    const { limits, applied } = tenant
    const group = this.group(tenantId)
    // What it had may be gone with it: a recovery removes those that hold nothing.
    if (limits === undefined || (same(limits, applied) && this.#cgroups.usage(group) !== undefined)) return
    tenant.applied = undefined
    tenant.refused = limits
    this.#cgroups.create(group)
    const { memoryBytes, pids } = limits
    const refusals = [{ pids }, { memoryBytes }, { cpuMillis: Math.round(limits.cpus * 1000) }].flatMap((limit) => {
      try {
        this.#cgroups.setLimits(group, limit)
        return []
      } catch (error) {
        return [error]
      }
    })
    if (refusals.length > 0) throw refusals[0]
    tenant.applied = limits
    tenant.refused = undefined
  }

  /** Something of the tenant is there; to be paired with `release`. */
  hold(tenantId: TenantId): void {
    const tenant = this.#of(tenantId)
    tenant.users += 1
    clearTimeout(tenant.idle)
  }

  release(tenantId: TenantId): void {
    const tenant = this.#of(tenantId)
    tenant.users -= 1
    if (tenant.users === 0) tenant.idle = setTimeout(() => void this.#remove(tenantId), IDLE_MS).unref()
  }

  /** Leaves the groups to the next agent process. */
  close(): void {
    for (const { idle } of this.#tenants.values()) clearTimeout(idle)
    this.#tenants.clear()
  }

  #of(tenantId: TenantId): Tenant {
    const known = this.#tenants.get(tenantId)
    if (known) return known
    const made = { limits: undefined, applied: undefined, refused: undefined, users: 0, idle: undefined }
    this.#tenants.set(tenantId, made)
    return made
  }

  async #remove(tenantId: TenantId): Promise<void> {
    this.#tenants.delete(tenantId)
    try {
      await this.#cgroups.remove(this.group(tenantId))
      // Somebody may have come while it went, and found it there.
      const next = this.#tenants.get(tenantId)
      if (next?.applied === undefined) return
      next.applied = undefined
      this.ensure(tenantId)
    } catch (err) {
      this.#log.error({ tenant: tenantId, err }, 'tenant.release_failed')
    }
  }
}

const same = (a: TenantLimits, b: TenantLimits | undefined) =>
  a.memoryBytes === b?.memoryBytes && a.cpus === b.cpus && a.pids === b.pids
