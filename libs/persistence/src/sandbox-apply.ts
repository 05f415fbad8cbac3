// sandbox-apply.ts: a decided step of a sandbox → rows, exactly once.
//
// What follows a request or a report is decided on a row that was read without a lock, and applied by one statement
// that checks that the row is still that one; where it is not, all is decided again. The statement reserves or frees
// what the step takes or gives back, of the tenant and of the node, under their locks: a limit is never overshot, and
// what a run held comes back once. It also appends the events, numbered under the tenant's lock. Lock order:
// tenant_usage, nodes, sandboxes.
import { BrokenInvariant, Failure, QuotaExceeded, type SandboxId, type Tenant, type TenantId } from '@berth/contracts'
import { fitsSandbox, type SandboxRecord, type SandboxStep, type SandboxUse, sandboxView } from '@berth/domain'
import { type UseRow, useColumns, useOf } from './placing.js'
import type { ChangedSandbox } from './repositories.js'
import {
  applyCommand,
  insertColumns,
  insertValues,
  readSandbox,
  recordFrom,
  recordJson,
  recordOf,
  type SandboxRow,
  type TenantRow,
  updateColumns,
} from './sandbox-rows.js'
import { brokenConstraint, type Session, type Statement, type Store } from './store.js'
import { tenantNotFound } from './tenants.js'
import { quotaColumns, quotaOf } from './views.js'

const fits = (use: string, more: string, limit: string): string =>
  `(${more}::bigint <= 0 OR ${use} + ${more}::bigint <= ${limit})`

// $1 tenant, $2 node (null: nothing changes there), $3–$6 more of the tenant's quota, $7–$10 more of the node; what is
// negative is given back. Only a node in service is asked for more. The locking selects are one chain, so that rows are
// locked in order whatever the plan.
const reserving = `
  WITH usage AS MATERIALIZED (
    SELECT t.state AS tenant_state, t.uid_slot, ${quotaColumns}, ${useColumns}, u.sandboxes, u.image_epoch
    FROM tenant_usage u JOIN tenants t ON t.id = u.tenant_id WHERE u.tenant_id = $1 FOR UPDATE OF u
  ), allowed AS MATERIALIZED (
    SELECT FROM usage
    WHERE (tenant_state = 'active' OR greatest($3::bigint, $4::bigint, $5::bigint, $6::bigint) <= 0)
      AND ${fits('sandboxes', '$3', 'quota_sandboxes')} AND ${fits('running_cpu_millis', '$4', 'quota_cpu_millis')}
      AND ${fits('running_memory_bytes', '$5', 'quota_memory_bytes')}
      AND ${fits('running_disk_bytes', '$6', 'quota_disk_bytes')}
  ), node AS MATERIALIZED (
    SELECT n.id, n.state, n.capacity_sandboxes, n.capacity_cpu_millis, n.capacity_memory_bytes, n.capacity_disk_bytes,
      n.used_sandboxes, n.used_cpu_millis, n.used_memory_bytes, n.used_disk_bytes
    FROM allowed CROSS JOIN nodes n WHERE n.id = $2 FOR UPDATE OF n
  ), roomy AS MATERIALIZED (
    SELECT true AS yes FROM allowed LEFT JOIN node n ON true
    WHERE greatest($7::bigint, $8::bigint, $9::bigint, $10::bigint) <= 0 OR (n.state = 'ready'
      AND ${fits('n.used_sandboxes', '$7', 'n.capacity_sandboxes')}
      AND ${fits('n.used_cpu_millis', '$8', 'n.capacity_cpu_millis')}
      AND ${fits('n.used_memory_bytes', '$9', 'n.capacity_memory_bytes')}
      AND ${fits('n.used_disk_bytes', '$10', 'n.capacity_disk_bytes')})
  )`

