import { createLogger } from '@berth/telemetry'
import { expect, test } from '@jest/globals'
import { Waiters } from '../jobs/waiters.js'
import { Drain } from '../operations/drain.js'
import type { NodeQueues } from '../tokens.js'
import { Wakes } from './wakes.js'

function scene(publish: (ids: readonly string[]) => Promise<void>) {
  const lines: string[] = []
  const log = createLogger({ name: 'test', level: 'info', destination: { write: (line) => void lines.push(line) } })
  let hear: (ids: readonly string[]) => void = () => undefined
  const away = () => Promise.reject(new Error('not here'))
  const queues: NodeQueues = {
    send: away,
    ensureNodeUser: away,
    removeNode: away,
    ping: away,
    close: async () => undefined,
    publishWake: publish,
    subscribeWake: (listener) => {
      hear = listener
    },
  }
  const waiters = new Waiters(new Drain())
  const wakes = new Wakes(waiters, queues, log)
  wakes.listen()
  const until = (id: string, done: () => boolean) =>
    waiters.until(id, async () => done(), Boolean, { timeoutMs: 60_000, signal: new AbortController().signal })
  return { wakes, until, lines, hear: (ids: readonly string[]) => hear(ids) }
}

/** Resolves when `ready` does; each turn leaves time for timers. */
async function when(ready: () => boolean) {
  while (!ready()) await new Promise((resolve) => setTimeout(resolve, 1))
}

test('who waits here is woken at once, other replicas with one message for a burst', async () => {
  const published: (readonly string[])[] = []
  const { wakes, until } = scene(async (ids) => void published.push(ids))
  let done = false
  const waiting = until('sbx_1', () => done)
  await when(() => true)
  done = true
  wakes.wake(['sbx_1', 'ten_1'])
  wakes.wake(['ten_1', 'job_1'])
  expect(await waiting).toBe(true)
  await when(() => published.length > 0)
  expect(published).toEqual([['sbx_1', 'ten_1', 'job_1']])
})

test('what another replica tells wakes who waits here', async () => {
  const { until, hear } = scene(async () => undefined)
  let done = false
  const waiting = until('ten_1', () => done)
  await when(() => true)
  done = true
  hear(['ten_1'])
  expect(await waiting).toBe(true)
})

test('an outage of Redis is told once, and wakes go on here', async () => {
  let tries = 0
  const { wakes, lines } = scene(async () => {
    tries++
    throw new Error('away')
  })
  for (let i = 1; i <= 3; i++) {
    wakes.wake([`id_${i}`])
    await when(() => tries === i)
  }
  expect(lines.map((line) => JSON.parse(line).event)).toEqual(['wake.failed'])
})
