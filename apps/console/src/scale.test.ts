import { expect, test } from '@jest/globals'
import fc from 'fast-check'
import { keepSince, linePath, nearest, scaleOf } from './scale.js'

test.each<[readonly number[], number, readonly number[]]>([
  [[], 1, [0, 0.25, 0.5, 0.75, 1]],
  [[0, 0], 1, [0, 0.25, 0.5, 0.75, 1]],
  [[1.3], 1, [0, 0.5, 1, 1.5]],
  [[3.9], 1, [0, 1, 2, 3, 4]],
  [[97], 1, [0, 25, 50, 75, 100]],
])('values %j have the marks %3$j', (values, least, ticks) => expect(scaleOf(values, least).ticks).toEqual(ticks))

test('bytes have marks that are round in their own unit', () => {
  const MiB = 1024 ** 2
  expect(scaleOf([300 * MiB], MiB, 1024).ticks).toEqual([0, 128 * MiB, 256 * MiB, 384 * MiB])
  expect(scaleOf([1024 * MiB], MiB, 1024).ticks.at(-1)).toBe(1024 * MiB)
})

test('a scale holds every value, in a few equal steps from zero', () => {
  const value = fc.double({ min: 0, max: 1e15, noNaN: true })
  fc.assert(
    fc.property(fc.array(value), fc.constantFrom<1000 | 1024>(1000, 1024), (values, base) => {
      const { max, ticks } = scaleOf(values, 1, base)
      expect(max).toBeGreaterThanOrEqual(Math.max(1, ...values) * (1 - 1e-9))
      expect(ticks[0]).toBe(0)
      expect(ticks.at(-1)).toBe(max)
      expect(ticks.length).toBeGreaterThanOrEqual(3)
      expect(ticks.length).toBeLessThanOrEqual(6)
    }),
  )
})

const box = { width: 100, height: 50 }
const span = { from: 0, to: 10 }

test('a line runs from left to right and from the bottom up, and is broken where there is no value', () => {
  const points = [
    { at: 0, value: 0 },
    { at: 5, value: 1 },
    { at: 6, value: null },
    { at: 10, value: 2 },
  ]
  expect(linePath(points, span, 2, box)).toBe('M0 50L50 25M100 0')
})

test('what is before the span is left out but for the point the line comes from; what is too high stays in the box', () => {
  const points = [
    { at: -9, value: 1 },
    { at: -5, value: 1 },
    { at: 5, value: 9 },
    { at: 11, value: 1 },
  ]
  expect(linePath(points, span, 2, box)).toBe('M-50 25L50 0')
  expect(linePath([{ at: -5, value: 1 }], span, 2, box)).toBe('')
  expect(keepSince(points, 5).map(({ at }) => at)).toEqual([-5, 5, 11])
  expect(keepSince(points, -20)).toBe(points)
})

test('the nearest point is one with a value', () => {
  const points = [
    { at: 1, value: 1 },
    { at: 5, value: null },
    { at: 8, value: 2 },
  ]
  expect(nearest(points, 5)).toEqual({ at: 8, value: 2 })
  expect(nearest([], 5)).toBeUndefined()
})
