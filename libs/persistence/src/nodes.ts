// nodes.ts: the machines, what they offer, and what they say they have.
import {
  type AttemptId,
  type Capacity,
  Failure,
  type Node,
  NodeId,
  NodeImage,
  NodeState,
  type TenantId,
} from '@berth/contracts'
import { compareStanding, otherLimits, toMillis, type WantedAttempt } from '@berth/domain'
import { loseBuildsOf } from './build-ending.js'
import type { BuildRecord } from './build-repository.js'
import { endAttempt } from './ending.js'
import { NOTE_MS, orphanedImages } from './images.js'
import { acknowledge, lostEnd } from './overdue.js'
import type { HeartbeatBody, JobChange, JoinBody, Nodes, PageRequest, Standing } from './repositories.js'
import { compareSandboxes, loseSandboxesOf } from './sandbox-overdue.js'
import { brokenConstraint, type Statement, type Store } from './store.js'
import { pageArguments, pageOfRows } from './tenants.js'
import { type QuotaRow, quotaColumns, quotaOf, tenantLimits } from './views.js'

const nodeNotFound = (id: NodeId) => new Failure('node_not_found', `there is no node ${id}`)

interface NodeRecord {
  readonly id: string
  readonly name: string
  readonly state: string
  readonly capacityCpuMillis: number
  readonly capacityMemoryBytes: bigint
  readonly capacityDiskBytes: bigint
  readonly capacitySandboxes: number
  readonly usedCpuMillis: bigint
  readonly usedMemoryBytes: bigint
  readonly usedDiskBytes: bigint
  readonly usedSandboxes: number
  readonly images: unknown
  readonly runtime: string | null
  readonly platform: string | null
  readonly createdAt: Date
  readonly lastSeenAt: Date | null
}

const nodeOf = (row: NodeRecord): Node => ({
  id: NodeId.parse(row.id),
  name: row.name,
  state: NodeState.parse(row.state),
  capacity: {
    cpus: row.capacityCpuMillis / 1000,
    memoryBytes: Number(row.capacityMemoryBytes),
    diskBytes: Number(row.capacityDiskBytes),
    sandboxes: row.capacitySandboxes,
  },
  used: {
    cpus: Number(row.usedCpuMillis) / 1000,
    memoryBytes: Number(row.usedMemoryBytes),
    diskBytes: Number(row.usedDiskBytes),
    sandboxes: row.usedSandboxes,
  },
  images: NodeImage.array().parse(row.images),
  runtime: row.runtime,
  platform: row.platform,
  createdAt: row.createdAt.toISOString(),
  lastSeenAt: row.lastSeenAt?.toISOString() ?? null,
})

async function get(store: Store, id: NodeId): Promise<Node> {
  const row = await store.prisma('read node', (client) => client.node.findUnique({ where: { id } }))
  if (!row) throw nodeNotFound(id)
  return nodeOf(row)
}

async function list(store: Store, page: PageRequest) {
  const rows = await store.prisma('list nodes', (client) => client.node.findMany(pageArguments(page)))
  return pageOfRows(rows, page.limit, nodeOf)
}

const insertNode: Statement = {
  name: 'insert_node',
  text: 'INSERT INTO nodes (id, name, token_hash, created_at) VALUES ($1, $2, $3, $4)',
}

async function create(store: Store, node: Parameters<Nodes['create']>[0]): Promise<Node> {
  const id = NodeId.parse(store.ids.mint('node'))
  try {
    await store.rows(insertNode, [id, node.name, Buffer.from(node.tokenHash), store.clock.now()])
  } catch (error) {
    if (brokenConstraint(error) !== 'nodes_name_key') throw error
    throw new Failure('name_taken', `there is a node named ${node.name}`)
  }
  return get(store, id)
}

const findByToken: Statement = {
  name: 'node_by_token',
  text: 'SELECT id, name, state FROM nodes WHERE token_hash = $1',
}

const findNode: Statement = {
  name: 'node_exists',
  text: 'SELECT FROM nodes WHERE id = $1',
}

const rotateToken: Statement = {
  name: 'rotate_node_token',
  text: 'UPDATE nodes SET token_hash = $2 WHERE id = $1',
}

const updateState: Statement = {
  name: 'update_node_state',
  text: `UPDATE nodes SET state = $2, drain = $2 = 'draining' WHERE id = $1 AND state IN ('ready', 'draining')
         RETURNING id`,
}

