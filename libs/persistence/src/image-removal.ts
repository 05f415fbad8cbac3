// image-removal.ts: names and images that go. An image that something uses stays: what is not finished or not deleted
// may start from it again. Both sides of that are decided under the lock of the tenant's usage row, which an admission
// takes too.
import { Failure } from '@berth/contracts'
import { type ImageOwner, type ImageWanted, type PruneCandidate, PUBLIC_OWNER, prunable } from '@berth/domain'
import { lockOwner, recount } from './image-owner.js'
import { hasDigest } from './image-resolving.js'
import type { ImageRecord, ImageScope, Images } from './repositories.js'
import type { Session, Statement, Store } from './store.js'

type Get = (session: Session, scope: ImageScope, wanted: ImageWanted) => Promise<{ readonly image: ImageRecord }>
/** Users that a refusal names. */
const NAMED_USERS = 20

const readOwn: Statement = {
  name: 'own_image',
  text: `SELECT i.digest, ARRAY(SELECT n.reference FROM image_names n WHERE n.owner = i.owner AND n.digest = i.digest
           ORDER BY n.reference) AS references
         FROM images i
         WHERE i.owner = $1 AND (i.digest = $3::text OR i.manifest_digest = $3::text OR i.digest IN (
           SELECT n.digest FROM image_names n
           WHERE n.owner = $1 AND (n.reference = $2::text OR ${hasDigest('n.reference', '$3::text')})))
         ORDER BY i.added_at DESC LIMIT 1`,
}

interface OwnImage {
  readonly digest: string
  readonly references: readonly string[]
}

/** @throws image_not_found; policy_forbidden for one that is there, and not the owner's */
async function ownImage(session: Session, get: Get, scope: ImageScope, wanted: ImageWanted): Promise<OwnImage> {
  const [own] = await session.rows<OwnImage>(readOwn, [scope.owner, wanted.reference, wanted.digest])
  if (own) return own
  const { image } = await get(session, scope, wanted)
  const why = image.base ? 'came with the nodes' : 'is public: only an operator changes it'
  throw new Failure('policy_forbidden', `image ${wanted.text} ${why}`)
}

const users = (table: 'sandboxes' | 'jobs', alive: string) => `
  SELECT x.id FROM ${table} x WHERE x.image_digest = $2 AND ${alive} AND ($1::text IS NULL OR x.tenant_id = $1)
  ORDER BY x.id LIMIT ${NAMED_USERS}`

// Of a public image every tenant's templates count, and those that are public.
const templateUsers = (digest: string) => `
  SELECT v.name || '@' || v.version FROM template_versions v
  WHERE v.image_digest = ${digest} AND ($1::text IS NULL OR v.owner = $1)`

const readUsers: Statement = {
  name: 'image_users',
  text: `SELECT ARRAY(${users('sandboxes', 'x.deleted_at IS NULL')}) AS sandboxes,
           ARRAY(${users('jobs', 'x.finished_at IS NULL')}) AS jobs,
           ARRAY(${templateUsers('$2')} ORDER BY 1 LIMIT ${NAMED_USERS}) AS templates`,
}

interface Users {
  readonly sandboxes: readonly string[]
  readonly jobs: readonly string[]
  /** Versions, as `name@3`. */
  readonly templates: readonly string[]
}

const tenantOf = (owner: ImageOwner) => (owner === PUBLIC_OWNER ? null : owner)

async function usersOf(session: Session, owner: ImageOwner, digest: string): Promise<Users | undefined> {
  const [found] = await session.rows<Users>(readUsers, [tenantOf(owner), digest])
  return found && allOf(found).length > 0 ? found : undefined
}

const allOf = ({ sandboxes, jobs, templates }: Users): readonly string[] => [...sandboxes, ...jobs, ...templates]

const inUse = (text: string, users: Users): Failure => {
  const all = allOf(users)
  const more = all.length > 3 ? ` and ${all.length - 3} more` : ''
  const message = `image ${text} is used by ${all.slice(0, 3).join(', ')}${more}`
  return new Failure('image_in_use', message, { ...users })
}

