// server.ts: a node's end of the streams. HTTPS with one route; every request needs a grant of the API. Bytes are
// copied by node streams, so a slow reader holds up its own producer and nothing is buffered beyond their marks.
import { once } from 'node:events'
import type { IncomingMessage, ServerResponse } from 'node:http'
import { createServer, type Server } from 'node:https'
import { isIPv6 } from 'node:net'
import type { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { errnoOf, Failure, type NodeId } from '@berth/contracts'
import { verifyGrant } from './token.js'
import { type OutputRequest, parseOutputPath } from './wire.js'

/** What this library logs through; a pino logger is one. */
export interface RpcLog {
  info(fields: object, event: string): void
  warn(fields: object, event: string): void
  error(fields: object, event: string): void
}

/**
 * Opens a stream of output, or undefined when the node does not keep it. `signal` aborts when the reader is gone; the
 * stream is destroyed as well, so a producer needs the one that suits it.
 */
export type OpenOutput = (
  attemptId: OutputRequest['attemptId'],
  stream: OutputRequest['stream'],
  since: number,
  follow: boolean,
  signal: AbortSignal,
) => Readable | undefined | Promise<Readable | undefined>

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
  readonly openOutput: OpenOutput
  readonly log: RpcLog
}

export interface StreamServerHandle {
  /** `https://host:port`, to be told to the API. */
  readonly url: string
  /** Cuts the streams that are open: readers resume from their offset once the node is back. */
  close(): Promise<void>
}

const MAX_CONNECTIONS = 4096

/** Listens. @throws the listening error, such as EADDRINUSE */
export async function serveStreams(options: ServeOptions): Promise<StreamServerHandle> {
  const { host, port, certificate, key, log } = options
  const server = createServer(
    {
      cert: certificate,
      key,
      minVersion: 'TLSv1.3',
      handshakeTimeout: 10_000,
      headersTimeout: 10_000,
      requestTimeout: 10_000,
      keepAliveTimeout: 60_000,
      maxHeaderSize: 8192,
      // A reader that vanished without a word is found after 20 s (libuv probes ten times, a second apart).
      keepAlive: true,
      keepAliveInitialDelay: 10_000,
    },
    (request, response) => void answer(options, request, response),
  )
  server.maxConnections = MAX_CONNECTIONS
  server.on('tlsClientError', (err) => log.warn({ err }, 'streams.handshake.failed'))
  server.listen(port, host)
  await once(server, 'listening')
  return { url: urlOf(server, host), close: () => closed(server) }
}

function urlOf(server: Server, host: string): string {
  const address = server.address()
  const port = typeof address === 'object' && address !== null ? address.port : 0
  return `https://${isIPv6(host) ? `[${host}]` : host}:${port}`
}

async function closed(server: Server): Promise<void> {
  const done = once(server, 'close')
  server.close()
  server.closeAllConnections()
  await done
}

/** Never rejects: what goes wrong is answered, or cuts the answer that has begun. */
async function answer(options: ServeOptions, request: IncomingMessage, response: ServerResponse): Promise<void> {
  try {
    await copyOutput(options, await authorized(options, request), response)
  } catch (error) {
    if (response.headersSent) cut(options, request, response, error)
    else if (!response.destroyed) refuse(options, request, response, error)
  }
}

async function authorized(options: ServeOptions, request: IncomingMessage): Promise<OutputRequest> {
  const { headers, method, url = '' } = request
  if (headers['transfer-encoding'] !== undefined || Number(headers['content-length'] ?? '0') !== 0)
    throw new Failure('body_too_large', 'requests have no body here')
  const wanted = method === 'GET' ? parseOutputPath(url) : undefined
  if (!wanted) throw new Failure('route_not_found', 'no such request')
  const [, token] = /^Bearer ([\w.-]{1,4096})$/.exec(headers.authorization ?? '') ?? []
  const publicKey = options.grantKey()
  if (!token || !publicKey) throw new Failure('unauthenticated', 'a grant is needed')
  const { nodeId } = options
  await verifyGrant(publicKey, token, { nodeId, action: 'output', attemptId: wanted.attemptId })
  return wanted
}

async function copyOutput(options: ServeOptions, wanted: OutputRequest, response: ServerResponse): Promise<void> {
  const gone = new AbortController()
  response.once('close', () => gone.abort())
  const { attemptId, stream, since, follow } = wanted
  const output = await options.openOutput(attemptId, stream, since, follow, gone.signal)
  if (!output) throw new Failure('output_gone', `nothing is kept of attempt ${attemptId}`)
  // The reader left while the output was being opened: `pipeline` would refuse, and leave the producer running.
  if (response.destroyed) {
    output.destroy()
    return
  }
  response.writeHead(200, { 'content-type': 'application/octet-stream', 'cache-control': 'no-store' })
  response.flushHeaders()
  await pipeline(output, response)
}

/** Ends an answer that has begun so that its reader cannot take it for whole. */
function cut(options: ServeOptions, request: IncomingMessage, response: ServerResponse, error: unknown): void {
  response.destroy()
  // What pipeline says when the reader has left, which is the reader's business.
  if (errnoOf(error) !== 'ERR_STREAM_PREMATURE_CLOSE')
    options.log.warn({ path: request.url, err: error }, 'streams.cut')
}

const statuses: Readonly<Record<string, number>> = {
  unauthenticated: 401,
  route_not_found: 404,
  output_gone: 410,
  body_too_large: 413,
}

function refuse(options: ServeOptions, request: IncomingMessage, response: ServerResponse, error: unknown): void {
  const code = error instanceof Failure ? error.code : 'internal_error'
  if (code === 'internal_error') options.log.error({ path: request.url, err: error }, 'streams.failed')
  // Closed, because a body that nobody asked for may follow.
  response.writeHead(statuses[code] ?? 500, { 'content-type': 'application/json', connection: 'close' })
  response.end(JSON.stringify({ code, detail: error instanceof Failure ? error.message : undefined }))
}
