// load.ts: images from an archive. It is spooled entry by entry below `incoming/`, since what names the entries may come
// after them; each is hashed on the way, and taken into the store by its digest.
import { createHash } from 'node:crypto'
import { open, readFile, unlink } from 'node:fs/promises'
import { join } from 'node:path'
import type { Readable } from 'node:stream'
import { Failure, type ImageStep, invariant } from '@berth/contracts'
import {
  choosePlatform,
  compressionOf,
  type Descriptor,
  entryName,
  layerMediaType,
  linkedEntry,
  MAX_CONFIG_BYTES,
  MAX_MANIFEST_BYTES,
  mediaTypes,
  parseDockerManifest,
  parseDocument,
  parseImageConfig,
  parseLayoutIndex,
  writtenManifest,
} from '@berth/oci'
import { packedAtMost, tooMuch } from './budget.js'
import { digestOf, withRoom } from './content.js'
import { eachEntry, type TarEntry } from './entries.js'
import { type Images, nodePlatform } from './images.js'
import { layerLimits } from './layers.js'
import type { ManifestDescriptor } from './records.js'
import type { Room } from './room.js'

type Loaded = Extract<ImageStep, { step: 'done' }>['images']

/** Entries of an archive: an image has a few and one a layer. */
const MAX_ENTRIES = 20_000
/** Of all entries together. */
const MAX_ARCHIVE_BYTES = 4 * layerLimits.maxBytes

interface Entry {
  readonly path: string
  readonly digest: string
  readonly size: number
}

export interface LoadLimits {
  /** Most bytes that may be unpacked newly. */
  readonly maxBytes?: number | undefined
  /** Most bytes that all images together may have, whether they are here or not: what has more is not even spooled. */
  readonly quotaBytes?: number | undefined
}

/**
 * Takes in every image of an archive: `docker save`'s, or an OCI layout in a tar; gzip or zstd around it.
 * @throws Failure archive_invalid, image_invalid, platform_unsupported, quota_exceeded, no_capacity
 */
export function load(
  images: Images,
  source: Readable,
  { maxBytes, quotaBytes }: LoadLimits,
  signal: AbortSignal,
): Promise<Loaded> {
  const most = quotaBytes === undefined ? MAX_ARCHIVE_BYTES : Math.min(packedAtMost(quotaBytes), MAX_ARCHIVE_BYTES)
  return images.content.withIncoming(async (directory) => {
    const entries = await spool(source, directory, images.content.room, most, signal)
    const archive = new Archive(images, entries, signal)
    return archive.take(maxBytes)
  })
}

class Archive {
  constructor(
    private readonly images: Images,
    private readonly entries: ReadonlyMap<string, Entry>,
    private readonly signal: AbortSignal,
  ) {}

  async take(maxBytes: number | undefined): Promise<Loaded> {
    const found = this.entries.has('index.json') ? await this.#layout() : await this.#docker()
    const loaded: Loaded = []
    let left = maxBytes
    for (const { manifest, references } of found) {
      const before = await this.#sizes()
      const image = await this.images.compose(manifest, {
        platform: nodePlatform,
        ...(left === undefined ? {} : { maxBytes: left }),
        signal: this.signal,
        obtain: (descriptor) => this.#obtain(descriptor),
      })
      const added = image.layers.filter(({ diffId }) => !before.has(diffId))
      if (left !== undefined) left = Math.max(0, left - added.reduce((sum, layer) => sum + layer.unpackedBytes, 0))
      loaded.push({ image, references: [...references] })
    }
    return loaded
  }

