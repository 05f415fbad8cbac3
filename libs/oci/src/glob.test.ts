import { expect, test } from '@jest/globals'
import { type Glob, matchEnd, matches } from './glob.js'

const star = { kind: 'many', wild: (c: string) => c !== '/' } as const
const glob: Glob = ['a', star, 'b']

test('a pattern can be matched again and again, also where matching was broken off', () => {
  const broken = () => {
    throw new Error('enough')
  }
  for (let round = 0; round < 3; round++) {
    expect([matches(glob, 'axxb'), matches(glob, 'ab'), matches(glob, 'a/b'), matches(glob, 'xxb')]).toEqual([
      ...[true, true, false, false],
    ])
    expect(() => matchEnd(glob, [...'axxb'], 0, true, broken)).toThrow('enough')
  }
})

test('the longest match, or the shortest, from any place', () => {
  const text = [...'ababab']
  expect([0, 2, 4, 1].map((from) => matchEnd(glob, text, from, true))).toEqual([6, 6, 6, undefined])
  expect([0, 2, 4, 1].map((from) => matchEnd(glob, text, from, false))).toEqual([2, 4, 6, undefined])
})
