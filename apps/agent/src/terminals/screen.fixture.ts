// Screens to compare, and streams that make them.

import type { TerminalSize } from '@berth/contracts'
import fc from 'fast-check'
import { Emulator, type Line, type ScreenBuffer } from './emulator.js'
import { type Look, lookOf } from './redraw.js'

/** Everything about a screen that shows now or later, as plain data. */
export function dump(emulator: Emulator) {
  const { core } = emulator
  const { normal, alt, active } = core.buffers
  const charsets = core._charsetService
  return {
    size: `${emulator.columns}x${emulator.rows}`,
    active: active === alt ? 'alternate' : 'normal',
    cursor: { x: Math.min(active.x, emulator.columns), y: active.y, hidden: core.coreService.isCursorHidden },
    pen: show(lookOf(core._inputHandler._curAttrData, true)),
    joins: core._inputHandler._parser.precedingJoinState !== 0,
    modes: { ...core.coreService.decPrivateModes, synchronizedOutput: undefined, ...core.coreService.modes },
    mouse: [core.coreMouseService.activeProtocol, core.coreMouseService.activeEncoding],
    convertEol: core.optionsService.rawOptions.convertEol,
    blink: core.optionsService.rawOptions.cursorBlink,
    charsets: [
      charsets.glevel,
      ...[charsets.charset, ...[0, 1, 2, 3].map((i) => charsets._charsets[i])].map((set) => JSON.stringify(set) ?? 'B'),
    ],
    normal: dumpBuffer(emulator, normal),
    alternate: active === alt ? dumpBuffer(emulator, alt) : { saved: saved(emulator, alt) },
  }
}

function dumpBuffer(emulator: Emulator, buffer: ScreenBuffer) {
  // The alternate buffer has no scrollback, though xterm.js may keep some after a change of size.
  const first = buffer === emulator.core.buffers.alt ? buffer.ybase : 0
  // Nor has any buffer lines below the screen.
  const count = Math.min(buffer.lines.length, buffer.ybase + emulator.rows) - first
  const lines = Array.from({ length: count }, (_, i) => dumpLine(emulator, buffer, first + i))
  return {
    ybase: buffer.ybase - first,
    region: [buffer.scrollTop, buffer.scrollBottom],
    tabs: Object.keys(buffer.tabs)
      .map(Number)
      .filter((column) => column < emulator.columns),
    saved: saved(emulator, buffer),
    lines,
  }
}

function saved({ rows, columns }: Emulator, buffer: ScreenBuffer) {
  const attributes = { ...buffer.savedCurAttrData, extended: { underlineStyle: 0, underlineColor: 0 } }
  return {
    x: Math.min(buffer.savedX, columns - 1),
    y: Math.min(rows - 1, Math.max(0, buffer.savedY - buffer.ybase)),
    pen: show(lookOf(attributes)),
    charset: JSON.stringify(buffer.savedCharset) ?? 'B',
  }
}

const show = (look: Look): string =>
  `${(look.fg >>> 0).toString(16)}/${(look.bg >>> 0).toString(16)}/${look.underline}/${look.underlineColor.toString(16)}`

