// json-values.ts: the objects of a text that may be one object, an array of them, one a line, or any of these after each
// other; in pieces as they are read, so that a database of any size needs the memory of its largest record.

const [QUOTE, BACKSLASH, OPEN, CLOSE, OPEN_LIST, CLOSE_LIST] = [34, 92, 123, 125, 91, 93]

export class JsonValues {
  #depth = 0
  #inString = false
  #isEscaped = false
  /** What came of the object that has begun. */
  #kept = ''
  #isTooLarge = false
  #dropped = 0

  /** @param most characters of one object */
  constructor(private readonly most: number) {}

  /** Texts of objects that end in this piece. Whether one is JSON is for its parser to say. */
  *push(piece: string): Generator<string> {
    let from = 0
    for (let at = 0; at < piece.length; at++) {
      const code = piece.charCodeAt(at)
      if (this.#inString) {
        if (this.#isEscaped) this.#isEscaped = false
        else if (code === BACKSLASH) this.#isEscaped = true
        else if (code === QUOTE) this.#inString = false
      } else if (code === QUOTE) this.#inString = true
      else if (code === OPEN) {
        if (this.#depth++ === 0) from = at
      } else if (code === OPEN_LIST && this.#depth > 0) this.#depth++
      else if (code === CLOSE_LIST && this.#depth > 1) this.#depth--
      else if (code === CLOSE && this.#depth > 0 && --this.#depth === 0) {
        this.#keep(piece.slice(from, at + 1))
        yield* this.#take()
      }
    }
    if (this.#depth > 0) this.#keep(piece.slice(from))
  }

  /** Objects that were too large, or whose end has not come. */
  get dropped(): number {
    return this.#dropped + (this.#depth > 0 ? 1 : 0)
  }

  #keep(text: string): void {
    this.#isTooLarge ||= this.#kept.length + text.length > this.most
    this.#kept = this.#isTooLarge ? '' : this.#kept + text
  }

  *#take(): Generator<string> {
    const text = this.#kept
    this.#kept = ''
    if (!this.#isTooLarge) yield text
    else this.#dropped++
    this.#isTooLarge = false
  }
}
