// builds.ts: builds of images. A build is carried out by the process that took the request for it; its row says what it
// holds, so that this is given back whatever becomes of that process.
//
// It is admitted as jobs are: what is read without locks decides where it goes, one statement checks all limits again on
// locked rows. It ends once: by whoever's statement finds it running. Lock order: tenant_usage, nodes, builds, images.
import {
  BuildId,
  type BuildState,
  type BuildStepSummary,
  DAY,
  Failure,
  Fault,
  type NodeId,
  QuotaExceeded,
  type Tenant,
  type TenantId,
} from '@berth/contracts'
import {
  type BuildPlace,
  buildCost,
  type ImageWanted,
  type NodeSnapshot,
  type NoPlace,
  placeBuild,
  runs,
} from '@berth/domain'
import {
  type BuildRow,
  buildColumns,
  endOne,
  LEASE_MS,
  openBuildReconciler,
  readBuild,
  succeedOne,
  tenantOf,
} from './build-ending.js'
import type { AdmittedBuild, BuildNote, Builds, ImageOnNode, NewBuild, NotYet } from './build-repository.js'
import { imageDigest } from './image-resolving.js'
import type { PageRequest } from './page.js'
import { imagePlatform, type NodeJson, nodeOf, nodesJson, type UseRow, useColumns, useOf } from './placing.js'
import type { Access } from './repositories.js'
import { noCapacity } from './sandbox-apply.js'
import type { Statement, Store } from './store.js'
import { tenantNotFound } from './tenants.js'
import { idRange, type QuotaRow, quotaColumns, quotaOf, tenantLimits } from './views.js'

/** How long builds are kept, and how many of a tenant, and of how many the log. */
const KEPT_MS = 30 * DAY
const KEPT = 1000
const KEPT_LOGS = 50
/** How often a place is looked for anew because it was taken meanwhile. */
const TRIES = 10

const buildNotFound = (id: BuildId) => new Failure('build_not_found', `there is no build ${id}`)

interface SituationRow extends UseRow, QuotaRow {
  readonly state: Tenant['state']
  readonly uid_slot: number
  readonly last: NodeId | null
  readonly builds: Readonly<Record<NodeId, { readonly taken: number; readonly own: number }>>
  readonly nodes: readonly NodeJson[]
}

const readSituation: Statement = {
  name: 'build_situation',
  text: `SELECT t.state, t.uid_slot, ${quotaColumns}, ${useColumns},
      (SELECT b.node_id FROM builds b WHERE b.tenant_id = $1 AND b.started_at IS NOT NULL ORDER BY b.id DESC LIMIT 1) AS last,
      (SELECT coalesce(json_object_agg(b.node_id, json_build_object('taken', b.taken, 'own', b.own)), '{}') FROM (
        SELECT node_id, count(*) AS taken, count(*) FILTER (WHERE tenant_id = $1) AS own
        FROM builds WHERE state = 'running' GROUP BY node_id) b) AS builds,
      ${nodesJson('ARRAY(SELECT i.digest FROM images i WHERE i.owner = $1)', 'ARRAY[$1::text]')} AS nodes
    FROM tenants t JOIN tenant_usage u ON u.tenant_id = t.id WHERE t.id = $1`,
}