/** `W` a line that goes on from the one above; then characters, each with how it looks where that changes. */
function dumpLine(emulator: Emulator, buffer: ScreenBuffer, index: number): string {
  const line = buffer.lines.get(index)
  if (!line) return 'missing'
  const cell = emulator.cell()
  let text = line.isWrapped && index > 0 ? 'W' : ''
  let before = show({ fg: 0, bg: 0, underline: 0, underlineColor: 0 })
  let wide = false
  for (let column = 0; column < line.length; column++) {
    line.loadCell(column, cell)
    // Nothing but printing leaves the cursor past the last column, so a space may stand where nothing was.
    const atCursor =
      buffer === emulator.core.buffers.active &&
      column === Math.min(buffer.x, line.length) - 1 &&
      buffer.x >= line.length &&
      index === buffer.ybase + buffer.y
    // Without wraparound, or made narrower, xterm.js may leave the first half of a wide character only.
    const broken = cell.getWidth() === 2 && !isSecondHalf(emulator, line, column + 1)
    const chars = broken || (atCursor && cell.getChars() === ' ') ? '' : cell.getChars()
    const second = chars === '' && cell.getWidth() === 0 && wide
    wide = cell.getWidth() === 2 && !broken
    if (second) continue
    // What holds nothing shows its background only.
    const look = lookOf(cell)
    const now = show(chars === '' ? { fg: 0, bg: look.bg & 0x3ffffff, underline: 0, underlineColor: 0 } : look)
    if (now !== before) text += `{${now}}`
    before = now
    text += chars === '' ? '·' : chars
    if (chars !== '' && cell.getWidth() !== 1) text += `<${cell.getWidth()}>`
  }
  return text.replace(/·+$/, '')
}

function isSecondHalf(emulator: Emulator, line: Line, column: number): boolean {
  if (column === line.length) return false
  const cell = line.loadCell(column, emulator.cell())
  return cell.getWidth() === 0 && cell.getChars() === ''
}

export function drawn(size: TerminalSize, ...parts: readonly (string | Uint8Array)[]): Emulator {
  const emulator = new Emulator(size)
  for (const part of parts) emulator.write(typeof part === 'string' ? Buffer.from(part) : part)
  return emulator
}

const number = fc.integer({ min: 0, max: 40 })
const text = fc
  .array(fc.constantFrom('a', 'Z', '~', ' ', 'é', '©', '漢', '字', '한', '👍', 'e\u0301', '\u0300', 'q', 'x', '~'), {
    minLength: 1,
    maxLength: 30,
  })
  .map((parts) => parts.join(''))

/** Text that goes down the screen: lines of all lengths. */
export const flood = fc
  .record({
    line: text,
    end: fc.constantFrom('\r\n', '\r\n', '\r\n', '\n', '\n\r', '\r'),
    count: fc.integer({ min: 1, max: 90 }),
  })
  .map(({ line, end, count }) => `${line}${end}`.repeat(count))

/** Text that goes down the screen by itself. */
export const endless = fc
  .record({ text: fc.constantFrom('abcdefg', 'x', '0 1 ~'), count: fc.integer({ min: 1, max: 300 }) })
  .map(({ text, count }) => text.repeat(count))

const sgrCode = fc.oneof(
  fc.constantFrom(
    '',
    '0',
    '1',
    '2',
    '3',
    '4',
    '5',
    '7',
    '8',
    '9',
    '21',
    '22',
    '23',
    '24',
    '25',
    '27',
    '28',
    '29',
    '53',
  ),
  fc.constantFrom('55', '59', '39', '49', '4:3', '4:0', '38:5:200', '48:2::1:2:3', '58:5:9', '58;2;1;2;3', '99', '58'),
  fc.constantFrom('31', '42', '95', '104', '38;5;3', '48;5;200', '38;2;10;20;30', '48;2;7;8;9', '38', '38;5', '48;2;1'),
)
export const style = fc.array(sgrCode, { minLength: 1, maxLength: 4 }).map((codes) => `\x1b[${codes.join(';')}m`)

