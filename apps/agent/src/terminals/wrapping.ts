// wrapping.ts: in which column text without line ends is, and how many lines it began by itself. Output that never ends
// a line (`base64 -w0`, bytes of a raw terminal) leaves the screen at its top all the same: each row that is full begins
// the next one. Where that is, is only known of characters that surely take one cell each, from a column that is known.

const CR = 0x0d
const LF = 0x0a

/** By byte: a character of one cell, in whatever character set. */
const oneCell = new Uint8Array(256).fill(1, 0x20, 0x7f)

export class Wrapping {
  #columns: number
  /** Characters of one cell since the first column; undefined where the column is not known. */
  #cells: number | undefined
  /** Lines that text began before that. */
  #begun = 0
  /** Text goes on in the next line (DECAWM), and */
  #wraps = true
  /** moves what is right of it (IRM). */
  #inserts = false

  /** The cursor is in the first column. */
  constructor(columns: number) {
    this.#columns = columns
    this.#cells = 0
  }

  /** How many lines were begun by text alone; more may have been where the column was not known. */
  get lines(): number {
    return this.#begun + wrapsOf(this.#cells ?? 0, this.#columns)
  }

  /** The column of the cursor, from 0 on; undefined where it is not known, or beyond the last until the next character. */
  get column(): number | undefined {
    if (this.#cells === undefined) return undefined
    const column = this.#cells % this.#columns
    return column === 0 && this.#cells > 0 ? undefined : column
  }

  /** What is from `from` to `to` was printed: text and controls. */
  text(data: Uint8Array, from: number, to: number): void {
    const at = plainFrom(data, from, to)
    if (at > from) {
      this.lose()
      // LF alone moves down from wherever it is; CR LF and CR lead to the first column.
      const before = data[at - 1] === LF ? at - 2 : at - 1
      if (before < from || data[before] !== CR || !this.#wraps || this.#inserts) return
      this.#cells = 0
    }
    if (this.#cells !== undefined) this.#cells += to - at
  }

  /** Something else came, that may move the cursor. */
  lose(): void {
    this.#begun = this.lines
    this.#cells = undefined
  }

  /** A mode by its key of carry.ts; all but two change nothing here. */
  set(key: string, on: boolean): void {
    if (key === '?7') this.#wraps = on
    else if (key === 'insert') this.#inserts = on
    else return
    this.lose()
  }

  /** All modes are as they were in the beginning. */
  reset(): void {
    this.lose()
    this.#wraps = true
    this.#inserts = false
  }

  /** The cursor is in the first column. */
  home(): void {
    this.lose()
    if (this.#wraps && !this.#inserts) this.#cells = 0
  }

  resize(columns: number): void {
    this.lose()
    this.#columns = columns
  }
}

/** Where the text begins, from `from` on, that goes on to `to` with characters of one cell only. */
function plainFrom(data: Uint8Array, from: number, to: number): number {
  let at = to
  if (to - from >= 64) {
    const words = new DataView(data.buffer, data.byteOffset, data.length)
    // Four at once: a byte below 0x20 borrows from its highest bit, 0x7f carries into it, others have it.
    for (; at - 4 >= from; at -= 4) {
      const word = words.getInt32(at - 4)
      if (((word | (word - 0x20202020) | (word + 0x01010101)) & HIGHEST) !== 0) break
    }
  }
  while (at > from && oneCell[data[at - 1] ?? 0] === 1) at--
  return at
}
const HIGHEST = 0x80808080 | 0

const wrapsOf = (cells: number, columns: number): number => Math.max(0, Math.floor((cells - 1) / columns))
