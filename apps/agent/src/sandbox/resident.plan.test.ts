import { describe, expect, test } from '@jest/globals'
import fc from 'fast-check'
import {
  type Desire,
  nextStep,
  type Observed,
  type ResidentEvent,
  type ResidentPhase,
  residentEvents,
  residentLifecycle,
  residentPhases,
  type Step,
} from './resident.plan.js'

const NOW = 10_000
const want = (more: Partial<Desire> = {}): Desire => ({
  desired: 'running',
  generation: 1,
  run: 1,
  graceMs: 500,
  leases: 0,
  hiddenUntil: 0,
  ...more,
})
const is = (phase: ResidentPhase, more: Partial<Observed> = {}): Observed => ({
  phase,
  hidden: false,
  run: 1,
  aborted: false,
  failedRun: undefined,
  next: undefined,
  retryAt: 0,
  killAt: 0,
  killed: false,
  stopGeneration: 1,
  limitsDiffer: false,
  diskDiffers: false,
  resizeAt: 0,
  deadline: undefined,
  warnedOf: undefined,
  ...more,
})

describe('the table', () => {
  const allowed: Readonly<Record<ResidentPhase, Partial<Record<ResidentEvent, ResidentPhase>>>> = {
    fresh: { prepare: 'preparing', remove: 'removing' },
    preparing: { done: 'down', failed: 'fresh' },
    down: { start: 'starting', remove: 'removing' },
    starting: { done: 'up', ended: 'clearing' },
    up: { freeze: 'freezing', stop: 'stopping', ended: 'clearing' },
    freezing: { done: 'frozen', failed: 'up', ended: 'clearing' },
    frozen: { thaw: 'up', stop: 'stopping', ended: 'clearing' },
    stopping: { stop: 'stopping', ended: 'clearing' },
    clearing: { done: 'down', wait: 'waiting', failed: 'clearing' },
    waiting: { start: 'starting', rest: 'down', remove: 'removing' },
    removing: { done: 'removed', failed: 'removing' },
    removed: {},
  }
  const pairs = residentPhases.flatMap((phase) => residentEvents.map((event) => [phase, event] as const))
  test.each(pairs)('%s + %s', (phase, event) => {
    const to = allowed[phase][event]
    if (to) expect(residentLifecycle.next(phase, event)).toBe(to)
    else expect(() => residentLifecycle.next(phase, event)).toThrow(/needs/)
  })
})

