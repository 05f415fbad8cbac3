// viewer.ts: one connection to a terminal. It reads the terminal's output from the spool at its own pace: what it has not
// taken waits on disk and holds up nobody. One that is too far behind is not made to catch up: when it has room again it
// gets the screen as it is then, and goes on from there.

import { KiB, MiB, type TerminalMessage, type TerminalMode, type TerminalSize, ViewerMessage } from '@berth/contracts'
import { closeCodes, closeSocket, type WebSocket } from '@berth/node-rpc'
import type { Changes } from '../logs/changes.js'
import type { Spool } from '../logs/spool.js'
import type { ScreenView } from './kept-screen.js'
import { unfinished } from './sequence.js'
import type { TerminalRecord } from './terminal-record.js'

/** Output on its way to the viewer. */
const OUTPUT_AHEAD = 512 * KiB
const PIECE = 64 * KiB
/** Frames from this size on are built in memory that is used again. */
const LONG_FRAME = 4 * KiB
const FRAME_BYTES = PIECE + 16
const MAX_SPARE = OUTPUT_AHEAD / PIECE
/** Further behind than this, a fresh screen is less than the rest. */
const MAX_BEHIND = 1 * MiB
/** Input that the program has not taken: beyond it the viewer is not read. */
const INPUT_AHEAD = 128 * KiB

const INPUT_CHANNEL = 0
const OUTPUT_CHANNEL = Buffer.of(1)
const NOTHING = Buffer.alloc(0)

/** The terminal, as a viewer needs it. */
export interface Viewed {
  readonly record: TerminalRecord
  readonly spool: Spool
  readonly changes: Changes
  readonly title: string
  readonly over: boolean
  view(): Promise<ScreenView>
  /** @returns false where it takes no input */
  write(bytes: Buffer): Promise<boolean>
  resize(size: TerminalSize): void
  signal(signal: number): void
  /** A viewer has been given more. */
  advanced(): void
}

export interface ViewerOptions {
  readonly mode: TerminalMode
  /** Raw output from this offset on instead of the screen, where it is still kept. */
  readonly since: number | undefined
  /** Ends the view. */
  readonly signal: AbortSignal
}

export class Viewer {
  readonly mode: TerminalMode
  readonly #session: Viewed
  readonly #socket: WebSocket
  readonly #options: ViewerOptions
  #inputAhead = 0
  /** What it asked for last. */
  #size: TerminalSize | undefined
  #position = 0
  /** Memory of frames that were sent: new memory for each frame of a flood costs more to collect than to fill. */
  #spare: Buffer[] = []

  constructor(session: Viewed, socket: WebSocket, options: ViewerOptions) {
    this.mode = options.mode
    this.#session = session
    this.#socket = socket
    this.#options = options
  }

  /** Offset up to which it was given output. */
  get position(): number {
    return this.#position
  }