async function update(store: Store, id: NodeId, { state }: { readonly state: 'ready' | 'draining' }): Promise<Node> {
  const [row] = await store.rows<{ id: NodeId }>(updateState, [id, state])
  const node = await get(store, id)
  if (row) return node
  const message = `node ${id} is ${node.state}; only a ready or draining one can become ${state}`
  throw new Failure('wrong_state', message, { state: node.state })
}

// Draining as well: a heartbeat that comes in between must not bring it back into service.
const giveUpNode: Statement = {
  name: 'give_up_node',
  text: `UPDATE nodes SET state = 'lost', drain = true WHERE id = $1 RETURNING id`,
}

const currentAttempts: Statement = {
  name: 'current_attempts',
  text: 'SELECT id FROM attempts WHERE node_id = $1 AND finished_at IS NULL ORDER BY id LIMIT 500',
}

const deleteUnused: Statement = {
  name: 'delete_node',
  text: 'DELETE FROM nodes WHERE id = $1 AND used_sandboxes = 0 RETURNING id',
}

async function remove(store: Store, id: NodeId): ReturnType<Nodes['delete']> {
  const [known] = await store.rows<{ id: NodeId }>(giveUpNode, [id])
  if (!known) throw nodeNotFound(id)
  const sandboxes = await loseSandboxesOf(store, id)
  const jobs: JobChange[] = []
  const builds: BuildRecord[] = []
  // Ends: nothing is placed on the node any more, so each round leaves fewer attempts and builds.
  for (;;) {
    const rows = await store.rows<{ id: AttemptId }>(currentAttempts, [id])
    for (const row of rows) {
      const end = lostEnd('node_lost', 'the node was removed', store.clock.now())
      const change = await endAttempt(store, row.id, end, () => true)
      if (change) jobs.push(change)
    }
    const { found, ended } = await loseBuildsOf(store, id)
    builds.push(...ended)
    const [gone] = await store.rows<{ id: NodeId }>(deleteUnused, [id])
    if (gone || rows.length + found === 0) return { jobs, sandboxes, builds }
  }
}

/** Names by which an image may be placed: `python:latest` is also `python`, and any is its digest. */
const namesOf = (images: readonly NodeImage[]): readonly string[] => {
  const names = images.flatMap(({ reference, digest }) => {
    if (reference === undefined) return [digest]
    const repository = reference.replace(/:[^:/]*$/, '')
    return [reference, reference.replace(/:latest$/, ''), digest, `${repository}@${digest}`]
  })
  return [...new Set(names)]
}

// A pending node has not joined: nobody knows yet where its streams are.
const noteStanding: Statement = {
  name: 'note_standing',
  text: `UPDATE nodes SET
           state = CASE WHEN state = 'pending' AND NOT $9 THEN state WHEN drain THEN 'draining' ELSE 'ready' END,
           last_seen_at = greatest(last_seen_at, $2), capacity_cpu_millis = $3, capacity_memory_bytes = $4,
           capacity_disk_bytes = $5, capacity_sandboxes = $6,
           images = CASE WHEN images = $7::jsonb THEN images ELSE $7::jsonb END, image_names = $8::text[] || CASE WHEN images_noted_at >= $10 THEN images_noted ELSE '{}' END
         WHERE id = $1 RETURNING id`,
}

const noteJoined: Statement = {
  name: 'note_joined',
  text: 'UPDATE nodes SET runtime = $2, streams_url = $3, certificate = $4, platform = $5 WHERE id = $1',
}

interface WantedRow {
  readonly id: AttemptId
  readonly generation: number
  readonly acknowledged_generation: number
  readonly commanded_at: Date
  readonly missing_since: Date | null
}

const wantedAttempts: Statement = {
  name: 'wanted_attempts',
  text: `SELECT id, generation, acknowledged_generation, commanded_at, missing_since FROM attempts
         WHERE node_id = $1 AND finished_at IS NULL`,
}

const wantedOf = (row: WantedRow): WantedAttempt => ({
  id: row.id,
  generation: row.generation,
  acknowledgedGeneration: row.acknowledged_generation,
  commandedAt: row.commanded_at,
  missingSince: row.missing_since,
})

const noteMissing: Statement = {
  name: 'note_missing',
  text: `UPDATE attempts SET missing_since = CASE WHEN id = ANY($2) THEN $4::timestamptz END
         WHERE node_id = $1 AND id = ANY($2 || $3::text[]) AND finished_at IS NULL`,
}

