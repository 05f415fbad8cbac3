// drawing.ts: where screens are drawn: a thread beside the agent's, shared by all terminals of the node. Drawing is slow
// and fed by tenants; beside the agent it holds nothing up, what it takes of the CPU has a limit, and where a stream finds
// a way to make xterm.js go round in circles or eat memory, this thread is ended and begun again. Every screen can then
// be made anew from its last saved text and the output since (screen.ts), so nothing is lost with it but time.

import { Fault, type TerminalSize } from '@berth/contracts'
import type { Logger } from '@berth/telemetry'
import type { Step } from './reduce.js'

/** To the thread: begin a sheet (with a size), draw on it, read it; in this order, each if it is there. */
export interface DrawRequest {
  readonly call: number
  readonly sheet: number
  readonly open?: TerminalSize
  readonly steps: readonly Step[]
  readonly read?: boolean
  readonly close?: boolean
}

export interface DrawAnswer {
  readonly call: number
  /** What it took, of the thread's time. */
  readonly ms: number
  /** Cells that the sheet holds: 12 bytes each. */
  readonly cells: number
  /** UTF-8 that draws the sheet again. */
  readonly text?: Uint8Array
}

/** A thread that answers requests in their order. */
export interface DrawingThread {
  send(request: DrawRequest): void
  onAnswer(listener: (answer: DrawAnswer) => void): void
  /** Called once, when it is no more. `started`: it had come so far as to run. */
  onEnd(listener: (error: Error | undefined, started: boolean) => void): void
  end(): void
}

export interface DrawingOptions {
  /** May throw where there can be no thread now. */
  readonly start: () => DrawingThread
  readonly log: Logger
  /** After a thread that did not start: the first wait of several. Default: 250 */
  readonly retryMs?: number
}

/** Of one CPU, in the long run. */
const SHARE = 0.5
/** What may be taken at once after a rest, in milliseconds. */
const BURST_MS = 500
/** A request that takes longer has found a way to hang xterm.js; the largest screen takes about a second. */
const HANGS_AFTER_MS = 15_000
/** What all sheets may hold: 48 MiB, and some thousand small terminals. */
const MAX_CELLS = 4_000_000
const MAX_SHEETS = 256
/** Where threads do not start, each wait is twice the one before, up to so many times the first. */
const MAX_RETRY_FACTOR = 32

interface Call {
  readonly request: DrawRequest
  readonly sheet: Sheet
  readonly done: (answer: DrawAnswer) => void
  readonly failed: (error: Error) => void
}

export class Drawing {
  readonly #options: DrawingOptions
  #thread: DrawingThread | undefined
  readonly #waiting: Call[] = []
  /** One at a time: what a terminal asks for is small, and the next one's turn comes soon. */
  #current: { readonly call: Call; readonly watchdog: NodeJS.Timeout } | undefined
  readonly #sheets = new Map<number, Sheet>()
  #calls = 0
  #credit = BURST_MS
  #creditAt = performance.now()
  #pause: NodeJS.Timeout | undefined
  #closed = false
  /** Threads in a row that did not start. */
  #stillborn = 0

  constructor(options: DrawingOptions) {
    this.#options = options
  }

  /** A blank sheet; it is begun when it is drawn on. @param onCrowded it is used least, and should be closed soon */
  sheet(size: TerminalSize, onCrowded: () => void): Sheet {
    this.#calls += 1
    const sheet = new Sheet(this.#calls, size, onCrowded, (request) => this.#ask(sheet, request))
    this.#sheets.set(sheet.id, sheet)
    return sheet
  }

  /** Nothing will be drawn any more. */
  get closed(): boolean {
    return this.#closed
  }

  close(): void {
    this.#closed = true
    clearTimeout(this.#pause)
    this.#fail(new Error('the agent ends'))
    this.#thread?.end()
  }

  #ask(sheet: Sheet, request: Omit<DrawRequest, 'call' | 'sheet'>): Promise<DrawAnswer> {
    if (request.close) this.#sheets.delete(sheet.id)
    return new Promise((done, failed) => {
      if (this.#closed) return failed(new Fault('draw a screen', { cause: new Error('the agent ends') }))
      this.#calls += 1
      this.#waiting.push({ request: { ...request, call: this.#calls, sheet: sheet.id }, sheet, done, failed })
      this.#next()
    })
  }

  #next(): void {
    const call = this.#waiting[0]
    if (!call || this.#current || this.#pause) return
    this.#earn()
    if (this.#credit < 0) {
      this.#wait(-this.#credit / SHARE)
      return
    }
    this.#waiting.shift()
    const watchdog = setTimeout(() => this.#hangs(), HANGS_AFTER_MS)
    this.#current = { call, watchdog }
    this.#running()?.send(call.request)
  }

  #wait(ms: number): void {
    this.#pause ??= setTimeout(() => {
      this.#pause = undefined
      this.#next()
    }, ms)
  }

