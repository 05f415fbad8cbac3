// reduce.ts: what a screen has to be drawn from, out of what a program wrote. xterm.js draws some megabytes a second and
// programs write hundreds, but of a flood only its end is ever seen: in a run of output that moves along its line or down
// and never up, everything that is followed by more lines than screen and scrollback hold is gone, and what lasts of it
// are colours and modes. So such a run is cut, at the beginning of a line, to its last lines, with those colours and
// modes set before them. All else goes through as it came; decisions/005 has the proof, reduce.test.ts the property.
//
// What comes out is only whole: no sequence and no character is cut between two writes, so a screen can be read, kept
// and drawn again after any of them. Two things are made harmless on the way, because xterm.js has no bound for them:
// strings (titles, images, links), which draw nothing here, and counts that repeat something a billion times.

import { KiB, type TerminalSize } from '@berth/contracts'
import { Carry, effectOf, plain, plainCsiEnd, plainEffects, type Setting, shiftBy, styleSettings } from './carry.js'
import {
  encode,
  numbers,
  type Parsed,
  parse,
  type Sequence,
  type StringKind,
  stringEnd,
  unfinished,
} from './sequence.js'
import { beginning, C1_LEAD, ESC, type Piece, SI, Slice, SO, weightOf } from './slice.js'
import { Wrapping } from './wrapping.js'

/** After ESC. */
const OSC = 0x5d
const CAN = 0x18
const LF = 0x0a
const CR = 0x0d

/** A sequence that is longer is nonsense. */
const MAX_SEQUENCE_BYTES = 4096
const MAX_TITLE_BYTES = 1024
const MAX_TITLE = 256
/** Repetitions of a character by REP, at most; more than any screen is wide or high. */
const MAX_REPEAT = 32_767

/** A step of drawing. `to` is the offset in the output that the screen stands for after it. */
export type Step =
  | { readonly kind: 'draw'; readonly to: number; readonly bytes: Uint8Array }
  | { readonly kind: 'resize'; readonly to: number; readonly size: TerminalSize }

/** A place in a run where the column of the cursor is known, and what was set by then. */
interface Mark {
  readonly offset: number
  readonly carry: Carry
  readonly column: number
  /** Lines that text had begun by itself, without a line feed. */
  readonly wrapped: number
}

/** Output that moves along lines or down, so far. */
interface Run {
  readonly from: number
  carry: Carry | undefined
  readonly marks: Mark[]
  /** Offset at which it is to be cut next. */
  cutAt: number
}

/** A screen that stands for anything from `from` to `to` is one for `to` once `bytes` are drawn on it. */
export interface Cut {
  readonly from: number
  readonly to: number
  readonly bytes: Buffer
}

interface OpenString {
  readonly kind: StringKind
  readonly from: number
  /** The beginning of its content. */
  text: string
}

export interface ReducerOptions {
  readonly size: TerminalSize
  /** Lines above the screen that are kept, from the number of columns. */
  readonly scrollback: (columns: number) => number
  /** Where the output begins. */
  readonly offset: number
  readonly onTitle?: (title: string) => void
  readonly grain?: Grain
}

/** Sizes in bytes. */
export interface Grain {
  /** Of a piece, about: little is to be drawn at once. */
  readonly piece: number
  /** A run is cut whenever it has grown by so much. */
  readonly cut: number
  /** Places where a run can be cut are so far apart, at least. */
  readonly mark: number
}
export const GRAIN: Grain = { piece: 8 * KiB, cut: 128 * KiB, mark: 16 * KiB }

export class Reducer {
  readonly #options: ReducerOptions
  readonly #grain: Grain
  #size: TerminalSize
  /** Of the byte after all that was fed. */
  #end: number
  /** The beginning of a sequence or character: it waits for its rest. */
  #held: Buffer = EMPTY
  #string: OpenString | undefined
  /** As it came; told at the end of what was fed. */
  #title: string | undefined
  #pieces: Piece[] = []
  #weight = 0
  #taken: number
  #run: Run
  #cut: Cut | undefined
  /** In xterm.js the alternate buffer keeps lines above it after it was made smaller while it was not in use. */
  #mostRows: number
  readonly #wrapping: Wrapping
  readonly #mode = { alternate: false, normalRegion: false, alternateRegion: false, upwards: false }

