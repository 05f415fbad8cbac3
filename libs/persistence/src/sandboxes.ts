// sandboxes.ts: sandboxes, as callers and nodes change them. Creating takes two round trips: the first reads tenant and
// nodes, without locks, and on it is decided where the sandbox goes; the second reserves and stores, or finds that the
// node has no room any more.
import {
  Failure,
  Fault,
  type NodeId,
  QuotaExceeded,
  type SandboxEnd,
  SandboxId,
  type SandboxReport,
  type Tenant,
  type TenantId,
} from '@berth/contracts'
import {
  chooseForSandbox,
  fitsSandbox,
  NODE_SILENT_MS,
  newSandbox,
  type ResolvedImage,
  reportOf,
  requestOf,
  type SandboxRequest,
  type SandboxStep,
  sandboxCost,
  sandboxView,
  stepTo,
} from '@berth/domain'
import { lockOwner } from './image-owner.js'
import { imageDigest, resolvedOr404, wantedBy } from './image-resolving.js'
import {
  imagePlatform,
  type NodeJson,
  nodeOf,
  nodesJson,
  obtainable,
  type UseRow,
  useColumns,
  useOf,
} from './placing.js'
import type {
  Access,
  ChangedSandbox,
  LocatedSandbox,
  NewSandbox,
  PageRequest,
  Sandboxes,
  SandboxFilter,
  SandboxFork,
} from './repositories.js'
import { changedBy, changeSandboxes, insertStep, noCapacity } from './sandbox-apply.js'
import { expireSandboxes, openSandboxReconciler } from './sandbox-overdue.js'
import { readSandbox, recordOf, type SandboxRow, sandboxColumns, type TenantRow } from './sandbox-rows.js'
import { OutcomeUnknown, type Session, type Statement, type Store, storing } from './store.js'
import { tenantNotFound } from './tenants.js'
import { labelConditions, quotaColumns, quotaOf } from './views.js'

const sandboxNotFound = (ref: string) => new Failure('sandbox_not_found', `there is no sandbox ${ref}`)

const tenantOf = (access: Access): TenantId | null => (access === 'operator' ? null : access.tenantId)

/** An id is never a name: what looks like an id is looked for as one. */
const refOf = (ref: string) => (SandboxId.safeParse(ref).success ? { id: ref } : { name: ref })

const located = `s.id, s.tenant_id AS "tenantId", s.node_id AS "nodeId", s.state`

const locateById: Statement = {
  name: 'locate_sandbox',
  text: `SELECT ${located} FROM sandboxes s WHERE s.id = $2 AND ($1::text IS NULL OR s.tenant_id = $1)`,
}

const locateByName: Statement = {
  name: 'locate_sandbox_by_name',
  text: `SELECT ${located} FROM sandboxes s WHERE s.tenant_id = $1 AND s.name = $2 AND s.deleted_at IS NULL`,
}

async function locate(store: Store, access: Access, ref: string): Promise<LocatedSandbox> {
  const statement = 'id' in refOf(ref) ? locateById : locateByName
  const [row] = await store.rows<LocatedSandbox>(statement, [tenantOf(access), ref])
  if (!row) throw sandboxNotFound(ref)
  return row
}

async function get(store: Store, access: Access, ref: string) {
  const row = await readSandbox(store, tenantOf(access), refOf(ref))
  if (!row) throw sandboxNotFound(ref)
  return sandboxView(recordOf(row))
}