  tell(message: TerminalMessage): void {
    if (this.#socket.readyState === this.#socket.OPEN) this.#socket.send(JSON.stringify(message))
  }

  /** Resolves when the view is over. */
  async serve(): Promise<void> {
    const { since, signal } = this.#options
    const session = this.#session
    const raw = since !== undefined && since >= session.spool.from && since <= session.spool.total
    const { rows, columns } = session.record
    const first = { type: 'ready', terminal: session.record.id, mode: this.mode, rows, columns } as const
    this.tell({ ...first, offset: raw ? since : session.spool.total })
    this.#socket.on('message', (data, binary) => this.#receive(data, binary))
    this.#socket.resume()
    if (session.title !== '') this.tell({ type: 'title', title: session.title })
    const from = raw ? since : await this.#draw()
    if (from !== undefined) await this.#follow(from, signal)
    if (signal.aborted || this.#socket.readyState !== this.#socket.OPEN) return
    const { end } = session.record
    if (!end) return
    this.tell({ type: 'exit', exitCode: end.exitCode, signal: end.signal, message: end.message })
    this.close(closeCodes.ended, 'the terminal has ended')
  }

  close(code: number, reason: string): void {
    closeSocket(this.#socket, code, reason)
    // Paused, it would not see that the other end closes too.
    this.#socket.resume()
  }

  /** Sends the screen as it is. @returns where output goes on after it; undefined when the viewer has gone */
  async #draw(): Promise<number | undefined> {
    const { offset, rows, columns, text } = await this.#session.view()
    this.tell({ type: 'screen', rows, columns, offset })
    return (await this.#send(text)) ? offset : undefined
  }

  async #follow(from: number, signal: AbortSignal): Promise<void> {
    const { spool, changes } = this.#session
    let reader = spool.reader(from)
    // xterm.js loses a character whose bytes come in two frames: a beginning waits for its end.
    let held = NOTHING
    this.#position = from
    try {
      while (!signal.aborted && this.#socket.readyState === this.#socket.OPEN) {
        // Asked before reading: what was written until the end is then surely seen.
        const { over } = this.#session
        const seen = changes.version
        const piece = spool.total - reader.offset > MAX_BEHIND ? 'behind' : await reader.read(PIECE)
        if (piece === 'behind' || piece?.kind === 'gap') {
          await reader.close()
          const next = await this.#draw()
          if (next === undefined) return
          reader = spool.reader(next)
          held = NOTHING
        } else if (piece) {
          const bytes = held.length > 0 ? Buffer.concat([held, piece.bytes]) : piece.bytes
          const whole = bytes.length - unfinished(bytes)
          held = Buffer.from(bytes.subarray(whole))
          if (whole > 0) await this.#send(bytes.subarray(0, whole))
        } else if (over) {
          if (held.length > 0) await this.#send(held)
          return
        } else await changes.after(seen, signal)
        this.#position = reader.offset
        this.#session.advanced()
      }
    } finally {
      await reader.close()
    }
  }

  /** Resolves when little enough waits to be sent. @returns false when the viewer has gone */
  async #send(bytes: Buffer): Promise<boolean> {
    const socket = this.#socket
    const { frame, release } = this.#frame(bytes)
    const ahead = socket.readyState === socket.OPEN && socket.bufferedAmount + frame.length <= OUTPUT_AHEAD
    // Also called back, with an error, when the connection ends.
    const sent = new Promise<void>((resolve) =>
      socket.send(frame, () => {
        release()
        resolve()
      }),
    )
    if (!ahead) await sent
    return socket.readyState === socket.OPEN
  }

  #frame(bytes: Buffer): { readonly frame: Buffer; release(): void } {
    if (bytes.length < LONG_FRAME || bytes.length >= FRAME_BYTES) {
      this.#spare = [] // no flood, or no more
      return { frame: Buffer.concat([OUTPUT_CHANNEL, bytes]), release: () => undefined }
    }
    const memory = this.#spare.pop() ?? Buffer.allocUnsafeSlow(FRAME_BYTES)
    OUTPUT_CHANNEL.copy(memory)
    bytes.copy(memory, OUTPUT_CHANNEL.length)
    const release = () => {
      if (this.#spare.length < MAX_SPARE) this.#spare.push(memory)
    }
    return { frame: memory.subarray(0, OUTPUT_CHANNEL.length + bytes.length), release }
  }

  #receive(data: unknown, binary: boolean): void {
    // Frames that were on their way when it was closed.
    if (this.#socket.readyState !== this.#socket.OPEN) return
    if (!Buffer.isBuffer(data)) this.close(closeCodes.badFrame, 'a frame that is not whole')
    else if (!binary) this.#control(data)
    else if (data[0] === INPUT_CHANNEL) void this.#input(data.subarray(1))
    else this.close(closeCodes.badFrame, 'a binary frame begins with 0, for input')
  }

  #control(data: Buffer): void {
    const message = ViewerMessage.safeParse(json(data))
    if (!message.success) this.close(closeCodes.badFrame, 'a text frame is JSON of type resize, signal or ping')
    else if (message.data.type === 'ping') this.tell({ type: 'pong', id: message.data.id })
    else if (this.mode === 'read') this.#refuse('this viewer may only look')
    else if (this.#session.over) this.#refuse('the terminal has ended')
    else if (message.data.type === 'resize') {
      this.#size = { rows: message.data.rows, columns: message.data.columns }
      this.#session.resize(this.#size)
    } else this.#session.signal(message.data.signal)
  }

  async #input(bytes: Buffer): Promise<void> {
    if (this.mode === 'read') return this.#refuse('this viewer may only look')
    // Whoever types sees it at the size of the window that is typed in.
    if (this.#size) this.#session.resize(this.#size)
    this.#inputAhead += bytes.length
    if (this.#inputAhead > INPUT_AHEAD) this.#socket.pause()
    if (!(await this.#session.write(bytes))) this.#refuse('the terminal takes no input')
    this.#inputAhead -= bytes.length
    if (this.#inputAhead <= INPUT_AHEAD && this.#socket.isPaused) this.#socket.resume()
  }

  #refuse(detail: string): void {
    this.tell({ type: 'error', code: 'wrong_state', detail })
  }
}

function json(data: Buffer): unknown {
  try {
    return JSON.parse(data.toString('utf8'))
  } catch {
    return undefined // as good as any other frame that is none
  }
}