const final = (letters: string) => fc.constantFrom(...letters)
/** Moves along the line, or changes it. */
export const alongLine = fc.oneof(
  fc.tuple(number, final('CDGKXP@`aIZb')).map(([n, letter]) => `\x1b[${n}${letter}`),
  fc.constantFrom('\x1b[K', '\x1b[1K', '\x1b[2K', '\x1b[?K', '\t', '\b', '\b\b', '\r', '\x07', '\0', '\x7f'),
)
/** Moves up and down, or changes lines. */
export const across = fc.oneof(
  fc.tuple(number, final('ABEFdeLMST')).map(([n, letter]) => `\x1b[${n}${letter}`),
  fc.tuple(number, number, final('Hfr')).map(([a, b, letter]) => `\x1b[${a};${b}${letter}`),
  fc.tuple(fc.constantFrom('', '?'), fc.integer({ min: 0, max: 3 })).map(([p, n]) => `\x1b[${p}${n}J`),
  fc.constantFrom(
    '\x1bM',
    '\x1bD',
    '\x1bE',
    '\x1b7',
    '\x1b8',
    '\x1b[s',
    '\x1b[u',
    '\x1b#8',
    '\x1bc',
    '\x1b[!p',
    '\x1b[r',
  ),
  fc.constantFrom('\x1bH', '\x1b[g', '\x1b[3g', '\x1b[2 @', '\x1b[2 A', "\x1b[2'}", "\x1b[2'~", '\x0b', '\x0c'),
)
export const mode = fc.oneof(
  fc
    .tuple(fc.constantFrom(1, 2, 6, 7, 9, 12, 25, 45, 66, 1000, 1002, 1003, 1004, 1006, 1016, 2004, 9999), final('hl'))
    .map(([n, letter]) => `\x1b[?${n}${letter}`),
  fc.tuple(fc.constantFrom(47, 1047, 1048, 1049), final('hl')).map(([n, letter]) => `\x1b[?${n}${letter}`),
  fc.tuple(fc.constantFrom(4, 20, 99), final('hl')).map(([n, letter]) => `\x1b[${n}${letter}`),
  fc.tuple(final('()*+'), final('0BA4')).map(([level, set]) => `\x1b${level}${set}`),
  fc.constantFrom('\x0e', '\x0f', '\x1bn', '\x1bo', '\x1b~', '\x1b|', '\x1b}', '\x1b%G', '\x1b=', '\x1b>'),
  fc.tuple(fc.integer({ min: 0, max: 6 }), fc.constantFrom(' q', '"q')).map(([n, end]) => `\x1b[${n}${end}`),
)
/** Sequences that draw nothing, and bytes that are no text. */
export const noise = fc.constantFrom(
  ...[
    '\x1b]0;title\x07',
    '\x1b]2;other\x1b\\',
    '\x1b]8;;http://a/\x1b\\',
    '\x1b]8;;\x07',
    '\x1b]52;c;aGk=\x07',
    '\x1b]\x18',
  ],
  ...[
    '\x1bP$qm\x1b\\',
    '\x1b_apc\x1b\\',
    '\x1bXsos\x1b\\',
    '\x1b^pm\x1b\\',
    '\x1b[c',
    '\x1b[6n',
    '\x1b[?1$p',
    '\x1b[18t',
  ],
  ...[
    '\x1b[1;\n2m',
    '\x1b[3\x181m',
    '\x1b[3\x1b[4m',
    '\x1b[>4;2m',
    '\x1b[=1;1u',
    '\x1b[?u',
    '\x1b[31',
    '\x1b',
    '\x1b(',
    '\x1b[?',
  ],
  ...['\u009b31m', '\u0085', '\u0084', '\u0088', '\u009d0;t\u009c', '\u0090q\u009c', '\u008d', '\x1b[1;2;3;4;5:6:7;8m'],
)

export const piece = fc.oneof(
  { weight: 4, arbitrary: text },
  { weight: 3, arbitrary: flood },
  { weight: 3, arbitrary: style },
  { weight: 3, arbitrary: alongLine },
  { weight: 3, arbitrary: across },
  { weight: 2, arbitrary: mode },
  { weight: 2, arbitrary: noise },
)

export const pieces = fc.array(piece, { maxLength: 60 })

export const size = fc.record({ rows: fc.integer({ min: 2, max: 12 }), columns: fc.integer({ min: 2, max: 30 }) })

/** How many there usually are; RUNS in the environment goes over it (test/support/chance.ts). */
export const runs = (usual: number) => ({ numRuns: Number(process.env.RUNS ?? usual) })
