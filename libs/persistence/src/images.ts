// images.ts: who has which image under which name. The content is on nodes; a row here is what makes it somebody's.
//
// Whatever changes what an owner has runs under the lock of the tenant's usage row (of the operator: an advisory one):
// there the bytes of distinct layers are counted anew, so pulls that end at the same time cannot overshoot the quota.
// When images go, the owner's epoch grows under that lock: an admission that resolved a name before resolves it again.
import { Failure, type HeldImage, type NodeId, QuotaExceeded, type TenantId } from '@berth/contracts'
import { bytesOf, type ImageOwner, type ImageWanted, type LayerUse, NODE_SILENT_MS, PUBLIC_OWNER } from '@berth/domain'
import { openImageContents } from './image-contents.js'
import { imageNotFound, lockOwner, recount } from './image-owner.js'
import { openImageRemoval } from './image-removal.js'
import { hasDigest } from './image-resolving.js'
import { openLogins } from './logins.js'
import type {
  BaseImage,
  ImageFilter,
  ImageOrigin,
  ImageRecord,
  ImageScope,
  Images,
  NewImages,
  PageRequest,
} from './repositories.js'
import { type Session, type Statement, type Store, sqlState } from './store.js'
import { tenantNotFound } from './tenants.js'
import { labelConditions } from './views.js'

/** Images, and names, that one owner may have: their rows, as apart from their bytes, cost nobody else much. */
const MAX_ROWS = 10_000

// $1 owner, $2 base images as JSON. An own name hides a public one, that one a base image's.
const visible = `
  WITH base AS MATERIALIZED (
    SELECT b.digest, b."references", b."sizeBytes" AS bytes
    FROM json_to_recordset($2::json) AS b(digest text, "references" json, "sizeBytes" bigint)
  ), visible AS (
    SELECT DISTINCT ON (c.digest) c.* FROM (
      SELECT CASE i.owner WHEN '${PUBLIC_OWNER}' THEN 2 ELSE 1 END AS rank, i.owner, i.digest, i.manifest_digest,
        i.platform, i.labels, i.built_at, i.added_at, NULL::bigint AS base_bytes
      FROM images i WHERE i.owner IN ($1, '${PUBLIC_OWNER}')
      UNION ALL
      SELECT 3, NULL, b.digest, NULL, NULL, '{}'::jsonb, NULL, 'epoch'::timestamptz(3), b.bytes FROM base b) c
    ORDER BY c.digest, c.rank
  ), named AS MATERIALIZED (
    SELECT DISTINCT ON (c.reference) c.reference, c.digest FROM (
      SELECT CASE n.owner WHEN '${PUBLIC_OWNER}' THEN 2 ELSE 1 END AS rank, n.reference, n.digest
      FROM image_names n WHERE n.owner IN ($1, '${PUBLIC_OWNER}')
      UNION ALL SELECT 3, r.reference, b.digest FROM base b, json_array_elements_text(b."references") AS r(reference)) c
    ORDER BY c.reference, c.rank, c.digest
  )`

const columns = `v.owner, v.digest, v.manifest_digest, v.platform, v.labels, v.built_at, v.base_bytes,
  extract(epoch FROM v.added_at)::double precision * 1000 AS added_ms,
  ARRAY(SELECT n.reference FROM named n WHERE n.digest = v.digest ORDER BY n.reference) AS references,
  EXISTS (SELECT 1 FROM base b WHERE b.digest = v.digest) AS base,
  (SELECT count(*)::integer FROM nodes n WHERE n.state = 'ready' AND v.digest = ANY(n.image_names)) AS nodes,
  coalesce((SELECT json_agg(json_build_object('diffId', l.diff_id, 'bytes', l.bytes, 'images', (
      SELECT count(*) FROM image_layers o WHERE o.owner = l.owner AND o.diff_id = l.diff_id)))
    FROM image_layers l WHERE l.owner = v.owner AND l.digest = v.digest), '[]') AS layers`

/** Of the configuration, of the manifest, or what it was pulled by. */
const byDigest = (digest: string) => `(v.digest = ${digest} OR v.manifest_digest = ${digest}
  OR v.digest IN (SELECT n.digest FROM named n WHERE ${hasDigest('n.reference', digest)}))`

