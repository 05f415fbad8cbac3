// record-log.ts: JSON records by key in one file that is only appended to: the last line of a key counts, a line without
// a value removes it. Writing one costs a single write(2) to an open file (2 µs), and in memory there is only where each
// one lies, so thousands of records that nobody asks for cost next to nothing.
//
// A kill tears at most the last line, and a torn line did not happen. Like the journal of attempts it is not fsynced: a
// killed process loses no page cache. Once most of the file is out of date it is written anew beside and renamed.

import {
  closeSync,
  constants,
  fstatSync,
  ftruncateSync,
  openSync,
  readSync,
  renameSync,
  rmSync,
  writeSync,
} from 'node:fs'
import { Fault, KiB } from '@berth/contracts'

interface Place {
  readonly offset: number
  /** Without the newline. */
  readonly length: number
}

interface Line {
  readonly key: string
  readonly value?: unknown
}

/** A smaller file is not worth while to be written anew. */
const COMPACT_BYTES = 256 * KiB
const NEWLINE = 0x0a
const COPY_BYTES = 64 * KiB

export class RecordLog {
  readonly #path: string
  #fd: number
  #size: number
  #live = 0
  #compactAbove = COMPACT_BYTES
  readonly #places = new Map<string, Place>()

  private constructor(path: string, fd: number) {
    this.#path = path
    this.#fd = fd
    this.#size = fstatSync(fd).size
  }

  /** Opens or makes the file, whose directory is there. @throws Fault when it cannot be read, or holds something else */
  static open(path: string): RecordLog {
    try {
      const log = new RecordLog(path, openSync(path, OPEN_FLAGS, 0o600))
      log.#load()
      return log
    } catch (cause) {
      throw new Fault(`open ${path}`, { cause })
    }
  }

  /** In the order in which they were first set, or set again after a removal. */
  keys(): IterableIterator<string> {
    return this.#places.keys()
  }

  has(key: string): boolean {
    return this.#places.has(key)
  }

  /** Bytes that a record takes; 0 where there is none. */
  bytesOf(key: string): number {
    return this.#places.get(key)?.length ?? 0
  }

  /** Bytes of all records that count. */
  get bytes(): number {
    return this.#live
  }

  /** The record as it was set; undefined where there is none. @throws Fault when the file cannot be read */
  get(key: string): unknown {
    const place = this.#places.get(key)
    if (!place) return undefined
    try {
      return parseLine(this.#read(place)).value
    } catch (cause) {
      throw new Fault(`read ${this.#path}`, { cause })
    }
  }

  /** When it returns the record is there, whatever happens next. @throws Fault when the disk is full; then it is not */
  set(key: string, value: object): void {
    const place = this.#append({ key, value })
    this.#live += place.length - this.bytesOf(key)
    this.#places.set(key, place)
    this.#compact()
  }

  /** @throws Fault when the disk is full; then it is still there */
  delete(key: string): void {
    const place = this.#places.get(key)
    if (!place) return
    this.#append({ key })
    this.#live -= place.length
    this.#places.delete(key)
    this.#compact()
  }

  close(): void {
    closeSync(this.#fd)
  }

  #load(): void {
    const bytes = Buffer.alloc(this.#size)
    readWhole(this.#fd, bytes, 0)
    let offset = 0
    for (let end = bytes.indexOf(NEWLINE); end >= 0; end = bytes.indexOf(NEWLINE, offset)) {
      const { key, value } = parseLine(bytes.subarray(offset, end))
      const place = { offset, length: end - offset }
      this.#live += (value === undefined ? 0 : place.length) - this.bytesOf(key)
      if (value === undefined) this.#places.delete(key)
      else this.#places.set(key, place)
      offset = end + 1
    }
    // A torn line is taken away, or the next one would be glued to it.
    if (offset < this.#size) ftruncateSync(this.#fd, offset)
    this.#size = offset
  }

  #append(line: Line): Place {
    const bytes = Buffer.from(`${JSON.stringify(line)}\n`)
    const offset = this.#size
    try {
      writeWhole(this.#fd, bytes, offset)
    } catch (cause) {
      ftruncateSync(this.#fd, offset)
      throw new Fault(`write ${this.#path}`, { cause })
    }
    this.#size += bytes.length
    return { offset, length: bytes.length - 1 }
  }

  #read({ offset, length }: Place): Buffer {
    const bytes = Buffer.alloc(length)
    readWhole(this.#fd, bytes, offset)
    return bytes
  }

  /** Writes the file anew when less than half of it counts. */
  #compact(): void {
    if (this.#size < this.#compactAbove || this.#size < 2 * this.#live) return
    const path = `${this.#path}.new`
    let fd: number | undefined
    try {
      fd = openSync(path, OPEN_FLAGS | constants.O_TRUNC, 0o600)
      const [places, size] = this.#copyTo(fd)
      renameSync(path, this.#path)
      closeSync(this.#fd)
      for (const [key, place] of places) this.#places.set(key, place)
      this.#fd = fd
      this.#size = size
      this.#compactAbove = COMPACT_BYTES
    } catch {
      // A full disk, most likely. The records are all there, so nothing is wrong yet: it is tried again further on.
      if (fd !== undefined) closeSync(fd)
      rmSync(path, { force: true })
      this.#compactAbove = this.#size + COMPACT_BYTES
    }
  }

  #copyTo(fd: number): readonly [readonly (readonly [string, Place])[], number] {
    const places: (readonly [string, Place])[] = []
    let lines: Buffer[] = []
    let [written, size] = [0, 0]
    const flush = () => {
      const bytes = Buffer.concat(lines)
      writeWhole(fd, bytes, written)
      written += bytes.length
      lines = []
    }
    for (const [key, place] of this.#places) {
      lines.push(this.#read(place), Buffer.of(NEWLINE))
      places.push([key, { offset: size, length: place.length }])
      size += place.length + 1
      if (size - written >= COPY_BYTES) flush()
    }
    flush()
    return [places, size]
  }
}

const OPEN_FLAGS = constants.O_RDWR | constants.O_CREAT | constants.O_NOFOLLOW

function parseLine(bytes: Buffer): Line {
  const line: unknown = JSON.parse(bytes.toString('utf8'))
  if (typeof line === 'object' && line !== null && 'key' in line && typeof line.key === 'string')
    return { key: line.key, value: 'value' in line ? line.value : undefined }
  throw new Error('a line is not a record')
}

function writeWhole(fd: number, bytes: Buffer, position: number): void {
  for (let done = 0; done < bytes.length; ) done += writeSync(fd, bytes, done, bytes.length - done, position + done)
}

function readWhole(fd: number, bytes: Buffer, position: number): void {
  for (let done = 0; done < bytes.length; ) {
    const read = readSync(fd, bytes, done, bytes.length - done, position + done)
    if (read === 0) throw new Error('it is shorter than it was')
    done += read
  }
}
