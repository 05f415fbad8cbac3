// tenants.ts: tenants, and what they use.
import {
  defaultQuota,
  Failure,
  ImagePolicy,
  invariant,
  type Quota,
  type Tenant,
  TenantId,
  type Usage,
} from '@berth/contracts'
import { toMillis } from '@berth/domain'
import { Prisma } from './generated/client.js'
import { type UseRow, useColumns } from './placing.js'
import type { PageRequest, Tenants, UsageTotals } from './repositories.js'
import { brokenConstraint, type Statement, type Store } from './store.js'
import { type QuotaRow, quotaColumns, quotaOf } from './views.js'

export const tenantNotFound = (id: TenantId) => new Failure('tenant_not_found', `there is no tenant ${id}`)

/** A tenant's quota as columns; fields that are not given are left out. */
const quotaData = (quota: Partial<Quota>) => ({
  ...(quota.unfinishedJobs !== undefined && { quotaUnfinishedJobs: quota.unfinishedJobs }),
  ...(quota.concurrentJobs !== undefined && { quotaConcurrentJobs: quota.concurrentJobs }),
  ...(quota.cpus !== undefined && { quotaCpuMillis: quota.cpus === 0 ? 0 : toMillis(quota.cpus) }),
  ...(quota.memoryBytes !== undefined && { quotaMemoryBytes: BigInt(quota.memoryBytes) }),
  ...(quota.diskBytes !== undefined && { quotaDiskBytes: BigInt(quota.diskBytes) }),
  ...(quota.pids !== undefined && { quotaPids: quota.pids }),
  ...(quota.requestsPerMinute !== undefined && { quotaRequestsPerMinute: quota.requestsPerMinute }),
  ...(quota.sandboxes !== undefined && { quotaSandboxes: quota.sandboxes }),
  ...(quota.terminals !== undefined && { quotaTerminals: quota.terminals }),
  ...(quota.imageBytes !== undefined && { quotaImageBytes: BigInt(quota.imageBytes) }),
})

interface TenantRecord {
  readonly id: string
  readonly name: string
  readonly state: string
  readonly quotaUnfinishedJobs: number
  readonly quotaConcurrentJobs: number
  readonly quotaCpuMillis: number
  readonly quotaMemoryBytes: bigint
  readonly quotaDiskBytes: bigint
  readonly quotaPids: number
  readonly quotaRequestsPerMinute: number
  readonly quotaSandboxes: number
  readonly quotaTerminals: number
  readonly quotaImageBytes: bigint
  readonly imagePolicy: unknown
  readonly createdAt: Date
}

const tenantOf = (row: TenantRecord): Tenant => ({
  id: TenantId.parse(row.id),
  name: row.name,
  state: row.state === 'suspended' ? 'suspended' : 'active',
  quota: {
    unfinishedJobs: row.quotaUnfinishedJobs,
    concurrentJobs: row.quotaConcurrentJobs,
    cpus: row.quotaCpuMillis / 1000,
    memoryBytes: Number(row.quotaMemoryBytes),
    diskBytes: Number(row.quotaDiskBytes),
    pids: row.quotaPids,
    requestsPerMinute: row.quotaRequestsPerMinute,
    sandboxes: row.quotaSandboxes,
    terminals: row.quotaTerminals,
    imageBytes: Number(row.quotaImageBytes),
  },
  imagePolicy: ImagePolicy.nullable().parse(row.imagePolicy),
  createdAt: row.createdAt.toISOString(),
})

// One at a time: the lowest free slot is looked up and taken, and slots are never shared.
const lockSlots: Statement = { name: 'lock_uid_slots', text: `SELECT pg_advisory_xact_lock(7433, 1)` }

const insertTenant: Statement = {
  name: 'insert_tenant',
  text: `INSERT INTO tenants AS t (id, name, uid_slot, quota_unfinished_jobs, quota_concurrent_jobs, quota_cpu_millis,
           quota_memory_bytes, quota_disk_bytes, quota_pids, quota_requests_per_minute, quota_sandboxes, quota_terminals,
           quota_image_bytes, created_at)
         SELECT $1, $2, min(free.slot), $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13
         FROM (SELECT 0 AS slot UNION ALL SELECT uid_slot + 1 FROM tenants) free
         WHERE NOT EXISTS (SELECT 1 FROM tenants taken WHERE taken.uid_slot = free.slot)`,
}

const insertUsage: Statement = { name: 'insert_usage', text: `INSERT INTO tenant_usage (tenant_id) VALUES ($1)` }

async function create(store: Store, tenant: Parameters<Tenants['create']>[0]): Promise<Tenant> {
  const quota = { ...defaultQuota, ...tenant.quota }
  const id = TenantId.parse(store.ids.mint('tenant'))
  const createdAt = store.clock.now()
  const data = [
    quota.unfinishedJobs,
    quota.concurrentJobs,
    quota.cpus === 0 ? 0 : toMillis(quota.cpus),
    quota.memoryBytes,
    quota.diskBytes,
    quota.pids,
    quota.requestsPerMinute,
    quota.sandboxes,
    quota.terminals,
    quota.imageBytes,
  ]
  try {
    await store.transaction(async (session) => {
      await session.rows(lockSlots, [])
      await session.rows(insertTenant, [id, tenant.name, ...data, createdAt])
      await session.rows(insertUsage, [id])
    })
  } catch (error) {
    if (brokenConstraint(error) !== 'tenants_name_key') throw error
    throw new Failure('name_taken', `there is a tenant named ${tenant.name}`)
  }
  return { id, name: tenant.name, state: 'active', quota, imagePolicy: null, createdAt: createdAt.toISOString() }
}