interface ImageRow {
  readonly owner: ImageOwner | null
  readonly digest: string
  readonly manifest_digest: string | null
  readonly platform: string | null
  readonly labels: Readonly<Record<string, string>>
  readonly built_at: string | null
  readonly base_bytes: number | null
  readonly added_ms: number
  readonly references: readonly string[]
  readonly base: boolean
  readonly nodes: number
  readonly layers: readonly LayerUse[]
}

const recordOf = (row: ImageRow): ImageRecord => {
  const { sizeBytes, uniqueBytes, sharedBytes } = bytesOf(row.layers)
  return {
    digest: row.digest,
    manifestDigest: row.manifest_digest,
    references: row.references,
    visibility: row.owner === null || row.owner === PUBLIC_OWNER ? 'public' : 'tenant',
    base: row.base,
    platform: row.platform,
    labels: row.labels,
    sizeBytes: row.base_bytes ?? sizeBytes,
    uniqueBytes: row.base_bytes ?? uniqueBytes,
    sharedBytes,
    nodes: row.nodes,
    createdAt: row.built_at,
    addedAt: row.owner === null ? null : new Date(row.added_ms),
  }
}

/** Where in the list an image is; sorts as the list does. */
const positionOf = (row: ImageRow): string => `${Math.round(row.added_ms)}.${row.digest}`

function after(position: string | undefined, parameter: (value: unknown) => string): readonly string[] {
  if (position === undefined) return []
  const [ms = '', digest = ''] = position.split('.')
  return [`(v.added_at, v.digest) < (${parameter(new Date(Number(ms)))}::timestamptz(3), ${parameter(digest)}::text)`]
}

async function list({ rows }: Session, { owner, base }: ImageScope, filter: ImageFilter, page: PageRequest) {
  const values: unknown[] = [owner, JSON.stringify(base)]
  const parameter = (value: unknown) => `$${values.push(value)}`
  const named = (condition: string) => `EXISTS (SELECT 1 FROM named n WHERE n.digest = v.digest AND ${condition})`
  const { reference, prefix, digest, dangling, label = [], digests } = filter
  const conditions = [
    after(page.after, parameter),
    reference === undefined ? [] : [named(`n.reference = ${parameter(reference)}`)],
    prefix === undefined ? [] : [named(`starts_with(n.reference, ${parameter(prefix)})`)],
    digest === undefined ? [] : [byDigest(parameter(digest))],
    dangling === undefined ? [] : [`${dangling ? 'NOT ' : ''}${named('true')}`],
    digests === undefined ? [] : [`v.digest = ANY(${parameter(digests)})`],
    labelConditions('v.labels', label, parameter),
  ].flat()
  const where = conditions.length > 0 ? `WHERE ${conditions.join(' AND ')}` : ''
  const limit = parameter(page.limit + 1)
  const text = `${visible} SELECT ${columns} FROM visible v ${where} ORDER BY v.added_at DESC, v.digest DESC LIMIT ${limit}`
  const found = await rows<ImageRow>({ text }, values)
  const shown = found.slice(0, page.limit)
  const last = shown.at(-1)
  return { items: shown.map(recordOf), next: found.length > page.limit && last ? positionOf(last) : null }
}

const readOne: Statement = {
  name: 'image',
  text: `${visible} SELECT ${columns},
           (SELECT i.held FROM images i WHERE i.owner = v.owner AND i.digest = v.digest) AS held
         FROM visible v
         WHERE v.digest = (SELECT n.digest FROM named n WHERE n.reference = $3::text) OR ${byDigest('$4::text')}
         ORDER BY v.rank, v.added_at DESC LIMIT 1`,
}

/** @throws image_not_found */
async function get(store: Session, { owner, base }: ImageScope, wanted: ImageWanted) {
  const values = [owner, JSON.stringify(base), wanted.reference, wanted.digest]
  const [row] = await store.rows<ImageRow & { held: HeldImage | null }>(readOne, values)
  if (!row) throw imageNotFound(wanted.text)
  return { image: recordOf(row), held: row.held }
}

// The range is for the index: nothing else is between a beginning and that with the letter after the last digit, by whatever
// rules the database sorts. A batch may have a thousand names that might be such beginnings.
const readBeginning: Statement = {
  name: 'images_beginning',
  text: `SELECT DISTINCT i.digest FROM images i
         WHERE i.owner IN ($1, '${PUBLIC_OWNER}') AND i.digest BETWEEN $3::text AND $3::text || 'g'
           AND starts_with(i.digest, $3::text)
           AND NOT EXISTS (SELECT 1 FROM image_names n WHERE n.owner IN ($1, '${PUBLIC_OWNER}') AND n.reference = $2)
         LIMIT 2`,
}