const insertBuild: Statement = {
  name: 'admit_build',
  text: `WITH locked AS MATERIALIZED (
      SELECT t.state AS tenant_state, ${quotaColumns}, ${useColumns}
      FROM tenant_usage u JOIN tenants t ON t.id = u.tenant_id WHERE u.tenant_id = $1 FOR UPDATE OF u
    ), allowed AS MATERIALIZED (
      SELECT FROM locked WHERE tenant_state = 'active' AND unfinished_jobs + 1 <= quota_unfinished_jobs
        AND running_jobs + 1 <= quota_concurrent_jobs AND running_cpu_millis + $5::bigint <= quota_cpu_millis
        AND running_memory_bytes + $6::bigint <= quota_memory_bytes
        AND running_disk_bytes + $7::bigint <= quota_disk_bytes
    ), node AS (
      UPDATE nodes n SET
        used_cpu_millis = n.used_cpu_millis + $5::bigint, used_memory_bytes = n.used_memory_bytes + $6::bigint,
        used_disk_bytes = n.used_disk_bytes + $7::bigint, used_sandboxes = n.used_sandboxes + $4::integer
      FROM allowed
      WHERE n.id = $3 AND n.state = 'ready' AND n.used_sandboxes + $4::integer <= n.capacity_sandboxes
        AND n.used_cpu_millis + $5::bigint <= n.capacity_cpu_millis
        AND n.used_memory_bytes + $6::bigint <= n.capacity_memory_bytes
        AND n.used_disk_bytes + $7::bigint <= n.capacity_disk_bytes
      RETURNING n.id
    ), build AS (
      INSERT INTO builds AS b (id, tenant_id, node_id, state, names, options, limits, parallel, cpu_millis,
        memory_bytes, disk_bytes, lease_until, created_by, created_at)
      SELECT $2, $1, node.id, 'running', $8, $9, $10, $4, $5, $6, $7, $11, $12, $13 FROM node RETURNING b.*
    ), reserve AS (
      UPDATE tenant_usage u SET
        unfinished_jobs = u.unfinished_jobs + 1, running_jobs = u.running_jobs + 1,
        running_cpu_millis = u.running_cpu_millis + $5::bigint,
        running_memory_bytes = u.running_memory_bytes + $6::bigint,
        running_disk_bytes = u.running_disk_bytes + $7::bigint, last_placed_at = $13, event_number = u.event_number + 1
      FROM build WHERE u.tenant_id = $1 RETURNING u.event_number
    ), told AS (
      INSERT INTO events (tenant_id, number, type, at, subject, by, data)
      SELECT $1, r.event_number, 'build.started', $13, b.id, $12,
        jsonb_build_object('nodeId', b.node_id, 'tags', b.names, 'target', b.options -> 'target') FROM build b, reserve r
    )
    SELECT ${buildColumns} FROM build b`,
}

interface Found {
  readonly place: BuildPlace
  readonly ofTenant: Pick<AdmittedBuild, 'ids' | 'tenantLimits'>
  readonly now: Date
}

/** Where a build would go now. @throws as `Builds.check` */
async function findPlace(store: Store, asked: NewBuild, kept?: ReadonlySet<NodeId>): Promise<Found | NotYet> {
  const { tenantId, limits, parallel, options } = asked
  const [row] = await store.rows<SituationRow>(readSituation, [tenantId])
  if (!row) throw tenantNotFound(tenantId)
  if (row.state !== 'active') throw new Failure('tenant_suspended', `tenant ${tenantId} is suspended`)
  const now = store.clock.now()
  const quota = quotaOf(row)
  const nodes = row.nodes.map((node) => ({
    ...nodeOf(node),
    last: node.id === row.last,
    builds: row.builds[node.id] ?? { taken: 0, own: 0 },
  }))
  const wanted = { tenantId, limits, parallel, platform: options.platform }
  const place = placeBuild(nodes, quota, useOf(row), wanted, now, kept)
  const ofTenant = { ids: idRange(row.uid_slot), tenantLimits: tenantLimits(quota) }
  if (!('forGood' in place)) return { place, ofTenant, now }
  const refusal = refusalOf(place, asked, nodes)
  if (place.forGood) throw refusal
  return { refusal, keep: place.keep }
}

async function tryAdmit(
  store: Store,
  asked: NewBuild,
  kept: ReadonlySet<NodeId> | undefined,
): Promise<AdmittedBuild | NotYet | undefined> {
  const found = await findPlace(store, asked, kept)
  if ('refusal' in found) return found
  const [admitted] = await store.rows<BuildRow>(insertBuild, insertValues(store, asked, found.place, found.now))
  return admitted && { ...admitted, ...found.ofTenant }
}

function refusalOf({ shortage }: NoPlace, { limits, options: { platform } }: NewBuild, nodes: readonly NodeSnapshot[]) {
  if (shortage) return new QuotaExceeded(shortage.quota, shortage.limit, shortage.used, shortage.asked)
  if (nodes.length > 0 && !nodes.some((node) => runs(node, { platform })))
    return new Failure('platform_unsupported', `no node builds for ${platform}`)
  return noCapacity('no node has room for the build', { sandboxes: 1, ...buildCost(limits, 1) })
}