async function get(store: Store, id: TenantId): Promise<Tenant> {
  const row = await store.prisma('read tenant', (client) => client.tenant.findUnique({ where: { id } }))
  if (!row) throw tenantNotFound(id)
  return tenantOf(row)
}

/** Prisma's arguments for one page, newest first: one row more than asked for tells whether there is a next one. */
export const pageArguments = ({ after, limit }: PageRequest) => ({
  orderBy: { id: 'desc' as const },
  take: limit + 1,
  where: after === undefined ? {} : { id: { lt: after } },
})

/** A page of the rows that `pageArguments` selected. */
export function pageOfRows<Row extends { readonly id: string }, T>(
  rows: readonly Row[],
  limit: number,
  view: (row: Row) => T,
) {
  const shown = rows.slice(0, limit)
  return { items: shown.map(view), next: rows.length > limit ? (shown.at(-1)?.id ?? null) : null }
}

async function list(store: Store, filter: Parameters<Tenants['list']>[0], page: PageRequest) {
  const { where, ...order } = pageArguments(page)
  const named = filter.name === undefined ? {} : { name: filter.name }
  const rows = await store.prisma('list tenants', (client) =>
    client.tenant.findMany({ ...order, where: { ...where, ...named } }),
  )
  return pageOfRows(rows, page.limit, tenantOf)
}

async function update(store: Store, id: TenantId, change: Parameters<Tenants['update']>[1]): Promise<Tenant> {
  const data = {
    ...quotaData(change.quota ?? {}),
    ...(change.state !== undefined && { state: change.state }),
    ...(change.imagePolicy !== undefined && { imagePolicy: change.imagePolicy ?? Prisma.DbNull }),
  }
  const { count } = await store.prisma('update tenant', (client) => client.tenant.updateMany({ where: { id }, data }))
  if (count === 0) throw tenantNotFound(id)
  return get(store, id)
}

const readPolicy: Statement = { name: 'image_policy', text: 'SELECT image_policy FROM tenants WHERE id = $1' }

async function imagePolicy(store: Store, id: TenantId): Promise<ImagePolicy | null> {
  const [row] = await store.rows<{ image_policy: unknown }>(readPolicy, [id])
  return ImagePolicy.nullable().parse(row?.image_policy ?? null)
}

export const openTenants = (store: Store): Tenants => ({
  create: (tenant) => create(store, tenant),
  get: (id) => get(store, id),
  list: (filter, page) => list(store, filter, page),
  update: (id, change) => update(store, id, change),
  imagePolicy: (id) => imagePolicy(store, id),
})

interface UsageRow extends UseRow, QuotaRow {
  readonly sandboxes: number
  readonly image_bytes: number
  readonly jobs: number
  readonly attempts: number
  readonly cpu_ms: number
  readonly wall_ms: number
  readonly memory_byte_ms: number
  readonly output_bytes: number
}

const readUsage: Statement = {
  name: 'read_usage',
  text: `SELECT ${quotaColumns}, ${useColumns}, u.sandboxes, u.image_bytes, p.*
         FROM tenants t JOIN tenant_usage u ON u.tenant_id = t.id CROSS JOIN LATERAL (
           SELECT coalesce(sum(h.jobs), 0)::integer AS jobs, coalesce(sum(h.attempts), 0)::integer AS attempts,
             coalesce(sum(h.cpu_ms), 0) AS cpu_ms, coalesce(sum(h.wall_ms), 0) AS wall_ms,
             coalesce(sum(h.memory_byte_ms), 0) AS memory_byte_ms, coalesce(sum(h.output_bytes), 0) AS output_bytes
           FROM usage_hours h WHERE h.tenant_id = t.id AND h.hour >= $2 AND h.hour < $3) p
         WHERE t.id = $1`,
}

const HOUR_MS = 3_600_000

async function usage(store: Store, tenantId: TenantId, from: Date, to: Date): Promise<Usage> {
  const first = new Date(Math.floor(from.getTime() / HOUR_MS) * HOUR_MS)
  const last = new Date(Math.ceil(to.getTime() / HOUR_MS) * HOUR_MS)
  invariant(first <= last, `a period from ${from.toISOString()} to ${to.toISOString()}`)
  const [row] = await store.rows<UsageRow>(readUsage, [tenantId, first, last])
  if (!row) throw tenantNotFound(tenantId)
  return {
    now: {
      unfinishedJobs: row.unfinished_jobs,
      runningJobs: row.running_jobs,
      sandboxes: row.sandboxes,
      cpus: row.running_cpu_millis / 1000,
      memoryBytes: row.running_memory_bytes,
      diskBytes: row.running_disk_bytes,
      imageBytes: row.image_bytes,
    },
    quota: quotaOf(row),
    period: {
      from: first.toISOString(),
      to: last.toISOString(),
      jobs: row.jobs,
      attempts: row.attempts,
      cpuMs: row.cpu_ms,
      wallMs: row.wall_ms,
      memoryByteMs: row.memory_byte_ms,
      outputBytes: row.output_bytes,
    },
  }
}

export const openUsage = (store: Store): UsageTotals => ({
  get: (tenantId, from, to) => usage(store, tenantId, from, to),
})