  async #sizes(): Promise<ReadonlySet<string>> {
    return new Set(await this.images.layers.list())
  }

  /** Only what is in the archive is taken: the node may have a blob that whoever sends this does not. */
  async #obtain({ digest, size }: Descriptor): Promise<void> {
    const entry = this.#blob(digest)
    if (!entry) throw new Failure('archive_invalid', `the blob ${digest} is not in the archive`)
    if (entry.size !== size)
      throw new Failure('image_invalid', `the blob ${digest} has ${entry.size} bytes, and ${size} are promised`)
    await this.images.content.adopt(entry.path, digest)
  }

  #blob(digest: string): Entry | undefined {
    this.#byDigest ??= new Map([...this.entries.values()].map((entry) => [entry.digest, entry]))
    return this.#byDigest.get(digest)
  }
  #byDigest: ReadonlyMap<string, Entry> | undefined

  async #read(name: string, most: number): Promise<Buffer> {
    const entry = this.entries.get(name)
    if (!entry) throw new Failure('archive_invalid', `it has no ${name}`)
    if (entry.size > most)
      throw new Failure('archive_invalid', `${name} is larger than the ${most} bytes that are read`)
    return readFile(entry.path)
  }

  /** Of a layout; `manifest.json` beside it is for older programs and says the same. */
  async #layout() {
    const found: { manifest: ManifestDescriptor; references: readonly string[] }[] = []
    for (const { descriptor, references } of parseLayoutIndex(await this.#read('index.json', MAX_MANIFEST_BYTES))) {
      const { digest, bytes, mediaType } = await this.#manifest(descriptor)
      await this.images.content.add(bytes)
      found.push({ manifest: { mediaType, digest, size: bytes.length }, references })
    }
    return found
  }

  async #manifest(descriptor: Descriptor) {
    let { digest } = descriptor
    for (let depth = 0; depth < 4; depth++) {
      const entry = this.#blob(digest)
      if (!entry) throw new Failure('archive_invalid', `the manifest ${digest} is not in the archive`)
      if (entry.size > MAX_MANIFEST_BYTES) throw new Failure('image_invalid', `the manifest ${digest} is too large`)
      const bytes = await readFile(entry.path)
      const document = parseDocument(bytes)
      if (document.kind === 'manifest') {
        const mediaType = document.manifest.mediaType ?? descriptor.mediaType
        return { digest, bytes, mediaType: mediaType.includes('manifest') ? mediaType : mediaTypes.manifest }
      }
      digest = choosePlatform(document.index, nodePlatform).digest
    }
    throw new Failure('image_invalid', 'indexes in indexes without an end')
  }

  /** Of `docker save` before Docker 25: it names no manifest, so one is written here. */
  async #docker() {
    const found: { manifest: ManifestDescriptor; references: readonly string[] }[] = []
    for (const { config, layers, references } of parseDockerManifest(
      await this.#read('manifest.json', MAX_MANIFEST_BYTES),
    )) {
      const configuration = this.entries.get(config)
      parseImageConfig(await this.#read(config, MAX_CONFIG_BYTES))
      const descriptors: Descriptor[] = []
      for (const name of layers) {
        const entry = this.entries.get(name)
        if (!entry) throw new Failure('archive_invalid', `the layer ${name} is not in the archive`)
        const mediaType = layerMediaType(compressionOf(await beginning(entry.path)))
        descriptors.push({ mediaType, digest: entry.digest, size: entry.size })
      }
      if (!configuration) throw new Failure('archive_invalid', `it has no ${config}`)
      const bytes = writtenManifest(configuration, descriptors)
      const digest = await this.images.content.add(bytes)
      found.push({ manifest: { mediaType: mediaTypes.manifest, digest, size: bytes.length }, references })
    }
    return found
  }
}

/** The first bytes of a file. */
export async function beginning(path: string): Promise<Buffer> {
  const file = await open(path)
  try {
    const { buffer, bytesRead } = await file.read(Buffer.alloc(4), 0, 4, 0)
    return buffer.subarray(0, bytesRead)
  } finally {
    await file.close()
  }
}

async function spool(
  source: Readable,
  directory: string,
  room: Room,
  most: number,
  signal: AbortSignal,
): Promise<ReadonlyMap<string, Entry>> {
  const entries = new Map<string, Entry>()
  const links = new Map<string, string>()
  let [bytes, files] = [0, 0]
  const take = async (entry: TarEntry) => {
    const { name: written, type, size, linkname } = entry.header
    const name = entryName(written)
    bytes += size
    if (files + links.size >= MAX_ENTRIES) throw new Failure('archive_invalid', 'it has too many entries')
    if (bytes > most) throw most < MAX_ARCHIVE_BYTES ? tooMuch() : new Failure('archive_invalid', 'it is too large')
    if (type === 'file' || type === 'contiguous-file') {
      const path = join(directory, String(files++))
      const before = entries.get(name)
      entries.set(name, await withRoom(() => hashed(entry, path, room)))
      // Who adds to a tar writes a name again: the last one counts.
      if (before) await unlink(before.path)
    } else {
      const target =
        type === 'symlink' || type === 'link' ? linkedEntry(type === 'link' ? '' : name, linkname ?? '') : undefined
      if (target !== undefined) links.set(name, target)
      entry.resume()
    }
  }
  await eachEntry(source, take, signal)
  // `docker save` wrote layers that are in two images as links (of links, perhaps).
  for (const [name, target] of links) {
    const entry = entries.get(target) ?? entries.get(links.get(target) ?? '')
    if (entry && !entries.has(name)) entries.set(name, entry)
  }
  return entries
}

/** @param most bytes @throws Failure quota_exceeded, no_capacity */
export async function hashed(
  source: AsyncIterable<unknown>,
  path: string,
  room: Room,
  most = MAX_ARCHIVE_BYTES,
): Promise<Entry> {
  const hash = createHash('sha256')
  const file = await open(path, 'wx', 0o600)
  let size = 0
  try {
    for await (const chunk of source) {
      invariant(chunk instanceof Uint8Array, 'bytes come as bytes')
      if (size + chunk.length > most) throw tooMuch()
      hash.update(chunk)
      await room.want(chunk.length)
      await file.appendFile(chunk)
      size += chunk.length
    }
  } finally {
    await file.close()
  }
  return { path, digest: digestOf(hash), size }
}
