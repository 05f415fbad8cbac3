import { Failure } from '@berth/contracts'
import { z } from 'zod'

// manifest.ts: the documents of an image as they are stored (image-spec: image-index.md, manifest.md, config.md), and
// Docker's schema 2, which has the same fields under other media types.

const Digest = z.string().regex(/^sha256:[0-9a-f]{64}$/, 'must be a sha256 digest')

/** Largest manifest or index that is read, in bytes: what registries take themselves (distribution-spec, "at least 4 MiB"). */
export const MAX_MANIFEST_BYTES = 4 * 1024 * 1024
/** Largest configuration of an image that is read, in bytes. */
export const MAX_CONFIG_BYTES = 8 * 1024 * 1024

export const mediaTypes = {
  index: 'application/vnd.oci.image.index.v1+json',
  manifest: 'application/vnd.oci.image.manifest.v1+json',
  config: 'application/vnd.oci.image.config.v1+json',
  layer: 'application/vnd.oci.image.layer.v1.tar',
  dockerList: 'application/vnd.docker.distribution.manifest.list.v2+json',
  dockerManifest: 'application/vnd.docker.distribution.manifest.v2+json',
} as const

/** What is asked for as a manifest, the best first. */
export const manifestTypes: readonly string[] = [
  mediaTypes.index,
  mediaTypes.manifest,
  mediaTypes.dockerList,
  mediaTypes.dockerManifest,
]

export const Descriptor = z.object({
  mediaType: z.string().max(255),
  digest: Digest,
  size: z.number().int().min(0),
  annotations: z.record(z.string(), z.string()).optional(),
  platform: z.object({ os: z.string(), architecture: z.string(), variant: z.string().optional() }).optional(),
})
export type Descriptor = z.infer<typeof Descriptor>

export const Index = z.object({
  schemaVersion: z.literal(2),
  mediaType: z.string().optional(),
  manifests: z.array(Descriptor).max(10_000),
})
export type Index = z.infer<typeof Index>

export const Manifest = z.object({
  schemaVersion: z.literal(2),
  mediaType: z.string().optional(),
  config: Descriptor,
  layers: z.array(Descriptor).min(1, 'it has no layers').max(500),
})
export type Manifest = z.infer<typeof Manifest>

const Names = z.record(z.string(), z.unknown()).nullish()

const Strings = z.array(z.string()).nullish()
/** How often and how long in nanoseconds; of `Test`, the first word says how: `NONE`, `CMD`, `CMD-SHELL`. */
const Healthcheck = z.object({
  Test: Strings,
  Interval: z.number().int().nullish(),
  Timeout: z.number().int().nullish(),
  StartPeriod: z.number().int().nullish(),
  StartInterval: z.number().int().nullish(),
  Retries: z.number().int().nullish(),
})

/** `config` of an image's configuration, with what Docker has beside what OCI has (docker-image-spec v1). */
export const ContainerConfig = z.object({
  Env: Strings,
  Entrypoint: Strings,
  Cmd: Strings,
  WorkingDir: z.string().nullish(),
  User: z.string().nullish(),
  StopSignal: z.string().nullish(),
  Labels: z.record(z.string(), z.string()).nullish(),
  ExposedPorts: Names,
  Volumes: Names,
  Healthcheck: Healthcheck.nullish(),
  OnBuild: Strings,
  Shell: Strings,
  ArgsEscaped: z.boolean().nullish(),
})
export type ContainerConfig = z.infer<typeof ContainerConfig>

export const ImageConfig = z.object({
  architecture: z.string(),
  os: z.string(),
  variant: z.string().nullish(),
  created: z.string().nullish(),
  rootfs: z.object({ type: z.literal('layers'), diff_ids: z.array(Digest).min(1).max(500) }),
  history: z
    .array(
      z.object({
        created: z.string().nullish(),
        created_by: z.string().nullish(),
        comment: z.string().nullish(),
        empty_layer: z.boolean().nullish(),
      }),
    )
    .nullish(),
  config: ContainerConfig.nullish().transform((config) => config ?? {}),
})
export type ImageConfig = z.infer<typeof ImageConfig>

/** How a layer's bytes are packed, or undefined for a media type that is no layer. */
export function layerCompression(mediaType: string): LayerCompression | undefined {
  if (/^application\/vnd\.oci\.image\.layer(\.nondistributable)?\.v1\.tar$/.test(mediaType)) return 'none'
  if (mediaType === 'application/vnd.docker.image.rootfs.diff.tar') return 'none'
  if (/layer\S*\.tar[+.]gzip$/.test(mediaType) || /rootfs\.diff\.tar\.gzip$/.test(mediaType)) return 'gzip'
  if (/(layer|rootfs\.diff)\S*\.tar[+.]zstd$/.test(mediaType)) return 'zstd'
  return undefined
}
export type LayerCompression = 'none' | 'gzip' | 'zstd'

