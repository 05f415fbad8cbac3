// save.ts: images as an archive that `docker load`, skopeo and umoci read: an OCI layout in a tar, each blob once and as
// it came, so that digests stay what they are.
import { createReadStream } from 'node:fs'
import { PassThrough, type Readable } from 'node:stream'
import { finished, pipeline } from 'node:stream/promises'
import { Fault, ImageDigest, InvalidRequest } from '@berth/contracts'
import { archiveDocuments, blobEntry, parseReference, type Reference } from '@berth/oci'
import { pack } from 'tar-stream'
import type { Images } from './images.js'

export interface SaveRequest {
  readonly format: 'docker' | 'oci'
  readonly images: ReadonlyMap<string, readonly Reference[]>
}

const MAX_IMAGES = 1000

/** `image=<digest>`, `name=<digest>=<reference>`, `format`. @throws InvalidRequest */
export function parseSave(query: URLSearchParams): SaveRequest {
  const refuse = (field: string, message: string) => new InvalidRequest([{ field, message }])
  const images = new Map<string, Reference[]>()
  for (const image of query.getAll('image')) {
    if (!ImageDigest.safeParse(image).success) throw refuse('image', 'must be a digest')
    images.set(image, [])
  }
  if (images.size === 0 || images.size > MAX_IMAGES) throw refuse('image', `must be given, at most ${MAX_IMAGES} times`)
  for (const name of query.getAll('name')) {
    const [digest = '', ...rest] = name.split('=')
    const references = images.get(digest)
    if (!references) throw refuse('name', 'must be of an image that is saved')
    references.push(parseReference(rest.join('=')))
  }
  const format = query.get('format') ?? 'docker'
  if (format !== 'docker' && format !== 'oci') throw refuse('format', 'must be docker or oci')
  return { format, images }
}

/**
 * @returns the archive; it fails, and so is cut, when a blob cannot be read to its end
 * @throws Failure image_not_found before anything is sent
 */
export async function save(
  images: Images,
  { format, images: wanted }: SaveRequest,
  signal: AbortSignal,
): Promise<Readable> {
  const saved = []
  const blobs = new Map<string, string>()
  for (const [digest, references] of wanted) {
    const { manifest, image } = await images.get(digest)
    const layers = image.layers.map((layer) => layer.digest)
    for (const blob of [manifest.digest, digest, ...layers]) {
      const found = await images.content.find(blob)
      if (!found) throw new Fault(`save ${digest}`, { cause: `its blob ${blob} is missing` })
      blobs.set(blob, found.path)
    }
    saved.push({ manifest, platform: image.platform, config: digest, layers, references })
  }
  const documents = archiveDocuments(saved, format)
  const archive = pack()
  // tar-stream's streams are not node's own: this one can be cut as they are.
  const out = new PassThrough()
  void pipeline(archive, out, { signal }).catch(() => undefined)
  const filling = images.needing(blobs.keys(), async () => {
    for (const { name, content } of documents) await entry(archive, name, content)
    for (const [digest, path] of [...blobs].sort()) await blobInto(images, archive, digest, path)
    archive.finalize()
    await finished(out, { readable: false })
  })
  filling.catch((error: unknown) => {
    archive.destroy()
    out.destroy(error instanceof Error ? error : new Error(String(error)))
  })
  return out
}

type Pack = ReturnType<typeof pack>

/** The same for everybody at all times. */
const attributes = { mode: 0o644, uid: 0, gid: 0, mtime: new Date(0) }

function entry(archive: Pack, name: string, content: Buffer): Promise<void> {
  return new Promise((done, failed) => {
    archive.entry({ ...attributes, name }, content, (error) => (error ? failed(error) : done()))
  })
}

async function blobInto(images: Images, archive: Pack, digest: string, path: string): Promise<void> {
  const size = (await images.content.find(digest))?.bytes
  if (size === undefined) throw new Fault(`save ${digest}`, { cause: 'it is gone' })
  const sink = archive.entry({ ...attributes, name: blobEntry(digest), size })
  await pipeline(createReadStream(path, { highWaterMark: 256 * 1024 }), sink)
}
