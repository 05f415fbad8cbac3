// terminal-session.ts: one terminal, from its process to what is told of it. Output goes to a spool first and is
// acknowledged once it is there; the screen and every viewer read it from there, each at its own pace.

import { mkdirSync } from 'node:fs'
import { rm } from 'node:fs/promises'
import { join } from 'node:path'
import {
  Failure,
  KiB,
  MiB,
  type Terminal,
  type TerminalMessage,
  type TerminalMode,
  type TerminalSize,
} from '@berth/contracts'
import { closeCodes, type WebSocket } from '@berth/node-rpc'
import type { Logger } from '@berth/telemetry'
import { Changes } from '../logs/changes.js'
import { Spool } from '../logs/spool.js'
import { discard, type OutputSinks, type SandboxProcess, UnknownProcess } from '../runtime/processes.js'
import { Recording } from './asciicast.js'
import type { Drawing } from './drawing.js'
import { KeptScreen, type ScreenView } from './kept-screen.js'
import { sandboxEnded, type TerminalEnd, terminalEnd } from './terminal.plan.js'
import type { TerminalRecord } from './terminal-record.js'
import { type Viewed, Viewer } from './viewer.js'

/** What a session needs of the sandbox that it belongs to. */
export interface TerminalHooks {
  /** Directory of all terminals of the sandbox. */
  readonly directory: string
  readonly drawing: Drawing
  readonly log: Logger
  readonly store: (record: TerminalRecord) => void
  /** Somebody typed, or it printed: activity of the sandbox. */
  readonly touch: () => void
  /** Its end was told. */
  readonly onEnded: (session: TerminalSession) => void
}

/** Output that is kept for viewers that come back. */
const KEEP_BYTES = 4 * MiB
/** Where even the fastest viewer is further behind, the program is slowed down, by little: it never stands still. */
const PACE_ABOVE = 512 * KiB
const PACE_MS = 50
/** How often it is looked whether the screen has caught up. */
const LOOK_MS = 10
/** Viewers of one terminal. */
const MAX_VIEWERS = 64
const TOO_MANY_VIEWERS = 4429
const SIGHUP = 1
const SIGKILL = 9
/** A program that does not go when its terminal is hung up is killed after this. */
const HANG_UP_MS = 2_000

export class TerminalSession implements Viewed {
  readonly changes = new Changes()
  readonly spool: Spool
  /** Resolves once its end is told. */
  readonly ended: Promise<void>
  readonly #hooks: TerminalHooks
  readonly #gone = new AbortController()
  readonly #viewers = new Set<Viewer>()
  /** Acknowledgements that wait for viewers, up to a time (of `performance.now()`), or for the screen; in their order. */
  #held: { readonly acknowledge: () => void; readonly until: number }[] = []
  #look: NodeJS.Timeout | undefined
  readonly #recording: Recording | undefined
  #record: TerminalRecord
  #process: SandboxProcess | undefined
  readonly #screen: KeptScreen
  #activeAt = new Date()
  #tellEnded: () => void = () => undefined

