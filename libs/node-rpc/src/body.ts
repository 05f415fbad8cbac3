// body.ts: bodies that come over a connection, to be read at the reader's pace.
import type { IncomingMessage, ServerResponse } from 'node:http'
import { Readable } from 'node:stream'
import { Failure } from '@berth/contracts'

/** What a body may go on for after its request was answered, in milliseconds, before the connection is closed. */
const LINGER_MS = 2000

/**
 * The body of a request. Destroying it leaves the connection alone, so that a handler whose pipeline failed can still
 * answer why; destroying the request itself would not.
 * @returns bytes; fails with Failure `unavailable` when the sender goes before the end
 */
export function bodyOf(request: IncomingMessage): Readable {
  request.pause()
  return following(
    request,
    (cause) => broken(cause),
    () => request.pause(),
  )
}

const broken = (cause: unknown): Error =>
  new Failure('unavailable', `the body broke off: ${cause instanceof Error ? cause.message : 'the sender has gone'}`)

/**
 * A stream that follows another one, with errors of its own. Not a generator around it: one that waits for a chunk
 * cannot be destroyed.
 * @param failure what the stream fails with when `source` fails, or ends before its end
 * @param leave called when the stream is destroyed
 */
export function following(source: Readable, failure: (cause: unknown) => Error, leave: () => void): Readable {
  const followed = new Readable({
    read: () => void source.resume(),
    destroy: (error, done) => {
      source.off('data', onData).off('end', onEnd).off('close', onClose)
      leave()
      done(error)
    },
  })
  const onData = (chunk: Buffer) => {
    if (!followed.push(chunk)) source.pause()
  }
  const onEnd = () => followed.push(null)
  const onClose = () => {
    if (!source.readableEnded) followed.destroy(failure(undefined))
  }
  source.on('data', onData).on('end', onEnd).on('close', onClose)
  // Never taken off: an error that nobody listens to would end the process.
  source.on('error', (cause) => followed.destroy(failure(cause)))
  return followed
}

/**
 * Lets a client that is still sending read the answer: what comes after it is dropped for a while. Closing at once
 * would reset the connection, and the reset may overtake the answer.
 */
export function lingerAfter(request: IncomingMessage, response: ServerResponse): void {
  response.once('finish', () => {
    if (request.complete || request.destroyed) return
    request.resume()
    const cut = setTimeout(() => request.socket.destroy(), LINGER_MS)
    request.once('close', () => clearTimeout(cut))
  })
}
