// input-queue.ts: standard input of one process on its way to berth-init. Bytes are addressed by their offset in the
// stream, so a repeat is dropped and a gap refused. What berth-init has not acknowledged is kept: after a lost
// connection it goes on from what berth-init says that it has. Decides only; whoever owns it sends what `next` gives.

import { Failure } from '@berth/contracts'
import { MAX_DATA_BYTES, STDIN_WINDOW_BYTES } from './init-wire.js'

/** Bytes that may be taken and not acknowledged, all writers together. */
export const MAX_QUEUED_BYTES = 1024 * 1024

export type InputStep =
  | { readonly kind: 'bytes'; readonly offset: number; readonly bytes: Buffer }
  | { readonly kind: 'end'; readonly total: number }

interface Writer {
  /** Where its last byte ends. */
  readonly until: number
  readonly accepted: () => void
  readonly refused: (error: Error) => void
}

export class InputQueue {
  #parts: Buffer[] = []
  /** Offset of the first byte that is kept: everything below is acknowledged, or berth-init has it. */
  #start = 0
  #sent = 0
  #accepted = 0
  /** Nothing may be sent beyond it; unknown after a reconnect until the first acknowledgement. */
  #window = STDIN_WINDOW_BYTES
  #total: number | undefined
  #endSent = false
  #closed: (() => Error) | undefined
  readonly #writers: Writer[] = []

  /** Offset up to which berth-init has the input, or it was dropped because the process closed it. */
  get accepted(): number {
    return this.#accepted
  }

  /** Offset after the last byte taken: where more goes on. */
  get end(): number {
    return this.#start + this.#parts.reduce((sum, part) => sum + part.length, 0)
  }

  /**
   * Takes bytes; those below `end` are repeats. Resolves once berth-init has all of them.
   * @throws Failure `input_gap` beyond `end`, `wrong_state` after the end of input or of the process, `unavailable`
   *   when more waits than MAX_QUEUED_BYTES
   */
  take(offset: number, bytes: Uint8Array): Promise<void> {
    const { end } = this
    if (this.#closed) return Promise.reject(this.#closed())
    if (offset > end)
      return Promise.reject(new Failure('input_gap', `input goes on at ${end}, not at ${offset}`, { stdinBytes: end }))
    const fresh = Buffer.from(bytes.subarray(Math.min(bytes.length, end - offset)))
    if (fresh.length > 0 && this.#total !== undefined)
      return Promise.reject(new Failure('wrong_state', `the input ended at ${this.#total}`))
    if (end - this.#start + fresh.length > MAX_QUEUED_BYTES)
      return Promise.reject(new Failure('unavailable', 'too much input waits for the process to read it'))
    if (fresh.length > 0) this.#parts.push(fresh)
    const until = offset + bytes.length
    if (until <= this.#accepted) return Promise.resolve()
    return new Promise((accepted, refused) => this.#writers.push({ until, accepted, refused }))
  }

  /** No more comes after `total` bytes. @throws Failure `input_gap` when that is not where the input ends */
  finish(total: number): void {
    if (total !== (this.#total ?? this.end))
      throw new Failure('input_gap', `input ends at ${this.#total ?? this.end}, not at ${total}`, {
        stdinBytes: this.end,
      })
    this.#total = total
  }

  /** A connection began. @param expected where berth-init goes on, 0 of a process that it has not started yet */
  reconnect(expected: number, fresh: boolean): void {
    this.#drop(expected)
    this.#sent = expected
    this.#endSent = false
    // berth-init tells what the process took right after the greeting; until then its buffer counts as full.
    this.#window = fresh ? STDIN_WINDOW_BYTES : expected
    this.#accept(expected)
  }

  acknowledge(offset: number): void {
    this.#window = Math.max(this.#window, offset + STDIN_WINDOW_BYTES)
    this.#drop(Math.min(offset, this.#sent))
    this.#accept(offset)
  }

  /** What to send next; undefined while there is nothing, or no room. */
  next(): InputStep | undefined {
    const room = Math.min(MAX_DATA_BYTES, this.#window - this.#sent)
    const bytes = this.#from(this.#sent, room)
    if (bytes) {
      const offset = this.#sent
      this.#sent += bytes.length
      return { kind: 'bytes', offset, bytes }
    }
    if (this.#total === undefined || this.#endSent || this.#sent < this.#total) return undefined
    this.#endSent = true
    return { kind: 'end', total: this.#total }
  }

  /** The process takes nothing any more: who waits, or comes, is told so. @param why made only where somebody hears it */
  close(why: () => Error): void {
    this.#closed ??= why
    this.#parts = []
    for (const writer of this.#writers.splice(0)) writer.refused(why())
  }

  /** The part that holds `offset`, from there on and at most `most` bytes. */
  #from(offset: number, most: number): Buffer | undefined {
    if (most <= 0) return undefined
    let at = this.#start
    for (const part of this.#parts) {
      if (offset < at + part.length) return part.subarray(offset - at, offset - at + most)
      at += part.length
    }
    return undefined
  }

  #drop(until: number): void {
    for (let first = this.#parts[0]; first && this.#start < until; first = this.#parts[0]) {
      const rest = first.subarray(Math.min(first.length, until - this.#start))
      this.#start += first.length - rest.length
      if (rest.length > 0) this.#parts[0] = rest
      else this.#parts.shift()
    }
    // berth-init has more than this process was ever given: a former agent's.
    if (this.#parts.length === 0) this.#start = Math.max(this.#start, until)
  }

  #accept(offset: number): void {
    this.#accepted = Math.max(this.#accepted, offset)
    // In the order they came, which is the order of their ends but for repeats.
    const done = this.#writers.filter(({ until }) => until <= this.#accepted)
    if (done.length === 0) return
    const rest = this.#writers.filter(({ until }) => until > this.#accepted)
    this.#writers.splice(0, this.#writers.length, ...rest)
    for (const writer of done) writer.accepted()
  }
}