  constructor(options: ReducerOptions) {
    this.#options = options
    this.#grain = options.grain ?? GRAIN
    this.#size = options.size
    this.#mostRows = options.size.rows
    this.#wrapping = new Wrapping(columnsOf(options.size))
    if (options.offset > 0) this.#wrapping.lose()
    this.#end = options.offset
    this.#taken = options.offset
    this.#run = this.#newRun(options.offset)
  }

  /** The offset that a screen stands for once all is drawn: where a viewer goes on. */
  get offset(): number {
    return this.#end - this.#held.length
  }

  /** The offset that a screen stands for once all that was taken is drawn. */
  get taken(): number {
    return this.#taken
  }

  get size(): TerminalSize {
    return this.#size
  }

  /** Offset of what is to be fed next. */
  get end(): number {
    return this.#end
  }

  /** Bytes of memory that what waits to be drawn takes. */
  get weight(): number {
    return this.#weight + this.#held.length
  }

  /** What a terminal that goes on at `offset` has to be told first: that it is in the middle of a string. */
  get introducer(): string {
    return this.#string ? introducers[this.#string.kind] : ''
  }

  /** The newest place where output was cut. */
  get cut(): Cut | undefined {
    return this.#cut
  }

  /** @param bytes the next bytes of the output; kept by reference */
  feed(bytes: Buffer): void {
    const data = this.#held.length === 0 ? bytes : Buffer.concat([this.#held, bytes])
    const slice = new Slice(data, this.offset, this.#grain.piece, (piece) => this.#push(piece))
    this.#end += bytes.length
    this.#held = EMPTY
    for (let at = 0; at < data.length; )
      at = this.#string ? this.#inString(slice, at, this.#string) : this.#onGround(slice, at)
    slice.flush(data.length - this.#held.length)
    if (this.offset >= this.#run.cutAt) this.#cutRun()
    if (this.#title !== undefined) this.#options.onTitle?.(shownTitle(this.#title))
    this.#title = undefined
  }

  resize(size: TerminalSize): void {
    if (size.rows === this.#size.rows && size.columns === this.#size.columns) return
    this.#cutRun()
    this.#size = size
    this.#mostRows = Math.max(this.#mostRows, size.rows)
    this.#mode.normalRegion = this.#mode.alternateRegion = false
    this.#wrapping.resize(columnsOf(size))
    const at = this.#string?.from ?? this.offset
    this.#push({ from: at, to: at, bytes: EMPTY, cost: size.rows * size.columns, size })
    this.#run = this.#newRun(at)
  }

  /** Nothing waits to be drawn. */
  get drained(): boolean {
    return this.#pieces.length === 0
  }

  /** All that was fed was what draws a screen that stands for `offset`: of it only what is set counts. */
  standFor(offset: number): void {
    this.#pieces = []
    this.#weight = 0
    this.#end = offset + this.#held.length
    this.#taken = offset
    this.#run = this.#newRun(offset)
  }

  /** Output up to `offset` is lost: what it left open is broken off, and all goes on from there. */
  jump(offset: number): void {
    this.feed(Buffer.of(CAN))
    this.#end = offset
    this.#wrapping.lose()
    this.#run = this.#newRun(offset)
  }

  /** Goes on where output was cut before; what waits has to be at `cut.from` or later. */
  skip({ to, bytes }: Cut): void {
    this.#push({ from: this.offset, to, bytes, cost: bytes.length })
    this.#wrapping.lose()
    this.#end = to
    this.#run = this.#newRun(to)
  }

  /** The next things to draw, of about so much cost; none when there are none. */
  take(cost: number): readonly Step[] {
    const steps: Step[] = []
    let parts: Uint8Array[] = []
    let left = cost
    let count = 0
    const flush = () => {
      const bytes = parts.length === 1 && parts[0] ? parts[0] : Buffer.concat(parts)
      if (parts.length > 0) steps.push({ kind: 'draw', to: this.#taken, bytes })
      parts = []
    }
    for (const piece of this.#pieces) {
      if (count > 0 && piece.cost > left) break
      count += 1
      left -= piece.cost
      if (piece.size) {
        flush()
        steps.push({ kind: 'resize', to: piece.to, size: piece.size })
      } else parts.push(piece.bytes)
      this.#taken = piece.to
    }
    flush()
    this.#weight -= weightOf(this.#pieces.splice(0, count))
    return steps
  }

  #onGround(slice: Slice, from: number): number {
    const { data } = slice
    const at = slice.nextSpecial(from)
    this.#text(slice, from, at)
    const byte = data[at]
    if (byte === undefined) return this.#atEnd(slice)
    if (byte === SO || byte === SI) {
      this.#keep(shiftBy(byte))
      return at + 1
    }
    if (byte === C1_LEAD) {
      const next = data[at + 1]
      if (next === undefined) return this.#atEnd(slice)
      if (next < 0x80 || next > 0x9f) {
        this.#wrapping.lose()
        return at + 2
      }
    }
    if (byte === ESC && data[at + 1] === OSC) return this.#begin(slice, at, at + 2, 'osc')
    const end = byte === ESC ? plainCsiEnd(data, at) : 0
    if (end > 0 && this.#plainCsi(slice, at, end)) return end
    const parsed = parse(data, at)
    switch (parsed.kind) {
      case 'incomplete':
        return this.#hold(slice, at)
      case 'sequence':
        return this.#sequence(slice, at, parsed)
      case 'nothing':
        return this.#replace(slice, at, parsed.end, parsed.controls, parsed.separates ? NUL : EMPTY)
      case 'string':
        slice.flush(at)
        if (parsed.controls.length > 0) this.#replace(slice, at, at, parsed.controls, EMPTY)
        return this.#begin(slice, at, parsed.end, parsed.string)
    }
  }

  #begin(slice: Slice, at: number, end: number, kind: StringKind): number {
    slice.flush(at)
    this.#wrapping.lose()
    this.#string = { kind, from: slice.base + at, text: '' }
    slice.skip(end)
    return end
  }

  /** Nothing from `from` to `to` is more than text and controls that stay below. */
  #text(slice: Slice, from: number, to: number): void {
    const marked = this.#run.marks.at(-1)?.offset ?? this.#run.from
    if (to > from && slice.base + to - marked >= this.#grain.mark) this.#mark(slice, from, to)
    else this.#wrapping.text(slice.data, from, to)
    slice.limit(from, to)
  }

  /** Marks the first line that begins in this text, else its end: only what was set before counts for it. */
  #mark(slice: Slice, from: number, to: number): void {
    const line = slice.data.indexOf(CRLF, from) + CRLF.length
    const begins = line >= from + CRLF.length && line <= to
    // Of two places next to each other one is not beyond the last column.
    for (const [start, end] of begins
      ? ([[from, line]] as const)
      : ([
          [from, to - 1],
          [to - 1, to],
        ] as const)) {
      this.#wrapping.text(slice.data, start, end)
      const column = begins ? 0 : this.#wrapping.column
      if (column === undefined) continue
      slice.limit(start, end)
      slice.flush(end)
      const { lines } = this.#wrapping
      this.#run.marks.push({ offset: slice.base + end, carry: new Carry(this.#run.carry), column, wrapped: lines })
      this.#wrapping.text(slice.data, end, to)
      return
    }
  }

  /** The rest was text; it may end in the middle of a character. */
  #atEnd(slice: Slice): number {
    const { data } = slice
    const end = data.length - unfinished(data, slice.at)
    slice.flush(end)
    this.#held = Buffer.from(data.subarray(end))
    return data.length
  }

  #hold(slice: Slice, at: number): number {
    const { data } = slice
    slice.flush(at)
    // What is too long is dropped, and its rest is text. xterm.js would go on waiting for its end; no program writes it.
    if (data.length - at > MAX_SEQUENCE_BYTES) slice.skip(data.length)
    else this.#held = Buffer.from(data.subarray(at))
    return data.length
  }

  #inString(slice: Slice, at: number, string: OpenString): number {
    const { data } = slice
    const end = stringEnd(data, at, string.kind)
    const until = end?.at ?? data.length - unfinished(data, at)
    if (string.text.length < MAX_TITLE_BYTES)
      string.text += data.toString('latin1', at, Math.min(until, at + MAX_TITLE_BYTES))
    if (!end) {
      slice.skip(until)
      this.#held = Buffer.from(data.subarray(until))
      return data.length
    }
    this.#string = undefined
    if (end.whole && string.kind === 'osc') this.#title = titleIn(string.text) ?? this.#title
    this.#push({ from: string.from, to: slice.base + end.next, bytes: NUL, cost: 1 })
    slice.skip(end.next)
    return end.next
  }

  /** The usual sequences, without taking them apart: all others are `#sequence`'s. @returns whether it was one */
  #plainCsi(slice: Slice, at: number, end: number): boolean {
    const { data } = slice
    const { rows, columns } = this.#size
    switch (plainEffects[data[end - 1] ?? 0]) {
      case plain.along:
        this.#wrapping.lose()
        return true
      case plain.inLine:
        this.#wrapping.lose()
        slice.cost += columns / 8
        return true
      case plain.style: {
        const settings = styleSettings(data.toString('latin1', at + 2, end - 1))
        if (!settings) return false
        for (const setting of settings) this.#keep(setting)
        return true
      }
      case plain.moves:
        this.#endRun(slice, end)
        return true
      case plain.erases:
        slice.cost += (rows * columns) / 8
        this.#endRun(slice, end)
        return true
      default:
        return false
    }
  }

  #keep(setting: Setting): void {
    this.#run.carry ??= new Carry()
    this.#run.carry.set(setting)
    this.#wrapping.set(setting.key, setting.bytes.endsWith('h'))
  }

