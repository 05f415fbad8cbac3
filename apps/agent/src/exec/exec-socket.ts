// exec-socket.ts: an attachment to an exec: a WebSocket whose frames are those that the route attachExec describes. Each
// has its own place in the output and is paced by its own connection; a slow one is told of gaps and holds up nobody.

import {
  attachExec,
  type ErrorCode,
  type Exec,
  ExecId,
  Failure,
  InvalidRequest,
  KiB,
  type OutputStream,
  Signal,
  TerminalSize,
} from '@berth/contracts'
import { closeCodes, closeSocket, type NodeCall, type WebSocket } from '@berth/node-rpc'
import type { Logger } from '@berth/telemetry'
import { z } from 'zod'
import { type ReadOptions, readPieces } from './exec-output.js'
import type { ExecSession } from './exec-session.js'
import type { SandboxExecs } from './sandbox-execs.js'
import { withEither, within } from './waiting.js'

/** Output on its way to the caller; what is beyond waits on disk. */
const OUTPUT_AHEAD = 256 * KiB
/** Input on its way to the command, and answers on their way to the caller: beyond that the caller is not read. */
const INPUT_AHEAD = 256 * KiB
const REPLIES_AHEAD = 32
/** What a frame of input counts besides its bytes. */
const FRAME_BYTES = 256

const channels: Readonly<Record<OutputStream, number>> = { stdout: 1, stderr: 2 }
const INPUT_CHANNEL = 0

const Control = z.discriminatedUnion('type', [
  z.strictObject({ type: z.literal('eof') }),
  z.strictObject({ type: z.literal('resize'), ...TerminalSize.shape }),
  z.strictObject({ type: z.literal('signal'), signal: Signal }),
  z.strictObject({ type: z.literal('ping') }),
])

type Told =
  | { readonly type: 'started'; readonly exec: ExecId; readonly pid: number | null; readonly stdinBytes: number }
  | { readonly type: 'gap'; readonly stream: OutputStream; readonly offset: number }
  | { readonly type: 'stdinAck'; readonly offset: number }
  | { readonly type: 'end'; readonly exec: Exec }
  | { readonly type: 'error'; readonly code: ErrorCode; readonly detail: string }
  | { readonly type: 'pong' }

/** Serves an attachment from its request to its close. @throws Failure before it was accepted */
export async function attach(
  call: NodeCall,
  execs: SandboxExecs,
  accept: () => Promise<WebSocket>,
  log: Logger,
): Promise<void> {
  const [, id, word, ...more] = call.rest
  const exec = ExecId.safeParse(id)
  if (word !== 'socket' || more.length > 0 || !exec.success) throw new Failure('route_not_found', 'no such socket')
  const query = attachExec.query.safeParse(Object.fromEntries(call.query))
  if (!query.success) throw new InvalidRequest([{ field: 'query', message: query.error.message }])
  await execs.use(exec.data, async (session) => {
    const attachment = new Attachment(session, await accept(), query.data.stdin, log)
    await withEither([call.signal, session.gone], (signal) => attachment.serve({ ...query.data, follow: true, signal }))
  })
}

class Attachment {
  readonly #session: ExecSession
  readonly #socket: WebSocket
  readonly #log: Logger
  /** Of the next byte of input; undefined: after all that was taken, from whomever. */
  #inputAt: number | undefined
  #inputAhead = 0
  #repliesAhead = 0
  #acknowledged = 0
  #acknowledging = false

  constructor(session: ExecSession, socket: WebSocket, inputAt: number | undefined, log: Logger) {
    this.#session = session
    this.#socket = socket
    this.#log = log
    this.#inputAt = inputAt
  }