/** How bytes are packed, by how they begin (RFC 1952, RFC 8878); four bytes are enough. */
export function compressionOf(beginning: Uint8Array): LayerCompression {
  const [a, b, c, d] = beginning
  if (a === 0x1f && b === 0x8b) return 'gzip'
  // A frame, or one to be skipped that may come before it.
  if ((a === 0x28 || (a !== undefined && a >= 0x50 && a <= 0x5f)) && b === (a === 0x28 ? 0xb5 : 0x2a))
    return c === (a === 0x28 ? 0x2f : 0x4d) && d === (a === 0x28 ? 0xfd : 0x18) ? 'zstd' : 'none'
  return 'none'
}

/** Media type of a layer in an image of OCI's form. */
export const layerMediaType = (compression: LayerCompression): string =>
  compression === 'none' ? mediaTypes.layer : `${mediaTypes.layer}+${compression}`

/** Annotation of an index entry that names it (image-spec, annotations.md). */
export const REF_NAME = 'org.opencontainers.image.ref.name'
/** The same, in full, as Docker and containerd write it. */
export const IMAGE_NAME = 'io.containerd.image.name'

export type Document =
  | { readonly kind: 'index'; readonly index: Index }
  | { readonly kind: 'manifest'; readonly manifest: Manifest }

/**
 * A manifest or an index, whichever the bytes are: what is written in them counts more than what they were sent as.
 * @throws Failure image_invalid for anything else, Docker's schema 1 among it
 */
export function parseDocument(bytes: Uint8Array): Document {
  const value = parseJson(bytes, 'manifest')
  const shape = z
    .object({ schemaVersion: z.number().optional(), manifests: z.unknown().optional(), layers: z.unknown().optional() })
    .safeParse(value)
  if (shape.data?.schemaVersion === 1) throw invalid('the manifest is of schema 1, which is no longer used')
  // image-spec, manifest.md: what could be read as either is neither.
  if (shape.data?.manifests !== undefined && shape.data.layers !== undefined)
    throw invalid('the manifest has both layers and manifests')
  if (shape.data?.manifests === undefined) {
    const manifest = checked(Manifest, value, 'manifest')
    const foreign = artifactType(manifest)
    if (foreign !== undefined) throw invalid(`it is no image, but an artifact of type ${JSON.stringify(foreign)}`)
    return { kind: 'manifest', manifest }
  }
  return { kind: 'index', index: checked(Index, value, 'index') }
}

/** Of configurations of images; the last ones are what registries have given for them, which Docker takes too. */
const configTypes: ReadonlySet<string> = new Set([
  ...[mediaTypes.config, 'application/vnd.docker.container.image.v1+json'],
  ...['application/octet-stream', 'application/json', 'text/html', ''],
])

/**
 * What a manifest is of that is not an image's: registries keep charts, signatures and bills of materials as such
 * (image-spec, manifest.md, "Guidelines for Artifact Usage"). A signature says so by its layers only.
 */
function artifactType({ config, layers }: Manifest): string | undefined {
  if (!configTypes.has(config.mediaType)) return config.mediaType
  const types = layers.map(({ mediaType }) => mediaType)
  return types.some((type) => layerCompression(type)) ? undefined : types.find((type) => !type.includes('.layer.'))
}

/** @throws Failure image_invalid */
export const parseImageConfig = (bytes: Uint8Array): ImageConfig =>
  checked(ImageConfig, parseJson(bytes, 'configuration'), 'configuration')

/**
 * Layers with their diffIDs and how they are packed, lowest first.
 * @throws Failure image_invalid when configuration and manifest disagree, or a layer is of a kind that is none
 */
export function layersOf(
  manifest: Manifest,
  config: ImageConfig,
): readonly { readonly descriptor: Descriptor; readonly diffId: string; readonly compression: LayerCompression }[] {
  const { diff_ids: diffIds } = config.rootfs
  if (diffIds.length !== manifest.layers.length)
    throw invalid('configuration and manifest disagree on the number of layers')
  return manifest.layers.map((descriptor, i) => {
    const compression = layerCompression(descriptor.mediaType)
    if (!compression) throw invalid(`a layer of media type ${JSON.stringify(descriptor.mediaType)} is not supported`)
    return { descriptor, diffId: diffIds[i] ?? '', compression }
  })
}

function parseJson(bytes: Uint8Array, what: string): unknown {
  try {
    return JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes))
  } catch {
    throw invalid(`the ${what} is no JSON`)
  }
}

function checked<T>(schema: z.ZodType<T>, value: unknown, what: string): T {
  const parsed = schema.safeParse(value)
  if (parsed.success) return parsed.data
  const [issue] = parsed.error.issues
  throw invalid(`the ${what} is not as it must be: ${issue?.path.map(String).join('.')}: ${issue?.message}`)
}

const invalid = (why: string) => new Failure('image_invalid', why)
