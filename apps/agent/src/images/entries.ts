// entries.ts: what is in a tar, plain or packed, one entry after another, as it comes.
import { PassThrough, Readable, Writable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { Failure, Fault } from '@berth/contracts'
import { compressionOf } from '@berth/oci'
import { extract } from 'tar-stream'
import { abortable } from './exclusive.js'
import { inflate, type Packing } from './inflate.js'
import { withoutHoles } from './sparse.js'

type Tar = ReturnType<typeof extract>
/** An entry: its header, and its bytes as they come. */
export type TarEntry = Tar extends AsyncIterable<infer Entry> ? Entry : never

const BLOCK = 512
/** Of the headers of one entry. What a global one says is copied for each entry that has one of its own. */
const MAX_HEADER_FIELDS = 1000
/** Those of before 1988 too: a header is known by its checksum. */
const anyFormat = { highWaterMark: 16_384, allowUnknownFormat: true }

export interface TarLimits {
  /** Most bytes of the tar, unpacked, holes of sparse files as the zeros that they are. */
  readonly maxBytes?: number
  /** A tar that ends without its mark, blocks of zeros, was cut. */
  readonly marked?: boolean
}

/**
 * Has `take` look at each entry, sparse files as others; it reads the bytes to their end, or resumes the entry.
 * @throws Failure archive_invalid where it cannot be read to its end; what `take` throws
 */
export async function eachEntry(
  source: Readable,
  take: (entry: TarEntry) => Promise<void>,
  signal: AbortSignal,
  limits: TarLimits = {},
): Promise<void> {
  const tar = extract(anyFormat)
  // Each of the two waits for the other: that one fails has to end both.
  const ending = (error: unknown) => {
    tar.destroy()
    throw error
  }
  const reading = unpacked(source, tar, limits, signal).catch(ending)
  const taking = (async () => {
    for await (const entry of tar) {
      checkFields(entry)
      await take(entry)
    }
  })().catch(ending)
  const [read, taken] = await Promise.allSettled([reading, taking])
  signal.throwIfAborted()
  if (taken.status === 'rejected' && isOwn(taken.reason)) throw taken.reason
  for (const end of [read, taken]) if (end.status === 'rejected') throw broken(end.reason)
}

/** Whether it is of what was done with an entry, and not of the archive that it is read from: a disk may fail, or files run out. */
const isOwn = (error: unknown): boolean =>
  error instanceof Failure || error instanceof Fault || (error instanceof Error && 'syscall' in error)

/** @throws Failure archive_invalid */
function checkFields({ header }: TarEntry): void {
  let fields = 0
  for (const _ in header.pax ?? {})
    if (++fields > MAX_HEADER_FIELDS)
      throw new Failure('archive_invalid', `an entry with more than ${MAX_HEADER_FIELDS} fields in its headers`)
}

/** What is wrong with an archive is the sender's matter, all else is not. */
function broken(error: unknown): unknown {
  if (error instanceof Failure && error.code !== 'image_invalid') return error
  const why = error instanceof Error ? error.message : String(error)
  return new Failure('archive_invalid', `it is no tar, or damaged: ${why}`)
}

/** How it is packed, by its first six bytes. */
export function packingOf(beginning: Uint8Array): Packing {
  const begins = (...bytes: readonly number[]) => bytes.every((byte, at) => beginning[at] === byte)
  if (begins(0x42, 0x5a, 0x68)) return 'bzip2'
  if (begins(0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00)) return 'xz'
  return compressionOf(beginning)
}

/** Copies what is packed, in whatever way, into the tar's reader. */
async function unpacked(source: Readable, tar: Tar, limits: TarLimits, signal: AbortSignal): Promise<void> {
  const { maxBytes = Number.POSITIVE_INFINITY, marked = false } = limits
  const bytes: AsyncIterator<Buffer> = source[Symbol.asyncIterator]()
  let first: Buffer = Buffer.alloc(0)
  while (first.length < 6) {
    const next = await abortable(bytes.next(), signal)
    if (next.done) break
    first = Buffer.concat([first, next.value])
  }
  if (first.length === 0) throw new Failure('archive_invalid', 'it is empty')
  let [last, size]: [Buffer, number] = [Buffer.alloc(0), 0]
  // tar-stream's streams are not node's own: this one is.
  const sink = new Writable({
    write: (chunk: Buffer, _encoding, done) => {
      last = chunk.length < BLOCK ? Buffer.concat([last, chunk]).subarray(-BLOCK) : chunk.subarray(-BLOCK)
      size += chunk.length
      if (size > maxBytes) done(new Failure('archive_invalid', `more than ${maxBytes} bytes`))
      else if (tar.write(chunk)) done()
      else tar.once('drain', done)
    },
    final: (done) => {
      if (marked && (last.length < BLOCK || last.some((byte) => byte !== 0)))
        done(new Failure('archive_invalid', 'it was cut: the mark of its end is missing'))
      else tar.end(done)
    },
  })
  tar.once('close', () => sink.destroy())
  const plain = new PassThrough()
  // Not `Duplex.from`: of node 20, one that is destroyed while it waits for bytes never ends.
  const passing = pipeline(plain, withoutHoles(maxBytes), sink, { signal })
  const inflating = inflate(Readable.from(again(first, bytes, signal)), packingOf(first), [plain], signal)
  // It may fail before it has anything to do with `plain`, which would be waited for without an end.
  inflating.catch((error: unknown) => plain.destroy(error instanceof Error ? error : undefined))
  const ends = await Promise.allSettled([passing, inflating])
  const reasons = ends.flatMap((end) => (end.status === 'rejected' ? [end.reason] : []))
  // Where both fail, one only knows that the other did.
  if (reasons.length > 0) throw reasons.find((reason) => reason instanceof Failure) ?? reasons[0]
}

/** Ends with the signal: nothing else would wake it from waiting for bytes that do not come. */
async function* again(first: Buffer, rest: AsyncIterator<Buffer>, signal: AbortSignal): AsyncGenerator<Buffer> {
  yield first
  const more = () => abortable(rest.next(), signal)
  for (let next = await more(); !next.done; next = await more()) yield next.value
}
