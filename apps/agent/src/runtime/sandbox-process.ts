// sandbox-process.ts: one process of a sandbox, through whatever number of connections to its berth-init. Output goes to
// sinks and is acknowledged only once it is stored there, so berth-init still has what the agent did not keep. A new
// connection (after a restart of the agent, or a broken one) goes on from what the sinks hold and berth-init has.

import { Failure } from '@berth/contracts'
import type { Logger } from '@berth/telemetry'
import type { ProcessInfo } from './init-client.js'
import {
  type FailedStage,
  type InitEvent,
  type InitRequest,
  type ProcessExit,
  type SpawnRequest,
  type StreamName,
  type signalScopes,
  spawnFlags,
} from './init-wire.js'
import { InputQueue, MAX_QUEUED_BYTES } from './input-queue.js'

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

export type OutputSinks = Readonly<Record<StreamName, OutputSink>>

/** How a process ended: it exited, it never ran, or its sandbox vanished without a word. */
export type MainEnd =
  | { readonly kind: 'exited'; readonly exit: ProcessExit }
  | { readonly kind: 'failed'; readonly stage: FailedStage; readonly errno: number }
  | { readonly kind: 'gone'; readonly error: Error }

/** Of a process that was to be gone on with: it was never started, or ended so long ago that it is forgotten. */
export class UnknownProcess extends Error {
  constructor(proc: number) {
    super(`berth-init does not know process ${proc}`)
    this.name = 'UnknownProcess'
  }
}

/** It runs. `pid` is the one in the sandbox; `sinceMs` is how long ago its exec succeeded. */
export interface Started {
  readonly kind: 'started'
  readonly pid: number
  readonly sinceMs: number
}

export interface SandboxProcess {
  readonly proc: number
  /** Resolves once it runs, or has ended without. */
  readonly started: Promise<Started | MainEnd>
  /** Resolves once it has ended and all output of it so far is stored. Children of it may still write. */
  readonly ended: Promise<MainEnd>
  /** Resolves once nobody holds its output any more, or nothing of it can come. */
  readonly outputEnded: Promise<void>
  /** Offset up to which berth-init has the input: where more goes on. */
  readonly stdinAccepted: number
  /**
   * Writes input at an offset, or after all that was taken; what was taken before is dropped as a repeat. Resolves once
   * berth-init has it all.
   * @throws Failure `input_gap`, `wrong_state` (no input, or ended), `unavailable` (too much waits already)
   */
  write(offset: number | undefined, bytes: Uint8Array): Promise<void>
  /**
   * Ends the input, which must have `total` bytes, or where it is. Repeats are fine.
   * @returns where it ends
   * @throws Failure `input_gap`, `wrong_state`
   */
  endInput(total?: number): Promise<number>
  /** To a process that has ended: nothing. `sandbox`: everything but berth-init. */
  signal(signal: number, scope: keyof typeof signalScopes): void
  resize(rows: number, columns: number): void
  /** Lets berth-init drop all of it, once its end is on disk. Whoever still holds its output is cut off. */
  forget(): void
}

/** What a process needs of its connection. */
export interface Wire {
  send(request: InitRequest): void
}

/** Signals and sizes kept for the next connection; more than that are from somebody who does not look. */
const MAX_UNSENT = 256

const EINVAL = 22

export class FollowedProcess implements SandboxProcess {
  readonly #spawn: SpawnRequest
  readonly #resumed: boolean
  readonly #sinks: OutputSinks
  readonly #log: Logger
  readonly #onForget: (process: FollowedProcess) => void
  readonly #input = new InputQueue()
  readonly #started = deferred<Started | MainEnd>()
  readonly #ended = deferred<MainEnd>()
  readonly #outputEnded = deferred<void>()
  /** Resolves when it is known where input goes on. */
  readonly #ready = deferred<void>()
  readonly #openStreams = new Set<StreamName>(['stdout', 'stderr'])
  #unsent: InitRequest[] = []
  #early = 0
  #wire: Wire | undefined
  #running = false
  #end: MainEnd | undefined

