// save.ts: images as an archive that `docker load`, skopeo and umoci read: an OCI layout in a tar, each blob once and as
// it came, so that digests stay what they are.
import { createReadStream } from 'node:fs'
import { Readable } from 'node:stream'
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
  // What reads it is told by what it awaits; without a listener a reader that leaves with an error ends the process.
  archive.on('error', () => undefined)
  // Whoever leaves destroys it, and what fills it must not wait for them.
  const left = new Promise<never>((_, reject) => archive.once('close', () => reject(new Error('nobody reads it'))))
  const filling = images.needing(blobs.keys(), async () => {
    for (const { name, content } of documents)
      await Promise.race([left, entry(archive, name, [content], content.length)])
    for (const [digest, path] of [...blobs].sort()) {
      const size = (await images.content.find(digest))?.bytes
      if (size === undefined) throw new Fault(`save ${digest}`, { cause: 'it is gone' })
      const bytes = createReadStream(path, { highWaterMark: 256 * 1024 })
      await Promise.race([left, entry(archive, blobEntry(digest), bytes, size)])
    }
    archive.finalize()
    await left
  })
  filling.catch((error: unknown) => archive.destroy(error instanceof Error ? error : new Error(String(error))))
  const abort = () => archive.destroy()
  signal.addEventListener('abort', abort, { once: true })
  archive.once('close', () => signal.removeEventListener('abort', abort))
  return Readable.from(archive, { objectMode: false })
}

type Pack = ReturnType<typeof pack>

/** The same for everybody at all times. */
const attributes = { mode: 0o644, uid: 0, gid: 0, mtime: new Date(0) }

async function entry(
  archive: Pack,
  name: string,
  bytes: AsyncIterable<Buffer> | readonly Buffer[],
  size: number,
): Promise<void> {
  let over: (error?: Error | null) => void = () => undefined
  const taken = new Promise<void>((done, failed) => {
    over = (error) => (error ? failed(error) : done())
  })
  // Told below; when whoever reads leaves, it may be while nothing waits for it.
  taken.catch(() => undefined)
  const sink = archive.entry({ ...attributes, name, size }, (error) => over(error))
  sink.on('error', (error) => over(error))
  let goOn: () => void = () => undefined
  for (const event of ['drain', 'close'] as const) sink.on(event, () => goOn())
  for await (const chunk of bytes) {
    if (sink.destroying) break
    if (!sink.write(chunk))
      await new Promise<void>((done) => {
        goOn = done
      })
  }
  if (!sink.destroying) sink.end(undefined)
  await taken
}
