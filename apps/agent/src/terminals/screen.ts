// screen.ts: the screen of one terminal. Most of the time it is not drawn at all: what came since it was last read waits,
// cut to what can still be seen (reduce.ts), and it is drawn when somebody wants to see it or too much waits. What was
// read last, the base, is kept on disk; from it and the output since, the same screen comes about again: after the agent
// was killed, after the drawing thread was, and after a rest, since a sheet is closed when nothing has happened for long.
//
// The output since the base must therefore still be in the spool. `lag` says how much of it that is. Of a flood, a cut
// moves the place to go on from along with it; else the screen is read again, and whoever feeds waits while it is `full`.
//
// Where drawing fails again and again whoever looks is told, and output goes on without being drawn until it can be again:
// the screen begins blank after what ended the thread, or after more than can wait.

import { Fault, KiB, MiB, type TerminalSize } from '@berth/contracts'
import type { Logger } from '@berth/telemetry'
import type { Drawing, Sheet } from './drawing.js'
import { scrollbackOf } from './emulator.js'
import { type Cut, GRAIN, type Grain, Reducer, type Step } from './reduce.js'

/** A screen as it is kept: text that draws it, at an offset of the output. */
export interface Base {
  readonly offset: number
  readonly size: TerminalSize
  readonly title: string
}

/** What the output did from an offset on: bytes, and changes of size between them. */
export type Event =
  | { readonly kind: 'output'; readonly offset: number; readonly bytes: Buffer }
  | { readonly kind: 'resize'; readonly size: TerminalSize }

/** Where a screen is kept. */
export interface ScreenStore {
  /** Both or none, whatever happens. */
  save(base: Base, text: Buffer): void
  saveCut(cut: Cut): void
  text(): Buffer
  /** What came from `offset` on up to now, including what is fed while it is read. */
  since(offset: number): AsyncIterable<Event>
}

export interface View {
  /** Where output goes on after it. */
  readonly offset: number
  readonly size: TerminalSize
  /** Draws the screen, whatever was there before. */
  readonly text: Buffer
}

export interface ScreenOptions {
  readonly drawing: Drawing
  readonly store: ScreenStore
  readonly base: Base
  readonly cut: Cut | undefined
  readonly log: Logger
  readonly onTitle: (title: string) => void
  /** `full` has changed to false. */
  readonly onRoom: () => void
  /** Bytes of output that can be had again from the store. */
  readonly keepBytes: number
  readonly limits?: ScreenLimits
}

/** Sizes in bytes; those of tests are smaller. */
export interface ScreenLimits {
  /** What waits is drawn when it takes more memory, */
  readonly drawAbove: number
  /** and there should not be more of it. */
  readonly full: number
  /** What is drawn at once; some milliseconds. */
  readonly cost: number
  readonly grain: Grain
}
const LIMITS: ScreenLimits = { drawAbove: 512 * KiB, full: 1 * MiB, cost: 32 * KiB, grain: GRAIN }
/** Without output for so long, a sheet is closed. */
const REST_MS = 10_000
/** How often in a row the drawing thread may end over the same output before that is given up, */
const MAX_CRASHES = 2
/** and how often drawing may fail otherwise. */
const MAX_FAILURES = 4

/** Somebody wants the screen as it is at an offset, or later. */
interface Wish {
  readonly from: number
  readonly done: (view: View) => void
  readonly failed: (error: Error) => void
}

export class Screen {
  readonly #options: ScreenOptions
  readonly #limits: ScreenLimits
  #base: Base
  #cut: Cut | undefined
  #reducer: Reducer
  #title: string
  /** What has been drawn up to `#reducer.taken`, and the size it has there. */
  #sheet: Sheet | undefined
  #sheetSize: TerminalSize
  #wishes: Wish[] = []
  #working = false
  /** What was taken from the reducer is lost: all comes again from the store, and so what is fed meanwhile. */
  #lost = false
  #restored: { readonly done: () => void; readonly failed: (error: Error) => void }[] = []
  #saving = false
  /** End of what was fed, with what was not taken because it comes again from the store. */
  #told = 0
  #crashes = 0
  #failures = 0
  /** Drawing has failed too often, and did not succeed since. */
  #givenUp = false
  /** It can neither be drawn nor given up: the disk is full, or gone. */
  #broken: Fault | undefined
  #wasFull = false
  #rest: NodeJS.Timeout | undefined
  #closed = false

  constructor(options: ScreenOptions) {
    this.#options = options
    this.#limits = options.limits ?? LIMITS
    this.#base = options.base
    this.#cut = options.cut
    this.#title = options.base.title
    this.#sheetSize = options.base.size
    this.#reducer = this.#begin()
  }

  get title(): string {
    return this.#title
  }

  /** Offset of the output that is to be fed next. */
  get end(): number {
    return this.#reducer.end
  }

  /** Nothing can be done for it any more; nothing has to wait for it. */
  get broken(): boolean {
    return this.#broken !== undefined
  }

  /** Offset from which on the store must have the output. */
  get needs(): number {
    return this.#cut && this.#usable(this.#cut) ? this.#cut.to : this.#base.offset
  }

