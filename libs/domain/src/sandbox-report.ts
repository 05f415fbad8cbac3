// sandbox-report.ts: what nodes tell of sandboxes, and what is concluded from what they do not tell. None of this can
// be refused: it has happened. What a report says of a run that is no longer the wanted one is kept (ends, notes), but
// does not change the state: a start that was asked for must not look ended because the run before it did.
import type { NodeId, SandboxEnd, SandboxReason, SandboxReport, SandboxState } from '@berth/contracts'
import type { SandboxEvent, SandboxRecord } from './sandbox.js'

/** Node clocks may be off: a time is taken as told only where it lies between creation and now. */
function within(time: string | null, { createdAt }: SandboxRecord, now: Date): Date | null {
  if (time === null) return null
  return new Date(Math.min(Math.max(Date.parse(time), createdAt.getTime()), now.getTime()))
}

const later = (a: SandboxEnd, b: SandboxEnd | null): boolean =>
  b === null || a.run > b.run || (a.run === b.run && a.restart > b.restart)

function newEnds(record: SandboxRecord, report: SandboxReport, now: Date): readonly SandboxEnd[] {
  return report.ends
    .filter((end) => later(end, record.lastEnd))
    .sort((a, b) => a.run - b.run || a.restart - b.restart)
    .map((end) => ({
      ...end,
      startedAt: within(end.startedAt, record, now)?.toISOString() ?? null,
      endedAt: within(end.endedAt, record, now)?.toISOString() ?? now.toISOString(),
    }))
}

function noteEvents(record: SandboxRecord, report: SandboxReport, now: Date): readonly SandboxEvent[] {
  return report.notes
    .filter((note) => note.number > record.noteNumber)
    .sort((a, b) => a.number - b.number)
    .map(({ at, about }) => {
      const { kind, ...data } = about
      const type = kind === 'warning' ? 'sandbox.warning' : 'sandbox.limit_hit'
      const when = within(at, record, now)?.toISOString() ?? now.toISOString()
      return { type, at: when, subject: record.id, by: 'agent', data: { ...data, run: report.run } }
    })
}

/** What a run's end means for what is wanted: nothing more is, until it is started again. */
function ended(record: SandboxRecord, reason: SandboxReason | null): Partial<SandboxRecord> {
  const free = { holds: false, lostFrom: null }
  if (record.desired === 'stopped') return free
  const { code, message, by } = reason ?? {
    code: 'completed' as const,
    message: 'its process has ended',
    by: 'sandbox',
  }
  const stop = { graceMs: null, signal: null, reason: { code, message, by } }
  return { ...free, desired: 'stopped', stop, generation: record.generation + 1 }
}

/** The node says that the sandbox is gone from there. */
const goneFromNode = (record: SandboxRecord, now: Date): SandboxRecord =>
  record.state === 'deleted' ? { ...record, phase: 'removed' } : missing(record, now)

/** One that was given up as lost and runs all the same is wanted stopped, which its node has not heard. */
const generationFor = (record: SandboxRecord): number =>
  record.state === 'lost' && record.lostFrom === null ? record.generation + 1 : record.generation

function stateOf(record: SandboxRecord, report: SandboxReport, now: Date): SandboxRecord {
  const { state, phase, phases, restarts, endsAt } = report
  if (state === 'deleted' || phase === 'removed') return goneFromNode(record, now)
  const lastActivityAt = within(report.lastActivityAt, record, now) ?? record.lastActivityAt
  if (record.state === 'deleted') return { ...record, phase: 'removing', lastActivityAt }
  // Of a run before the wanted one: only that the node is there again.
  if (report.run < record.run) return { ...back(record), phase, lastActivityAt }
  const reason = report.reason ?? record.reason
  const told = {
    ...record,
    ...{ state, lostFrom: null, phase, phases, restarts, reason, lastActivityAt, endsAt },
    startedAt: within(report.startedAt, record, now),
    endedAt: within(report.endedAt, record, now),
  }
  if (state !== 'stopped' && state !== 'failed') return { ...told, generation: generationFor(record) }
  // A start that was given up stays failed when the node then tells that it has cleaned up.
  const givenUp = record.state === 'failed' && state === 'stopped'
  const kept = givenUp ? { state: record.state, reason: record.reason } : {}
  return { ...told, ...ended(record, report.reason), ...kept }
}

export interface Reported {
  readonly after: SandboxRecord
  readonly ends: readonly SandboxEnd[]
  readonly events: readonly SandboxEvent[]
  /** Who is behind the change of state, if there is one. */
  readonly by: string
}

/**
 * The record after a report of its node, and what is new in it; undefined where the report was overtaken by a later
 * one, which has held all that this one has.
 */
export function reportOf(record: SandboxRecord, report: SandboxReport, now: Date): Reported | undefined {
  if (report.sequence <= record.reportSequence) return undefined
  const ends = newEnds(record, report, now)
  const events = noteEvents(record, report, now)
  const after = {
    ...stateOf(record, report, now),
    reportSequence: report.sequence,
    noteNumber: Math.max(record.noteNumber, ...report.notes.map(({ number }) => number)),
    lastEnd: ends.at(-1) ?? record.lastEnd,
    acknowledgedGeneration: Math.max(record.acknowledgedGeneration, Math.min(report.generation, record.generation)),
    missingSince: null,
  }
  return { after, ends, events, by: report.reason?.by ?? 'agent' }
}

const lostFor = (code: 'sandbox_lost' | 'node_lost', message: string, now: Date): SandboxReason => ({
  ...{ code, message, at: now.toISOString(), by: 'api' },
})

/** States that silence makes `lost`: of the others it is known well enough what they are. */
const live: readonly SandboxState[] = ['creating', 'running', 'paused', 'stopped', 'failed']

/** Its node is silent: what has become of it is not known until the node is back. */
export function silent(record: SandboxRecord, now: Date): SandboxRecord {
  if (!live.includes(record.state)) return record
  const reason = lostFor('node_lost', 'its node is silent', now)
  return { ...record, state: 'lost', lostFrom: record.state, reason }
}

/** Its node is back, and lists it. */
export function back(record: SandboxRecord): SandboxRecord {
  if (record.state !== 'lost' || record.lostFrom === null) return record
  return { ...record, state: record.lostFrom, lostFrom: null }
}

/**
 * No longer to be had: what it held is free. Its node is not told, lest it make it anew, without its files; but if it
 * ever comes up again it is to be stopped.
 */
const gone = (record: SandboxRecord, reason: SandboxReason, now: Date): SandboxRecord => ({
  ...record,
  state: 'lost',
  lostFrom: null,
  phase: 'stopped',
  reason,
  desired: 'stopped',
  stop: { graceMs: 0, signal: null, reason: { code: reason.code, message: reason.message, by: reason.by } },
  acknowledgedGeneration: record.generation,
  missingSince: null,
  holds: false,
  endedAt: record.endedAt ?? now,
})

/** Its node lives and no longer knows of it. */
export function missing(record: SandboxRecord, now: Date): SandboxRecord {
  if (record.state === 'deleted') return { ...record, phase: 'removed' }
  if (record.state === 'lost' && record.lostFrom === null) return record
  return gone(record, lostFor('sandbox_lost', 'its node no longer knows of it', now), now)
}

/** An operator has removed its node, and its files with it. */
export function nodeRemoved(record: SandboxRecord, nodeId: NodeId, now: Date): SandboxRecord {
  const off = { ...record, nodeId: null }
  if (record.state === 'deleted') return { ...off, phase: 'removed' }
  return gone(off, lostFor('node_lost', `its node ${nodeId} was removed`, now), now)
}