  constructor(
    readonly proc: number,
    options: {
      readonly spawn: SpawnRequest
      /** It is only gone on with: what berth-init does not know is not started. */
      readonly resumed?: boolean
      readonly sinks: OutputSinks
      readonly log: Logger
      readonly onForget: (process: FollowedProcess) => void
    },
  ) {
    this.#spawn = options.spawn
    this.#resumed = options.resumed ?? false
    this.#sinks = options.sinks
    this.#log = options.log
    this.#onForget = options.onForget
    if ((this.#spawn.flags & (spawnFlags.tty | spawnFlags.stderrToStdout)) !== 0) this.#openStreams.delete('stderr')
  }

  get started(): Promise<Started | MainEnd> {
    return this.#started.promise
  }

  get ended(): Promise<MainEnd> {
    return this.#ended.promise
  }

  get outputEnded(): Promise<void> {
    return this.#outputEnded.promise
  }

  get stdinAccepted(): number {
    return this.#input.accepted
  }

  async write(offset: number | undefined, bytes: Uint8Array): Promise<void> {
    this.#mustTakeInput()
    if (this.#early + bytes.length > MAX_QUEUED_BYTES)
      throw new Failure('unavailable', 'too much input waits for the process to start')
    this.#early += bytes.length
    await this.#ready.promise
    this.#early -= bytes.length
    const accepted = this.#input.take(offset ?? this.#input.end, bytes)
    this.#pump()
    await accepted
  }

  async endInput(total?: number): Promise<number> {
    this.#mustTakeInput()
    await this.#ready.promise
    const end = total ?? this.#input.end
    if (this.#end) return end
    this.#input.finish(end)
    this.#pump()
    return end
  }

  signal(signal: number, scope: keyof typeof signalScopes): void {
    this.#tell({ type: 'signal', proc: this.proc, signal, scope })
  }

  resize(rows: number, columns: number): void {
    this.#unsent = this.#unsent.filter(({ type }) => type !== 'resize')
    this.#tell({ type: 'resize', proc: this.proc, rows, columns })
  }

  forget(): void {
    this.#onForget(this)
  }

  /** A connection began. @param known what berth-init knows of it; undefined: nothing, so it is started */
  connect(wire: Wire, known: ProcessInfo | undefined): void {
    if (known === undefined && this.#end) return
    if (known === undefined && (this.#running || this.#resumed)) {
      this.lose(new UnknownProcess(this.proc))
      return
    }
    this.#wire = wire
    if (known) this.#resume(known)
    else wire.send({ type: 'spawn', proc: this.proc, spawn: this.#spawn })
    this.#input.reconnect(known?.stdinExpected ?? 0, known === undefined)
    this.#ready.resolve()
    for (const request of this.#unsent.splice(0)) wire.send(request)
    this.#pump()
  }

  disconnect(): void {
    this.#wire = undefined
  }

  /** Nothing of it can come any more. */
  lose(error: Error): void {
    this.#wire = undefined
    this.#finish({ kind: 'gone', error })
    this.#outputEnded.resolve()
  }

  receive(event: InitEvent): void {
    switch (event.type) {
      case 'started': {
        this.#running = true
        const sinceMs = Math.max(0, Number(process.hrtime.bigint() - event.monotonicNs) / 1e6)
        this.#started.resolve({ kind: 'started', pid: event.pid, sinceMs })
        break
      }
      case 'data':
        this.#store(event.stream, event.offset, event.bytes)
        break
      case 'eof':
        this.#openStreams.delete(event.stream)
        if (this.#openStreams.size === 0) this.#outputEnded.resolve()
        break
      case 'stdinAck':
        this.#input.acknowledge(event.offset)
        this.#pump()
        break
      case 'failed':
        this.#finish({ kind: 'failed', stage: event.stage, errno: event.errno })
        this.#outputEnded.resolve()
        break
      case 'exit':
        this.#finish({ kind: 'exited', exit: event.exit })
        break
      case 'error':
        this.#refused(event.errno, event.message)
        break
    }
  }

  #resume(known: ProcessInfo): void {
    this.#running = known.state !== 'starting'
    this.#sinks.stdout.resume(known.stdout.start)
    this.#sinks.stderr.resume(known.stderr.start)
  }

  #store(stream: StreamName, offset: number, bytes: Buffer): void {
    // The connection at the time of the acknowledgement, not of the data: a newer one has its own beginning.
    this.#sinks[stream].append(offset, bytes, (stored) =>
      this.#wire?.send({ type: 'ack', proc: this.proc, stream, offset: stored }),
    )
  }

  /** EINVAL before it runs: the SPAWN itself was refused. Anything else is a signal or input that came too late. */
  #refused(errno: number, message: string): void {
    if (!this.#running && errno === EINVAL) this.#finish({ kind: 'failed', stage: 'setup', errno })
    else this.#log.debug({ proc: this.proc, errno, message }, 'process.request_refused')
  }

  #tell(request: InitRequest): void {
    if (this.#end) return
    if (this.#wire) this.#wire.send(request)
    else if (this.#unsent.length < MAX_UNSENT) this.#unsent.push(request)
    else throw new Failure('unavailable', 'the sandbox does not answer, and too much waits for it')
  }

  #mustTakeInput(): void {
    if ((this.#spawn.flags & (spawnFlags.stdin | spawnFlags.tty)) === 0)
      throw new Failure('wrong_state', 'the process has no input')
  }

  #pump(): void {
    if (!this.#wire) return
    for (let step = this.#input.next(); step; step = this.#input.next())
      this.#wire.send(
        step.kind === 'end'
          ? { type: 'stdinEof', proc: this.proc, total: step.total }
          : { type: 'stdin', proc: this.proc, offset: step.offset, bytes: step.bytes },
      )
  }

  #finish(end: MainEnd): void {
    if (this.#end) return
    this.#end = end
    this.#unsent = []
    this.#input.close(() => new Failure('wrong_state', 'the process has ended'))
    this.#ready.resolve()
    this.#started.resolve(end)
    void Promise.all([this.#sinks.stdout.settled(), this.#sinks.stderr.settled()])
      .catch((err: unknown) => this.#log.error({ proc: this.proc, err }, 'process.output_lost'))
      .finally(() => this.#ended.resolve(end))
  }
}

/** Takes output for nobody. */
export const discard: OutputSink = {
  resume: () => undefined,
  append: (offset, bytes, stored) => stored(offset + bytes.length),
  settled: () => Promise.resolve(),
}

function deferred<T>() {
  let resolve: (value: T) => void = () => undefined
  const promise = new Promise<T>((settle) => {
    resolve = settle
  })
  return { promise, resolve }
}
