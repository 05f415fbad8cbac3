import type { Readable } from 'node:stream'
import { text } from 'node:stream/consumers'
import { Failure } from '@berth/contracts'
import { expect, test } from '@jest/globals'
import { StreamableFile } from '@nestjs/common'
import { progressOf } from './progress.js'

type Step = { readonly step: string }
const telling = {
  failed: ({ code }: Failure): Step => ({ step: code }),
  done: ({ step }: Step) => (step === 'done' ? { is: 'done' } : undefined),
}

async function* operation(ended: () => void, last: Step | Failure = { step: 'done' }): AsyncGenerator<Step | Failure> {
  try {
    yield { step: 'again' }
    yield last
  } finally {
    ended()
  }
}

const asked = (signal: AbortSignal, wait?: 'done') => ({ query: { wait }, status: () => undefined, signal })

async function streamed(signal: AbortSignal, steps: AsyncGenerator<Step | Failure>): Promise<Readable> {
  const answer = await progressOf(asked(signal), steps, telling)
  if (answer instanceof StreamableFile) return answer.getStream() as Readable
  throw new Error('not a stream')
}

test('an operation whose client goes before its answer was begun is ended', async () => {
  for (const when of ['before', 'after'] as const) {
    const [client, ends] = [new AbortController(), { count: 0 }]
    if (when === 'before') client.abort()
    const stream = await streamed(
      client.signal,
      operation(() => ends.count++),
    )
    if (when === 'after') client.abort()
    stream.destroy()
    await new Promise((done) => setImmediate(done))
    expect([when, ends.count]).toEqual([when, 1])
  }
})

test('an operation that is read to its end tells each step on a line, a failure too', async () => {
  const ends = { count: 0 }
  const { signal } = new AbortController()
  const well = operation(() => ends.count++)
  expect(await text(await streamed(signal, well))).toBe('{"step":"again"}\n{"step":"done"}\n')
  const badly = operation(() => ends.count++, new Failure('image_invalid', 'no'))
  expect(await text(await streamed(signal, badly))).toBe('{"step":"again"}\n{"step":"image_invalid"}\n')
  expect(ends.count).toBe(2)
})

test('an operation that is waited for answers its end, or fails with it', async () => {
  const { signal } = new AbortController()
  const ended = () => undefined
  expect(await progressOf(asked(signal, 'done'), operation(ended), telling)).toEqual({ is: 'done' })
  const failing = operation(ended, new Failure('image_invalid', 'no'))
  await expect(progressOf(asked(signal, 'done'), failing, telling)).rejects.toMatchObject({ code: 'image_invalid' })
})
