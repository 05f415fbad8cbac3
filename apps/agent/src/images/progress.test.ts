import { Failure, type ImageStep } from '@berth/contracts'
import { createLogger } from '@berth/telemetry'
import { expect, test } from '@jest/globals'
import { steps } from './progress.js'

const log = createLogger({ name: 'test', level: 'silent' })
const digest = `sha256:${'a'.repeat(64)}`
const collect = async (items: AsyncIterable<ImageStep>) => {
  const all: ImageStep[] = []
  for await (const item of items) all.push(item)
  return all
}

test('of a layer only the latest is told, and changes of state, failures and the end at once', async () => {
  const told = await collect(
    steps(
      async (progress) => {
        for (let i = 0; i <= 1000; i++) progress.layer(digest, 'fetching', i, 1000)
        progress.retrying('cut')
        return []
      },
      new AbortController().signal,
      log,
    ),
  )
  expect(told).toEqual([
    { step: 'retry', message: 'cut' },
    { step: 'layer', digest, state: 'fetching', bytes: 1000, totalBytes: 1000 },
    { step: 'done', images: [] },
  ])
})

test('a failure is told with its code, anything else as a bug without its words', async () => {
  const failing = (error: Error) => collect(steps(() => Promise.reject(error), new AbortController().signal, log))
  expect(await failing(new Failure('registry_denied', 'no'))).toEqual([
    { step: 'failed', code: 'registry_denied', message: 'no' },
  ])
  expect(await failing(new Error('/secret/path'))).toEqual([
    { step: 'failed', code: 'internal_error', message: 'see the log of the node' },
  ])
})

test('who leaves waits for the end of the work', async () => {
  const leaving = new AbortController()
  let ended = false
  const work = () =>
    new Promise<never>((_, reject) =>
      leaving.signal.addEventListener('abort', () =>
        setImmediate(() => {
          ended = true
          reject(leaving.signal.reason)
        }),
      ),
    )
  const all = collect(steps(work, leaving.signal, log))
  leaving.abort(new Error('gone'))
  expect(await all).toEqual([])
  expect(ended).toBe(true)
})
