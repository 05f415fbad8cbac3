// file-process.ts: one operation on files of a sandbox, as a process in it: its input at its pace, its output at its
// reader's, and its end, however it comes about. Ending the input is what makes an upload count, so an upload that breaks
// off kills the process instead.

import type { Readable } from 'node:stream'
import { Failure, type SandboxSpec } from '@berth/contracts'
import type { SpawnRequest } from '../runtime/init-wire.js'
import type { Processes, SandboxProcess } from '../runtime/processes.js'
import { failureOf, nonsense } from './files.plan.js'
import { Beginning, Passage } from './passage.js'

/** Longest failure: a path, each byte of it escaped, and some words. */
const MAX_FAILURE = 16 * 1024
/** Input on its way to the process: a few of the windows that berth-init takes. */
const INPUT_AHEAD = 512 * 1024
/** Longest line that a process begins with. */
const MAX_HEAD = 256
const SIGTERM = 15
const SIGKILL = 9
/** From the one to the other. Long enough to take back a temporary name, where there is one. */
const KILL_AFTER_MS = 1000

export class FileProcess {
  readonly #process: SandboxProcess
  readonly #spec: SandboxSpec
  readonly #out = new Passage()
  readonly #err = new Beginning(MAX_FAILURE)
  #killed = false
  #finished = false
  /** Resolves when the process has ended and was forgotten, whether it succeeded or not. */
  readonly over: Promise<void>

  constructor(processes: Processes, spawn: SpawnRequest, spec: SandboxSpec) {
    this.#spec = spec
    this.#process = processes.run(processes.allocate(), spawn, { stdout: this.#out, stderr: this.#err })
    this.over = this.#follow()
  }

  /** What it writes. Ends with the process when that succeeded, and fails with what it failed with. */
  get output(): Readable {
    return this.#out.stream
  }

  /** The first line; what comes after it stays in `output`. @throws Failure of the operation */
  async head(): Promise<string> {
    const { output } = this
    let bytes: Buffer = Buffer.alloc(0)
    while (!bytes.includes(10)) {
      const chunk = await nextChunk(output)
      if (!chunk || bytes.length > MAX_HEAD) throw nonsense()
      bytes = Buffer.concat([bytes, chunk])
    }
    const end = bytes.indexOf(10)
    if (end > MAX_HEAD) throw nonsense()
    if (bytes.length > end + 1) output.unshift(bytes.subarray(end + 1))
    return bytes.toString('latin1', 0, end)
  }

  /** Resolves when there is output, or none will come. @throws Failure of an operation that failed without */
  async begun(): Promise<void> {
    const chunk = await nextChunk(this.output)
    if (chunk) this.output.unshift(chunk)
  }

  /**
   * Gives it input to its end. A source that fails kills it. Returns early when the process ends early: its output
   * tells why.
   * @throws what the source fails with
   */
  async feed(source: AsyncIterable<Buffer>): Promise<void> {
    const ahead: { readonly bytes: number; readonly written: Promise<boolean> }[] = []
    let waiting = 0
    try {
      for await (const chunk of source) {
        // Refused only where the process takes no more.
        const written = this.#process.write(undefined, chunk).then(
          () => true,
          () => false,
        )
        ahead.push({ bytes: chunk.length, written })
        waiting += chunk.length
        for (let first = ahead[0]; first && waiting > INPUT_AHEAD; first = ahead[0]) {
          if (!(await first.written)) return
          waiting -= first.bytes
          ahead.shift()
        }
      }
    } catch (error) {
      this.kill()
      throw error
    }
    const all = await Promise.all(ahead.map(({ written }) => written))
    if (all.every(Boolean)) await this.#process.endInput().catch(() => undefined)
  }

  /** Its reader or its caller has gone. */
  kill(): void {
    if (this.#killed || this.#finished) return
    this.#killed = true
    this.#process.signal(SIGTERM, 'group')
    const timer = setTimeout(() => this.#process.signal(SIGKILL, 'group'), KILL_AFTER_MS)
    void this.over.then(() => clearTimeout(timer))
    this.output.destroy()
  }

  async #follow(): Promise<void> {
    const end = await this.#process.ended
    this.#finished = true
    this.#process.forget()
    const failure = failureOf(end, this.#err.text, this.#spec)
    if (failure) this.output.destroy(failure)
    else this.#out.end()
  }
}

/** The next bytes of a stream; undefined at its end. @throws what it fails with */
function nextChunk(stream: Readable): Promise<Buffer | undefined> {
  return new Promise((resolve, reject) => {
    const look = () => {
      const chunk: unknown = stream.read()
      if (Buffer.isBuffer(chunk)) settle(() => resolve(chunk))
    }
    const ended = () => settle(() => resolve(undefined))
    const failed = (error: Error) => settle(() => reject(error))
    const closed = () => failed(stream.errored ?? new Failure('unavailable', 'the operation was given up'))
    const settle = (how: () => void) => {
      stream.off('readable', look).off('end', ended).off('error', failed).off('close', closed)
      how()
    }
    if (stream.destroyed) return closed()
    stream.on('readable', look).on('end', ended).on('error', failed).on('close', closed)
    look()
  })
}