function listStatement(access: Access, filter: SandboxFilter, page: PageRequest) {
  const values: unknown[] = []
  const parameter = (value: unknown) => `$${values.push(value)}`
  const wantsDeleted = filter.state?.includes('deleted') === true
  const onlyDeleted = wantsDeleted && filter.state?.every((state) => state === 'deleted') === true
  const conditions = [
    access === 'operator' ? [] : [`s.tenant_id = ${parameter(access.tenantId)}`],
    onlyDeleted ? ['s.deleted_at IS NOT NULL'] : wantsDeleted ? [] : ['s.deleted_at IS NULL'],
    page.after === undefined ? [] : [`s.id < ${parameter(page.after)}`],
    filter.state === undefined ? [] : [`s.state = ANY(${parameter(filter.state)})`],
    labelConditions('s.labels', filter.label ?? [], parameter),
    filter.endedBefore === undefined ? [] : [`coalesce(s.ended_at, s.created_at) <= ${parameter(filter.endedBefore)}`],
  ].flat()
  const where = conditions.length > 0 ? `WHERE ${conditions.join(' AND ')}` : ''
  const limit = parameter(page.limit + 1)
  return { text: `SELECT ${sandboxColumns} FROM sandboxes s ${where} ORDER BY s.id DESC LIMIT ${limit}`, values }
}

async function list(store: Store, access: Access, filter: SandboxFilter, page: PageRequest) {
  const { text, values } = listStatement(access, filter, page)
  const rows = await store.rows<SandboxRow>({ text }, values)
  const items = rows.slice(0, page.limit).map((row) => sandboxView(recordOf(row)))
  return { items, next: rows.length > page.limit ? (items.at(-1)?.id ?? null) : null }
}

interface SituationRow extends UseRow, TenantRow {
  readonly state: Tenant['state']
  readonly sandboxes: number
  readonly taken: boolean
  readonly image_digest: string | null
  readonly image_epoch: number
  /** Whether nodes that lack the image can come to have it. */
  readonly obtainable: boolean
  readonly image_platform: string | null
  readonly nodes: readonly NodeJson[]
}

const readSituation: Statement = {
  name: 'sandbox_situation',
  text: `WITH image AS MATERIALIZED (SELECT ${imageDigest('$1', '$4::text', '$5::text')} AS digest)
         SELECT t.state, t.uid_slot, ${quotaColumns}, ${useColumns}, u.sandboxes, u.image_epoch,
           (SELECT i.digest FROM image i) AS image_digest,
           EXISTS (SELECT 1 FROM sandboxes s
             WHERE s.tenant_id = $1 AND s.name = $3::text AND s.deleted_at IS NULL) AS taken,
           ${obtainable('coalesce((SELECT i.digest FROM image i), $2::text)', '$1', '$6')} AS obtainable,
           ${imagePlatform('(SELECT i.digest FROM image i)', '$1')} AS image_platform,
           ${nodesJson('ARRAY[coalesce((SELECT i.digest FROM image i), $2::text)]', 'ARRAY[$1::text]')} AS nodes
         FROM tenants t JOIN tenant_usage u ON u.tenant_id = t.id WHERE t.id = $1`,
}

/** How often another node is chosen because the one before was filled by others: each time a node has become full. */
const CHOICES = 30

/** @throws quota_exceeded, tenant_suspended, no_capacity: why a sandbox cannot have what it asks for anywhere */
function refuse(row: SituationRow, { tenantId, spec, start }: NewSandbox, pinned: boolean): never {
  const { cpuMillis, memoryBytes, diskBytes } = sandboxCost(spec)
  const asked = { sandboxes: 1, cpuMillis: start ? cpuMillis : 0, memoryBytes: start ? memoryBytes : 0, diskBytes }
  if (row.state !== 'active') throw new Failure('tenant_suspended', `tenant ${tenantId} is suspended`)
  const shortage = fitsSandbox(quotaOf(row), { ...useOf(row), sandboxes: row.sandboxes }, asked)
  if (shortage) throw new QuotaExceeded(shortage.quota, shortage.limit, shortage.used, shortage.asked)
  const image = pinned ? `image ${spec.image} and ` : ''
  throw noCapacity(`none of ${row.nodes.length} ready nodes has ${image}room`, asked)
}

