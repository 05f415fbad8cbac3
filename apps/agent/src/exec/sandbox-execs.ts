// sandbox-execs.ts: the execs of one sandbox. What runs is a session in memory; what has ended is a line in the log of
// records and some files, opened when somebody asks for it. Everything that could grow is bounded: how many run and what
// they take in memory, how many ended ones are kept and for how long (ended-execs.ts), and what all take on disk.

import { randomBytes, randomUUID } from 'node:crypto'
import { mkdirSync } from 'node:fs'
import { join } from 'node:path'
import {
  type Exec,
  ExecId,
  type ExecSpec,
  type ExecState,
  Failure,
  GiB,
  HOUR,
  MiB,
  mintId,
  QuotaExceeded,
} from '@berth/contracts'
import type { Logger } from '@berth/telemetry'
import { UserNotFound } from '../runtime/identity.js'
import { type SpawnRequest, spawnFlags } from '../runtime/init-wire.js'
import type { MainEnd } from '../runtime/processes.js'
import { EndedExecs, type EndedLimits } from './ended-execs.js'
import { argumentBytes, execOutcome, specDigest, userNotFound, wasKilled } from './exec.plan.js'
import type { ExecDriver } from './exec-driver.js'
import { ExecRecord } from './exec-record.js'
import { ExecSession, type SessionHooks, viewOf } from './exec-session.js'
import { RecordLog } from './record-log.js'

export interface ExecLimits extends EndedLimits {
  /** Execs that run, or whose output is held by something they left behind. berth-init knows 256 processes. */
  readonly running: number
  /** Arguments and environments of those, which are in memory. */
  readonly runningBytes: number
  /** Output of all on disk. */
  readonly outputBytes: number
  /** Requests that use execs of the sandbox at the same moment. */
  readonly uses: number
}

const defaultLimits: ExecLimits = {
  running: 128,
  runningBytes: 4 * MiB,
  ended: 1000,
  endedMs: HOUR,
  recordBytes: 8 * MiB,
  outputBytes: 1 * GiB,
  uses: 512,
}

/** What the execs need of their sandbox. */
export interface ExecHome {
  /** Theirs alone. */
  readonly directory: string
  readonly memoryBytes: number
  readonly log: Logger
  /** Activity, for the sandbox's idle clock, until the returned function is called. */
  readonly occupy: () => () => void
  /** Processes of the sandbox that were killed for memory so far. */
  readonly oomKills: () => number
  readonly limits?: Partial<ExecLimits>
}

/** A run of the sandbox. */
export interface ExecRun {
  readonly driver: ExecDriver
  /** @throws UserNotFound */
  readonly plan: (spec: ExecSpec) => SpawnRequest
}

/** What has a process, or holds its output still. */
interface Running {
  /** Of its arguments. */
  readonly bytes: number
  /** It is no activity any more. */
  readonly leave: () => void
}

export class SandboxExecs {
  readonly #home: ExecHome
  readonly #limits: ExecLimits
  readonly #records: RecordLog
  readonly #hooks: SessionHooks
  /** What runs, is held, or is being used. */
  readonly #sessions = new Map<ExecId, ExecSession>()
  readonly #uses = new Map<ExecSession, number>()
  readonly #running = new Map<ExecId, Running>()
  readonly #ended: EndedExecs
  /** Neither ended nor known to run: of a former agent. */
  #unfinished: readonly ExecRecord[] = []
  readonly #deleting = new Map<ExecId, Promise<void>>()
  #balancing = false
  #run: ExecRun | undefined
  #oomKills = 0

