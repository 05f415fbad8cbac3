import { describe, expect, test } from '@jest/globals'
import fc from 'fast-check'
import { at, by, given, nodeId, report, running } from './sandbox.fixture.js'
import { heldOfNode, heldOfTenant, type SandboxRecord, stepTo } from './sandbox.js'
import { sandboxDue } from './sandbox-due.js'
import { back, missing, nodeRemoved, reportOf, silent } from './sandbox-report.js'
import { requestOf, type SandboxRequest } from './sandbox-request.js'

const told = (record: SandboxRecord, change: object, now = at(1000)) => {
  const reported = reportOf(record, report(record, change), now)
  if (!reported) throw new Error('the report was dropped')
  return { ...reported, step: stepTo(record, reported.after, now, reported) }
}

const reason = (code: string, by_ = 'sandbox') => ({ code, message: 'why', at: at(900).toISOString(), by: by_ })
const end = (run: number, restart: number) => ({
  ...{ run, restart, reason: reason('exit_nonzero'), exitCode: 1, signal: null, oomKilled: false },
  ...{ startedAt: at(1).toISOString(), endedAt: at(900).toISOString(), usage: null },
})

describe('a report', () => {
  test.each([0, -1])('that was overtaken is dropped', (by_) =>
    expect(reportOf(running({ reportSequence: 7 }), report(running(), { sequence: 7 + by_ }), at(1))).toBeUndefined(),
  )

  test('acknowledges what it has seen, and no more than there is', () =>
    expect(
      [1, 2, 9].map((generation) => told(running({ generation: 2 }), { generation }).after.acknowledgedGeneration),
    ).toEqual([1, 2, 2]))

  test('takes times only as far as they can be true', () => {
    const { after } = told(running(), { startedAt: at(-5000).toISOString(), lastActivityAt: at(9000).toISOString() })
    expect([after.startedAt, after.lastActivityAt]).toEqual([at(0), at(1000)])
  })

  test('of activity alone makes no version and no event', () => {
    const record = running()
    const { step } = told(record, { lastActivityAt: at(500).toISOString() })
    expect([step.after.version, step.events]).toEqual([record.version, []])
  })

  test('tells each end and each note once, in order', () => {
    const note = (number: number) => ({
      number,
      at: at(1).toISOString(),
      about: { kind: 'limit_hit', limit: 'memory' },
    })
    const first = told(running(), { ends: [end(1, 1), end(1, 0)], notes: [note(2), note(1)], restarts: 2 })
    expect(first.step.events.map(({ type }) => type)).toEqual([
      ...['sandbox.ended', 'sandbox.ended', 'sandbox.restarted', 'sandbox.limit_hit', 'sandbox.limit_hit'],
    ])
    expect(first.after.lastEnd).toMatchObject({ run: 1, restart: 1 })
    const again = told(first.step.after, { ends: [end(1, 0), end(1, 1), end(1, 2)], notes: [note(2), note(3)] })
    expect(again.step.ends).toEqual([end(1, 2)])
    expect(again.step.events.map(({ type }) => type)).toEqual(['sandbox.ended', 'sandbox.limit_hit'])
  })

  test('of an end frees cpu and memory, and nothing more is wanted', () => {
    const { step } = told(running(), { state: 'failed', phase: 'stopped', reason: reason('oom_killed') })
    expect(step.after).toMatchObject({ desired: 'stopped', holds: false, generation: 2, settled: true })
    expect(step.after.stop.reason).toEqual({ code: 'oom_killed', message: 'why', by: 'sandbox' })
    expect(step.tenant).toMatchObject({ sandboxes: 0, cpuMillis: -1000, diskBytes: 0 })
  })

  test('of the end of an earlier run says nothing of the wanted one', () => {
    const restarted = requestOf(running(), { kind: 'restart' }, by, at(10))
    const { after } = told(restarted, { run: 1, state: 'stopped', phase: 'stopped', ends: [end(1, 0)] })
    expect(after).toMatchObject({
      state: 'creating',
      desired: 'running',
      holds: true,
      generation: 2,
      lastEnd: { run: 1 },
    })
  })

  test('of a removal ends a deleted one for its node', () => {
    const deleted = requestOf(running(), { kind: 'delete', force: true }, by, at(10))
    const { step } = told(deleted, { state: 'deleted', phase: 'removed' })
    expect([step.after.phase, step.node.sandboxes]).toEqual(['removed', -1])
    expect(told(deleted, { state: 'running', phase: 'stopping' }).after.state).toBe('deleted')
  })

  test('of a removal that nobody asked for is a loss', () =>
    expect(told(running(), { state: 'deleted', phase: 'removed' }).after).toMatchObject({
      state: 'lost',
      reason: { code: 'sandbox_lost' },
    }))
})