function stepOn(store: Store, row: SituationRow, asked: NewSandbox, image: ResolvedImage): SandboxStep {
  const { tenantId, spec, start, by } = asked
  const now = store.clock.now()
  // A base image by its name is what a node has of its own.
  const pinned = image.digest === null || !row.obtainable
  const platform = row.image_platform
  const placeable = { tenantId, image: image.key, pinned, platform, cost: sandboxCost(spec), starts: start }
  const chosen = chooseForSandbox(row.nodes.map(nodeOf), placeable, now)
  if (!chosen) return refuse(row, asked, pinned)
  const id = SandboxId.parse(store.ids.mint('sandbox'))
  const placedBecause = chosen.because.replace(image.key, spec.image)
  const place = { nodeId: chosen.node.id, placedBecause, imageDigest: image.digest }
  return stepTo(undefined, newSandbox({ id, tenantId, spec, start, by, now, ...place }), now, { by })
}

async function create(store: Store, asked: NewSandbox): Promise<ChangedSandbox> {
  const { tenantId, spec, image: wanted = wantedBy(spec) } = asked
  const base = wanted.base?.digest ?? wanted.base?.key
  for (let choice = 1; ; choice++) {
    const silent = new Date(store.clock.now().getTime() - NODE_SILENT_MS)
    const situation = [tenantId, base, spec.name ?? null, wanted.reference, wanted.digest, silent]
    const [row] = await store.rows<SituationRow>(readSituation, situation)
    if (!row) throw tenantNotFound(tenantId)
    if (row.taken) throw new Failure('name_taken', `there is a sandbox named ${spec.name}`)
    const image = resolvedOr404(wanted, row.image_digest)
    const step = stepOn(store, row, asked, image)
    const tenant = await storing(insertStep(store, step, image.digest === null ? null : row.image_epoch))
    if (tenant) return changedBy({ step, before: step.after, tenant })
    if (choice === CHOICES) throw noCapacity('other sandboxes and jobs take all room there is', step.node)
  }
}

async function fork(store: Store, asked: SandboxFork): Promise<readonly ChangedSandbox[]> {
  let changed: readonly ChangedSandbox[] = []
  try {
    return await storing(
      store.transaction(async (session) => {
        changed = await insertForks(store, session, asked)
        return changed
      }),
    )
  } catch (error) {
    if (!(error instanceof OutcomeUnknown)) throw error
    if (await wereInserted(store, asked.tenantId, changed, error)) return changed
    throw new Fault('fork a sandbox', { cause: error })
  }
}

async function insertForks(
  store: Store,
  session: Session,
  { tenantId, origin, specs, start, by }: SandboxFork,
): Promise<readonly ChangedSandbox[]> {
  // Whoever deletes a sandbox, or an image, of the tenant comes before or after.
  await lockOwner(session, tenantId)
  const row = await readSandbox(session, tenantId, { id: origin.sandbox })
  if (!row || row.deletedAt !== null) throw sandboxNotFound(origin.sandbox)
  const { nodeId, imageDigest } = row
  if (nodeId === null) throw new Failure('node_unreachable', `the node that held sandbox ${row.id} is no more`)
  const placedBecause = `the files of sandbox ${row.id} are on it`
  const changed: ChangedSandbox[] = []
  for (const spec of specs) {
    const [id, now] = [SandboxId.parse(store.ids.mint('sandbox')), store.clock.now()]
    const made = newSandbox({ id, tenantId, spec, start, by, now, nodeId, placedBecause, imageDigest, origin })
    const step = stepTo(undefined, made, now, { by })
    // The source is on the image, so it is there.
    const tenant = await insertStep(session, step, null)
    if (!tenant) throw noCapacity(`node ${nodeId} has no room for ${specs.length} such sandboxes`, step.node)
    changed.push(changedBy({ step, before: step.after, tenant }))
  }
  return changed
}

const countSandboxes: Statement = {
  name: 'count_sandboxes',
  text: 'SELECT count(*)::integer AS found FROM sandboxes WHERE tenant_id = $1 AND id = ANY($2)',
}

/**
 * Whether a transaction whose end nobody told had one. It holds the lock of its tenant until that, so with the lock taken
 * again it is over, and all of it is there or nothing.
 * @throws OutcomeUnknown where that cannot be told either
 */
