import { Fault } from '@berth/contracts'
import { expect, test } from '@jest/globals'
import { Drain } from '../operations/drain.js'
import { Waiters } from './waiters.js'

const forever = () => new AbortController().signal
const isDone = (value: string) => value === 'done'

function scene() {
  const drain = new Drain()
  const waiters = new Waiters(drain)
  const state = { value: 'running', looks: 0 }
  const look = async () => {
    state.looks++
    return state.value
  }
  return { drain, waiters, state, look }
}

/** Resolves once the waiter has looked `n` times. */
async function looked(state: { readonly looks: number }, n: number) {
  for (let turn = 0; state.looks < n; turn++) {
    if (turn > 1000) throw new Error(`looked ${state.looks} times, not ${n}`)
    await new Promise((resolve) => setImmediate(resolve))
  }
}

test('answers at once what is so already', async () => {
  const { waiters, look, state } = scene()
  state.value = 'done'
  expect(await waiters.until('job', look, isDone, { timeoutMs: 60_000, signal: forever() })).toBe('done')
  expect(state.looks).toBe(1)
})

test('a wake makes it look again, another job’s does not', async () => {
  const { waiters, look, state } = scene()
  const waiting = waiters.until('job', look, isDone, { timeoutMs: 60_000, signal: forever() })
  await looked(state, 1)
  waiters.wake(['other'])
  state.value = 'done'
  waiters.wake(['job'])
  expect(await waiting).toBe('done')
  expect(state.looks).toBe(2)
})

test('a change while it looks is not missed', async () => {
  const { waiters, state } = scene()
  const look = async () => {
    const seen = state.value
    if (state.looks++ === 0) {
      state.value = 'done'
      waiters.wake(['job'])
    }
    return seen
  }
  expect(await waiters.until('job', look, isDone, { timeoutMs: 900, signal: forever() })).toBe('done')
})

test('the time over, it answers what there is', async () => {
  const { waiters, look } = scene()
  expect(await waiters.until('job', look, isDone, { timeoutMs: 20, signal: forever() })).toBe('running')
  expect(await waiters.until('job', look, isDone, { timeoutMs: 0, signal: forever() })).toBe('running')
})

test('without any wake it finds out by itself', async () => {
  const { waiters, look, state } = scene()
  const waiting = waiters.until('job', look, isDone, { timeoutMs: 10_000, signal: forever() })
  await looked(state, 1)
  state.value = 'done'
  expect(await waiting).toBe('done')
})

test('a client that goes frees its waiter', async () => {
  const { waiters, look, state } = scene()
  const client = new AbortController()
  const waiting = waiters.until('job', look, isDone, { timeoutMs: 60_000, signal: client.signal })
  await looked(state, 1)
  expect(waiters.size).toBe(1)
  client.abort(new Error('gone'))
  await expect(waiting).rejects.toThrow('gone')
  expect(waiters.size).toBe(0)
})

test('a shutdown answers all who wait', async () => {
  const { drain, waiters, look, state } = scene()
  const waiting = Array.from({ length: 100 }, (_, i) =>
    waiters.until(`job ${i}`, look, isDone, { timeoutMs: 60_000, signal: forever() }),
  )
  await looked(state, 100)
  drain.begin()
  expect(new Set(await Promise.all(waiting))).toEqual(new Set(['running']))
  expect(waiters.size).toBe(0)
})

test('an outage during the wait is waited out', async () => {
  const { waiters } = scene()
  const answers: (() => Promise<string>)[] = [
    async () => 'running',
    () => Promise.reject(new Fault('looking', { cause: 'no database' })),
    async () => 'done',
  ]
  let looks = 0
  const look = () => {
    const answer = answers[looks++]
    setImmediate(() => waiters.wake(['job']))
    return answer ? answer() : Promise.reject(new Error('looked too often'))
  }
  expect(await waiters.until('job', look, isDone, { timeoutMs: 10_000, signal: forever() })).toBe('done')
  expect(looks).toBe(3)
})

test('an outage at the first look is told, unless something is known already', async () => {
  const { waiters } = scene()
  const look = () => Promise.reject(new Fault('looking', { cause: 'no database' }))
  const options = { timeoutMs: 0, signal: forever() }
  await expect(waiters.until('job', look, isDone, options)).rejects.toThrow(Fault)
  expect(await waiters.until('job', look, isDone, { ...options, known: 'queued' })).toBe('queued')
})

test('a failing look frees its waiter', async () => {
  const { waiters } = scene()
  const look = () => Promise.reject(new Error('gone'))
  await expect(waiters.until('job', look, isDone, { timeoutMs: 1000, signal: forever() })).rejects.toThrow('gone')
  expect(waiters.size).toBe(0)
})