  /** Resolves when the connection is closed, or is being closed. */
  async serve(options: ReadOptions): Promise<void> {
    const { signal } = options
    const socket = this.#socket
    await within(this.#session.started(), signal)
    const { record, pid, stdinBytes } = this.#session
    this.#tell({ type: 'started', exec: record.id, pid, stdinBytes })
    socket.on('message', (data, binary) => this.#receive(data, binary))
    socket.resume()
    for await (const piece of readPieces(this.#session, options)) {
      if (piece.kind === 'gap') this.#tell({ type: 'gap', stream: piece.stream, offset: piece.offset })
      else await this.#send(Buffer.concat([Buffer.of(channels[piece.stream]), piece.bytes]), signal)
      if (socket.readyState !== socket.OPEN) return
    }
    if (this.#session.gone.aborted) this.#close(closeCodes.gone, 'the exec was deleted')
    else if (!signal.aborted) {
      this.#tell({ type: 'end', exec: this.#session.view() })
      this.#close(closeCodes.ended, 'the exec has ended')
    }
  }

  #tell(told: Told): void {
    if (this.#socket.readyState === this.#socket.OPEN) this.#socket.send(JSON.stringify(told))
  }

  /** Resolves when little enough waits to be sent. */
  async #send(bytes: Buffer, signal: AbortSignal): Promise<void> {
    const socket = this.#socket
    if (socket.readyState !== socket.OPEN) return
    if (socket.bufferedAmount + bytes.length <= OUTPUT_AHEAD) {
      socket.send(bytes)
      return
    }
    await new Promise<void>((resolve) => {
      const done = () => {
        signal.removeEventListener('abort', done)
        resolve()
      }
      signal.addEventListener('abort', done, { once: true })
      if (signal.aborted) done()
      // Also called, with an error, when the connection ends.
      socket.send(bytes, done)
    })
  }

  #receive(data: unknown, binary: boolean): void {
    // Frames that were on their way when it was closed.
    if (this.#socket.readyState !== this.#socket.OPEN) return
    if (!Buffer.isBuffer(data)) this.#refuse('a frame that is not whole')
    else if (!binary) this.#control(data)
    else if (data[0] === INPUT_CHANNEL) void this.#input(data.subarray(1))
    else this.#refuse('a binary frame begins with 0, for input')
  }

  #control(data: Buffer): void {
    const control = Control.safeParse(json(data))
    if (control.success) void this.#carryOut(control.data)
    else this.#refuse('a text frame is JSON of type eof, resize, signal or ping')
  }

  async #carryOut(control: z.output<typeof Control>): Promise<void> {
    switch (control.type) {
      case 'eof':
        return this.#guarded(async () => void (await this.#session.endInput(this.#inputAt)))
      case 'resize':
        return this.#guarded(async () => this.#session.resize(control.rows, control.columns))
      case 'signal':
        return this.#guarded(async () => this.#session.signal(control.signal, 'group'))
      case 'ping':
        return this.#reply({ type: 'pong' })
    }
  }

  async #input(bytes: Buffer): Promise<void> {
    const offset = this.#inputAt
    if (offset !== undefined) this.#inputAt = offset + bytes.length
    const weight = bytes.length + FRAME_BYTES
    this.#inputAhead += weight
    this.#pace()
    await this.#guarded(() => this.#session.write(offset, bytes))
    this.#inputAhead -= weight
    this.#pace()
    this.#acknowledge()
  }

  /** One at a time, each with the newest offset. */
  #acknowledge(): void {
    const { stdinBytes } = this.#session
    if (this.#acknowledging || stdinBytes <= this.#acknowledged) return
    this.#acknowledging = true
    this.#acknowledged = stdinBytes
    this.#reply({ type: 'stdinAck', offset: stdinBytes }, () => {
      this.#acknowledging = false
      this.#acknowledge()
    })
  }

  /** What is refused is told, and the attachment goes on. */
  async #guarded(work: () => Promise<void>): Promise<void> {
    try {
      await work()
    } catch (error) {
      if (error instanceof Failure) this.#reply({ type: 'error', code: error.code, detail: error.message })
      else this.#fail(error)
    }
  }

  #reply(told: Told, sent: () => void = () => undefined): void {
    if (this.#socket.readyState !== this.#socket.OPEN) return
    this.#repliesAhead += 1
    this.#pace()
    this.#socket.send(JSON.stringify(told), () => {
      this.#repliesAhead -= 1
      this.#pace()
      sent()
    })
  }

  #pace(): void {
    const ahead = this.#inputAhead > INPUT_AHEAD || this.#repliesAhead > REPLIES_AHEAD
    if (ahead && !this.#socket.isPaused) this.#socket.pause()
    else if (!ahead && this.#socket.isPaused) this.#socket.resume()
  }

  #refuse(why: string): void {
    this.#close(closeCodes.badFrame, why)
  }

  #fail(err: unknown): void {
    this.#log.error({ exec: this.#session.record.id, err }, 'exec.socket_failed')
    this.#close(closeCodes.bug, 'internal_error')
  }

  #close(code: number, reason: string): void {
    closeSocket(this.#socket, code, reason)
    // Paused, it would not see that the other end closes too.
    this.#socket.resume()
  }
}

function json(data: Buffer): unknown {
  try {
    return JSON.parse(data.toString('utf8'))
  } catch {
    return undefined // as good as any other frame that is none
  }
}
