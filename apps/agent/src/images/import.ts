// import.ts: an image of one layer, made from a tar of a root file system, packed or not.
import { join } from 'node:path'
import type { Readable } from 'node:stream'
import { Failure, type HeldImage, type ImportConfig } from '@berth/contracts'
import { compressionOf, importedConfig, layerMediaType, mediaTypes, writtenManifest } from '@berth/oci'
import { packedAtMost } from './budget.js'
import { withRoom } from './content.js'
import { type Images, nodePlatform } from './images.js'
import { layerLimits } from './layers.js'
import { beginning, hashed } from './load.js'
import { diffIdOf } from './unpack.js'

/** @throws Failure archive_invalid where nothing came, image_invalid for what is no tar of a root, quota_exceeded, no_capacity */
export function importRoot(
  images: Images,
  source: Readable,
  settings: ImportConfig,
  maxBytes: number | undefined,
  signal: AbortSignal,
): Promise<HeldImage> {
  const { content } = images
  return content.withIncoming(async (directory) => {
    const most = packedAtMost(Math.min(maxBytes ?? layerLimits.maxBytes, layerLimits.maxBytes))
    const tar = await withRoom(() => hashed(source, join(directory, 'root'), content.room, most))
    if (tar.size === 0) throw new Failure('archive_invalid', 'it is empty')
    const compression = compressionOf(await beginning(tar.path))
    const diffId = await diffIdOf({ blob: tar.path, compression }, layerLimits, signal)
    const createdAt = new Date().toISOString()
    const config = importedConfig({ platform: nodePlatform, diffId, createdAt, settings })
    const configDigest = await content.add(config)
    const layer = { mediaType: layerMediaType(compression), digest: tar.digest, size: tar.size }
    const bytes = writtenManifest({ digest: configDigest, size: config.length }, [layer])
    const digest = await content.add(bytes)
    return images.compose(
      { mediaType: mediaTypes.manifest, digest, size: bytes.length },
      {
        platform: nodePlatform,
        ...(maxBytes === undefined ? {} : { maxBytes }),
        signal,
        obtain: async (descriptor) => {
          if (descriptor.digest === tar.digest) await content.adopt(tar.path, tar.digest)
        },
      },
    )
  })
}
