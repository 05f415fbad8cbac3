// server.ts: a node's end of the streams. HTTPS; every request needs a grant of the API and names what it is about, and
// goes to the handler of its action. Bytes are copied by node streams, so a slow reader holds up its own producer and
// nothing is buffered beyond their marks.
import { once } from 'node:events'
import { type IncomingMessage, ServerResponse } from 'node:http'
import { createServer, type Server } from 'node:https'
import { isIPv6 } from 'node:net'
import type { Duplex } from 'node:stream'
import { errnoOf, Failure, invariant, type NodeId } from '@berth/contracts'
import { lingerAfter } from './body.js'
import { NodeCall, OutputCall, RestCall } from './call.js'
import { problemOf } from './problem.js'
import { closeOf, closeSocket, SocketAcceptor, type WebSocket } from './socket.js'
import { GrantCheck } from './token.js'
import { type NodeAction, parsePath, type SandboxAction, type Target } from './wire.js'

/** What this library logs through; a pino logger is one. */
export interface RpcLog {
  info(fields: object, event: string): void
  warn(fields: object, event: string): void
  error(fields: object, event: string): void
}

/**
 * What a node does with requests of one action. A Failure that it throws reaches the API as the same Failure; once an
 * answer has begun, an error cuts it so that it cannot be taken for whole.
 */
export interface SandboxHandler {
  /** Answers through `call`; resolves when the answer is out. */
  request(call: NodeCall): Promise<void>
  /**
   * Serves a WebSocket. What is thrown before `accept` is the answer to the request for it; what is thrown afterwards
   * closes it with the code of the Failure. Resolving says that the handler has no more to do: it does not close the
   * socket, which may go on by its listeners.
   * @param accept finishes the handshake. The socket comes **paused**: add listeners, then `resume()` it
   */
  socket?(call: NodeCall, accept: () => Promise<WebSocket>): Promise<void>
}

/** What a node does with requests for itself of one action; as `SandboxHandler`. */
export interface NodeHandler {
  request(call: RestCall): Promise<void>
}

export interface ServeOptions {
  readonly host: string
  /** 0: any free port. */
  readonly port: number
  /** PEM. */
  readonly certificate: string
  readonly key: string
  readonly nodeId: NodeId
  /** The API's public key, PEM; undefined until the node has joined: then everything is refused. */
  readonly grantKey: () => string | undefined
  /** Answers a request for the output of an attempt. */
  readonly output: (call: OutputCall) => Promise<void>
  /** By action; what is not there is refused. */
  readonly sandbox: Readonly<Partial<Record<SandboxAction, SandboxHandler>>>
  /** Requests for the node itself, by action; what is not there is refused. */
  readonly node?: Readonly<Partial<Record<NodeAction, NodeHandler>>>
  readonly log: RpcLog
}

export interface StreamServerHandle {
  /** `https://host:port`, to be told to the API. */
  readonly url: string
  /** Cuts the streams that are open: readers resume from their offset once the node is back. */
  close(): Promise<void>
}

const MAX_CONNECTIONS = 4096
/** Paths hold file names; see MAX_PATH. */
const MAX_HEADER = 32 * 1024
/** How long sockets may take to say good-bye at the end, in milliseconds. */
const CLOSE_GRACE_MS = 250

/** Listens. @throws the listening error, such as EADDRINUSE */
export async function serveStreams(options: ServeOptions): Promise<StreamServerHandle> {
  const { host, port } = options
  const server = new StreamServer(options)
  await server.listen(port, host)
  return { url: server.url(host), close: () => server.close() }
}

class StreamServer {
  readonly #options: ServeOptions
  readonly #server: Server
  readonly #sockets = new SocketAcceptor()
  readonly #grants = new GrantCheck()

