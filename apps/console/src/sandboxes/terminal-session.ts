// terminal-session.ts: one terminal on the page: the screen (xterm.js), the socket and the timers around the state
// machine of terminal-link.ts. What is written to the screen goes through xterm's own queue, sizes too, so that what was
// drawn for one size is never drawn at another.
import { TerminalMessage, type TerminalSize, type ViewerMessage } from '@berth/contracts'
import { FitAddon } from '@xterm/addon-fit'
import { SearchAddon } from '@xterm/addon-search'
import { WebLinksAddon } from '@xterm/addon-web-links'
import '../sheet.js'
import { Terminal } from '@xterm/xterm'
import { type Effect, firstStep, type Happening, type Link, type Step, step } from './terminal-link.js'
import { themeOf } from './terminal-theme.js'

export interface TerminalOptions {
  /** Address of the socket, from an offset of the output on, or with the screen first. */
  readonly url: (since: number | undefined) => string
  readonly dark: boolean
  /**
   * Asks why a connection could not be opened, which a browser does not tell.
   * @returns what to say when trying again makes no sense
   */
  readonly whyRefused?: () => Promise<string | undefined>
}

const BEAT_MS = 10_000
/** Bytes that may wait to be drawn; with more the screen is taken instead, once so few are left. */
const BEHIND_BYTES = 4 * 1024 * 1024
const CAUGHT_UP_BYTES = 256 * 1024
/** Input is sent in frames of this many bytes; a paste may be larger. */
const FRAME_BYTES = 16 * 1024
const SCROLLBACK_LINES = 5000

export class TerminalSession {
  readonly #options: TerminalOptions
  readonly #term: Terminal
  readonly #fit = new FitAddon()
  readonly #search = new SearchAddon()
  readonly #listeners = new Set<() => void>()
  readonly #beat: ReturnType<typeof setInterval>
  readonly #resized: ResizeObserver
  #link: Link = firstStep.link
  #socket: WebSocket | undefined
  #retry: ReturnType<typeof setTimeout> | undefined
  #undrawn = 0
  #notice: string | undefined
  #ended = false
  /** The bar of keys of touch screens: the next character is a control character. */
  #control = false
  onLeave: () => void = () => undefined
  onSearch: () => void = () => undefined

