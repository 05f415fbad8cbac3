// sequence.ts: one control sequence out of a stream, as xterm.js' parser would take it (EscapeSequenceParser.ts, after
// https://vt100.net/emu/dec_ansi_parser), including what that does with sequences that are broken off, with controls in
// the middle of one, and with C1 controls, which are U+0080 to U+009F here. Pure.

const ESC = 0x1b
const CAN = 0x18
const SUB = 0x1a
const DEL = 0x7f

/** A function of the terminal: `CSI ? 25 h`, `ESC ( 0`. */
export interface Sequence {
  readonly kind: 'csi' | 'esc'
  /** `?`, `>`, `=`, `<` or none. */
  readonly prefix: string
  /** Parameters as they were written: digits, `;` and `:`. */
  readonly params: string
  readonly intermediates: string
  readonly final: string
}

/** A string that begins, and what it takes to end it: its content is read by `StringScanner`. */
export type StringKind = 'osc' | 'dcs' | 'ignored'

export type Parsed =
  /** @param canonical the bytes are the sequence and nothing else */
  | {
      readonly kind: 'sequence'
      readonly end: number
      readonly controls: Uint8Array
      readonly canonical: boolean
      readonly sequence: Sequence
    }
  | { readonly kind: 'string'; readonly end: number; readonly controls: Uint8Array; readonly string: StringKind }
  /** @param separates whether a mark that follows can no longer join what came before */
  | { readonly kind: 'nothing'; readonly end: number; readonly controls: Uint8Array; readonly separates: boolean }
  | { readonly kind: 'incomplete' }

/** A code point, or what counts as one: `printable` stands for all that are beyond C1. */
type Code = { readonly code: number; readonly next: number } | undefined
const PRINTABLE = 0xa0
const NO_CODE = -1

/** @returns undefined where the character is cut off; `NO_CODE` for bytes that are none */
function decode(bytes: Uint8Array, at: number): Code {
  const lead = bytes[at] ?? 0
  if (lead < 0x80) return { code: lead, next: at + 1 }
  const length = lead >= 0xc0 && lead < 0xe0 ? 2 : lead >= 0xe0 && lead < 0xf0 ? 3 : lead >= 0xf0 && lead < 0xf8 ? 4 : 1
  if (length === 1) return { code: NO_CODE, next: at + 1 }
  let code = lead & (0xff >> (length + 1))
  for (let i = 1; i < length; i++) {
    const byte = bytes[at + i]
    if (byte === undefined) return undefined
    // The byte that is no continuation is read again; those before it are lost with their lead.
    if ((byte & 0xc0) !== 0x80) return { code: NO_CODE, next: at + i }
    code = (code << 6) | (byte & 0x3f)
  }
  return { code: isCode(code, length) ? code : NO_CODE, next: length === 2 && code < 0x80 ? at + 1 : at + length }
}

const isCode = (code: number, length: number): boolean =>
  length === 2
    ? code >= 0x80
    : length === 3
      ? code >= 0x800 && (code < 0xd800 || code > 0xdfff) && code !== 0xfeff
      : code >= 0x10000 && code <= 0x10ffff

type State = 'escape' | 'escapeIntermediate' | 'csi' | 'csiParam' | 'csiIntermediate' | 'csiIgnore' | DcsState
type DcsState = 'dcs' | 'dcsParam' | 'dcsIntermediate'

/**
 * Reads what begins at `at`, which holds ESC or the first byte of a C1 control.
 * `controls` are C0 controls found inside: they act before the sequence does.
 */
export function parse(bytes: Uint8Array, at: number): Parsed {
  const reading = new Reading()
  for (let position = at; position < bytes.length; ) {
    const decoded = decode(bytes, position)
    if (!decoded) break
    const { code, next } = decoded
    const done = code === NO_CODE ? reading.pass() : reading.take(code)
    if (done) return { ...done, end: next, controls: reading.controls }
    position = next
  }
  return { kind: 'incomplete' }
}

/** `Omit` of each member. */
type Done = Parsed extends infer P ? (P extends { readonly end: number } ? Omit<P, 'end' | 'controls'> : never) : never

const NOTHING: Done = { kind: 'nothing', separates: false }
const SEPARATES: Done = { kind: 'nothing', separates: true }

class Reading {
  #state: State | undefined
  #prefix = ''
  #params = ''
  #intermediates = ''
  #canonical = true
  #controls: number[] = []

  get controls(): Uint8Array {
    return Uint8Array.from(this.#controls)
  }

  /** A byte that is no character. */
  pass(): undefined {
    this.#canonical = false
  }

  take(code: number): Done | undefined {
    if (code === ESC) return this.#begin('escape', this.#state === undefined)
    if (code >= 0x80 && code < PRINTABLE) return this.#c1(code)
    if (code === CAN || code === SUB) return SEPARATES
    switch (this.#state) {
      case undefined:
        return NOTHING
      case 'dcs':
      case 'dcsParam':
      case 'dcsIntermediate':
        return this.#dcs(this.#state, code)
      default:
        if (code < 0x20) return this.#control(code)
        if (code === DEL) return this.pass()
        if (this.#state === 'csiIgnore') return this.#ignored(code)
        if (code >= PRINTABLE) return NOTHING
        return this.#state === 'escape' || this.#state === 'escapeIntermediate' ? this.#escape(code) : this.#csi(code)
    }
  }

  #begin(state: State, first: boolean): undefined {
    this.#state = state
    this.#prefix = ''
    this.#params = ''
    this.#intermediates = ''
    if (!first) this.#canonical = false
  }

  #control(code: number): undefined {
    this.#controls.push(code)
    this.#canonical = false
  }

