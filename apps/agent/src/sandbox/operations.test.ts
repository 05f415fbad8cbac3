import { expect, test } from '@jest/globals'
import { Operations } from './operations.js'

/** Work that ends when the test says so. */
function gate<T>() {
  let open: (value: T) => void = () => undefined
  let fail: (error: Error) => void = () => undefined
  const work = new Promise<T>((resolve, reject) => {
    open = resolve
    fail = reject
  })
  return { work: () => work, open, fail }
}

test('the end of a piece of work is told once, good or bad', async () => {
  let told = 0
  const operations = new Operations<number>(() => {
    told += 1
  })
  const [good, bad] = [gate<number>(), gate<number>()]
  operations.begin(good.work)
  expect([operations.underWay, operations.take()]).toEqual([true, undefined])
  good.open(5)
  await operations.settled()
  expect(told).toBeGreaterThan(0)
  expect(operations.take()).toEqual({ ok: true, change: 5 })
  expect(operations.take()).toBeUndefined()
  operations.begin(bad.work)
  const err = new Error('no')
  bad.fail(err)
  await operations.settled()
  expect(operations.take()).toEqual({ ok: false, err })
})

test('what a later piece made void is not told, and is under way until it ends', async () => {
  const operations = new Operations<string>(() => undefined)
  const [first, second] = [gate<string>(), gate<string>()]
  operations.begin(first.work)
  operations.begin(second.work)
  second.open('second')
  await new Promise((resolve) => setImmediate(resolve))
  expect(operations.take()).toEqual({ ok: true, change: 'second' })
  expect(operations.underWay).toBe(true)
  first.open('first')
  await operations.settled()
  expect([operations.take(), operations.underWay]).toEqual([undefined, false])
})

test('an end that was not looked at is void, too, once something else begins', async () => {
  const operations = new Operations<string>(() => undefined)
  operations.begin(async () => 'old')
  await operations.settled()
  const next = gate<string>()
  operations.begin(next.work)
  expect(operations.take()).toBeUndefined()
  next.open('new')
  await operations.settled()
  expect(operations.take()).toEqual({ ok: true, change: 'new' })
})
