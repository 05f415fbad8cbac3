// store.ts: what a command wrote, one file per stream, byte for byte. A file holds the first `limitBytes` of its stream;
// the rest is counted and dropped, so a command is never blocked or failed by what it prints. Offsets are those of the
// stream, so a file's size says where to go on after a crash, and nothing else has to be recorded.

import { constants, type FileHandle, open } from 'node:fs/promises'
import { Readable } from 'node:stream'
import { errnoOf, Fault } from '@berth/contracts'

const READ_BYTES = 64 * 1024

/** Bytes taken and not yet in the file. berth-init's ring bounds how many there can be. */
interface Pending {
  readonly bytes: Buffer
  readonly stored: (offset: number) => void
}

/** One stream of one attempt while the attempt lives. */
export class OutputFile {
  readonly #file: FileHandle
  readonly #limit: number
  #kept: number
  #total: number
  /** Like `total`, but with what is still pending. */
  #taken: number
  #pending: Pending[] = []
  #writing: Promise<void> | undefined
  #ended = false
  #failure: Error | undefined
  #version = 0
  readonly #waiting = new Set<() => void>()

  private constructor(file: FileHandle, limit: number, size: number) {
    this.#file = file
    this.#limit = limit
    this.#kept = size
    this.#total = size
    this.#taken = size
  }

  /** Opens or makes the file and goes on at its end. @throws Fault when it cannot be opened */
  static async open(path: string, limitBytes: number): Promise<OutputFile> {
    try {
      const flags = constants.O_RDWR | constants.O_CREAT | constants.O_NOFOLLOW
      const file = await open(path, flags, 0o600)
      return new OutputFile(file, limitBytes, (await file.stat()).size)
    } catch (cause) {
      throw new Fault(`open ${path}`, { cause })
    }
  }

  /** Bytes of the stream so far, dropped ones included. */
  get total(): number {
    return this.#total
  }

  /** Bytes in the file. */
  get kept(): number {
    return this.#kept
  }

  get truncated(): boolean {
    return this.#total > this.#kept
  }

  get ended(): boolean {
    return this.#ended
  }

  /** Why the file could not be written, if so; the stream was then cut at `kept`. */
  get failure(): Error | undefined {
    return this.#failure
  }

  /** The stream goes on at `offset`: what lies between the file's end and it was dropped before a restart. */
  resume(offset: number): void {
    this.#total = Math.max(this.#total, offset)
    this.#taken = Math.max(this.#taken, offset)
  }

  append(offset: number, bytes: Buffer, stored: (offset: number) => void): void {
    const fresh = bytes.subarray(Math.max(0, this.#taken - offset))
    this.#taken += fresh.length
    this.#pending.push({ bytes: fresh, stored })
    this.#writing ??= this.#write()
  }

  async settled(): Promise<void> {
    await this.#writing
  }

  /** No more will come: followers end. */
  async end(): Promise<void> {
    await this.#writing
    this.#ended = true
    this.#wake()
    await this.#file.close()
  }

  /** Grows with every change. */
  get version(): number {
    return this.#version
  }

  /** Resolves once `version` is no longer `seen`, or the signal aborts. */
  changed(seen: number, signal: AbortSignal): Promise<void> {
    return new Promise((resolve) => {
      const done = () => {
        signal.removeEventListener('abort', done)
        this.#waiting.delete(done)
        resolve()
      }
      signal.addEventListener('abort', done, { once: true })
      if (signal.aborted || seen !== this.#version) done()
      else this.#waiting.add(done)
    })
  }

  async #write(): Promise<void> {
    while (this.#pending.length > 0) {
      const batch = this.#pending
      this.#pending = []
      const bytes = batch.map((pending) => pending.bytes)
      await this.#keep(bytes)
      this.#total += bytes.reduce((sum, part) => sum + part.length, 0)
      batch.at(-1)?.stored(this.#total)
      this.#wake()
    }
    this.#writing = undefined
  }

  /** Writes what fits under the limit; at a full disk the stream is cut, and the attempt goes on. */
  async #keep(bytes: readonly Buffer[]): Promise<void> {
    const room = this.#failure ? 0 : Math.min(this.#limit - this.#kept, Number.MAX_SAFE_INTEGER)
    // A gap before these bytes means that the limit had been reached.
    if (room <= 0 || this.#total > this.#kept) return
    const fitting = takeFirst(bytes, room)
    try {
      this.#kept += await writeAll(this.#file, fitting, this.#kept)
    } catch (error) {
      this.#failure = new Fault('store output', { cause: error })
    }
  }

  #wake(): void {
    this.#version += 1
    for (const wake of [...this.#waiting]) wake()
  }
}

function takeFirst(parts: readonly Buffer[], limit: number): readonly Buffer[] {
  let room = limit
  const taken: Buffer[] = []
  for (const part of parts) {
    if (room <= 0) break
    taken.push(part.subarray(0, room))
    room -= part.length
  }
  return taken
}

async function writeAll(file: FileHandle, parts: readonly Buffer[], position: number): Promise<number> {
  const bytes = parts.length === 1 && parts[0] ? parts[0] : Buffer.concat(parts)
  let written = 0
  while (written < bytes.length) {
    const result = await file.write(bytes, written, bytes.length - written, position + written)
    written += result.bytesWritten
  }
  return written
}

export interface ReadRequest {
  /** Where the file is, asked for when it is opened; undefined when it is gone. */
  readonly path: () => string | undefined
  /** The stream while it lives; resolves to undefined once it is over. */
  readonly live: Promise<OutputFile | undefined>
  /** Offset of the first byte wanted; beyond the end there is nothing. */
  readonly since: number
  /** Go on until the stream ends. */
  readonly follow: boolean
  readonly signal: AbortSignal
}

/** The bytes of a stream from `since` on. Reads only as fast as it is read. */
export function readOutput(request: ReadRequest): Readable {
  return Readable.from(chunks(request), { objectMode: false, highWaterMark: READ_BYTES })
}

async function* chunks({ path, live, since, follow, signal }: ReadRequest): AsyncGenerator<Buffer> {
  const source = follow ? await live : undefined
  const file = await openExisting(path())
  if (!file) return
  try {
    for (let position = since; !signal.aborted; ) {
      // Asked before reading: what was written until the stream ended is then surely seen.
      const over = source === undefined || source.ended
      const seen = source?.version ?? 0
      const { bytesRead, buffer } = await file.read(Buffer.allocUnsafe(READ_BYTES), 0, READ_BYTES, position)
      if (bytesRead > 0) yield buffer.subarray(0, bytesRead)
      else if (over) return
      else await source.changed(seen, signal)
      position += bytesRead
    }
  } finally {
    await file.close()
  }
}

async function openExisting(path: string | undefined): Promise<FileHandle | undefined> {
  if (path === undefined) return undefined
  try {
    return await open(path, constants.O_RDONLY | constants.O_NOFOLLOW)
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return undefined
    throw new Fault(`read ${path}`, { cause: error })
  }
}

/** The first `limit` bytes of a file; none when there is no such file. */
export async function readHead(path: string, limit: number): Promise<Buffer> {
  const file = await openExisting(path)
  if (!file) return Buffer.alloc(0)
  try {
    const buffer = Buffer.alloc(Math.min(limit, (await file.stat()).size))
    const { bytesRead } = await file.read(buffer, 0, buffer.length, 0)
    return buffer.subarray(0, bytesRead)
  } finally {
    await file.close()
  }
}
