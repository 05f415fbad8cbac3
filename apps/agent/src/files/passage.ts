// passage.ts: output of a process to whoever reads it, without a stop on the way. What is not read is not acknowledged,
// so berth-init's ring stays full and the process waits: memory is one ring, whatever is sent.

import { Readable } from 'node:stream'
import { invariant } from '@berth/contracts'
import type { OutputSink } from '../runtime/processes.js'

interface Part {
  readonly bytes: Buffer
  /** Offset after it. */
  readonly end: number
  readonly stored: (offset: number) => void
}

/** What a reader may be ahead of what it has taken, in bytes. */
const HIGH_WATER = 64 * 1024

export class Passage implements OutputSink {
  readonly stream: Readable
  #parts: Part[] = []
  #taken = 0
  #wanted = false
  #settled: (() => void)[] = []

  constructor() {
    this.stream = new Readable({
      highWaterMark: HIGH_WATER,
      read: () => {
        this.#wanted = true
        this.#pass()
      },
      destroy: (error, done) => {
        this.#drop()
        done(error)
      },
    })
    // Whoever reads it hears of it; without a reader nobody has to.
    this.stream.on('error', () => undefined)
  }

  resume(offset: number): void {
    invariant(offset <= this.#taken, 'berth-init keeps what was not acknowledged')
  }

  append(offset: number, bytes: Buffer, stored: (offset: number) => void): void {
    invariant(offset <= this.#taken, 'output has no gap')
    const fresh = bytes.subarray(Math.min(bytes.length, this.#taken - offset))
    this.#taken += fresh.length
    // A repeat that was passed on already: its acknowledgement was lost.
    this.#parts.push({ bytes: fresh, end: this.#taken, stored })
    this.#pass()
  }

  /** Resolves when all that was taken has been read, or nobody reads any more. */
  settled(): Promise<void> {
    return this.#parts.length === 0 ? Promise.resolve() : new Promise((resolve) => this.#settled.push(resolve))
  }

  /** Nothing comes any more; once settled. */
  end(): void {
    this.stream.push(null)
  }

  #pass(): void {
    if (this.stream.destroyed) this.#drop()
    while (this.#parts.length > 0 && (this.#wanted || this.#parts[0]?.bytes.length === 0)) {
      const part = this.#parts.shift()
      if (!part) break
      if (part.bytes.length > 0) this.#wanted = this.stream.push(part.bytes)
      part.stored(part.end)
    }
    this.#settle()
  }

  /** The process must not wait for a reader that is gone. */
  #drop(): void {
    for (const { end, stored } of this.#parts.splice(0)) stored(end)
    this.#settle()
  }

  #settle(): void {
    if (this.#parts.length === 0) for (const settled of this.#settled.splice(0)) settled()
  }
}

/** Keeps the beginning of a stream, for failures, and takes the rest for nobody. */
export class Beginning implements OutputSink {
  readonly #most: number
  #kept: Buffer = Buffer.alloc(0)
  #taken = 0

  constructor(most: number) {
    this.#most = most
  }

  get text(): string {
    return this.#kept.toString('latin1')
  }

  resume(offset: number): void {
    this.#taken = Math.max(this.#taken, offset)
  }

  append(offset: number, bytes: Buffer, stored: (offset: number) => void): void {
    const fresh = bytes.subarray(Math.min(bytes.length, Math.max(0, this.#taken - offset)))
    this.#taken += fresh.length
    this.#kept = Buffer.concat([this.#kept, fresh.subarray(0, this.#most - this.#kept.length)])
    stored(this.#taken)
  }

  settled(): Promise<void> {
    return Promise.resolve()
  }
}
