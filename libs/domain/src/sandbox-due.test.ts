import { describe, expect, test } from '@jest/globals'
import { at, by, given, report, running } from './sandbox.fixture.js'
import { stepTo } from './sandbox.js'
import { deletionWarning, hurried, type SandboxDue, sandboxDue, startGivenUp } from './sandbox-due.js'
import { reportOf } from './sandbox-report.js'
import { requestOf } from './sandbox-request.js'

const MINUTE = 60_000

describe('what is due', () => {
  test.each<[string, Parameters<typeof given>[0], number, SandboxDue | undefined]>([
    ['nothing at first', {}, 1999, undefined],
    ['a command that nobody acknowledged', {}, 2000, 'resend'],
    ['nothing while an acknowledged start goes on', { acknowledgedGeneration: 1 }, 29_999, undefined],
    ['a command whose outcome nobody told', { acknowledgedGeneration: 1 }, 30_000, 'resend'],
    ['a start that got no further', { acknowledgedGeneration: 1, phase: 'rootfs' }, 5 * MINUTE, 'give_up'],
    [
      'nothing of one that waits for its restart',
      { acknowledgedGeneration: 1, phase: 'backing_off', settled: true },
      99 * MINUTE,
      undefined,
    ],
    ['one that its node does not list', { missingSince: at(0) }, 6000, 'missing'],
    [
      'nothing of one whose node was removed',
      { nodeId: null, state: 'lost', desired: 'stopped', settled: true },
      MINUTE,
      undefined,
    ],
  ])('is %s', (_, change, ms, due) => expect(sandboxDue(given(change), at(ms))).toBe(due))

  test('is nothing of one that runs as it should', () => expect(sandboxDue(running(), at(99 * MINUTE))).toBeUndefined())

  test('is hurrying a stop a minute after its grace, once', () => {
    const stopping = {
      ...requestOf(running(), { kind: 'stop', graceMs: 5000 }, by, at(0)),
      acknowledgedGeneration: 2,
      commandedAt: at(64_000),
    }
    expect(sandboxDue(stopping, at(64_999))).toBeUndefined()
    expect(sandboxDue(stopping, at(65_000))).toBe('hurry')
    const faster = hurried(stopping, at(65_000))
    expect(faster).toMatchObject({ stop: { graceMs: 0, reason: { by } }, generation: 3 })
    expect(sandboxDue({ ...faster, acknowledgedGeneration: 3, commandedAt: at(999_000) }, at(999_001))).toBeUndefined()
  })
})

describe('the clock deleteAfterMs', () => {
  const ended = (clock: number) => {
    const record = running({}, { clocks: { deleteAfterMs: clock } })
    const told = reportOf(
      record,
      report(record, { state: 'stopped', phase: 'stopped', endedAt: at(1000).toISOString() }),
      at(1000),
    )
    if (!told) throw new Error('dropped')
    const { after } = stepTo(record, told.after, at(1000), told)
    return { ...after, acknowledgedGeneration: after.generation }
  }

  test('runs from the end, warns a minute before, and then deletes', () => {
    const record = ended(10 * MINUTE)
    expect(record.endsAt).toEqual({ at: at(1000 + 10 * MINUTE).toISOString(), clock: 'deleteAfterMs' })
    expect(sandboxDue(record, at(999 + 9 * MINUTE))).toBeUndefined()
    expect(sandboxDue(record, at(1000 + 9 * MINUTE))).toBe('warn')
    const { after, events } = deletionWarning(record, at(1000 + 9 * MINUTE))
    expect(events[0]).toMatchObject({ type: 'sandbox.warning', data: { clock: 'deleteAfterMs' } })
    expect(sandboxDue(after, at(999 + 10 * MINUTE))).toBeUndefined()
    expect(sandboxDue(after, at(1000 + 10 * MINUTE))).toBe('delete')
  })

  test('of a second warns a tenth of it before', () => expect(sandboxDue(ended(1000), at(1900))).toBe('warn'))

  test('stands still when it is started again, and begins anew when it is set', () => {
    const record = ended(10 * MINUTE)
    expect(
      stepTo(record, requestOf(record, { kind: 'start' }, by, at(2000)), at(2000), { by }).after.deleteAt,
    ).toBeNull()
    const again = requestOf(
      { ...record, deleteWarned: true },
      { kind: 'update', clocks: { deleteAfterMs: MINUTE } },
      by,
      at(5000),
    )
    expect(stepTo(record, again, at(5000), { by }).after).toMatchObject({
      deleteAt: at(5000 + MINUTE),
      deleteWarned: false,
    })
    const off = requestOf(record, { kind: 'update', clocks: { deleteAfterMs: null } }, by, at(5000))
    expect(stepTo(record, off, at(5000), { by }).after).toMatchObject({ deleteAt: null, endsAt: null })
  })

  test('does not run for one that never ran', () => {
    const record = given({}, { clocks: { deleteAfterMs: 0 } }, false)
    const told = reportOf(record, report(record, { state: 'stopped', phase: 'stopped' }), at(1))
    expect(told && stepTo(record, told.after, at(1), told).after.deleteAt).toBeNull()
  })
})

test('a start that is given up has failed, is to be stopped, and holds until its node has cleaned up', () => {
  const record = startGivenUp(given({ phase: 'rootfs' }), at(5 * MINUTE))
  expect(record).toMatchObject({ state: 'failed', desired: 'stopped', holds: true, reason: { code: 'start_failed' } })
  const told = reportOf(record, report(record, { state: 'stopped', phase: 'stopped' }), at(6 * MINUTE))
  expect(told?.after).toMatchObject({ state: 'failed', holds: false, reason: { code: 'start_failed' } })
})