describe('the next step', () => {
  const deadline = { clock: 'idleTimeoutMs', at: NOW + 100, warnAt: NOW + 90 } as const
  const start = { do: 'start', run: 1, restart: 0, hidden: false } as const
  const stop = { do: 'stop', killAt: NOW + 500 } as const
  const hidden = { hidden: true } as const
  test.each<[string, Desire, Observed, Step]>([
    ['fresh: is prepared', want(), is('fresh', { run: 0 }), { do: 'prepare' }],
    [
      'fresh: also when it is not to start',
      want({ desired: 'stopped', run: 0 }),
      is('fresh', { run: 0 }),
      { do: 'prepare' },
    ],
    ['fresh: not again after it failed', want(), is('fresh', { failedRun: 1 }), { do: 'wait' }],
    ['fresh: again for another run', want({ run: 2 }), is('fresh', { failedRun: 1 }), { do: 'prepare' }],
    ['fresh: is removed', want({ desired: 'deleted' }), is('fresh', { failedRun: 1 }), { do: 'remove' }],

    ['down: a new run is started', want(), is('down', { run: 0 }), start],
    ['down: also one that is to pause', want({ desired: 'paused' }), is('down', { run: 0 }), start],
    ['down: a run that has ended stays ended', want(), is('down'), { do: 'wait' }],
    [
      'down: a run that was to stop before it came',
      want({ desired: 'stopped' }),
      is('down', { run: 0 }),
      { do: 'skip' },
    ],
    ['down: stopped is stopped', want({ desired: 'stopped' }), is('down'), { do: 'wait' }],
    ['down: is removed', want({ desired: 'deleted', run: 2 }), is('down'), { do: 'remove' }],
    ['down: a lease starts it hidden', want({ leases: 1, desired: 'stopped' }), is('down'), { ...start, hidden: true }],
    ['down: a start goes before a lease', want({ leases: 1, run: 2 }), is('down'), { ...start, run: 2 }],
    [
      'down: hidden not at once after it failed',
      want({ leases: 1 }),
      is('down', { retryAt: NOW + 5 }),
      { do: 'wait', until: NOW + 5 },
    ],
    [
      'down: its disk is resized before it starts',
      want({ run: 2 }),
      is('down', { diskDiffers: true }),
      { do: 'resize' },
    ],
    [
      'down: a resize that failed holds up no start',
      want({ run: 2 }),
      is('down', { diskDiffers: true, resizeAt: NOW + 1 }),
      { ...start, run: 2 },
    ],
    ['down: its disk is resized', want(), is('down', { diskDiffers: true, limitsDiffer: true }), { do: 'resize' }],
    ['down: its other limits are not', want(), is('down', { limitsDiffer: true }), { do: 'wait' }],

    ['starting: goes on', want(), is('starting'), { do: 'wait' }],
    ['starting: is broken off by a stop', want({ desired: 'stopped' }), is('starting'), { do: 'abort' }],
    ['starting: once', want({ desired: 'stopped' }), is('starting', { aborted: true }), { do: 'wait' }],
    ['starting: by a deletion', want({ desired: 'deleted' }), is('starting'), { do: 'abort' }],
    ['starting: by another run', want({ run: 2 }), is('starting'), { do: 'abort' }],
    ['starting: not by a pause', want({ desired: 'paused' }), is('starting'), { do: 'wait' }],
    ['starting hidden: goes on for a stop', want({ desired: 'stopped' }), is('starting', hidden), { do: 'wait' }],
    ['starting hidden: is broken off by a start', want({ run: 2 }), is('starting', hidden), { do: 'abort' }],
    ['starting hidden: by a deletion', want({ desired: 'deleted' }), is('starting', hidden), { do: 'abort' }],

    ['up: is left alone', want(), is('up'), { do: 'wait' }],
    ['up: is stopped', want({ desired: 'stopped' }), is('up'), stop],
    ['up: is stopped to be deleted', want({ desired: 'deleted' }), is('up'), stop],
    ['up: is stopped for another run', want({ run: 2 }), is('up'), stop],
    ['up: is frozen', want({ desired: 'paused' }), is('up'), { do: 'freeze' }],
    [
      'up: not at once after freezing failed',
      want({ desired: 'paused' }),
      is('up', { retryAt: NOW + 7 }),
      { do: 'wait', until: NOW + 7 },
    ],
    ['up: is resized', want(), is('up', { limitsDiffer: true }), { do: 'resize' }],
    [
      'up: is resized later where that failed',
      want(),
      is('up', { limitsDiffer: true, resizeAt: NOW + 3 }),
      { do: 'wait', until: NOW + 3 },
    ],
    ['up: waits for the warning', want(), is('up', { deadline }), { do: 'wait', until: NOW + 90 }],
    [
      'up: is warned',
      want(),
      is('up', { deadline: { ...deadline, warnAt: NOW } }),
      { do: 'warn', deadline: { ...deadline, warnAt: NOW } },
    ],
    ['up: once', want(), is('up', { deadline, warnedOf: deadline.at }), { do: 'wait', until: NOW + 100 }],
    [
      'up: is stopped by its clock',
      want(),
      is('up', { deadline: { ...deadline, at: NOW } }),
      { ...stop, clock: 'idleTimeoutMs' },
    ],
    [
      'up: a request goes before the clock',
      want({ desired: 'stopped' }),
      is('up', { deadline: { ...deadline, at: 0 } }),
      stop,
    ],

    ['hidden: stays while it is leased', want({ leases: 1 }), is('up', hidden), { do: 'wait' }],
    ['hidden: a while longer', want({ hiddenUntil: NOW + 9 }), is('up', hidden), { do: 'wait', until: NOW + 9 }],
    ['hidden: then goes', want({ hiddenUntil: NOW }), is('up', hidden), { do: 'stop', killAt: NOW }],
    ['hidden: makes way for a start', want({ run: 2, leases: 1 }), is('up', hidden), { do: 'stop', killAt: NOW }],
    [
      'hidden: and for a deletion',
      want({ desired: 'deleted', leases: 1 }),
      is('up', hidden),
      { do: 'stop', killAt: NOW },
    ],
    [
      'hidden: has no clocks',
      want({ leases: 1 }),
      is('up', { ...hidden, deadline: { ...deadline, at: 0 } }),
      { do: 'wait' },
    ],

    ['frozen: stays', want({ desired: 'paused' }), is('frozen'), { do: 'wait' }],
    ['frozen: is thawed', want(), is('frozen'), { do: 'thaw' }],
    ['frozen: is stopped', want({ desired: 'stopped' }), is('frozen'), stop],
    [
      'frozen: its clock stops it',
      want({ desired: 'paused' }),
      is('frozen', { deadline: { ...deadline, at: NOW } }),
      { ...stop, clock: 'idleTimeoutMs' },
    ],

    [
      'stopping: waits out the grace',
      want({ desired: 'stopped' }),
      is('stopping', { killAt: NOW + 4 }),
      { do: 'wait', until: NOW + 4 },
    ],
    ['stopping: kills after it', want({ desired: 'stopped' }), is('stopping', { killAt: NOW }), { do: 'kill' }],
    ['stopping: once', want({ desired: 'stopped' }), is('stopping', { killAt: NOW, killed: true }), { do: 'wait' }],
    [
      'stopping: is hurried by a later command',
      want({ desired: 'stopped', generation: 2, graceMs: 1 }),
      is('stopping', { killAt: NOW + 100 }),
      { do: 'stop', killAt: NOW + 1 },
    ],
    [
      'stopping: not by the same',
      want({ desired: 'stopped', graceMs: 1 }),
      is('stopping', { killAt: NOW + 100 }),
      { do: 'wait', until: NOW + 100 },
    ],
    [
      'stopping: is not given more time',
      want({ desired: 'stopped', generation: 2 }),
      is('stopping', { killAt: NOW + 100 }),
      { do: 'wait', until: NOW + 100 },
    ],

    [
      'waiting: for its back-off',
      want(),
      is('waiting', { retryAt: NOW + 2, next: { run: 1, restart: 3 } }),
      { do: 'wait', until: NOW + 2 },
    ],
    ['waiting: starts again', want(), is('waiting', { next: { run: 1, restart: 3 } }), { ...start, restart: 3 }],
    [
      'waiting: starts another run at once',
      want({ run: 2 }),
      is('waiting', { retryAt: NOW + 2 }),
      { ...start, run: 2 },
    ],
    ['waiting: is stopped', want({ desired: 'stopped' }), is('waiting', { retryAt: NOW + 2 }), { do: 'rest' }],
    ['waiting: is removed', want({ desired: 'deleted' }), is('waiting'), { do: 'remove' }],

    ['clearing: goes on', want(), is('clearing', { retryAt: Number.POSITIVE_INFINITY }), { do: 'wait' }],
    ['clearing: is tried again', want(), is('clearing', { retryAt: NOW }), { do: 'clear' }],
    ['removing: is tried again', want({ desired: 'deleted' }), is('removing', { retryAt: NOW }), { do: 'remove' }],
    [
      'removing: after a while',
      want({ desired: 'deleted' }),
      is('removing', { retryAt: NOW + 1 }),
      { do: 'wait', until: NOW + 1 },
    ],
    ['preparing: is broken off', want({ desired: 'deleted' }), is('preparing'), { do: 'abort' }],
    ['preparing, broken off: ends', want({ desired: 'deleted' }), is('preparing', { aborted: true }), { do: 'wait' }],
    ['freezing: goes on', want({ desired: 'deleted' }), is('freezing'), { do: 'wait' }],
    ['removed: is over', want({ desired: 'deleted' }), is('removed'), { do: 'end' }],
  ])('%s', (_, wanted, observed, expected) => {
    expect(nextStep(wanted, observed, NOW)).toEqual(expected)
  })
})

