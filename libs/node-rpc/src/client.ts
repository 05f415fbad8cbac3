// client.ts: the API's end of the streams. One pool of connections per node, good for exactly the certificate that the
// node gave when it joined; a node with a new certificate gets a new pool.
//
// Node's own client rather than undici: undici sends the head of a request with the first byte of its body, so a node
// could neither refuse an upload, nor begin with it, before its client sends something.
import { X509Certificate } from 'node:crypto'
import type { ClientRequest, IncomingHttpHeaders, IncomingMessage } from 'node:http'
import { Agent, request as httpsRequest } from 'node:https'
import { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { type PeerCertificate, TLSSocket } from 'node:tls'
import { Failure, type NodeId } from '@berth/contracts'
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
  readonly method: 'GET' | 'POST' | 'PUT' | 'PATCH' | 'DELETE'
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

/** Connections to one node; each call takes one while it lasts, what is beyond waits. */
const MAX_CONNECTIONS = 1024
/** Idle connections are closed before the node would close them, which takes a minute. */
const IDLE_MS = 30_000

interface Pool {
  readonly node: StreamNode
  readonly agent: Agent
  /** Of the node's URL. */
  readonly host: string
  readonly port: string
}

/** All connections of it are alike. Node would tell them apart by a name that it puts together, of all TLS options, for each request. */
class PinnedAgent extends Agent {
  override getName(): string {
    return 'node'
  }
}

/** Opens no connection yet. */
export function openStreams(): Streams {
  return new PooledStreams()
}

class PooledStreams implements Streams {
  private readonly pools = new Map<NodeId, Pool>()

  async call(request: CallRequest): Promise<NodeAnswer> {
    const { node, signal, body } = request
    signal.throwIfAborted()
    const failure = (cause: unknown) =>
      body instanceof Readable && body.errored instanceof Failure ? body.errored : failureOf(node, cause, signal)
    const sent = send(request, this.poolOf(node))
    const answer = await answerOf(sent, request).catch((error: unknown) => {
      throw failure(error)
    })
    const status = answer.statusCode ?? 0
    if (status >= 400) {
      const error = await refusal(request, answer, status)
      // What was not sent of the body is not wanted any more.
      if (!sent.writableFinished) sent.destroy()
      throw error
    }
    const followed = following(answer, { failure, leave: () => answer.readableEnded || sent.destroy() })
    return { status, headers: flat(answer.headers), body: followed }
  }

  async socket(request: Request): Promise<WebSocket> {
    const { node, grant, path, signal } = request
    signal.throwIfAborted()
    const socket = new WebSocket(`${node.url.replace(/^http/, 'ws')}${path}`, {
      headers: { authorization: `Bearer ${grant}` },
      agent: this.poolOf(node).agent,
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
    if (!pool) return
    // Connections in use end with what uses them.
    pool.agent.maxFreeSockets = 0
    for (const idle of Object.values(pool.agent.freeSockets).flat()) idle?.destroy()
  }

  async close(): Promise<void> {
    for (const { agent } of this.pools.values()) agent.destroy()
    this.pools.clear()
  }

  private poolOf(node: StreamNode): Pool {
    const known = this.pools.get(node.id)
    if (known?.node.url === node.url && known.node.certificate === node.certificate) return known
    this.forget(node.id)
    const { hostname, port } = new URL(node.url)
    const pool = { node, agent: pinnedAgent(node.certificate), host: hostname.replace(/^\[|\]$/g, ''), port }
    this.pools.set(node.id, pool)
    return pool
  }
}

function pinnedAgent(certificate: string): Agent {
  const fingerprint = new X509Certificate(certificate).fingerprint256
  return new PinnedAgent({
    maxSockets: MAX_CONNECTIONS,
    // Of TCP and of HTTP: a followed job may be silent for as long as it likes, a dead connection is found by probes.
    keepAlive: true,
    keepAliveMsecs: 10_000,
    timeout: IDLE_MS,
    minVersion: 'TLSv1.3',
    ca: certificate,
    // Instead of comparing names: this certificate and no other, not even one that it signed.
    checkServerIdentity: (_host: string, shown: PeerCertificate) =>
      shown.fingerprint256 === fingerprint ? undefined : new Error('the node shows another certificate'),
  })
}

/** Begins a request: its head leaves at once. Its body is destroyed when the request is over. */
function send({ grant, method, path, headers, body, signal }: CallRequest, { agent, host, port }: Pool): ClientRequest {
  const authorization = `Bearer ${grant}`
  const sent = httpsRequest({ agent, host, port, path, method, headers: { ...headers, authorization }, signal })
  // https.Agent does not turn Nagle's algorithm off, as http.Agent does: the end of a small body would wait 40 ms for
  // the acknowledgement of its beginning.
  sent.setNoDelay(true)
  // After the answer has begun it is the answer that tells of what happens.
  sent.on('error', () => undefined)
  if (!(body instanceof Readable)) {
    if (body !== undefined) sent.setHeader('content-length', Buffer.byteLength(body))
    sent.end(body)
    return sent
  }
  sent.flushHeaders()
  // Its error is the request's, or makes the request fail.
  pipeline(body, sent).catch(() => undefined)
  return sent
}

function answerOf(sent: ClientRequest, { body, answerWithinMs }: CallRequest): Promise<IncomingMessage> {
  const withinMs = answerWithinMs ?? (body instanceof Readable ? 0 : ANSWER_TIMEOUT_MS)
  const late = (ms: number) => setTimeout(() => sent.destroy(new Error(`no answer within ${ms} ms`)), ms)
  const timers = withinMs > 0 ? [late(withinMs)] : []
  // However long the answer may take, that there is a node must show.
  sent.once('socket', (socket) => {
    if (!(socket instanceof TLSSocket) || !socket.connecting) return
    const timer = late(ANSWER_TIMEOUT_MS)
    timers.push(timer)
    socket.once('secureConnect', () => clearTimeout(timer))
  })
  return new Promise<IncomingMessage>((resolve, reject) => {
    sent.once('response', resolve).once('error', reject)
    sent.once('close', () => reject(new Error('the connection was lost')))
  }).finally(() => {
    for (const timer of timers) clearTimeout(timer)
  })
}

function failureOf(node: StreamNode, error: unknown, signal: AbortSignal): Error {
  if (signal.aborted && signal.reason instanceof Error) return signal.reason
  const why = error instanceof Error ? error.message : 'the connection was lost'
  return new Failure('node_unreachable', `node ${node.id} could not be reached: ${why}`)
}

const flat = (headers: IncomingHttpHeaders): Record<string, string> =>
  Object.fromEntries(
    Object.entries(headers).flatMap(([name, value]) =>
      value === undefined ? [] : [[name, [value].flat().join(', ')]],
    ),
  )

async function refusal(request: CallRequest, answer: IncomingMessage, status: number): Promise<Error> {
  const { node, path, method, signal } = request
  const asked = `${method} ${path.split('?')[0]} of node ${node.id}`
  try {
    return errorFrom(asked, status, await beginning(answer))
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