  private constructor(record: TerminalRecord, hooks: TerminalHooks, resumed: boolean) {
    this.#record = record
    this.#hooks = hooks
    const directory = join(hooks.directory, record.directory)
    mkdirSync(directory, { recursive: true, mode: 0o700 })
    const options = { directory, name: 'output', keepBytes: KEEP_BYTES, changes: this.changes }
    this.spool = resumed ? Spool.resume(options) : Spool.begin(options)
    if (record.end) this.spool.resume(record.end.bytes)
    const { rows, columns, spec, createdAt } = record
    if (spec.record && !record.end)
      this.#recording = new Recording({
        path: this.recordingPath,
        startedAt: new Date(createdAt),
        size: { rows, columns },
        command: spec.command,
      })
    this.ended = new Promise((resolve) => {
      this.#tellEnded = resolve
    })
    if (record.end) this.#tellEnded()
    this.#screen = new KeptScreen({
      directory,
      spool: this.spool,
      keepBytes: KEEP_BYTES,
      size: { rows, columns },
      over: record.end !== null,
      drawing: hooks.drawing,
      log: hooks.log.child({ terminal: record.id }),
      onTitle: (title) => this.tell({ type: 'title', title }),
    })
  }

  /** A terminal that has nothing on disk but its record. */
  static begin(record: TerminalRecord, hooks: TerminalHooks): TerminalSession {
    return new TerminalSession(record, hooks, false)
  }

  /** One of a former agent. */
  static reopen(record: TerminalRecord, hooks: TerminalHooks): TerminalSession {
    return new TerminalSession(record, hooks, true)
  }

  get record(): TerminalRecord {
    return this.#record
  }

  /** It has ended. */
  get over(): boolean {
    return this.#record.end !== null
  }

  get title(): string {
    return this.#record.end?.title ?? this.#screen.title
  }

  get recordingPath(): string {
    return join(this.#hooks.directory, this.#record.directory, 'recording.cast')
  }

  /** Where its process' output goes. */
  get sinks(): OutputSinks {
    const { spool } = this
    return {
      stdout: {
        resume: (offset) => spool.resume(offset),
        append: (offset, bytes, stored) => {
          this.#note()
          const known = spool.total
          spool.append(offset, bytes, (total) => {
            this.#recordOutput(bytes.subarray(Math.max(0, known - offset)))
            this.#pace(() => stored(total))
          })
        },
        settled: () => spool.settled(),
      },
      stderr: discard,
    }
  }

  /** Goes with the process to its end. */
  follow(process: SandboxProcess): void {
    this.#process = process
    void this.#live(process).catch((err: unknown) => {
      this.#hooks.log.error({ terminal: this.#record.id, err }, 'terminal.failed')
    })
  }

  /** It ended without a process to go with. */
  async conclude(end: TerminalEnd = sandboxEnded): Promise<void> {
    if (!this.over) await this.#finish(end)
  }

  /** Resolves once it runs, or never will. */
  async started(): Promise<void> {
    await this.#process?.started
  }

  view(): Promise<ScreenView> {
    return this.#screen.view()
  }

  describe(): Terminal {
    const { id, spec, rows, columns, createdAt, end } = this.#record
    const count = (mode: TerminalMode) => [...this.#viewers].filter((viewer) => viewer.mode === mode).length
    return {
      id,
      state: end ? 'ended' : 'open',
      spec,
      rows,
      columns,
      title: this.title,
      bytes: this.spool.total,
      from: this.spool.from,
      viewers: { writers: count('write'), readers: count('read') },
      exitCode: end?.exitCode ?? null,
      signal: end?.signal ?? null,
      message: end?.message ?? null,
      createdAt,
      lastActivityAt: this.#activeAt.toISOString(),
      endedAt: end?.endedAt ?? null,
    }
  }

  /** Serves a viewer from its acceptance to its close. */
  async serve(
    socket: WebSocket,
    options: { readonly mode: TerminalMode; readonly since: number | undefined; readonly signal: AbortSignal },
  ): Promise<void> {
    const viewer = new Viewer(this, socket, options)
    if (this.#viewers.size >= MAX_VIEWERS) {
      viewer.close(TOO_MANY_VIEWERS, `the terminal has ${MAX_VIEWERS} viewers`)
      return
    }
    this.#viewers.add(viewer)
    const wake = () => this.changes.tell()
    socket.once('close', () => {
      this.#viewers.delete(viewer)
      wake()
    })
    await viewer.serve()
    if (this.#gone.signal.aborted) viewer.close(closeCodes.gone, 'the terminal was closed and forgotten')
  }

  /** Writes input. Resolves once the program's terminal has it. @returns false where it takes none */
  async write(bytes: Buffer): Promise<boolean> {
    if (!this.#process || this.over) return false
    this.#note()
    try {
      await this.#process.write(undefined, bytes)
      return true
    } catch (error) {
      if (error instanceof Failure) return false
      throw error
    }
  }

  resize(size: TerminalSize): void {
    const { rows, columns } = this.#record
    if (this.over || (rows === size.rows && columns === size.columns)) return
    this.#store({ ...this.#record, ...size })
    this.#process?.resize(size.rows, size.columns)
    this.#screen.resize(size)
    this.#recording?.resize(size, new Date())
    this.tell({ type: 'resize', ...size })
  }

  /** To the program's process group. @throws Failure `wrong_state` once it has ended */
  signal(signal: number): void {
    if (!this.#process || this.over)
      throw new Failure('wrong_state', `terminal ${this.#record.id} has ended: only an open one takes signals`)
    this.#process.signal(signal, 'group')
  }

  tell(message: TerminalMessage): void {
    for (const viewer of this.#viewers) viewer.tell(message)
  }

  /** Hangs up and, where that is not enough, kills. Resolves when it has ended. */
  async hangUp(): Promise<void> {
    const process = this.#process
    if (!process || this.over) return
    process.signal(SIGHUP, 'group')
    const kill = setTimeout(() => process.signal(SIGKILL, 'group'), HANG_UP_MS)
    await this.ended
    clearTimeout(kill)
  }

  /** Removes all of it; who looks at it is cut off. */
  async discard(): Promise<void> {
    await this.#letGo()
    await this.spool.discard()
    await rm(join(this.#hooks.directory, this.#record.directory), { recursive: true, force: true })
  }

  /** Leaves the process to another agent. */
  async abandon(): Promise<void> {
    this.#process = undefined
    await this.#letGo()
    await this.spool.close()
  }

  async #letGo(): Promise<void> {
    this.#gone.abort()
    this.changes.tell()
    for (const viewer of this.#viewers) viewer.close(closeCodes.goingAway, 'the node lets go of the terminal')
    await this.#screen.close()
  }

  #note(): void {
    this.#activeAt = new Date()
    this.#hooks.touch()
  }

  #recordOutput(bytes: Buffer): void {
    if (!this.#recording || bytes.length === 0) return
    try {
      this.#recording.output(bytes, new Date())
    } catch (err) {
      this.#hooks.log.error({ terminal: this.#record.id, err }, 'terminal.recording_failed')
    }
  }

  /** Acknowledges now, or a little later where nobody keeps up: berth-init then lets the program wait. */
  #pace(acknowledge: () => void): void {
    this.#held.push({ acknowledge, until: performance.now() + PACE_MS })
    this.advanced()
  }

  advanced(): void {
    if (this.#held.length === 0) return
    const now = performance.now()
    // It would wait for ever on a screen that nobody draws any more.
    const stands = this.#screen.behind && !this.#gone.signal.aborted
    const nearest = Math.max(...[...this.#viewers].map((viewer) => viewer.position))
    const slow = this.#viewers.size > 0 && this.spool.total - nearest > PACE_ABOVE
    const wait = this.#held.findIndex(({ until }) => stands || (slow && now < until))
    for (const { acknowledge } of this.#held.splice(0, wait < 0 ? this.#held.length : wait)) acknowledge()
    if (wait < 0) return
    this.#look ??= setTimeout(() => {
      this.#look = undefined
      this.advanced()
    }, LOOK_MS)
  }

  async #live(process: SandboxProcess): Promise<void> {
    await process.started
    this.changes.tell()
    const end = await process.ended
    if (this.#process !== process) return // abandoned
    const unknown = end.kind === 'gone' && end.error instanceof UnknownProcess
    if (!this.over)
      await this.#finish(unknown ? { ...sandboxEnded, message: 'it was never started' } : terminalEnd(end))
    process.forget()
    this.#process = undefined
  }

  async #finish({ exitCode, signal, message }: TerminalEnd): Promise<void> {
    await this.spool.end()
    await this.#screen.end()
    const endedAt = new Date().toISOString()
    const end = { exitCode, signal, message, bytes: this.spool.total, title: this.title, endedAt }
    this.#store({ ...this.#record, end })
    this.#tellEnded()
    this.changes.tell()
    this.#hooks.onEnded(this)
  }

  #store(record: TerminalRecord): void {
    this.#record = record
    try {
      this.#hooks.store(record)
    } catch (err) {
      this.#hooks.log.error({ terminal: record.id, err }, 'terminal.not_stored')
    }
  }
}
