// log-record.ts: one piece of a sandbox's log, as bytes. Records follow each other in a file; each says all that is
// needed to go on after it, so that a file needs no index and a crash leaves at most a last record that is none.
//
//   0 magic u32 | 4 length u32 | 8 offset f64 | 16 time f64 | 24 stdout f64 | 32 stderr f64 | 40 run u32 | 44 restart u32
//   48 stream u32 | 52 CRC-32 of 4…52 and the bytes | 56 bytes | … size of the record u32, for who comes from behind
//
// Little endian. Offsets and times are whole numbers below 2^53, which a double holds.
import { crc32 } from 'node:zlib'
import { KiB } from '@berth/contracts'
import type { StreamName } from '../runtime/init-wire.js'

/** Which run of the sandbox wrote: its number, and which restart of it. */
export interface RunNumber {
  readonly run: number
  readonly restart: number
}

export interface LogRecord extends RunNumber {
  readonly stream: StreamName
  /** Unix milliseconds; never less than in the record before. */
  readonly at: number
  /** Position in the log of the first byte. Both streams count, over all runs. */
  readonly offset: number
  /** Bytes that the run has written to each stream, those of this record included: where it goes on after a crash. */
  readonly totals: Readonly<Record<StreamName, number>>
  readonly bytes: Buffer
}

const MAGIC = 0x31474c42
const HEADER = 56
const TRAILER = 4
/** Most bytes of output in a record; what is longer is several. */
export const MAX_BYTES = 32 * KiB
export const MAX_RECORD = HEADER + MAX_BYTES + TRAILER

export const recordSize = (bytes: number): number => HEADER + bytes + TRAILER

const streams = ['stdout', 'stderr'] as const

export function encodeRecord(record: LogRecord): Buffer {
  const { bytes, totals } = record
  const buffer = Buffer.allocUnsafe(recordSize(bytes.length))
  buffer.writeUInt32LE(MAGIC, 0)
  buffer.writeUInt32LE(bytes.length, 4)
  buffer.writeDoubleLE(record.offset, 8)
  buffer.writeDoubleLE(record.at, 16)
  buffer.writeDoubleLE(totals.stdout, 24)
  buffer.writeDoubleLE(totals.stderr, 32)
  buffer.writeUInt32LE(record.run, 40)
  buffer.writeUInt32LE(record.restart, 44)
  buffer.writeUInt32LE(streams.indexOf(record.stream), 48)
  bytes.copy(buffer, HEADER)
  buffer.writeUInt32LE(checksum(buffer, 0, bytes.length), 52)
  buffer.writeUInt32LE(buffer.length, HEADER + bytes.length)
  return buffer
}

const checksum = (buffer: Buffer, start: number, length: number): number =>
  crc32(buffer.subarray(start + HEADER, start + HEADER + length), crc32(buffer.subarray(start + 4, start + 52)))

/**
 * The record that begins at `start`. Its bytes are a part of `buffer`.
 * @returns `short` where the buffer ends within it, `damaged` where there is none
 */
export function decodeRecord(buffer: Buffer, start: number): LogRecord | 'short' | 'damaged' {
  if (buffer.length - start < HEADER) return 'short'
  const length = buffer.readUInt32LE(start + 4)
  const stream = streams[buffer.readUInt32LE(start + 48)]
  if (buffer.readUInt32LE(start) !== MAGIC || length > MAX_BYTES || !stream) return 'damaged'
  if (buffer.length - start < recordSize(length)) return 'short'
  const sizeAt = start + HEADER + length
  if (buffer.readUInt32LE(sizeAt) !== recordSize(length)) return 'damaged'
  if (buffer.readUInt32LE(start + 52) !== checksum(buffer, start, length)) return 'damaged'
  return {
    stream,
    at: buffer.readDoubleLE(start + 16),
    offset: buffer.readDoubleLE(start + 8),
    totals: { stdout: buffer.readDoubleLE(start + 24), stderr: buffer.readDoubleLE(start + 32) },
    run: buffer.readUInt32LE(start + 40),
    restart: buffer.readUInt32LE(start + 44),
    bytes: buffer.subarray(start + HEADER, sizeAt),
  }
}

/**
 * Where the record that ends at `end` begins, if its end can be believed; check it by `decodeRecord`. Below 0 where it
 * begins before the buffer.
 */
export const startOfRecordBefore = (buffer: Buffer, end: number): number =>
  end < TRAILER ? -1 : end - buffer.readUInt32LE(end - TRAILER)

/** How many bytes at the end are the beginning of a UTF-8 character (RFC 3629) whose rest is still to come: 0 … 3. */
export function unfinishedCharacter(bytes: Buffer): number {
  for (let back = 1; back <= Math.min(3, bytes.length); back++) {
    const byte = bytes[bytes.length - back] ?? 0
    if ((byte & 0xc0) === 0x80) continue
    const length = byte >= 0xf8 ? 1 : byte >= 0xf0 ? 4 : byte >= 0xe0 ? 3 : byte >= 0xc0 ? 2 : 1
    return length > back ? back : 0
  }
  return 0
}
