// live-screen.ts: the screen of a terminal while it is used. Output waits here and is drawn in slices of a few
// milliseconds, all terminals of the node one after the other under one budget; nothing waits for it. Where more waits
// than can be drawn in time, the middle is passed over (flood.ts) and the end is drawn: after a flood the screen is what
// its last part makes of it.

import { KiB, type TerminalSize } from '@berth/contracts'
import { Emulator } from './emulator.js'
import { Flood } from './flood.js'
import { redraw } from './redraw.js'

/** Beyond this, output that waits is passed over up to its last part. */
const MAX_WAITING = 256 * KiB
/** The last part of a flood: some hundred lines, so the screen and much of the scrollback. */
const LAST_PART = 64 * KiB
/** Drawn at once: about 3 ms. */
const SLICE = 16 * KiB
/** After this long at work, as long a rest; the agent has other things to do. */
const WORK_MS = 8
const REST_MS = 8
/** Largest text that draws a screen: a WebSocket message is at most 1 MiB. */
const MAX_TEXT = 900 * KiB
const SCROLLBACK = 1000

/** What there is to draw, terminal after terminal. */
export class Easel {
  readonly #busy = new Set<LiveScreen>()
  #timer: NodeJS.Immediate | NodeJS.Timeout | undefined

  ask(screen: LiveScreen): void {
    this.#busy.add(screen)
    this.#timer ??= setImmediate(() => this.#work())
  }

  drop(screen: LiveScreen): void {
    this.#busy.delete(screen)
  }

  #work(): void {
    this.#timer = undefined
    const end = performance.now() + WORK_MS
    while (this.#busy.size > 0 && performance.now() < end)
      for (const screen of [...this.#busy]) if (!screen.drawSome()) this.#busy.delete(screen)
    if (this.#busy.size > 0) this.#timer = setTimeout(() => this.#work(), REST_MS)
  }
}

export interface ScreenView {
  /** Where output goes on after it. */
  readonly offset: number
  readonly rows: number
  readonly columns: number
  /** Draws the screen on a terminal in whatever state. */
  readonly text: Buffer
}

type Waiting = { readonly bytes: Buffer } | { readonly size: TerminalSize }

export class LiveScreen {
  readonly #easel: Easel
  readonly #emulator: Emulator
  readonly #flood = new Flood()
  readonly #title = new TitleFinder()
  #waiting: Waiting[] = []
  #bytesWaiting = 0
  #offset: number
  #wishes: (() => void)[] = []
  #closed = false

  /** @param offset of the first byte that will be fed */
  constructor(easel: Easel, size: TerminalSize, offset: number) {
    this.#easel = easel
    this.#emulator = new Emulator(size)
    this.#offset = offset
  }

  get title(): string {
    return this.#title.title
  }

  /** Takes output that goes on at `offset`; after a gap the screen is what the rest makes of it. */
  feed(offset: number, bytes: Buffer): void {
    if (this.#closed) return
    this.#offset = offset + bytes.length
    this.#title.look(bytes)
    // A copy: the bytes are a part of a larger buffer, which would be held for as long as they wait.
    this.#waiting.push({ bytes: Buffer.from(bytes) })
    this.#bytesWaiting += bytes.length
    if (this.#bytesWaiting > MAX_WAITING) this.#passOver()
    this.#easel.ask(this)
  }

  resize(size: TerminalSize): void {
    this.#waiting.push({ size })
    this.#easel.ask(this)
  }

  /** The screen with everything that was fed until now, or later. */
  async view(): Promise<ScreenView> {
    if (this.#waiting.length > 0 && !this.#closed) await new Promise<void>((resolve) => this.#wishes.push(resolve))
    const { rows, columns } = this.#emulator
    const text = Buffer.from(redraw(this.#emulator, { scrollback: SCROLLBACK, limit: MAX_TEXT }))
    return { offset: this.#offset, rows, columns, text }
  }

  /** Draws a slice. @returns whether more waits */
  drawSome(): boolean {
    const next = this.#waiting.shift()
    if (!next) return false
    if ('size' in next) this.#emulator.resize(next.size)
    else {
      const slice = next.bytes.subarray(0, SLICE)
      if (slice.length < next.bytes.length) this.#waiting.unshift({ bytes: next.bytes.subarray(SLICE) })
      this.#bytesWaiting -= slice.length
      this.#flood.follow(slice)
      this.#emulator.write(slice)
    }
    if (this.#waiting.length > 0) return true
    for (const tell of this.#wishes.splice(0)) tell()
    return false
  }

  close(): void {
    this.#closed = true
    this.#easel.drop(this)
    this.#waiting = []
    for (const tell of this.#wishes.splice(0)) tell()
    this.#emulator.dispose()
  }

  /** Of all that waits the last part stays, and of the rest what outlasts it. */
  #passOver(): void {
    let over = this.#bytesWaiting - LAST_PART
    const rest: Waiting[] = []
    for (const piece of this.#waiting) {
      if ('size' in piece || over <= 0) rest.push(piece)
      else {
        const gone = piece.bytes.subarray(0, over)
        over -= gone.length
        const kept = this.#flood.reduce(gone)
        this.#emulator.write(kept)
        if (gone.length < piece.bytes.length) rest.push({ bytes: piece.bytes.subarray(gone.length) })
      }
    }
    this.#waiting = rest
    this.#bytesWaiting = rest.reduce((sum, piece) => sum + ('bytes' in piece ? piece.bytes.length : 0), 0)
  }
}

/** Finds titles (OSC 0 and 2, ended by BEL or ST) in output, cut anywhere. */
class TitleFinder {
  title = ''
  #rest = ''

  look(bytes: Buffer): void {
    if (this.#rest === '' && !bytes.includes(0x1b)) return
    // The last titles of a large piece are enough, and a title is short.
    const text = this.#rest + bytes.subarray(-8 * KiB).toString('latin1')
    let end = 0
    // biome-ignore lint/suspicious/noControlCharactersInRegex: control sequences are what is looked for
    for (const match of text.matchAll(/\x1b\]([02]);([^\x07\x1b]{0,1024})(\x07|\x1b\\)/g)) {
      this.title = printable(Buffer.from(match[2] ?? '', 'latin1').toString('utf8'))
      end = match.index + match[0].length
    }
    const begun = text.lastIndexOf('\x1b]')
    const open = begun >= end ? begun : text.endsWith('\x1b') ? text.length - 1 : text.length
    this.#rest = text.length - open <= 1100 ? text.slice(open) : ''
  }
}

const printable = (text: string): string => text.replace(/\p{Cc}/gu, '').slice(0, 256)