  #earn(): void {
    const now = performance.now()
    this.#credit = Math.min(BURST_MS, this.#credit + (now - this.#creditAt) * SHARE)
    this.#creditAt = now
  }

  /** @returns undefined where none can be started: who asked for it is told, and the next one waits */
  #running(): DrawingThread | undefined {
    if (this.#thread) return this.#thread
    try {
      const thread = this.#options.start()
      this.#thread = thread
      thread.onAnswer((answer) => this.#answered(answer))
      thread.onEnd((error, started) => {
        if (this.#thread === thread) this.#ended(error, started)
      })
    } catch (error) {
      this.#ended(error, false)
    }
    return this.#thread
  }

  #ended(error: unknown, started: boolean): void {
    this.#thread = undefined
    if (this.#closed) return
    this.#options.log.error({ err: error, terminal: this.#current?.call.sheet.id, started }, 'drawing.ended')
    if (!started) {
      const { retryMs = 250 } = this.#options
      this.#wait(retryMs * Math.min(MAX_RETRY_FACTOR, 2 ** this.#stillborn))
      this.#stillborn += 1
    }
    // What one that never ran was to draw is not to blame.
    this.#fail(error ?? new Error('the drawing thread ended'), started ? this.#current?.call.sheet : undefined)
  }

  #answered(answer: DrawAnswer): void {
    const current = this.#current
    if (!current || current.call.request.call !== answer.call) return
    clearTimeout(current.watchdog)
    this.#current = undefined
    this.#stillborn = 0
    this.#earn()
    this.#credit -= answer.ms
    current.call.sheet.cells = answer.cells
    current.call.done(answer)
    this.#crowd(current.call.sheet)
    this.#next()
  }

  #hangs(): void {
    this.#thread?.end()
  }

  /** All that was on the thread is lost: who waits for it, or comes back to it, makes it anew. */
  #fail(cause: unknown, culprit?: Sheet): void {
    const error = new Fault('draw a screen', { cause })
    const current = this.#current
    this.#current = undefined
    if (current) clearTimeout(current.watchdog)
    for (const sheet of this.#sheets.values()) sheet.lose(error, sheet === culprit)
    this.#sheets.clear()
    current?.call.failed(error)
    for (const call of this.#waiting.splice(0)) call.failed(error)
  }

  #crowd(latest: Sheet): void {
    this.#sheets.delete(latest.id)
    if (!latest.closed) this.#sheets.set(latest.id, latest)
    let cells = [...this.#sheets.values()].reduce((sum, sheet) => sum + sheet.cells, 0)
    let count = this.#sheets.size
    // In the order of their last use.
    for (const sheet of this.#sheets.values()) {
      if ((cells <= MAX_CELLS && count <= MAX_SHEETS) || sheet === latest) return
      cells -= sheet.cells
      count -= 1
      sheet.crowded()
    }
  }
}

/** A screen on the drawing thread. One call at a time. */
export class Sheet {
  readonly id: number
  cells = 0
  closed = false
  /** It was being drawn on when the thread ended. */
  guilty = false
  #lost: Error | undefined
  #open: TerminalSize | undefined
  readonly #onCrowded: () => void
  readonly #ask: (request: Omit<DrawRequest, 'call' | 'sheet'>) => Promise<DrawAnswer>

  constructor(
    id: number,
    size: TerminalSize,
    onCrowded: () => void,
    ask: (request: Omit<DrawRequest, 'call' | 'sheet'>) => Promise<DrawAnswer>,
  ) {
    this.id = id
    this.#open = size
    this.#onCrowded = onCrowded
    this.#ask = ask
  }

  /** @throws Fault when the thread has ended: the sheet is lost */
  async draw(steps: readonly Step[]): Promise<void> {
    await this.#call({ steps })
  }

  /** Draws, and reads all of it. @throws as `draw` */
  async read(steps: readonly Step[]): Promise<Buffer> {
    const { text } = await this.#call({ steps, read: true })
    return Buffer.from(text ?? [])
  }

  close(): void {
    if (this.closed) return
    this.closed = true
    if (this.#lost || this.#open) return
    // Where it cannot be told, the thread and all it held are gone.
    this.#ask({ steps: [], close: true }).catch(() => undefined)
  }

  lose(error: Error, guilty: boolean): void {
    this.#lost = error
    this.guilty = guilty
  }

  crowded(): void {
    this.#onCrowded()
  }

  #call(request: Omit<DrawRequest, 'call' | 'sheet'>): Promise<DrawAnswer> {
    if (this.#lost) return Promise.reject(this.#lost)
    const open = this.#open
    this.#open = undefined
    return this.#ask(open ? { ...request, open } : request)
  }
}