  /** Opens the terminal in `element`, which is to be in the document, and connects. */
  constructor(element: HTMLElement, options: TerminalOptions) {
    this.#options = options
    this.#term = new Terminal({
      fontFamily: 'ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace',
      fontSize: 13,
      scrollback: SCROLLBACK_LINES,
      cursorBlink: true,
      theme: themeOf(options.dark),
    })
    this.#term.loadAddon(this.#fit)
    this.#term.loadAddon(this.#search)
    this.#term.loadAddon(new WebLinksAddon((_, uri) => void window.open(uri, '_blank', 'noopener,noreferrer')))
    this.#term.open(element)
    this.#term.attachCustomKeyEventHandler((event) => this.#onKey(event))
    this.#term.onData((text) => this.type(text))
    this.#term.onBinary((text) => this.#send(Uint8Array.from(text, (char) => char.charCodeAt(0))))
    this.#term.textarea?.addEventListener('focus', () => this.#sendSize())
    this.#resized = new ResizeObserver(() => this.#sendSize())
    this.#resized.observe(element)
    this.#beat = setInterval(() => this.#happened({ type: 'beat' }), BEAT_MS)
    addEventListener('online', this.#onOnline)
    addEventListener('offline', this.#onOffline)
    document.addEventListener('visibilitychange', this.#onVisible)
    this.#apply(firstStep, undefined)
  }

  get link(): Link {
    return this.#link
  }

  get notice(): string | undefined {
    return this.#notice
  }

  /** Told whenever `link`, `notice` or `control` changed, until the returned function is called. */
  listen(told: () => void): () => void {
    this.#listeners.add(told)
    return () => void this.#listeners.delete(told)
  }

  dispose(): void {
    this.#ended = true
    clearInterval(this.#beat)
    clearTimeout(this.#retry)
    this.#resized.disconnect()
    removeEventListener('online', this.#onOnline)
    removeEventListener('offline', this.#onOffline)
    document.removeEventListener('visibilitychange', this.#onVisible)
    this.#listeners.clear()
    this.#disconnect()
    this.#term.dispose()
  }

  focus(): void {
    this.#term.focus()
  }

  retry(): void {
    this.#happened({ type: 'retry' })
  }

  again(): void {
    this.#happened({ type: 'again' })
  }

  setDark(dark: boolean): void {
    this.#term.options.theme = themeOf(dark)
  }

  find(text: string, direction: 'next' | 'previous'): boolean {
    return direction === 'next' ? this.#search.findNext(text) : this.#search.findPrevious(text)
  }

  /** Input as if it were typed. While there is no connection nothing is: it would come at an unexpected moment. */
  type(text: string): void {
    const control = this.#control && text.length === 1
    if (this.#control) this.setControl(false)
    this.#send(new TextEncoder().encode(control ? String.fromCharCode(text.toUpperCase().charCodeAt(0) & 31) : text))
  }

  get control(): boolean {
    return this.#control
  }

  setControl(control: boolean): void {
    this.#control = control
    this.#tell()
  }

  /** Keys as the program asked for them (DECCKM: application cursor keys). */
  arrow(direction: 'A' | 'B' | 'C' | 'D'): void {
    this.type(`\x1b${this.#term.modes.applicationCursorKeysMode ? 'O' : '['}${direction}`)
  }

  readonly #onOnline = () => this.retry()
  readonly #onOffline = () => this.#happened({ type: 'offline' })
  readonly #onVisible = () => {
    if (document.visibilityState === 'visible') this.retry()
  }

  #onKey(event: KeyboardEvent): boolean {
    if (event.type !== 'keydown' || !event.ctrlKey || !event.shiftKey) return true
    switch (event.code) {
      case 'ArrowUp':
        this.onLeave()
        break
      case 'KeyF':
        this.onSearch()
        break
      case 'KeyC':
        void navigator.clipboard?.writeText(this.#term.getSelection())
        break
      default:
        return true
    }
    event.preventDefault()
    return false
  }

  #happened(happening: Happening, frame?: Uint8Array): void {
    if (!this.#ended) this.#apply(step(this.#link, happening, Math.random()), frame)
  }

  #apply({ link, effects }: Step, frame: Uint8Array | undefined): void {
    const before = this.#link
    this.#link = link
    for (const effect of effects) this.#do(effect, frame)
    if (before.phase.name !== 'open' && link.phase.name === 'open') this.#notice = undefined
    if (before !== link) this.#tell()
  }

  #do(effect: Effect, frame: Uint8Array | undefined): void {
    switch (effect.do) {
      case 'connect':
        this.#connect(effect.since)
        break
      case 'disconnect':
        this.#disconnect()
        break
      case 'retryIn':
        clearTimeout(this.#retry)
        this.#retry = setTimeout(() => this.retry(), effect.ms)
        break
      case 'send':
        this.#tellServer({ type: 'ping', id: effect.ping })
        break
      case 'draw':
        this.#draw(frame ?? new Uint8Array(), effect.cleared)
        break
      case 'size':
        this.#adoptSize(effect.size)
        break
      case 'notice':
        this.#notice = effect.text
        break
    }
  }

  #connect(since: number | undefined): void {
    clearTimeout(this.#retry)
    const socket = new WebSocket(this.#options.url(since))
    socket.binaryType = 'arraybuffer'
    this.#socket = socket
    let opened = false
    socket.onmessage = ({ data }: MessageEvent<unknown>) => {
      opened = true
      if (data instanceof ArrayBuffer) this.#onBytes(new Uint8Array(data))
      else this.#onText(String(data))
    }
    socket.onclose = async ({ code, reason }) => {
      if (this.#socket !== socket) return
      this.#socket = undefined
      const why = opened || code !== 1006 ? undefined : await this.#options.whyRefused?.()
      if (this.#socket === undefined) this.#happened({ type: 'closed', code: why ? 1008 : code, reason: why ?? reason })
    }
  }

  #disconnect(): void {
    const socket = this.#socket
    this.#socket = undefined
    socket?.close()
  }

  #onText(text: string): void {
    const message = TerminalMessage.safeParse(parseJson(text))
    // A server of another version may say more than is known here.
    if (message.success) this.#happened({ type: 'message', message: message.data })
  }

  #onBytes(frame: Uint8Array): void {
    if (frame[0] === 1) this.#happened({ type: 'output', bytes: frame.length - 1 }, frame.subarray(1))
  }

  #draw(bytes: Uint8Array, cleared: boolean): void {
    if (cleared) this.#term.write('\x1bc')
    this.#undrawn += bytes.length
    this.#term.write(bytes, () => {
      this.#undrawn -= bytes.length
      if (cleared) this.#sendSize()
    })
    if (this.#undrawn > BEHIND_BYTES) this.#fallBehind()
  }

  /** Leaves what comes, draws what there is, and goes on with the screen as it is then. */
  #fallBehind(): void {
    this.#disconnect()
    const look = () => {
      if (this.#ended) return
      if (this.#undrawn > CAUGHT_UP_BYTES) setTimeout(look, 100)
      else this.#happened({ type: 'behind' })
    }
    look()
  }

  #adoptSize({ rows, columns }: TerminalSize): void {
    this.#term.write('', () => {
      if (!this.#ended && (this.#term.rows !== rows || this.#term.cols !== columns)) this.#term.resize(columns, rows)
    })
  }

  /** Makes the terminal as large as its place, for all viewers. Who may only read takes the size that there is. */
  #sendSize(): void {
    const { phase, offset } = this.#link
    if (this.#ended || phase.name !== 'open' || phase.mode !== 'write' || offset === undefined) return
    const fitting = this.#fit.proposeDimensions()
    if (!fitting || !(fitting.cols > 1 && fitting.rows > 1)) return
    const size = { columns: Math.min(fitting.cols, 1000), rows: Math.min(fitting.rows, 1000) }
    if (size.columns === this.#term.cols && size.rows === this.#term.rows) return
    this.#term.resize(size.columns, size.rows)
    this.#tellServer({ type: 'resize', ...size })
  }

  #send(bytes: Uint8Array): void {
    const { phase } = this.#link
    if (phase.name !== 'open' || phase.mode !== 'write') return
    for (let at = 0; at < bytes.length; at += FRAME_BYTES) {
      const part = bytes.subarray(at, at + FRAME_BYTES)
      const frame = new Uint8Array(part.length + 1)
      frame.set(part, 1)
      this.#socket?.send(frame)
    }
  }

  #tellServer(message: ViewerMessage): void {
    if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send(JSON.stringify(message))
  }

  #tell(): void {
    for (const listener of this.#listeners) listener()
  }
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return undefined // not a message of ours; the schema refuses it
  }
}
