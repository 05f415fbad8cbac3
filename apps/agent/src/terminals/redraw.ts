// redraw.ts: a screen as text that draws it again on a terminal of the same size: scrollback, screen, cursor, modes,
// alternate buffer. A late or slow viewer gets it, and it is all that is kept of a screen nobody looks at, so drawing
// it must give the same screen again, down to what the next byte will do: a pending wrap, a saved cursor, tab stops.
//
// @xterm/addon-serialize was tried first and is not enough for that: it leaves out the scroll region, tab stops, saved
// cursors, character sets, cursor style and visibility, the mouse encoding and a pending wrap, and moves the cursor when
// origin mode is on (docs/decisions/005).
//
// Known not to come back: which cells belong to a link, a character of no width that stands alone after a wide one, and
// flags of cells that hold nothing.

import type { TerminalSize } from '@berth/contracts'
import {
  type Attributes,
  attributeBits as bits,
  type Cell,
  type Charset,
  type Core,
  Emulator,
  type Line,
  type ScreenBuffer,
} from './emulator.js'

export interface RedrawOptions {
  /** Lines above the screen, at most. */
  readonly scrollback: number
  /**
   * Bytes of the text, at most. What has to be left out for it: the oldest scrollback first, then colours, then what is
   * not ASCII; a screen of 1,000 by 1,000 then takes 1,002,200 bytes.
   */
  readonly limit: number
}

/** @returns text that begins with a full reset, so what was drawn before does not matter */
export function redraw(emulator: Emulator, { scrollback, limit }: RedrawOptions): string {
  const fits = (text: string) => Buffer.byteLength(text) <= limit
  for (let lines = scrollback; ; lines = Math.floor(lines / 4)) {
    const text = drawAll(emulator, lines, 'all')
    if (fits(text)) return text
    if (lines === 0) break
  }
  const plain = drawAll(emulator, 0, 'plain')
  return fits(plain) ? plain : drawAll(emulator, 0, 'ascii')
}

type Detail = 'all' | 'plain' | 'ascii'

function drawAll(emulator: Emulator, scrollback: number, detail: Detail): string {
  const { core } = emulator
  const { normal, alt, active } = core.buffers
  const size = { rows: emulator.rows, columns: emulator.columns }
  const painter = new Painter(emulator.cell(), size.columns, detail)
  const parts = ['\x1bc\x1b[?25h\x1b[20l']
  parts.push(painter.lines(normal, Math.max(0, normal.ybase - scrollback), size.rows))
  parts.push(state(normal, size))
  if (active === alt) {
    parts.push('\x1b[m', position(normal.y, Math.min(normal.x, size.columns - 1)), '\x1b[?47h\x1b[H')
    parts.push(painter.lines(alt, alt.ybase, size.rows), state(alt, size))
  } else if (hasSavedCursor(alt)) {
    parts.push('\x1b[?47h', state(alt, size), '\x1b[?47l')
  }
  parts.push(modes(core), cursor(core, size.columns, painter))
  return parts.join('')
}

/** Draws lines one below the other, beginning at the top left of a cleared screen. */
class Painter {
  /** Others are loaded into it. */
  readonly cell: Cell
  readonly #columns: number
  readonly #detail: Detail

  constructor(cell: Cell, columns: number, detail: Detail) {
    this.cell = cell
    this.#columns = columns
    this.#detail = detail
  }