describe('silence', () => {
  test.each(['creating', 'running', 'paused', 'stopped', 'failed'] as const)(
    'loses a %s one until its node is back',
    (state) => {
      const record = given({ state })
      const lost = silent(record, at(5))
      expect(lost).toMatchObject({ state: 'lost', lostFrom: state, holds: true })
      expect(back(lost)).toMatchObject({ state, lostFrom: null })
    },
  )

  test('what is reported after it is what it is', () =>
    expect(told(silent(running(), at(5)), { state: 'stopped', phase: 'stopped' }).after).toMatchObject({
      state: 'stopped',
      lostFrom: null,
      holds: false,
    }))

  test('changes nothing of what is lost or deleted', () => {
    for (const state of ['lost', 'deleted'] as const) {
      const record = given({ state })
      expect(silent(record, at(5))).toBe(record)
    }
  })
})

describe('what its node no longer has', () => {
  test('holds nothing, is to be stopped should it come up again, and is not lost twice', () => {
    const lost = missing(running(), at(5))
    expect(lost).toMatchObject({
      state: 'lost',
      desired: 'stopped',
      holds: false,
      endedAt: at(5),
      stop: { graceMs: 0 },
    })
    expect(missing(lost, at(6))).toBe(lost)
    expect(stepTo(running(), lost, at(5), { by: 'api' }).after).toMatchObject({ generation: 1, settled: true })
    expect(told(lost, { state: 'running', phase: 'running' }).step.after).toMatchObject({
      ...{ state: 'running', desired: 'stopped', generation: 2, settled: false, holds: false },
    })
    expect(back(lost)).toBe(lost)
  })

  test('and was deleted is removed', () => {
    const deleted = requestOf(running(), { kind: 'delete', force: true }, by, at(10))
    expect(missing(deleted, at(20)).phase).toBe('removed')
    expect(nodeRemoved(deleted, nodeId, at(20))).toMatchObject({ phase: 'removed', nodeId: null })
  })

  test('with the node itself takes nothing there', () => {
    const step = stepTo(running(), nodeRemoved(running(), nodeId, at(5)), at(5), { by: 'api' })
    expect(step.node).toMatchObject({ sandboxes: -1, diskBytes: -(2 ** 30) })
    expect(step.tenant).toMatchObject({ sandboxes: 0, cpuMillis: -1000, diskBytes: 0 })
  })
})

test('whatever happens in whatever order, sums of steps are what is held, and versions only grow', () => {
  const requests: readonly SandboxRequest[] = [
    ...(['start', 'stop', 'kill', 'restart', 'pause', 'resume'] as const).map((kind) => ({ kind })),
    { kind: 'update', limits: { cpus: 3 } },
    { kind: 'update', limits: { cpus: 0.5, diskBytes: 2 ** 20 } },
    { kind: 'delete', force: true },
  ]
  const states = ['creating', 'running', 'paused', 'stopped', 'failed', 'deleted'] as const
  type Move = (record: SandboxRecord, now: Date) => SandboxRecord | undefined
  const asked = fc.constantFrom(...requests).map(
    (request): Move =>
      (record, now) =>
        requestOf(record, request, by, now),
  )
  const reported = fc.tuple(fc.constantFrom(...states), fc.boolean()).map(
    ([state, old]): Move =>
      (record, now) => {
        const phase =
          state === 'failed' ? 'stopped' : state === 'deleted' ? 'removed' : state === 'creating' ? 'rootfs' : state
        return reportOf(record, report(record, { state, phase, run: Math.max(0, record.run - Number(old)) }), now)
          ?.after
      },
  )
  const concluded = fc.constantFrom<Move>(
    silent,
    missing,
    (record) => back(record),
    (record, now) => nodeRemoved(record, nodeId, now),
  )
  fc.assert(
    fc.property(fc.boolean(), fc.array(fc.oneof(asked, reported, concluded), { maxLength: 40 }), (start, moves) => {
      let record = given({}, {}, start)
      let tenant = heldOfTenant(record).cpuMillis
      let disk = heldOfNode(record).diskBytes
      moves.forEach((move, i) => {
        let next: SandboxRecord | undefined
        try {
          next = move(record, at(i))
        } catch (error) {
          expect(error).toMatchObject({ code: 'wrong_state' })
        }
        if (!next || next === record) return
        const step = stepTo(record, next, at(i), { by })
        tenant += step.tenant.cpuMillis
        disk += step.node.diskBytes
        expect(step.after.version).toBeGreaterThanOrEqual(record.version)
        expect(step.after.generation).toBeGreaterThanOrEqual(record.generation)
        record = step.after
        expect((record.state === 'deleted') === (record.desired === 'deleted')).toBe(true)
        expect(record.state === 'deleted').toBe(record.deletedAt !== null)
        expect(record.lostFrom === null || record.state === 'lost').toBe(true)
        if (record.state === 'running' && record.desired !== 'stopped' && record.desired !== 'deleted')
          expect(record.holds).toBe(true)
        sandboxDue(record, at(i))
      })
      expect(tenant).toBe(heldOfTenant(record).cpuMillis)
      expect(disk).toBe(heldOfNode(record).diskBytes)
    }),
    { numRuns: 500 },
  )
})
