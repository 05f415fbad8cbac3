import { Clocks } from '@berth/contracts'
import { describe, expect, test } from '@jest/globals'
import fc from 'fast-check'
import { type ClockTimes, clockReasons, nextDeadline } from './clocks.plan.js'

const clocks = (more: Partial<Clocks> = {}): Clocks => ({ ...Clocks.parse({}), ...more })
const at = (more: Partial<ClockTimes> = {}): ClockTimes => ({
  from: 1000,
  startedAt: 5000,
  lastActivityAt: undefined,
  active: false,
  pausedAt: undefined,
  ...more,
})
const HOUR = 3_600_000

test('without clocks, and before anything runs, nothing ends', () => {
  expect(nextDeadline(clocks(), at())).toBeUndefined()
  expect(nextDeadline(clocks({ maxLifetimeMs: HOUR }), at({ startedAt: undefined }))).toBeUndefined()
  expect(nextDeadline(clocks({ deleteAfterMs: 1 }), at())).toBeUndefined()
})

describe('from when each counts', () => {
  test.each<[string, Partial<Clocks>, Partial<ClockTimes>, number | undefined]>([
    ['lifetime: the start by request', { maxLifetimeMs: 100 }, {}, 5100],
    ['lifetime: when it was set, if that was later', { maxLifetimeMs: 100 }, { from: 7000 }, 7100],
    ['lifetime: goes on in pause', { maxLifetimeMs: 100 }, { pausedAt: 6000 }, 5100],
    ['idle: the start, if there was no activity', { idleTimeoutMs: 100 }, {}, 5100],
    ['idle: the last activity', { idleTimeoutMs: 100 }, { lastActivityAt: 6000 }, 6100],
    ['idle: activity before the start does not count', { idleTimeoutMs: 100 }, { lastActivityAt: 4000 }, 5100],
    ['idle: stands still while there is activity', { idleTimeoutMs: 100 }, { active: true }, undefined],
    ['idle: stands still in pause', { idleTimeoutMs: 100 }, { pausedAt: 6000 }, undefined],
    ['pause: only in pause', { pausedForMs: 100 }, {}, undefined],
    ['pause: from the pause', { pausedForMs: 100 }, { pausedAt: 6000 }, 6100],
    ['pause: when it was set, if that was later', { pausedForMs: 100 }, { pausedAt: 6000, from: 9000 }, 9100],
  ])('%s', (_, given, times, expected) => {
    expect(nextDeadline(clocks(given), at(times))?.at).toBe(expected)
  })
})

test('the warning comes a minute before, or at nine tenths of a short clock', () => {
  expect(nextDeadline(clocks({ maxLifetimeMs: HOUR }), at())).toEqual({
    clock: 'maxLifetimeMs',
    at: 5000 + HOUR,
    warnAt: 5000 + HOUR - 60_000,
  })
  expect(nextDeadline(clocks({ idleTimeoutMs: 10_000 }), at())?.warnAt).toBe(5000 + 9_000)
  expect(nextDeadline(clocks({ idleTimeoutMs: 600_000 }), at())?.warnAt).toBe(5000 + 540_000)
})

test('the first of several is told, and it is the smallest of what each would be alone', () => {
  const length = fc.option(fc.integer({ min: 1, max: 1e6 }), { nil: null })
  const time = fc.integer({ min: 0, max: 1e6 })
  fc.assert(
    fc.property(
      fc.record({ maxLifetimeMs: length, idleTimeoutMs: length, pausedForMs: length, deleteAfterMs: length }),
      fc.record({
        from: time,
        startedAt: time,
        lastActivityAt: fc.option(time, { nil: undefined }),
        active: fc.boolean(),
        pausedAt: fc.option(time, { nil: undefined }),
      }),
      (set, times) => {
        const found = nextDeadline(set, times)
        const none = { maxLifetimeMs: null, idleTimeoutMs: null, pausedForMs: null, deleteAfterMs: null }
        const alone = (['maxLifetimeMs', 'idleTimeoutMs', 'pausedForMs'] as const).flatMap(
          (clock) => nextDeadline({ ...none, [clock]: set[clock] }, times) ?? [],
        )
        expect(found?.at).toBe(alone.length === 0 ? undefined : Math.min(...alone.map((one) => one.at)))
        if (found) expect(found.warnAt).toBeLessThanOrEqual(found.at)
        if (found) expect(clockReasons[found.clock].by).toBe('agent')
      },
    ),
  )
})
