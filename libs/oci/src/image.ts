// image.ts: an image as it is told of, from the documents that it is stored as; and the other way about, for images that
// are made here.
import { Failure, HeldImage, type ImageLayer, type ImageSettings, type ImportConfig } from '@berth/contracts'
import { type Descriptor, type ImageConfig, mediaTypes } from './manifest.js'
import { platformOf } from './platform.js'

export const settingsOf = ({ config }: Pick<ImageConfig, 'config'>): ImageSettings => ({
  env: config.Env ?? [],
  entrypoint: config.Entrypoint ?? [],
  command: config.Cmd ?? [],
  workingDir: config.WorkingDir || null,
  user: config.User || null,
  stopSignal: config.StopSignal || null,
  labels: config.Labels ?? {},
  exposedPorts: Object.keys(config.ExposedPorts ?? {}),
  volumes: Object.keys(config.Volumes ?? {}),
})

/**
 * @param digests of configuration and manifest
 * @throws Failure image_invalid for a history that is longer than any, or more than `MAX_TOLD_BYTES` of it and the
 * settings: nodes have that in memory of each image
 */
export function heldImage(
  digests: { readonly config: string; readonly manifest: string },
  config: ImageConfig,
  layers: readonly ImageLayer[],
): HeldImage {
  const parsed = HeldImage.safeParse({
    digest: digests.config,
    manifestDigest: digests.manifest,
    platform: platformOf(config),
    createdAt: config.created ?? null,
    layers,
    history: (config.history ?? []).map((step) => ({
      createdAt: step.created ?? null,
      createdBy: (step.created_by ?? '').slice(0, 65_536),
      comment: (step.comment ?? '').slice(0, 65_536),
      emptyLayer: step.empty_layer ?? false,
    })),
    settings: settingsOf(config),
  })
  if (parsed.success) return told(parsed.data)
  const [issue] = parsed.error.issues
  throw new Failure('image_invalid', `${issue?.path.map(String).join('.')}: ${issue?.message}`)
}

/** Bytes of history and settings as JSON. Real ones have some ten thousand at most. */
const MAX_TOLD_BYTES = 256 * 1024

function told(image: HeldImage): HeldImage {
  if (Buffer.byteLength(JSON.stringify([image.history, image.settings])) <= MAX_TOLD_BYTES) return image
  throw new Failure('image_invalid', `history and settings are more than ${MAX_TOLD_BYTES} bytes`)
}

const nothing = {}
const named = (names: readonly string[] | undefined) =>
  names && names.length > 0 ? Object.fromEntries([...names].sort().map((name) => [name, nothing])) : undefined

/** Configuration of an image of one layer. Equal input gives equal bytes. */
export function importedConfig(of: {
  readonly platform: string
  readonly diffId: string
  readonly createdAt: string
  readonly settings: ImportConfig
}): Buffer {
  const [os, architecture, variant] = of.platform.split('/')
  const { env, entrypoint, command, workingDir, user, stopSignal, labels, exposedPorts, volumes, comment } = of.settings
  return json({
    architecture,
    ...(variant === undefined ? {} : { variant }),
    os,
    created: of.createdAt,
    config: {
      Env: env,
      Entrypoint: entrypoint,
      Cmd: command,
      WorkingDir: workingDir ?? undefined,
      User: user ?? undefined,
      StopSignal: stopSignal ?? undefined,
      Labels: labels,
      ExposedPorts: named(exposedPorts),
      Volumes: named(volumes),
    },
    rootfs: { type: 'layers', diff_ids: [of.diffId] },
    history: [{ created: of.createdAt, created_by: 'import', comment: comment || 'imported from a tar' }],
  })
}

/** A manifest of OCI's form. */
export const writtenManifest = (config: Pick<Descriptor, 'digest' | 'size'>, layers: readonly Descriptor[]): Buffer =>
  json({
    schemaVersion: 2,
    mediaType: mediaTypes.manifest,
    config: { mediaType: mediaTypes.config, digest: config.digest, size: config.size },
    layers: layers.map(({ mediaType, digest, size }) => ({ mediaType, digest, size })),
  })

const json = (value: unknown) => Buffer.from(JSON.stringify(value))