  private constructor(home: ExecHome, records: RecordLog) {
    this.#home = home
    this.#limits = { ...defaultLimits, ...home.limits }
    this.#records = records
    this.#ended = new EndedExecs(home.directory, records, this.#limits, home.log)
    this.#hooks = {
      directory: home.directory,
      log: home.log,
      store: (record) => this.#records.set(record.id, record),
      outcome: (end, record) => this.#outcome(end, record),
      onSegment: () => void this.#balance(),
      onEnded: (session) => this.#noteEnd(session),
      onOver: (session) => this.#noteOver(session),
      onNever: (session) => this.#forget(session),
    }
  }

  /**
   * Opens what is on disk, or begins. What ran when it was written is resumed by `attach` or ended by `detach`.
   * @throws Fault when it is damaged
   */
  static open(home: ExecHome): SandboxExecs {
    mkdirSync(home.directory, { recursive: true, mode: 0o700 })
    const execs = new SandboxExecs(home, RecordLog.open(join(home.directory, 'records')))
    execs.#load()
    return execs
  }

  /**
   * A run of the sandbox is up. Waits for no process: those of a frozen sandbox answer when it goes on.
   * @param adopted it was before this agent: what ran in it goes on
   */
  attach(run: ExecRun, adopted: boolean): void {
    this.#oomKills = this.#home.oomKills()
    const unfinished = this.#unfinished
    this.#unfinished = []
    for (const record of unfinished) if (!adopted || !this.#resume(record, run.driver)) this.#lose(record)
    this.#run = run
  }

  /** There is no run, or no more: what ran is lost. Resolves when that is told. */
  async detach(): Promise<void> {
    this.#run = undefined
    for (const record of this.#unfinished) this.#lose(record)
    this.#unfinished = []
    await Promise.all([...this.#sessions.values()].map((session) => session.ended))
  }

  /** Whether there is a run that commands can be started in. */
  get attached(): boolean {
    return this.#run !== undefined
  }

  /** Resolves when `start` can be called. @throws Fault when the sandbox cannot be reached */
  async ready(): Promise<void> {
    await this.#run?.driver.ready()
  }

  /**
   * Starts an exec, or finds the one that the same request started. Nothing is awaited: when it returns the exec is on
   * disk and on its way.
   * @throws Failure `wrong_state` where the sandbox does not run, `id_taken`, `quota_exceeded`
   */
  start(spec: ExecSpec): ExecId {
    const id = spec.id ?? ExecId.parse(mintId('exec', Date.now(), randomBytes(10)))
    const digest = spec.id === undefined ? null : specDigest(spec)
    if (this.#isRepeat(id, digest)) return id
    const run = this.#run
    if (!run) throw new Failure('wrong_state', 'the sandbox does not run, and commands need one that does')
    this.#admit(spec)
    const spawn = planned(run, spec)
    const number = spawn instanceof UserNotFound ? null : run.driver.allocate()
    const session = ExecSession.begin(newRecord(id, digest, spec, number, run.driver.name), this.#hooks)
    this.#records.set(id, session.record)
    try {
      if (spec.input !== undefined) session.placeInput(Buffer.from(spec.input, 'base64'))
    } catch (error) {
      this.#records.delete(id)
      throw error
    }
    this.#sessions.set(id, session)
    if (spawn instanceof UserNotFound) session.conclude(userNotFound(spawn.message))
    else {
      this.#running.set(id, { bytes: argumentBytes(spec), leave: this.#home.occupy() })
      session.follow(run.driver.start(number ?? 0, spawn, session))
    }
    return id
  }

  /**
   * Works with an exec, which is not dropped meanwhile unless somebody deletes it.
   * @throws Failure `exec_not_found`, `quota_exceeded` when too much of it goes on at once
   */
  async use<T>(id: ExecId, work: (session: ExecSession) => Promise<T>): Promise<T> {
    const session = this.#session(id)
    const uses = [...this.#uses.values()].reduce((sum, count) => sum + count, 0)
    if (uses >= this.#limits.uses) throw new QuotaExceeded('execStreams', this.#limits.uses, uses, 1)
    this.#uses.set(session, (this.#uses.get(session) ?? 0) + 1)
    try {
      return await work(session)
    } finally {
      this.#leave(id, session)
    }
  }

  /** All of them, newest first. */
  list(state?: ExecState): readonly Exec[] {
    return [...this.#records.keys()]
      .reverse()
      .flatMap((key) => {
        const id = ExecId.parse(key)
        if (this.#deleting.has(id)) return []
        const session = this.#sessions.get(id)
        return session ? [session.view()] : [viewOf(this.#read(id))]
      })
      .filter((exec) => state === undefined || exec.state === state)
  }

  /** Kills it if it runs, and forgets it. Resolves when nothing is left of it. @throws Failure `exec_not_found` */
  delete(id: ExecId): Promise<void> {
    const known = this.#deleting.get(id)
    if (known) return known
    const session = this.#session(id)
    const done = this.#erase(id, session).finally(() => this.#deleting.delete(id))
    this.#deleting.set(id, done)
    return done
  }

  /** Drops what ended too long ago. */
  expire(now: Date): void {
    this.#ended.trim(now.getTime(), this.#inUse)
  }

  /** Leaves everything to another agent, or to nobody where the sandbox is no more. */
  async close(): Promise<void> {
    this.#run = undefined
    await Promise.all([...this.#sessions.values()].map((session) => session.abandon()))
    await Promise.allSettled([...this.#deleting.values(), this.#ended.settled()])
    this.#records.close()
  }

  /** Those that must stay as they are: used, held or being deleted. */
  readonly #inUse = (id: ExecId): boolean => this.#sessions.has(id) || this.#deleting.has(id)

  #load(): void {
    const records = [...this.#records.keys()].map((key) => this.#read(ExecId.parse(key)))
    this.#unfinished = records.filter(({ end, held }) => !end || held)
    this.#ended.load(records)
  }

  #read(id: ExecId): ExecRecord {
    return ExecRecord.parse(this.#records.get(id))
  }

  /** @returns false when it cannot have outlived its agent */
  #resume(record: ExecRecord, driver: ExecDriver): boolean {
    const { id, number, spec } = record
    if (number === null || record.driver !== driver.name) return false
    const session = ExecSession.reopen(record, this.#hooks)
    const process = driver.resume(number, flagsOf(record), session)
    if (!process) return false
    this.#sessions.set(id, session)
    const leave = record.end ? () => undefined : this.#home.occupy()
    this.#running.set(id, { bytes: argumentBytes({ command: spec.command, env: {} }), leave })
    session.follow(process)
    return true
  }

  #lose(record: ExecRecord): void {
    if (record.end) {
      this.#records.set(record.id, { ...record, held: false })
      return
    }
    const session = ExecSession.reopen(record, this.#hooks)
    this.#sessions.set(record.id, session)
    session.conclude({ kind: 'gone', error: new Error('it ended while the agent was away') })
  }

  /** The agent was killed before it was started: nobody was told of it, so it never was. */
  #forget(session: ExecSession): void {
    const { id, directory } = session.record
    this.#end(id)
    this.#running.delete(id)
    this.#sessions.delete(id)
    this.#records.delete(id)
    this.#ended.removeFiles(directory)
  }

  /** @throws Failure `id_taken` where something else has the id */
  #isRepeat(id: ExecId, digest: string | null): boolean {
    if (this.#deleting.has(id)) throw new Failure('id_taken', `exec ${id} is being deleted`)
    if (!this.#records.has(id)) return false
    const record = this.#sessions.get(id)?.record ?? this.#read(id)
    if (digest === null || record.digest !== digest)
      throw new Failure('id_taken', `exec ${id} exists, and was asked for in another way`)
    return true
  }

  #admit(spec: ExecSpec): void {
    const { running, runningBytes } = this.#limits
    const count = this.#running.size
    if (count >= running) throw new QuotaExceeded('execs', running, count, 1)
    const used = [...this.#running.values()].reduce((sum, { bytes }) => sum + bytes, 0)
    const asked = argumentBytes(spec)
    if (used + asked > runningBytes) throw new QuotaExceeded('execArgumentBytes', runningBytes, used, asked)
  }

  #session(id: ExecId): ExecSession {
    const known = this.#sessions.get(id)
    if (this.#deleting.has(id) || (!known && !this.#records.has(id)))
      throw new Failure('exec_not_found', `the sandbox has no exec ${id}`)
    if (known) return known
    const session = ExecSession.reopen(this.#read(id), this.#hooks)
    this.#sessions.set(id, session)
    return session
  }

  #leave(id: ExecId, session: ExecSession): void {
    const left = (this.#uses.get(session) ?? 1) - 1
    if (left > 0) this.#uses.set(session, left)
    else this.#uses.delete(session)
    this.#close(id, session)
  }

  /** Of what has ended and nobody uses only the record stays. */
  #close(id: ExecId, session: ExecSession): void {
    if (!session.live && !this.#uses.has(session) && this.#sessions.get(id) === session) this.#sessions.delete(id)
  }

  async #erase(id: ExecId, session: ExecSession): Promise<void> {
    await session.discard()
    this.#sessions.delete(id)
    this.#ended.forget(id)
    this.#records.delete(id)
  }

  #end(id: ExecId): void {
    this.#running.get(id)?.leave()
  }

  #outcome(end: MainEnd, record: ExecRecord) {
    const { memoryBytes } = this.#home
    // Only then it is looked at: a file to read, which `true` should not pay for.
    const before = this.#oomKills
    if (wasKilled(end)) this.#oomKills = this.#home.oomKills()
    return execOutcome(end, { timeoutMs: record.spec.timeoutMs, memoryBytes, oomKills: this.#oomKills - before })
  }

  #noteEnd({ record }: ExecSession): void {
    this.#end(record.id)
    if (!record.held) this.#running.delete(record.id)
    this.#ended.note(record)
    this.#ended.trim(Date.now(), this.#inUse)
  }

  #noteOver(session: ExecSession): void {
    const { record } = session
    this.#running.delete(record.id)
    if (this.#records.has(record.id)) this.#ended.note(record)
    this.#close(record.id, session)
  }

  /** Beyond what all may take on disk the oldest ended ones go, then the oldest output of whoever has most. */
  async #balance(): Promise<void> {
    if (this.#balancing) return
    this.#balancing = true
    try {
      while (
        this.#outputBytes() > this.#limits.outputBytes &&
        (this.#ended.dropOldestOutput(this.#inUse) || (await this.#cutLargest()))
      );
    } finally {
      this.#balancing = false
    }
  }

  #outputBytes(): number {
    const used = [...this.#sessions.values()].reduce((sum, { kept }) => sum + kept, 0)
    return used + this.#ended.outputBytes(this.#inUse)
  }

  async #cutLargest(): Promise<boolean> {
    const spools = [...this.#sessions.values()].flatMap(({ stdout, stderr }) => [stdout, stderr])
    const largest = spools.reduce((most, spool) => (most && most.kept >= spool.kept ? most : spool), spools[0])
    return largest !== undefined && (await largest.dropOldest()) > 0
  }
}

function newRecord(
  id: ExecId,
  digest: string | null,
  { id: _, env: __, input, ...spec }: ExecSpec,
  number: number | null,
  driver: ExecDriver['name'],
): ExecRecord {
  return {
    ...{ id, number, driver, digest, spec },
    // Its source of randomness is filled ahead, unlike that of randomBytes: 0.2 us instead of 15.
    directory: randomUUID().replaceAll('-', '').slice(-16),
    hasInput: input !== undefined,
    inputEnd: null,
    createdAt: new Date().toISOString(),
    end: null,
    held: false,
  }
}

function planned(run: ExecRun, spec: ExecSpec): SpawnRequest | UserNotFound {
  try {
    return run.plan(spec)
  } catch (error) {
    if (error instanceof UserNotFound) return error
    throw error
  }
}

const flagsOf = ({ spec, hasInput }: ExecRecord) =>
  (spec.tty ? spawnFlags.tty : 0) | (spec.stdin || hasInput ? spawnFlags.stdin : 0)
