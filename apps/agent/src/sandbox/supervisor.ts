// supervisor.ts: all attempts of the node. Takes commands (each serial per attempt, and idempotent), lets sandboxes
// live, reports their ends, and releases what they held. An end is reported as soon as it is on disk, and released
// meanwhile: callers do not wait for the clean-up, but the sandbox counts against the node's capacity until it is done.

import type { AttemptId, AttemptStarted, CancelAttempt, ForgetAttempt, RunAttempt } from '@berth/contracts'
import { type AttemptResult, type Cancel, keepUntil } from '../journal.js'
import type { OutputFile } from '../logs/store.js'
import type { StreamName } from '../runtime/init-wire.js'
import { decideOutcome } from './outcome.plan.js'
import { type AttemptSurroundings, type Life, Sandbox } from './sandbox.js'
import { releaseAll } from './steps.js'
import { Turns } from './turns.js'

/** Where the supervisor tells what became of attempts. */
export interface Reporting {
  started(report: AttemptStarted): void
  /** Tells the end that is on disk; resolves to true when it is stored, to false when reporting ends before. */
  finished(id: AttemptId): Promise<boolean>
}

export interface SupervisorOptions extends AttemptSurroundings {
  readonly reports: Reporting
  /** How many sandboxes may exist at once, those being released included. */
  readonly maxSandboxes: number
}

interface Entry {
  readonly sandbox: Sandbox
  /** Nobody wants to know of it any more: no report, and nothing is kept. */
  unwanted: boolean
  reported: boolean
}

/** Releases at once: they are work of the kernel's, and starts go first. */
const CLEANERS = 2
/** The end of an attempt that was canceled before its command came is kept for as long as that may still come. */
const TOMBSTONE_MS = 86_400_000

export class Supervisor {
  readonly #options: SupervisorOptions
  readonly #attempts = new Map<AttemptId, Entry>()
  readonly #room: Turns
  readonly #cleaners = new Turns(CLEANERS)
  readonly #lives = new Set<Promise<void>>()
  #closed = false

  constructor(options: SupervisorOptions) {
    this.#options = options
    this.#room = new Turns(options.maxSandboxes)
  }

  /** Starts an attempt; of a known one only its latest report is repeated. Returns once it is written down. */
  async run(command: RunAttempt): Promise<void> {
    const { journal, reports } = this.#options
    const id = command.attemptId
    const known = this.#attempts.get(id)
    if (known) this.#repeat(known)
    else if (journal.hasEnded(id)) this.#background(reports.finished(id))
    else await this.#accept(command)
  }

  /** Ends an attempt; one that is not known here is reported as canceled, and will not run if it comes later. */
  async cancel({ attemptId, generation, cause, by }: CancelAttempt): Promise<void> {
    const { journal, reports, log } = this.#options
    const entry = this.#attempts.get(attemptId)
    log.info({ attempt: attemptId, cause, known: entry !== undefined }, 'attempt.cancel')
    if (entry) {
      entry.sandbox.cancel({ cause, by, generation })
      return
    }
    if (!journal.hasEnded(attemptId)) {
      journal.finish(tombstone(attemptId, { cause, by, generation }))
      journal.archive(attemptId)
    }
    this.#background(reports.finished(attemptId))
  }

  /** Drops what is kept of an ended attempt. */
  async forget({ attemptId }: Pick<ForgetAttempt, 'attemptId'>): Promise<void> {
    const entry = this.#attempts.get(attemptId)
    if (entry) await this.discard(attemptId)
    else await this.#options.journal.remove(attemptId)
  }

  /** Ends an attempt that nobody wants any more, without a report. */
  async discard(id: AttemptId): Promise<void> {
    const entry = this.#attempts.get(id)
    if (!entry || entry.unwanted) return
    entry.unwanted = true
    this.#options.log.info({ attempt: id }, 'attempt.discarded')
    await entry.sandbox.kill()
  }

  /** Goes on with an attempt of a former agent. */
  enter(life: Omit<Life, 'onStarted'>): void {
    this.#background(this.#begin(life, false))
  }

