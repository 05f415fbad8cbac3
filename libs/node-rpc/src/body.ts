// body.ts: bodies that come over a connection, to be read at the reader's pace.
import type { IncomingMessage, ServerResponse } from 'node:http'
import { Readable } from 'node:stream'
import { Failure } from '@berth/contracts'

/** What a body may go on for after its request was answered, in milliseconds, before the connection is closed. */
const LINGER_MS = 2000

/**
 * The body of a request. Destroying it leaves the connection alone, so that a handler whose pipeline failed can still
 * answer why; destroying the request itself would not.
 * @param wanted called when the first byte is asked for
 * @returns bytes; fails with Failure `unavailable` when the sender goes before the end
 */
export function bodyOf(request: IncomingMessage, wanted?: () => void): Readable {
  request.pause()
  return following(request, { failure: broken, leave: () => request.pause(), wanted })
}

const broken = (cause: unknown): Error =>
  new Failure('unavailable', `the body broke off: ${cause instanceof Error ? cause.message : 'the sender has gone'}`)

interface Following {
  /** What the stream fails with when `source` fails, or is closed before its end. */
  readonly failure: (cause: unknown) => Error
  /** Called when the stream is destroyed. */
  readonly leave: () => void
  /** Called when the first byte is asked for. */
  readonly wanted?: (() => void) | undefined
}

/**
 * A stream that follows another one, with errors of its own. Not a generator around it: one that waits for a chunk
 * cannot be destroyed.
 */
export function following(source: Readable, { failure, leave, wanted }: Following): Readable {
  let begun = false
  const followed = new Readable({
    read: () => {
      if (!begun) wanted?.()
      begun = true
      source.resume()
    },
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
  // Never taken off: an error that nobody listens to would end the process. What follows may break off before anybody
  // reads it, who is told then.
  source.on('error', (cause) => followed.destroy(failure(cause)))
  followed.on('error', () => undefined)
  return followed
}

/**
 * All of a body that is not large.
 * @param limit in bytes
 * @returns undefined when there is more; then `source` is destroyed
 * @throws what `source` fails with, or what `broken` makes where it is closed before its end
 */
export function wholeOf(source: Readable, limit: number): Promise<Buffer | undefined> {
  // Not `for await`: its iterator costs a short body as much as all else about it.
  return new Promise((resolve, reject) => {
    const chunks: Buffer[] = []
    let length = 0
    const onData = (chunk: Buffer) => {
      chunks.push(chunk)
      length += chunk.length
      if (length > limit) done()
    }
    const done = () => {
      source.off('data', onData).off('end', done).off('close', onClose)
      if (length > limit) source.destroy()
      resolve(length > limit ? undefined : chunks.length === 1 && chunks[0] ? chunks[0] : Buffer.concat(chunks))
    }
    const onClose = () => reject(source.errored ?? broken(undefined))
    // Never taken off, as above.
    source.on('error', reject)
    source.on('data', onData).on('end', done).on('close', onClose)
    // It tells nothing more where that was before anybody asked for all of it.
    if (source.closed) onClose()
  })
}

/**
 * Lets a client that is still sending read the answer: what comes after it is dropped for a while. Closing at once
 * would reset the connection, and the reset may overtake the answer.
 */
export function lingerAfter(request: IncomingMessage, response: ServerResponse): void {
  response.once('finish', () => {
    const { socket } = request
    if (request.complete || socket.destroyed) return
    const cut = setTimeout(() => socket.destroy(), LINGER_MS)
    // Node lets go of an answered request: its own `close` does not come.
    const done = () => {
      clearTimeout(cut)
      request.off('end', done)
      socket.off('close', done)
    }
    request.once('end', done)
    socket.once('close', done)
    request.resume()
  })
}