async function wereInserted(
  store: Store,
  tenantId: TenantId,
  changed: readonly ChangedSandbox[],
  unknown: OutcomeUnknown,
): Promise<boolean> {
  const ids = changed.map(({ sandbox }) => sandbox.id)
  try {
    return await store.transaction(async (session) => {
      await lockOwner(session, tenantId)
      const [row] = await session.rows<{ found: number }>(countSandboxes, [tenantId, ids])
      return (row?.found ?? 0) > 0
    })
  } catch (error) {
    throw new OutcomeUnknown(new AggregateError([unknown, error], 'and looking for what it has stored failed'))
  }
}

function versionChecked(ref: string, version: number, expected: number | undefined): void {
  if (expected === undefined || expected === version) return
  const message = `sandbox ${ref} has version ${version} now, not ${expected}: get it and try again`
  throw new Failure('version_mismatch', message, { version })
}

async function request(
  store: Store,
  access: Access,
  ref: string,
  asked: SandboxRequest,
  { by, ifVersion }: { readonly by: string; readonly ifVersion?: number | undefined },
): Promise<ChangedSandbox> {
  let same: ChangedSandbox | undefined
  const applied = await storing(
    changeSandboxes(store, tenantOf(access), refOf(ref), (record, now) => {
      versionChecked(ref, record.version, ifVersion)
      const after = requestOf(record, asked, by, now)
      if (after !== record) return stepTo(record, after, now, { by })
      const change = { sandboxId: record.id, tenantId: record.tenantId, told: false }
      same = { sandbox: sandboxView(record), change, changed: false, freed: false }
      return undefined
    }),
  )
  if (applied) return changedBy(applied)
  if (!same) throw sandboxNotFound(ref)
  return same
}

async function recordReport(store: Store, nodeId: NodeId, report: SandboxReport): Promise<ChangedSandbox | undefined> {
  const applied = await changeSandboxes(store, null, { id: report.sandboxId }, (record, now) => {
    if (record.nodeId !== nodeId || record.phase === 'removed') return undefined
    const reported = reportOf(record, report, now)
    return reported && stepTo(record, reported.after, now, reported)
  })
  return applied && changedBy(applied)
}

/** Sandboxes that one call of prune deletes at most. */
const PRUNED_AT_ONCE = 1000

async function prune(store: Store, tenantId: TenantId, filter: SandboxFilter, by: string) {
  const access = { tenantId }
  const ended = { ...filter, state: ['stopped', 'failed'] as const }
  const { items } = await list(store, access, ended, { limit: PRUNED_AT_ONCE })
  const done: ChangedSandbox[] = []
  for (const { id } of items) {
    // One that was started or deleted meanwhile stays as it is.
    const deleted = await request(store, access, id, { kind: 'delete', force: false }, { by }).catch((error) => {
      if (error instanceof Failure && error.code === 'wrong_state') return undefined
      throw error
    })
    if (deleted?.changed) done.push(deleted)
  }
  return done
}

const readEnds: Statement = {
  name: 'sandbox_ends',
  text: `SELECT record FROM sandbox_ends WHERE sandbox_id = $1 ORDER BY run DESC, restart DESC LIMIT $2`,
}

async function ends(store: Store, access: Access, ref: string, limit: number) {
  const { id } = await locate(store, access, ref)
  return (await store.rows<{ record: SandboxEnd }>(readEnds, [id, limit])).map(({ record }) => record)
}

export function openSandboxes(store: Store): Sandboxes {
  const reconcile = openSandboxReconciler(store)
  return {
    locate: (access, ref) => locate(store, access, ref),
    get: (access, ref) => get(store, access, ref),
    list: (access, filter, page) => list(store, access, filter, page),
    create: (asked) => create(store, asked),
    fork: (asked) => fork(store, asked),
    request: (access, ref, asked, options) => request(store, access, ref, asked, options),
    prune: (tenantId, filter, by) => prune(store, tenantId, filter, by),
    ends: (access, ref, limit) => ends(store, access, ref, limit),
    recordReport: (nodeId, report) => recordReport(store, nodeId, report),
    reconcile,
    expire: (limit) => expireSandboxes(store, limit),
  }
}
