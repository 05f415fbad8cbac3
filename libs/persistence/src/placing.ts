// placing.ts: gives queued jobs a node. Decides on a snapshot (`domain/fairness`), locks what was decided on in the
// one order (tenant_usage, nodes, jobs), drops what no longer holds, and applies the rest in one statement. So no quota
// or capacity is overshot when replicas place, admit and record ends at the same time.
import { AttemptId, type JobId, type NodeId, type NodeState, type TenantId } from '@berth/contracts'
import {
  feasible,
  fits,
  NODE_SILENT_MS,
  type NodeSnapshot,
  type Pick,
  PUBLIC_OWNER,
  type QueuedJob,
  schedule,
  type TenantUse,
  type Waiting,
  withJob,
  withRunning,
} from '@berth/domain'
import type { PlacedAttempt } from './repositories.js'
import type { Session, Statement, Store } from './store.js'
import { type QuotaRow, quotaColumns, quotaOf, runCommands } from './views.js'

/** Standard input that one pass loads at most; jobs over it are placed by the next pass. */
const MAX_STDIN_PER_PASS = 32 * 1024 ** 2
/** Queued jobs of a tenant that a pass looks at, and those among which it looks for them; see `waitingHeads`. */
const HEADS_PER_TENANT = 100
const LOOK_AHEAD = 1000

export interface UseRow {
  readonly unfinished_jobs: number
  readonly running_jobs: number
  readonly running_cpu_millis: number
  readonly running_memory_bytes: number
  readonly running_disk_bytes: number
}

/** Columns of `tenant_usage u` as `UseRow`. */
export const useColumns = `u.unfinished_jobs, u.running_jobs, u.running_cpu_millis, u.running_memory_bytes,
  u.running_disk_bytes`

export const useOf = (row: UseRow): TenantUse => ({
  unfinishedJobs: row.unfinished_jobs,
  runningJobs: row.running_jobs,
  cpuMillis: row.running_cpu_millis,
  memoryBytes: row.running_memory_bytes,
  diskBytes: row.running_disk_bytes,
})

/** A node as `nodesJson` selects it. */
export interface NodeJson {
  readonly id: NodeId
  readonly state: NodeState
  readonly seen: number | null
  readonly capacity: NodeSnapshot['capacity']
  readonly used: NodeSnapshot['used']
  readonly platform: string | null
  readonly images: readonly string[]
  readonly tenants: readonly (readonly [TenantId, number])[]
}

export const nodeOf = (node: NodeJson): NodeSnapshot => ({
  id: node.id,
  state: node.state,
  capacity: node.capacity,
  used: node.used,
  platform: node.platform,
  images: new Set(node.images),
  tenants: new Map(node.tenants),
  lastSeenAt: node.seen === null ? null : new Date(node.seen),
})

const nodeJson = (images: string, tenants: string) => `json_build_object(
    'id', n.id, 'state', n.state, 'platform', n.platform, 'seen', extract(epoch FROM n.last_seen_at) * 1000,
    'capacity', json_build_object('cpuMillis', n.capacity_cpu_millis, 'memoryBytes', n.capacity_memory_bytes,
      'diskBytes', n.capacity_disk_bytes, 'sandboxes', n.capacity_sandboxes),
    'used', json_build_object('cpuMillis', n.used_cpu_millis, 'memoryBytes', n.used_memory_bytes,
      'diskBytes', n.used_disk_bytes, 'sandboxes', n.used_sandboxes),
    'images', ${images}, 'tenants', ${tenants})`

