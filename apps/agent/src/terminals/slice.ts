// slice.ts: output on its way through the reducer, in pieces that are not too large.

import type { TerminalSize } from '@berth/contracts'

/** Output from `from` to `to`: as it came, or what stands in its place. */
export interface Piece {
  readonly from: number
  readonly to: number
  readonly bytes: Uint8Array
  /** Bytes of text that take as long to draw. */
  readonly cost: number
  /** The screen changes to it. */
  readonly size?: TerminalSize
}

/** What a piece takes in memory beside its bytes. */
const PIECE_OVERHEAD = 128

export const ESC = 0x1b
/** The first byte of U+0080 to U+009F. */
export const C1_LEAD = 0xc2
export const SO = 0x0e
export const SI = 0x0f

const specials = [ESC, C1_LEAD, SO, SI]
const special = new Uint8Array(256)
for (const byte of specials) special[byte] = 1
/** Programs that colour and move do so every few bytes; what is further away is found by memchr. */
const NEAR_BYTES = 48

/** What of a piece lies before an offset. A run begins anywhere in what goes through as it came, and nowhere else. */
export function beginning(piece: Piece, to: number): readonly Piece[] {
  if (piece.to <= to) return [piece]
  return piece.from >= to ? [] : [{ ...piece, to, bytes: piece.bytes.subarray(0, to - piece.from) }]
}

/** Bytes of memory that pieces take. */
export const weightOf = (pieces: readonly Piece[]): number =>
  pieces.reduce((sum, { bytes }) => sum + bytes.length + PIECE_OVERHEAD, 0)

/** Output that goes through as it came, until something has to be put in its place. */
export class Slice {
  /** Beginning of what has not gone through yet. */
  at = 0
  /** Of what has not, beside its bytes. */
  cost = 0
  readonly data: Buffer
  readonly base: number
  readonly #most: number
  readonly #push: (piece: Piece) => void
  /** Where each of `specials` is next. */
  readonly #far = specials.map(() => -1)

  /** @param base offset of the first byte of `data` @param most bytes of a piece, about */
  constructor(data: Buffer, base: number, most: number, push: (piece: Piece) => void) {
    this.data = data
    this.base = base
    this.#most = most
    this.#push = push
  }

  /** Cuts between `from` and `to`, where there is only text, so that no piece is too large. */
  limit(from: number, to: number): void {
    if (to - this.at + this.cost < this.#most) return
    this.flush(from)
    for (let cut = from + this.#most; cut < to; cut += this.#most) {
      // Not between the bytes of a character, where that can be helped.
      for (let back = 0; back < 3 && ((this.data[cut] ?? 0) & 0xc0) === 0x80; back++) cut--
      this.flush(cut)
    }
  }

  flush(to: number): void {
    if (to <= this.at) return
    const bytes = this.data.subarray(this.at, to)
    this.#push({ from: this.base + this.at, to: this.base + to, bytes, cost: bytes.length + this.cost })
    this.skip(to)
  }

  replace(to: number, bytes: Buffer): void {
    this.#push({ from: this.base + this.at, to: this.base + to, bytes, cost: bytes.length + this.cost })
    this.skip(to)
  }

  /** Index of the next byte that may be more than text, from `from` on; the length when there is none. */
  nextSpecial(from: number): number {
    const { data } = this
    const near = Math.min(data.length, from + NEAR_BYTES)
    for (let at = from; at < near; at++) if (special[data[at] ?? 0] === 1) return at
    let next = data.length
    for (const [i, byte] of specials.entries()) {
      // Each is looked for once in all of the data, not again from every place before it.
      let found = this.#far[i] ?? -1
      if (found < near) found = data.indexOf(byte, near)
      if (found < 0) found = data.length
      this.#far[i] = found
      next = Math.min(next, found)
    }
    return next
  }

  skip(to: number): void {
    this.at = to
    this.cost = 0
  }
}
