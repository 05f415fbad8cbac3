// emulator.ts: one screen as xterm.js keeps it, driven synchronously and read where its public interface shows too
// little. Everything that knows how xterm.js looks inside is here; the version is pinned for that reason.
//
// What is drawn comes from a tenant. Two things in xterm.js have no bound of their own and get one here: the combining
// characters of one cell, and exceptions, which end the rest of a write (they are caught, and the next write goes on).

import { Fault, type TerminalSize } from '@berth/contracts'
import headless, { type Terminal } from '@xterm/headless'
import { z } from 'zod'

/** Lines above the screen that are kept, at most. */
export const SCROLLBACK_LINES = 1000
/** Cells of scrollback that are kept, at most: wider terminals keep fewer lines. */
const SCROLLBACK_CELLS = 256_000
/** Marks above one character; more become cells of their own. Unbounded, they would be kept without bound. */
const MAX_COMBINED = 4

/** Lines of scrollback that a screen of so many columns keeps. */
export const scrollbackOf = (columns: number): number =>
  Math.min(SCROLLBACK_LINES, Math.floor(SCROLLBACK_CELLS / columns))

export interface Attributes {
  /** Colour (24 bits), its mode (2 bits), then flags; see `attributeBits`. */
  readonly fg: number
  readonly bg: number
  readonly extended: { readonly underlineStyle: number; readonly underlineColor: number }
}

/** xterm.js' src/common/buffer/Constants.ts. */
export const attributeBits = {
  mode: 0x3000000,
  palette16: 0x1000000,
  palette256: 0x2000000,
  rgb: 0x3000000,
  fg: {
    inverse: 0x4000000,
    bold: 0x8000000,
    underline: 0x10000000,
    blink: 0x20000000,
    invisible: 0x40000000,
    strikethrough: 0x80000000,
  },
  bg: { italic: 0x4000000, dim: 0x8000000, extended: 0x10000000, protected: 0x20000000, overline: 0x40000000 },
} as const

export interface Cell extends Attributes {
  getChars(): string
  getWidth(): number
}

export interface Line {
  readonly isWrapped: boolean
  readonly length: number
  loadCell(index: number, into: Cell): Cell
}

/** A character set as an object whose identity counts; undefined is US-ASCII. */
export type Charset = object | undefined

export interface ScreenBuffer {
  readonly lines: { readonly length: number; readonly maxLength: number; get(index: number): Line | undefined }
  /** Up to `columns`: past the last column, about to wrap. */
  readonly x: number
  readonly y: number
  /** Index of the screen's first line. */
  readonly ybase: number
  readonly scrollTop: number
  readonly scrollBottom: number
  readonly tabs: Readonly<Record<number, boolean>>
  readonly savedX: number
  readonly savedY: number
  readonly savedCurAttrData: Attributes
  readonly savedCharset: Charset
}

/** What is read of `Terminal#_core`. */
export interface Core {
  readonly buffers: { readonly normal: ScreenBuffer; readonly alt: ScreenBuffer; readonly active: ScreenBuffer }
  readonly coreService: {
    readonly isCursorHidden: boolean
    readonly modes: { readonly insertMode: boolean }
    readonly decPrivateModes: {
      readonly applicationCursorKeys: boolean
      readonly applicationKeypad: boolean
      readonly bracketedPasteMode: boolean
      readonly cursorBlink: boolean | undefined
      readonly cursorStyle: 'block' | 'underline' | 'bar' | undefined
      readonly origin: boolean
      readonly reverseWraparound: boolean
      readonly sendFocus: boolean
      readonly wraparound: boolean
    }
  }
  readonly coreMouseService: { readonly activeProtocol: string; readonly activeEncoding: string }
  readonly optionsService: { readonly rawOptions: { readonly convertEol: boolean; readonly cursorBlink: boolean } }
  readonly unicodeService: { readonly _activeProvider: UnicodeProvider }
  readonly _charsetService: {
    readonly charset: Charset
    readonly glevel: number
    readonly _charsets: readonly Charset[]
  }
  readonly _inputHandler: {
    readonly _curAttrData: Attributes
    readonly _parser: { readonly precedingJoinState: number; reset(): void }
    parse(bytes: Uint8Array): unknown
    eraseInLine(params: EraseParams, respectProtect: boolean): unknown
    _resetBufferLine(row: number, respectProtect: boolean): void
  }
}

type EraseParams = { readonly params: readonly number[] }
type UnicodeProvider = Parameters<Terminal['unicode']['register']>[0] & {
  charProperties(codepoint: number, preceding: number): number
}

