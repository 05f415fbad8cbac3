import { expect, test } from '@jest/globals'
import { Turns } from './turns.js'

/** Takes a turn and says so. */
function taking(turns: Turns, signal?: AbortSignal) {
  const state = { got: false, error: undefined as unknown }
  const done = turns.take(signal).then(
    () => {
      state.got = true
    },
    (error: unknown) => {
      state.error = error
    },
  )
  return { state, done }
}

test('so many at once, the others in the order they came', async () => {
  const turns = new Turns(2)
  const all = [taking(turns), taking(turns), taking(turns), taking(turns)]
  await Promise.all([all[0]?.done, all[1]?.done])
  expect(all.map(({ state }) => state.got)).toEqual([true, true, false, false])
  turns.release()
  await all[2]?.done
  expect(all.map(({ state }) => state.got)).toEqual([true, true, true, false])
  turns.release()
  await all[3]?.done
})

test('who leaves the queue takes nobody’s turn', async () => {
  const turns = new Turns(1)
  await turns.take()
  const leaving = new AbortController()
  const [gone, next] = [taking(turns, leaving.signal), taking(turns)]
  leaving.abort(new Error('left'))
  await gone.done
  expect(gone.state.error).toEqual(new Error('left'))
  turns.release()
  await next.done
  expect(next.state.got).toBe(true)
  const late = taking(turns, leaving.signal)
  await late.done
  expect(late.state.error).toEqual(new Error('left'))
})

test('a turn is given back whatever the work comes to', async () => {
  const turns = new Turns(1)
  await expect(turns.run(() => Promise.reject(new Error('no')))).rejects.toThrow('no')
  expect(await turns.run(async () => 'next')).toBe('next')
})
