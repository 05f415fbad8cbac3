// json-values.ts: the objects of a text that may be one object, an array of them, one a line, or any of these after each
// other; in pieces as they are read, so that a database of any size needs the memory of its largest record.
//
// What is no JSON is told, with its line, and costs no more than the object that it is in: a line end within a string, or a
// brace where JSON has none, ends that object, and what comes next is looked at anew.

const [QUOTE, BACKSLASH, OPEN, CLOSE, OPEN_LIST, CLOSE_LIST] = [34, 92, 123, 125, 91, 93]
const [LINE_END, COLON, COMMA] = [10, 58, 44]
const spaces = new Set([9, 10, 13, 32, 0xfeff])

export interface JsonValue {
  /** On which it begins; the first one is 1. */
  readonly line: number
  /** Of an object. Whether it is JSON is for its parser to say. */
  readonly text?: string
  /** Why it is none. */
  readonly problem?: string
}

export class JsonValues {
  /** What the object is in the middle of: braces and brackets that were opened. */
  readonly #open: number[] = []
  #inString = false
  #isEscaped = false
  /** The last character of the object that is neither space nor within a string. */
  #last = 0
  /** What came of the object that has begun. */
  #kept = ''
  #isTooLarge = false
  #line = 1
  #began = 1
  /** Brackets around objects. */
  #lists = 0
  #inNonsense = false
  #objects = 0
  #problems = 0

  /** @param most characters of one object */
  constructor(private readonly most: number) {}

  /** Objects that end in this piece, and what is wrong in it. */
  *push(piece: string): Generator<JsonValue> {
    let from = 0
    for (let at = 0; at < piece.length; at++) {
      const code = piece.charCodeAt(at)
      if (code === LINE_END) this.#line++
      if (this.#open.length === 0) {
        if (code === OPEN) from = this.#begin(at)
        else yield* this.#between(code)
      } else if (this.#inString) {
        if (code === LINE_END) yield this.#broken('a line end within a string')
        else this.#within(code)
      } else if (code === OPEN && !this.#mayOpen()) {
        yield this.#broken('a brace where there can be none')
        from = this.#begin(at)
      } else if (this.#structure(code)) {
        this.#keep(piece.slice(from, at + 1))
        yield this.#take()
      }
    }
    if (this.#open.length > 0) this.#keep(piece.slice(from))
  }

  /** What the text ends in the middle of, once all of it came; undefined where it is whole. */
  end(): JsonValue | undefined {
    if (this.#open.length > 0) return { line: this.#began, problem: 'it has no end' }
    return this.#lists > 0 && this.#problems === 0 ? { line: this.#line, problem: 'the list has no end' } : undefined
  }

  /** Whether what has no end is one of several. */
  get isOneOfSeveral(): boolean {
    return this.#objects > 0 || this.#lists > 0
  }

  #begin(at: number): number {
    this.#open.push(OPEN)
    this.#last = OPEN
    this.#began = this.#line
    this.#inNonsense = false
    return at
  }

  *#between(code: number): Generator<JsonValue> {
    if (code === OPEN_LIST) this.#lists++
    else if (code === CLOSE_LIST) this.#lists = Math.max(0, this.#lists - 1)
    else if (code === LINE_END) this.#inNonsense = false
    else if (!this.#inNonsense && code !== COMMA && !spaces.has(code)) {
      this.#inNonsense = true
      this.#problems++
      yield { line: this.#line, problem: 'it is no object' }
    }
  }

  #within(code: number): void {
    if (this.#isEscaped) this.#isEscaped = false
    else if (code === BACKSLASH) this.#isEscaped = true
    else if (code === QUOTE) this.#inString = false
  }

  #mayOpen(): boolean {
    if (this.#open.at(-1) === OPEN) return this.#last === COLON
    return this.#last === OPEN_LIST || this.#last === COMMA
  }

  /** @returns whether the object has ended */
  #structure(code: number): boolean {
    if (code === QUOTE) this.#inString = true
    else if (code === OPEN || code === OPEN_LIST) this.#open.push(code)
    else if (code === CLOSE || code === CLOSE_LIST) this.#open.pop()
    if (!spaces.has(code)) this.#last = code
    return this.#open.length === 0
  }

  #broken(problem: string): JsonValue {
    this.#reset()
    this.#problems++
    return { line: this.#began, problem }
  }

  #reset(): void {
    this.#open.length = 0
    this.#kept = ''
    this.#isTooLarge = this.#inString = this.#isEscaped = false
  }

  #keep(text: string): void {
    this.#isTooLarge ||= this.#kept.length + text.length > this.most
    this.#kept = this.#isTooLarge ? '' : this.#kept + text
  }

  #take(): JsonValue {
    const [text, isTooLarge] = [this.#kept, this.#isTooLarge]
    this.#reset()
    this.#objects++
    return isTooLarge
      ? { line: this.#began, problem: `it is longer than ${this.most} characters` }
      : { line: this.#began, text }
  }
}