const insertValues = (store: Store, asked: NewBuild, { nodeId, parallel, cost }: BuildPlace, now: Date) => [
  asked.tenantId,
  BuildId.parse(store.ids.mint('build')),
  nodeId,
  parallel,
  cost.cpuMillis,
  cost.memoryBytes,
  cost.diskBytes,
  asked.names,
  JSON.stringify(asked.options),
  JSON.stringify(asked.limits),
  new Date(now.getTime() + LEASE_MS),
  asked.by,
  now,
]

async function admit(store: Store, asked: NewBuild, kept?: ReadonlySet<NodeId>): Promise<AdmittedBuild | NotYet> {
  for (let tries = 0; tries < TRIES; tries++) {
    const admitted = await tryAdmit(store, asked, kept)
    if (admitted) return admitted
  }
  throw new Fault('admit a build', { cause: 'room and quota keep being taken by others' })
}

const countRunning: Statement = {
  name: 'running_builds',
  text: `SELECT b.tenant_id AS id, count(*)::integer AS builds FROM builds b
         WHERE b.state = 'running' AND b.tenant_id = ANY($1) GROUP BY b.tenant_id`,
}

async function running(store: Store, tenantIds: readonly TenantId[]): Promise<ReadonlyMap<TenantId, number>> {
  const rows = await store.rows<{ id: TenantId; builds: number }>(countRunning, [tenantIds])
  return new Map(rows.map(({ id, builds }) => [id, builds]))
}

async function get(store: Store, access: Access, id: BuildId) {
  const values = [id, tenantOf(access)]
  const [row] = await store.rows<BuildRow & { steps: readonly BuildStepSummary[] }>(readBuild, values)
  if (!row) throw buildNotFound(id)
  return { ...row.build, steps: row.steps }
}

async function list(
  store: Store,
  access: Access,
  { state }: { readonly state?: readonly BuildState[] | undefined },
  { after, limit }: PageRequest,
) {
  const text = `SELECT ${buildColumns} FROM builds b
    WHERE ($1::text IS NULL OR b.tenant_id = $1) AND ($2::text IS NULL OR b.id < $2) AND ($3::text[] IS NULL OR b.state = ANY($3))
    ORDER BY b.id DESC LIMIT $4`
  const values = [tenantOf(access), after ?? null, state ?? null, limit + 1]
  const items = (await store.rows<BuildRow>({ text }, values)).map(({ build }) => build)
  const shown = items.slice(0, limit)
  return { items: shown, next: items.length > limit ? (shown.at(-1)?.id ?? null) : null }
}

const readLog: Statement = {
  name: 'read_build_log',
  text: 'SELECT l.number, l.data FROM build_logs l WHERE l.build_id = $1 ORDER BY l.number',
}

async function log(store: Store, access: Access, id: BuildId) {
  await get(store, access, id)
  return store.rows<{ number: number; data: Buffer }>(readLog, [id])
}

const readNodes: Statement = {
  name: 'nodes_of_builds',
  text: `SELECT b.node_id AS id FROM builds b JOIN nodes n ON n.id = b.node_id
         WHERE b.tenant_id = $1 AND n.state IN ('ready', 'draining') GROUP BY b.node_id ORDER BY max(b.id) DESC LIMIT 100`,
}

// $1 tenant, $2 node, then what of each is wanted. A base image is what its node has of that name; what a name means that it
// does not have, no node can change that was registered after one that has it: ids sort by creation. One that was taken over
// would have its content used elsewhere by claiming a name. A node that is drained is asked too: what a name means must not
// fall to a later one for as long as that takes.
const resolveOnNode: Statement = {
  name: 'resolve_on_node',
  text: `SELECT d.digest, coalesce(d.digest = ANY(n.image_names), false) AS held,
      ${imagePlatform('d.digest', '$1')} AS platform
    FROM unnest($3::text[], $4::text[], $5::text[], $6::text[]) WITH ORDINALITY
      AS w(reference, digest, base_key, base_digest, number)
    LEFT JOIN nodes n ON n.id = $2 CROSS JOIN LATERAL (
      SELECT coalesce(${imageDigest('$1', 'w.reference', 'w.digest')}, w.base_digest, (
        SELECT i.digest FROM nodes o CROSS JOIN jsonb_to_recordset(o.images) AS i(reference text, digest text)
        WHERE i.reference = w.base_key AND (o.id = $2 OR o.state IN ('ready', 'draining'))
        ORDER BY o.id = $2 DESC, o.id, i.digest LIMIT 1)) AS digest) d
    ORDER BY w.number`,
}

