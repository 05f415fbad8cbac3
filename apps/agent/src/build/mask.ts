// mask.ts: secrets in output are covered, also where one is told in pieces. Pure.
//
// Each secret is looked for byte by byte with the automaton of Knuth, Morris and Pratt, so output costs the same however
// alike it and the secrets are, and only what may yet become one is held back.

export const MASK = '***'

/** Shorter texts are in everything, and no secrets. */
const MIN_BYTES = 4
/** A line of a secret of several, told by itself, is covered as well: a key's, say. */
const MIN_LINE_BYTES = 12
/** Each costs something for every byte of output. Whole secrets come first. */
const MAX_PATTERNS = 128

interface Pattern {
  readonly bytes: Uint8Array
  /** Of each length: how long the longest beginning of the pattern is that ends there too. */
  readonly fallback: Int32Array
}

/** What is looked for; made once for all outputs of a build. */
export type Patterns = readonly Pattern[]

/** @param secrets as they are given to commands; blanks around one do not count */
export function patternsOf(secrets: Iterable<Uint8Array>): Patterns {
  const texts = [...secrets].map((bytes) => Buffer.from(bytes).toString('latin1').trim())
  const lines = texts.flatMap((text) => text.split(/[\r\n]+/).map((line) => line.trim()))
  const wanted = [
    ...texts.filter((text) => text.length >= MIN_BYTES),
    ...lines.filter((line) => line.length >= MIN_LINE_BYTES),
  ]
  return [...new Set(wanted)].slice(0, MAX_PATTERNS).map((text) => patternOf(Buffer.from(text, 'latin1')))
}

function patternOf(bytes: Uint8Array): Pattern {
  const fallback = new Int32Array(bytes.length + 1)
  let length = 0
  for (let i = 1; i < bytes.length; i++) {
    while (length > 0 && bytes[i] !== bytes[length]) length = fallback[length] ?? 0
    if (bytes[i] === bytes[length]) length += 1
    fallback[i + 1] = length
  }
  return { bytes, fallback }
}

/** One stream of output. */
export class Mask {
  readonly #patterns: Patterns
  /** How much of each pattern the bytes so far end with. */
  readonly #matched: Int32Array
  /** Patterns of which that is something, and those that begin with a byte: of most bytes there are none. */
  readonly #active: number[] = []
  readonly #beginning: readonly (readonly number[])[]
  /** What may yet be part of a secret, with the number of secrets' bytes that are known at each place. */
  #held: Buffer = Buffer.alloc(0)
  #covered: Uint8Array = new Uint8Array(0)
  #inside = false

  constructor(patterns: Patterns) {
    this.#patterns = patterns
    this.#matched = new Int32Array(patterns.length)
    const beginning = Array.from({ length: 256 }, (): number[] => [])
    for (const [i, { bytes }] of patterns.entries()) beginning[bytes[0] ?? 0]?.push(i)
    this.#beginning = beginning
  }

  /** @returns what can be told by now */
  push(chunk: Uint8Array): Buffer {
    if (this.#patterns.length === 0) return Buffer.from(chunk)
    const before = this.#held.length
    const bytes = Buffer.concat([this.#held, chunk])
    const covered = new Uint8Array(bytes.length)
    covered.set(this.#covered)
    for (let i = before; i < bytes.length; i++) this.#step(bytes[i] ?? 0, i, covered)
    const held = Math.max(...this.#matched)
    const end = bytes.length - held
    this.#held = bytes.subarray(end)
    this.#covered = covered.subarray(end)
    return this.#told(bytes.subarray(0, end), covered)
  }

  /** @returns what was held back */
  end(): Buffer {
    const rest = this.#told(this.#held, this.#covered)
    this.#held = Buffer.alloc(0)
    this.#covered = new Uint8Array(0)
    this.#matched.fill(0)
    this.#active.length = 0
    return rest
  }

  #step(byte: number, at: number, covered: Uint8Array): void {
    let still = 0
    for (const i of this.#active) {
      const length = this.#longer(i, byte, at, covered)
      this.#matched[i] = length
      if (length > 0) this.#active[still++] = i
    }
    this.#active.length = still
    for (const i of this.#beginning[byte] ?? []) {
      if (this.#matched[i] !== 0) continue
      this.#matched[i] = 1
      this.#active.push(i)
    }
  }

  /** How much of a pattern the bytes end with after one more; a whole one is covered. */
  #longer(i: number, byte: number, at: number, covered: Uint8Array): number {
    const pattern = this.#patterns[i]
    if (!pattern) return 0
    const { bytes, fallback } = pattern
    let length = this.#matched[i] ?? 0
    while (length > 0 && bytes[length] !== byte) length = fallback[length] ?? 0
    if (bytes[length] === byte) length += 1
    if (length < bytes.length) return length
    covered.fill(1, at + 1 - length, at + 1)
    return fallback[length] ?? 0
  }

  /** Bytes that are covered become one mask, however many pieces they come in. */
  #told(bytes: Buffer, covered: Uint8Array): Buffer {
    const parts: Buffer[] = []
    for (let from = 0; from < bytes.length; ) {
      const isCovered = covered[from] === 1
      let to = from + 1
      while (to < bytes.length && (covered[to] === 1) === isCovered) to += 1
      if (!isCovered) parts.push(bytes.subarray(from, to))
      else if (!this.#inside) parts.push(Buffer.from(MASK))
      this.#inside = isCovered
      from = to
    }
    return Buffer.concat(parts)
  }
}
