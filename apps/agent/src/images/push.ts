// push.ts: an image to a registry: its blobs first, each unless it is there, the manifest last.
import { Fault, type HeldImage, type PushImage } from '@berth/contracts'
import { type Descriptor, MAX_MANIFEST_BYTES, parseReference } from '@berth/oci'
import type { Images } from './images.js'
import type { Progress } from './progress.js'
import type { PullTimes } from './pull.js'
import { drop, type Endpoint, Registry } from './registry.js'
import { notTaken, OtherRepositories, type UploadOptions, upload } from './upload.js'

/** @throws Failure image_not_found, registry_denied, registry_unreachable */
export async function push(
  images: Images,
  { digest, reference: text, access, mountFrom }: PushImage,
  signal: AbortSignal,
  progress: Progress,
  times: PullTimes = {},
): Promise<HeldImage> {
  const reference = parseReference(text)
  const { manifest, image } = await images.get(digest)
  const { retrying } = progress
  const registry = new Registry({ ...times, reference, access, actions: 'pull,push', signal, retrying })
  const others = new OtherRepositories(registry.itself, mountFrom)
  const needs = [manifest.digest, ...image.layers.map((layer) => layer.digest), digest]
  try {
    return await images.needing(needs, async () => {
      for (const layer of image.layers) {
        const tell = (state: 'waiting' | 'pushing' | 'present' | 'done', bytes: number) =>
          progress.layer(layer.digest, state, bytes, layer.sizeBytes)
        tell('waiting', 0)
        const moved = (bytes: number) => tell('pushing', bytes)
        const blob = { digest: layer.digest, size: layer.sizeBytes }
        const sent = await pushBlob(registry, images, blob, { moved, others })
        tell(sent ? 'done' : 'present', layer.sizeBytes)
      }
      const { config } = (await images.documents(manifest)).manifest
      await pushBlob(registry, images, config, { moved: () => undefined, others })
      const bytes = await images.content.read(manifest, MAX_MANIFEST_BYTES)
      const name = reference.tag ?? reference.digest ?? 'latest'
      await registry.patiently(registry.itself, () => putManifest(registry.itself, name, bytes, manifest.mediaType))
      return image
    })
  } finally {
    await registry.close()
  }
}

/** @returns false where nothing was sent: it was there, or is mounted */
async function pushBlob(
  registry: Registry,
  images: Images,
  { digest, size }: Pick<Descriptor, 'digest' | 'size'>,
  options: UploadOptions,
): Promise<boolean> {
  if (await registry.has(digest)) return false
  const found = await images.content.find(digest)
  if (!found) throw new Fault(`push ${digest}`, { cause: 'its blob is missing' })
  return (await upload(registry, { digest, size, path: found.path }, options)) === 'sent'
}

async function putManifest(endpoint: Endpoint, name: string, body: Buffer, mediaType: string): Promise<void> {
  const headers = { 'content-type': mediaType }
  const answer = await endpoint.ask({ method: 'PUT', path: `manifests/${name}`, headers, body })
  if (answer.statusCode !== 201) throw await notTaken(answer, endpoint)
  await drop(answer)
}