const resolve = (store: Store, tenantId: TenantId, nodeId: NodeId, wanted: readonly ImageWanted[]) =>
  store.rows<ImageOnNode>(resolveOnNode, [
    tenantId,
    nodeId,
    wanted.map(({ reference }) => reference),
    wanted.map(({ digest }) => digest),
    wanted.map(({ base }) => base?.key ?? null),
    wanted.map(({ base }) => base?.digest ?? null),
  ])

// Of a build that has ended it is only noted what it told.
const renewLease: Statement = {
  name: 'renew_build',
  text: `WITH build AS (
      UPDATE builds b SET steps = $2, started_at = coalesce(b.started_at, $3::timestamptz),
        lease_until = CASE WHEN b.state = 'running' THEN $4::timestamptz ELSE b.lease_until END
      WHERE b.id = $1 RETURNING b.id, b.state
    ), added AS (
      INSERT INTO build_logs (build_id, number, data)
      SELECT b.id, $5::integer, $6::bytea FROM build b WHERE $5::integer IS NOT NULL ON CONFLICT DO NOTHING
    ), dropped AS (
      DELETE FROM build_logs l USING build b WHERE l.build_id = b.id AND l.number < $7::integer
    )
    SELECT b.state = 'running' AS lives FROM build b`,
}

async function renew(store: Store, id: BuildId, { steps, startedAt, log }: BuildNote): Promise<boolean> {
  const until = new Date(store.clock.now().getTime() + LEASE_MS)
  const piece = log ? [log.number, Buffer.from(log.data), log.keepFrom] : [null, null, null]
  const [row] = await store.rows<{ lives: boolean }>(renewLease, [
    id,
    JSON.stringify(steps),
    startedAt,
    until,
    ...piece,
  ])
  return row?.lives ?? false
}

const tooMany = (kept: number) => `SELECT o.id FROM tenant_usage u CROSS JOIN LATERAL (
    SELECT b.id FROM builds b WHERE b.tenant_id = u.tenant_id ORDER BY b.id DESC OFFSET ${kept}) o
  JOIN builds e ON e.id = o.id WHERE e.ended_at IS NOT NULL`

const expireBuilds: Statement = {
  name: 'expire_builds',
  text: `WITH old AS MATERIALIZED (
      SELECT b.id FROM builds b WHERE b.ended_at <= $1 UNION ${tooMany(KEPT)} LIMIT $2
    ), gone AS (
      DELETE FROM builds b USING old WHERE b.id = old.id RETURNING 1
    )
    SELECT count(*)::integer AS builds FROM gone`,
}
const expireLogs: Statement = {
  name: 'expire_build_logs',
  text: `DELETE FROM build_logs WHERE build_id IN (${tooMany(KEPT_LOGS)} AND EXISTS (
      SELECT FROM build_logs l WHERE l.build_id = o.id) LIMIT $1)`,
}

async function expire(store: Store, limit: number): Promise<number> {
  await store.rows(expireLogs, [limit])
  const before = new Date(store.clock.now().getTime() - KEPT_MS)
  return (await store.rows<{ builds: number }>(expireBuilds, [before, limit]))[0]?.builds ?? 0
}

export const openBuilds = (store: Store): Builds => ({
  admit: (asked, kept) => admit(store, asked, kept),
  check: async (asked) => void (await findPlace(store, asked)),
  running: (tenantIds) => running(store, tenantIds),
  get: (access, id) => get(store, access, id),
  list: (access, filter, page) => list(store, access, filter, page),
  log: (access, id) => log(store, access, id),
  nodes: async (tenantId) => (await store.rows<{ id: NodeId }>(readNodes, [tenantId])).map(({ id }) => id),
  resolve: (tenantId, nodeId, wanted) => resolve(store, tenantId, nodeId, wanted),
  renew: (id, note) => renew(store, id, note),
  succeed: (id, image, by) => succeedOne(store, id, image, by),
  end: (access, id, ended) => endOne(store, access, id, ended),
  reconcile: openBuildReconciler(store),
  expire: (limit) => expire(store, limit),
})
