// sandbox.ts: a sandbox as Postgres keeps it, as a value. Every change of one is a function from the record before to
// the record after (sandbox-request.ts: what callers ask; sandbox-report.ts: what nodes tell, or what is concluded from
// their silence). What a change costs, and which events tell of it, is not decided a second time: both are read off
// the difference of the two records, so that counters are right as long as records are.
import type {
  ApplySandbox,
  Clocks,
  EventType,
  NodeId,
  Sandbox,
  SandboxDesired,
  SandboxEnd,
  SandboxId,
  SandboxPhase,
  SandboxPhases,
  SandboxReason,
  SandboxSpec,
  SandboxState,
  SnapshotId,
  TenantId,
} from '@berth/contracts'
import { type Cost, type SandboxUse, toMillis } from './quota.js'

/** The record of a deleted sandbox is kept for this long. */
export const RECORD_KEPT_MS = 30 * 24 * 3_600_000

export type SandboxStop = ApplySandbox['stop']
/** The spec but for name and labels, which change on their own. */
export type StoredSandboxSpec = Omit<SandboxSpec, 'name' | 'labels'>

export interface SandboxOrigin {
  readonly sandbox: SandboxId
  /** Kept by the node until it has made all that begin with it. */
  readonly snapshot: SnapshotId
}

export interface SandboxRecord {
  readonly id: SandboxId
  readonly tenantId: TenantId
  readonly name: string | null
  readonly labels: Readonly<Record<string, string>>
  readonly spec: StoredSandboxSpec
  /** What the image of the spec was resolved to; null: a base image, by its name. */
  readonly imageDigest: string | null
  /** The files of another that it began with. */
  readonly origin: SandboxOrigin | null
  readonly state: SandboxState
  /** What it was before its node fell silent. */
  readonly lostFrom: SandboxState | null
  readonly desired: SandboxDesired
  readonly phase: SandboxPhase
  readonly phaseSince: Date
  /** Whether the node has made true what is wanted, by its last report. */
  readonly settled: boolean
  readonly reason: SandboxReason | null
  /** Grows with every change that callers see, but for activity. */
  readonly version: number
  /** Grows with every change of what is wanted of the node. */
  readonly generation: number
  readonly acknowledgedGeneration: number
  readonly missingSince: Date | null
  readonly commandedAt: Date
  readonly cost: Cost
  /** Whether cpu and memory are counted now. */
  readonly holds: boolean
  readonly nodeId: NodeId | null
  readonly placedBecause: string
  readonly run: number
  readonly restarts: number
  readonly reportSequence: number
  readonly noteNumber: number
  readonly phases: SandboxPhases
  readonly lastEnd: SandboxEnd | null
  readonly stop: SandboxStop
  readonly requestedAt: Date
  readonly clocksFrom: Date
  readonly lastActivityAt: Date | null
  readonly endsAt: { readonly at: string; readonly clock: keyof Clocks } | null
  readonly deleteAt: Date | null
  /** Whether the warning before `deleteAt` was given. */
  readonly deleteWarned: boolean
  readonly createdAt: Date
  readonly startedAt: Date | null
  readonly endedAt: Date | null
  readonly deletedAt: Date | null
  readonly expiresAt: Date | null
}

export const sandboxCost = ({ limits }: Pick<SandboxSpec, 'limits'>): Cost => ({
  cpuMillis: toMillis(limits.cpus),
  memoryBytes: limits.memoryBytes,
  diskBytes: limits.diskBytes,
})

const nothing: SandboxUse = { sandboxes: 0, cpuMillis: 0, memoryBytes: 0, diskBytes: 0 }

type Held = Pick<SandboxRecord, 'holds' | 'cost' | 'deletedAt' | 'nodeId' | 'phase'>

const held = ({ holds, cost }: Held, sandboxes: number): SandboxUse => ({
  sandboxes,
  cpuMillis: holds ? cost.cpuMillis : 0,
  memoryBytes: holds ? cost.memoryBytes : 0,
  diskBytes: cost.diskBytes,
})

/** What counts against the tenant's quota: until it is deleted, whatever its node does then. */
export const heldOfTenant = (record: Held): SandboxUse => (record.deletedAt === null ? held(record, 1) : nothing)

/** What is taken of the node: until it is gone from there. `sandboxes` counts those that run. */
export const heldOfNode = (record: Held): SandboxUse =>
  record.nodeId === null || record.phase === 'removed' ? nothing : held(record, record.holds ? 1 : 0)

