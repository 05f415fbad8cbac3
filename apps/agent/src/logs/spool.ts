// spool.ts: a stream of bytes on disk of which at least the last `keepBytes` are kept, for as long as anybody may want to
// read on from somewhere. It lies in segment files, `<name>.<offset of the first byte>`; the oldest is removed once
// enough lies behind it. Offsets are those of the stream, so names and sizes say everything after a crash: a killed
// writer leaves a segment that is shorter, never one that is wrong, and goes on at its end.
//
// The writer waits for nobody: a reader that is further behind than what is kept is told of the gap. Bytes are told as
// stored (and acknowledged to berth-init) once they are in a file. The disk being full costs output, which readers see
// as a gap, and not the command.
//
// The first bytes are written synchronously, the rest is not: measured, 12 bytes take 40 µs with directory and file
// where each asynchronous call waits for a thread to wake, but a flood must not hold the event loop while the kernel
// makes it wait for the disk. Of a stream that stays small there need not be a file at all (`holdBytes`): on a disk that
// others keep busy, two of them were the larger half of what a short command cost.

import {
  closeSync,
  constants,
  mkdirSync,
  openSync,
  readdirSync,
  readSync,
  rmSync,
  statSync,
  writeSync,
  writev,
} from 'node:fs'
import { type FileHandle, open, unlink } from 'node:fs/promises'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { errnoOf, Fault, KiB, MiB } from '@berth/contracts'
import type { OutputSink } from '../runtime/processes.js'
import { Changes } from './changes.js'

const writeAsync = promisify(writev)

export interface SpoolOptions {
  /** Made with the first byte; may hold other spools. */
  readonly directory: string
  /** Of the stream, e.g. `stdout`. */
  readonly name: string
  readonly keepBytes: number
  /** Told whenever there is more to read, or no more to come; several spools may share one. */
  readonly changes?: Changes
  /** Called when a segment after the first was begun: what all spools take together may be too much now. */
  readonly onSegment?: () => void
  /** Size of a segment. Default: a quarter of what is kept, between 4 KiB and 4 MiB. */
  readonly segmentBytes?: number
  /** The first so many bytes of the stream are written synchronously. Default: 64 KiB */
  readonly promptBytes?: number
  /**
   * A stream of at most so many bytes is held in memory, and not told as stored: its owner stores `held` when it has
   * ended. Default: 0
   */
  readonly holdBytes?: number
}

/** What a reader meets: bytes, or that it goes on further on. */
export type Piece =
  | { readonly kind: 'bytes'; readonly offset: number; readonly bytes: Buffer }
  | { readonly kind: 'gap'; readonly offset: number }

interface Segment {
  readonly start: number
  size: number
}

interface Pending {
  readonly offset: number
  readonly bytes: Buffer
  readonly stored: (offset: number) => void
}

/** What was written this little ago is in the page cache: reading it is no wait, and needs no other open file. */
const HOT_BYTES = 64 * KiB
/** Of a flood, that much is held in memory as it came, for those who read along with it, and for so long. */
const FLOOD_BYTES = 512 * KiB
const FLOOD_MS = 1000
/** Less at once is no flood. */
const FLOOD_PIECE = 2 * KiB
/** So much in one piece is read as it is; shorter ones are read together. */
const LONG_PIECE = 16 * KiB
const OFFSET_DIGITS = 16
const NOTHING = Buffer.alloc(0)

export class Spool implements OutputSink {
  readonly changes: Changes
  readonly #options: SpoolOptions
  readonly #segmentBytes: number
  readonly #promptBytes: number
  #segments: Segment[]
  /** All of the stream, while it is small enough to be held. */
  #held: Buffer | undefined
  /** Of the last segment, while it is written to. */
  #fd: number | undefined
  #total: number
  /** Like `total`, with what is still pending. */
  #taken: number
  #pending: Pending[] = []
  #writing: Promise<void> | undefined
  /** The last pieces of a flood, in their order. */
  #flood: Pending[] = []
  #flooded = 0
  #ebb: NodeJS.Timeout | undefined
  #ended = false
  #failure: Fault | undefined

