// client.ts: the API's end of the streams. One pool of connections per node, good for exactly the certificate that the
// node gave when it joined; a node with a new certificate gets a new pool.
import { X509Certificate } from 'node:crypto'
import type { IncomingMessage } from 'node:http'
import { Agent as SocketAgent } from 'node:https'
import type { Readable } from 'node:stream'
import type { PeerCertificate } from 'node:tls'
import { Failure, type NodeId } from '@berth/contracts'
import { Agent, type Dispatcher } from 'undici'
import { WebSocket } from 'ws'
import { following } from './body.js'
import { errorFrom, MAX_PROBLEM } from './problem.js'
import { MAX_MESSAGE } from './socket.js'

/** Where a node's stream server is; what it told when it joined. */
export interface StreamNode {
  readonly id: NodeId
  /** `https://host:port` */
  readonly url: string
  /** PEM; no other certificate is accepted. */
  readonly certificate: string
}

interface Request {
  readonly node: StreamNode
  /** For this node, and the subject and the action of the path; see `Grants`. */
  readonly grant: string
  /** See `sandboxPath` and `outputPath`. */
  readonly path: string
  /** Ends the call whenever it is aborted; what waits for it, or reads it, fails with the signal's reason. */
  readonly signal: AbortSignal
}

export interface CallRequest extends Request {
  readonly method: Dispatcher.HttpMethod
  readonly headers?: Readonly<Record<string, string>>
  /** Sent as it comes, and destroyed when the call is over. */
  readonly body?: Readable | Buffer | string
  /**
   * How long the node may take to begin its answer, in milliseconds. Default: 10 s, and as long as it likes where there
   * is a body that streams; 0: as long as it likes.
   */
  readonly answerWithinMs?: number
}

export interface NodeAnswer {
  readonly status: number
  readonly headers: Readonly<Record<string, string>>
  /** To be read to its end, or destroyed: it holds a connection. Fails as `call` does when the node goes on the way. */
  readonly body: Readable
}

export interface Streams {
  /**
   * Calls a node. It sends as fast as the answer is read and takes as fast as it can; it stops when either body is
   * destroyed.
   * @throws Failure with the code that the node answered, or `node_unreachable` when it does not answer or shows
   * another certificate
   * @throws Fault when the node refuses the grant or answers what makes no sense
   */
  call(request: CallRequest): Promise<NodeAnswer>
  /**
   * Opens a WebSocket of a node. It comes **paused**: add listeners, then `resume()` it. `signal` ends it by force.
   * @throws as `call`
   */
  socket(request: Request): Promise<WebSocket>
  /** Drops the connections to a node that was removed, once their streams have ended. */
  forget(nodeId: NodeId): void
  /** Cuts all calls; sockets end with their signals. */
  close(): Promise<void>
}

const ANSWER_TIMEOUT_MS = 10_000
const KEEP_ALIVE_DELAY_MS = 10_000

/** Connections to one node; each call takes one while it lasts, what is beyond waits. */
const MAX_CONNECTIONS = 1024

interface Pool {
  readonly node: StreamNode
  readonly agent: Agent
  /** Keeps the TLS sessions of sockets, so that another one costs one round trip. */
  readonly sockets: SocketAgent
}

/** Opens no connection yet. */
export function openStreams(): Streams {
  return new PooledStreams()
}

class PooledStreams implements Streams {
  private readonly pools = new Map<NodeId, Pool>()

  async call(request: CallRequest): Promise<NodeAnswer> {
    const { node, grant, method, path, headers, body, signal } = request
    signal.throwIfAborted()
    const streamed = body !== undefined && typeof body === 'object' && 'pipe' in body
    const answer = await this.poolOf(node)
      .agent.request({
        origin: node.url,
        path,
        method,
        headers: { ...headers, authorization: `Bearer ${grant}` },
        body: body ?? null,
        headersTimeout: request.answerWithinMs ?? (streamed ? 0 : ANSWER_TIMEOUT_MS),
        signal,
      })
      .catch((error) => {
        throw streamed && body.errored instanceof Failure ? body.errored : failureOf(node, error, signal)
      })
    if (answer.statusCode >= 400) throw await refusal(request, answer)
    const failure = (cause: unknown) => failureOf(node, cause, signal)
    return {
      status: answer.statusCode,
      headers: flat(answer.headers),
      body: following(answer.body, failure, () => answer.body.destroy()),
    }
  }