const method = z.custom<unknown>((value) => typeof value === 'function')
const buffer = z.looseObject({
  lines: z.looseObject({ length: z.number(), maxLength: z.number(), get: method }),
  x: z.number(),
  y: z.number(),
  ybase: z.number(),
  scrollTop: z.number(),
  scrollBottom: z.number(),
  tabs: z.looseObject({}),
  savedX: z.number(),
  savedY: z.number(),
  savedCurAttrData: z.looseObject({ fg: z.number(), bg: z.number(), extended: z.looseObject({}) }),
})
const coreShape = z.looseObject({
  buffers: z.looseObject({ normal: buffer, alt: buffer, active: buffer }),
  coreService: z.looseObject({
    isCursorHidden: z.boolean(),
    modes: z.looseObject({ insertMode: z.boolean() }),
    decPrivateModes: z.looseObject({ origin: z.boolean(), wraparound: z.boolean(), reverseWraparound: z.boolean() }),
  }),
  coreMouseService: z.looseObject({ activeProtocol: z.string(), activeEncoding: z.string() }),
  optionsService: z.looseObject({ rawOptions: z.looseObject({ convertEol: z.boolean(), cursorBlink: z.boolean() }) }),
  unicodeService: z.looseObject({ _activeProvider: z.looseObject({ charProperties: method }) }),
  _charsetService: z.looseObject({ glevel: z.number(), _charsets: z.array(z.unknown()) }),
  _inputHandler: z.looseObject({
    _curAttrData: z.looseObject({ fg: z.number(), bg: z.number() }),
    _parser: z.looseObject({ precedingJoinState: z.number(), reset: method }),
    parse: method,
    eraseInLine: method,
    _resetBufferLine: method,
  }),
})

function hasCore(terminal: object): terminal is { readonly _core: Core } {
  return '_core' in terminal && coreShape.safeParse(terminal._core).success
}

/** The screen of one terminal. */
export class Emulator {
  readonly #terminal: Terminal
  readonly #scrollback: (columns: number) => number
  readonly core: Core
  /** Writes that xterm.js could not finish. */
  failures = 0

  /**
   * @param scrollback lines to keep above the screen, from the number of columns
   * @throws Fault when the installed xterm.js is not the one this was written for
   */
  constructor(size: TerminalSize, scrollback = scrollbackOf) {
    this.#scrollback = scrollback
    this.#terminal = new headless.Terminal({
      rows: size.rows,
      // xterm.js has no terminals of one column.
      cols: Math.max(2, size.columns),
      scrollback: scrollback(size.columns),
      allowProposedApi: true,
      logLevel: 'off',
    })
    if (!hasCore(this.#terminal))
      throw new Fault('open a screen', { cause: new Error('this version of @xterm/headless is not known') })
    this.core = this.#terminal._core
    this.#bound(this.#terminal)
  }

  get rows(): number {
    return this.#terminal.rows
  }

  get columns(): number {
    return this.#terminal.cols
  }

  /** Cells that are held: what memory grows with. */
  get cells(): number {
    const { normal, alt } = this.core.buffers
    return (normal.lines.length + alt.lines.length) * this.columns
  }

  /** A cell to load others into. */
  cell(): Cell {
    return nullCell(this.#terminal)
  }

  write(bytes: Uint8Array): void {
    try {
      this.core._inputHandler.parse(bytes)
    } catch {
      // Whatever a tenant found that xterm.js trips over concerns its own screen only.
      this.failures += 1
      this.core._inputHandler._parser.reset()
    }
  }

  resize(size: TerminalSize): void {
    this.#terminal.options.scrollback = this.#scrollback(size.columns)
    this.#terminal.resize(Math.max(2, size.columns), size.rows)
  }

  dispose(): void {
    this.#terminal.dispose()
  }

  #bound(terminal: Terminal): void {
    const { unicodeService, _inputHandler } = this.core
    terminal.unicode.register(boundedMarks(unicodeService._activeProvider))
    terminal.unicode.activeVersion = BOUNDED
    // ED 1 at the very end of a screen without scrollback takes the line below it, which does not exist.
    const erase = (prefix: '?' | undefined) =>
      terminal.parser.registerCsiHandler({ ...(prefix ? { prefix } : {}), final: 'J' }, (params) => {
        const { active } = this.core.buffers
        if (params[0] !== 1 || active.lines.get(active.y + 1)) return false
        _inputHandler.eraseInLine({ params: [1] }, prefix === '?')
        for (let row = active.y - 1; row >= 0; row--) _inputHandler._resetBufferLine(row, prefix === '?')
        return true
      })
    erase(undefined)
    erase('?')
    // Links are not redrawn, and each would be kept with its target for as long as its line.
    terminal.parser.registerOscHandler(8, () => true)
    for (const title of [0, 1, 2]) terminal.parser.registerOscHandler(title, () => true)
  }
}

const BOUNDED = 'berth'

function boundedMarks(inner: UnicodeProvider): UnicodeProvider {
  return {
    version: BOUNDED,
    wcwidth: (codepoint) => inner.wcwidth(codepoint),
    // The value: 1 bit "joins the preceding", 2 bits width, the rest is the provider's own: how many joined so far.
    charProperties(codepoint, preceding) {
      const value = inner.charProperties(codepoint, preceding & 7)
      if ((value & 1) === 0) return value
      const joined = (preceding >> 3) + 1
      return joined > MAX_COMBINED ? 1 << 1 : value | (joined << 3)
    },
  }
}

function nullCell(terminal: Terminal): Cell {
  const cell: object = terminal.buffer.active.getNullCell()
  if (!isCell(cell))
    throw new Fault('read a screen', { cause: new Error('this version of @xterm/headless is not known') })
  return cell
}

const isCell = (cell: object): cell is Cell => 'fg' in cell && 'bg' in cell && 'extended' in cell && 'getChars' in cell
