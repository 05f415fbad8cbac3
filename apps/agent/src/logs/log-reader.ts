// log-reader.ts: reading a log, from anywhere, as far as wanted. It holds a few records at a time, whatever the size of
// the log, and reads as fast as its reader takes them. Files that go while they are read are read to their end; who is
// further behind goes on with the oldest that is kept.
import type { FileHandle } from 'node:fs/promises'
import type { StreamName } from '../runtime/init-wire.js'
import { decodeRecord, type LogRecord, MAX_RECORD, recordSize, startOfRecordBefore } from './log-record.js'
import type { MainLog, Segment } from './main-log.js'

export interface LogQuery {
  readonly streams: readonly StreamName[]
  /** Goes on with what comes, until the signal is aborted, the log is removed or `until` has passed. */
  readonly follow: boolean
  /** Only so many last lines of what is asked for; what comes later is not counted. */
  readonly tail?: number | undefined
  /** Position in the log of the first byte, or the time from which on. */
  readonly since?: { readonly offset: number } | { readonly at: number } | undefined
  /** Unix milliseconds: only what came before. */
  readonly until?: number | undefined
}

/** A part of the output; of a record the reader may get the rest only. */
export type LogPart = Pick<LogRecord, 'stream' | 'at' | 'offset' | 'bytes'>

const BLOCK = 4 * MAX_RECORD

/** Parts in order, as they are or come to be. Ends when the signal is aborted. @throws Fault when a file cannot be read */
export async function* readLog(log: MainLog, query: LogQuery, signal: AbortSignal): AsyncGenerator<LogPart> {
  const { until = Number.POSITIVE_INFINITY, follow } = query
  const end = log.end
  const from = query.tail === undefined ? await beginning(log, query) : await lastLines(log, query, query.tail)
  const records = new ForwardReader(log, Math.min(from.stdout, from.stderr))
  const over = waitingEnds(until, signal)
  try {
    while (!signal.aborted) {
      const seen = log.changes.version
      const record = await records.next()
      if (record) {
        if (record.at >= until || (!follow && record.offset >= end)) return
        const part = wanted(record, query, from)
        if (part) yield part
      } else if (follow && !log.removed && !over.signal.aborted) await log.changes.after(seen, over.signal)
      else return
    }
  } finally {
    over.clear()
    await records.close()
  }
}

/** Position of the first byte wanted of each stream. */
type From = Readonly<Record<StreamName, number>>

async function beginning(log: MainLog, { since }: LogQuery): Promise<From> {
  const offset = since === undefined ? log.from : 'offset' in since ? since.offset : await positionAt(log, since.at)
  return { stdout: offset, stderr: offset }
}

function wanted(record: LogRecord, { streams, since }: LogQuery, from: From): LogPart | undefined {
  const { stream, at, offset, bytes } = record
  if (!streams.includes(stream) || (since && 'at' in since && at < since.at)) return undefined
  const skip = Math.max(0, from[stream] - offset)
  if (skip >= bytes.length) return undefined
  return { stream, at, offset: offset + skip, bytes: bytes.subarray(skip) }
}

/** Aborted with `signal`, or when the time has come: then there is nothing more to wait for. */
function waitingEnds(until: number, signal: AbortSignal): { readonly signal: AbortSignal; clear(): void } {
  const over = new AbortController()
  const end = () => over.abort()
  signal.addEventListener('abort', end, { once: true })
  if (signal.aborted) end()
  // A timer holds no more than 2^31 ms; what is further off than that outlives no connection.
  const waitMs = until - Date.now()
  const timer = waitMs < 2 ** 31 ? setTimeout(end, Math.max(0, waitMs)) : undefined
  const clear = () => {
    clearTimeout(timer)
    signal.removeEventListener('abort', end)
  }
  return { signal: over.signal, clear }
}

/** The position of a segment at or before the first record of a time, by halving. */
async function positionAt(log: MainLog, at: number): Promise<number> {
  const segments = [...log.segments]
  let [low, high] = [0, segments.length - 1]
  while (low < high) {
    const middle = Math.ceil((low + high) / 2)
    const segment = segments[middle]
    const first = segment && (await firstOf(log, segment))
    // Of a segment that is gone by now, everything was older than of those that are left.
    if (!first || first.at < at) low = middle
    else high = middle - 1
  }
  return segments[low]?.start ?? log.from
}

async function firstOf(log: MainLog, segment: Segment): Promise<LogRecord | undefined> {
  const file = await log.openSegment(segment)
  if (!file) return undefined
  try {
    const { buffer, bytesRead } = await file.read(Buffer.alloc(MAX_RECORD), 0, MAX_RECORD, 0)
    const record = decodeRecord(buffer.subarray(0, bytesRead), 0)
    return typeof record === 'object' ? record : undefined
  } finally {
    await file.close()
  }
}

/** Records from the first one that has a byte at or after a position. */
class ForwardReader {
  readonly #log: MainLog
  #from: number
  #segment: Segment | undefined
  #file: FileHandle | undefined
  /** Where in the file to read on, and what was read before that and not yet given. */
  #position = 0
  #buffer: Buffer = Buffer.alloc(0)
  #at = 0

  constructor(log: MainLog, from: number) {
    this.#log = log
    this.#from = from
  }

