// lines.ts: streams of JSON values as answers, one a line or as server-sent events.
import { Readable } from 'node:stream'
import { StreamableFile } from '@nestjs/common'

/** A server-sent event; `id` is what a client gives as `Last-Event-ID` to go on after it. */
export interface ServerEvent {
  readonly id?: string
  readonly event?: string
  readonly data: unknown
}

/** How long a stream of events may be silent before a comment shows that it lives, in milliseconds. */
const KEEP_ALIVE_MS = 15_000
const HIGH_WATER_BYTES = 64 * 1024

/** Answers with one JSON value a line, as fast as they are taken. What `items` waits for must end with the client. */
export const jsonLines = (items: AsyncIterable<unknown>): StreamableFile =>
  new StreamableFile(Readable.from(lines(items), { objectMode: false, highWaterMark: HIGH_WATER_BYTES }), {
    type: 'application/x-ndjson',
  })

async function* lines(items: AsyncIterable<unknown>): AsyncGenerator<string> {
  for await (const item of items) yield `${JSON.stringify(item)}\n`
}

/**
 * Answers with events in the form of the HTML standard (9.2.5), and comments in between.
 * @param signal ends waiting for the next event; `events` must end with it too
 */
export const serverSentEvents = (events: AsyncIterable<ServerEvent>, signal: AbortSignal): StreamableFile =>
  new StreamableFile(Readable.from(frames(events, signal), { objectMode: false, highWaterMark: HIGH_WATER_BYTES }), {
    type: 'text/event-stream; charset=utf-8',
  })

async function* frames(events: AsyncIterable<ServerEvent>, signal: AbortSignal): AsyncGenerator<string> {
  const source = events[Symbol.asyncIterator]()
  try {
    // At once, so that a client knows that it is connected, and how soon to come back.
    yield 'retry: 1000\n\n'
    for (let next = source.next(); ; ) {
      const result = await within(KEEP_ALIVE_MS, next, signal)
      if (result === 'silent') yield ':\n\n'
      else if (result.done) return
      else {
        yield frame(result.value)
        next = source.next()
      }
    }
  } finally {
    await source.return?.()
  }
}

/** JSON has no line breaks of its own, so one `data:` line holds it. */
const frame = ({ id, event, data }: ServerEvent): string =>
  `${id === undefined ? '' : `id: ${id}\n`}${event === undefined ? '' : `event: ${event}\n`}data: ${JSON.stringify(data)}\n\n`

function within<T>(ms: number, promise: Promise<T>, signal: AbortSignal): Promise<T | 'silent'> {
  return new Promise((resolve, reject) => {
    const settle = () => {
      clearTimeout(timer)
      signal.removeEventListener('abort', abort)
    }
    const abort = () => {
      settle()
      reject(signal.reason)
    }
    const timer = setTimeout(() => {
      settle()
      resolve('silent')
    }, ms)
    signal.addEventListener('abort', abort, { once: true })
    if (signal.aborted) abort()
    promise.then(resolve, reject).finally(settle)
  })
}
