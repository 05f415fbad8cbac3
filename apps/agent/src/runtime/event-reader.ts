// event-reader.ts: cuts what comes from berth-init into events. Output is copied out of what was read, once, so that one
// buffer serves for reading again and again: new memory for each read, and for each frame that two reads cut, made V8
// mark the whole heap for every few MB of a flood, which was half of what a flood cost.
//
// Output is told as it came, whatever its frames are: short ones in a row are one event, and of a long one nothing waits
// for its end.

import { KiB } from '@berth/contracts'
import { type DataHead, dataHead, decodeFrame, frameHeadLength, type InitEvent } from './init-wire.js'

/** Output in one event, at most. */
const PIECE_BYTES = 64 * KiB
const NOTHING = Buffer.alloc(0)

export class EventReader {
  /** The beginning of a frame, without bytes of output. */
  #head: Buffer = NOTHING
  /** The frame whose output is coming. */
  #data: DataHead | undefined
  #events: InitEvent[] = []
  /** Output of one stream without a hole, in `chunk`s that are gone after `push`. */
  #parts: Buffer[] = []
  #part: DataHead | undefined
  #bytes = 0

  /**
   * @param chunk bytes as they came from the socket, cut anywhere; nothing of it is kept
   * @throws ProtocolError on a frame that is too large, of an unknown type or too short for its type
   */
  push(chunk: Buffer): readonly InitEvent[] {
    for (let at = 0; at < chunk.length; ) at = this.#data ? this.#output(chunk, at, this.#data) : this.#frame(chunk, at)
    this.#flush()
    return this.#events.splice(0)
  }

  #output(chunk: Buffer, at: number, data: DataHead): number {
    const follows = this.#part?.proc === data.proc && this.#part.stream === data.stream && this.#ends(data.offset)
    if (!follows || this.#bytes === PIECE_BYTES) this.#flush()
    this.#part ??= data
    const bytes = chunk.subarray(at, at + Math.min(data.left, PIECE_BYTES - this.#bytes))
    this.#parts.push(bytes)
    this.#bytes += bytes.length
    const left = data.left - bytes.length
    this.#data = left > 0 ? { ...data, offset: data.offset + bytes.length, left } : undefined
    return at + bytes.length
  }

  #ends(offset: number): boolean {
    return this.#part !== undefined && this.#part.offset + this.#bytes === offset
  }

  #flush(): void {
    if (!this.#part) return
    const { proc, stream, offset } = this.#part
    this.#events.push({ type: 'data', proc, stream, offset, bytes: Buffer.concat(this.#parts, this.#bytes) })
    this.#part = undefined
    this.#parts = []
    this.#bytes = 0
  }

  /** A frame up to its end, or to its output. */
  #frame(chunk: Buffer, at: number): number {
    if (this.#head.length === 0) {
      const rest = chunk.subarray(at)
      const length = frameHeadLength(rest)
      if (rest.length >= length) this.#decode(rest.subarray(0, length))
      else this.#head = Buffer.from(rest)
      return at + Math.min(length, rest.length)
    }
    const more = chunk.subarray(at, at + frameHeadLength(this.#head) - this.#head.length)
    const head = Buffer.concat([this.#head, more])
    // With more of it there may be more to wait for.
    const whole = head.length === frameHeadLength(head)
    this.#head = whole ? NOTHING : head
    if (whole) this.#decode(head)
    return at + more.length
  }

  #decode(head: Buffer): void {
    const data = dataHead(head)
    if (data) {
      this.#data = data.left > 0 ? data : undefined
      return
    }
    this.#flush()
    this.#events.push(decodeFrame(head))
  }
}