async function beginning({ rows }: Session, owner: ImageOwner, reference: string, prefix: string) {
  return (await rows<{ digest: string }>(readBeginning, [owner, reference, prefix])).map(({ digest }) => digest)
}

/**
 * How long it counts that a node was seen to take an image in, in milliseconds: its heartbeats, every 2 s, tell of it from
 * then on, but one that was on its way does not.
 */
export const NOTE_MS = 5000

const noteHolder: Statement = {
  name: 'note_image_holder',
  text: `UPDATE nodes SET image_names = image_names || $2::text[], images_noted_at = $3,
           images_noted = CASE WHEN images_noted_at >= $4 THEN images_noted || $2::text[] ELSE $2::text[] END
         WHERE id = $1`,
}
const insertImages: Statement = {
  name: 'insert_images',
  text: `INSERT INTO images (owner, digest, manifest_digest, platform, built_at, held, labels, added_at, added_by, origin)
         SELECT $1, r.digest, r."manifestDigest", r.platform, r."createdAt", r.held, r.labels, $3, $4, r.origin
         FROM json_to_recordset($2::json) AS r(digest text, "manifestDigest" text, platform text, "createdAt" text,
           held json, labels jsonb, origin text)
         ON CONFLICT (owner, digest) DO UPDATE SET origin = excluded.origin WHERE excluded.origin IS NOT NULL`,
}
const insertLayers: Statement = {
  name: 'insert_image_layers',
  text: `INSERT INTO image_layers (owner, digest, diff_id, bytes)
         SELECT $1, r.digest, r."diffId", max(r.bytes)
         FROM json_to_recordset($2::json) AS r(digest text, "diffId" text, bytes bigint)
         GROUP BY r.digest, r."diffId" ON CONFLICT DO NOTHING`,
}
const insertNames: Statement = {
  name: 'insert_image_names',
  text: `INSERT INTO image_names (owner, reference, digest, named_at)
         SELECT $1, r.reference, r.digest, $4 FROM unnest($2::text[], $3::text[]) AS r(reference, digest)
         ON CONFLICT (owner, reference) DO UPDATE SET digest = excluded.digest, named_at = excluded.named_at`,
}
const countRows: Statement = {
  name: 'count_images',
  text: `SELECT (SELECT count(*) FROM images WHERE owner = $1) AS images,
           (SELECT count(*) FROM image_names WHERE owner = $1) AS names`,
}

async function insert(session: Session, { owner, images, by }: NewImages, now: Date): Promise<void> {
  const rows = images.map(({ image, origin = null }) => ({
    ...image,
    held: image,
    labels: image.settings.labels,
    origin,
  }))
  await session.rows(insertImages, [owner, JSON.stringify(rows), now, by])
  const layers = images.flatMap(({ image: { digest, layers } }) =>
    layers.map(({ diffId, unpackedBytes }) => ({ digest, diffId, bytes: unpackedBytes })),
  )
  await session.rows(insertLayers, [owner, JSON.stringify(layers)])
  // Of two images that claim one name in the same archive the last has it.
  const names = new Map(images.flatMap(({ image, references }) => references.map((name) => [name, image.digest])))
  await session.rows(insertNames, [owner, [...names.keys()], [...names.values()], now])
  const [counted] = await session.rows<{ images: number; names: number }>(countRows, [owner])
  const most = Math.max(counted?.images ?? 0, counted?.names ?? 0)
  if (most > MAX_ROWS)
    throw new Failure('quota_exceeded', `there may be ${MAX_ROWS} images, and as many names; remove some`)
}

/** What text in JSON a database cannot hold (PostgreSQL, appendix A): NUL, half of a surrogate pair. */
const badText = new Set(['22P02', '22P05', '22021'])

/**
 * Makes images the owner's within a transaction that begins with something else.
 * @param first what is done before; where it gives nothing, nothing is added
 * @throws as `Images.add`
 */
