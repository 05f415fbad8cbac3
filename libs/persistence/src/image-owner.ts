// image-owner.ts: what an owner has of images, locked and counted. Every change of it goes through here.
import { Failure, type TenantId } from '@berth/contracts'
import { type ImageOwner, PUBLIC_OWNER } from '@berth/domain'
import type { Session, Statement } from './store.js'
import { tenantNotFound } from './tenants.js'

export const imageNotFound = (text: string) =>
  new Failure('image_not_found', `there is no image ${text}`, { image: text })

const lockTenant: Statement = {
  name: 'lock_images',
  text: `SELECT t.quota_image_bytes, u.image_bytes FROM tenant_usage u JOIN tenants t ON t.id = u.tenant_id
         WHERE u.tenant_id = $1 FOR UPDATE OF u`,
}
const lockPublic: Statement = { name: 'lock_public_images', text: 'SELECT pg_advisory_xact_lock(7433, 2)' }

/** Locks what an owner has. @returns its quota and its use; Infinity and 0 for the operator. @throws tenant_not_found */
export async function lockOwner(session: Session, owner: ImageOwner): Promise<{ limit: number; used: number }> {
  if (owner === PUBLIC_OWNER) {
    await session.rows(lockPublic, [])
    return { limit: Number.POSITIVE_INFINITY, used: 0 }
  }
  const [row] = await session.rows<{ quota_image_bytes: number; image_bytes: number }>(lockTenant, [owner])
  if (!row) throw tenantNotFound(owner as TenantId) // an owner that is not the operator is a tenant
  return { limit: row.quota_image_bytes, used: row.image_bytes }
}

const countBytes: Statement = {
  name: 'image_bytes',
  text: `SELECT coalesce(sum(d.bytes), 0)::bigint AS bytes FROM (
           SELECT max(l.bytes) AS bytes FROM image_layers l WHERE l.owner = $1 GROUP BY l.diff_id) d`,
}
const noteBytes: Statement = {
  name: 'note_image_bytes',
  text: 'UPDATE tenant_usage SET image_bytes = $2 WHERE tenant_id = $1',
}

/** Counts the owner's bytes anew, under its lock. @returns them */
export async function recount(session: Session, owner: ImageOwner): Promise<number> {
  const [row] = await session.rows<{ bytes: number }>(countBytes, [owner])
  const bytes = row?.bytes ?? 0
  if (owner !== PUBLIC_OWNER) await session.rows(noteBytes, [owner, bytes])
  return bytes
}