/** A machine that does what it is told at once, to see that what is wanted comes about. */
function carryOut(observed: Observed, step: Step, now: number): Observed {
  const to = (...events: readonly ResidentEvent[]) =>
    events.reduce<ResidentPhase>((phase, event) => residentLifecycle.next(phase, event), observed.phase)
  switch (step.do) {
    case 'prepare':
      return { ...observed, phase: to('prepare', 'done') }
    case 'start':
      return { ...observed, phase: to('start', 'done'), hidden: step.hidden, run: step.run }
    case 'abort':
    case 'kill':
      return { ...observed, phase: to('ended', 'done'), killed: false }
    case 'freeze':
      return { ...observed, phase: to('freeze', 'done') }
    case 'thaw':
      return { ...observed, phase: to('thaw') }
    case 'stop':
      return { ...observed, phase: to('stop'), killAt: Math.min(step.killAt, now) }
    case 'skip':
      return { ...observed, run: observed.run + 1 }
    case 'rest':
      return { ...observed, phase: to('rest'), next: undefined }
    case 'remove':
      return { ...observed, phase: observed.phase === 'removing' ? to('done') : to('remove', 'done') }
    case 'clear':
      return { ...observed, phase: to('done') }
    case 'resize':
      return { ...observed, limitsDiffer: false, diskDiffers: false }
    case 'warn':
      return { ...observed, warnedOf: step.deadline.at }
    case 'wait':
    case 'end':
      return observed
  }
}

