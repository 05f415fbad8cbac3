import { expect, test } from '@jest/globals'
import { atOnce } from './at-once.js'
import { Budget } from './budget.js'

const signal = new AbortController().signal
const turn = () => new Promise((done) => setImmediate(done))

test('so many at once, and results in the order of the items', async () => {
  let [running, most] = [0, 0]
  const results = await atOnce(2, [3, 1, 2, 0], signal, async (n) => {
    running++
    most = Math.max(most, running)
    for (let i = 0; i < n; i++) await turn()
    running--
    return n * 2
  })
  expect(results).toEqual([6, 2, 4, 0])
  expect(most).toBe(2)
})

test('the first that fails stops the others, which have ended by then', async () => {
  const said: string[] = []
  const work = atOnce(2, ['fails', 'waits', 'never'], signal, async (what, stop) => {
    said.push(what)
    if (what === 'fails') throw new Error('it failed')
    await new Promise<void>((done) => stop.addEventListener('abort', () => done()))
    said.push('stopped')
  })
  await expect(work).rejects.toThrow('it failed')
  expect(said).toEqual(['fails', 'waits', 'stopped'])
})

test('a caller that goes is the reason', async () => {
  const leaving = new AbortController()
  const work = atOnce(1, [1, 2], leaving.signal, async () => {
    leaving.abort(new Error('gone'))
  })
  await expect(work).rejects.toThrow('gone')
})

test('what was unpacked counts, to the byte', () => {
  const budget = new Budget(100)
  budget.take(60)
  expect(budget.left).toBe(40)
  budget.take(40)
  expect(() => budget.take(1)).toThrow(expect.objectContaining({ code: 'quota_exceeded' }))
  expect(new Budget(undefined).left).toBe(64 * 1024 ** 3)
})
