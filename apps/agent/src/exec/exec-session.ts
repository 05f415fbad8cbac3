// exec-session.ts: one exec, from its process to what is told of it. Its end is told once all its output is stored and the
// end itself is on disk; only then berth-init may forget it. What it leaves in the background may hold its output beyond
// its end: then the exec has ended for everybody, and berth-init keeps the pipe open until nobody holds it any more, so
// that no survivor dies of writing to it.

import { mkdirSync, rmSync, writeFileSync } from 'node:fs'
import { type FileHandle, open, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { setImmediate as nextTurn } from 'node:timers/promises'
import { type Exec, errnoOf, Failure, invariant, type OutputStream } from '@berth/contracts'
import { encoded, inlineStream } from '@berth/domain'
import type { Logger } from '@berth/telemetry'
import { Changes } from '../logs/changes.js'
import { Spool, type SpoolOptions } from '../logs/spool.js'
import { type MainEnd, type SandboxProcess, UnknownProcess } from '../runtime/processes.js'
import type { ExecOutcome } from './exec.plan.js'
import type { ExecStreams } from './exec-output.js'
import type { ExecEnd, ExecRecord } from './exec-record.js'

/** What a session needs of the sandbox that it belongs to. */
export interface SessionHooks {
  /** Directory of all execs of the sandbox. */
  readonly directory: string
  readonly log: Logger
  /** Writes the record down. @throws Fault when the disk is full */
  readonly store: (record: ExecRecord) => void
  readonly outcome: (end: MainEnd, record: ExecRecord) => ExecOutcome
  /** Another segment of output was begun. */
  readonly onSegment: () => void
  /** Its end was told; what is `held` will be let go of later. */
  readonly onEnded: (session: ExecSession) => void
  /** It has let go of everything but its files. */
  readonly onOver: (session: ExecSession) => void
  /** It was never started. */
  readonly onNever: (session: ExecSession) => void
}

/** Most of each stream in an answer of JSON: the last of it. */
const INLINE_BYTES = 1024 * 1024
const INPUT_BYTES = 64 * 1024
/** A stream of at most so many bytes is in the record of the end, and in no file. */
const INLINE_RECORD_BYTES = 2 * 1024
const SIGKILL = 9

export class ExecSession implements ExecStreams {
  readonly changes = new Changes()
  readonly stdout: Spool
  readonly stderr: Spool
  /** Resolves once its end is told. */
  readonly ended: Promise<void>
  readonly #hooks: SessionHooks
  readonly #gone = new AbortController()
  #record: ExecRecord
  #process: SandboxProcess | undefined
  #pid: number | null = null
  #tellEnded: () => void = () => undefined
  #over: Promise<void> = Promise.resolve()

  private constructor(
    record: ExecRecord,
    hooks: SessionHooks,
    openSpool: (options: SpoolOptions, held: Buffer | undefined) => Spool,
  ) {
    this.#record = record
    this.#hooks = hooks
    const open = (name: OutputStream) => openSpool(this.#spoolOptions(name), heldOf(record, name))
    this.stdout = open('stdout')
    this.stderr = open('stderr')
    this.ended = new Promise((resolve) => {
      this.#tellEnded = resolve
    })
    if (record.end) this.#tellEnded()
  }

  /** An exec that has nothing on disk but its record. */
  static begin(record: ExecRecord, hooks: SessionHooks): ExecSession {
    return new ExecSession(record, hooks, (options) => Spool.begin(options))
  }

  /** An exec that has ended, or of a former agent. */
  static reopen(record: ExecRecord, hooks: SessionHooks): ExecSession {
    const session = new ExecSession(record, hooks, (options, held) => Spool.resume(options, held))
    session.stdout.resume(record.end?.stdout.bytes ?? 0)
    session.stderr.resume(record.end?.stderr.bytes ?? 0)
    return session
  }

  get record(): ExecRecord {
    return this.#record
  }

  /** It has ended; see `ExecStreams`. */
  get over(): boolean {
    return this.#record.end !== null
  }

  /** Something holds its process, or its output, still. */
  get live(): boolean {
    return this.#process !== undefined
  }

  /** Bytes on disk. */
  get kept(): number {
    return this.stdout.kept + this.stderr.kept
  }

  /** Aborted when it is deleted, or its sandbox is, or the agent stops. */
  get gone(): AbortSignal {
    return this.#gone.signal
  }

  get stdinBytes(): number {
    return this.#process?.stdinAccepted ?? this.#record.end?.stdinBytes ?? 0
  }

  get pid(): number | null {
    return this.#record.end?.pid ?? this.#pid
  }

  /** Puts the whole input where it survives the agent. Before `follow`. */
  placeInput(input: Buffer): void {
    mkdirSync(this.#directory, { recursive: true, mode: 0o700 })
    writeFileSync(this.#inputPath, input, { mode: 0o600 })
  }

  /** Goes with the process to its end. */
  follow(process: SandboxProcess): void {
    invariant(!this.#process, `exec ${this.#record.id} has one process`)
    this.#process = process
    this.#over = this.#live(process).catch((err: unknown) => {
      this.#hooks.log.error({ exec: this.#record.id, err }, 'exec.failed')
    })
    const { hasInput, inputEnd, end } = this.#record
    if (hasInput && !end) void this.#feed(process)
    else if (inputEnd !== null && !end) void this.#feeding(async () => void (await process.endInput(inputEnd)))
  }

  /** It ended without a process to go with. */
  conclude(end: MainEnd | ExecOutcome): void {
    this.#finish('kind' in end ? this.#hooks.outcome(end, this.#record) : end, false)
    this.#over = this.#letGo()
  }

  /** Resolves once it runs, or never will. */
  async started(): Promise<void> {
    await this.#process?.started
  }

  /** What is told of it now. */
  view(): Exec {
    const { stdinBytes, pid } = this
    return viewOf(this.#record, { ...this.#ends(), stdinBytes, pid })
  }

  /** The same with the last of its output, once it has ended. */
  async viewWithOutput(): Promise<Exec> {
    if (!this.over) return this.view()
    const part = async (spool: Spool) => {
      const { offset, bytes } = await spool.tail(INLINE_BYTES)
      return inlineStream({ data: bytes, from: offset, bytes: offset + bytes.length })
    }
    const [stdout, stderr] = [await part(this.stdout), await part(this.stderr)]
    return { ...this.view(), output: { stdout, stderr } }
  }

  /**
   * Writes input at an offset, or after all that was taken. Resolves once berth-init has it.
   * @throws Failure `wrong_state`, `input_gap`, `unavailable`
   */
  async write(offset: number | undefined, bytes: Uint8Array): Promise<void> {
    await this.#running('takes input').write(offset, bytes)
  }

  /** Ends the input, after `total` bytes or where it is; of an exec that has ended it is over. @throws as `write` */
  async endInput(total?: number): Promise<void> {
    if (this.over) return
    const inputEnd = await this.#running('takes input').endInput(total)
    // For the agent after this one: berth-init may not have been told yet.
    if (!this.over) this.#store({ ...this.#record, inputEnd })
  }

  /** @throws Failure `wrong_state` once it has ended */
  signal(signal: number, scope: 'process' | 'group'): void {
    this.#running('takes signals').signal(signal, scope)
  }

  /** @throws Failure `wrong_state` once it has ended, or without a terminal */
  resize(rows: number, columns: number): void {
    const process = this.#running('can be resized')
    if (!this.#record.spec.tty) throw new Failure('wrong_state', 'the exec has no terminal')
    process.resize(rows, columns)
  }

  /** Kills it if it runs, cuts off who reads it, and removes its files. Resolves when nothing is left of it. */
  async discard(): Promise<void> {
    this.#gone.abort()
    if (this.#process && !this.over) {
      this.#process.signal(SIGKILL, 'group')
      this.#process.signal(SIGKILL, 'process')
      await this.ended
    }
    this.#process?.forget()
    await this.#over
    await Promise.all([this.stdout.discard(), this.stderr.discard()])
    await rm(this.#directory, { recursive: true, force: true })
  }

  /** Leaves the process to another agent. */
  async abandon(): Promise<void> {
    this.#process = undefined
    this.#gone.abort()
    await Promise.all([this.stdout.close(), this.stderr.close()])
  }

  get #directory(): string {
    return join(this.#hooks.directory, this.#record.directory)
  }

  get #inputPath(): string {
    return join(this.#directory, 'input')
  }

  #spoolOptions(name: OutputStream): SpoolOptions {
    const { changes } = this
    const { onSegment } = this.#hooks
    const { outputBytes: keepBytes } = this.#record.spec
    return { directory: this.#directory, name, keepBytes, changes, onSegment, holdBytes: INLINE_RECORD_BYTES }
  }

  #running(what: string): SandboxProcess {
    if (this.#process && !this.over) return this.#process
    throw new Failure('wrong_state', `exec ${this.#record.id} has ended: only one that runs ${what}`)
  }

  async #live(process: SandboxProcess): Promise<void> {
    let outputEnded = false
    void process.outputEnded.then(() => {
      outputEnded = true
    })
    const start = await process.started
    if (start.kind === 'started') this.#pid = start.pid
    this.changes.tell()
    const end = await process.ended
    if (this.#process !== process) return // abandoned
    if (end.kind === 'gone' && end.error instanceof UnknownProcess) return this.#never()
    if (!this.over) this.#finish(this.#hooks.outcome(end, this.#record), !outputEnded)
    if (this.#record.held) {
      await process.outputEnded
      if (this.#process !== process) return
      this.#release()
    }
    this.#process = undefined
    await this.#letGo(process)
  }

  #finish(outcome: ExecOutcome, held: boolean): void {
    const end: ExecEnd = {
      ...outcome,
      state: outcome.state === 'running' ? 'lost' : outcome.state,
      endedAt: new Date().toISOString(),
      ...this.#ends(),
      inline: this.#inline(),
      stdinBytes: this.stdinBytes,
      pid: this.#pid,
    }
    this.#store({ ...this.#record, end, held })
    if (this.#record.hasInput) rmSync(this.#inputPath, { force: true })
    this.#tellEnded()
    this.changes.tell()
    this.#hooks.onEnded(this)
  }

  /** Nothing was told of it to anybody; or it had ended, and was forgotten. */
  async #never(): Promise<void> {
    this.#process = undefined
    if (this.over) {
      this.#release()
      return this.#letGo()
    }
    this.#gone.abort()
    await Promise.all([this.stdout.end(), this.stderr.end()])
    this.#hooks.onNever(this)
    this.#tellEnded()
  }

  /** Nobody holds its output any more: it has more of it than at its end. */
  #release(): void {
    const { end } = this.#record
    invariant(end, 'only what has ended is held')
    this.#store({ ...this.#record, end: { ...end, ...this.#ends(), inline: this.#inline() }, held: false })
  }

  #inline(): ExecEnd['inline'] {
    const inline = ({ held }: Spool) => (held && held.length > 0 ? encoded(held) : null)
    return { stdout: inline(this.stdout), stderr: inline(this.stderr) }
  }

  #ends(): Pick<ExecEnd, 'stdout' | 'stderr'> {
    const [stdout, stderr] = [this.stdout, this.stderr].map((spool) => ({ bytes: spool.total, from: spool.from }))
    invariant(stdout && stderr, 'there are two streams')
    return { stdout, stderr }
  }

  async #letGo(process?: SandboxProcess): Promise<void> {
    // Who waited for the end is answered first, and reads the last bytes from files that are still open.
    await nextTurn()
    process?.forget()
    await Promise.all([this.stdout.end(), this.stderr.end()])
    this.#hooks.onOver(this)
  }

  /** A full disk must not keep an end from being told; another agent would then take the exec for lost. */
  #store(record: ExecRecord): void {
    this.#record = record
    try {
      this.#hooks.store(record)
    } catch (err) {
      this.#hooks.log.error({ exec: record.id, err }, 'exec.not_stored')
    }
  }

  /** Writes the whole input, from the beginning also after a restart: what the command has is dropped as a repeat. */
  async #feed(process: SandboxProcess): Promise<void> {
    await this.#feeding(async () => {
      const file = await open(this.#inputPath, 'r')
      try {
        await process.endInput(await copyInput(file, process))
      } finally {
        await file.close()
      }
    })
  }

  /** It may end without taking its input, which its exit code has to tell. */
  async #feeding(work: () => Promise<void>): Promise<void> {
    try {
      await work()
    } catch (err) {
      if (err instanceof Failure || errnoOf(err) === 'ENOENT') return
      this.#hooks.log.error({ exec: this.#record.id, err }, 'exec.input_failed')
    }
  }
}

