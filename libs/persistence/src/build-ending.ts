// build-ending.ts: the end of a build, by itself or by whoever finds it. It is given once, by the statement that finds the
// build running, and what the build held is given back in the same statement. Lock order: tenant_usage, nodes, builds,
// images.
import type { BuildId, BuildReason, HeldImage, NodeId, TenantId } from '@berth/contracts'
import { type BuildEvent, buildLifecycle } from '@berth/domain'
import type { BuildEnd, BuildRecord, Builds } from './build-repository.js'
import { addWithin, listed } from './images.js'
import type { Access } from './repositories.js'
import type { Session, Statement, Store } from './store.js'
import { iso } from './views.js'

/** How long a build goes on without a word of the process that carries it out, in milliseconds. */
export const LEASE_MS = 20_000
/** Reconciling happens every second; a longer gap than this means that nobody could renew meanwhile. */
const GAP_MS = 5_000
/** Builds that one call ends at most. */
const PER_CALL = 100

/** Rows of `builds b` as `BuildRow`. */
export const buildColumns = `json_build_object(
    'id', b.id, 'tenantId', b.tenant_id, 'state', b.state, 'names', b.names, 'options', b.options, 'limits', b.limits,
    'parallel', b.parallel, 'nodeId', b.node_id, 'image', b.image_digest, 'reason', b.reason,
    'createdAt', ${iso('b.created_at')}, 'startedAt', ${iso('b.started_at')}, 'endedAt', ${iso('b.ended_at')}) AS build`

export interface BuildRow {
  readonly build: BuildRecord
}

export const readBuild: Statement = {
  name: 'read_build',
  text: `SELECT ${buildColumns}, b.steps FROM builds b WHERE b.id = $1 AND ($2::text IS NULL OR b.tenant_id = $2)`,
}

export const tenantOf = (access: Access): TenantId | null => (access === 'operator' ? null : access.tenantId)

// The locking selects are one chain (`held`), so that the rows are locked in order whatever the plan.
const endBuild: Statement = {
  name: 'end_build',
  text: `WITH usage AS MATERIALIZED (
      SELECT tenant_id FROM tenant_usage WHERE tenant_id = $1 FOR UPDATE
    ), node AS MATERIALIZED (
      SELECT n.id FROM usage JOIN nodes n ON n.id = $2 FOR UPDATE OF n
    ), held AS MATERIALIZED (
      SELECT count(n.id) AS nodes FROM usage u LEFT JOIN node n ON true
    ), build AS (
      UPDATE builds b SET state = $4, reason = $5, image_digest = $6, ended_at = $7 FROM held
      WHERE b.id = $3 AND b.state = 'running' RETURNING b.*
    ), free_node AS (
      UPDATE nodes n SET
        used_cpu_millis = n.used_cpu_millis - b.cpu_millis, used_memory_bytes = n.used_memory_bytes - b.memory_bytes,
        used_disk_bytes = n.used_disk_bytes - b.disk_bytes, used_sandboxes = n.used_sandboxes - b.parallel
      FROM build b WHERE n.id = $2
    ), free_usage AS (
      UPDATE tenant_usage u SET
        unfinished_jobs = u.unfinished_jobs - 1, running_jobs = u.running_jobs - 1,
        running_cpu_millis = u.running_cpu_millis - b.cpu_millis,
        running_memory_bytes = u.running_memory_bytes - b.memory_bytes,
        running_disk_bytes = u.running_disk_bytes - b.disk_bytes, event_number = u.event_number + 1
      FROM build b WHERE u.tenant_id = $1 RETURNING u.event_number
    ), told AS (
      INSERT INTO events (tenant_id, number, type, at, subject, by, data)
      SELECT $1, f.event_number, 'build.' || $4, $7, b.id, $8,
        jsonb_build_object('image', b.image_digest, 'tags', b.names, 'reason', b.reason - 'at' - 'by')
      FROM free_usage f, build b
    )
    SELECT ${buildColumns} FROM build b`,
}

type Ended = { readonly event: BuildEvent; readonly reason: BuildReason | null; readonly image: string | null }

