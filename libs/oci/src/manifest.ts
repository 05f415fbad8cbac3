import { z } from 'zod'

// manifest.ts: the documents of an image as they are stored (image-spec: image-index.md, manifest.md, config.md), and
// Docker's schema 2, which has the same fields under other media types.

const Digest = z.string().regex(/^sha256:[0-9a-f]{64}$/, 'must be a sha256 digest')

export const Descriptor = z.object({
  mediaType: z.string().max(255),
  digest: Digest,
  size: z.number().int().min(0),
  annotations: z.record(z.string(), z.string()).optional(),
  platform: z.object({ os: z.string(), architecture: z.string(), variant: z.string().optional() }).optional(),
})
export type Descriptor = z.infer<typeof Descriptor>

export const Index = z.object({ schemaVersion: z.literal(2), manifests: z.array(Descriptor).max(10_000) })
export type Index = z.infer<typeof Index>

export const Manifest = z.object({
  schemaVersion: z.literal(2),
  config: Descriptor,
  layers: z.array(Descriptor).min(1).max(500),
})
export type Manifest = z.infer<typeof Manifest>

export const ImageConfig = z.object({
  architecture: z.string(),
  os: z.string(),
  rootfs: z.object({ type: z.literal('layers'), diff_ids: z.array(Digest).min(1).max(500) }),
  config: z
    .object({
      Env: z.array(z.string()).nullish(),
      Entrypoint: z.array(z.string()).nullish(),
      Cmd: z.array(z.string()).nullish(),
      WorkingDir: z.string().nullish(),
      User: z.string().nullish(),
      StopSignal: z.string().nullish(),
    })
    .default({}),
})
export type ImageConfig = z.infer<typeof ImageConfig>

/** How a layer's bytes are packed, or undefined for a media type that is no layer. */
export function layerCompression(mediaType: string): 'none' | 'gzip' | 'zstd' | undefined {
  if (/^application\/vnd\.oci\.image\.layer(\.nondistributable)?\.v1\.tar$/.test(mediaType)) return 'none'
  if (/layer\S*\.tar[+.]gzip$/.test(mediaType) || /rootfs\.diff\.tar\.gzip$/.test(mediaType)) return 'gzip'
  if (/layer\S*\.tar\+zstd$/.test(mediaType)) return 'zstd'
  return undefined
}

/** Annotation of an index entry that names it (image-spec, annotations.md). */
export const REF_NAME = 'org.opencontainers.image.ref.name'