  lines(buffer: ScreenBuffer, first: number, rows: number): string {
    const { lines } = buffer
    // After some changes of size xterm.js has lines below the screen, which nothing shows.
    const bottom = Math.min(lines.length, buffer.ybase + rows) - 1
    const parts: string[] = []
    // The line above the first is gone, yet the first goes on from it: draw one that will be scrolled out.
    let wrapped = lines.get(first)?.isWrapped === true && lines.length === lines.maxLength
    const last = this.#lastDrawn(buffer, bottom, bottom - first < rows && !wrapped ? first : bottom)
    if (wrapped) parts.push(' '.repeat(this.#columns + 1), '\r')
    for (let index = first; index <= last; index++) {
      const line = lines.get(index)
      if (!line) break
      const goesOn = index < last && lines.get(index + 1)?.isWrapped === true
      parts.push(this.#line(line, wrapped, goesOn, rows > 1))
      if (index < last && !goesOn) parts.push('\r\n')
      wrapped = goesOn
    }
    return parts.join('')
  }

  /** The character under the cursor's left, for a cursor that stands where printing it left it. */
  character(line: Line, column: number): { readonly text: string; readonly sgr: string } {
    const cell = line.loadCell(column, this.cell)
    return { text: cell.getChars() === '' ? ' ' : this.#printable(cell), sgr: sgr(this.#look(cell)) }
  }

  /** Blank lines at the end need no drawing while nothing scrolls. */
  #lastDrawn({ lines }: ScreenBuffer, bottom: number, least: number): number {
    let last = bottom
    for (; last > least; last--) {
      const line = lines.get(last)
      if (line && (line.isWrapped || this.#hasContent(line))) break
    }
    return last
  }

  #hasContent(line: Line): boolean {
    for (let column = 0; column < line.length; column++) {
      const cell = line.loadCell(column, this.cell)
      if (cell.getChars() !== '' || background(cell) !== 0) return true
    }
    return false
  }

  /**
   * @param covered the line's first cell holds a space that made it wrap
   * @param goesOn the next line is one that wrapped: this one must be filled until printing wraps
   * @param mend the row above the cursor can be reached
   */
  #line(line: Line, covered: boolean, goesOn: boolean, mend: boolean): string {
    const out = new Row()
    const gaps: Gap[] = []
    for (let column = 0; column < line.length; ) {
      const cell = line.loadCell(column, this.cell)
      const width = cell.getWidth()
      if (cell.getChars() === '' || (width === 2 && !this.#isWhole(line, column))) {
        const gap = this.#gap(line, column)
        gaps.push(gap)
        if (gap.look.bg !== 0 || (column === 0 && covered)) out.erase(gap)
        column += gap.width
      } else {
        line.loadCell(column, cell)
        out.print(column, this.#printable(cell), Math.max(1, width), this.#look(cell))
        column += Math.max(1, width)
      }
    }
    if (goesOn) this.#wrap(out, line.length, mend ? gaps : [])
    else out.plain()
    return out.text
  }

  /** Without wraparound, or made narrower, xterm.js may leave the first half of a wide character only. */
  #isWhole(line: Line, column: number): boolean {
    if (column + 1 === line.length) return false
    const second = line.loadCell(column + 1, this.cell)
    return second.getWidth() === 0 && second.getChars() === ''
  }

  #gap(line: Line, from: number): Gap {
    const { bg } = line.loadCell(from, this.cell)
    const look = { ...PLAIN, bg: this.#detail === 'all' ? background({ bg }) : 0 }
    let to = from + 1
    for (; to < line.length; to++) {
      const cell = line.loadCell(to, this.cell)
      if (cell.getChars() !== '' || (this.#detail === 'all' && background(cell) !== look.bg)) break
    }
    return { column: from, width: to - from, look }
  }

  /** Prints past the end of the line, then clears what had to be printed into its gaps for it. */
  #wrap(out: Row, columns: number, gaps: readonly Gap[]): void {
    const from = out.column
    out.plain()
    out.text += ' '.repeat(columns - from + 1)
    const filled = gaps.filter((gap) => gap.column + gap.width > from)
    if (filled.length > 0) {
      out.text += '\r\x1b[A'
      out.column = 0
      for (const gap of filled) out.erase(gap)
      out.plain()
      out.text += '\x1b[B'
    }
    out.text += '\r'
  }

  #printable(cell: Cell): string {
    const text = cell.getChars()
    const width = cell.getWidth()
    if (this.#detail === 'ascii' && text > '~') return '?'.repeat(Math.max(1, width))
    // A mark without a character of its own must not join the one before.
    return width === 0 ? `\0${text}` : text
  }

  #look(cell: Attributes): Look {
    return this.#detail === 'all' ? lookOf(cell) : PLAIN
  }
}

interface Gap {
  readonly column: number
  readonly width: number
  readonly look: Look
}

/** One line being drawn: where the pen is and how it writes. */
class Row {
  text = ''
  column = 0
  #sgr = ''

  print(column: number, text: string, width: number, look: Look): void {
    this.#to(column, look)
    this.text += text
    this.column = column + width
  }

  erase({ column, width, look }: Gap): void {
    this.#to(column, look)
    this.text += `\x1b[${width}X`
  }

  /** A new line takes the background of the pen. */
  plain(): void {
    if (this.#sgr !== '') this.text += '\x1b[m'
    this.#sgr = ''
  }

  #to(column: number, look: Look): void {
    if (column > this.column) this.text += `\x1b[${column - this.column}C`
    this.column = column
    const wanted = sgr(look)
    if (wanted !== this.#sgr) this.text += wanted === '' ? '\x1b[m' : wanted
    this.#sgr = wanted
  }
}

/** How a character looks, without the garbage that xterm.js leaves in unused bits. */
export interface Look {
  readonly fg: number
  readonly bg: number
  /** 0 none, 1 single, 2 double, 3 curly, 4 dotted, 5 dashed. */
  readonly underline: number
  readonly underlineColor: number
}

const PLAIN: Look = { fg: 0, bg: 0, underline: 0, underlineColor: 0 }

const color = (value: number): number => {
  const mode = value & bits.mode
  return mode === 0 ? 0 : mode | (value & (mode === bits.rgb ? 0xffffff : 0xff))
}
const background = ({ bg }: Pick<Attributes, 'bg'>): number => color(bg)

const fgFlags = bits.fg.inverse | bits.fg.bold | bits.fg.blink | bits.fg.invisible | bits.fg.strikethrough
const bgFlags = bits.bg.italic | bits.bg.dim | bits.bg.protected | bits.bg.overline

export function lookOf({ fg, bg, extended }: Attributes, pen = false): Look {
  const hasExtended = (bg & bits.bg.extended) !== 0
  const style = hasExtended ? extended.underlineStyle : 0
  const underline = (fg & bits.fg.underline) !== 0 || style !== 0 ? style || 1 : 0
  return {
    fg: color(fg) | (fg & fgFlags),
    bg: color(bg) | (bg & bgFlags),
    underline,
    // The pen remembers the colour of lines that it does not draw now.
    underlineColor: hasExtended || pen ? color(extended.underlineColor) : 0,
  }
}

/** Colours of SGR 38, 48 and 58; the first 16 have numbers of their own, except for underlines. */
function colorCodes(value: number, base: number): readonly number[] {
  const mode = value & bits.mode
  const index = value & 0xff
  if (mode === 0) return []
  if (mode === bits.rgb) return [base + 8, 2, (value >>> 16) & 0xff, (value >>> 8) & 0xff, index]
  if (mode === bits.palette16 && base !== 50) return [index < 8 ? base + index : base + 60 + index - 8]
  return [base + 8, 5, index]
}

const flagCodes: readonly (readonly ['fg' | 'bg', number, number])[] = [
  ['fg', bits.fg.bold, 1],
  ['bg', bits.bg.dim, 2],
  ['bg', bits.bg.italic, 3],
  ['fg', bits.fg.blink, 5],
  ['fg', bits.fg.inverse, 7],
  ['fg', bits.fg.invisible, 8],
  ['fg', bits.fg.strikethrough, 9],
  ['bg', bits.bg.overline, 53],
]

/** The whole look as SGR (and DECSCA); empty for the plain one. */
export function sgr(look: Look): string {
  if (look.fg === 0 && look.bg === 0 && look.underline === 0 && look.underlineColor === 0) return ''
  const codes: (number | string)[] = [0]
  for (const [part, bit, code] of flagCodes) if ((look[part] & bit) !== 0) codes.push(code)
  if (look.underline > 0) codes.push(look.underline === 1 ? 4 : `4:${look.underline}`)
  codes.push(...colorCodes(look.fg, 30), ...colorCodes(look.bg, 40), ...colorCodes(look.underlineColor, 50))
  return `\x1b[${codes.join(';')}m${(look.bg & bits.bg.protected) !== 0 ? '\x1b[1"q' : ''}`
}

const position = (row: number, column: number): string => `\x1b[${row + 1};${column + 1}H`

/** What a buffer has beside its lines. Leaves the cursor anywhere, the pen plain. */
function state(buffer: ScreenBuffer, size: TerminalSize): string {
  const region = buffer.scrollTop !== 0 || buffer.scrollBottom !== size.rows - 1
  return [
    tabStops(buffer, size.columns),
    hasSavedCursor(buffer) ? savedCursor(buffer, size.rows) : '',
    region ? `\x1b[${buffer.scrollTop + 1};${buffer.scrollBottom + 1}r` : '',
  ].join('')
}

function tabStops({ tabs }: ScreenBuffer, columns: number): string {
  const stops = Array.from({ length: columns }, (_, column) => column).filter((column) => tabs[column] === true)
  const usual = stops.length === Math.ceil(columns / 8) && stops.every((column, i) => column === i * 8)
  return usual ? '' : `\x1b[3g${stops.map((column) => `\x1b[${column + 1}G\x1bH`).join('')}`
}

const hasSavedCursor = ({ savedX, savedY, savedCurAttrData, savedCharset }: ScreenBuffer): boolean =>
  savedX !== 0 || savedY !== 0 || savedCurAttrData.fg !== 0 || savedCurAttrData.bg !== 0 || savedCharset !== undefined

function savedCursor(buffer: ScreenBuffer, rows: number): string {
  const row = Math.min(rows - 1, Math.max(0, buffer.savedY - buffer.ybase))
  const flag = charsetFlag(buffer.savedCharset)
  const pen = sgr(lookOf({ ...buffer.savedCurAttrData, extended: { underlineStyle: 0, underlineColor: 0 } }))
  return `${position(row, buffer.savedX)}${pen}${designate(0, flag)}\x0f\x1b7${designate(0, 'B')}\x1b[m`
}

/** Flags of the character sets that xterm.js has (src/common/data/Charsets.ts); B is US-ASCII. */
const FLAGS = ['B', '0', 'A', '4', 'C', '5', 'R', 'Q', 'K', 'Y', 'E', '6', 'Z', 'H', '7', '='] as const
const designators = ['(', ')', '*', '+'] as const
const shifts = ['\x0f', '\x0e', '\x1bn', '\x1bo'] as const

const designate = (level: number, flag: string): string => `\x1b${designators[level] ?? '('}${flag}`
const shift = (level: number): string => shifts[level] ?? '\x0f'

let known: ReadonlyMap<Charset, string> | undefined

/** The sets are known by identity only, so each is designated once, to see which it is. */
function charsetFlag(charset: Charset): string {
  if (charset === undefined) return 'B'
  if (!known) {
    const emulator = new Emulator({ rows: 1, columns: 2 })
    const seen = FLAGS.map((flag): readonly [Charset, string] => {
      emulator.write(Buffer.from(designate(0, flag)))
      return [emulator.core._charsetService.charset, flag]
    })
    // Of two flags for one set the first.
    known = new Map(seen.reverse())
    emulator.dispose()
  }
  return known.get(charset) ?? 'B'
}

const RESTORE = '\x1b8'

/** Restoring a cursor brings back the set that was in use, and no level has to hold it: then it is restored here, too. */
function charsetState({ charset, glevel, _charsets }: Core['_charsetService'], { savedCharset }: ScreenBuffer): string {
  const sets = designators.map((_, level) => designate(level, charsetFlag(_charsets[level])))
  const restored = charset !== _charsets[glevel] && charset === savedCharset
  return `${sets.join('')}${shift(glevel)}${restored ? RESTORE : ''}`
}

const mouseProtocols: Readonly<Record<string, number>> = { X10: 9, VT200: 1000, DRAG: 1002, ANY: 1003 }
const mouseEncodings: Readonly<Record<string, number>> = { SGR: 1006, SGR_PIXELS: 1016 }
const cursorStyles = { block: 2, underline: 4, bar: 6 } as const

function modes({ coreService, coreMouseService, optionsService }: Core): string {
  const { decPrivateModes: dec } = coreService
  const on: (number | undefined)[] = [
    dec.applicationCursorKeys ? 1 : undefined,
    optionsService.rawOptions.cursorBlink ? 12 : undefined,
    dec.reverseWraparound ? 45 : undefined,
    dec.applicationKeypad ? 66 : undefined,
    dec.sendFocus ? 1004 : undefined,
    dec.bracketedPasteMode ? 2004 : undefined,
    mouseProtocols[coreMouseService.activeProtocol],
    mouseEncodings[coreMouseService.activeEncoding],
  ]
  return [
    ...on.filter((mode) => mode !== undefined).map((mode) => `\x1b[?${mode}h`),
    optionsService.rawOptions.cursorBlink ? '' : '\x1b[?12l',
    optionsService.rawOptions.convertEol ? '\x1b[20h' : '',
    cursorStyle(dec),
    coreService.isCursorHidden ? '\x1b[?25l' : '',
    dec.origin ? '\x1b[?6h' : '',
  ].join('')
}

/** DECSCUSR. A number that it does not know still says whether the cursor blinks. */
function cursorStyle({ cursorStyle, cursorBlink }: Core['coreService']['decPrivateModes']): string {
  if (cursorBlink === undefined) return ''
  const steady = cursorStyle ? cursorStyles[cursorStyle] : 8
  return `\x1b[${cursorBlink ? steady - 1 : steady} q`
}

/** The cursor, the pen and what the next character will do to the one before. */
function cursor(core: Core, columns: number, painter: Painter): string {
  const { active } = core.buffers
  const { decPrivateModes: dec, modes: ansi } = core.coreService
  const row = dec.origin ? active.y - active.scrollTop : active.y
  const pen = sgr(lookOf(core._inputHandler._curAttrData, true)) || '\x1b[m'
  const wrap = dec.wraparound ? '' : '\x1b[?7l'
  const insert = ansi.insertMode ? '\x1b[4h' : ''
  const sets = charsetState(core._charsetService, active)
  const line = active.lines.get(active.ybase + active.y)
  const joins = core._inputHandler._parser.precedingJoinState !== 0
  // A mark that stands alone may push it one further.
  const x = Math.min(active.x, columns)
  if (!line || x === 0 || (x < columns && (!joins || ansi.insertMode)))
    return `${sets}${position(row, x)}${wrap}${insert}${pen}`
  // Only printing leaves the cursor past the last column, or a character that a mark can join.
  const before = line.loadCell(x - 1, painter.cell)
  const start = x - (before.getWidth() === 0 && before.getChars() === '' && x > 1 ? 2 : 1)
  const character = painter.character(line, start)
  const style = joins ? pen : character.sgr || '\x1b[m'
  const reprint = `${position(row, start)}${wrap}${insert}${style}${character.text}`
  // What it joins was printed with these sets and this pen; else they may have changed since.
  return joins || sets.endsWith(RESTORE) ? `${sets}${reprint}${joins ? '' : pen}` : `${reprint}${sets}${pen}`
}