// $11 the record, $12 events, $13 ends.
const following = `, taken AS (
    UPDATE nodes n SET used_sandboxes = n.used_sandboxes + $7::integer, used_cpu_millis = n.used_cpu_millis + $8::bigint,
      used_memory_bytes = n.used_memory_bytes + $9::bigint, used_disk_bytes = n.used_disk_bytes + $10::bigint
    FROM done WHERE n.id = $2
  ), counted AS (
    UPDATE tenant_usage u SET sandboxes = u.sandboxes + $3::integer, running_cpu_millis = u.running_cpu_millis + $4::bigint,
      running_memory_bytes = u.running_memory_bytes + $5::bigint, running_disk_bytes = u.running_disk_bytes + $6::bigint,
      event_number = u.event_number + json_array_length($12::json)
    FROM done WHERE u.tenant_id = $1 RETURNING u.event_number - json_array_length($12::json) AS before
  ), told AS (
    INSERT INTO events (tenant_id, number, type, at, subject, by, data)
    SELECT $1, c.before + e.number, e.type, e.at, e.subject, e.by, e.data FROM counted c,
      json_to_recordset($12::json) AS e(number integer, type text, at timestamptz, subject text, by text, data jsonb)
  ), ended AS (
    INSERT INTO sandbox_ends (sandbox_id, run, restart, tenant_id, ended_at, record)
    SELECT done.id, (e.record ->> 'run')::integer, (e.record ->> 'restart')::integer, $1,
      (e.record ->> 'endedAt')::timestamptz, e.record
    FROM done, json_array_elements($13::json) AS e(record) ON CONFLICT DO NOTHING
  )
  SELECT usage.*, coalesce((SELECT yes FROM roomy), false) AS has_room, done.id IS NOT NULL AS done
  FROM usage LEFT JOIN done ON true`

const insertSandbox: Statement = {
  name: 'insert_sandbox',
  text: `${reserving}, done AS (
      INSERT INTO sandboxes (${insertColumns}) SELECT ${insertValues} FROM roomy, usage, ${recordFrom('$11')}
      WHERE $14::integer IS NULL OR usage.image_epoch = $14 RETURNING id
    )${following}`,
}

const changeSandbox: Statement = {
  name: 'change_sandbox',
  text: `${reserving}, held AS MATERIALIZED (
      SELECT s.id FROM roomy CROSS JOIN sandboxes s WHERE s.id = $14 AND s.revision = $15 FOR UPDATE OF s
    ), done AS (
      UPDATE sandboxes s SET ${updateColumns} FROM held, ${recordFrom('$11')} WHERE s.id = held.id RETURNING s.id
    )${following}`,
}

// Of a step that counts nothing and tells nothing, as most reports are: activity, a phase passed.
const touchSandbox: Statement = {
  name: 'touch_sandbox',
  text: `UPDATE sandboxes s SET ${updateColumns} FROM ${recordFrom('$1')} WHERE s.id = $2 AND s.revision = $3
         RETURNING s.id`,
}

interface AppliedRow extends UseRow, TenantRow {
  readonly tenant_state: Tenant['state']
  readonly sandboxes: number
  readonly has_room: boolean
  readonly done: boolean
}

const amounts = (use: SandboxUse) => [use.sandboxes, use.cpuMillis, use.memoryBytes, use.diskBytes]
const counts = (use: SandboxUse): boolean => amounts(use).some((amount) => amount !== 0)

function valuesOf(step: SandboxStep, before?: SandboxRecord): readonly unknown[] {
  const { after, tenant, node, events, ends } = step
  return [
    after.tenantId,
    counts(node) ? (after.nodeId ?? before?.nodeId ?? null) : null,
    ...amounts(tenant),
    ...amounts(node),
    recordJson(after, before),
    JSON.stringify(events.map((event, i) => ({ number: i + 1, ...event }))),
    JSON.stringify(ends),
  ]
}

export const noCapacity = (message: string, { cpuMillis, memoryBytes, diskBytes }: SandboxUse): Failure => {
  const asked = { cpus: cpuMillis / 1000, memoryBytes, diskBytes }
  return new Failure('no_capacity', message, { asked })
}

/** @throws quota_exceeded or tenant_suspended, where that is why the statement did nothing */
function refuse(row: AppliedRow, step: SandboxStep): void {
  const shortage = fitsSandbox(quotaOf(row), { ...useOf(row), sandboxes: row.sandboxes }, step.tenant)
  if (row.tenant_state !== 'active' && amounts(step.tenant).some((amount) => amount > 0))
    throw new Failure('tenant_suspended', `tenant ${step.after.tenantId} is suspended`)
  if (shortage) throw new QuotaExceeded(shortage.quota, shortage.limit, shortage.used, shortage.asked)
}