  async socket(request: Request): Promise<WebSocket> {
    const { node, grant, path, signal } = request
    signal.throwIfAborted()
    const socket = new WebSocket(`${node.url.replace(/^http/, 'ws')}${path}`, {
      headers: { authorization: `Bearer ${grant}` },
      agent: this.poolOf(node).sockets,
      handshakeTimeout: ANSWER_TIMEOUT_MS,
      maxPayload: MAX_MESSAGE,
      perMessageDeflate: false,
      // Checked where it is not our own end that sends it.
      skipUTF8Validation: true,
    })
    const end = () => socket.terminate()
    signal.addEventListener('abort', end, { once: true })
    socket.once('close', () => signal.removeEventListener('abort', end))
    return await opened(socket, request)
  }

  forget(nodeId: NodeId): void {
    const pool = this.pools.get(nodeId)
    this.pools.delete(nodeId)
    // Waits for its streams, and so may outlast any caller.
    void pool?.agent.close()
  }

  async close(): Promise<void> {
    const pools = [...this.pools.values()]
    this.pools.clear()
    await Promise.all(pools.map(({ agent }) => agent.destroy()))
  }

  private poolOf(node: StreamNode): Pool {
    const known = this.pools.get(node.id)
    if (known?.node.url === node.url && known.node.certificate === node.certificate) return known
    this.forget(node.id)
    const pool = { node, ...pinned(node.certificate) }
    this.pools.set(node.id, pool)
    return pool
  }
}

function pinned(certificate: string): { readonly agent: Agent; readonly sockets: SocketAgent } {
  const fingerprint = new X509Certificate(certificate).fingerprint256
  const tls = {
    minVersion: 'TLSv1.3' as const,
    ca: certificate,
    // Instead of comparing names: this certificate and no other, not even one that it signed.
    checkServerIdentity: (_host: string, shown: PeerCertificate) =>
      shown.fingerprint256 === fingerprint ? undefined : new Error('the node shows another certificate'),
  }
  const agent = new Agent({
    connections: MAX_CONNECTIONS,
    pipelining: 1,
    keepAliveTimeout: 30_000,
    // A followed job may be silent for as long as it likes; a dead connection is found by keep-alive probes.
    bodyTimeout: 0,
    connect: { timeout: ANSWER_TIMEOUT_MS, keepAlive: true, keepAliveInitialDelay: KEEP_ALIVE_DELAY_MS, ...tls },
  })
  return { agent, sockets: new SocketAgent({ ...tls }) }
}

function failureOf(node: StreamNode, error: unknown, signal: AbortSignal): Error {
  if (signal.aborted && signal.reason instanceof Error) return signal.reason
  const why = error instanceof Error ? error.message : 'the connection was lost'
  return new Failure('node_unreachable', `node ${node.id} could not be reached: ${why}`)
}

const flat = (headers: Dispatcher.ResponseData['headers']): Record<string, string> =>
  Object.fromEntries(
    Object.entries(headers).flatMap(([name, value]) =>
      value === undefined ? [] : [[name, [value].flat().join(', ')]],
    ),
  )

async function refusal({ node, path, method, signal }: CallRequest, answer: Dispatcher.ResponseData): Promise<Error> {
  const asked = `${method} ${path.split('?')[0]} of node ${node.id}`
  try {
    return errorFrom(asked, answer.statusCode, await beginning(answer.body))
  } catch (error) {
    return failureOf(node, error, signal)
  }
}

/** As much as a problem may hold; what is longer is none. */
async function beginning(body: Readable): Promise<string> {
  const chunks: Buffer[] = []
  let length = 0
  for await (const chunk of body) {
    chunks.push(chunk)
    length += chunk.length
    // Leaving the loop destroys the body.
    if (length > MAX_PROBLEM) break
  }
  return Buffer.concat(chunks).toString()
}

function opened(socket: WebSocket, { node, path, signal }: Request): Promise<WebSocket> {
  return new Promise((resolve, reject) => {
    // A dead connection is found by probes; the agent does not pass the option on.
    socket.once('upgrade', (answer) => answer.socket.setKeepAlive(true, KEEP_ALIVE_DELAY_MS))
    socket.once('open', () => {
      socket.pause()
      resolve(socket)
    })
    // After it was opened an error is followed by the close that tells of it.
    socket.on('error', (error) => reject(failureOf(node, error, signal)))
    socket.once('unexpected-response', (_request, answer: IncomingMessage) => {
      beginning(answer)
        .then((text) => errorFrom(`socket ${path.split('?')[0]} of node ${node.id}`, answer.statusCode ?? 0, text))
        .catch((error: unknown) => failureOf(node, error, signal))
        .then(reject)
        .finally(() => socket.terminate())
    })
  })
}