/** SQL for the ready nodes as one JSON array; `images` and `tenants` are SQL arrays of what to tell of each. */
export const nodesJson = (images: string, tenants: string): string => {
  const held = `ARRAY(SELECT unnest(n.image_names) INTERSECT SELECT unnest(${images}))`
  const has = `(SELECT coalesce(json_agg(json_build_array(c.tenant_id, c.has)), '[]') FROM (
    SELECT h.tenant_id, count(*) AS has FROM (
      SELECT a.tenant_id FROM attempts a
      WHERE a.node_id = n.id AND a.finished_at IS NULL AND a.tenant_id = ANY(${tenants})
      UNION ALL SELECT s.tenant_id FROM sandboxes s
      WHERE s.node_id = n.id AND s.phase <> 'removed' AND s.tenant_id = ANY(${tenants})) h
    GROUP BY h.tenant_id) c)`
  return `(SELECT coalesce(json_agg(${nodeJson(held, has)}), '[]') FROM nodes n WHERE n.state = 'ready')`
}

/**
 * SQL for whether a node that lacks an image can come to have it: another one that answers holds it, or it came from a
 * registry.
 * @param digest SQL of the image's digest; null: a base image, which nodes have by themselves or not
 * @param tenant SQL of who is to use it
 * @param silent parameter with the time before which a node's last sign of life is too old
 */
export const obtainable = (digest: string, tenant: string, silent: string): string => `(EXISTS (
    SELECT 1 FROM nodes n WHERE n.state IN ('ready', 'draining') AND n.last_seen_at >= ${silent}
      AND n.streams_url IS NOT NULL AND ${digest} = ANY(n.image_names))
  OR EXISTS (SELECT 1 FROM images i
    WHERE i.digest = ${digest} AND i.owner IN (${tenant}, '${PUBLIC_OWNER}') AND i.origin IS NOT NULL))`

/** SQL for what an image is for; null: a base image. @param digest, tenant as of `obtainable` */
export const imagePlatform = (digest: string, tenant: string): string =>
  `(SELECT i.platform FROM images i WHERE i.digest = ${digest} AND i.owner IN (${tenant}, '${PUBLIC_OWNER}') LIMIT 1)`

/**
 * SQL for the common table `waiting`: tenants that may run one more job, with their first queued ones. Jobs larger than
 * any node that lives, or whose image is not to be had, are passed over, among the first 1,000 only: a tenant cannot make this slow with a queue of them.
 * @param now parameter with the time
 * @param silent parameter with the time before which a node's last sign of life is too old
 * @param heads SQL number of jobs per tenant
 */
export const waitingHeads = (now: string, silent: string, heads: string, also = ''): string => `
  largest AS MATERIALIZED (
    SELECT max(n.capacity_cpu_millis) AS cpu, max(n.capacity_memory_bytes) AS memory, max(n.capacity_disk_bytes) AS disk
    FROM nodes n WHERE n.state = 'ready' AND n.last_seen_at >= ${silent}
  ), waiting AS MATERIALIZED (
    SELECT u.tenant_id, t.weight, u.last_placed_at, ${quotaColumns}, ${useColumns},
      h.id, h.image, h.image_digest, ${imagePlatform('h.image_digest', 'u.tenant_id')} AS image_platform, h.cpu_millis, h.memory_bytes, h.disk_bytes, h.stdin_bytes, h.waiting_since, h.priority
    FROM tenant_usage u JOIN tenants t ON t.id = u.tenant_id CROSS JOIN largest l CROSS JOIN LATERAL (
      SELECT q.* FROM (
        SELECT j.id, j.image, j.image_digest, j.cpu_millis, j.memory_bytes, j.disk_bytes, j.stdin_bytes, j.waiting_since, j.priority,
          j.deadline
        FROM jobs j WHERE j.tenant_id = u.tenant_id AND j.state = 'queued' AND j.not_before IS NULL
        ORDER BY j.priority DESC, j.id LIMIT ${LOOK_AHEAD}) q
      WHERE q.cpu_millis <= l.cpu AND q.memory_bytes <= l.memory AND q.disk_bytes <= l.disk
        AND (q.deadline IS NULL OR q.deadline > ${now})
        AND (q.image_digest IS NULL OR ${obtainable('q.image_digest', 'u.tenant_id', silent)})
      ORDER BY q.priority DESC, q.id LIMIT least(${heads}, t.quota_concurrent_jobs - u.running_jobs)) h
    WHERE u.unfinished_jobs > u.running_jobs AND u.running_jobs < t.quota_concurrent_jobs AND t.state = 'active'
      ${also}
  )`