  private constructor(options: SpoolOptions, segments: Segment[], held: Buffer) {
    this.#options = options
    this.changes = options.changes ?? new Changes()
    this.#segmentBytes = options.segmentBytes ?? Math.min(4 * MiB, Math.max(4 * KiB, Math.ceil(options.keepBytes / 4)))
    this.#promptBytes = options.promptBytes ?? 64 * KiB
    this.#segments = segments
    this.#held = options.holdBytes && segments.length === 0 ? held : undefined
    this.#total = this.#held?.length ?? endOf(segments.at(-1))
    this.#taken = this.#total
  }

  /** A stream that has nothing on disk yet. */
  static begin(options: SpoolOptions): Spool {
    return new Spool(options, [], NOTHING)
  }

  /**
   * Goes on where a former process ended.
   * @param held what was stored of a stream that was held
   * @throws Fault when the directory cannot be read
   */
  static resume(options: SpoolOptions, held: Buffer = NOTHING): Spool {
    return new Spool(options, segmentsIn(options), held)
  }

  /** Bytes of the stream so far, including what is no longer kept. */
  get total(): number {
    return this.#total
  }

  /** Offset of the first byte that is kept. */
  get from(): number {
    if (this.#held) return 0
    return this.#segments[0]?.start ?? this.#total
  }

  /** Bytes on disk. */
  get kept(): number {
    return this.#segments.reduce((sum, { size }) => sum + size, 0)
  }

  /** The whole stream, where it is small enough to be held in memory: nothing of it is on disk. */
  get held(): Buffer | undefined {
    return this.#held
  }

  get ended(): boolean {
    return this.#ended
  }

  /** Why some bytes could not be kept, if so. */
  get failure(): Fault | undefined {
    return this.#failure
  }

  /** The stream goes on at `offset`: what lies between the last file's end and it could not be kept. */
  resume(offset: number): void {
    if (offset > this.#total) this.#unhold()
    this.#total = Math.max(this.#total, offset)
    this.#taken = Math.max(this.#taken, offset)
  }

  append(offset: number, bytes: Buffer, stored: (offset: number) => void): void {
    const fresh = bytes.subarray(Math.max(0, this.#taken - offset))
    const pending = { offset: Math.max(this.#taken, offset), bytes: fresh, stored }
    if (this.#hold(pending)) return
    this.#taken = pending.offset + fresh.length
    if (!this.#writing && this.#taken <= this.#promptBytes) this.#writeNow(pending)
    else {
      this.#pending.push(pending)
      this.#writing ??= this.#write()
    }
  }

  /** Resolves when everything taken is stored. */
  async settled(): Promise<void> {
    await this.#writing
  }

  /** No more will come: readers come to an end. */
  async end(): Promise<void> {
    await this.close()
    this.#ended = true
    this.changes.tell()
  }

  /** Lets go of the files; another process may go on with the stream. */
  async close(): Promise<void> {
    await this.#writing
    this.#forget()
    this.#closeFile()
  }

  /** Removes the oldest segment, even if it is within what was to be kept. @returns bytes that it freed; 0: none left */
  async dropOldest(): Promise<number> {
    const oldest = this.#segments[0]
    if (!oldest || (this.#segments.length === 1 && !this.#ended)) return 0
    this.#segments.shift()
    await this.#remove(oldest)
    return oldest.size
  }

  /** Ends the stream and removes all of it: readers find a gap, and the end. */
  async discard(): Promise<void> {
    await this.end()
    this.#held = undefined
    while ((await this.dropOldest()) > 0);
  }

  /** @param since offset of the first byte wanted; beyond the end it waits there */
  reader(since: number): SpoolReader {
    return new SpoolReader(this, since)
  }

  /** The last `limit` bytes at most of what is kept without a gap up to the end. */
  async tail(limit: number): Promise<{ readonly offset: number; readonly bytes: Buffer }> {
    const reader = this.reader(Math.max(this.from, this.#total - limit))
    try {
      const end = this.#total // of a stream that goes on there may be no end to what follows
      let offset = reader.offset
      let parts: Buffer[] = []
      while (reader.offset < end) {
        const piece = await reader.read(end - reader.offset)
        if (piece?.kind === 'bytes') parts.push(piece.bytes)
        else [offset, parts] = [reader.offset, []]
      }
      return { offset, bytes: parts.length === 1 && parts[0] ? parts[0] : Buffer.concat(parts) }
    } finally {
      await reader.close()
    }
  }

  /** For readers: the segment that holds the byte at `offset`, or where reading goes on; undefined at the end. */
  locate(offset: number): { readonly start: number; readonly end: number } | { readonly gap: number } | undefined {
    if (offset >= this.#total) return undefined
    if (this.#held) return { start: 0, end: this.#total }
    const segment = this.#segments.find((candidate) => offset < endOf(candidate))
    if (!segment) return { gap: this.#total }
    if (offset < segment.start) return { gap: segment.start }
    return { start: segment.start, end: Math.min(endOf(segment), this.#total) }
  }

  /** For readers: bytes that were written a moment ago, without a wait; undefined where that cannot be. */
  readHot(offset: number, end: number): Buffer | undefined {
    if (this.#held) return this.#held.subarray(offset, end)
    const along = this.#floodFrom(offset, end)
    if (along) return along
    const last = this.#segments.at(-1)
    if (!last || offset < last.start || this.#total - offset > HOT_BYTES) return undefined
    return this.#fd === undefined ? undefined : readNow(this.#fd, offset - last.start, end - offset)
  }

  /** For readers. @returns undefined when the segment is no longer kept */
  async openSegment(start: number): Promise<FileHandle | undefined> {
    try {
      return await open(this.#path({ start }), constants.O_RDONLY | constants.O_NOFOLLOW)
    } catch (cause) {
      if (errnoOf(cause) === 'ENOENT') return undefined
      throw new Fault(`read ${this.#path({ start })}`, { cause })
    }
  }

  #path({ start }: Pick<Segment, 'start'>): string {
    return join(this.#options.directory, `${this.#options.name}.${String(start).padStart(OFFSET_DIGITS, '0')}`)
  }

  /** @returns false where the stream is, or becomes, too large for that */
  #hold({ offset, bytes }: Pending): boolean {
    const { holdBytes = 0 } = this.#options
    if (!this.#held) return false
    if (offset !== this.#held.length || offset + bytes.length > holdBytes) {
      this.#unhold()
      return false
    }
    this.#held = Buffer.concat([this.#held, bytes])
    this.#taken = this.#held.length
    this.#advance(this.#held.length)
    return true
  }

  /** Writes what was held. It is told as stored with the bytes after it. */
  #unhold(): void {
    const held = this.#held
    this.#held = undefined
    if (held && held.length > 0) this.#writeNow({ offset: 0, bytes: held, stored: () => undefined })
  }

  #writeNow({ offset, bytes, stored }: Pending): void {
    let done = 0
    try {
      while (done < bytes.length) {
        const { fd, segment, room } = this.#place(offset + done)
        const written = writeSync(fd, bytes, done, Math.min(room, bytes.length - done), segment.size)
        segment.size += written
        done += written
      }
    } catch (error) {
      this.#lose(error)
    }
    this.#advance(offset + bytes.length)
    stored(this.#total)
    for (const segment of this.#outdated()) rmSync(this.#path(segment), { force: true })
  }

  async #write(): Promise<void> {
    for (let [next] = this.#pending; next; [next] = this.#pending) {
      const batch = takeContiguous(this.#pending)
      this.#pending = this.#pending.slice(batch.length)
      const last = batch.at(-1) ?? next
      await this.#keep(batch, next.offset, endOfPart(last))
      for (const part of batch) this.#remember(part)
      this.#advance(endOfPart(last))
      last.stored(this.#total)
      for (const segment of this.#outdated()) await this.#remove(segment)
    }
    this.#writing = undefined
  }

  #floodFrom(offset: number, end: number): Buffer | undefined {
    const first = this.#flood.findIndex((part) => offset >= part.offset && offset < endOfPart(part))
    if (first < 0) return undefined
    const parts = takeContiguous(this.#flood.slice(first))
    const cut = parts.flatMap((part) => within(part, offset, end))
    const [next = NOTHING] = cut
    return cut.length === 1 || next.length >= LONG_PIECE ? next : Buffer.concat(cut)
  }

  #remember(part: Pending): void {
    if (part.bytes.length < FLOOD_PIECE || this.#failure) return
    this.#flood.push(part)
    this.#flooded += part.bytes.length
    while (this.#flooded > FLOOD_BYTES) this.#flooded -= this.#flood.shift()?.bytes.length ?? this.#flooded
    if (this.#ebb) this.#ebb.refresh()
    else this.#ebb = setTimeout(() => this.#forget(), FLOOD_MS).unref()
  }

  #forget(): void {
    clearTimeout(this.#ebb)
    this.#ebb = undefined
    this.#flood = []
    this.#flooded = 0
  }

  /** @param batch without a hole, from `offset` to `end` */
  async #keep(batch: readonly Pending[], offset: number, end: number): Promise<void> {
    try {
      for (let at = offset; at < end; ) {
        const { fd, segment, room } = this.#place(at)
        const parts = batch.flatMap((part) => within(part, at, at + room))
        const { bytesWritten } = await writeAsync(fd, parts, segment.size)
        segment.size += bytesWritten
        at += bytesWritten
      }
    } catch (error) {
      this.#lose(error)
    }
  }

  /** The file that the byte at `offset` belongs into: the last one, or another where that is full or ends elsewhere. */
  #place(offset: number): { readonly fd: number; readonly segment: Segment; readonly room: number } {
    const last = this.#segments.at(-1)
    if (last && endOf(last) === offset && last.size < this.#segmentBytes) {
      this.#fd ??= openSync(this.#path(last), WRITE_FLAGS, 0o600)
      return { fd: this.#fd, segment: last, room: this.#segmentBytes - last.size }
    }
    this.#closeFile()
    const segment = { start: offset, size: 0 }
    this.#fd = this.#create(this.#path(segment))
    this.#segments.push(segment)
    if (this.#segments.length > 1) this.#options.onSegment?.()
    return { fd: this.#fd, segment, room: this.#segmentBytes }
  }

  #create(path: string): number {
    try {
      return openSync(path, WRITE_FLAGS, 0o600)
    } catch (error) {
      if (errnoOf(error) !== 'ENOENT') throw error
      mkdirSync(this.#options.directory, { recursive: true, mode: 0o700 })
      return openSync(path, WRITE_FLAGS, 0o600)
    }
  }

  /** What could not be written is dropped; the next bytes are tried again, in a segment of their own. */
  #lose(cause: unknown): void {
    this.#failure = new Fault(`store ${this.#options.name} in ${this.#options.directory}`, { cause })
    this.#closeFile()
    const last = this.#segments.at(-1)
    if (!last || last.size > 0) return
    this.#segments.pop()
    rmSync(this.#path(last), { force: true })
  }

  #advance(total: number): void {
    this.#total = Math.max(this.#total, total)
    this.changes.tell()
  }

  /** Takes the segments out that nothing is wanted of any more; their files are left to remove. */
  #outdated(): readonly Segment[] {
    const from = this.#total - this.#options.keepBytes
    const first = this.#segments.findIndex((segment, i) => endOf(segment) > from || i === this.#segments.length - 1)
    return this.#segments.splice(0, Math.max(0, first))
  }

  async #remove(segment: Segment): Promise<void> {
    try {
      await unlink(this.#path(segment))
    } catch (cause) {
      if (errnoOf(cause) === 'ENOENT') return
      this.#failure = new Fault(`remove ${this.#path(segment)}`, { cause })
    }
  }

  #closeFile(): void {
    if (this.#fd !== undefined) closeSync(this.#fd)
    this.#fd = undefined
  }
}

/** Reads a spool from an offset on; several at once do not know of each other. To be closed. */
export class SpoolReader {
  readonly #spool: Spool
  #offset: number
  #open: { readonly start: number; readonly file: FileHandle } | undefined

  constructor(spool: Spool, since: number) {
    this.#spool = spool
    this.#offset = since
  }

  /** Of the next byte. */
  get offset(): number {
    return this.#offset
  }

  /**
   * The next piece, of at most `limit` bytes; undefined where there is none now (see `changes` and `ended`).
   * @throws Fault when the file cannot be read
   */
  async read(limit: number): Promise<Piece | undefined> {
    for (;;) {
      const place = this.#spool.locate(this.#offset)
      if (!place) return undefined
      if ('gap' in place) return this.#skip(place.gap)
      const end = Math.min(place.end, this.#offset + limit)
      const bytes = this.#spool.readHot(this.#offset, end) ?? (await this.#readFrom(place.start, end))
      if (bytes && bytes.length > 0) return this.#pass(bytes)
      // It was removed in between, and a gap is found next; or by somebody else, and there is nothing to be found.
      const now = this.#spool.locate(this.#offset)
      if (now && 'start' in now && now.start === place.start)
        throw new Fault('read output', { cause: new Error(`the byte at ${this.#offset} is not in its file`) })
    }
  }

  async close(): Promise<void> {
    const { file } = this.#open ?? {}
    this.#open = undefined
    await file?.close()
  }

  #skip(offset: number): Piece {
    this.#offset = offset
    return { kind: 'gap', offset }
  }

  #pass(bytes: Buffer): Piece {
    const offset = this.#offset
    this.#offset += bytes.length
    return { kind: 'bytes', offset, bytes }
  }

  async #readFrom(start: number, end: number): Promise<Buffer | undefined> {
    if (this.#open?.start !== start) {
      await this.close()
      const file = await this.#spool.openSegment(start)
      if (!file) return undefined
      this.#open = { start, file }
    }
    const length = end - this.#offset
    const { buffer, bytesRead } = await this.#open.file.read(
      Buffer.allocUnsafe(length),
      0,
      length,
      this.#offset - start,
    )
    return buffer.subarray(0, bytesRead)
  }
}

const WRITE_FLAGS = constants.O_RDWR | constants.O_CREAT | constants.O_NOFOLLOW

const endOf = (segment: Segment | undefined) => (segment ? segment.start + segment.size : 0)

const endOfPart = ({ offset, bytes }: Pending) => offset + bytes.length

/** What of it lies between two offsets, if anything. */
function within({ offset, bytes }: Pending, from: number, to: number): readonly Buffer[] {
  const cut = bytes.subarray(Math.max(0, from - offset), Math.max(0, Math.min(bytes.length, to - offset)))
  return cut.length > 0 ? [cut] : []
}

/** As many as follow each other; several small writes of a command are one here. */
function takeContiguous(pending: readonly Pending[]): readonly Pending[] {
  const hole = pending.findIndex(
    (part, i) => i > 0 && part.offset !== (pending[i - 1]?.offset ?? 0) + (pending[i - 1]?.bytes.length ?? 0),
  )
  return hole < 0 ? pending : pending.slice(0, hole)
}

function readNow(fd: number, position: number, length: number): Buffer {
  const buffer = Buffer.allocUnsafe(length)
  return buffer.subarray(0, readSync(fd, buffer, 0, length, position))
}

/** Empty ones were begun and never written to. */
function segmentsIn({ directory, name }: SpoolOptions): Segment[] {
  const form = new RegExp(`^\\.(\\d{${OFFSET_DIGITS}})$`)
  try {
    return readdirSync(directory)
      .flatMap((file) => {
        const [, start] = (file.startsWith(name) && form.exec(file.slice(name.length))) || []
        return start === undefined ? [] : [{ start: Number(start), size: statSync(join(directory, file)).size }]
      })
      .filter(({ size }) => size > 0)
      .sort((a, b) => a.start - b.start)
  } catch (cause) {
    if (errnoOf(cause) === 'ENOENT') return []
    throw new Fault(`read ${directory}`, { cause })
  }
}
