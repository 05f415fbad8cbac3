// main-process.ts: the command of a sandbox, through whatever number of connections to its berth-init. Output goes to
// two sinks and is acknowledged only once it is stored there, so berth-init still has what the agent did not keep.
// A new connection (after a restart of the agent, or a dropped one) resumes from what the sinks hold.

import { InitClient, type ProcessInfo } from './init-client.js'
import {
  type FailedStage,
  type InitEvent,
  MAX_DATA_BYTES,
  type ProcessExit,
  type SpawnRequest,
  STDIN_WINDOW_BYTES,
  type StreamName,
  type signalScopes,
} from './init-wire.js'

/** The number that berth-init knows the command by; others are for processes started later. */
const MAIN = 1

/** A connection that ends again and again without any event in between is taken for a dead sandbox. */
const MAX_IDLE_CONNECTIONS = 3

const EINVAL = 22

/** Where one output stream goes. */
export interface OutputSink {
  /** The stream goes on at this offset; everything before is stored, or was dropped on purpose. */
  resume(offset: number): void
  /**
   * Takes bytes of the stream; those below what it has are repeats.
   * @param stored called, possibly once for several appends, with the offset up to which everything is stored
   */
  append(offset: number, bytes: Buffer, stored: (offset: number) => void): void
  /** Resolves when everything taken is stored. */
  settled(): Promise<void>
}

export interface MainOptions {
  readonly socket: string
  readonly spawn: SpawnRequest
  readonly stdin: Uint8Array | undefined
  readonly sinks: Readonly<Record<StreamName, OutputSink>>
  /** Told once, and once more after a restart of the agent. @param sinceMs how long ago the exec succeeded */
  readonly onStarted: (sinceMs: number) => void
  /** For connecting and greeting. */
  readonly timeoutMs: number
}

/** How the command ended: it exited, it never ran, or its sandbox vanished without a word. */
export type MainEnd =
  | { readonly kind: 'exited'; readonly exit: ProcessExit }
  | { readonly kind: 'failed'; readonly stage: FailedStage; readonly errno: number }
  | { readonly kind: 'gone'; readonly error: Error }

/** Starts the command unless the sandbox knows of it, and follows it to its end. */
export class MainProcess {
  readonly #options: MainOptions
  #client: InitClient | undefined
  #end: MainEnd | undefined
  #started = false
  #stdinSent = 0
  #stdinAcked = 0
  #stdinEnded = false
  #events = 0
  #abandoned = false
  /** Resolves once, when the command has ended and all its output is stored. */
  readonly ended: Promise<MainEnd>

  constructor(options: MainOptions) {
    this.#options = options
    this.ended = this.#follow()
  }

  /** @param scope `sandbox`: everything but berth-init */
  signal(signal: number, scope: keyof typeof signalScopes): void {
    this.#client?.send({ type: 'signal', proc: MAIN, signal, scope })
  }

  /** Ends the connection and leaves the command alone: another agent process may go on with it. */
  abandon(): void {
    this.#abandoned = true
    this.#client?.close()
  }

  async #follow(): Promise<MainEnd> {
    for (let idle = 0; ; idle++) {
      const before = this.#events
      const error = await this.#connection()
      if (this.#end) {
        const { stdout, stderr } = this.#options.sinks
        await Promise.all([stdout.settled(), stderr.settled()])
        return this.#end
      }
      if (this.#events > before) idle = 0
      if (error || this.#abandoned || idle >= MAX_IDLE_CONNECTIONS)
        return { kind: 'gone', error: error ?? new Error('the connection to berth-init ended') }
    }
  }

  /** One connection from its greeting to its end. @returns why there was none */
  async #connection(): Promise<Error | undefined> {
    const { socket, timeoutMs } = this.#options
    try {
      this.#client = await InitClient.open(socket, { timeoutMs })
    } catch (error) {
      return error instanceof Error ? error : new Error(String(error))
    }
    if (this.#abandoned) this.#client.close()
    else this.#begin(this.#client)
    await this.#client.closed
    return undefined
  }

  #begin(client: InitClient): void {
    const known = client.processes.find((process) => process.proc === MAIN)
    if (known) this.#resume(known)
    else this.#spawn(client)
    this.#stdinEnded = false
    this.#pumpStdin()
    client.listen((event) => this.#receive(event))
  }

  #resume(known: ProcessInfo): void {
    this.#options.sinks.stdout.resume(known.stdout.start)
    this.#options.sinks.stderr.resume(known.stderr.start)
    this.#stdinSent = known.stdinExpected
    // How much of that the command has taken is told by a STDIN_ACK that follows. Until then a whole window counts as
    // in flight: input beyond what berth-init has room for is refused, and what is refused is not sent again.
    this.#stdinAcked = Math.max(0, known.stdinExpected - STDIN_WINDOW_BYTES)
  }

  /** A connection may have ended with the SPAWN on its way: then the input sent behind it is lost too. */
  #spawn(client: InitClient): void {
    this.#stdinSent = 0
    this.#stdinAcked = 0
    client.send({ type: 'spawn', proc: MAIN, spawn: this.#options.spawn })
  }

  #receive(event: InitEvent): void {
    this.#events += 1
    if (!('proc' in event) || event.proc !== MAIN) return
    switch (event.type) {
      case 'started':
        this.#started = true
        this.#options.onStarted(Number(process.hrtime.bigint() - event.monotonicNs) / 1e6)
        break
      case 'data':
        this.#store(event.stream, event.offset, event.bytes)
        break
      case 'stdinAck':
        this.#stdinAcked = Math.max(this.#stdinAcked, event.offset)
        this.#pumpStdin()
        break
      case 'failed':
        this.#finish({ kind: 'failed', stage: event.stage, errno: event.errno })
        break
      case 'exit':
        this.#finish({ kind: 'exited', exit: event.exit })
        break
      case 'error':
        // EINVAL before it runs: the SPAWN itself was refused. Anything else is a signal or input that came too late.
        if (!this.#started && event.errno === EINVAL)
          this.#finish({ kind: 'failed', stage: 'setup', errno: event.errno })
        break
    }
  }

  #store(stream: StreamName, offset: number, bytes: Buffer): void {
    this.#options.sinks[stream].append(offset, bytes, (stored) =>
      this.#client?.send({ type: 'ack', proc: MAIN, stream, offset: stored }),
    )
  }

  #finish(end: MainEnd): void {
    this.#end ??= end
    this.#client?.close()
  }

  #pumpStdin(): void {
    const { stdin } = this.#options
    if (!stdin || !this.#client) return
    while (this.#stdinSent < stdin.length) {
      const room = Math.min(MAX_DATA_BYTES, this.#stdinAcked + STDIN_WINDOW_BYTES - this.#stdinSent)
      if (room <= 0) return
      const bytes = stdin.subarray(this.#stdinSent, this.#stdinSent + room)
      this.#client.send({ type: 'stdin', proc: MAIN, offset: this.#stdinSent, bytes })
      this.#stdinSent += bytes.length
    }
    if (this.#stdinEnded) return
    this.#stdinEnded = true
    this.#client.send({ type: 'stdinEof', proc: MAIN, total: stdin.length })
  }
}