// A job whose back-off is over becomes an ordinary member of the queue. Locked ones are being ended or released now.
const releaseBackOffs: Statement = {
  name: 'release_back_offs',
  text: `UPDATE jobs SET waiting_since = not_before, not_before = NULL WHERE id IN (
      SELECT id FROM jobs WHERE state = 'queued' AND not_before <= $1 ORDER BY not_before LIMIT 1000
      FOR UPDATE SKIP LOCKED)`,
}

interface WaitingRow extends UseRow, QuotaRow {
  readonly tenant_id: TenantId
  readonly weight: number
  readonly last_placed_at: Date | null
  readonly id: JobId
  readonly image: string
  readonly image_digest: string | null
  readonly image_platform: string | null
  readonly cpu_millis: number
  readonly memory_bytes: number
  readonly disk_bytes: number
  readonly stdin_bytes: number
  readonly waiting_since: Date
}

const readWaiting: Statement = {
  name: 'waiting_jobs',
  text: `WITH ${waitingHeads('$1', '$2', '$3::bigint')} SELECT * FROM waiting ORDER BY tenant_id, priority DESC, id`,
}

const readNodes: Statement = {
  name: 'placement_nodes',
  text: `SELECT ${nodesJson('$1::text[]', '$2::text[]')} AS nodes`,
}

/** A queued job with what bounds a pass. */
type Head = QueuedJob & { readonly stdinBytes: number }

/**
 * Whether only nodes that have it run a base image by its name: it is the nodes' own, and not brought. Where none has it
 * any node will do, which then tells so.
 */
export const isLocal = (digest: string | null, key: string, nodes: readonly NodeSnapshot[]): boolean =>
  digest === null && nodes.some(({ images }) => images.has(key))

const headOf = (row: WaitingRow, nodes: readonly NodeSnapshot[]): Head => ({
  id: row.id,
  tenantId: row.tenant_id,
  image: row.image,
  pinned: isLocal(row.image_digest, row.image, nodes),
  platform: row.image_platform,
  cost: { cpuMillis: row.cpu_millis, memoryBytes: row.memory_bytes, diskBytes: row.disk_bytes },
  waitingSince: row.waiting_since,
  stdinBytes: row.stdin_bytes,
})

function tenantsOf(rows: readonly WaitingRow[], nodes: readonly NodeSnapshot[]): readonly Waiting[] {
  const byTenant = new Map<TenantId, WaitingRow[]>()
  for (const row of rows) {
    const known = byTenant.get(row.tenant_id)
    if (known) known.push(row)
    else byTenant.set(row.tenant_id, [row])
  }
  return [...byTenant].flatMap(([tenantId, [first, ...rest]]) =>
    first === undefined
      ? []
      : [
          {
            tenantId,
            weight: first.weight,
            quota: quotaOf(first),
            use: useOf(first),
            lastPlacedAt: first.last_placed_at,
            queue: [first, ...rest].map((row) => headOf(row, nodes)),
          },
        ],
  )
}

/** The longest beginning of a pass whose standard input is not too much to hold; always the first. */
function bounded(picks: readonly Pick[], rows: readonly WaitingRow[]): readonly Pick[] {
  const bytes = new Map(rows.map((row) => [row.id, row.stdin_bytes]))
  let sum = 0
  const end = picks.findIndex(({ job }, i) => {
    sum += bytes.get(job.id) ?? 0
    return i > 0 && sum > MAX_STDIN_PER_PASS
  })
  return end < 0 ? picks : picks.slice(0, end)
}

