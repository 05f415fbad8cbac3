// sockets.ts: WebSockets. A request for one goes through the same router and the same pipeline as any other, with an
// answer written to its connection: so it is authenticated, counted, parsed, logged and refused (by a problem document)
// in one way only. A handler that wants it finishes the handshake.
import { type IncomingMessage, type Server, ServerResponse } from 'node:http'
import { Socket } from 'node:net'
import type { Duplex } from 'node:stream'
import { Failure, invariant, type Route } from '@berth/contracts'
import { closeOf, closeSocket, isWebSocket, SocketAcceptor, type WebSocket } from '@berth/node-rpc'
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'

interface Upgrade {
  readonly connection: Duplex
  readonly head: Buffer
  socket?: WebSocket
}

/** Requests that ask for a WebSocket. */
const upgrades = new WeakMap<IncomingMessage, Upgrade>()
const acceptor = new SocketAcceptor()

/** Handles upgrades of a server whose routes are all registered, or will be. */
export function installSockets(fastify: FastifyInstance): void {
  const { server } = fastify
  server.on('upgrade', (request: IncomingMessage, connection: Duplex, head: Buffer) => {
    // A client may reset at any time; the request's handling learns of it by `close`.
    connection.on('error', () => undefined)
    invariant(connection instanceof Socket, 'HTTP/1.1 upgrades happen on sockets')
    if (!isWebSocket(request)) {
      goOnWithout(server, request, connection, head)
      return
    }
    upgrades.set(request, { connection, head })
    const response = new ServerResponse(request)
    response.shouldKeepAlive = false
    response.assignSocket(connection)
    response.once('finish', () => connection.destroySoon())
    fastify.routing(request, response)
  })
}

/**
 * Any other upgrade is declined by going on in HTTP/1.1, as RFC 9110 (7.8) lets us: clients offer h2c with requests
 * whose answer they need. Node gives such a connection away whole, so the request is read again, without the offer.
 */
function goOnWithout(server: Server, request: IncomingMessage, connection: Socket, head: Buffer): void {
  const lines = [`${request.method} ${request.url} HTTP/${request.httpVersion}`]
  for (let i = 0; i < request.rawHeaders.length; i += 2) {
    const [name = '', value = ''] = request.rawHeaders.slice(i, i + 2)
    const kept = withoutOffer(name.toLowerCase(), value)
    if (kept !== undefined) lines.push(`${name}: ${kept}`)
  }
  connection.unshift(Buffer.concat([Buffer.from(`${lines.join('\r\n')}\r\n\r\n`, 'latin1'), head]))
  server.emit('connection', connection)
}

function withoutOffer(name: string, value: string): string | undefined {
  if (name === 'upgrade' || name === 'http2-settings') return undefined
  if (name !== 'connection') return value
  const kept = value.split(',').filter((token) => !/^(upgrade|http2-settings)$/i.test(token.trim()))
  return kept.length > 0 ? kept.join(',') : undefined
}

export const isSocketRoute = (route: Route): boolean => Object.values(route.reply).includes('socket')

/** @throws upgrade_required for a plain request to a route that is a WebSocket */
export function requireUpgrade(route: Route, request: FastifyRequest): void {
  if (isSocketRoute(route) && !upgrades.has(request.raw))
    throw new Failure('upgrade_required', 'connect by WebSocket (RFC 6455), with Connection: Upgrade')
}

/** See `Call.socket`. */
export async function acceptSocket(request: FastifyRequest, reply: FastifyReply): Promise<WebSocket> {
  const upgrade = upgrades.get(request.raw)
  invariant(upgrade && !upgrade.socket, 'a socket is accepted once, on a route that is one')
  const { connection, head } = upgrade
  upgrade.socket = await acceptor.accept(request.raw, connection, head)
  reply.hijack()
  reply.code(101)
  return upgrade.socket
}

/** Closes the request's socket for an error, if there is one. @returns false where there is none */
export function closeForError(request: FastifyRequest, error: unknown): boolean {
  const socket = upgrades.get(request.raw)?.socket
  if (!socket) return false
  const { code, reason } = closeOf(error)
  socket.resume()
  closeSocket(socket, code, reason)
  return true
}

/** Whether a request has become a WebSocket. */
export const becameSocket = (request: FastifyRequest): boolean => upgrades.get(request.raw)?.socket !== undefined

/**
 * Calls back once the request's socket is closed and everyone has heard its close code, which is after its connection
 * was. @returns false where there is no socket
 */
export function onceClosed(request: FastifyRequest, closed: () => void): boolean {
  const socket = upgrades.get(request.raw)?.socket
  if (!socket) return false
  if (socket.readyState === socket.CLOSED) closed()
  else socket.once('close', () => setImmediate(closed))
  return true
}

/** Ends all that are still open. */
export function closeAllSockets(graceMs: number): void {
  acceptor.close('the server goes away', graceMs)
}
