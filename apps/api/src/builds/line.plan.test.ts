import type { TenantId } from '@berth/contracts'
import { expect, test } from '@jest/globals'
import { isKeptFor, nextInLine } from './line.plan.js'

/** Who is tried, in order, where everybody finds room; the letter is the tenant. */
function order(line: readonly string[], running: Readonly<Record<string, number>> = {}, done: readonly string[] = []) {
  const now = new Map(Object.entries(running) as [TenantId, number][])
  let left = line.map((name, number) => ({ name, number, tenantId: name.slice(0, 1) as TenantId }))
  const tried: string[] = []
  for (;;) {
    const next = nextInLine(left, now, new Set(done as readonly TenantId[]))
    if (!next) return tried
    tried.push(next.name)
    now.set(next.tenantId, (now.get(next.tenantId) ?? 0) + 1)
    left = left.filter((one) => one !== next)
  }
}

test.each([
  ['who came first, between equals', ['a1', 'b1', 'c1'], {}, ['a1', 'b1', 'c1']],
  ['who has the fewest, before who came first', ['a1', 'b1', 'c1'], { a: 2, b: 1 }, ['c1', 'b1', 'a1']],
  ['tenants in turn, however many of one wait', ['a1', 'a2', 'a3', 'b1', 'b2'], {}, ['a1', 'b1', 'a2', 'b2', 'a3']],
  ['as many of one as others have more', ['b1', 'a1', 'a2', 'a3'], { b: 2 }, ['a1', 'a2', 'b1', 'a3']],
  ['nobody', [], {}, []],
])('%s', (_, line, running, tried) => expect(order(line, running)).toEqual(tried))

test('who must wait holds up its own and nobody else', () =>
  expect(order(['a1', 'a2', 'b1', 'c1'], {}, ['a'])).toEqual(['b1', 'c1']))

test.each([
  [0, false],
  [9, false],
  [10, true],
  [19, true],
  [20, false],
  [29, false],
  [30, true],
  [49, true],
  [50, false],
  [60, true],
  [99, true],
  [100, false],
])('after %i s a node is kept for it: %s', (seconds, is) => expect(isKeptFor(seconds * 1000)).toBe(is))

test('it is kept for longer each time, as long as anything may take, and never for ever', () => {
  let [longest, now] = [0, 0]
  for (let second = 0; second < 3600; second++) {
    now = isKeptFor(second * 1000) ? now + 1 : 0
    longest = Math.max(longest, now)
  }
  expect(longest).toBe(1280)
})