async function named<T>(name: string | null, work: Promise<T>): Promise<T> {
  try {
    return await work
  } catch (error) {
    if (brokenConstraint(error) !== 'sandboxes_name_key') throw error
    throw new Failure('name_taken', `there is a sandbox named ${name}`)
  }
}

/**
 * Stores a new sandbox.
 * @param imageEpoch as of which its image was resolved; null: a base image
 * @returns the tenant, for the command; undefined where its node has no room any more, or images went: choose again
 * @throws name_taken, quota_exceeded, tenant_suspended, tenant_not_found
 */
export async function insertStep(
  store: Session,
  step: SandboxStep,
  imageEpoch: number | null,
): Promise<TenantRow | undefined> {
  const values = [...valuesOf(step), imageEpoch]
  const [row] = await named(step.after.name, store.rows<AppliedRow>(insertSandbox, values))
  if (!row) throw tenantNotFound(step.after.tenantId)
  if (row.done) return row
  refuse(row, step)
  return undefined
}

/** Whether a step may be applied without the tenant's and the node's locks. */
const light = ({ after, tenant, node, events, ends }: SandboxStep, before: SandboxRecord): boolean =>
  events.length + ends.length === 0 && !counts(tenant) && !counts(node) && after.generation === before.generation

export interface AppliedStep {
  readonly step: SandboxStep
  readonly before: SandboxRecord
  /** Of a step that has made a new command; the tenant is what it needs besides. */
  readonly tenant: TenantRow | undefined
}

async function applyStep(store: Store, row: SandboxRow, before: SandboxRecord, step: SandboxStep) {
  const { id, revision } = row
  if (light(step, before)) {
    const [done] = await store.rows<{ id: SandboxId }>(touchSandbox, [recordJson(step.after, before), id, revision])
    return done && { step, before, tenant: undefined }
  }
  const values = [...valuesOf(step, before), id, revision]
  const [applied] = await named(step.after.name, store.rows<AppliedRow>(changeSandbox, values))
  if (!applied) throw new BrokenInvariant(`sandbox ${id} has no tenant`)
  if (applied.done) return { step, before, tenant: step.after.generation > before.generation ? applied : undefined }
  refuse(applied, step)
  if (!applied.has_room) throw noCapacity(`node ${before.nodeId} has no room for sandbox ${id}`, step.node)
  return undefined
}

/** How often a decision is made again because the row has changed: each time another statement has won. */
const ATTEMPTS = 50

/**
 * Reads a sandbox, decides, applies, and begins anew where the row has changed in between.
 * @param decide the step from a record; undefined: none, the row stays. May throw to refuse
 * @returns undefined where there is no such sandbox, or no step
 * @throws what `decide` throws; name_taken, quota_exceeded, tenant_suspended, no_capacity
 */
export async function changeSandboxes(
  store: Store,
  tenantId: TenantId | null,
  ref: { readonly id: string } | { readonly name: string },
  decide: (record: SandboxRecord, now: Date) => SandboxStep | undefined,
): Promise<AppliedStep | undefined> {
  for (let tries = 0; tries < ATTEMPTS; tries++) {
    const row = await readSandbox(store, tenantId, ref)
    if (!row) return undefined
    const record = recordOf(row)
    const step = decide(record, store.clock.now())
    if (!step) return undefined
    const applied = await applyStep(store, row, record, step)
    if (applied) return applied
  }
  throw new BrokenInvariant(`sandbox ${JSON.stringify(ref)} keeps changing`)
}

/** What callers of a change need: the sandbox, and what to tell whom. */
export function changedBy({ step, before, tenant }: AppliedStep): ChangedSandbox {
  const { after, events } = step
  const command = tenant && applyCommand(after, tenant)
  const freed = step.tenant.cpuMillis < 0 || step.node.cpuMillis < 0 || step.node.diskBytes < 0
  return {
    sandbox: sandboxView(after),
    change: { sandboxId: after.id, tenantId: after.tenantId, told: events.length > 0 },
    changed: after.version !== before.version,
    freed,
    ...(command && { command }),
  }
}
