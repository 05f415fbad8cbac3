// carry.ts: what control sequences do to a terminal, as far as a flood of output can be cut short. Pure.
//
//   along     acts on the line it is on, and moves down at most: gone with its line
//   keep      sets something that lasts (a colour, a mode): of all that set the same, the last one counts
//   moves     anything else: what comes after it depends on what was before, so nothing is cut across it

import { encode, numbers, type Sequence } from './sequence.js'

export type Effect =
  | { readonly kind: 'along' }
  | { readonly kind: 'keep'; readonly settings: readonly Setting[] }
  | { readonly kind: 'moves' }

/** The bytes that set something, by what they set. `reset`: they set all that is drawn with. */
export interface Setting {
  readonly key: string
  readonly bytes: string
}
const RESET = 'reset'

const ALONG: Effect = { kind: 'along' }
const MOVES: Effect = { kind: 'moves' }
const keep = (...settings: readonly Setting[]): Effect => ({ kind: 'keep', settings })

/** CSI without prefix and intermediates that changes the line at most, goes down, or only asks something. */
const alongFinals = new Set('BCDEGIKPXZ@`abcent')
/** The same with `?`: selective erase in the line, and questions. */
const alongPrivate = new Set('Knu')
/** Sets that are designated to G0 … G3, and shifts between them. */
const designators = new Set('()*+')
const shifts = new Map([
  ['n', '\x1bn'],
  ['o', '\x1bo'],
  ['|', '\x1b|'],
  ['}', '\x1b}'],
  ['~', '\x1b~'],
])

export function effectOf(sequence: Sequence): Effect {
  return sequence.kind === 'esc' ? ofEscape(sequence) : ofCsi(sequence)
}

function ofEscape({ intermediates, final }: Sequence): Effect {
  if (intermediates === '') {
    if (final === 'D' || final === 'E' || final === '\\') return ALONG
    if (final === '=' || final === '>') return keep({ key: 'keypad', bytes: `\x1b${final}` })
    const shift = shifts.get(final)
    return shift === undefined ? MOVES : keep({ key: SHIFT, bytes: shift })
  }
  if (designators.has(intermediates)) return keep({ key: intermediates, bytes: `\x1b${intermediates}${final}` })
  return MOVES
}

const SHIFT = 'shift'
/** SO and SI. */
export const shiftBy = (control: number): Setting => ({ key: SHIFT, bytes: String.fromCharCode(control) })

function ofCsi(sequence: Sequence): Effect {
  const { prefix, intermediates, final } = sequence
  if (final === 'q' && prefix === '' && (intermediates === ' ' || intermediates === '"')) return ofSelection(sequence)
  if (intermediates === '$' && final === 'p') return ALONG
  if (intermediates !== '') return MOVES
  if (prefix === '') {
    if (final === 'm') return ofStyle(sequence)
    if (alongFinals.has(final)) return ALONG
    if (final === 'h' || final === 'l') return ofModes(sequence, ansiModes)
    return MOVES
  }
  if (prefix === '?') {
    if (alongPrivate.has(final)) return ALONG
    if (final === 'h' || final === 'l') return ofModes(sequence, privateModes)
  }
  // XTMODKEYS, kitty's keyboard protocol and questions: the screen knows nothing of them.
  if ((prefix === '>' && (final === 'm' || final === 'c' || final === 'u')) || (prefix !== '?' && final === 'u'))
    return ALONG
  return MOVES
}

/** DECSCUSR and DECSCA: numbers that they do not know do less, or nothing. */
function ofSelection(sequence: Sequence): Effect {
  const [number = 0] = numbers(sequence)
  const bytes = encode(sequence).toString('latin1')
  if (sequence.intermediates === ' ') return keep({ key: number > 6 ? 'cursor blink' : 'cursor', bytes })
  return number > 2 ? ALONG : keep({ key: 'style protected', bytes })
}

/** Modes that move nothing when they are set, by what they set. What is not here and does not move does nothing. */
const ansiModes: ReadonlyMap<number, string | undefined> = new Map([
  [4, 'insert'],
  [20, 'line feed'],
])
const privateModes: ReadonlyMap<number, string | undefined> = new Map([
  ...[1, 7, 12, 25, 1004, 2004, 2026].map((mode): [number, string] => [mode, `?${mode}`]),
  [66, 'keypad'],
  ...[9, 1000, 1002, 1003].map((mode): [number, string] => [mode, 'mouse']),
  ...[1006, 1016].map((mode): [number, string] => [mode, 'encoding']),
  // DECANM sets all character sets, DECOM and the buffers move the cursor, reverse wraparound lets it go up.
  ...[2, 3, 6, 45, 47, 1047, 1048, 1049].map((mode): [number, undefined] => [mode, undefined]),
])

function ofModes(sequence: Sequence, modes: ReadonlyMap<number, string | undefined>): Effect {
  const settings: Setting[] = []
  for (const mode of numbers(sequence)) {
    if (!modes.has(mode)) continue
    const key = modes.get(mode)
    if (key === undefined) return MOVES
    settings.push({ key, bytes: `\x1b[${sequence.prefix}${mode}${sequence.final}` })
  }
  return keep(...settings)
}

