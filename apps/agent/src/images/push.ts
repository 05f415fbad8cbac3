// push.ts: an image to a registry: its blobs first, each unless it is there, the manifest last.
import { createReadStream } from 'node:fs'
import { Readable, Transform } from 'node:stream'
import { Failure, Fault, type HeldImage, type PushImage } from '@berth/contracts'
import { type Descriptor, MAX_MANIFEST_BYTES, parseReference } from '@berth/oci'
import type { Images } from './images.js'
import type { Progress } from './progress.js'
import type { PullTimes } from './pull.js'
import { follow } from './reach.js'
import { type Answer, drop, type Endpoint, header, Registry, refusal } from './registry.js'

/** @throws Failure image_not_found, registry_denied, registry_unreachable */
export async function push(
  images: Images,
  { digest, reference: text, access }: PushImage,
  signal: AbortSignal,
  progress: Progress,
  times: PullTimes = {},
): Promise<HeldImage> {
  const reference = parseReference(text)
  const { manifest, image } = await images.get(digest)
  const { retrying } = progress
  const registry = new Registry({ ...times, reference, access, actions: 'pull,push', signal, retrying })
  const needs = [manifest.digest, ...image.layers.map((layer) => layer.digest), digest]
  try {
    return await images.needing(needs, async () => {
      for (const layer of image.layers) {
        const tell = (state: 'waiting' | 'pushing' | 'present' | 'done', bytes: number) =>
          progress.layer(layer.digest, state, bytes, layer.sizeBytes)
        tell('waiting', 0)
        const sent = await pushBlob(registry, images, { digest: layer.digest, size: layer.sizeBytes }, (bytes) =>
          tell('pushing', bytes),
        )
        tell(sent ? 'done' : 'present', layer.sizeBytes)
      }
      const { config } = (await images.documents(manifest)).manifest
      await pushBlob(registry, images, config, () => undefined)
      const bytes = await images.content.read(manifest, MAX_MANIFEST_BYTES)
      const name = reference.tag ?? reference.digest ?? 'latest'
      await registry.patiently(registry.itself, () => putManifest(registry.itself, name, bytes, manifest.mediaType))
      return image
    })
  } finally {
    await registry.close()
  }
}

/** @returns false where it was there */
async function pushBlob(
  registry: Registry,
  images: Images,
  blob: Pick<Descriptor, 'digest' | 'size'>,
  moved: (bytes: number) => void,
): Promise<boolean> {
  if (await registry.has(blob.digest)) return false
  const found = await images.content.find(blob.digest)
  if (!found) throw new Fault(`push ${blob.digest}`, { cause: 'its blob is missing' })
  const { itself } = registry
  await registry.patiently(itself, () => upload(itself, blob, () => counted(found.path, moved)))
  return true
}

/** In one piece (distribution-spec, "POST then PUT"); what breaks off is begun anew. */
async function upload(endpoint: Endpoint, { digest, size }: Pick<Descriptor, 'digest' | 'size'>, body: () => Readable) {
  const begun = await endpoint.ask({ method: 'POST', path: 'blobs/uploads/', headers: { 'content-length': '0' } })
  const location = header(begun, 'location')
  if (begun.statusCode !== 202 || location === undefined) throw await notTaken(begun, endpoint)
  await drop(begun)
  const move = follow(endpoint.base, endpoint.base, location)
  if ('refused' in move) throw new Failure('registry_unreachable', `${endpoint.host} answers with ${move.refused}`)
  move.to.searchParams.set('digest', digest)
  const headers = { 'content-length': String(size), 'content-type': 'application/octet-stream' }
  const answer = await endpoint.ask({ method: 'PUT', path: move.to, headers, body })
  if (answer.statusCode !== 201 && answer.statusCode !== 204) throw await notTaken(answer, endpoint)
  await drop(answer)
}

async function putManifest(endpoint: Endpoint, name: string, body: Buffer, mediaType: string): Promise<void> {
  const headers = { 'content-type': mediaType }
  const answer = await endpoint.ask({ method: 'PUT', path: `manifests/${name}`, headers, body })
  if (answer.statusCode !== 201) throw await notTaken(answer, endpoint)
  await drop(answer)
}

const notTaken = (answer: Answer, endpoint: Endpoint) => refusal(answer, endpoint.host, 'such repository')

/** A file that tells how far it was read. */
function counted(path: string, moved: (bytes: number) => void): Readable {
  let bytes = 0
  const source = createReadStream(path, { highWaterMark: 256 * 1024 })
  const meter = new Transform({
    transform(chunk: Buffer, _encoding, done) {
      bytes += chunk.length
      moved(bytes)
      done(null, chunk)
    },
  })
  source.once('error', (error) => meter.destroy(error))
  meter.once('close', () => source.destroy())
  return source.pipe(meter)
}