  constructor(options: ServeOptions) {
    this.#options = options
    const { certificate, key, log } = options
    this.#server = createServer(
      {
        cert: certificate,
        key,
        minVersion: 'TLSv1.3',
        handshakeTimeout: 10_000,
        headersTimeout: 10_000,
        // A body may take as long as what sends it; without a grant it is dropped after a moment.
        requestTimeout: 0,
        keepAliveTimeout: 60_000,
        maxHeaderSize: MAX_HEADER,
        // A reader that vanished without a word is found after 20 s (libuv probes ten times, a second apart).
        keepAlive: true,
        keepAliveInitialDelay: 10_000,
      },
      (request, response) => void this.#answer(request, response),
    )
    this.#server.maxConnections = MAX_CONNECTIONS
    this.#server.on('upgrade', (request, connection, head) => void this.#upgrade(request, connection, head))
    this.#server.on('tlsClientError', (err) => log.warn({ err }, 'streams.handshake.failed'))
  }

  async listen(port: number, host: string): Promise<void> {
    this.#server.listen(port, host)
    await once(this.#server, 'listening')
  }

  url(host: string): string {
    const address = this.#server.address()
    const port = typeof address === 'object' && address !== null ? address.port : 0
    return `https://${isIPv6(host) ? `[${host}]` : host}:${port}`
  }

  async close(): Promise<void> {
    const done = once(this.#server, 'close')
    this.#server.close()
    this.#server.closeAllConnections()
    this.#sockets.close('the node restarts', CLOSE_GRACE_MS)
    await done
  }

  /** Never rejects: what goes wrong is answered, or cuts the answer that has begun. */
  async #answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    lingerAfter(request, response)
    try {
      const target = await this.#authorized(request)
      await this.#handle(target, request, response)
      invariant(response.writableEnded || response.destroyed, `${request.method} ${request.url} was not answered`)
    } catch (error) {
      if (response.headersSent) this.#cut(request, response, error)
      else if (!response.destroyed) this.#refuse(request, response, error)
    }
  }

  #handle(target: Target, request: IncomingMessage, response: ServerResponse): Promise<void> {
    const { output, sandbox, node = {} } = this.#options
    switch (target.kind) {
      case 'attempt':
        return output(new OutputCall(target, request, response))
      case 'sandbox':
        return known(sandbox[target.action], target).request(new NodeCall(target, request, response))
      case 'node':
        return known(node[target.action], target).request(new RestCall(target, request, response))
    }
  }

  async #upgrade(request: IncomingMessage, connection: Duplex, head: Buffer): Promise<void> {
    // A caller that resets while it is being let in; afterwards `ws` listens.
    connection.on('error', () => undefined)
    const response = new ServerResponse(request)
    let socket: WebSocket | undefined
    try {
      const target = await this.#authorized(request)
      const handler = target.kind === 'sandbox' ? known(this.#options.sandbox[target.action], target) : undefined
      if (target.kind !== 'sandbox' || !handler?.socket) throw new Failure('route_not_found', 'no such socket')
      const call = new NodeCall(target, request, response, connection)
      await handler.socket(call, async () => {
        socket = await this.#sockets.accept(request, connection, head)
        return socket
      })
      invariant(socket, `${request.url} was neither accepted nor refused`)
    } catch (error) {
      if (socket) this.#closeSocket(request, socket, error)
      else if (!connection.destroyed) this.#refuseSocket(request, connection, error)
    }
  }

  async #authorized(request: IncomingMessage): Promise<Target> {
    const { headers, method, url = '' } = request
    const target = parsePath(url)
    if (!target || (target.kind === 'attempt' && method !== 'GET'))
      throw new Failure('route_not_found', 'no such request')
    const [, token] = /^Bearer ([\w.-]{1,4096})$/.exec(headers.authorization ?? '') ?? []
    const publicKey = this.#options.grantKey()
    if (!token || !publicKey) throw new Failure('unauthenticated', 'a grant is needed')
    const { nodeId } = this.#options
    await this.#grants.verify(publicKey, token, { nodeId, action: target.action, subject: target.subject })
    return target
  }

  /** Ends an answer that has begun so that its reader cannot take it for whole. */
  #cut(request: IncomingMessage, response: ServerResponse, error: unknown): void {
    response.destroy()
    this.#logCut(request, error)
  }

  #closeSocket(request: IncomingMessage, socket: WebSocket, error: unknown): void {
    const { code, reason } = closeOf(error)
    socket.resume()
    closeSocket(socket, code, reason)
    if (!(error instanceof Failure)) this.#logCut(request, error)
  }

  #logCut(request: IncomingMessage, err: unknown): void {
    // What pipeline says when the reader has left, which is the reader's business.
    if (errnoOf(err) !== 'ERR_STREAM_PREMATURE_CLOSE') this.#options.log.warn({ path: request.url, err }, 'streams.cut')
  }

  #refuse(request: IncomingMessage, response: ServerResponse, error: unknown): void {
    const { status, body } = this.#problem(request, error)
    response.writeHead(status, { 'content-type': 'application/json', 'content-length': Buffer.byteLength(body) })
    response.end(body)
  }

  #refuseSocket(request: IncomingMessage, connection: Duplex, error: unknown): void {
    const { status, body } = this.#problem(request, error)
    const head = [
      `HTTP/1.1 ${status} `,
      'Connection: close',
      'Content-Type: application/json',
      `Content-Length: ${Buffer.byteLength(body)}`,
    ]
    connection.end(`${head.join('\r\n')}\r\n\r\n${body}`)
    connection.resume()
  }

  #problem(request: IncomingMessage, error: unknown): { readonly status: number; readonly body: string } {
    if (!(error instanceof Failure)) this.#options.log.error({ path: request.url, err: error }, 'streams.failed')
    return problemOf(error)
  }
}

function known<T>(handler: T | undefined, { action }: Target): T {
  if (!handler) throw new Failure('route_not_found', `this node does not know ${action}`)
  return handler
}