const deleteNames: Statement = {
  name: 'delete_image_names',
  text: 'DELETE FROM image_names WHERE owner = $1 AND reference = ANY($2)',
}
const deleteImages: Statement = {
  name: 'delete_images',
  text: 'DELETE FROM images WHERE owner = $1 AND digest = ANY($2)',
}
const lockTenants: Statement = {
  name: 'lock_all_usage',
  text: 'SELECT FROM tenant_usage ORDER BY tenant_id FOR UPDATE',
}
const growEpoch: Statement = {
  name: 'grow_image_epoch',
  text: 'UPDATE tenant_usage SET image_epoch = image_epoch + 1 WHERE $1::text IS NULL OR tenant_id = $1',
}

/** Locks an owner for taking images away: of public ones, all tenants may be resolving one. */
async function lockForRemoval(session: Session, owner: ImageOwner): Promise<number> {
  const { used } = await lockOwner(session, owner)
  if (owner !== PUBLIC_OWNER) return used
  await session.rows(lockTenants, [])
  return recount(session, owner)
}

/** @returns bytes that the owner has no more */
async function drop(session: Session, owner: ImageOwner, digests: readonly string[], before: number): Promise<number> {
  if (digests.length === 0) return 0
  await session.rows(deleteImages, [owner, digests])
  await session.rows(growEpoch, [tenantOf(owner)])
  return before - (await recount(session, owner))
}

async function remove(
  session: Session,
  get: Get,
  scope: ImageScope,
  wanted: ImageWanted,
  force: boolean,
  name: string | undefined,
) {
  const { owner } = scope
  const before = await lockForRemoval(session, owner)
  const { digest, references } = await ownImage(session, get, scope, wanted)
  const one = wanted.reference ?? (name !== undefined && references.includes(name) ? name : null)
  const untagged = one === null ? references : references.filter((reference) => reference === one)
  const last = untagged.length === references.length
  const used = last ? await usersOf(session, owner, digest) : undefined
  if (used && !force) throw inUse(wanted.text, used)
  await session.rows(deleteNames, [owner, untagged])
  // A name that leads elsewhere now is resolved again.
  await session.rows(growEpoch, [tenantOf(owner)])
  const goes = last && !used
  const freedBytes = await drop(session, owner, goes ? [digest] : [], before)
  return { untagged, deleted: goes ? digest : null, freedBytes }
}

async function untag(session: Session, get: Get, scope: ImageScope, wanted: ImageWanted, reference: string) {
  await lockForRemoval(session, scope.owner)
  const { digest, references } = await ownImage(session, get, scope, wanted)
  if (!references.includes(reference)) throw new Failure('image_not_found', `image ${wanted.text} has no such name`)
  await session.rows(deleteNames, [scope.owner, [reference]])
  await session.rows(growEpoch, [tenantOf(scope.owner)])
  return digest
}

const readAll: Statement = {
  name: 'all_own_images',
  text: `SELECT i.digest, i.labels, i.added_at AS "addedAt",
           ARRAY(SELECT n.reference FROM image_names n WHERE n.owner = i.owner AND n.digest = i.digest) AS references,
           EXISTS (${users('sandboxes', 'x.deleted_at IS NULL').replaceAll('$2', 'i.digest')})
             OR EXISTS (${users('jobs', 'x.finished_at IS NULL').replaceAll('$2', 'i.digest')})
             OR EXISTS (${templateUsers('i.digest')}) AS used,
           coalesce((SELECT json_agg(json_build_object('diffId', l.diff_id, 'bytes', l.bytes)) FROM image_layers l
             WHERE l.owner = i.owner AND l.digest = i.digest), '[]') AS layers
         FROM images i WHERE i.owner = $2 ORDER BY i.added_at, i.digest`,
}

async function prune(session: Session, owner: ImageOwner, filter: Parameters<Images['prune']>[1]) {
  const before = await lockForRemoval(session, owner)
  const images = await session.rows<PruneCandidate>(readAll, [tenantOf(owner), owner])
  const { digests } = prunable(images, filter)
  return { deleted: digests, freedBytes: await drop(session, owner, digests, before) }
}

export const openImageRemoval = (store: Store, get: Get): Pick<Images, 'remove' | 'untag' | 'prune'> => ({
  remove: (scope, wanted, force, name) =>
    store.transaction((session) => remove(session, get, scope, wanted, force, name)),
  untag: (scope, wanted, reference) => store.transaction((session) => untag(session, get, scope, wanted, reference)),
  prune: (owner, filter) => store.transaction((session) => prune(session, owner, filter)),
})