async function decide(store: Store, limit: number, now: Date): Promise<readonly Pick[]> {
  await store.rows(releaseBackOffs, [now])
  const silent = new Date(now.getTime() - NODE_SILENT_MS)
  const rows = await store.rows<WaitingRow>(readWaiting, [now, silent, Math.min(limit, HEADS_PER_TENANT)])
  if (rows.length === 0) return []
  const images = [...new Set(rows.map((row) => row.image))]
  const ids = [...new Set(rows.map((row) => row.tenant_id))]
  const [read] = await store.rows<{ nodes: readonly NodeJson[] }>(readNodes, [images, ids])
  const nodes = (read?.nodes ?? []).map(nodeOf)
  return bounded(schedule(tenantsOf(rows, nodes), nodes, limit, now), rows)
}

const lockUsage: Statement = {
  name: 'lock_usage',
  text: `SELECT u.tenant_id, t.state, ${quotaColumns}, ${useColumns} FROM tenant_usage u JOIN tenants t ON t.id = u.tenant_id
         WHERE u.tenant_id = ANY($1) ORDER BY u.tenant_id FOR UPDATE OF u`,
}

const lockNodes: Statement = {
  name: 'lock_nodes',
  text: `SELECT ${nodeJson("'[]'::json", "'[]'::json")} AS node FROM nodes n WHERE n.id = ANY($1)
         ORDER BY n.id FOR UPDATE`,
}

const lockJobs: Statement = {
  name: 'lock_queued_jobs',
  text: `SELECT id, attempt_count, waiting_since FROM jobs
         WHERE id = ANY($1) AND state = 'queued' AND not_before IS NULL ORDER BY id FOR UPDATE`,
}

interface LockedJob {
  readonly id: JobId
  readonly attempt_count: number
  readonly waiting_since: Date
}

/** Those of the picks, in order, that still hold on locked rows. */
async function confirm(session: Session, picks: readonly Pick[], now: Date): Promise<readonly (Pick & LockedJob)[]> {
  const tenantRows = await session.rows<{ tenant_id: TenantId; state: string } & QuotaRow & UseRow>(lockUsage, [
    [...new Set(picks.map(({ job }) => job.tenantId))],
  ])
  const nodeRows = await session.rows<{ node: NodeJson }>(lockNodes, [[...new Set(picks.map(({ node }) => node.id))]])
  const jobRows = await session.rows<LockedJob>(lockJobs, [picks.map(({ job }) => job.id)])
  const uses = new Map(tenantRows.filter((row) => row.state === 'active').map((row) => [row.tenant_id, useOf(row)]))
  const quotas = new Map(tenantRows.map((row) => [row.tenant_id, quotaOf(row)]))
  const nodes = new Map(nodeRows.map(({ node }) => [node.id, nodeOf(node)]))
  const jobs = new Map(jobRows.map((row) => [row.id, row]))
  return picks.flatMap((pick) => {
    const [use, quota] = [uses.get(pick.job.tenantId), quotas.get(pick.job.tenantId)]
    const [node, job] = [nodes.get(pick.node.id), jobs.get(pick.job.id)]
    if (!use || !quota || !node || !job) return []
    // Which images the node has was looked at before; it is not read again.
    if (fits(quota, use, pick.job.cost) || !feasible(node, { ...pick.job, pinned: false, platform: null }, now))
      return []
    uses.set(pick.job.tenantId, withRunning(use, pick.job.cost))
    nodes.set(node.id, withJob(node, pick.job))
    return [{ ...pick, ...job }]
  })
}

