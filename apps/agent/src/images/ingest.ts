// ingest.ts: a layer that is made here, in one pass: tar → its digest, and its blob, and its files.
import { createHash, type Hash } from 'node:crypto'
import { open } from 'node:fs/promises'
import { join } from 'node:path'
import { Readable, Transform, type Writable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { createGzip, type Gzip } from 'node:zlib'
import type { ImageLayer } from '@berth/contracts'
import { tooMuch } from './budget.js'
import { digestOf, withRoom } from './content.js'
import type { Images } from './images.js'
import { layerLimits, PACKED } from './layers.js'
import type { Room } from './room.js'
import { type LayerLimits, LayerTooLarge, tarAtMost, unpackTar } from './unpack.js'

const CHUNK = 256 * 1024

/**
 * Takes a layer into the store, whole or not at all; one that is there is not kept twice. Nothing of it is synced until
 * `images.assemble` has an image of it, and it is kept for ten minutes, or as long as one of `images.keepers` names it.
 * @param maxBytes of its files
 * @param groups directories of control groups in which it is unpacked
 * @throws Failure image_invalid for what is not allowed in a layer, quota_exceeded, no_capacity; what `tar` fails with
 */
export async function addLayer(
  images: Images,
  tar: Readable,
  {
    maxBytes = layerLimits.maxBytes,
    groups,
    signal,
  }: { readonly maxBytes?: number; readonly groups?: readonly string[]; readonly signal: AbortSignal },
): Promise<ImageLayer> {
  const limits = { ...layerLimits, maxBytes: Math.min(maxBytes, layerLimits.maxBytes) }
  const source = new Source(tar)
  const make = async (directory: string, bounded: LayerLimits) => {
    const feed = (into: Writable) =>
      parted(source.readable(), into, join(directory, PACKED), images.content.room, tarAtMost(bounded), signal)
    const { fed, bytes } = await unpackTar(images.program, join(directory, 'fs'), bounded, signal, false, feed, groups)
    return { ...fed, unpackedBytes: bytes }
  }
  try {
    return await images.layers.add(limits, make, (diffId) => images.touch(diffId))
  } catch (caught) {
    signal.throwIfAborted()
    // A tar that breaks off is no tar, which berth-layer would say of it.
    const error = source.error ?? caught
    throw error instanceof LayerTooLarge && maxBytes < layerLimits.maxBytes ? tooMuch() : error
  } finally {
    tar.destroy()
  }
}

/** A tar, and why it broke off, which is never that whoever reads it did. */
class Source {
  error: unknown

  constructor(private readonly tar: Readable) {
    // It may break off before it is read; who reads it is told then.
    tar.on('error', () => undefined)
  }

  readable(): Readable {
    return Readable.from(this.chunks(), { objectMode: false })
  }

  private async *chunks(): AsyncGenerator<Buffer> {
    const reading: AsyncIterator<Buffer> = this.tar[Symbol.asyncIterator]()
    try {
      for (;;) {
        const { done, value } = await reading.next().catch((error: unknown) => {
          this.error = error
          throw error
        })
        if (done) return
        yield value
      }
    } finally {
      await reading.return?.()
    }
  }
}

/** Writes a tar into two ends, as fast as the slower takes it. */
async function parted(tar: Readable, into: Writable, path: string, room: Room, most: number, signal: AbortSignal) {
  const [contents, packed] = [createHash('sha256'), createHash('sha256')]
  const gzip = createGzip({ level: 1, chunkSize: CHUNK })
  const both = tee(contents, gzip, most)
  const sizeBytes = withRoom(() => written(gzip, path, packed, room)).catch((error: unknown) => {
    both.destroy(error instanceof Error ? error : undefined)
    throw error
  })
  const [through, size] = await Promise.allSettled([
    pipeline([tar, both, into], { signal }).catch((error: unknown) => {
      gzip.destroy()
      throw error
    }),
    sizeBytes,
  ])
  if (through.status === 'rejected') throw through.reason
  if (size.status === 'rejected') throw size.reason
  return { diffId: digestOf(contents), digest: digestOf(packed), sizeBytes: size.value }
}

function tee(hash: Hash, gzip: Gzip, most: number): Transform {
  let bytes = 0
  return new Transform({
    highWaterMark: CHUNK,
    transform(chunk: Buffer, _encoding, done) {
      bytes += chunk.length
      if (bytes > most) return done(new LayerTooLarge('a layer cannot be packed: it is too large'))
      hash.update(chunk)
      if (gzip.write(chunk)) done(null, chunk)
      else gzip.once('drain', () => done(null, chunk))
    },
    flush(done) {
      gzip.end()
      done()
    },
  })
}

/** @returns bytes */
async function written(source: Readable, path: string, hash: Hash, room: Room): Promise<number> {
  const file = await open(path, 'wx', 0o600)
  let size = 0
  try {
    for await (const chunk of source) {
      hash.update(chunk)
      await room.want(chunk.length)
      await file.appendFile(chunk)
      size += chunk.length
    }
  } finally {
    await file.close()
  }
  return size
}
