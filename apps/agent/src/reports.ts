// reports.ts: what became of attempts and sandboxes, told to the API until it has stored it. Nothing is kept here that
// matters: an end is on disk (journal.ts) before it comes here, and after a crash it comes here again. A start is told
// only while the end is not known: the end includes it. A sandbox is told whole, as it is when the report leaves, so of
// many changes the last is enough.
//
// Reports of one subject keep their order: while one is on its way, the next waits. Those of different ones travel in
// batches, on a few connections at once. A failure is tried again for ever; only a report that the API takes for
// malformed is put aside, so that it holds up no other.

import { setTimeout as delay } from 'node:timers/promises'
import {
  type AttemptFinished,
  AttemptId,
  type AttemptStarted,
  Fault,
  type NodeReport,
  type SandboxId,
  type SandboxReport,
} from '@berth/contracts'
import type { Logger } from '@berth/telemetry'
import type { SandboxReporting } from './sandbox/residents.js'
import type { Reporting } from './sandbox/supervisor.js'

type Subject = AttemptId | SandboxId

export interface ReportsOptions {
  /** Resolves when all are stored. */
  readonly send: (reports: readonly NodeReport[]) => Promise<void>
  /** The report of an end, as it is on disk. */
  readonly compose: (id: AttemptId) => Promise<AttemptFinished | undefined>
  /** A sandbox as it is; undefined when there is nothing of it any more. */
  readonly composeSandbox: (id: SandboxId) => SandboxReport | undefined
  readonly onStored: (report: SandboxReport) => void
  /** True for an error after which the same report need not be sent again soon. */
  readonly isFinal: (error: unknown) => boolean
  readonly log: Logger
}

interface Pending {
  started: AttemptStarted | undefined
  /** The end of an attempt is on disk, and `waiting` are to be told when it is stored; a sandbox has changed. */
  due: boolean
  waiting: ((stored: boolean) => void)[]
  inFlight: boolean
  /** Sent alone: something in its batch was refused. */
  alone: boolean
  /** Not before this time, on the clock of `performance.now()`. */
  notBefore: number
}

/** A short job ends before this: then one report tells all. */
const STARTED_DELAY_MS = 15
/** What a sandbox is doing is often over before this, and then only what it came to is told. */
const CALM_DELAY_MS = 50
/** As many as the route takes. */
const MAX_BATCH = 100
/** Well under the route's limit: output travels as base64. */
const MAX_BATCH_BYTES = 16 * 1024 * 1024
const LANES = 2
const BACKOFF_MS = { first: 100, most: 5_000 } as const
const PUT_ASIDE_MS = 60_000

export class Reports implements Reporting, SandboxReporting {
  readonly #options: ReportsOptions
  readonly #pending = new Map<Subject, Pending>()
  readonly #closing = new AbortController()
  #lanes = 0
  #backoffMs = 0
  #failures = 0
  #timer: NodeJS.Timeout | undefined

  constructor(options: ReportsOptions) {
    this.#options = options
  }

  started(report: AttemptStarted): void {
    const pending = this.#of(report.attemptId)
    if (pending.due) return
    pending.started = report
    pending.notBefore = performance.now() + STARTED_DELAY_MS
    this.#wakeIn(STARTED_DELAY_MS)
  }

