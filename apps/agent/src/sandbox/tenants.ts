// tenants.ts: the control group above all sandboxes of one tenant on the node, of whatever kind. It has the limits of the
// newest command that came for the tenant, is there while anything needs it, and a while longer for what comes next.

import type { TenantId, TenantLimits } from '@berth/contracts'
import type { Cgroups } from '@berth/host'
import type { Logger } from '@berth/telemetry'

interface Tenant {
  limits: TenantLimits | undefined
  /** What the group was given last. */
  applied: TenantLimits | undefined
  users: number
  idle: NodeJS.Timeout | undefined
}

const IDLE_MS = 30_000

export class TenantGroups {
  readonly #cgroups: Pick<Cgroups, 'create' | 'remove'>
  readonly #parent: string
  readonly #log: Logger
  readonly #tenants = new Map<TenantId, Tenant>()

  /** @param parent group above all tenants, e.g. `berth` */
  constructor(cgroups: Pick<Cgroups, 'create' | 'remove'>, parent: string, log: Logger) {
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
    if (tenant.applied === undefined) return
    try {
      this.ensure(tenantId)
    } catch (err) {
      // E.g. a CPU quota below that of a sandbox in it, which cgroup v1 refuses. The quota of the tenant holds at the API.
      this.#log.error({ tenant: tenantId, err }, 'tenant.limit_failed')
    }
  }

  /** Makes the group, with the newest limits. @throws Fault when the kernel refuses them */
  ensure(tenantId: TenantId): void {
    const tenant = this.#of(tenantId)
    const { limits, applied } = tenant
    if (limits === undefined || same(limits, applied)) return
    this.#cgroups.create(this.group(tenantId), {
      memoryBytes: limits.memoryBytes,
      cpuMillis: Math.round(limits.cpus * 1000),
      pids: limits.pids,
    })
    tenant.applied = limits
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
    const made = { limits: undefined, applied: undefined, users: 0, idle: undefined }
    this.#tenants.set(tenantId, made)
    return made
  }

  async #remove(tenantId: TenantId): Promise<void> {
    this.#tenants.delete(tenantId)
    try {
      await this.#cgroups.remove(this.group(tenantId))
    } catch (err) {
      this.#log.error({ tenant: tenantId, err }, 'tenant.release_failed')
    }
  }
}

const same = (a: TenantLimits, b: TenantLimits | undefined) =>
  a.memoryBytes === b?.memoryBytes && a.cpus === b.cpus && a.pids === b.pids
