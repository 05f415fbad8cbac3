// sandbox-rows.ts: rows of sandboxes ↔ records (domain/sandbox), and what nodes are told of them. One table says which
// column holds which field, so that reading, inserting and changing cannot part. Rows are trusted: only this library
// writes them, from values that contracts' schemas have passed.
import type { ApplySandbox, SandboxId, TenantId } from '@berth/contracts'
import type { Cost, SandboxRecord } from '@berth/domain'
import type { Addressed } from './repositories.js'
import type { Session, Statement } from './store.js'
import { idRange, type QuotaRow, quotaColumns, quotaOf, tenantLimits } from './views.js'

/** A record as columns hold it. */
type Flat = Omit<SandboxRecord, 'cost'> & Cost
export type SandboxRow = Flat & { readonly revision: number }

/** Field, column, SQL type, and whether it stays as it was first written. */
const columns: readonly (readonly [field: keyof Flat, column: string, type: string, constant?: 'constant'])[] = [
  ['id', 'id', 'text', 'constant'],
  ['tenantId', 'tenant_id', 'text', 'constant'],
  ['name', 'name', 'text'],
  ['labels', 'labels', 'jsonb'],
  ['spec', 'spec', 'json'],
  ['imageDigest', 'image_digest', 'text', 'constant'],
  ['origin', 'origin', 'jsonb', 'constant'],
  ['state', 'state', 'text'],
  ['lostFrom', 'lost_from', 'text'],
  ['desired', 'desired', 'text'],
  ['phase', 'phase', 'text'],
  ['phaseSince', 'phase_since', 'timestamptz'],
  ['settled', 'settled', 'boolean'],
  ['reason', 'reason', 'jsonb'],
  ['version', 'version', 'integer'],
  ['generation', 'generation', 'integer'],
  ['acknowledgedGeneration', 'acknowledged_generation', 'integer'],
  ['commandedAt', 'commanded_at', 'timestamptz'],
  ['missingSince', 'missing_since', 'timestamptz'],
  ['cpuMillis', 'cpu_millis', 'integer'],
  ['memoryBytes', 'memory_bytes', 'bigint'],
  ['diskBytes', 'disk_bytes', 'bigint'],
  ['holds', 'holds', 'boolean'],
  ['nodeId', 'node_id', 'text'],
  ['placedBecause', 'placed_because', 'text'],
  ['run', 'run', 'integer'],
  ['restarts', 'restarts', 'integer'],
  ['reportSequence', 'report_sequence', 'bigint'],
  ['noteNumber', 'note_number', 'bigint'],
  ['phases', 'phases', 'jsonb'],
  ['lastEnd', 'last_end', 'jsonb'],
  ['stop', 'stop', 'jsonb'],
  ['requestedAt', 'requested_at', 'timestamptz'],
  ['clocksFrom', 'clocks_from', 'timestamptz'],
  ['lastActivityAt', 'last_activity_at', 'timestamptz'],
  ['endsAt', 'ends_at', 'jsonb'],
  ['deleteAt', 'delete_at', 'timestamptz'],
  ['deleteWarned', 'delete_warned', 'boolean'],
  ['createdAt', 'created_at', 'timestamptz', 'constant'],
  ['startedAt', 'started_at', 'timestamptz'],
  ['endedAt', 'ended_at', 'timestamptz'],
  ['deletedAt', 'deleted_at', 'timestamptz'],
  ['expiresAt', 'expires_at', 'timestamptz'],
]

/** Columns of `sandboxes s` as `SandboxRow`. */
export const sandboxColumns = [...columns.map(([field, column]) => `s.${column} AS "${field}"`), 's.revision'].join(
  ', ',
)

export const recordOf = ({ cpuMillis, memoryBytes, diskBytes, revision: _, ...row }: SandboxRow): SandboxRecord => ({
  ...row,
  cost: { cpuMillis, memoryBytes, diskBytes },
})

/** A record as one JSON value, which `recordFrom` takes apart. A spec that is `unchanged` is left out. */
export function recordJson({ cost, ...record }: SandboxRecord, unchanged?: SandboxRecord): string {
  return JSON.stringify({ ...record, ...cost, ...(unchanged?.spec === record.spec && { spec: null }) })
}

