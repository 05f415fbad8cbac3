// main-log.ts: what the main process of a sandbox wrote, of all its runs: both streams in order of arrival, with times.
//
// It lies in segment files, `<position of the first byte>.log`, each a row of whole records. The oldest goes when all
// together hold more than is to be kept. Nothing else is written down: after a crash of the agent the last record says
// where the log ends and how much of each stream of which run is in it, a half record behind it is cut off, and
// berth-init, which was not told that it is stored, sends it again. So no byte is lost or doubled.
//
// Records end between characters where the output is UTF-8, so each can be shown by itself: the first bytes of a
// character wait for the rest of it (or for the end of the run), and are not told as stored before.
import { type FileHandle, mkdir, open, readdir, rm, stat, truncate } from 'node:fs/promises'
import { join } from 'node:path'
import { errnoOf, Fault, ignore, KiB, MiB } from '@berth/contracts'
import type { Logger } from '@berth/telemetry'
import type { StreamName } from '../runtime/init-wire.js'
import type { OutputSink, OutputSinks } from '../runtime/processes.js'
import { Changes } from './changes.js'
import {
  decodeRecord,
  encodeRecord,
  type LogRecord,
  MAX_BYTES,
  MAX_RECORD,
  type RunNumber,
  recordSize,
  unfinishedCharacter,
} from './log-record.js'

export interface MainLogOptions {
  /** Made with the first byte. */
  readonly directory: string
  /** Of all files together; a little less is kept after one was dropped. */
  readonly keepBytes: number
  readonly log: Pick<Logger, 'warn'>
  /** Size of a file. Default: a quarter of what is kept, between 16 KiB and 4 MiB. */
  readonly segmentBytes?: number
  /** Unix milliseconds. */
  readonly now?: () => number
}

/** A file of whole records. */
export interface Segment {
  /** Position in the log of its first byte. */
  readonly start: number
  /** Bytes of the file that are whole records. */
  size: number
}

interface Taken {
  readonly stream: StreamName
  readonly bytes: Buffer
  readonly at: number
  /** Nothing follows for now: what waits for the rest of a character waits no more. */
  readonly flush: boolean
}

interface StreamState {
  /** Bytes of the run's stream that were taken, and that are in records (or were given up). */
  taken: number
  stored: number
  /** The beginning of a character. */
  held: Buffer
  tell: (offset: number) => void
}

/** Most bytes that are written at once. */
const BATCH_BYTES = MiB
const POSITION_DIGITS = 16
const fileForm = /^(\d{16})\.log$/

export class MainLog {
  readonly changes = new Changes()
  readonly #options: MainLogOptions
  readonly #segmentBytes: number
  readonly #now: () => number
  #segments: Segment[]
  #file: FileHandle | undefined
  #end: number
  /** Like `end`, with what is being written. */
  #next: number
  #lastAt: number
  #run: RunNumber
  #streams: Record<StreamName, StreamState>
  #queue: Taken[] = []
  #writing: Promise<void> | undefined
  #removed = false
  #failing = false

  private constructor(options: MainLogOptions, segments: Segment[], last: LogRecord | undefined) {
    this.#options = options
    this.#segmentBytes = options.segmentBytes ?? Math.min(4 * MiB, Math.max(16 * KiB, Math.ceil(options.keepBytes / 4)))
    this.#now = options.now ?? Date.now
    this.#segments = segments
    this.#end = last ? last.offset + last.bytes.length : 0
    this.#next = this.#end
    this.#lastAt = last?.at ?? 0
    this.#run = last ?? { run: 0, restart: 0 }
    this.#streams = { stdout: freshStream(last?.totals.stdout), stderr: freshStream(last?.totals.stderr) }
  }

  /** Goes on where the last record ends. @throws Fault when the directory cannot be read */
  static async open(options: MainLogOptions): Promise<MainLog> {
    const { directory } = options
    try {
      const segments = await segmentsIn(directory)
      for (let last = segments.at(-1); last; last = segments.at(-1)) {
        const record = await cutToWhole(pathOf(directory, last), last)
        if (record) return new MainLog(options, segments, record)
        // Begun, and nothing whole was written to it.
        await rm(pathOf(directory, last), { force: true })
        segments.pop()
      }
      return new MainLog(options, segments, undefined)
    } catch (cause) {
      throw new Fault(`open the log in ${directory}`, { cause })
    }
  }

  /** Position after the last byte that is stored. */
  get end(): number {
    return this.#end
  }

  /** Position of the first byte that is kept. */
  get from(): number {
    return this.#segments[0]?.start ?? this.#end
  }

  /** Oldest first. */
  get segments(): readonly Segment[] {
    return this.#segments
  }