export async function addWithin<T>(
  store: Store,
  asked: NewImages,
  now: Date,
  first: (session: Session) => Promise<T | undefined>,
): Promise<T | undefined> {
  const { owner, images, nodeId } = asked
  try {
    return await store.transaction(async (session) => {
      const begun = await first(session)
      if (begun === undefined) return undefined
      const { limit, used } = await lockOwner(session, owner)
      const digests = [...new Set(images.map(({ image }) => image.digest))]
      await session.rows(noteHolder, [nodeId, digests, now, new Date(now.getTime() - NOTE_MS)])
      await insert(session, asked, now)
      const bytes = await recount(session, owner)
      // What one has may exceed a quota that was lowered; only more of it is refused.
      if (bytes > limit && bytes > used) throw new QuotaExceeded('imageBytes', limit, used, bytes - used)
      return begun
    })
  } catch (error) {
    if (!badText.has(sqlState(error) ?? '')) throw error
    throw new Failure('image_invalid', 'a label or another text of the image is no well-formed Unicode')
  }
}

/** An owner's images by digest. */
export const listed = async (
  store: Store,
  owner: ImageOwner,
  digests: readonly string[],
): Promise<readonly ImageRecord[]> =>
  (await list(store, { owner, base: [] }, { digests }, { limit: digests.length })).items

async function add(store: Store, asked: NewImages): Promise<readonly ImageRecord[]> {
  await addWithin(store, asked, store.clock.now(), async () => true)
  return listed(store, asked.owner, [...new Set(asked.images.map(({ image }) => image.digest))])
}

const readUse: Statement = {
  name: 'image_use',
  text: `SELECT t.quota_image_bytes AS limit, u.image_bytes AS used FROM tenants t JOIN tenant_usage u ON u.tenant_id = t.id
         WHERE t.id = $1`,
}

async function use(store: Store, owner: ImageOwner): Promise<{ readonly limit: number; readonly used: number }> {
  if (owner === PUBLIC_OWNER) return { limit: Number.POSITIVE_INFINITY, used: 0 }
  const [row] = await store.rows<{ limit: number; used: number }>(readUse, [owner])
  if (!row) throw tenantNotFound(owner as TenantId) // an owner that is not the operator is a tenant
  return row
}

const free = 'n.capacity_disk_bytes - n.used_disk_bytes DESC, n.id'

const readTaker: Statement = {
  name: 'image_taker',
  text: `SELECT n.id FROM nodes n WHERE n.state = 'ready' AND n.last_seen_at >= $2 AND n.streams_url IS NOT NULL
         ORDER BY ($1::text = ANY(n.image_names)) IS TRUE DESC, ${free} LIMIT 1`,
}
const readHolder: Statement = {
  name: 'image_holder',
  text: `SELECT n.id FROM nodes n WHERE n.state IN ('ready', 'draining') AND n.last_seen_at >= $2
           AND n.streams_url IS NOT NULL AND n.image_names @> $1::text[]
         ORDER BY n.state DESC, ${free} LIMIT 1`,
}

const readHolders: Statement = {
  name: 'image_holders',
  text: `SELECT n.id FROM nodes n WHERE n.id <> $3 AND n.state IN ('ready', 'draining') AND n.last_seen_at >= $2
           AND n.streams_url IS NOT NULL AND $1::text = ANY(n.image_names)
         ORDER BY n.last_seen_at DESC, n.id LIMIT 8`,
}
const readNeed: Statement = {
  name: 'image_need',
  text: `SELECT a.tenant_id AS id FROM attempts a JOIN jobs j ON j.id = a.job_id
         WHERE a.id = $2 AND a.node_id = $1 AND a.finished_at IS NULL AND j.image_digest = $3
         UNION ALL SELECT s.tenant_id FROM sandboxes s
         WHERE s.id = $2 AND s.node_id = $1 AND s.deleted_at IS NULL AND s.image_digest = $3`,
}
const readOrigin: Statement = {
  name: 'image_origin',
  text: `SELECT i.owner, i.origin AS reference FROM images i
         WHERE i.digest = $2 AND i.owner IN ($1, '${PUBLIC_OWNER}') AND i.origin IS NOT NULL
         ORDER BY i.owner = '${PUBLIC_OWNER}' LIMIT 1`,
}

