// image-resolving.ts: what a name means to a tenant, inside of the statements that admit. It costs a look into two
// indices there, and no round trip of its own.
import type { JobSpec } from '@berth/contracts'
import { baseImage, type ImageWanted, PUBLIC_OWNER, type ResolvedImage, resolved } from '@berth/domain'
import { imageNotFound } from './image-owner.js'

const owners = (tenant: string) => `(${tenant}, '${PUBLIC_OWNER}')`
const ownFirst = (owner: string) => `${owner} = '${PUBLIC_OWNER}'`

/** SQL for whether a name has a digest in it, which is then what it was pulled by. Index: image_names_pulled_by_idx. */
export const hasDigest = (reference: string, digest: string): string => `split_part(${reference}, '@', 2) = ${digest}`

/**
 * SQL for the digest of an image: the tenant's own before a public one; null where there is neither.
 * @param reference SQL of a name in full, or null
 * @param digest SQL of a digest of a configuration or a manifest, or one that it was pulled by, or null
 */
export const imageDigest = (tenant: string, reference: string, digest: string): string => `coalesce(
  (SELECT n.digest FROM image_names n WHERE n.owner IN ${owners(tenant)} AND n.reference = ${reference}
    ORDER BY ${ownFirst('n.owner')} LIMIT 1),
  (SELECT i.digest FROM images i WHERE i.owner IN ${owners(tenant)} AND i.digest = ${digest} LIMIT 1),
  (SELECT i.digest FROM images i WHERE i.owner IN ${owners(tenant)} AND i.manifest_digest = ${digest}
    ORDER BY ${ownFirst('i.owner')} LIMIT 1),
  (SELECT n.digest FROM image_names n WHERE n.owner IN ${owners(tenant)} AND ${hasDigest('n.reference', digest)}
    ORDER BY ${ownFirst('n.owner')} LIMIT 1))`

export const wantedBy = (spec: Pick<JobSpec, 'image'>): ImageWanted => baseImage(spec.image)

/** @throws image_not_found */
export function resolvedOr404(wanted: ImageWanted, digest: string | null): ResolvedImage {
  const image = resolved(wanted, digest)
  if (!image) throw imageNotFound(wanted.text)
  return image
}
