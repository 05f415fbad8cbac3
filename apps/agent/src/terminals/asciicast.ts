// asciicast.ts: a recording as asciinema writes it, version 2 (docs.asciinema.org/manual/asciicast/v2): a line with the
// header, then a line an event: seconds since the beginning, "o" or "r", and the text or the size.

import { appendFileSync, statSync } from 'node:fs'
import { StringDecoder } from 'node:string_decoder'
import { errnoOf, MiB, type TerminalSize } from '@berth/contracts'

/** A longer recording ends here, and says so in its last event. */
const MAX_BYTES = 64 * MiB

export interface RecordingOptions {
  readonly path: string
  readonly startedAt: Date
  readonly size: TerminalSize
  readonly command: readonly string[]
}

/** Writes output as it comes; goes on where a former agent ended. A character is never cut between two events. */
export class Recording {
  readonly #options: RecordingOptions
  readonly #decoder = new StringDecoder('utf8')
  #bytes: number

  constructor(options: RecordingOptions) {
    this.#options = options
    this.#bytes = sizeOf(options.path)
    if (this.#bytes === 0) this.#line(header(options))
  }

  output(bytes: Buffer, now: Date): void {
    const text = this.#decoder.write(bytes)
    if (text !== '') this.#event(now, 'o', text)
  }

  resize({ rows, columns }: TerminalSize, now: Date): void {
    this.#event(now, 'r', `${columns}x${rows}`)
  }

  #event(now: Date, kind: 'o' | 'r', text: string): void {
    if (this.#bytes >= MAX_BYTES) return
    const seconds = Math.max(0, now.getTime() - this.#options.startedAt.getTime()) / 1000
    this.#line([seconds, kind, text])
    if (this.#bytes >= MAX_BYTES) this.#line([seconds, 'o', '\r\n[the recording is full and ends here]\r\n'])
  }

  #line(value: unknown): void {
    const line = `${JSON.stringify(value)}\n`
    appendFileSync(this.#options.path, line, { mode: 0o600 })
    this.#bytes += Buffer.byteLength(line)
  }
}

const header = ({ startedAt, size, command }: RecordingOptions) => ({
  version: 2,
  width: size.columns,
  height: size.rows,
  timestamp: Math.floor(startedAt.getTime() / 1000),
  command: command.join(' '),
  env: { TERM: 'xterm-256color' },
})

function sizeOf(path: string): number {
  try {
    return statSync(path).size
  } catch (error) {
    if (errnoOf(error) === 'ENOENT') return 0
    throw error
  }
}
