// sandbox-request.ts: what callers ask of a sandbox. Each request either changes what is wanted (a new generation,
// which the node is told), or changes nothing because that is wanted already, or is refused by the lifecycle's table.
import {
  type ClocksChange,
  Failure,
  InvalidRequest,
  type RestartPolicy,
  type SandboxLimits,
  type SandboxLimitsChange,
  type SandboxState,
} from '@berth/contracts'
import { type SandboxRequestKind, sandboxLifecycle } from './lifecycle.js'
import {
  RECORD_KEPT_MS,
  requested,
  type SandboxRecord,
  type StoredSandboxSpec,
  sandboxCost,
  stopBy,
} from './sandbox.js'

export interface SandboxUpdate {
  readonly name?: string | null | undefined
  readonly labels?: Readonly<Record<string, string>> | undefined
  readonly limits?: SandboxLimitsChange | undefined
  readonly restart?: RestartPolicy | undefined
  readonly clocks?: ClocksChange | undefined
}

interface Ending {
  readonly graceMs?: number | undefined
  /** Number of the signal that comes first. */
  readonly signal?: number | undefined
}

export type SandboxRequest =
  | { readonly kind: 'start' | 'kill' | 'pause' | 'resume' }
  | ({ readonly kind: 'stop' | 'restart' } & Ending)
  | ({ readonly kind: 'update' } & SandboxUpdate)
  | { readonly kind: 'delete'; readonly force: boolean }

/** Takes the request's word for the state after it. @throws wrong_state */
const after = ({ state, id }: SandboxRecord, kind: SandboxRequestKind): SandboxState =>
  sandboxLifecycle.next(state, kind, `sandbox ${id}`)

/** The record with something else wanted of it. */
const wanting = (record: SandboxRecord, change: Partial<SandboxRecord>, now: Date): SandboxRecord => ({
  ...record,
  ...change,
  generation: record.generation + 1,
  requestedAt: now,
})

/** A new run: the node ends the one before it, where it still runs. */
const newRun = (record: SandboxRecord, message: string, by: string, now: Date, ending: Ending = {}): SandboxRecord =>
  wanting(
    record,
    {
      state: 'creating',
      desired: 'running',
      phase: 'placing',
      run: record.run + 1,
      restarts: 0,
      holds: true,
      reason: requested(message, by, now),
      stop: stopBy(by, ending.graceMs ?? null, ending.signal ?? null),
      startedAt: null,
      endedAt: null,
      endsAt: null,
    },
    now,
  )

function start(record: SandboxRecord, by: string, now: Date): SandboxRecord {
  after(record, 'start')
  // Of one that runs nothing changes, unless it was to stop or to pause.
  const running = record.state === 'running' || record.state === 'creating'
  if (running && record.desired === 'running') return record
  if (running && record.desired === 'paused') return wanting(record, { desired: 'running' }, now)
  return newRun(record, 'started', by, now)
}

function stop(record: SandboxRecord, by: string, now: Date, ending: Ending, kind: 'stop' | 'kill'): SandboxRecord {
  const state = after(record, kind)
  const over = state === 'stopped' || state === 'failed'
  const repeated = record.desired === 'stopped' && ending.graceMs === undefined && ending.signal === undefined
  if (over || repeated) return record
  const { graceMs = null, signal = null } = ending
  const how = stopBy(by, graceMs, signal)
  const why = kind === 'kill' ? ({ code: 'killed', message: 'killed by SIGKILL', by } as const) : how.reason
  // The first reason stays: a stop that is only hurried by another was asked for by the first.
  const reason = record.desired === 'stopped' ? record.stop.reason : why
  return wanting(record, { desired: 'stopped', stop: { ...how, reason } }, now)
}

const stopping = (record: SandboxRecord, request: 'pause' | 'resume'): Failure => {
  const { id, state } = record
  return new Failure('wrong_state', `sandbox ${id} is being stopped; it cannot ${request}`, {
    ...{ state, event: request, allowedFrom: sandboxLifecycle.allowedFrom(request) },
  })
}

function freeze(record: SandboxRecord, kind: 'pause' | 'resume', by: string, now: Date): SandboxRecord {
  after(record, kind)
  const desired = kind === 'pause' ? 'paused' : 'running'
  if (record.desired === desired) return record
  if (record.desired !== 'running' && record.desired !== 'paused') throw stopping(record, kind)
  const reason = requested(kind === 'pause' ? 'paused' : 'resumed', by, now)
  return wanting(record, { desired, reason }, now)
}

