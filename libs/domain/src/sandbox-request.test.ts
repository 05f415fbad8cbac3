import { type SandboxDesired, type SandboxState, sandboxStates } from '@berth/contracts'
import { describe, expect, test } from '@jest/globals'
import { at, by, given, nodeId, running } from './sandbox.fixture.js'
import { stepTo } from './sandbox.js'
import { requestOf, type SandboxRequest } from './sandbox-request.js'

const ask = (record: Parameters<typeof requestOf>[0], request: SandboxRequest) =>
  requestOf(record, request, by, at(100))

const inState = (state: SandboxState) => {
  const over = { holds: false, desired: 'stopped' as const, startedAt: at(1), endedAt: at(2) }
  switch (state) {
    case 'creating':
      return given()
    case 'running':
      return running()
    case 'paused':
      return running({ state, phase: state, desired: state })
    case 'deleted':
      return given({ state, phase: 'removing', desired: state, deletedAt: at(3), expiresAt: at(9) })
    default:
      return given({ state, phase: 'stopped', ...over })
  }
}

const requests: Readonly<Record<string, SandboxRequest>> = {
  start: { kind: 'start' },
  stop: { kind: 'stop' },
  kill: { kind: 'kill' },
  restart: { kind: 'restart' },
  pause: { kind: 'pause' },
  resume: { kind: 'resume' },
  resize: { kind: 'update', limits: { cpus: 2 } },
  rename: { kind: 'update', name: 'x' },
  delete: { kind: 'delete', force: false },
  'delete by force': { kind: 'delete', force: true },
}

// state and what is wanted right after, or '-' for a refusal, or '=' where nothing changes.
test.each<[string, string]>([
  ['start', '= = - creating/running creating/running - -'],
  ['stop', 'creating/stopped running/stopped paused/stopped = = = -'],
  ['kill', 'creating/stopped running/stopped paused/stopped - - - -'],
  ['restart', 'creating/running creating/running creating/running creating/running creating/running - -'],
  ['pause', '- running/paused = - - - -'],
  ['resume', '- = paused/running - - - -'],
  ['resize', 'creating/running running/running paused/paused stopped/stopped failed/stopped - -'],
  ['rename', 'creating/running running/running paused/paused stopped/stopped failed/stopped lost/stopped -'],
  ['delete', '- - - deleted/deleted deleted/deleted deleted/deleted ='],
  ['delete by force', `${'deleted/deleted '.repeat(6)}=`],
])('%s of a sandbox in each state', (name, row) => {
  const got = sandboxStates.map((state) => {
    const record = inState(state)
    try {
      const after = ask(record, requests[name] ?? { kind: 'start' })
      return after === record ? '=' : `${after.state}/${after.desired}`
    } catch (error) {
      expect(error).toMatchObject({ code: 'wrong_state', data: { state, allowedFrom: expect.any(Array) } })
      return '-'
    }
  })
  expect(got.join(' ')).toBe(row.trim())
})

describe('a start', () => {
  test('is a new run that holds cpu and memory, counted from nothing', () => {
    const stopped = inState('stopped')
    const { tenant, node, events, after } = stepTo(stopped, ask(stopped, { kind: 'start' }), at(100), { by })
    expect(after).toMatchObject({ run: 2, generation: 2, restarts: 0, startedAt: null, endedAt: null, settled: false })
    expect(tenant).toEqual({ sandboxes: 0, cpuMillis: 1000, memoryBytes: 512 * 2 ** 20, diskBytes: 0 })
    expect(node).toEqual({ ...tenant, sandboxes: 1 })
    expect(events.map(({ type, data }) => [type, data.from])).toEqual([['sandbox.creating', 'stopped']])
  })

  test.each<[SandboxDesired, number]>([
    ['stopped', 2],
    ['paused', 1],
  ])('of one that runs and was to become %s is run %i', (desired, run) =>
    expect(ask(running({ desired }), { kind: 'start' })).toMatchObject({ desired: 'running', run }),
  )
})

describe('a stop', () => {
  test('says how, and who asked', () =>
    expect(ask(running(), { kind: 'stop', graceMs: 5, signal: 2 }).stop).toEqual({
      graceMs: 5,
      signal: 2,
      reason: { code: 'requested', message: 'asked for', by },
    }))

  test('repeated changes nothing; with another grace, or a kill, it is hurried and keeps its reason', () => {
    const first = ask(running(), { kind: 'stop' })
    expect(ask(first, { kind: 'stop' })).toBe(first)
    expect(requestOf(first, { kind: 'stop', graceMs: 1 }, 'key_2', at(9))).toMatchObject({
      generation: 3,
      stop: { graceMs: 1, reason: { by } },
    })
    expect(requestOf(first, { kind: 'kill' }, 'key_2', at(9)).stop).toMatchObject({
      graceMs: 0,
      reason: { code: 'requested', by },
    })
  })

  test.each(['pause', 'resume'] as const)('under way refuses %s', (kind) =>
    expect(() => ask(ask(running(), { kind: 'stop' }), { kind })).toThrow('is being stopped'),
  )
})

