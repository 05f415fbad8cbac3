import { describe, expect, test } from '@jest/globals'
import fc from 'fast-check'
import { FairTurns, mayTake, OneTurn, type TurnLimits, whoseTurn } from './turns.js'

const forever = new AbortController().signal
const settled = () => new Promise((resolve) => setImmediate(resolve))
const all = (most: number): TurnLimits => ({ all: most, each: Number.POSITIVE_INFINITY })
const each = (most: number): TurnLimits => ({ all: Number.POSITIVE_INFINITY, each: most })

describe('who may take a turn', () => {
  test.each([
    ['the first', all(2), 0, 0, true],
    ['one who has half of all', all(2), 1, 1, false],
    ['another one then', all(2), 1, 0, true],
    ['whoever comes when all are taken', all(2), 2, 0, false],
    ['one who has fewer than are free', all(32), 15, 15, true],
    ['one who has as many as are free', all(32), 16, 16, false],
    ['one who has less than others', all(32), 23, 7, true],
    ['whoever has as many as each may', each(4), 100, 4, false],
    ['one who has fewer, whatever others have', each(4), 100, 3, true],
  ] as const)('%s', (_, limits, taken, own, may) => expect(mayTake(limits, taken, own)).toBe(may))

  test('all there are, and no more, are taken by owners enough, each of which leaves some', () => {
    fc.assert(
      fc.property(fc.integer({ min: 1, max: 64 }), fc.array(fc.nat(9), { maxLength: 300 }), (most, asking) => {
        const has = new Map<number, number>()
        let taken = 0
        for (const owner of asking) {
          const own = has.get(owner) ?? 0
          if (!mayTake(all(most), taken, own)) continue
          has.set(owner, own + 1)
          taken++
          expect(own + 1).toBeLessThanOrEqual(Math.ceil(most / 2))
        }
        expect(taken).toBeLessThanOrEqual(most)
        expect(mayTake(all(most), taken, 0)).toBe(taken < most)
      }),
    )
  })
})

test('the next is who has the fewest, then who was served longest ago, then who came first', () => {
  const [a, b, c, d] = [
    { own: 1, served: 1 },
    { own: 0, served: 4 },
    { own: 0, served: 2 },
    { own: 0, served: 2 },
  ]
  expect(whoseTurn(all(9), 1, [a, b, c, d])).toBe(c)
  expect(whoseTurn(all(9), 1, [a, b, d, c])).toBe(d)
  expect(whoseTurn(all(9), 1, [a, b])).toBe(b)
  expect(whoseTurn(all(9), 1, [a])).toBe(a)
  expect(whoseTurn(all(2), 1, [a])).toBeUndefined()
  expect(whoseTurn(all(9), 1, [])).toBeUndefined()
})

/** Turns, and in which order they were given. */
function given(limits: TurnLimits) {
  const turns = new FairTurns(limits)
  const began: string[] = []
  const held = new Map<string, () => void>()
  return {
    began,
    /** Stands in line for a turn; the first letter of its name is its owner. */
    async line(...names: readonly string[]) {
      for (const name of names)
        void turns.take(name[0] ?? '', forever).then((give) => {
          began.push(name)
          held.set(name, give)
        })
      await settled()
    },
    async end(name: string) {
      held.get(name)?.()
      await settled()
    },
    turns,
  }
}

test('one owner leaves some to others, and turns go round between owners, whoever has many in line', async () => {
  const { began, line, end } = given(all(3))
  await line('a1', 'a2', 'a3', 'a4', 'a5')
  expect(began).toEqual(['a1', 'a2'])
  await line('b1', 'b2', 'c1')
  expect(began).toEqual(['a1', 'a2', 'b1'])
  await end('a1')
  expect(began.slice(3)).toEqual(['c1'])
  await end('a2')
  expect(began.slice(4)).toEqual(['a3'])
  await end('c1')
  await end('a3')
  await end('b1')
  expect(began.slice(5)).toEqual(['a4', 'b2'])
})

test('who waits for another turn is not passed by owners that leave after theirs and come again', async () => {
  const { began, line, end } = given(all(2))
  await line('x', 'y', 'b1', 'b2', 'z')
  for (const name of ['x', 'y']) {
    await end(name)
    await line(name)
  }
  await end('b1')
  expect(began).toEqual(['x', 'y', 'b1', 'z', 'b2'])
  await end('z')
  expect(began.slice(5)).toEqual(['x'])
})

test('so many of one owner at once, the others in order, and owners do not wait for each other', async () => {
  const { began, line, end } = given(each(2))
  await line('a1', 'a2', 'a3', 'a4', 'b1')
  expect(began).toEqual(['a1', 'a2', 'b1'])
  await end('a1')
  await end('a2')
  expect(began).toEqual(['a1', 'a2', 'b1', 'a3', 'a4'])
})

test('who stops waiting takes no turn from those behind, and a turn is given back once', async () => {
  const turns = new FairTurns(each(1))
  const give = await turns.take('a', forever)
  const leaving = new AbortController()
  const left = turns.take('a', leaving.signal)
  const behind = turns.take('a', forever)
  leaving.abort(new Error('gone'))
  await expect(left).rejects.toThrow('gone')
  give()
  give()
  const last = await behind
  let isIn = false
  const next = turns.take('a', forever).then((again) => {
    isIn = true
    return again
  })
  await settled()
  expect(isIn).toBe(false)
  last()
  ;(await next)()
  await expect(turns.take('a', leaving.signal)).rejects.toThrow('gone')
})

test('one turn of several owners is of whoever it comes to first, and one that nobody wants any more goes to others', async () => {
  const turns = new FairTurns(each(1))
  const give = await turns.take('a', forever)
  const ending = new AbortController()
  const [both, left] = [new OneTurn(turns, forever), new OneTurn(turns, ending.signal)]
  for (const owner of ['a', 'a', 'b']) both.stand(owner)
  left.stand('a')
  const gone = expect(left.turn).rejects.toThrow('gone')
  const had = await both.turn
  ending.abort(new Error('gone'))
  await gone
  // Of its owners only the one whose turn it was has one.
  give()
  const again = await turns.take('a', forever)
  both.stand('c')
  ;(await turns.take('c', forever))()
  had()
  ;(await turns.take('b', forever))()
  again()
})
