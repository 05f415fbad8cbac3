// pull.ts: an image from a registry.
import type { HeldImage, PullImage } from '@berth/contracts'
import { Failure } from '@berth/contracts'
import {
  choosePlatform,
  type Descriptor,
  MAX_CONFIG_BYTES,
  MAX_MANIFEST_BYTES,
  mediaTypes,
  parseDocument,
  parseReference,
  type Reference,
  samePlatform,
} from '@berth/oci'
import { fetchBlob } from './fetch.js'
import { type Images, nodePlatform } from './images.js'
import type { Progress } from './progress.js'
import type { ManifestDescriptor } from './records.js'
import { Registry, type RegistryOptions } from './registry.js'

/** Indexes in indexes; builders write one in another at most. */
const MAX_DEPTH = 3

export type PullTimes = Pick<RegistryOptions, 'patience' | 'silenceMs'>

/**
 * Fetches, verifies and unpacks an image.
 * @throws Failure registry_denied, registry_unreachable, image_invalid, platform_unsupported, quota_exceeded, no_capacity
 */
export async function pull(
  images: Images,
  { reference: text, platform = nodePlatform, access, maxBytes }: PullImage,
  signal: AbortSignal,
  progress: Progress,
  times: PullTimes = {},
): Promise<HeldImage> {
  if (!samePlatform(platform, nodePlatform))
    throw new Failure('platform_unsupported', `this node runs images for ${nodePlatform}, not for ${platform}`)
  const reference = parseReference(text)
  const failing = new AbortController()
  const either = AbortSignal.any([signal, failing.signal])
  const { retrying } = progress
  const registry = new Registry({ ...times, reference, access, actions: 'pull', signal: either, retrying })
  try {
    const manifest = await fetchManifest(registry, images, reference, platform)
    const obtain = async (descriptor: Descriptor) => {
      try {
        await fetchLayer(registry, images, descriptor, either, progress)
      } catch (error) {
        // The other layers need not come any more.
        failing.abort(error)
        throw error
      }
    }
    return await images.compose(manifest, {
      ...{ platform, maxBytes, signal: either, obtain },
      unpacking: ({ digest, size }, state) => progress.layer(digest, state, size, size),
    })
  } finally {
    await registry.close()
  }
}

async function fetchLayer(
  registry: Registry,
  images: Images,
  descriptor: Descriptor,
  signal: AbortSignal,
  progress: Progress,
): Promise<void> {
  const { digest, size } = descriptor
  const isLayer = !descriptor.mediaType.includes('config') && !descriptor.mediaType.includes('container.image.v1')
  const tell: Progress['layer'] = (...step) => isLayer && progress.layer(...step)
  tell(digest, 'waiting', 0, size)
  const moved = (bytes: number) => tell(digest, 'fetching', bytes, size)
  const how = await fetchBlob(registry, images.content, descriptor, { signal, moved })
  if (how === 'present') tell(digest, 'present', size, size)
}

/** The manifest for the platform, in the store. */
async function fetchManifest(
  registry: Registry,
  images: Images,
  { tag, digest }: Reference,
  platform: string,
): Promise<ManifestDescriptor> {
  let name = digest ?? tag ?? 'latest'
  for (let depth = 0; depth <= MAX_DEPTH; depth++) {
    const got = await registry.manifest(name)
    const document = parseDocument(got.bytes)
    if (document.kind === 'manifest') {
      if (document.manifest.config.size > MAX_CONFIG_BYTES)
        throw new Failure('image_invalid', `the configuration is larger than ${MAX_CONFIG_BYTES} bytes`)
      await images.content.add(got.bytes)
      const mediaType = document.manifest.mediaType ?? (got.mediaType || mediaTypes.manifest)
      return { mediaType, digest: got.digest, size: got.bytes.length }
    }
    const chosen = choosePlatform(document.index, platform)
    if (chosen.size > MAX_MANIFEST_BYTES)
      throw new Failure('image_invalid', `a manifest of ${chosen.size} bytes; ${MAX_MANIFEST_BYTES} are read at most`)
    name = chosen.digest
  }
  throw new Failure('image_invalid', 'indexes in indexes without an end')
}
