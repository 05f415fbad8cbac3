import { AttemptId, mintId } from '@berth/contracts'
import { describe, expect, test } from '@jest/globals'
import { type AttemptFacts, type Fate, fateOf, orphans } from './recovery.plan.js'

const id = (n: number) => AttemptId.parse(mintId('attempt', n, Buffer.alloc(10, n)))

describe('fateOf', () => {
  /** Every combination of facts, in the order accepted, spawned, canceled, ended, alive. */
  const expected = (accepted: boolean, spawned: boolean, canceled: boolean, ended: boolean, alive: boolean): Fate => {
    if (ended) return 'report'
    if (!accepted) return 'discard'
    if (spawned) return alive ? 'adopt' : 'lose'
    return canceled ? 'withdraw' : 'rerun'
  }
  const bits = Array.from({ length: 32 }, (_, n) => [16, 8, 4, 2, 1].map((bit) => (n & bit) !== 0))

  test.each(bits)(
    'accepted %s, spawned %s, canceled %s, ended %s, alive %s',
    (a = false, s = false, c = false, e = false, l = false) => {
      const facts: AttemptFacts = { id: id(1), accepted: a, spawned: s, canceled: c, ended: e, alive: l }
      expect(fateOf(facts)).toBe(expected(a, s, c, e, l))
    },
  )

  test.each<[string, Partial<AttemptFacts>, Fate]>([
    ['killed between mkdir and rename of the command', { accepted: false }, 'discard'],
    ['killed while the container was being made', {}, 'rerun'],
    ['canceled, then killed before the start', { canceled: true }, 'withdraw'],
    ['killed while the command ran', { spawned: true, alive: true }, 'adopt'],
    ['killed while a canceled command ran', { spawned: true, alive: true, canceled: true }, 'adopt'],
    ['the machine was restarted', { spawned: true }, 'lose'],
    ['killed before the report', { spawned: true, ended: true }, 'report'],
    ['killed before the release', { spawned: true, ended: true, alive: true }, 'report'],
    ['a cancel whose command never came', { accepted: false, ended: true }, 'report'],
  ])('%s', (_, facts, fate) => {
    const none = { id: id(1), accepted: true, spawned: false, canceled: false, ended: false, alive: false }
    expect(fateOf({ ...none, ...facts })).toBe(fate)
  })
})

test('orphans are what no attempt owns, of every kind', () => {
  const [mine, other] = [id(1), id(2)]
  const found = {
    containers: [mine, other, 'seccomp'],
    layers: [other],
    groups: [
      { tenant: 'ten_a', name: mine },
      { tenant: 'ten_b', name: other },
    ],
  }
  expect(orphans(found, [mine])).toEqual({
    containers: [other, 'seccomp'],
    layers: [other],
    groups: [{ tenant: 'ten_b', name: other }],
  })
  expect(orphans(found, [mine, other])).toEqual({ containers: ['seccomp'], layers: [], groups: [] })
})