const less = (a: SandboxUse, b: SandboxUse): SandboxUse => ({
  sandboxes: a.sandboxes - b.sandboxes,
  cpuMillis: a.cpuMillis - b.cpuMillis,
  memoryBytes: a.memoryBytes - b.memoryBytes,
  diskBytes: a.diskBytes - b.diskBytes,
})

/** A change of a record with all that follows from it. */
export interface SandboxStep {
  readonly after: SandboxRecord
  readonly tenant: SandboxUse
  readonly node: SandboxUse
  readonly events: readonly SandboxEvent[]
  readonly ends: readonly SandboxEnd[]
}

/** An event before it has a number. */
export interface SandboxEvent {
  readonly type: EventType
  readonly at: string
  readonly subject: SandboxId
  readonly by: string
  readonly data: Readonly<Record<string, unknown>>
}

/** What happened besides the change itself. */
export interface Happened {
  /** Who asked for the change, or told of it, where the reason does not say. */
  readonly by: string
  readonly ends?: readonly SandboxEnd[]
  readonly events?: readonly SandboxEvent[]
}

const shown = (reason: SandboxReason | null) => reason && { code: reason.code, message: reason.message }

/** Fields that an edit or a resize may have changed. */
const editable = ['name', 'labels', 'spec'] as const

function eventsOf(before: SandboxRecord | undefined, after: SandboxRecord, now: Date, happened: Happened) {
  const { id: subject, state, run, reason, nodeId } = after
  const event = (type: EventType, by: string, data: SandboxEvent['data'], at = now.toISOString()): SandboxEvent => ({
    ...{ type, at, subject, by, data },
  })
  const events: SandboxEvent[] = []
  if (!before) return [event('sandbox.created', happened.by, { name: after.name, desired: after.desired, nodeId })]
  for (const end of happened.ends ?? [])
    events.push(
      event(
        'sandbox.ended',
        end.reason.by,
        {
          ...{ run: end.run, restart: end.restart, reason: shown(end.reason), exitCode: end.exitCode },
          ...{ signal: end.signal, oomKilled: end.oomKilled },
        },
        end.endedAt,
      ),
    )
  if (after.run === before.run && after.restarts > before.restarts)
    events.push(event('sandbox.restarted', 'agent', { run, restarts: after.restarts }))
  if (state !== before.state)
    events.push(event(`sandbox.${state}`, happened.by, { from: before.state, run, reason: shown(reason) }))
  const changed = editable.filter((field) => after[field] !== before[field])
  if (changed.length > 0) events.push(event('sandbox.updated', happened.by, { changed, version: after.version }))
  return [...events, ...(happened.events ?? [])]
}

/** Fields whose change is no news to who edits: the others make a new version. */
const unversioned: ReadonlySet<keyof SandboxRecord> = new Set([
  ...(['version', 'generation', 'acknowledgedGeneration', 'missingSince', 'commandedAt', 'lostFrom'] as const),
  ...(['reportSequence', 'noteNumber', 'phases', 'phaseSince', 'requestedAt', 'lastActivityAt', 'endsAt'] as const),
  ...(['stop', 'holds', 'cost', 'deleteAt', 'deleteWarned', 'settled'] as const),
])

const same = (a: unknown, b: unknown): boolean =>
  a === b || (typeof a === 'object' && a !== null && JSON.stringify(a) === JSON.stringify(b))

function differs(before: SandboxRecord, after: SandboxRecord): boolean {
  const fields = Object.keys(after).filter((key): key is keyof SandboxRecord => key in before)
  return fields.some((field) => !unversioned.has(field) && !same(before[field], after[field]))
}

/** Phases in which nothing is on its way. `backing_off` ends by its own clock on the node. */
const resting: ReadonlySet<SandboxPhase> = new Set(['running', 'paused', 'stopped', 'removed', 'backing_off'])

function isSettled({ state, desired, phase, nodeId }: SandboxRecord): boolean {
  if (nodeId === null) return true
  if (desired === 'deleted') return phase === 'removed'
  if (desired === 'stopped') return ['stopped', 'failed', 'lost'].includes(state) && resting.has(phase)
  return state === desired && resting.has(phase)
}

/** When a sandbox that has ended is to be deleted by its clock; null where it has not, or no clock is set. */
function deletionOf(record: SandboxRecord): Date | null {
  const { deleteAfterMs } = record.spec.clocks
  const over = record.desired === 'stopped' && record.endedAt !== null && record.lostFrom === null
  if (deleteAfterMs === null || !over || !['stopped', 'failed', 'lost'].includes(record.state)) return null
  return new Date(Math.max(record.endedAt?.getTime() ?? 0, record.clocksFrom.getTime()) + deleteAfterMs)
}