  /** Every attempt that was not reported to its end. */
  standing(): readonly { readonly id: AttemptId; readonly generation: number }[] {
    return [...this.#attempts]
      .filter(([, entry]) => !entry.reported)
      .map(([id, { sandbox }]) => ({ id, generation: sandbox.generation }))
  }

  /** Directories of image layers that sandboxes are on. */
  layersInUse(): readonly string[] {
    return [...this.#attempts.values()].flatMap(({ sandbox }) => sandbox.layers)
  }

  /** A stream that is being written; undefined once it is over, or of an unknown attempt. */
  async output(id: AttemptId, stream: StreamName): Promise<OutputFile | undefined> {
    return this.#attempts.get(id)?.sandbox.output(stream)
  }

  /** Lets go of all sandboxes without ending them; those in the middle of a start or a release are waited for. */
  async close(): Promise<void> {
    this.#closed = true
    for (const { sandbox } of this.#attempts.values()) sandbox.abandon()
    await Promise.allSettled(this.#lives)
  }

  async #accept(command: RunAttempt): Promise<void> {
    const accepted = { command, acceptedAt: new Date().toISOString() }
    // Known before it is written down, so that a repeat that overtakes finds it.
    await this.#begin({ accepted, entry: 'begin', cancel: undefined, spawned: undefined, result: undefined }, true)
  }

  #repeat({ sandbox, reported }: Entry): void {
    if (sandbox.startedAt && !reported) this.#tellStarted(sandbox, sandbox.startedAt)
  }

  /** @returns once the attempt is on disk */
  async #begin(life: Omit<Life, 'onStarted'>, fresh: boolean): Promise<void> {
    const sandbox: Sandbox = new Sandbox(this.#options, { ...life, onStarted: (at) => this.#tellStarted(sandbox, at) })
    const entry: Entry = { sandbox, unwanted: false, reported: false }
    this.#attempts.set(sandbox.id, entry)
    this.#options.shop.tenants.limit(sandbox.tenantId, sandbox.command.tenantLimits)
    this.#options.shop.tenants.hold(sandbox.tenantId)
    try {
      if (fresh) this.#options.journal.accept(life.accepted)
    } catch (error) {
      this.#forget(sandbox)
      throw error
    }
    this.#background(this.#room.run(() => this.#wholeLife(entry)))
  }

  async #wholeLife(entry: Entry): Promise<void> {
    const { journal, log } = this.#options
    const { sandbox } = entry
    const result = this.#closed ? undefined : await sandbox.live()
    if (!result) return
    log.info({ attempt: sandbox.id, ...summary(result) }, 'attempt.finished')
    const [stored] = await Promise.all([this.#report(entry), this.#clean(sandbox)])
    if (entry.unwanted) await journal.remove(sandbox.id)
    else if (stored) journal.archive(sandbox.id)
    else return
    this.#forget(sandbox)
    log.debug({ attempt: sandbox.id }, 'attempt.archived')
  }

  async #report(entry: Entry): Promise<boolean> {
    if (!entry.unwanted) entry.reported = await this.#options.reports.finished(entry.sandbox.id)
    return entry.reported
  }

  async #clean(sandbox: Sandbox): Promise<void> {
    const { shop, log } = this.#options
    try {
      await this.#cleaners.run(() => releaseAll(shop, sandbox, log))
    } catch (err) {
      // Left for the next start of the agent, which finds it by its name.
      log.error({ attempt: sandbox.id, err }, 'attempt.release_failed')
    }
  }

  #tellStarted(sandbox: Sandbox, at: Date): void {
    const { id: attemptId, generation } = sandbox
    this.#options.reports.started({ kind: 'started', attemptId, generation, at: at.toISOString() })
  }

  /** Work that goes on by itself; it ends before `close` does. */
  #background(work: Promise<unknown>): void {
    const guarded = work.then(
      () => undefined,
      (err: unknown) => this.#options.log.error({ err }, 'attempt.failed'),
    )
    this.#lives.add(guarded)
    void guarded.finally(() => this.#lives.delete(guarded))
  }

  #forget(sandbox: Sandbox): void {
    this.#attempts.delete(sandbox.id)
    this.#options.shop.tenants.release(sandbox.tenantId)
  }
}

const summary = ({ outcome, exitCode, signal, reason, phases }: AttemptResult) => ({
  outcome,
  exitCode,
  signal,
  reason: reason.code,
  ...phases,
})

/** The end of an attempt that was canceled before anything else was known of it. */
function tombstone(attemptId: AttemptId, cancel: Cancel): AttemptResult {
  const now = new Date()
  const about = { cancel, oomKills: 0, overdue: false, limits: { memoryBytes: 0, timeoutMs: 0 } }
  return {
    kind: 'finished',
    attemptId,
    generation: cancel.generation,
    ...decideOutcome({ kind: 'withdrawn' }, about),
    usage: null,
    phases: { placeMs: null, imageMs: null, rootfsMs: null, startMs: null, runMs: null, finishMs: null },
    startedAt: null,
    finishedAt: now.toISOString(),
    keepUntil: keepUntil(now, TOMBSTONE_MS),
  }
}