/** @returns how much it was */
async function copyInput(file: FileHandle, process: SandboxProcess): Promise<number> {
  for (let at = 0; ; ) {
    const { bytesRead, buffer } = await file.read(Buffer.allocUnsafe(INPUT_BYTES), 0, INPUT_BYTES, at)
    if (bytesRead === 0) return at
    await process.write(at, buffer.subarray(0, bytesRead))
    at += bytesRead
  }
}

type Now = Pick<Exec, 'stdout' | 'stderr' | 'stdinBytes' | 'pid'>

/** An exec as it is told. @param now what changes while it runs; of one that has ended it is on record */
export function viewOf(
  { id, spec, createdAt, end }: ExecRecord,
  now: Now | null = end && { stdout: end.stdout, stderr: end.stderr, stdinBytes: end.stdinBytes, pid: end.pid },
): Exec {
  const { inline: _, ...status } = end ?? running
  return { id, spec, createdAt, ...status, ...(now ?? nothingYet) }
}

function heldOf({ end }: ExecRecord, name: OutputStream): Buffer | undefined {
  const inline = end?.inline[name]
  return inline ? Buffer.from(inline.data, inline.encoding) : undefined
}

const running = {
  inline: null,
  state: 'running',
  exitCode: null,
  signal: null,
  timedOut: false,
  oomKilled: false,
  message: null,
  usage: null,
  endedAt: null,
} as const

const nothingYet = { stdout: { bytes: 0, from: 0 }, stderr: { bytes: 0, from: 0 }, stdinBytes: 0, pid: null }