describe('an update', () => {
  test('of what is there already makes no version and no command', () => {
    const record = running({}, { labels: { a: 'b', c: 'd' }, limits: { cpus: 2 } })
    const same = { kind: 'update', labels: { c: 'd', a: 'b' }, limits: { cpus: 2 }, restart: { policy: 'no' } } as const
    expect(ask(record, same)).toBe(record)
  })

  test('of limits takes their difference, and no more', () => {
    const record = running()
    const { tenant, after, events } = stepTo(
      record,
      ask(record, { kind: 'update', limits: { cpus: 0.5, memoryBytes: 2 ** 30 } }),
      at(1),
      { by },
    )
    expect(tenant).toEqual({ sandboxes: 0, cpuMillis: -500, memoryBytes: 2 ** 29, diskBytes: 0 })
    expect(after.spec.limits).toMatchObject({ cpus: 0.5, memoryBytes: 2 ** 30, pids: 256 })
    expect(events.map(({ type, data }) => [type, data.changed])).toEqual([['sandbox.updated', ['spec']]])
  })

  test('of limits that do not go together is refused', () =>
    expect(() => ask(running(), { kind: 'update', limits: { memoryReservationBytes: 2 ** 40 } })).toThrow(
      'limits.memoryReservationBytes',
    ))

  test('of limits unsets by null what need not be there, and leaves what is not given', () => {
    const record = running({}, { limits: { cpuset: '0', cpuShares: 100, memoryReservationBytes: 2 ** 20 } })
    const limits = { cpuset: null, memoryReservationBytes: null, ioWeight: null, pids: 9 }
    const after = ask(record, { kind: 'update', limits })
    const { memoryReservationBytes: _, cpuset: __, ...kept } = record.spec.limits
    expect(JSON.parse(JSON.stringify(after.spec.limits))).toEqual({ ...kept, cpuShares: 100, pids: 9 })
    expect(ask(after, { kind: 'update', limits: { cpuset: null } })).toBe(after)
    // Nothing is left that could be above the memory.
    expect(() => ask(after, { kind: 'update', limits: { memoryBytes: 2 ** 19 } })).not.toThrow()
  })

  test('of a clock lets it begin anew, even with the value that it has', () => {
    const record = running({}, { clocks: { idleTimeoutMs: 1000 } })
    const again = ask(record, { kind: 'update', clocks: { idleTimeoutMs: 1000 } })
    expect([again.clocksFrom, again.generation]).toEqual([at(100), 2])
  })

  test('of name and labels is nothing for the node', () => {
    const after = ask(running(), { kind: 'update', name: 'n', labels: { x: 'y' } })
    expect(after).toMatchObject({ name: 'n', labels: { x: 'y' }, generation: 1 })
  })
})

describe('a deletion', () => {
  test('frees the tenant at once and the node when it has removed it', () => {
    const record = running()
    const gone = stepTo(record, ask(record, { kind: 'delete', force: true }), at(100), { by })
    expect(gone.tenant).toEqual({ sandboxes: -1, cpuMillis: -1000, memoryBytes: -(2 ** 29), diskBytes: -(2 ** 30) })
    expect(gone.node).toEqual({ sandboxes: 0, cpuMillis: 0, memoryBytes: 0, diskBytes: 0 })
    const removed = stepTo(gone.after, { ...gone.after, phase: 'removed' }, at(200), { by: 'agent' })
    expect(removed.node).toEqual({ sandboxes: -1, cpuMillis: -1000, memoryBytes: -(2 ** 29), diskBytes: -(2 ** 30) })
    expect(removed.events).toEqual([])
    expect(gone.after).toMatchObject({ deletedAt: at(100), expiresAt: at(100 + 30 * 86_400_000), stop: { graceMs: 0 } })
  })

  test('of one whose node was removed is done at once', () =>
    expect(
      ask(given({ nodeId: null, state: 'lost', desired: 'stopped' }), { kind: 'delete', force: false }).phase,
    ).toBe('removed'))
})

test('a new sandbox is told with its name and node', () => {
  const { events, tenant, node } = stepTo(undefined, given({}, { name: 'n' }), at(0), { by })
  expect(events).toEqual([
    {
      type: 'sandbox.created',
      at: at(0).toISOString(),
      subject: given().id,
      by,
      data: { name: 'n', desired: 'running', nodeId },
    },
  ])
  expect([tenant.sandboxes, node.sandboxes]).toEqual([1, 1])
})
