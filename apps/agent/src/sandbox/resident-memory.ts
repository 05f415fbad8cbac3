// resident-memory.ts: what one sandbox that stays was told and what it is, in memory as on disk: every change is written
// before anybody sees it. Also what of it was not yet told to the API: ends and notes, until a report has brought them home.

import type { ApplySandbox, LimitHit, SandboxReport } from '@berth/contracts'
import { type Deadline, nextDeadline } from './clocks.plan.js'
import { type ResidentEvent, residentLifecycle } from './resident.plan.js'
import type { AcceptedSandbox, ResidentRecords, ResidentState } from './resident-record.js'
import { reportOf } from './resident-report.plan.js'

/** What is kept of ends and notes that no report has brought home; older ones go, so that an API away has a bound. */
const MAX_KEPT = 100

export class ResidentMemory {
  readonly #records: ResidentRecords
  #accepted: AcceptedSandbox
  #state: ResidentState

  constructor(records: ResidentRecords, accepted: AcceptedSandbox, state: ResidentState) {
    this.#records = records
    this.#accepted = accepted
    this.#state = state
  }

  get command(): ApplySandbox {
    return this.#accepted.command
  }

  get acceptedAt(): Date {
    return new Date(this.#accepted.acceptedAt)
  }

  get state(): ResidentState {
    return this.#state
  }

  get paths() {
    return this.#records.paths(this.command.sandboxId)
  }

  accept(command: ApplySandbox): void {
    const accepted = { command, acceptedAt: new Date().toISOString() }
    this.#records.accept(accepted)
    this.#accepted = accepted
    // A report with a sequence that the API has seen would not acknowledge the command.
    this.save({})
  }

  save(change: Partial<ResidentState>): void {
    const { ends, notes, ...rest } = { ...this.#state, ...change }
    const kept = { ends: ends.slice(-MAX_KEPT), notes: notes.slice(-MAX_KEPT) }
    this.#state = { ...rest, ...kept, sequence: rest.sequence + 1 }
    this.#records.save(this.command.sandboxId, this.#state)
  }

  /** The change that an event makes. @throws Failure when the table does not allow it: a bug */
  to(event: ResidentEvent): Pick<ResidentState, 'phase'> {
    return { phase: residentLifecycle.next(this.#state.phase, event, `sandbox ${this.command.sandboxId}`) }
  }

  /** The change that one more note makes. */
  note(about: ResidentState['notes'][number]['about']): Pick<ResidentState, 'notes' | 'noteNumber'> {
    const number = this.#state.noteNumber + 1
    return { noteNumber: number, notes: [...this.#state.notes, { number, at: new Date().toISOString(), about }] }
  }

  /** Notes that a limit was hit. @returns false where that was noted in this run already */
  hit(limit: LimitHit): boolean {
    if (this.#state.hits.includes(limit)) return false
    this.save({ hits: [...this.#state.hits, limit], ...this.note({ kind: 'limit_hit', limit }) })
    return true
  }

  /** The clock that runs out next. */
  deadline(lastActivityAt: number | undefined, active: boolean): Deadline | undefined {
    const { phase, hidden, begunAt, pausedAt } = this.#state
    if (hidden || !['up', 'freezing', 'frozen'].includes(phase)) return undefined
    return nextDeadline(this.command.spec.clocks, {
      from: Date.parse(this.command.clocksFrom),
      startedAt: begunAt ?? undefined,
      lastActivityAt,
      active,
      pausedAt: pausedAt ?? undefined,
    })
  }

  report(deadline: Deadline | undefined): SandboxReport {
    return reportOf(this.command, this.#state, deadline)
  }

  /** What a stored report has told need not be told again. */
  stored(report: SandboxReport): void {
    const told = (end: { readonly run: number; readonly restart: number }) =>
      report.ends.some(({ run, restart }) => run === end.run && restart === end.restart)
    const last = Math.max(0, ...report.notes.map(({ number }) => number))
    const ends = this.#state.ends.filter((end) => !told(end))
    const notes = this.#state.notes.filter(({ number }) => number > last)
    if (ends.length === this.#state.ends.length && notes.length === this.#state.notes.length) return
    // What is told has not changed, so neither has the sequence.
    this.#state = { ...this.#state, ends, notes }
    this.#records.save(this.command.sandboxId, this.#state)
  }
}
