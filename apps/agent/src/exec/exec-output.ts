// exec-output.ts: both output streams of an exec as one sequence of pieces, and that as JSON can carry it. Every reader
// has its own place in each stream, and none holds up another.

import type { ExecFrame, OutputStream } from '@berth/contracts'
import { cutAtEnd, encoded } from '@berth/domain'
import type { Changes } from '../logs/changes.js'
import type { Piece, Spool } from '../logs/spool.js'

export type ExecPiece = Piece & { readonly stream: OutputStream }

/** What is read: two spools that tell `changes`, up to the end of the exec. */
export interface ExecStreams {
  readonly stdout: Spool
  readonly stderr: Spool
  readonly changes: Changes
  /** It has ended. What it left behind may write on. */
  readonly over: boolean
}

export interface ReadOptions {
  /** Offsets of the first bytes wanted. */
  readonly stdout: number
  readonly stderr: number
  /** Go on until the exec ends; otherwise to where the streams are now. */
  readonly follow: boolean
  readonly only?: OutputStream
  /** Ends it: it then ends as if there were no more. */
  readonly signal: AbortSignal
}

const PIECE_BYTES = 64 * 1024
const names = ['stdout', 'stderr'] as const

/** Everything of the streams from the offsets on, in the order of each stream. Reads only as fast as it is read. */
export async function* readPieces(streams: ExecStreams, options: ReadOptions): AsyncGenerator<ExecPiece> {
  const { follow, signal, only } = options
  const readers = names
    .filter((stream) => only === undefined || stream === only)
    .map((stream) => ({ stream, reader: streams[stream].reader(options[stream]), end: Number.POSITIVE_INFINITY }))
  try {
    for (let bounded = false; !signal.aborted; ) {
      // Asked before reading: what was written until the exec ended is then surely seen.
      const seen = streams.changes.version
      if (!bounded && (streams.over || !follow)) {
        for (const one of readers) one.end = streams[one.stream].total
        bounded = true
      }
      let found = false
      for (const { stream, reader, end } of readers) {
        const limit = Math.min(PIECE_BYTES, end - reader.offset)
        const piece = limit > 0 ? await reader.read(limit) : undefined
        if (!piece) continue
        found = true
        yield { stream, ...piece }
      }
      if (found) continue
      if (bounded) return
      await streams.changes.after(seen, signal)
    }
  } finally {
    for (const { reader } of readers) await reader.close()
  }
}

type OutputFrame = Extract<ExecFrame, { type: OutputStream | 'gap' }>

/** Pieces as frames of JSON: text where it is UTF-8. A character that is cut between pieces waits for its rest. */
export async function* textFrames(pieces: AsyncIterable<ExecPiece>): AsyncGenerator<OutputFrame> {
  const cut = new Map<OutputStream, { readonly offset: number; readonly bytes: Buffer }>()
  for await (const piece of pieces) {
    const { stream } = piece
    const before = cut.get(stream)
    cut.delete(stream)
    if (piece.kind === 'gap') {
      if (before) yield frame(stream, before.offset, before.bytes)
      yield { type: 'gap', stream, offset: piece.offset }
      continue
    }
    const offset = before?.offset ?? piece.offset
    const bytes = before ? Buffer.concat([before.bytes, piece.bytes]) : piece.bytes
    const whole = bytes.length - cutAtEnd(bytes)
    if (whole < bytes.length) cut.set(stream, { offset: offset + whole, bytes: bytes.subarray(whole) })
    if (whole > 0) yield frame(stream, offset, bytes.subarray(0, whole))
  }
  for (const [stream, { offset, bytes }] of cut) yield frame(stream, offset, bytes)
}

const frame = (stream: OutputStream, offset: number, bytes: Buffer): OutputFrame => ({
  type: stream,
  offset,
  ...encoded(bytes),
})
