// kept-screen.ts: the screen of a terminal, fed from its spool and kept beside it. It goes on where a former agent was
// killed. Changes of size come to it in their place in the output, however far behind it is.

import { Failure, KiB, type TerminalSize } from '@berth/contracts'
import type { Logger } from '@berth/telemetry'
import type { Spool } from '../logs/spool.js'
import type { Drawing } from './drawing.js'
import { Screen } from './screen.js'
import { ScreenFiles } from './screen-files.js'

export interface KeptScreenOptions {
  /** Its own files lie here. */
  readonly directory: string
  readonly spool: Spool
  /** What the spool keeps. */
  readonly keepBytes: number
  /** Of a terminal that has no screen yet. */
  readonly size: TerminalSize
  /** No more output will come, and its last screen was kept. */
  readonly over: boolean
  readonly drawing: Drawing
  readonly log: Logger
  readonly onTitle: (title: string) => void
}

export interface ScreenView {
  /** Where output goes on after it. */
  readonly offset: number
  readonly rows: number
  readonly columns: number
  /** Draws the screen on a terminal in whatever state. */
  readonly text: Buffer
}

const PIECE_BYTES = 64 * KiB

export class KeptScreen {
  readonly #options: KeptScreenOptions
  readonly #files: ScreenFiles
  readonly #screen: Screen
  readonly #gone = new AbortController()
  /** Changes of size that wait for the output before them. */
  readonly #sizes: { readonly at: number; readonly size: TerminalSize }[] = []
  #waiting: (() => void)[] = []
  #size: TerminalSize
  readonly #pumping: Promise<void>
  #pumps = true

  /** @throws Fault when its files are damaged */
  constructor(options: KeptScreenOptions) {
    const { directory, spool, keepBytes, size, drawing, log, onTitle } = options
    this.#options = options
    this.#size = size
    this.#files = new ScreenFiles(directory, spool, size)
    const { base, cut } = this.#files
    const onRoom = () => this.#wake()
    this.#screen = new Screen({ drawing, store: this.#files, base, cut, log, onTitle, onRoom, keepBytes })
    this.#pumping = this.#start()
  }

  get title(): string {
    return this.#screen.title
  }

  /** The program should wait: what it writes would be gone from the spool before the screen has it. */
  get behind(): boolean {
    const { spool, keepBytes } = this.#options
    if (!this.#pumps || this.#screen.broken) return false
    const { full, end, needs } = this.#screen
    // The last: of a screen that is being restored, which is told of nothing meanwhile.
    return full || spool.total - end > keepBytes / 4 || spool.total - needs > (keepBytes * 3) / 4
  }

  resize(size: TerminalSize): void {
    if (size.rows === this.#size.rows && size.columns === this.#size.columns) return
    this.#size = size
    const at = this.#options.spool.total
    this.#files.resized(at, size)
    this.#sizes.push({ at, size })
    this.#options.spool.changes.tell()
  }

  /** With everything that is stored now. @throws Failure `unavailable` when it cannot be drawn */
  async view(): Promise<ScreenView> {
    const target = this.#options.spool.total
    while (this.#pumps && (this.#screen.end < target || this.#sizes.length > 0)) await this.#woken()
    try {
      const { offset, size, text } = await this.#screen.view()
      return { offset, ...size, text }
    } catch (error) {
      this.#options.log.warn({ err: error }, 'terminal.not_drawn')
      throw new Failure('unavailable', 'the screen of the terminal cannot be drawn now')
    }
  }

  /** The spool has ended: keeps the last screen. `view` still gives it. */
  async end(): Promise<void> {
    await this.#pumping
    await this.view().catch(() => undefined)
    this.#screen.close()
  }

  /** Leaves it as it is on disk. */
  async close(): Promise<void> {
    this.#gone.abort()
    this.#screen.close()
    this.#wake()
    await this.#pumping
  }

  async #start(): Promise<void> {
    try {
      if (!this.#options.over) await this.#pump()
    } catch (err) {
      if (!this.#gone.signal.aborted) this.#options.log.error({ err }, 'terminal.screen_failed')
    }
    this.#pumps = false
    this.#wake()
  }

  async #pump(): Promise<void> {
    const { spool } = this.#options
    const { changes } = spool
    const { signal } = this.#gone
    if (spool.total > 0) await this.#screen.restore()
    const reader = spool.reader(this.#screen.end)
    try {
      while (!signal.aborted) {
        // Asked before reading: what was written until the end is then surely seen.
        const over = spool.ended
        const seen = changes.version
        const next = this.#sizes[0]
        if (next && next.at <= reader.offset) this.#turn()
        else {
          const piece = await reader.read(next ? Math.min(PIECE_BYTES, next.at - reader.offset) : PIECE_BYTES)
          if (piece?.kind === 'bytes') await this.#feed(piece.offset, piece.bytes)
          else if (!piece && next) this.#turn()
          else if (!piece && over) return
          else if (!piece) {
            // Before it waits: whoever waits for what there is has it now.
            this.#wake()
            await changes.after(seen, signal)
          }
        }
        this.#wake()
      }
    } finally {
      await reader.close()
    }
  }

  #turn(): void {
    const next = this.#sizes.shift()
    if (next) this.#screen.resize(next.size)
  }

  async #feed(offset: number, bytes: Buffer): Promise<void> {
    while (this.#screen.full && !this.#gone.signal.aborted) await this.#woken()
    this.#screen.feed(offset, bytes)
  }

  #woken(): Promise<void> {
    return new Promise((resolve) => this.#waiting.push(resolve))
  }

  #wake(): void {
    for (const wake of this.#waiting.splice(0)) wake()
  }
}