  #c1(code: number): Done | undefined {
    this.#canonical = false
    switch (code) {
      case 0x84:
        return this.#plainEscape('D')
      case 0x85:
        return this.#plainEscape('E')
      case 0x88:
        return this.#plainEscape('H')
      case 0x90:
        return this.#begin('dcs', false)
      case 0x9b:
        return this.#begin('csi', false)
      case 0x9c:
        return NOTHING
      case 0x9d:
        return { kind: 'string', string: 'osc' }
      case 0x98:
      case 0x9e:
      case 0x9f:
        return { kind: 'string', string: 'ignored' }
      default:
        return SEPARATES
    }
  }

  #plainEscape(final: string): Done {
    this.#begin('escape', false)
    return this.#dispatch('esc', final)
  }

  #escape(code: number): Done | undefined {
    const character = String.fromCharCode(code)
    if (code < 0x30) {
      this.#intermediates += character
      this.#state = 'escapeIntermediate'
      return undefined
    }
    if (this.#state === 'escapeIntermediate') return this.#dispatch('esc', character)
    switch (character) {
      case '[':
        this.#state = 'csi'
        return undefined
      case 'P':
        this.#state = 'dcs'
        return undefined
      case ']':
        return { kind: 'string', string: 'osc' }
      case 'X':
      case '^':
      case '_':
        return { kind: 'string', string: 'ignored' }
      default:
        return this.#dispatch('esc', character)
    }
  }

  #csi(code: number): Done | undefined {
    const character = String.fromCharCode(code)
    if (code >= 0x40) return this.#dispatch('csi', character)
    if (code < 0x30) {
      this.#intermediates += character
      this.#state = 'csiIntermediate'
    } else if (this.#state === 'csiIntermediate') {
      this.#state = 'csiIgnore'
    } else if (code < 0x3c) {
      this.#params += character
      this.#state = 'csiParam'
    } else if (this.#state === 'csi') {
      this.#prefix = character
      this.#state = 'csiParam'
    } else {
      this.#state = 'csiIgnore'
    }
    return undefined
  }

  /** Until its final byte. */
  #ignored(code: number): Done | undefined {
    return code >= 0x40 && code < DEL ? NOTHING : undefined
  }

  #dcs(state: DcsState, code: number): Done | undefined {
    if (code < 0x20 || code === DEL) return undefined
    if (code >= PRINTABLE) return NOTHING
    if (code >= 0x40) return { kind: 'string', string: 'dcs' }
    if (code < 0x30) this.#state = 'dcsIntermediate'
    else if (state === 'dcsIntermediate' || (code >= 0x3c && state === 'dcsParam'))
      return { kind: 'string', string: 'dcs' }
    else this.#state = 'dcsParam'
    return undefined
  }

  #dispatch(kind: Sequence['kind'], final: string): Done {
    const sequence = { kind, prefix: this.#prefix, params: this.#params, intermediates: this.#intermediates, final }
    return { kind: 'sequence', canonical: this.#canonical, sequence }
  }
}

/** The sequence as bytes. */
export const encode = ({ kind, prefix, params, intermediates, final }: Sequence): Buffer =>
  Buffer.from(`\x1b${kind === 'csi' ? '[' : ''}${prefix}${params}${intermediates}${final}`, 'latin1')

/** Numbers of the parameters, without what is after a `:`; xterm.js takes 32 of them. */
export const numbers = ({ params }: Pick<Sequence, 'params'>): readonly number[] =>
  params.split(';', 32).map((param) => Math.min(0x7fffffff, Number.parseInt(param.split(':', 1)[0] || '0', 10)))

export interface StringEnd {
  readonly at: number
  /** Where to read on: what ended it may begin something. */
  readonly next: number
  /** It was not broken off. */
  readonly whole: boolean
}

/** Finds the end of a string's content from `at` on. @returns undefined when it goes on */
export function stringEnd(bytes: Uint8Array, at: number, kind: StringKind): StringEnd | undefined {
  for (let i = at; i < bytes.length; i++) {
    const byte = bytes[i] ?? 0
    if (byte === ESC) return { at: i, next: i, whole: true }
    if (byte === CAN || byte === SUB) return { at: i, next: i + 1, whole: false }
    if (byte === 0x07 && kind === 'osc') return { at: i, next: i + 1, whole: true }
    if (byte < 0x80) continue
    const decoded = decode(bytes, i)
    if (!decoded) return undefined
    const { code, next } = decoded
    if (code === 0x9c) return { at: i, next, whole: true }
    if (code >= 0x80 && code < PRINTABLE) return { at: i, next: i, whole: false }
    // Only these two take characters beyond ASCII; the others end with one.
    if (code >= PRINTABLE && kind === 'ignored') return { at: i, next, whole: false }
    i = next - 1
  }
  return undefined
}

/** Bytes at the end that are the beginning of a character: 0 to 3. */
export function unfinished(bytes: Uint8Array, from = 0): number {
  for (let back = 1; back <= 3 && bytes.length - back >= from; back++) {
    const byte = bytes[bytes.length - back] ?? 0
    if (byte < 0x80) return 0
    if (byte < 0xc0) continue
    const length = byte < 0xe0 ? 2 : byte < 0xf0 ? 3 : byte < 0xf8 ? 4 : 1
    return length > back ? back : 0
  }
  return 0
}