  /** No more should be fed for now. It may be. */
  get full(): boolean {
    const { keepBytes } = this.#options
    if (this.#broken) return false
    const end = Math.max(this.#told, this.#reducer.offset)
    return this.#reducer.weight > this.#limits.full || end - this.needs > (keepBytes * 3) / 4
  }

  get #lag(): number {
    return this.#reducer.offset - this.needs
  }

  /** Of a screen that was kept: takes what came since from the store. @throws Fault when it cannot be read */
  restore(): Promise<void> {
    this.#lost = true
    return new Promise((done, failed) => {
      this.#restored.push({ done, failed })
      this.#work()
    })
  }

  /** Takes output that goes on at `offset`; what it has already, from the store, is a repeat. */
  feed(offset: number, bytes: Buffer): void {
    if (this.#broken) return
    this.#told = Math.max(this.#told, offset + bytes.length)
    if (this.#lost) {
      this.#wasFull ||= this.full
      return
    }
    this.#take(offset, bytes)
    this.#look()
  }

  #take(offset: number, bytes: Buffer): void {
    if (offset > this.#reducer.end) this.#reducer.jump(offset)
    const fresh = bytes.subarray(Math.max(0, this.#reducer.end - offset))
    if (fresh.length > 0) this.#reducer.feed(fresh)
  }

  resize(size: TerminalSize): void {
    if (this.#lost || this.#broken) return
    this.#reducer.resize(size)
    this.#look()
  }

  /** The screen as it is now. @throws Fault when it cannot be drawn */
  view(): Promise<View> {
    const { offset, size } = this.#base
    if (!this.#lost && this.#reducer.drained && this.#reducer.offset === offset)
      return Promise.resolve({ offset, size, text: this.#options.store.text() })
    return new Promise((done, failed) => {
      if (this.#closed || this.#broken) return failed(this.#broken ?? closed())
      const from = this.#lost ? Number.POSITIVE_INFINITY : this.#reducer.offset
      this.#wishes.push({ from, done, failed })
      this.#work()
    })
  }

  /** Lets go of it; what was kept of it last stays. */
  close(): void {
    this.#closed = true
    clearTimeout(this.#rest)
    this.#dropSheet()
    this.#refuse(closed())
  }

  /** A cut helps where the base lies within its run. */
  #usable({ from, to }: Cut): boolean {
    return from <= this.#base.offset && this.#base.offset <= to
  }

  #begin(): Reducer {
    const { size, offset } = this.#base
    const reducer = new Reducer({
      size,
      scrollback: scrollbackOf,
      offset,
      onTitle: (title) => this.#titled(title),
      grain: this.#limits.grain,
    })
    reducer.feed(this.#options.store.text())
    reducer.standFor(offset)
    if (this.#cut && this.#usable(this.#cut)) reducer.skip(this.#cut)
    return reducer
  }

  #titled(title: string): void {
    if (title === this.#title) return
    this.#title = title
    this.#options.onTitle(title)
  }

  /** What came since the base, once more. */
  async #replay(): Promise<void> {
    this.#dropSheet()
    this.#reducer = this.#begin()
    for await (const event of this.#options.store.since(this.needs)) {
      if (event.kind === 'resize') this.#reducer.resize(event.size)
      else this.#take(event.offset, event.bytes)
      if (this.#givenUp) this.#giveUp()
      else while (this.#reducer.weight > this.#limits.drawAbove && !this.#closed) await this.#drawPart()
    }
    this.#lost = false
    this.#settle()
    this.#look()
  }

  /** The reducer is where the output is. */
  #settle(): void {
    const { offset } = this.#reducer
    for (const { done } of this.#restored.splice(0)) done()
    this.#wishes = this.#wishes.map((wish) => ({ ...wish, from: Math.min(wish.from, offset) }))
  }

  /** Something came: is there anything to be done about it? */
  #look(): void {
    const { keepBytes, store } = this.#options
    const lag = this.#lag
    if (lag > keepBytes / 4) {
      const { cut } = this.#reducer
      if (cut && this.#usable(cut) && cut.to > this.needs + keepBytes / 8) {
        store.saveCut(cut)
        this.#cut = cut
      } else if (lag > (keepBytes * 3) / 8) this.#save()
    }
    this.#wasFull ||= this.full
    if (this.#reducer.weight > this.#limits.drawAbove) this.#work()
    // A new timer for each of thousands of chunks would cost more than the chunks.
    if (this.#rest) this.#rest.refresh()
    else if (!this.#closed) this.#rest = setTimeout(() => this.#resting(), REST_MS).unref()
  }

  #save(): void {
    if (this.#saving) return
    this.#saving = true
    const done = () => {
      this.#saving = false
    }
    this.view().then(done, done)
  }

  #resting(): void {
    this.#rest = undefined
    if (!this.#sheet && this.#reducer.weight <= this.#limits.drawAbove / 8) return
    this.#park()
  }

  /** The text is enough: memory is for screens that change. */
  #park(): void {
    const close = () => {
      if (this.#wishes.length === 0 && this.#reducer.taken === this.#base.offset) this.#dropSheet()
    }
    // Where it cannot be drawn now, it stays as it is.
    this.view().then(close, () => undefined)
  }

  #dropSheet(): void {
    this.#sheet?.close()
    this.#sheet = undefined
  }

  #work(): void {
    if (!this.#working) void this.#draw()
  }

  /** Never rejects: who waits is told. */
  async #draw(): Promise<void> {
    // Not a promise: between the end of the loop and its own it would look as if somebody still worked.
    this.#working = true
    while (!this.#closed && (this.#lost || this.#wishes.length > 0 || this.#reducer.weight > this.#limits.drawAbove)) {
      const replays = this.#lost
      try {
        await (replays ? this.#replay() : this.#drawPart())
      } catch (error) {
        if (this.#closed || !this.#survives(error, replays)) break
      }
      if (!this.#wasFull || this.full) continue
      this.#wasFull = false
      this.#options.onRoom()
    }
    this.#working = false
  }

  /** Draws the next part, and reads the screen where that is what somebody waits for. */
  async #drawPart(): Promise<void> {
    const reducer = this.#reducer
    const before = this.#sheet ? [] : this.#openSheet()
    const sheet = this.#sheet
    if (!sheet) return
    const steps = reducer.take(this.#limits.cost)
    for (const step of steps) if (step.kind === 'resize') this.#sheetSize = step.size
    const offset = reducer.drained ? reducer.offset : reducer.taken
    const introducer = Buffer.from(reducer.drained ? reducer.introducer : '')
    const wanted = this.#wishes.some(({ from }) => from <= offset)
    const base = { offset, size: this.#sheetSize, title: this.#title }
    const text = await (wanted ? sheet.read([...before, ...steps]) : sheet.draw([...before, ...steps]))
    this.#failures = 0
    this.#givenUp = false
    if (text && !this.#closed) this.#keep(base, Buffer.concat([text, introducer]))
  }

  /** @returns what makes a blank sheet the base */
  #openSheet(): readonly Step[] {
    const { drawing, store } = this.#options
    this.#sheet = drawing.sheet(this.#base.size, () => this.#park())
    this.#sheetSize = this.#base.size
    const bytes = store.text()
    return bytes.length === 0 ? [] : [{ kind: 'draw', to: this.#base.offset, bytes }]
  }

  #keep(base: Base, text: Buffer): void {
    this.#options.store.save(base, text)
    this.#base = base
    this.#crashes = 0
    const view = { offset: base.offset, size: base.size, text }
    const granted = this.#wishes.filter(({ from }) => from <= base.offset)
    this.#wishes = this.#wishes.filter(({ from }) => from > base.offset)
    for (const wish of granted) wish.done(view)
  }

  /** What was drawn comes again, unless it is what ended the thread again and again. @returns whether to try again */
  #survives(error: unknown, replays: boolean): boolean {
    const { drawing, log } = this.#options
    const guilty = this.#sheet?.guilty === true
    this.#lost = true
    this.#dropSheet()
    if (drawing.closed) {
      // It is the agent that ends: the next one goes on from what is kept.
      this.#refuse(undrawn(error))
      return false
    }
    this.#failures += 1
    if (guilty) this.#crashes += 1
    log.warn({ err: error, crashes: this.#crashes }, 'screen.lost')
    if (!this.#givenUp && this.#crashes <= MAX_CRASHES && this.#failures <= MAX_FAILURES) return true
    // Once it is given up nothing is drawn to replay it: it is the store that failed.
    if (this.#givenUp && replays) return this.#break(error)
    if (this.#givenUp) for (const { failed } of this.#wishes.splice(0)) failed(undrawn(error))
    this.#givenUp = true
    this.#crashes = 0
    this.#failures = 0
    try {
      if (guilty) this.#blank()
      return true
    } catch (cause) {
      return this.#break(cause)
    }
  }

  /** @returns that there is nothing to try again */
  #break(cause: unknown): false {
    this.#broken = new Fault('keep a screen', { cause })
    this.#refuse(this.#broken)
    this.#options.onRoom()
    return false
  }

  #refuse(error: Error): void {
    for (const { failed } of [...this.#wishes.splice(0), ...this.#restored.splice(0)]) failed(error)
  }

  /** Nothing is drawn of it now: what is too much to wait is not kept. */
  #giveUp(): void {
    if (this.#reducer.weight > this.#limits.drawAbove || this.#lag > this.#options.keepBytes / 8) this.#blank()
  }

  /** Begins with a blank screen where what came from the store or was fed ends. */
  #blank(): void {
    const base = { offset: this.#reducer.offset, size: this.#reducer.size, title: this.#title }
    this.#options.store.save(base, BLANK)
    this.#base = base
    this.#reducer = this.#begin()
  }
}

/** A full reset (RIS) and no more. */
export const BLANK = Buffer.from('\x1bc')

const closed = () => new Fault('read a screen', { cause: new Error('the terminal is closed') })
const undrawn = (cause: unknown) => (cause instanceof Fault ? cause : new Fault('draw a screen', { cause }))