  /** Nothing of it is kept any more, and nothing will come. */
  get removed(): boolean {
    return this.#removed
  }

  /**
   * Where the output of a run goes.
   * @param run the same as before the agent's restart: then its streams go on after what is in the log
   */
  begin({ run, restart }: RunNumber): OutputSinks {
    if (run !== this.#run.run || restart !== this.#run.restart) {
      this.#run = { run, restart }
      this.#streams = { stdout: freshStream(), stderr: freshStream() }
    }
    return { stdout: this.#sink('stdout'), stderr: this.#sink('stderr') }
  }

  /** Stores all that was taken, and lets go of the file; another run may begin. */
  async close(): Promise<void> {
    await this.#flush('stdout')
    await this.#flush('stderr')
    await this.#closeFile()
  }

  /** Ends the log for those who read it; its directory goes with the sandbox's. */
  async remove(): Promise<void> {
    await this.close()
    this.#removed = true
    this.changes.tell()
  }

  /** For readers. @returns undefined when the file is no longer kept */
  async openSegment(segment: Segment): Promise<FileHandle | undefined> {
    const path = pathOf(this.#options.directory, segment)
    try {
      return await open(path, 'r')
    } catch (cause) {
      if (errnoOf(cause) === 'ENOENT') return undefined
      throw new Fault(`read ${path}`, { cause })
    }
  }

  #sink(stream: StreamName): OutputSink {
    const state = this.#streams[stream]
    return {
      resume: (offset) => {
        state.taken = Math.max(state.taken, offset)
        state.stored = Math.max(state.stored, offset)
      },
      append: (offset, bytes, stored) => {
        state.tell = stored
        const fresh = bytes.subarray(Math.max(0, state.taken - offset))
        state.taken = Math.max(state.taken, offset) + fresh.length
        this.#take({ stream, bytes: fresh, at: this.#time(), flush: false })
      },
      settled: () => this.#flush(stream),
    }
  }

  #flush(stream: StreamName): Promise<void> {
    this.#take({ stream, bytes: Buffer.alloc(0), at: this.#time(), flush: true })
    return this.#writing ?? Promise.resolve()
  }

