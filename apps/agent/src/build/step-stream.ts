// step-stream.ts: what is told of a build while it goes on, at its reader's pace. Steps are few and wait for nobody; output
// is acknowledged to the command that writes it only when the reader has taken it, so a slow reader slows the command,
// and nothing is kept in between.

import { StringDecoder } from 'node:string_decoder'
import { type BuildStep, MiB } from '@berth/contracts'
import type { StreamName } from '../runtime/init-wire.js'
import type { OutputSink, OutputSinks } from '../runtime/processes.js'
import { Mask, type Patterns } from './mask.js'

/** What is told of one command, as BuildKit limits it. The command itself goes on. */
const MAX_OUTPUT_BYTES = 2 * MiB
const CLIPPED = '[output clipped, log limit 2MiB reached]\n'
/** Characters in one step. */
const MAX_DATA = 32 * 1024

export class StepStream implements AsyncIterable<BuildStep> {
  readonly #queue: { readonly step: BuildStep; readonly taken: () => void }[] = []
  #wake: () => void = () => undefined
  #isCut = false
  #ended = false

  /** Resolves once the reader has taken it, or it never will. */
  push(step: BuildStep): Promise<void> {
    if (this.#isCut || this.#ended) return Promise.resolve()
    return new Promise((taken) => {
      this.#queue.push({ step, taken })
      this.#wake()
    })
  }

  /** Nothing is told any more but how it ends: nobody waits for the reader. */
  cut(): void {
    this.#isCut = true
    for (const { taken } of this.#queue.splice(0)) taken()
  }

  /** What was pushed is still told, then this, and nothing else. */
  end(last: BuildStep): void {
    this.#queue.push({ step: last, taken: () => undefined })
    this.#ended = true
    this.#wake()
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<BuildStep> {
    try {
      for (;;) {
        const next = this.#queue.shift()
        if (next) {
          try {
            yield next.step
          } finally {
            next.taken()
          }
        } else if (this.#ended) return
        else await new Promise<void>((wake) => (this.#wake = wake))
      }
    } finally {
      this.#ended = true
      this.cut()
    }
  }
}

/** What one command writes: secrets covered, as text, and not more than so much of it. */
export class CommandOutput {
  readonly #steps: StepStream
  readonly #vertex: number
  readonly #told: Readonly<Record<StreamName, Told>>
  #left = MAX_OUTPUT_BYTES
  readonly sinks: OutputSinks

  constructor(steps: StepStream, vertex: number, patterns: Patterns) {
    this.#steps = steps
    this.#vertex = vertex
    const isWanted = () => this.#left > 0
    const told = (stream: StreamName) => new Told(patterns, isWanted, (text) => this.#tell(stream, text))
    this.#told = { stdout: told('stdout'), stderr: told('stderr') }
    this.sinks = this.#told
  }

  /** Tells what was held back, since nothing more comes. */
  async end(): Promise<void> {
    await this.#told.stdout.end()
    await this.#told.stderr.end()
  }

  async #tell(stream: StreamName, text: string): Promise<void> {
    if (this.#left <= 0 || text === '') return
    const bytes = Buffer.byteLength(text)
    const isLast = bytes >= this.#left
    const data = isLast ? `${Buffer.from(text).subarray(0, this.#left).toString()}\n${CLIPPED}` : text
    this.#left -= bytes
    const at = new Date().toISOString()
    for (let from = 0; from < data.length; from += MAX_DATA)
      await this.#steps.push({
        step: 'output',
        vertex: this.#vertex,
        stream,
        data: data.slice(from, from + MAX_DATA),
        at,
      })
  }
}

class Told implements OutputSink {
  readonly #mask: Mask
  readonly #decoder = new StringDecoder('utf8')
  readonly #isWanted: () => boolean
  readonly #tell: (text: string) => Promise<void>
  #length = 0
  #last: Promise<void> = Promise.resolve()

  constructor(patterns: Patterns, isWanted: () => boolean, tell: (text: string) => Promise<void>) {
    this.#mask = new Mask(patterns)
    this.#isWanted = isWanted
    this.#tell = tell
  }

  resume(offset: number): void {
    this.#length = offset
  }

  append(offset: number, bytes: Buffer, stored: (offset: number) => void): void {
    const fresh = bytes.subarray(Math.max(0, this.#length - offset))
    const end = offset + bytes.length
    this.#length = Math.max(this.#length, end)
    this.#last = this.#last.then(() => this.#take(fresh)).then(() => stored(end))
  }

  /** Of what is told no more no secrets are looked for: a flood would cost the node as much as it likes. */
  async #take(bytes: Buffer): Promise<void> {
    if (this.#isWanted()) await this.#tell(this.#decoder.write(this.#mask.push(bytes)))
  }

  settled(): Promise<void> {
    return this.#last
  }

  async end(): Promise<void> {
    await this.#last
    await this.#tell(this.#decoder.write(this.#mask.end()) + this.#decoder.end())
  }
}