  finished(id: AttemptId): Promise<boolean> {
    if (this.#closing.signal.aborted) return Promise.resolve(false)
    return new Promise((resolve) => {
      const pending = this.#of(id)
      pending.waiting.push(resolve)
      pending.due = true
      pending.started = undefined
      if (!pending.alone) pending.notBefore = 0
      this.#pump()
    })
  }

  sandbox(id: SandboxId, urgent: boolean): void {
    if (this.#closing.signal.aborted) return
    const pending = this.#of(id)
    const now = performance.now()
    const delayMs = urgent ? 0 : CALM_DELAY_MS
    // A report that was put aside stays so; another that waits already goes no later than it would have.
    if (!pending.alone) pending.notBefore = pending.due ? Math.min(pending.notBefore, now + delayMs) : now + delayMs
    pending.due = true
    if (delayMs > 0) this.#wakeIn(delayMs)
    else this.#pump()
  }

  /** Sends what there is, for so long at most; what is not stored then is told by the next agent. */
  async close(patienceMs: number): Promise<void> {
    const until = performance.now() + patienceMs
    while (this.#pending.size > 0 && this.#backoffMs === 0 && performance.now() < until) await delay(5)
    this.#closing.abort()
    clearTimeout(this.#timer)
    for (const { waiting } of this.#pending.values()) for (const tell of waiting) tell(false)
    this.#pending.clear()
  }

  #of(id: Subject): Pending {
    const known = this.#pending.get(id)
    if (known) return known
    const made = { started: undefined, due: false, waiting: [], inFlight: false, alone: false, notBefore: 0 }
    this.#pending.set(id, made)
    return made
  }

  #wakeIn(ms: number): void {
    if (this.#backoffMs > 0) return // the end of the back-off wakes everybody
    // Whoever sleeps longer than this is woken early, finds nothing due, and sleeps again.
    clearTimeout(this.#timer)
    this.#timer = setTimeout(() => this.#pump(), ms)
  }

  /** Starts a lane while there is something to send and a lane is free. */
  #pump(): void {
    while (this.#lanes < LANES && !this.#closing.signal.aborted && this.#backoffMs === 0) {
      const batch = this.#take()
      if (batch.length === 0) return
      this.#lanes += 1
      void this.#deliver(batch).finally(() => {
        this.#lanes -= 1
        this.#pump()
      })
    }
  }

  #take(): readonly Subject[] {
    const now = performance.now()
    const due = [...this.#pending].filter(([, p]) => !p.inFlight && (p.due || p.started) && p.notBefore <= now)
    const [first] = due
    const batch = first?.[1].alone ? [first] : due.filter(([, { alone }]) => !alone).slice(0, MAX_BATCH)
    for (const [, pending] of batch) pending.inFlight = true
    if (due.length === 0) this.#sleepUntilDue(now)
    return batch.map(([id]) => id)
  }

  #sleepUntilDue(now: number): void {
    const waiting = [...this.#pending.values()].filter(({ inFlight, due, started }) => !inFlight && (due || started))
    const times = waiting.map(({ notBefore }) => notBefore)
    const next = Math.min(...times)
    if (Number.isFinite(next) && next > now) this.#wakeIn(next - now)
  }

  /** Never rejects. */
  async #deliver(ids: readonly Subject[]): Promise<void> {
    const composed: { readonly id: Subject; readonly report: NodeReport | undefined }[] = []
    try {
      let bytes = 0
      for (const id of ids) {
        const report = bytes < MAX_BATCH_BYTES ? await this.#compose(id) : 'later'
        if (report === 'later') this.#release(id)
        else {
          composed.push({ id, report })
          bytes += report?.kind === 'finished' ? report.stdout.length + report.stderr.length : 0
        }
      }
      const reports = composed.flatMap(({ report }) => report ?? [])
      if (reports.length > 0) await this.#options.send(reports)
      this.#failures = 0
      for (const { id, report } of composed) this.#stored(id, report)
    } catch (error) {
      this.#failed(ids, error)
    }
  }

  async #compose(id: Subject): Promise<NodeReport | undefined> {
    const pending = this.#pending.get(id)
    if (!pending) return undefined
    if (isAttempt(id)) return pending.due ? this.#options.compose(id) : pending.started
    // Whatever changes from here on is to be told once more.
    pending.due = false
    return this.#options.composeSandbox(id)
  }

  /** It was not stored: it is to be sent again. */
  #release(id: Subject): void {
    const pending = this.#pending.get(id)
    if (!pending) return
    pending.inFlight = false
    if (!isAttempt(id)) pending.due = true
  }

  #stored(id: Subject, report: NodeReport | undefined): void {
    const pending = this.#pending.get(id)
    if (!pending) return
    pending.inFlight = false
    if (!isAttempt(id)) {
      pending.alone = false
      if (!pending.due) this.#pending.delete(id)
      if (report?.kind === 'sandbox') this.#options.onStored(report)
      return
    }
    if (report?.kind === 'started') {
      if (pending.started === report) pending.started = undefined
      if (!pending.due) this.#pending.delete(id)
      return
    }
    // Stored, or nothing is kept of it any more and there is nothing left to tell.
    this.#pending.delete(id)
    for (const tell of pending.waiting) tell(true)
  }

  #failed(ids: readonly Subject[], err: unknown): void {
    const { log, isFinal } = this.#options
    for (const id of ids) this.#release(id)
    if (isFinal(err)) {
      for (const id of ids) this.#isolate(id, ids.length === 1)
      log.error({ err, subjects: ids.slice(0, 10) }, 'report.refused')
      return
    }
    if (!(err instanceof Fault)) log.error({ err }, 'report.failed')
    else log.warn({ err, subjects: ids.length }, 'report.failed')
    this.#backOff()
  }

  #isolate(id: Subject, guilty: boolean): void {
    const pending = this.#pending.get(id)
    if (!pending) return
    pending.alone = true
    if (guilty) pending.notBefore = performance.now() + PUT_ASIDE_MS
  }

  /** All wait: the API is away, whichever report found out. Jittered, so that nodes do not come back all at once. */
  #backOff(): void {
    if (this.#backoffMs > 0) return
    this.#failures += 1
    this.#backoffMs = Math.min(BACKOFF_MS.most, BACKOFF_MS.first * 2 ** (this.#failures - 1)) * (0.5 + Math.random())
    clearTimeout(this.#timer)
    this.#timer = setTimeout(() => {
      this.#backoffMs = 0
      this.#pump()
    }, this.#backoffMs)
  }
}

const isAttempt = (id: Subject): id is AttemptId => AttemptId.safeParse(id).success