  #take(taken: Taken): void {
    this.#queue.push(taken)
    this.#writing ??= this.#write()
  }

  /** A clock that was set back stands still here: readers by time rely on the order. */
  #time(): number {
    this.#lastAt = Math.max(this.#lastAt, this.#now())
    return this.#lastAt
  }

  async #write(): Promise<void> {
    // What comes in the same turn is written together; and `#writing` is set before it is unset.
    await Promise.resolve()
    while (this.#queue.length > 0) {
      const batch = takeBatch(this.#queue)
      const records = batch.flatMap((taken) => this.#recordsOf(taken))
      if (records.length > 0) await this.#store(records)
      this.#end = this.#next
      for (const stream of new Set(batch.map((taken) => taken.stream))) {
        const { tell, stored } = this.#streams[stream]
        tell(stored)
      }
      if (records.length > 0) this.changes.tell()
    }
    this.#writing = undefined
  }

  #recordsOf({ stream, bytes, at, flush }: Taken): readonly LogRecord[] {
    const state = this.#streams[stream]
    let rest = state.held.length > 0 ? Buffer.concat([state.held, bytes]) : bytes
    const records: LogRecord[] = []
    while (rest.length > 0) {
      const part = rest.subarray(0, MAX_BYTES)
      const more = rest.length > part.length || !flush
      const whole = part.subarray(0, part.length - (more ? unfinishedCharacter(part) : 0))
      if (whole.length === 0) break
      rest = rest.subarray(whole.length)
      state.stored += whole.length
      const totals = { stdout: this.#streams.stdout.stored, stderr: this.#streams.stderr.stored }
      records.push({ ...this.#run, stream, at, offset: this.#next, totals, bytes: whole })
      this.#next += whole.length
    }
    // Copied: it may wait for long, and would hold a whole chunk of the connection.
    state.held = Buffer.from(rest)
    return records
  }

  /** What cannot be written is given up: it costs output, which readers see as a step in the offsets, and not the command. */
  async #store(records: readonly LogRecord[]): Promise<void> {
    let waiting: Buffer[] = []
    let size = 0
    try {
      for (const record of records) {
        const next = recordSize(record.bytes.length)
        const last = this.#segments.at(-1)
        if (!last || (last.size + size > 0 && last.size + size + next > this.#segmentBytes)) {
          await this.#append(waiting)
          ;[waiting, size] = [[], 0]
          await this.#rotate(record.offset)
        }
        waiting.push(encodeRecord(record))
        size += next
      }
      await this.#append(waiting)
      this.#failing = false
    } catch (err) {
      if (!this.#failing) this.#options.log.warn({ err, directory: this.#options.directory }, 'log.lost')
      this.#failing = true
      await this.#closeFile()
    }
  }

  async #append(parts: readonly Buffer[]): Promise<void> {
    const segment = this.#segments.at(-1)
    if (parts.length === 0 || !segment) return
    this.#file ??= await open(pathOf(this.#options.directory, segment), 'r+')
    const bytes = parts.length === 1 && parts[0] ? parts[0] : Buffer.concat(parts)
    for (let done = 0; done < bytes.length; ) {
      const { bytesWritten } = await this.#file.write(bytes, done, bytes.length - done, segment.size + done)
      done += bytesWritten
    }
    segment.size += bytes.length
  }

  async #rotate(start: number): Promise<void> {
    const segment = { start, size: 0 }
    const path = pathOf(this.#options.directory, segment)
    await this.#closeFile()
    this.#file = await open(path, 'wx+', 0o600).catch(async (error: unknown) => {
      ignore(error, 'ENOENT')
      await mkdir(this.#options.directory, { recursive: true, mode: 0o700 })
      return open(path, 'wx+', 0o600)
    })
    this.#segments.push(segment)
    for (const old of this.#outdated()) await rm(pathOf(this.#options.directory, old), { force: true })
  }

  /** Takes out the oldest files while all of them, with a full last one, would hold more than is to be kept. */
  #outdated(): readonly Segment[] {
    let bytes = this.#segments.reduce((sum, { size }) => sum + size, this.#segmentBytes)
    let count = 0
    for (const { size } of this.#segments.slice(0, -1)) {
      if (bytes <= this.#options.keepBytes) break
      bytes -= size
      count += 1
    }
    return this.#segments.splice(0, count)
  }

  async #closeFile(): Promise<void> {
    const file = this.#file
    this.#file = undefined
    await file?.close()
  }
}

const freshStream = (stored = 0): StreamState => ({
  taken: stored,
  stored,
  held: Buffer.alloc(0),
  tell: () => undefined,
})

const pathOf = (directory: string, { start }: Pick<Segment, 'start'>): string =>
  join(directory, `${String(start).padStart(POSITION_DIGITS, '0')}.log`)

/** What follows each other of one stream becomes one; small writes of a command come in many pieces. */
function takeBatch(queue: Taken[]): readonly Taken[] {
  const batch: Taken[] = []
  let parts: Buffer[] = []
  let bytes = 0
  while (queue[0] && bytes < BATCH_BYTES) {
    const next = queue.shift()
    if (!next) break
    bytes += next.bytes.length
    const last = batch.at(-1)
    if (last && last.stream === next.stream && !last.flush) {
      parts.push(next.bytes)
      batch[batch.length - 1] = { ...last, flush: next.flush, bytes: next.bytes }
    } else {
      joinLast(batch, parts)
      parts = [next.bytes]
      batch.push(next)
    }
  }
  joinLast(batch, parts)
  return batch
}

function joinLast(batch: Taken[], parts: readonly Buffer[]): void {
  const last = batch.at(-1)
  if (last && parts.length > 1) batch[batch.length - 1] = { ...last, bytes: Buffer.concat(parts) }
}

async function segmentsIn(directory: string): Promise<Segment[]> {
  const names = await readdir(directory).catch((error: unknown) => ignore(error, 'ENOENT') ?? [])
  const segments = names.flatMap((name) => {
    const [, start] = fileForm.exec(name) ?? []
    return start === undefined ? [] : [{ start: Number(start), size: 0 }]
  })
  for (const segment of segments) segment.size = (await stat(pathOf(directory, segment))).size
  return segments.sort((a, b) => a.start - b.start)
}

/** Cuts off what is behind the last whole record. @returns that record; undefined when there is none */
async function cutToWhole(path: string, segment: Segment): Promise<LogRecord | undefined> {
  const file = await open(path, 'r')
  let last: LogRecord | undefined
  let whole = 0
  try {
    const buffer = Buffer.alloc(8 * MAX_RECORD)
    for (;;) {
      const { bytesRead } = await file.read(buffer, 0, buffer.length, whole)
      let at = 0
      for (;;) {
        const record = decodeRecord(buffer.subarray(0, bytesRead), at)
        if (record === 'short' || record === 'damaged') break
        at += recordSize(record.bytes.length)
        last = record
      }
      whole += at
      if (at === 0) break
      // Its bytes are in the buffer, which is filled again.
      if (last) last = { ...last, bytes: Buffer.from(last.bytes) }
    }
  } finally {
    await file.close()
  }
  if (whole < segment.size) await truncate(path, whole)
  segment.size = whole
  return last
}