// Every row that this changes is locked by then.
const applyPicks: Statement = {
  name: 'place_jobs',
  text: `WITH picked AS MATERIALIZED (
      SELECT p.attempt_id, p.job_id, p.node_id, p.queue_ms, j.tenant_id, j.attempt_count + 1 AS number, j.cpu_millis,
        j.memory_bytes, j.disk_bytes
      FROM unnest($2::text[], $3::text[], $4::text[], $5::double precision[]) AS p(attempt_id, job_id, node_id, queue_ms)
      JOIN jobs j ON j.id = p.job_id
    ), job AS (
      UPDATE jobs j SET state = 'placed', attempt_count = p.number FROM picked p WHERE j.id = p.job_id
    ), attempt AS (
      INSERT INTO attempts (id, job_id, tenant_id, node_id, number, state, placed_at, commanded_at, phases)
      SELECT p.attempt_id, p.job_id, p.tenant_id, p.node_id, p.number, 'placed', $1, $1, jsonb_build_object(
        'queueMs', p.queue_ms, 'placeMs', NULL, 'imageMs', NULL, 'rootfsMs', NULL, 'startMs', NULL, 'runMs', NULL, 'finishMs', NULL)
      FROM picked p
    ), node AS (
      UPDATE nodes n SET
        used_cpu_millis = n.used_cpu_millis + s.cpu, used_memory_bytes = n.used_memory_bytes + s.memory,
        used_disk_bytes = n.used_disk_bytes + s.disk, used_sandboxes = n.used_sandboxes + s.jobs
      FROM (SELECT node_id, sum(cpu_millis)::bigint AS cpu, sum(memory_bytes)::bigint AS memory,
              sum(disk_bytes)::bigint AS disk, count(*)::integer AS jobs FROM picked GROUP BY node_id) s
      WHERE n.id = s.node_id
    ), counted AS (
      UPDATE tenant_usage u SET
        running_jobs = u.running_jobs + s.jobs, running_cpu_millis = u.running_cpu_millis + s.cpu,
        running_memory_bytes = u.running_memory_bytes + s.memory, running_disk_bytes = u.running_disk_bytes + s.disk,
        last_placed_at = $1, event_number = u.event_number + s.jobs
      FROM (SELECT tenant_id, sum(cpu_millis)::bigint AS cpu, sum(memory_bytes)::bigint AS memory,
              sum(disk_bytes)::bigint AS disk, count(*)::integer AS jobs FROM picked GROUP BY tenant_id) s
      WHERE u.tenant_id = s.tenant_id RETURNING u.tenant_id, u.event_number - s.jobs AS before
    )
    INSERT INTO events (tenant_id, number, type, at, subject, by, data)
    SELECT c.tenant_id, c.before + row_number() OVER (PARTITION BY c.tenant_id ORDER BY p.attempt_id), 'job.placed', $1,
      p.job_id, 'api', jsonb_build_object('attempt', p.number, 'nodeId', p.node_id)
    FROM counted c JOIN picked p ON p.tenant_id = c.tenant_id`,
}

async function apply(store: Store, picks: readonly Pick[], now: Date): Promise<readonly AttemptId[]> {
  return store.transaction(async (session) => {
    const held = await confirm(session, picks, now)
    if (held.length === 0) return []
    const ids = held.map(() => AttemptId.parse(store.ids.mint('attempt')))
    await session.rows(applyPicks, [
      now,
      ids,
      held.map(({ job }) => job.id),
      held.map(({ node }) => node.id),
      held.map((job) => Math.max(0, now.getTime() - job.waiting_since.getTime())),
    ])
    return ids
  })
}

/** How often a pass starts anew because all that it decided was overtaken. */
const PASSES = 3

/**
 * Places up to `limit` queued jobs in fair order.
 * @returns what was placed; fewer than could be where that would be too much input to hold: call again until empty
 */
export async function placeQueued(store: Store, limit: number): Promise<readonly PlacedAttempt[]> {
  for (let pass = 0; pass < PASSES; pass++) {
    const now = store.clock.now()
    const picks = await decide(store, limit, now)
    if (picks.length === 0) return []
    const placed = await apply(store, picks, now)
    if (placed.length > 0) return runCommands(store, placed)
  }
  return []
}
