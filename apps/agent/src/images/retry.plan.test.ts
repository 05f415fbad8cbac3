import { expect, test } from '@jest/globals'
import { isPassing, patience, pauseMs, retryAfterMs } from './retry.plan.js'

test('pauses double, with chance in them, up to the longest, and end', () => {
  const pauses = (chance: number) =>
    [1, 2, 3, 4, 5, 6].map((failed) => pauseMs(failed, undefined, chance, { ...patience, longestPauseMs: 3000 }))
  expect(pauses(0)).toEqual([125, 250, 500, 1000, 1500, undefined])
  expect(pauses(0.5)).toEqual([187.5, 375, 750, 1500, 2250, undefined])
})

test('what the registry asks for is waited for, unless it is too long', () => {
  expect(pauseMs(1, 5000, 0, patience)).toBe(5000)
  expect(pauseMs(5, 1, 0, patience)).toBe(2000)
  expect(pauseMs(1, 61_000, 0, patience)).toBeUndefined()
})

test.each([
  [undefined, undefined],
  ['0', 0],
  ['120', 120_000],
  ['Thu, 01 Jan 2026 00:00:10 GMT', 10_000],
  ['Wed, 31 Dec 2025 00:00:00 GMT', 0],
  ['soon', undefined],
])('Retry-After %j is %j', (header, ms) => expect(retryAfterMs(header, Date.parse('2026-01-01T00:00:00Z'))).toBe(ms))

test.each([200, 404, 401, 416, 302])('%d stays', (status) => expect(isPassing(status)).toBe(false))
test.each([408, 429, 500, 502, 503, 504])('%d passes', (status) => expect(isPassing(status)).toBe(true))