/** SQL that turns the JSON of `recordJson` into a row `r`. */
export const recordFrom = (parameter: string): string =>
  `json_to_record(${parameter}::json) AS r(${columns.map(([field, _, type]) => `"${field}" ${type}`).join(', ')})`

export const insertColumns = columns.map(([, column]) => column).join(', ')
export const insertValues = columns.map(([field]) => `r."${field}"`).join(', ')

// An unchanged spec keeps its place on disk: it may be megabytes. Acknowledgements come from heartbeats as well.
const written = (field: keyof Flat, column: string): string => {
  if (field === 'spec') return `coalesce(r."spec", s.spec)`
  if (field === 'acknowledgedGeneration') return `greatest(s.${column}, r."${field}")`
  return `r."${field}"`
}

/** SQL list for UPDATE sandboxes s SET … from a row `r`. */
export const updateColumns = [
  ...columns.flatMap(([field, column, , constant]) => (constant ? [] : [`${column} = ${written(field, column)}`])),
  'revision = s.revision + 1',
].join(', ')

/** What a command needs of the tenant. */
export interface TenantRow extends QuotaRow {
  readonly uid_slot: number
}

/** What the node of a sandbox is told; undefined where it has none. */
export function applyCommand(record: SandboxRecord, tenant: TenantRow): Addressed<ApplySandbox> | undefined {
  const { id: sandboxId, nodeId, tenantId, generation, desired, run, stop, name, labels, imageDigest } = record
  if (nodeId === null) return undefined
  const quota = quotaOf(tenant)
  const command: ApplySandbox = {
    kind: 'sandbox',
    ...{ nodeId, sandboxId, generation, tenantId, desired, run, stop },
    known: record.acknowledgedGeneration > 0,
    ids: idRange(tenant.uid_slot),
    tenantLimits: tenantLimits(quota),
    tenantTerminals: quota.terminals,
    ...(imageDigest !== null && { image: imageDigest }),
    ...(record.origin && { snapshot: record.origin.snapshot }),
    spec: { ...record.spec, labels, ...(name !== null && { name }) },
    requestedAt: record.requestedAt.toISOString(),
    clocksFrom: record.clocksFrom.toISOString(),
  }
  return { nodeId, command }
}

const commandRows: Statement = {
  name: 'sandbox_commands',
  text: `SELECT ${sandboxColumns}, t.uid_slot, ${quotaColumns} FROM sandboxes s JOIN tenants t ON t.id = s.tenant_id
         WHERE s.id = ANY($1) AND s.phase <> 'removed' ORDER BY s.id`,
}

/** What the nodes of these sandboxes are to be told now. */
export async function applyCommands(session: Session, ids: readonly SandboxId[]) {
  if (ids.length === 0) return []
  const rows = await session.rows<SandboxRow & TenantRow>(commandRows, [ids])
  return rows.flatMap((row) => applyCommand(recordOf(row), row) ?? [])
}

const readById: Statement = {
  name: 'read_sandbox',
  text: `SELECT ${sandboxColumns} FROM sandboxes s WHERE s.id = $2 AND ($1::text IS NULL OR s.tenant_id = $1)`,
}

// Names are of a tenant: operators, who belong to none, find sandboxes by id only.
const readByName: Statement = {
  name: 'read_sandbox_by_name',
  text: `SELECT ${sandboxColumns} FROM sandboxes s
         WHERE s.tenant_id = $1 AND s.name = $2 AND s.deleted_at IS NULL`,
}

/** @param tenantId null: of any tenant */
export async function readSandbox(
  session: Session,
  tenantId: TenantId | null,
  ref: { readonly id: string } | { readonly name: string },
): Promise<SandboxRow | undefined> {
  const [row] =
    'id' in ref
      ? await session.rows<SandboxRow>(readById, [tenantId, ref.id])
      : await session.rows<SandboxRow>(readByName, [tenantId, ref.name])
  return row
}
