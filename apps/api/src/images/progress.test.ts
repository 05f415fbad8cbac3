import type { Readable } from 'node:stream'
import { text } from 'node:stream/consumers'
import { expect, test } from '@jest/globals'
import { StreamableFile } from '@nestjs/common'
import { progressOf } from './progress.js'
import type { Step } from './transfers.service.js'

async function* operation(ended: () => void): AsyncGenerator<Step> {
  try {
    yield { step: 'retry', message: 'again' }
    yield { step: 'done', images: [] }
  } finally {
    ended()
  }
}

async function streamed(signal: AbortSignal, ended: () => void): Promise<Readable> {
  const answer = await progressOf({ query: {}, status: () => undefined, signal }, operation(ended))
  if (answer instanceof StreamableFile) return answer.getStream() as Readable
  throw new Error('not a stream')
}

test('an operation whose client goes before its answer was begun is ended', async () => {
  for (const when of ['before', 'after'] as const) {
    const [client, ends] = [new AbortController(), { count: 0 }]
    if (when === 'before') client.abort()
    const stream = await streamed(client.signal, () => ends.count++)
    if (when === 'after') client.abort()
    stream.destroy()
    await new Promise((done) => setImmediate(done))
    expect([when, ends.count]).toEqual([when, 1])
  }
})

test('an operation that is read to its end tells each step on a line', async () => {
  const ends = { count: 0 }
  const stream = await streamed(new AbortController().signal, () => ends.count++)
  expect(await text(stream)).toBe('{"step":"retry","message":"again"}\n{"step":"done","images":[]}\n')
  expect(ends.count).toBe(1)
})