test('whatever is and whatever is wanted: it comes about in a few steps, and then nothing is done any more', () => {
  const desires = fc.record({
    desired: fc.constantFrom('running', 'paused', 'stopped', 'deleted'),
    generation: fc.integer({ min: 1, max: 3 }),
    run: fc.integer({ min: 0, max: 3 }),
    graceMs: fc.nat(1000),
    leases: fc.nat(1),
    hiddenUntil: fc.constant(0),
  })
  const settled = residentPhases.filter((phase) => !['preparing', 'starting', 'freezing'].includes(phase))
  const states = fc.record({
    phase: fc.constantFrom(...settled),
    hidden: fc.boolean(),
    run: fc.integer({ min: 0, max: 3 }),
    diskDiffers: fc.boolean(),
    limitsDiffer: fc.boolean(),
  })
  fc.assert(
    fc.property(desires, states, (desire, state) => {
      const wanted: Desire = { ...desire, run: Math.max(desire.run, state.run) }
      let now = is(state.phase, { ...state, hidden: state.hidden && state.phase === 'up', killAt: 0 })
      if (now.phase === 'frozen' && now.run === 0) return
      let step = nextStep(wanted, now, NOW)
      for (let i = 0; i < 12 && step.do !== 'wait' && step.do !== 'end'; i++) {
        now = carryOut(now, step, NOW)
        step = nextStep(wanted, now, NOW)
      }
      expect(['wait', 'end']).toContain(step.do)
      if (wanted.desired === 'deleted') expect(now.phase).toBe('removed')
      if (wanted.desired === 'stopped' && now.phase === 'up') expect(now.hidden).toBe(true)
      if (wanted.desired === 'paused' && now.phase === 'up') expect(now.hidden).toBe(true)
      if (now.phase === 'frozen') expect(wanted.desired).toBe('paused')
      if (now.phase !== 'removed') expect(now.run).toBe(wanted.run)
    }),
    { numRuns: 2000 },
  )
})