const readRelatives: Statement = {
  name: 'image_relatives',
  text: `WITH related AS (
           SELECT DISTINCT other.digest FROM image_layers own
           JOIN image_layers other ON other.diff_id = own.diff_id
           WHERE own.digest = $2 AND own.owner IN ($1, '${PUBLIC_OWNER}') AND other.owner = $1),
         known AS (
           SELECT i.origin AS reference, i.digest, 0 AS rank FROM images i JOIN related r USING (digest) WHERE i.owner = $1
           UNION ALL
           SELECT n.reference, n.digest, 1 FROM image_names n JOIN related r USING (digest) WHERE n.owner = $1)
         SELECT reference FROM known WHERE starts_with(reference, $3 || '/')
         GROUP BY reference ORDER BY bool_or(digest = $2) DESC, min(rank), reference LIMIT 10`,
}

// Of one name the claim of the node that was registered first comes first; see `resolveOnNode`.
const readBase: Statement = {
  name: 'base_images',
  text: `SELECT i.reference, i.digest, max(i."sizeBytes") AS "sizeBytes", bool_or(n.state = 'ready') AS ready
         FROM nodes n, jsonb_to_recordset(n.images) AS i(reference text, digest text, "sizeBytes" bigint)
         WHERE n.state IN ('ready', 'draining') AND i.reference IS NOT NULL GROUP BY i.reference, i.digest
         ORDER BY i.reference, min(n.id), i.digest`,
}

const readOrphans: Statement = {
  name: 'unwanted_images',
  text: `SELECT d.digest FROM unnest($1::text[]) AS d(digest)
         WHERE NOT EXISTS (SELECT 1 FROM images i WHERE i.digest = d.digest)
           AND NOT EXISTS (SELECT 1 FROM nodes n, jsonb_to_recordset(n.images) AS b(reference text, digest text)
             WHERE b.reference IS NOT NULL AND b.digest = d.digest)`,
}

/** How long a node keeps what nobody has: as long as a pull may take to be written down, and the next try to come. */
const ORPHAN_MS = 15 * 60_000

/** Of what a node says that it holds, what nobody has; see `unwantedImages` of its heartbeat. */
export async function orphanedImages(
  store: Store,
  said: readonly {
    readonly digest: string
    readonly reference?: string | undefined
    readonly heldSince?: string | undefined
  }[],
  now: Date,
): Promise<readonly string[]> {
  const old = now.getTime() - ORPHAN_MS
  const candidates = said.filter(
    ({ reference, heldSince }) => reference === undefined && heldSince !== undefined && Date.parse(heldSince) < old,
  )
  if (candidates.length === 0) return []
  const rows = await store.rows<{ digest: string }>(readOrphans, [candidates.map(({ digest }) => digest)])
  return rows.map(({ digest }) => digest)
}

export function openImages(store: Store): Images {
  const node = async (statement: Statement, wanted: unknown): Promise<NodeId | undefined> => {
    const seen = new Date(store.clock.now().getTime() - NODE_SILENT_MS)
    return (await store.rows<{ id: NodeId }>(statement, [wanted, seen]))[0]?.id
  }
  return {
    list: (scope, filter, page) => list(store, scope, filter, page),
    get: (scope, wanted) => get(store, scope, wanted),
    beginning: (owner, reference, prefix) => beginning(store, owner, reference, prefix),
    base: () => store.rows<BaseImage>(readBase, []),
    add: (asked) => add(store, asked),
    use: (owner) => use(store, owner),
    taker: (digest) => node(readTaker, digest),
    holder: (digests) => node(readHolder, digests),
    holders: async (digest, except) => {
      const seen = new Date(store.clock.now().getTime() - NODE_SILENT_MS)
      return (await store.rows<{ id: NodeId }>(readHolders, [digest, seen, except])).map(({ id }) => id)
    },
    neededBy: async (nodeId, subject, digest) =>
      (await store.rows<{ id: TenantId }>(readNeed, [nodeId, subject, digest]))[0]?.id,
    relatives: async (owner, digest, registry) =>
      (await store.rows<{ reference: string }>(readRelatives, [owner, digest, registry])).map(
        ({ reference }) => reference,
      ),
    origin: async (owner, digest) => (await store.rows<ImageOrigin>(readOrigin, [owner, digest]))[0],
    ...openImageRemoval(store, (session, scope, wanted) => get(session, scope, wanted)),
    logins: openLogins(store),
    contents: openImageContents(store),
  }
}
