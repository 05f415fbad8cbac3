// flood.ts: what is left of output that is not drawn. An emulator draws some megabytes a second and a program writes
// hundreds, so most of a flood is passed over: its text and the moves of its cursor, which what follows scrolls away or
// writes over. What outlasts text is kept: modes, the alternate buffer, scroll regions, tab stops, character sets, resets,
// titles, and the last colours. See docs/decisions/005.
//
// States and bytes are those of the parser that emulators share (vt100.net/emu/dec_ansi_parser), as far as they matter
// for finding where a sequence ends.

type State = 'ground' | 'escape' | 'intermediate' | 'csi' | 'string' | 'stringEscape'

const ESC = 0x1b
const BEL = 0x07
const CAN = 0x18
const SUB = 0x1a

/** Control sequences whose effect outlasts what is written over: set and reset of modes, scroll region, tab stops. */
const lasting = new Set([...'hlrgpq'].map((final) => final.charCodeAt(0)))
const SGR = 'm'.charCodeAt(0)
/** A longer sequence is none that means anything. */
const MAX_SEQUENCE = 4096
/** Colours add up, so the last few of them are kept. */
const KEPT_COLOURS = 16

/** Follows output and knows where in a sequence it is; passes over what need not be drawn. */
export class Flood {
  #state: State = 'ground'
  #sequence: number[] = []

  /** Output that is drawn whole: only where it ends is noted. */
  follow(bytes: Uint8Array): void {
    for (const byte of bytes) this.#step(byte)
  }

  /** Output that is passed over. @returns what of it has to be drawn */
  reduce(bytes: Uint8Array): Buffer {
    const kept: number[][] = []
    const colours: number[][] = []
    // What began before was drawn up to here, so its end must be too.
    let begunBefore = this.#state !== 'ground'
    for (const byte of bytes) {
      const before = this.#state
      const finished = this.#step(byte)
      if (begunBefore && before !== 'ground') kept.push([byte])
      if (begunBefore && this.#state === 'ground') begunBefore = false
      else if (finished && !begunBefore) sort(finished, kept, colours)
      else if (before === 'ground' && (byte === 0x0e || byte === 0x0f)) kept.push([byte])
    }
    const open = begunBefore || this.#state === 'ground' ? [] : [this.#sequence]
    return Buffer.from([...kept, ...colours.slice(-KEPT_COLOURS), ...open].flat())
  }

  /** @returns the whole sequence where the byte was its last */
  #step(byte: number): readonly number[] | undefined {
    if (this.#state === 'ground') {
      if (byte !== ESC) return undefined
      this.#state = 'escape'
      this.#sequence = [byte]
      return undefined
    }
    if (this.#sequence.length < MAX_SEQUENCE) this.#sequence.push(byte)
    const next = after(this.#state, byte)
    if (byte === ESC && next === 'escape') this.#sequence = [byte]
    this.#state = next
    return next === 'ground' ? this.#sequence : undefined
  }
}

function after(state: Exclude<State, 'ground'>, byte: number): State {
  if (byte === CAN || byte === SUB) return 'ground'
  if (state === 'string') return byte === BEL ? 'ground' : byte === ESC ? 'stringEscape' : 'string'
  if (state === 'stringEscape') return byte === 0x5c ? 'ground' : after('escape', byte)
  if (byte === ESC) return 'escape'
  if (byte < 0x20) return state
  switch (state) {
    case 'escape':
      if (byte === 0x5b) return 'csi'
      // DCS, SOS, OSC, PM, APC
      if ([0x50, 0x58, 0x5d, 0x5e, 0x5f].includes(byte)) return 'string'
      return byte <= 0x2f ? 'intermediate' : 'ground'
    case 'intermediate':
      return byte <= 0x2f ? 'intermediate' : 'ground'
    case 'csi':
      return byte >= 0x40 ? 'ground' : 'csi'
  }
}

function sort(sequence: readonly number[], kept: number[][], colours: number[][]): void {
  const [, second = 0] = sequence
  const final = sequence.at(-1) ?? 0
  if (sequence.length >= MAX_SEQUENCE) return
  if (second !== 0x5b) kept.push([...sequence])
  else if (final === SGR) colours.push([...sequence])
  else if (lasting.has(final)) kept.push([...sequence])
}
