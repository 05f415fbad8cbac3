import { expect, test } from '@jest/globals'
import { Recent } from './recent.js'

function scene(atMost = 100) {
  const time = { now: 10_000 }
  const recent = new Recent<number>({ clock: { now: () => new Date(time.now) }, forMs: 800, atMost })
  const asked: string[] = []
  const get = (key: string) =>
    recent.get(key, async () => {
      asked.push(key)
      return asked.length
    })
  return { time, recent, asked, get }
}

test('an answer is used again until it is old', async () => {
  const { time, get } = scene()
  expect(await get('a')).toBe(1)
  time.now += 799
  expect(await get('a')).toBe(1)
  time.now += 1
  expect(await get('a')).toBe(2)
})

test('it is as old as the question, however long the answer took', async () => {
  const { time, recent } = scene()
  let answer: (value: number) => void = () => undefined
  const slow = recent.get('a', () => new Promise((resolve) => (answer = resolve)))
  time.now += 900
  answer(1)
  expect(await slow).toBe(1)
  expect(await recent.get('a', async () => 2)).toBe(2)
})

test('who asks at the same time shares the question', async () => {
  const { get, asked } = scene()
  expect(await Promise.all([get('a'), get('a'), get('b')])).toEqual([1, 1, 2])
  expect(asked).toEqual(['a', 'b'])
})

test('a failure is not kept', async () => {
  const { recent, get } = scene()
  await expect(recent.get('a', () => Promise.reject(new Error('no database')))).rejects.toThrow('no database')
  expect(await get('a')).toBe(1)
})

test('the oldest goes when there are too many', async () => {
  const { get, asked } = scene(2)
  for (const key of ['a', 'b', 'c', 'b', 'a']) await get(key)
  expect(asked).toEqual(['a', 'b', 'c', 'a'])
})

test('nothing outlives a clear, nor a clock that is set back', async () => {
  const { time, recent, get } = scene()
  await get('a')
  recent.clear()
  expect(await get('a')).toBe(2)
  time.now -= 60_000
  expect(await get('a')).toBe(3)
})