// An attempt whose end this node has reported may still be listed, in a heartbeat that the report overtook; ending and
// forgetting it would take its output away.
const reportedHere: Statement = {
  name: 'reported_attempts',
  text: 'SELECT id FROM attempts WHERE id = ANY($1) AND node_id = $2 AND (reported OR finished_at IS NULL)',
}

async function compareAttempts(store: Store, id: NodeId, said: HeartbeatBody['attempts'], now: Date) {
  const wanted = await store.rows<WantedRow>(wantedAttempts, [id])
  const { acknowledged, missing, found, strange } = compareStanding(wanted.map(wantedOf), said)
  await acknowledge(store, id, acknowledged)
  if (missing.length + found.length > 0) await store.rows(noteMissing, [id, missing, found, now])
  if (strange.length === 0) return []
  const known = await store.rows<{ id: AttemptId }>(reportedHere, [strange, id])
  const keep = new Set(known.map((row) => row.id))
  return strange.filter((one) => !keep.has(one))
}

const readQuotas: Statement = {
  name: 'tenant_quotas',
  text: `SELECT t.id, ${quotaColumns} FROM tenants t WHERE t.id = ANY($1)`,
}

async function compareTenants(store: Store, said: HeartbeatBody['tenants']): Promise<Standing['tenantLimits']> {
  if (said.length === 0) return []
  const rows = await store.rows<QuotaRow & { readonly id: TenantId }>(readQuotas, [said.map(({ id }) => id)])
  return otherLimits(said, new Map(rows.map((row) => [row.id, tenantLimits(quotaOf(row))])))
}

async function compareWith(store: Store, id: NodeId, body: HeartbeatBody, now: Date): Promise<Standing> {
  const unwanted = await compareAttempts(store, id, body.attempts, now)
  const sandboxes = await compareSandboxes(store, id, body.sandboxes, now)
  const tenantLimits = await compareTenants(store, body.tenants)
  const unwantedImages = await orphanedImages(store, body.images, now)
  return { unwanted, unwantedSandboxes: sandboxes.unwanted, unwantedImages, tenantLimits, changed: sandboxes.changed }
}

const standingValues = (id: NodeId, now: Date, capacity: Capacity, images: readonly NodeImage[], joins: boolean) => [
  id,
  now,
  capacity.cpus === 0 ? 0 : toMillis(capacity.cpus),
  capacity.memoryBytes,
  capacity.diskBytes,
  capacity.sandboxes,
  JSON.stringify(images),
  namesOf(images),
  joins,
  new Date(now.getTime() - NOTE_MS),
]

async function heartbeat(store: Store, id: NodeId, body: HeartbeatBody): Promise<Standing> {
  const now = store.clock.now()
  const [row] = await store.rows<{ id: NodeId }>(
    noteStanding,
    standingValues(id, now, body.capacity, body.images, false),
  )
  if (!row) throw nodeNotFound(id)
  return compareWith(store, id, body, now)
}

async function join(store: Store, id: NodeId, body: JoinBody): Promise<Standing> {
  const now = store.clock.now()
  const { runtime, streams, platform = null } = body
  // Streams first: a node that takes work can be asked for its output.
  await store.rows(noteJoined, [id, runtime, streams.url, streams.certificate, platform])
  const [row] = await store.rows<{ id: NodeId }>(
    noteStanding,
    standingValues(id, now, body.capacity, body.images, true),
  )
  if (!row) throw nodeNotFound(id)
  return compareWith(store, id, body, now)
}

const readStreams: Statement = {
  name: 'node_streams',
  text: `SELECT streams_url AS url, certificate FROM nodes
         WHERE id = $1 AND streams_url IS NOT NULL AND certificate IS NOT NULL`,
}

export const openNodes = (store: Store): Nodes => ({
  create: (node) => create(store, node),
  byToken: async (hash) => {
    const [row] = await store.rows<{ id: NodeId; name: string; state: NodeState }>(findByToken, [Buffer.from(hash)])
    return row
  },
  get: (id) => get(store, id),
  exists: async (id) => (await store.rows(findNode, [id])).length > 0,
  list: (page) => list(store, page),
  update: (id, change) => update(store, id, change),
  rotateToken: async (id, hash) => {
    await store.rows(rotateToken, [id, Buffer.from(hash)])
    return get(store, id)
  },
  delete: (id) => remove(store, id),
  join: (id, body) => join(store, id, body),
  heartbeat: (id, body) => heartbeat(store, id, body),
  streams: async (id) => {
    const [row] = await store.rows<{ url: string; certificate: string }>(readStreams, [id])
    return row
  },
})
