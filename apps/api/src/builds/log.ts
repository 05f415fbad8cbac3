// log.ts: the log of a build on its way to Postgres: taken in pieces every few seconds, so that a flood of output costs a
// write in a while and no more; what is kept, here and there, is the end of it.

/** Bytes that are kept of a log, and that one piece of it may have. */
export const KEPT_LOG_BYTES = 1024 * 1024

export interface LogPiece {
  readonly number: number
  readonly data: Uint8Array
  /** Pieces before this one go. */
  readonly keepFrom: number
}

export class BuildLog {
  #waiting: Buffer[] = []
  #waitingBytes = 0
  #lost = false
  /** Sizes of the pieces that are kept, oldest first; the last one has the number before `#next`. */
  #kept: number[] = []
  #next = 0

  add(text: string): void {
    const bytes = Buffer.from(text)
    this.#waiting.push(bytes)
    this.#waitingBytes += bytes.length
    while (this.#waitingBytes > KEPT_LOG_BYTES && this.#waiting.length > 1) {
      this.#waitingBytes -= this.#waiting.shift()?.length ?? 0
      this.#lost = true
    }
  }

  /** Says that a piece which was taken was not written down; the next one tells of the gap. */
  missed(): void {
    this.#lost = true
  }

  /** What came since the last piece; null where nothing did. */
  take(): LogPiece | null {
    if (this.#waitingBytes === 0) return null
    const data = Buffer.concat([...(this.#lost ? [LEFT_OUT] : []), ...this.#waiting])
    this.#waiting = []
    this.#waitingBytes = 0
    this.#lost = false
    this.#kept.push(data.length)
    // Without the oldest one there must still be enough.
    let bytes = this.#kept.reduce((sum, size) => sum + size, 0)
    while (bytes - (this.#kept[0] ?? 0) >= KEPT_LOG_BYTES) bytes -= this.#kept.shift() ?? 0
    const number = this.#next++
    return { number, data, keepFrom: this.#next - this.#kept.length }
  }
}

/** Stands where something was left out. */
export const LEFT_OUT = Buffer.from('[… what came before is not kept]\n')
