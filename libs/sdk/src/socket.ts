// socket.ts: WebSockets of the API, by `ws`.
import type { IncomingMessage } from 'node:http'
import { apiError, Unreachable } from '@berth/contracts'
import { WebSocket } from 'ws'

/** How long the API may take to let a socket in, in milliseconds. */
const WITHIN_MS = 30_000
/** Most of a refusal that is read, in bytes. */
const MAX_PROBLEM = 64 * 1024

export interface SocketOptions {
  readonly headers: Readonly<Record<string, string>>
  /** What is asked for, in messages. */
  readonly what: string
  /** Ends the socket by force, at any time. */
  readonly signal: AbortSignal | undefined
}

/**
 * Opens a socket, paused.
 * @throws ApiError when the API refuses; Unreachable when it cannot be reached; the reason of `signal`
 */
export function openSocket(url: string, { headers, what, signal }: SocketOptions): Promise<WebSocket> {
  return new Promise((resolve, reject) => {
    signal?.throwIfAborted()
    const socket = new WebSocket(url, { headers, handshakeTimeout: WITHIN_MS, perMessageDeflate: false })
    const abort = () => socket.terminate()
    signal?.addEventListener('abort', abort, { once: true })
    socket.once('close', () => signal?.removeEventListener('abort', abort))
    socket.once('open', () => {
      socket.pause()
      resolve(socket)
    })
    // Once it is open an error is followed by `close`, which tells of it.
    socket.on('error', (cause) => reject(signal?.aborted ? signal.reason : new Unreachable(what, cause)))
    socket.once('unexpected-response', (_request, answer: IncomingMessage) => {
      beginning(answer)
        .then((text) => apiError(answer.statusCode ?? 0, text, answer.headers['retry-after']))
        .catch((cause: unknown) => new Unreachable(what, cause))
        .then(reject)
        .finally(() => socket.terminate())
    })
  })
}

async function beginning(answer: IncomingMessage): Promise<string> {
  const chunks: Buffer[] = []
  let length = 0
  for await (const chunk of answer) {
    chunks.push(chunk)
    length += chunk.length
    // Leaving the loop closes the connection.
    if (length > MAX_PROBLEM) break
  }
  return Buffer.concat(chunks).toString()
}