function withDeletion(record: SandboxRecord): SandboxRecord {
  const deleteAt = deletionOf(record)
  const ended = ['stopped', 'failed', 'lost', 'deleted'].includes(record.state) && record.lostFrom === null
  if (!ended) return { ...record, deleteAt }
  return { ...record, deleteAt, endsAt: deleteAt && { at: deleteAt.toISOString(), clock: 'deleteAfterMs' } }
}

/** The step from one record (none: it is new) to another, both as decided. */
export function stepTo(
  before: SandboxRecord | undefined,
  decided: SandboxRecord,
  now: Date,
  happened: Happened,
): SandboxStep {
  const due = withDeletion(decided)
  const whole = same(due.deleteAt, before?.deleteAt ?? null) ? due : { ...due, deleteWarned: false }
  const timed = before && before.phase === whole.phase ? whole : { ...whole, phaseSince: now }
  const commanded = before && before.generation === timed.generation ? timed : { ...timed, commandedAt: now }
  const version = !before || differs(before, commanded) ? (before?.version ?? 0) + 1 : before.version
  const after = { ...commanded, version, settled: isSettled(commanded) }
  return {
    after,
    tenant: less(heldOfTenant(after), before ? heldOfTenant(before) : nothing),
    node: less(heldOfNode(after), before ? heldOfNode(before) : nothing),
    events: eventsOf(before, after, now, happened),
    ends: happened.ends ?? [],
  }
}

export const noPhases: SandboxPhases = {
  ...{ placeMs: null, imageMs: null, rootfsMs: null, networkMs: null, startMs: null, readyMs: null },
}

/** Stops by request end a run as the spec says unless they say otherwise. */
export const stopBy = (by: string, graceMs: number | null = null, signal: number | null = null): SandboxStop => ({
  graceMs,
  signal,
  reason: { code: 'requested', message: 'asked for', by },
})

export const requested = (message: string, by: string, now: Date): SandboxReason => ({
  ...{ code: 'requested', message, at: now.toISOString(), by },
})

/** A sandbox that is asked for, before it has a node. */
export function newSandbox(fields: {
  readonly id: SandboxId
  readonly tenantId: TenantId
  readonly spec: SandboxSpec
  readonly imageDigest?: string | null
  readonly origin?: SandboxOrigin | null
  readonly start: boolean
  readonly by: string
  readonly nodeId: NodeId
  readonly placedBecause: string
  readonly now: Date
}): SandboxRecord {
  const { id, tenantId, imageDigest = null, origin = null, start, by, nodeId, placedBecause, now } = fields
  const { name = null, labels, ...spec } = fields.spec
  return {
    ...{ id, tenantId, name, labels, spec, imageDigest, origin, nodeId, placedBecause },
    state: 'creating',
    lostFrom: null,
    desired: start ? 'running' : 'stopped',
    phase: 'placing',
    phaseSince: now,
    settled: false,
    reason: requested(start ? 'created and started' : 'created', by, now),
    version: 0,
    generation: 1,
    acknowledgedGeneration: 0,
    missingSince: null,
    commandedAt: now,
    cost: sandboxCost(spec),
    holds: start,
    run: start ? 1 : 0,
    restarts: 0,
    reportSequence: 0,
    noteNumber: 0,
    phases: noPhases,
    lastEnd: null,
    stop: stopBy(by),
    requestedAt: now,
    clocksFrom: now,
    lastActivityAt: null,
    endsAt: null,
    deleteAt: null,
    deleteWarned: false,
    createdAt: now,
    startedAt: null,
    endedAt: null,
    deletedAt: null,
    expiresAt: null,
  }
}

const iso = (time: Date | null): string | null => time?.toISOString() ?? null

/** A sandbox as its tenant sees it. */
export const sandboxView = (record: SandboxRecord): Sandbox => ({
  id: record.id,
  name: record.name,
  state: record.state,
  desired: record.desired,
  phase: record.phase,
  health: 'none',
  reason: record.reason,
  version: record.version,
  labels: record.labels,
  spec: record.spec,
  nodeId: record.nodeId,
  placedBecause: record.placedBecause,
  forkedFrom: record.origin?.sandbox ?? null,
  run: record.run,
  restarts: record.restarts,
  lastEnd: record.lastEnd,
  phases: record.phases,
  lastActivityAt: iso(record.lastActivityAt),
  endsAt: record.endsAt,
  createdAt: record.createdAt.toISOString(),
  startedAt: iso(record.startedAt),
  endedAt: iso(record.endedAt),
  deletedAt: iso(record.deletedAt),
})
