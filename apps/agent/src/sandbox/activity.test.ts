import { afterEach, beforeEach, expect, jest, test } from '@jest/globals'
import { Activity } from './activity.js'

let changes: number
let saves: number
let activity: Activity
beforeEach(() => {
  void jest.useFakeTimers({ now: 1000 })
  changes = 0
  saves = 0
  activity = new Activity(
    undefined,
    () => {
      changes += 1
    },
    () => {
      saves += 1
    },
  )
})
afterEach(() => {
  jest.useRealTimers()
})

test('a touch is written down a while after, many at once', () => {
  activity.touch()
  jest.advanceTimersByTime(1000)
  activity.touch()
  expect([activity.lastAt, saves]).toEqual([2000, 0])
  jest.advanceTimersByTime(10_000)
  expect(saves).toBe(1)
  activity.flush()
  expect(saves).toBe(1)
  activity.touch()
  activity.flush()
  expect(saves).toBe(2)
})

test('there is activity until the last occupant has left, each once', () => {
  const run = new AbortController()
  const [first, second] = [activity.occupy(run.signal), activity.occupy(run.signal)]
  expect([activity.now, changes]).toEqual([true, 2])
  first()
  first()
  expect([activity.now, changes]).toEqual([true, 3])
  jest.advanceTimersByTime(500)
  second()
  expect([activity.now, activity.lastAt]).toEqual([false, 1500])
})

test('the end of the run is the end of all occupation', () => {
  const run = new AbortController()
  const leave = activity.occupy(run.signal)
  run.abort()
  expect(activity.now).toBe(false)
  leave()
  expect(activity.now).toBe(false)
  activity.occupy(run.signal)
  expect(activity.now).toBe(false)
})

test('of what is over nothing is written any more', () => {
  activity.touch()
  activity.end()
  activity.touch()
  jest.advanceTimersByTime(60_000)
  expect(saves).toBe(0)
})
