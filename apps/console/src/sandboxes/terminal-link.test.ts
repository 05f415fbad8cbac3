import { TerminalId, type TerminalMessage } from '@berth/contracts'
import { expect, test } from '@jest/globals'
import fc from 'fast-check'
import { type Effect, firstStep, type Happening, type Link, step } from './terminal-link.js'

const terminal = TerminalId.parse('t1')
const told = (message: TerminalMessage): Happening => ({ type: 'message', message })
const ready = (offset: number): Happening =>
  told({ type: 'ready', terminal, mode: 'write', rows: 24, columns: 80, offset })
const screen = (offset: number): Happening => told({ type: 'screen', rows: 24, columns: 80, offset })
const pong = (id: number): Happening => told({ type: 'pong', id })

/** Runs through happenings; answers with the last state and all effects. */
function run(from: Link, ...happenings: readonly Happening[]) {
  let link = from
  const effects: Effect[] = []
  for (const one of happenings) {
    const next = step(link, one, 0.5)
    link = next.link
    effects.push(...next.effects)
  }
  return { link, effects }
}

const open = () => run(firstStep.link, ready(100), screen(100), { type: 'output', bytes: 500 }).link
const lost: Happening = { type: 'closed', code: 1006, reason: '' }

test('the first connection draws the screen on a cleared terminal; its bytes are no output', () => {
  expect(firstStep.effects).toEqual([{ do: 'connect', since: undefined }])
  const { link, effects } = run(firstStep.link, ready(100), screen(100), { type: 'output', bytes: 500 })
  expect(link).toMatchObject({ phase: { name: 'open', mode: 'write' }, offset: 100 })
  expect(effects.at(-1)).toEqual({ do: 'draw', cleared: true })
})

test('after a lost connection the rest is asked for at the byte that was reached', () => {
  const { link, effects } = run(open(), { type: 'output', bytes: 7 }, { type: 'output', bytes: 3 }, lost)
  expect(link.phase).toEqual({ name: 'waiting', retryMs: 500 })
  expect(effects.at(-1)).toEqual({ do: 'retryIn', ms: 500 })
  const again = run(link, { type: 'retry' })
  expect(again.effects).toEqual([{ do: 'connect', since: 110 }])
  const back = run(again.link, ready(110), { type: 'output', bytes: 5 })
  expect(back.link.offset).toBe(115)
  expect(back.effects.at(-1)).toEqual({ do: 'draw', cleared: false })
})

test('where the bytes are no longer kept, the screen that comes instead replaces all', () => {
  const { link } = run(open(), lost, { type: 'retry' })
  const { link: back, effects } = run(link, ready(9000), screen(9000), { type: 'output', bytes: 300 })
  expect(back.offset).toBe(9000)
  expect(effects.at(-1)).toEqual({ do: 'draw', cleared: true })
})

test('a screen that was announced and never came is not mistaken for output later', () => {
  const { link } = run(open(), screen(400), lost, { type: 'retry' }, ready(100), { type: 'output', bytes: 1 })
  expect(link).toMatchObject({ offset: 101, screenFrom: undefined })
})

test('waits grow with every failure and are short again after success', () => {
  let link = open()
  const waits: number[] = []
  for (let i = 0; i < 8; i++) {
    link = run(link, lost).link
    if (link.phase.name === 'waiting') waits.push(link.phase.retryMs)
    link = run(link, { type: 'retry' }).link
  }
  expect(waits).toEqual([500, 1000, 2000, 4000, 8000, 15_000, 15_000, 15_000])
  expect(run(link, ready(100), lost).link.phase).toEqual({ name: 'waiting', retryMs: 500 })
})

test('a connection that answers no ping is dead', () => {
  const beaten = run(open(), { type: 'beat' })
  expect(beaten.effects).toEqual([{ do: 'send', ping: 1 }])
  const alive = run(beaten.link, pong(1), { type: 'beat' })
  expect(alive.effects).toEqual([{ do: 'send', ping: 2 }])
  const dead = run(alive.link, pong(1), { type: 'beat' })
  expect(dead.link.phase.name).toBe('waiting')
  expect(dead.effects).toEqual([{ do: 'disconnect' }, { do: 'retryIn', ms: 500 }])
})

test.each([4400, 4401, 4404, 4409, 4429, 1008])('close code %d is final, until somebody asks again', (code) => {
  const { link, effects } = run(open(), { type: 'closed', code, reason: '' })
  expect(link.phase.name).toBe('refused')
  expect(effects).toEqual([])
  expect(run(link, { type: 'retry' }).effects).toEqual([])
  expect(run(link, { type: 'again' }).effects).toEqual([{ do: 'connect', since: undefined }])
})

test('why it was refused is told without the code for programs', () => {
  const { link } = run(open(), { type: 'closed', code: 4404, reason: 'share_not_found: the link was revoked' })
  expect(link.phase).toEqual({ name: 'refused', message: 'The link was revoked.' })
})

test.each([1000, 1001, 1006, 1011, 1012])('close code %d without an exit is a loss, and mended', (code) => {
  expect(run(open(), { type: 'closed', code, reason: '' }).link.phase.name).toBe('waiting')
})

test('an end is final, and what closes after it says nothing new', () => {
  const exit = told({ type: 'exit', exitCode: 3, signal: null, message: null })
  const { link } = run(open(), exit, { type: 'closed', code: 1000, reason: '' })
  expect(link.phase).toEqual({ name: 'ended', exitCode: 3, signal: null, message: '' })
})

test('who cannot draw in time takes the screen instead of the rest', () => {
  const { link, effects } = run(open(), { type: 'behind' })
  expect(link.offset).toBeUndefined()
  expect(effects).toEqual([{ do: 'disconnect' }, { do: 'connect', since: undefined }])
})

test('without a network nothing is waited for in vain, and nothing is tried twice at once', () => {
  const off = run(open(), { type: 'offline' }, { type: 'offline' }, lost)
  expect(off.effects).toEqual([{ do: 'disconnect' }, { do: 'retryIn', ms: 500 }])
  const back = run(off.link, { type: 'retry' }, { type: 'retry' })
  expect(back.effects).toEqual([{ do: 'connect', since: 100 }])
})

// A server that keeps all output, cut at random; the viewer must draw each byte once.
test('however often the connection is lost, every byte is drawn exactly once and in order', () => {
  const action = fc.oneof(
    fc.record({ do: fc.constant('send' as const), bytes: fc.integer({ min: 1, max: 50 }) }),
    fc.record({ do: fc.constant('cut' as const), keeps: fc.boolean() }),
  )
  fc.assert(
    fc.property(fc.array(action, { maxLength: 60 }), (actions) => {
      let link = run(firstStep.link, ready(0), screen(0), { type: 'output', bytes: 9 }).link
      let written = 0
      let drawnTo = 0
      for (const one of actions) {
        if (one.do === 'send') {
          written += one.bytes
          link = run(link, { type: 'output', bytes: one.bytes }).link
          drawnTo += one.bytes
        } else {
          written += 5 // while nobody was connected
          const tried = run(link, lost, { type: 'retry' })
          const connect = tried.effects.find((effect) => effect.do === 'connect')
          expect(connect).toEqual({ do: 'connect', since: drawnTo })
          link = one.keeps
            ? run(tried.link, ready(drawnTo), { type: 'output', bytes: written - drawnTo }).link
            : run(tried.link, ready(written), screen(written), { type: 'output', bytes: 77 }).link
          drawnTo = written
        }
        expect(link.offset).toBe(written)
      }
    }),
  )
})
