// socket.ts: what both ends of a WebSocket share. `ws` is the library: it is what everyone uses, without dependencies.
import type { IncomingMessage } from 'node:http'
import type { Duplex } from 'node:stream'
import { type ErrorCode, Failure, problems } from '@berth/contracts'
import { type WebSocket, WebSocketServer } from 'ws'

export type { WebSocket } from 'ws'

/** Largest message, in bytes; a larger one closes the connection with 1009. */
export const MAX_MESSAGE = 1024 * 1024

/** Close codes of our own; see the routes' descriptions. */
export const closeCodes = {
  ended: 1000,
  goingAway: 1001,
  bug: 1011,
  badFrame: 4400,
  revoked: 4401,
  gone: 4404,
} as const

/** Accepts WebSockets on connections that ask for an upgrade. */
export class SocketAcceptor {
  // No compression: it would hold 300 KiB a connection, and sandboxes' output would be an oracle for what is beside it.
  readonly #server = new WebSocketServer({
    noServer: true,
    maxPayload: MAX_MESSAGE,
    perMessageDeflate: false,
    handleProtocols: () => false,
  })

  /**
   * Finishes the handshake. The socket comes **paused**, so that nothing is lost before there is a listener: add
   * listeners, then `resume()` it.
   * @throws Failure invalid_request for a handshake that is none, unavailable when the client has gone
   */
  accept(request: IncomingMessage, connection: Duplex, head: Buffer): Promise<WebSocket> {
    checkHandshake(request)
    return new Promise((resolve, reject) => {
      const gone = () => reject(new Failure('unavailable', 'the client has gone'))
      if (connection.destroyed) return gone()
      connection.once('close', gone)
      this.#server.handleUpgrade(request, connection, head, (socket) => {
        connection.off('close', gone)
        socket.pause()
        // What is wrong with a socket is told by its close; unheard, the error would end the process.
        socket.on('error', () => undefined)
        resolve(socket)
      })
    })
  }

  /** Closes all sockets, those that do not answer within `graceMs` by force. */
  close(reason: string, graceMs: number): void {
    for (const socket of this.#server.clients) {
      socket.resume()
      socket.close(closeCodes.goingAway, reason)
    }
    setTimeout(() => {
      for (const socket of this.#server.clients) socket.terminate()
    }, graceMs)
  }
}

export const isWebSocket = ({ headers }: IncomingMessage): boolean => headers.upgrade?.toLowerCase() === 'websocket'

/** RFC 6455, section 4.2.1. `ws` checks this too, but would answer by itself. */
function checkHandshake(request: IncomingMessage): void {
  const { method, headers } = request
  const wrong = (message: string) => new Failure('invalid_request', `not the handshake of a WebSocket: ${message}`)
  if (method !== 'GET' || !isWebSocket(request)) throw wrong('it begins with GET and Upgrade: websocket')
  if (headers['sec-websocket-version'] !== '13') throw wrong('Sec-WebSocket-Version must be 13')
  if (!/^[+/0-9A-Za-z]{22}==$/.test(headers['sec-websocket-key'] ?? ''))
    throw wrong('Sec-WebSocket-Key must be 16 bytes in base64')
}

/** The close code and reason by which an error of an open socket is told. */
export function closeOf(error: unknown): { readonly code: number; readonly reason: string } {
  if (!(error instanceof Failure)) return { code: closeCodes.bug, reason: 'internal_error' }
  return { code: closeCodeOf(error.code), reason: `${error.code}: ${error.message}` }
}

function closeCodeOf(code: ErrorCode): number {
  if (code === 'unavailable' || code === 'node_unreachable') return closeCodes.goingAway
  // 4xx of HTTP, with the 4000 that RFC 6455 leaves to applications.
  const { status } = problems[code]
  return status >= 400 && status < 500 ? closeFor(status) : closeCodes.bug
}

const closeFor = (status: number): number => 4000 + (status === 410 ? 404 : status)

/** Closes with a reason cut to what a close frame holds (123 bytes of UTF-8), whatever state the socket is in. */
export function closeSocket(socket: WebSocket, code: number, reason: string): void {
  let text = reason.slice(0, 123)
  while (Buffer.byteLength(text) > 123) text = text.slice(0, -1)
  socket.close(code, text)
}