  #endRun(slice: Slice, end: number): void {
    this.#wrapping.lose()
    if (slice.base + end >= this.#run.cutAt) {
      slice.flush(end)
      this.#cutRun()
    } else slice.limit(end, end)
    this.#run = this.#newRun(slice.base + end)
  }

  #sequence(slice: Slice, at: number, parsed: Extract<Parsed, { kind: 'sequence' }>): number {
    const { end, controls, canonical } = parsed
    const sequence = this.#bounded(parsed.sequence)
    const effect = effectOf(sequence)
    this.#wrapping.lose()
    if (effect.kind === 'keep') for (const setting of effect.settings) this.#keep(setting)
    if (!canonical || sequence !== parsed.sequence) this.#replace(slice, at, end, controls, encode(sequence))
    slice.cost += this.#costOf(sequence)
    if (effect.kind === 'moves') {
      this.#endRun(slice, end)
      this.#track(sequence)
    }
    return end
  }

  /** Puts controls and then `bytes` in the place of what is from `at` to `end`. */
  #replace(slice: Slice, at: number, end: number, controls: Uint8Array, bytes: Uint8Array): number {
    this.#wrapping.lose()
    for (const control of controls) if (control === SO || control === SI) this.#keep(shiftBy(control))
    slice.flush(at)
    slice.replace(end, Buffer.concat([controls, bytes]))
    return end
  }

  /** The same sequence, with a count that does what the given one does. */
  #bounded(sequence: Sequence): Sequence {
    const { kind, prefix, intermediates, final } = sequence
    const most = kind === 'csi' && prefix === '' && intermediates === '' ? this.#most(final) : undefined
    const [count = 0] = most === undefined ? [] : numbers(sequence)
    return most !== undefined && count > most ? { ...sequence, params: String(most) } : sequence
  }

  #most(final: string): number | undefined {
    if ('STLM'.includes(final)) return this.#size.rows
    if ('IZ'.includes(final)) return this.#size.columns
    return final === 'b' ? MAX_REPEAT : undefined
  }

  #costOf({ kind, final, params }: Sequence): number {
    const { rows, columns } = this.#size
    const count = () => Number.parseInt(params, 10) || 1
    if (kind === 'esc') return 'cM8'.includes(final) ? (rows * columns) / 8 : 0
    if (final === 'b') return count()
    if ('STLM'.includes(final)) return count() * (columns / 8 + rows)
    if ('Jhlp}~'.includes(final)) return (rows * columns) / 8
    return 'K@PX'.includes(final) ? columns / 8 : 0
  }

  /** What decides whether output can be cut: the buffer, whether lines leave it at its top, whether text can go up. */
  #track(sequence: Sequence): void {
    const { kind, prefix, intermediates, final } = sequence
    const mode = this.#mode
    switch (`${kind} ${prefix}${intermediates}${final}`) {
      case 'esc c':
        mode.alternate = mode.normalRegion = mode.alternateRegion = mode.upwards = false
        this.#wrapping.reset()
        this.#wrapping.home()
        break
      case 'csi !p':
        this.#region(false)
        mode.upwards = false
        this.#wrapping.reset()
        break
      case 'csi r': {
        const { rows } = this.#size
        const [top = 0, bottom = 0] = numbers(sequence)
        const [first, last] = [top || 1, bottom === 0 || bottom > rows ? rows : bottom]
        if (last > first) this.#region(first !== 1 || last !== rows)
        break
      }
      case 'csi ?h':
      case 'csi ?l':
        for (const number of numbers(sequence)) this.#private(number, final === 'h')
        break
    }
  }

  #private(number: number, on: boolean): void {
    const mode = this.#mode
    if (number === 45) mode.upwards = on
    if (number !== 47 && number !== 1047 && number !== 1049) return
    // The alternate buffer is cleared, its region with it, when it is left.
    if (!on && mode.alternate) mode.alternateRegion = false
    mode.alternate = on
  }

  #region(partial: boolean): void {
    if (this.#mode.alternate) this.#mode.alternateRegion = partial
    else this.#mode.normalRegion = partial
  }

  #newRun(from: number): Run {
    return { from, carry: undefined, marks: [], cutAt: from + this.#grain.cut }
  }

  #push(piece: Piece): void {
    this.#pieces.push(piece)
    this.#weight += weightOf([piece])
  }

  /** Cuts what nobody will see from the beginning of the run. */
  #cutRun(): void {
    const run = this.#run
    run.cutAt = this.offset + this.#grain.cut
    const mode = this.#mode
    if (mode.upwards || (mode.alternate ? mode.alternateRegion : mode.normalRegion)) return
    const { rows, columns } = this.#size
    // Until the cursor is at the bottom, lines may be drawn over others; from then on each is a new one.
    const above = mode.alternate ? this.#mostRows - rows : this.#options.scrollback(columns)
    const lines = above + 2 * rows + 2
    const last = this.#startOfLast(lines)
    const wrapped = this.#wrapping.lines - lines
    const index = run.marks.findLastIndex((mark) => mark.offset <= last || mark.wrapped <= wrapped)
    const mark = run.marks[index]
    if (!mark || mark.offset <= this.#taken) return
    run.marks.splice(0, index)
    const bytes = Buffer.concat([mark.carry.bytes, toColumn(mark.column)])
    this.#cut = { from: run.from, to: mark.offset, bytes }
    const before = this.#pieces.flatMap((piece) => beginning(piece, run.from))
    const after = this.#pieces.filter((piece) => piece.from >= mark.offset)
    this.#pieces = [...before, { from: run.from, to: mark.offset, bytes, cost: bytes.length }, ...after]
    this.#weight = weightOf(this.#pieces)
  }

  /** Where the piece begins from which on so many lines wait to be drawn; -1 when there are fewer in the run. */
  #startOfLast(lines: number): number {
    let missing = lines
    for (let i = this.#pieces.length - 1; i >= 0; i--) {
      const piece = this.#pieces[i]
      if (!piece || piece.to <= this.#run.from) return -1
      if (!piece.bytes.includes(LF)) continue
      for (let at = piece.bytes.length - 1; at >= 0; at--)
        if (piece.bytes[at] === LF && --missing === 0) return piece.from
    }
    return -1
  }
}

const EMPTY = Buffer.alloc(0)
const NUL = Uint8Array.of(0)
const CRLF = Buffer.of(CR, LF)

const toColumn = (column: number): Buffer => Buffer.from(column === 0 ? '\r' : `\r\x1b[${column}C`)
/** xterm.js has two at least. */
const columnsOf = ({ columns }: TerminalSize): number => Math.max(2, columns)

const introducers: Readonly<Record<StringKind, string>> = { osc: '\x1b]7770;', dcs: '\x1bP7770z', ignored: '\x1b_' }

/** The title in the content of an OSC string, as bytes; undefined where it sets none. */
const titleIn = (content: string): string | undefined => /^0*[02];(.*)$/s.exec(content)?.[1]

function shownTitle(bytes: string): string {
  const text = Buffer.from(bytes, 'latin1')
    .toString('utf8')
    .replace(/[\p{Cc}\ufffd]/gu, '')
  return [...text].slice(0, MAX_TITLE).join('')
}
