// sandbox-terminals.ts: the terminals of one sandbox. Open ones have a process in the sandbox; those that have ended are
// kept for a while with their last screen, so that whoever comes back sees how they ended.

import { randomBytes } from 'node:crypto'
import { mkdirSync } from 'node:fs'
import { join } from 'node:path'
import { Failure, MINUTE, mintId, QuotaExceeded, type Terminal, TerminalId, type TerminalSpec } from '@berth/contracts'
import type { Logger } from '@berth/telemetry'
import { specDigest } from '../exec/exec.plan.js'
import { RecordLog } from '../exec/record-log.js'
import { UserNotFound } from '../runtime/identity.js'
import { type SpawnRequest, spawnFlags } from '../runtime/init-wire.js'
import type { Processes } from '../runtime/processes.js'
import type { Drawing } from './drawing.js'
import { neverRan } from './terminal.plan.js'
import { TerminalRecord } from './terminal-record.js'
import { type TerminalHooks, TerminalSession } from './terminal-session.js'

/** Ended ones are kept for this long, and at most so many. */
const KEPT_MS = 10 * MINUTE
const MAX_ENDED = 64
/** berth-init knows 256 processes, and execs want some too. */
const MAX_OPEN = 64

/** What the terminals need of their sandbox. */
export interface TerminalHome {
  /** Theirs alone. */
  readonly directory: string
  readonly drawing: Drawing
  readonly log: Logger
  readonly touch: () => void
  /** @throws QuotaExceeded when the tenant has as many open on the node as it may */
  readonly admit: () => void
}

/** A run of the sandbox. */
export interface TerminalRun {
  readonly processes: Processes
  /** @throws UserNotFound */
  readonly plan: (spec: TerminalSpec) => SpawnRequest
}

export class SandboxTerminals {
  readonly #home: TerminalHome
  readonly #records: RecordLog
  readonly #hooks: TerminalHooks
  readonly #sessions = new Map<TerminalId, TerminalSession>()
  #run: TerminalRun | undefined

  private constructor(home: TerminalHome, records: RecordLog) {
    this.#home = home
    this.#records = records
    this.#hooks = {
      directory: home.directory,
      drawing: home.drawing,
      log: home.log,
      touch: home.touch,
      store: (record) => this.#records.set(record.id, record),
      onEnded: () => this.expire(new Date()),
    }
  }

  /** Opens what is on disk. What was open is resumed by `attach` or ended by `detach`. @throws Fault when it is damaged */
  static open(home: TerminalHome): SandboxTerminals {
    mkdirSync(home.directory, { recursive: true, mode: 0o700 })
    const terminals = new SandboxTerminals(home, RecordLog.open(join(home.directory, 'records')))
    for (const key of terminals.#records.keys()) {
      const record = TerminalRecord.parse(terminals.#records.get(key))
      terminals.#sessions.set(record.id, TerminalSession.reopen(record, terminals.#hooks))
    }
    return terminals
  }

  get attached(): boolean {
    return this.#run !== undefined
  }

  /** How many are open. */
  get open(): number {
    return [...this.#sessions.values()].filter((session) => !session.over).length
  }

  /** A run is up; `adopted`: it was before this agent, and what is open in it goes on. */
  async attach(run: TerminalRun, adopted: boolean): Promise<void> {
    for (const session of this.#sessions.values()) {
      const { number, end } = session.record
      if (end) continue
      if (adopted && number !== null) session.follow(run.processes.resume(number, spawnFlags.tty, session.sinks))
      else await session.conclude()
    }
    this.#run = run
  }

  /** There is no run any more: what was open has ended. */
  async detach(): Promise<void> {
    this.#run = undefined
    await Promise.all([...this.#sessions.values()].map((session) => session.conclude()))
  }

  /** Resolves when `create` can be called. @throws Fault when the sandbox cannot be reached */
  async ready(): Promise<void> {
    await this.#run?.processes.known()
  }

  /**
   * Opens a terminal, or finds the one that the same request opened.
   * @throws Failure `wrong_state` where the sandbox does not run, `id_taken`, `quota_exceeded`
   */
  create(spec: TerminalSpec): TerminalSession {
    const id = spec.id ?? TerminalId.parse(mintId('terminal', Date.now(), randomBytes(10)))
    const digest = spec.id === undefined ? null : specDigest(spec)
    const known = this.#sessions.get(id)
    if (known && digest !== null && known.record.digest === digest) return known
    if (known) throw new Failure('id_taken', `terminal ${id} exists, and was asked for in another way`)
    const run = this.#run
    if (!run) throw new Failure('wrong_state', 'the sandbox does not run, and terminals need one that does')
    this.#home.admit()
    if (this.open >= MAX_OPEN) throw new QuotaExceeded('terminalsPerSandbox', MAX_OPEN, this.open, 1)
    const spawn = planned(run, spec)
    const number = spawn instanceof UserNotFound ? null : run.processes.allocate()
    const command = spawn instanceof UserNotFound ? (spec.command ?? ['/bin/sh']) : [...spawn.argv]
    const session = TerminalSession.begin(newRecord(id, digest, spec, command, number), this.#hooks)
    this.#records.set(id, session.record)
    this.#sessions.set(id, session)
    if (spawn instanceof UserNotFound) void session.conclude(neverRan(spawn.message))
    else session.follow(run.processes.run(number ?? 0, spawn, session.sinks))
    return session
  }

  /** @throws Failure `terminal_not_found` */
  get(id: TerminalId): TerminalSession {
    const session = this.#sessions.get(id)
    if (!session) throw new Failure('terminal_not_found', `the sandbox has no terminal ${id}`)
    return session
  }

  /** All of them, newest first. */
  list(): readonly Terminal[] {
    return [...this.#sessions.values()].reverse().map((session) => session.describe())
  }

  /** Tells whoever looks at a terminal of the sandbox. */
  notice(text: string): void {
    for (const session of this.#sessions.values()) session.tell({ type: 'notice', text })
  }

  /** Drops what ended too long ago, and the oldest of too many. */
  expire(now: Date): void {
    const ended = [...this.#sessions.values()].filter((session) => session.over).sort((a, b) => endOf(a) - endOf(b))
    const old = ended.filter((session, i) => now.getTime() - endOf(session) > KEPT_MS || i < ended.length - MAX_ENDED)
    for (const session of old) this.#drop(session)
  }

  /** Leaves everything to another agent, or to nobody where the sandbox is no more. */
  async close(): Promise<void> {
    this.#run = undefined
    await Promise.all([...this.#sessions.values()].map((session) => session.abandon()))
    this.#records.close()
  }

  #drop(session: TerminalSession): void {
    const { id } = session.record
    this.#sessions.delete(id)
    this.#records.delete(id)
    session.discard().catch((err: unknown) => this.#home.log.error({ terminal: id, err }, 'terminal.not_removed'))
  }
}

const endOf = ({ record }: TerminalSession): number => Date.parse(record.end?.endedAt ?? record.createdAt)

function newRecord(
  id: TerminalId,
  digest: string | null,
  { id: _, env: __, rows, columns, ...spec }: TerminalSpec,
  command: readonly string[],
  number: number | null,
): TerminalRecord {
  return {
    ...{ id, number, digest, rows, columns },
    directory: randomBytes(8).toString('hex'),
    spec: { ...spec, rows, columns, command: [...command] },
    createdAt: new Date().toISOString(),
    end: null,
  }
}

function planned(run: TerminalRun, spec: TerminalSpec): SpawnRequest | UserNotFound {
  try {
    return run.plan(spec)
  } catch (error) {
    if (error instanceof UserNotFound) return error
    throw error
  }
}