/** SGR codes that undo each other, or one of which undoes two others. */
const styleKeys: ReadonlyMap<number, string> = new Map([
  ...[1, 2, 22, 5, 3, 7, 8, 9].map((code): [number, string] => [code, `style ${code}`]),
  [23, 'style 3'],
  [25, 'style 5'],
  [27, 'style 7'],
  [28, 'style 8'],
  [29, 'style 9'],
  ...[4, 21, 24].map((code): [number, string] => [code, 'style underline']),
  ...[53, 55].map((code): [number, string] => [code, 'style overline']),
  ...[39, ...range(30, 37), ...range(90, 97)].map((code): [number, string] => [code, 'style foreground']),
  ...[49, ...range(40, 47), ...range(100, 107)].map((code): [number, string] => [code, 'style background']),
  [59, 'style underline color'],
])
const extendedKeys: ReadonlyMap<number, string> = new Map([
  [38, 'style foreground'],
  [48, 'style background'],
  [58, 'style underline color'],
])

function range(first: number, last: number): readonly number[] {
  return Array.from({ length: last - first + 1 }, (_, i) => first + i)
}

/** @returns `moves` for colours that are not well-formed: what xterm.js makes of them depends on what follows */
function ofStyle({ params }: Sequence): Effect {
  const parts = params.split(';')
  if (parts.length > 32) return MOVES
  const settings: Setting[] = []
  for (let i = 0; i < parts.length; i++) {
    const part = parts[i] ?? ''
    const code = Number.parseInt(part || '0', 10)
    if (Number.isNaN(code)) return MOVES
    const extended = extendedKeys.get(code)
    if (code === 0) {
      settings.push({ key: RESET, bytes: '\x1b[m' })
    } else if (extended !== undefined) {
      const length = colorLength(parts, i)
      if (length === 0) return MOVES
      settings.push({ key: extended, bytes: `\x1b[${parts.slice(i, i + length).join(';')}m` })
      i += length - 1
    } else {
      const key = styleKeys.get(code)
      if (key !== undefined) settings.push({ key, bytes: `\x1b[${part}m` })
    }
  }
  return keep(...settings)
}

/** How many parameters a colour takes: `38:…` one, `38;5;n` three, `38;2;r;g;b` five. */
function colorLength(parts: readonly string[], at: number): number {
  if (parts[at]?.includes(':')) return /^\d+:(5:\d*|2:\d*:\d*:\d*(:\d*)?)$/.test(parts[at]) ? 1 : 0
  const length = parts[at + 1] === '5' ? 3 : parts[at + 1] === '2' ? 5 : 0
  const color = parts.slice(at, at + length)
  return color.length === length && !color.some((part) => part.includes(':')) ? length : 0
}

/** The same for the usual sequences, by their final byte. */
export const plain = { along: 1, inLine: 2, style: 3, moves: 4, erases: 5 } as const
/** By final byte, for CSI with nothing but numbers; see `effectOf`. */
export const plainEffects = new Uint8Array(128)
for (const [finals, effect] of [
  ['BCDEGae`', plain.along],
  ['KPX@', plain.inLine],
  ['m', plain.style],
  ['AFHfd', plain.moves],
  ['J', plain.erases],
] as const)
  for (const final of finals) plainEffects[final.charCodeAt(0)] = effect

/** Where `CSI numbers final` ends that begins at `at`; 0 where something else does, or it is cut. */
export function plainCsiEnd(data: Uint8Array, at: number): number {
  if (data[at + 1] !== 0x5b) return 0
  for (let end = at + 2; end < data.length; end++) {
    const byte = data[end] ?? 0
    if (byte >= 0x40 && byte <= 0x7e) return end + 1
    if (byte < 0x30 || byte > 0x3b) return 0
  }
  return 0
}

/** What SGRs do; programs use few of them. */
const styles = new Map<string, readonly Setting[] | undefined>()
const MAX_STYLES = 2048

export function styleSettings(params: string): readonly Setting[] | undefined {
  if (styles.has(params)) return styles.get(params)
  const effect = effectOf({ kind: 'csi', prefix: '', params, intermediates: '', final: 'm' })
  const settings = effect.kind === 'keep' ? effect.settings : undefined
  if (styles.size >= MAX_STYLES) styles.clear()
  styles.set(params, settings)
  return settings
}

/** All settings of a stretch of output, each once: its size has a bound. */
export class Carry {
  readonly #settings: Map<string, string>
  readonly #styles: Map<string, string>

  constructor(from?: Carry) {
    this.#settings = new Map(from?.settings)
    this.#styles = new Map(from?.styles)
  }

  get settings(): ReadonlyMap<string, string> {
    return this.#settings
  }

  get styles(): ReadonlyMap<string, string> {
    return this.#styles
  }

  set({ key, bytes }: Setting): void {
    if (key === RESET) {
      if (this.#styles.size === 1 && this.#styles.has(RESET)) return
      this.#styles.clear()
      this.#styles.set(RESET, bytes)
      return
    }
    const among = isStyle(key) ? this.#styles : this.#settings
    // In the order in which they were set: 22 undoes what 1 and 2 did before it, and not after.
    among.delete(key)
    among.set(key, bytes)
  }

  /** Sets all of it again. */
  get bytes(): Buffer {
    return Buffer.from([...this.#settings.values(), ...this.#styles.values()].join(''), 'latin1')
  }
}

const isStyle = (key: string): boolean => key.startsWith('style')