async function endWithin(
  session: Session,
  build: BuildRecord,
  { event, reason, image }: Ended,
  by: string,
  now: Date,
): Promise<BuildRecord | undefined> {
  if (!buildLifecycle.allowed(build.state, event)) return undefined
  const state = buildLifecycle.next(build.state, event, build.id)
  const text = reason && JSON.stringify(reason)
  const values = [build.tenantId, build.nodeId, build.id, state, text, image, now, by]
  return (await session.rows<BuildRow>(endBuild, values))[0]?.build
}

/** What JSON text may hold and a database's may not: NUL, half of a surrogate pair. */
const storable = (text: string): string => Buffer.from(text).toString().replaceAll('\0', '\ufffd')

/** Ends a build and gives back what it holds, exactly once. @returns undefined where it has ended, or is none */
export async function endOne(store: Store, access: Access, id: BuildId, { event, ...reason }: BuildEnd) {
  const [row] = await store.rows<BuildRow>(readBuild, [id, tenantOf(access)])
  if (!row) return undefined
  const now = store.clock.now()
  const told = {
    ...reason,
    message: storable(reason.message),
    instruction: reason.instruction === null ? null : storable(reason.instruction),
    at: now.toISOString(),
  }
  return endWithin(store, row.build, { event, reason: told, image: null }, reason.by, now)
}

/** Makes the image the tenant's and ends the build, both or none. @returns undefined where it has ended otherwise */
export async function succeedOne(
  store: Store,
  id: BuildId,
  image: HeldImage,
  by: string,
): ReturnType<Builds['succeed']> {
  const [row] = await store.rows<BuildRow>(readBuild, [id, null])
  if (!row) return undefined
  const { tenantId, nodeId, names } = row.build
  const now = store.clock.now()
  const images = [{ image, references: names }]
  const build = await addWithin(store, { owner: tenantId, images, nodeId, by }, now, (session) =>
    endWithin(session, row.build, { event: 'succeed', reason: null, image: image.digest }, by, now),
  )
  const [added] = build ? await listed(store, tenantId, [image.digest]) : []
  return build && added && { build, image: added }
}

const abandoned: Statement = {
  name: 'abandoned_builds',
  text: `SELECT ${buildColumns}, n.id IS NOT NULL AND n.state <> 'lost' AS node_lives
    FROM builds b LEFT JOIN nodes n ON n.id = b.node_id
    WHERE b.state = 'running' AND (b.lease_until < $1 OR n.id IS NULL OR n.state = 'lost')
    ORDER BY b.lease_until LIMIT ${PER_CALL}`,
}

const lostBy = (nodeLives: boolean): BuildEnd => ({
  event: 'fail',
  code: nodeLives ? 'unavailable' : 'node_unreachable',
  message: nodeLives
    ? 'the API process that carried the build out is gone'
    : 'the node of the build has been silent for too long, or was removed',
  line: null,
  instruction: null,
  by: 'api',
})

/** Makes `reconcile`: a lease counts as over only when it could have been renewed all the time. */
export function openBuildReconciler(store: Store): Builds['reconcile'] {
  let listeningSince: number | undefined
  let lastCall = 0
  return async (now) => {
    if (listeningSince === undefined || now.getTime() - lastCall > GAP_MS) listeningSince = now.getTime()
    const rows = await store.rows<BuildRow & { node_lives: boolean }>(abandoned, [now])
    const heard = now.getTime() - listeningSince > LEASE_MS
    const ended: BuildRecord[] = []
    for (const { build, node_lives } of rows) {
      if (node_lives && !heard) continue
      const record = await endOne(store, 'operator', build.id, lostBy(node_lives))
      if (record) ended.push(record)
    }
    lastCall = now.getTime()
    return ended
  }
}

const runningOn: Statement = {
  name: 'builds_of_node',
  text: `SELECT ${buildColumns} FROM builds b WHERE b.node_id = $1 AND b.state = 'running' ORDER BY b.id LIMIT ${PER_CALL}`,
}

/** Ends builds of a node that is removed. @returns how many there were, and those of them that nobody else has ended */
export async function loseBuildsOf(store: Store, id: NodeId): Promise<{ found: number; ended: BuildRecord[] }> {
  const rows = await store.rows<BuildRow>(runningOn, [id])
  const ended: BuildRecord[] = []
  for (const { build } of rows) {
    const record = await endOne(store, 'operator', build.id, lostBy(false))
    if (record) ended.push(record)
  }
  return { found: rows.length, ended }
}