  /** The next one; undefined where there is none now. */
  async next(): Promise<LogRecord | undefined> {
    for (;;) {
      const record = decodeRecord(this.#buffer, this.#at)
      if (typeof record === 'object') {
        this.#at += recordSize(record.bytes.length)
        const end = record.offset + record.bytes.length
        if (end <= this.#from) continue
        this.#from = end
        return record
      }
      // Damaged by something else than a crash: what follows it in this file cannot be found.
      const more = record === 'short' && (await this.#readOn())
      if (!more && !(await this.#nextSegment())) return undefined
    }
  }

  async close(): Promise<void> {
    const file = this.#file
    this.#file = undefined
    await file?.close()
  }

  /** @returns false at the end of what is whole of the file */
  async #readOn(): Promise<boolean> {
    const left = (this.#segment?.size ?? 0) - this.#position
    if (!this.#file || left <= 0) return false
    const rest = this.#buffer.subarray(this.#at)
    const length = Math.min(BLOCK, left)
    const buffer = Buffer.allocUnsafe(rest.length + length)
    rest.copy(buffer)
    const { bytesRead } = await this.#file.read(buffer, rest.length, length, this.#position)
    this.#position += bytesRead
    this.#buffer = buffer.subarray(0, rest.length + bytesRead)
    this.#at = 0
    return bytesRead > 0
  }

  async #nextSegment(): Promise<boolean> {
    const next = this.#following()
    if (!next) return false
    await this.close()
    this.#segment = next
    this.#position = 0
    this.#buffer = Buffer.alloc(0)
    this.#at = 0
    this.#file = await this.#log.openSegment(next)
    return true
  }

  #following(): Segment | undefined {
    const { segments } = this.#log
    const { start } = this.#segment ?? {}
    if (start !== undefined) return segments.find((segment) => segment.start > start)
    const after = segments.findIndex((segment) => segment.start > this.#from)
    return after === -1 ? segments.at(-1) : segments[Math.max(0, after - 1)]
  }
}

/**
 * Where the last lines begin, each stream for itself: the lines that end last, whole. What has no line break at its end
 * is a line too. Found from the end: only what is asked for is read, and the beginning of the first line.
 */
async function lastLines(log: MainLog, query: LogQuery, count: number): Promise<From> {
  const { streams, since, until = Number.POSITIVE_INFINITY } = query
  const first = since && 'offset' in since ? since.offset : log.from
  const sinceAt = since && 'at' in since ? since.at : 0
  const lines = { stdout: new LineStart(), stderr: new LineStart() }
  let left = count
  const complete = () => left === 0 && !streams.some((stream) => lines[stream].inside)
  const end = log.end
  if (left > 0)
    for await (const { stream, at, offset, bytes } of backward(log)) {
      if (at >= until || !streams.includes(stream)) continue
      if (at < sinceAt || offset + bytes.length <= first) break
      left -= lines[stream].take(bytes.subarray(Math.max(0, first - offset)), Math.max(offset, first), left)
      if (complete()) break
    }
  return { stdout: lines.stdout.position(first, end), stderr: lines.stderr.position(first, end) }
}

const LINE_BREAK = 10

/** The beginning of the first wanted line of one stream, going back through its bytes. */
class LineStart {
  /** In a line that is wanted and whose beginning was not met yet. */
  inside = false
  #started = false
  #start: number | undefined

  /**
   * Goes back over the bytes at `offset`.
   * @param left how many more lines are wanted
   * @returns how many of them end in these bytes
   */
  take(bytes: Buffer, offset: number, left: number): number {
    let taken = 0
    if (!this.#started && bytes.length > 0) {
      this.#started = true
      if (bytes.at(-1) !== LINE_BREAK) taken += this.#begin(left)
    }
    for (let i = bytes.lastIndexOf(LINE_BREAK); i >= 0; i = i === 0 ? -1 : bytes.lastIndexOf(LINE_BREAK, i - 1)) {
      if (this.inside) this.#start = offset + i + 1
      this.inside = false
      if (taken >= left) break
      taken += this.#begin(left - taken)
    }
    return taken
  }

  /** @param first where what is asked for begins; `end` where it ends: nothing of this stream is wanted before */
  position(first: number, end: number): number {
    return this.inside ? first : (this.#start ?? Math.max(first, end))
  }

  #begin(left: number): number {
    if (left === 0) return 0
    this.inside = true
    return 1
  }
}

/** All records, the last one first. */
async function* backward(log: MainLog): AsyncGenerator<LogRecord> {
  for (const segment of [...log.segments].reverse()) {
    const file = await log.openSegment(segment)
    if (!file) return
    try {
      yield* backwardIn(file, segment.size)
    } finally {
      await file.close()
    }
  }
}

async function* backwardIn(file: FileHandle, size: number): AsyncGenerator<LogRecord> {
  const block = Buffer.allocUnsafe(BLOCK)
  for (let end = size; end > 0; ) {
    const from = Math.max(0, end - BLOCK)
    const { bytesRead } = await file.read(block, 0, end - from, from)
    const buffer = block.subarray(0, bytesRead)
    for (let at = buffer.length; ; ) {
      const start = startOfRecordBefore(buffer, at)
      if (start < 0) {
        // A record fits into a block, so one that does not is none.
        if (at === buffer.length) return
        end = from + at
        break
      }
      const record = decodeRecord(buffer, start)
      // Damaged by something else than a crash: what is before it cannot be found.
      if (typeof record !== 'object') return
      yield record
      at = start
    }
  }
}