/** The fields of `change` that are given, over those of `base`. */
function over<T extends object>(base: T, change: { readonly [K in keyof T]?: T[K] | undefined }): T {
  const given = Object.entries(change).filter(([, value]) => value !== undefined)
  return given.length === 0 ? base : { ...base, ...Object.fromEntries(given) }
}

/** As `over`; `null` unsets a limit that need not be there. */
function limitsAfter(limits: SandboxLimits, change: SandboxLimitsChange): SandboxLimits {
  const { memoryReservationBytes, cpuShares, cpuset, cpuPeriodUs, ioWeight, ...needed } = change
  const optional = Object.entries({ memoryReservationBytes, cpuShares, cpuset, cpuPeriodUs, ioWeight })
  const given = optional.filter(([, value]) => value !== undefined)
  return { ...over(limits, needed), ...Object.fromEntries(given.map(([name, value]) => [name, value ?? undefined])) }
}

function checked(limits: SandboxLimits): SandboxLimits {
  if ((limits.memoryReservationBytes ?? 0) <= limits.memoryBytes) return limits
  throw new InvalidRequest([{ field: 'limits.memoryReservationBytes', message: 'must not be above memoryBytes' }])
}

/** The spec after an update. @throws InvalidRequest where limits do not go together */
export function updatedSpec(spec: StoredSandboxSpec, update: SandboxUpdate): StoredSandboxSpec {
  const limits = update.limits ? checked(limitsAfter(spec.limits, update.limits)) : spec.limits
  const clocks = update.clocks ? over(spec.clocks, update.clocks) : spec.clocks
  const restart = update.restart ?? spec.restart
  const unchanged =
    JSON.stringify([limits, clocks, restart]) === JSON.stringify([spec.limits, spec.clocks, spec.restart])
  return unchanged ? spec : { ...spec, limits, clocks, restart }
}

function update(record: SandboxRecord, change: SandboxUpdate, now: Date): SandboxRecord {
  const spec = updatedSpec(record.spec, change)
  const resized = JSON.stringify(spec.limits) !== JSON.stringify(record.spec.limits)
  after(record, resized ? 'resize' : 'edit')
  const name = change.name === undefined ? record.name : change.name
  const labels = change.labels === undefined || same(change.labels, record.labels) ? record.labels : change.labels
  // A clock that is given begins anew, even with the value that it has.
  const clocks = Object.values(change.clocks ?? {}).some((value) => value !== undefined)
  if (spec === record.spec && !clocks)
    return name === record.name && labels === record.labels ? record : { ...record, name, labels }
  const clocksFrom = clocks ? now : record.clocksFrom
  return wanting(record, { name, labels, spec, cost: sandboxCost(spec), clocksFrom }, now)
}

const same = (a: object, b: object): boolean =>
  JSON.stringify(Object.entries(a).sort()) === JSON.stringify(Object.entries(b).sort())

/** Ends it for its tenant at once; its node is told, and takes its time. */
export function deleted(record: SandboxRecord, stop: SandboxRecord['stop'], now: Date): SandboxRecord {
  if (record.state === 'deleted') return record
  const gone = record.nodeId === null
  return wanting(
    record,
    {
      state: 'deleted',
      lostFrom: null,
      desired: 'deleted',
      phase: gone ? 'removed' : 'removing',
      stop,
      reason: { ...stop.reason, at: now.toISOString() },
      endedAt: record.endedAt ?? (record.startedAt && now),
      deletedAt: now,
      expiresAt: new Date(now.getTime() + RECORD_KEPT_MS),
    },
    now,
  )
}

/**
 * The record after a request; the same one where it changes nothing.
 * @param by id of the key that asks
 * @throws wrong_state with `state`, `event` and `allowedFrom`; InvalidRequest of an update whose limits do not go together
 */
export function requestOf(record: SandboxRecord, request: SandboxRequest, by: string, now: Date): SandboxRecord {
  switch (request.kind) {
    case 'start':
      return start(record, by, now)
    case 'stop':
      return stop(record, by, now, request, 'stop')
    case 'kill':
      return stop(record, by, now, { graceMs: 0 }, 'kill')
    case 'restart':
      after(record, 'restart')
      return newRun(record, 'restarted', by, now, request)
    case 'pause':
    case 'resume':
      return freeze(record, request.kind, by, now)
    case 'update':
      return update(record, request, now)
    case 'delete':
      after(record, request.force ? 'force_delete' : 'delete')
      return deleted(record, stopBy(by, request.force ? 0 : null), now)
  }
}
