// client.ts: the API's end of the streams. One pool of connections per node, good for exactly the certificate that the
// node gave when it joined; a node with a new certificate gets a new pool.
import { X509Certificate } from 'node:crypto'
import { Readable } from 'node:stream'
import type { PeerCertificate } from 'node:tls'
import { Failure, Fault, type NodeId } from '@berth/contracts'
import { Agent, type Dispatcher } from 'undici'
import { type OutputRequest, outputPath } from './wire.js'

/** Where a node's stream server is; what it told when it joined. */
export interface StreamNode {
  readonly id: NodeId
  /** `https://host:port` */
  readonly url: string
  /** PEM; no other certificate is accepted. */
  readonly certificate: string
}

export interface OpenOutputOptions extends OutputRequest {
  readonly node: StreamNode
  /** See `signGrant`. */
  readonly grant: string
  /** Ends the stream; what reads it fails with the signal's reason. */
  readonly signal?: AbortSignal
}

export interface Streams {
  /**
   * Opens an attempt's output. The node sends as fast as the stream is read, and stops when it is destroyed.
   * @returns bytes from `since` on; fails with Failure `node_unreachable` when the node goes away on the way
   * @throws Failure `output_gone` when the node does not keep it, `node_unreachable` when it does not answer within
   * 10 s or shows another certificate
   * @throws Fault when the node refuses the grant or answers otherwise
   */
  openOutput(options: OpenOutputOptions): Promise<Readable>
  /** Drops the connections to a node that was removed, once their streams have ended. */
  forget(nodeId: NodeId): void
  /** Cuts all streams. */
  close(): Promise<void>
}

const ANSWER_TIMEOUT_MS = 10_000

/** Connections to one node; each stream takes one while it lasts, what is beyond waits. */
const MAX_CONNECTIONS = 1024

interface Pool {
  readonly node: StreamNode
  readonly agent: Agent
}

/** Opens no connection yet. */
export function openStreams(): Streams {
  return new PooledStreams()
}

class PooledStreams implements Streams {
  private readonly pools = new Map<NodeId, Pool>()

  async openOutput(options: OpenOutputOptions): Promise<Readable> {
    const { node, grant, signal } = options
    const response = await this.agentOf(node)
      .request({
        origin: node.url,
        path: outputPath(options),
        method: 'GET',
        headers: { authorization: `Bearer ${grant}` },
        ...(signal ? { signal } : {}),
      })
      .catch((error) => {
        throw failureOf(node, error, signal)
      })
    if (response.statusCode !== 200) return refused(node, options, response)
    return readable(node, response.body, signal)
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

  private agentOf(node: StreamNode): Agent {
    const known = this.pools.get(node.id)
    if (known?.node.url === node.url && known.node.certificate === node.certificate) return known.agent
    this.forget(node.id)
    const agent = pinnedAgent(node.certificate)
    this.pools.set(node.id, { node, agent })
    return agent
  }
}

function pinnedAgent(certificate: string): Agent {
  const pinned = new X509Certificate(certificate).fingerprint256
  return new Agent({
    connections: MAX_CONNECTIONS,
    pipelining: 1,
    keepAliveTimeout: 30_000,
    headersTimeout: ANSWER_TIMEOUT_MS,
    // A followed job may be silent for as long as it likes; a dead connection is found by keep-alive probes.
    bodyTimeout: 0,
    connect: {
      timeout: ANSWER_TIMEOUT_MS,
      keepAlive: true,
      keepAliveInitialDelay: 10_000,
      minVersion: 'TLSv1.3',
      ca: certificate,
      // Instead of comparing names: this certificate and no other, not even one that it signed.
      checkServerIdentity: (_host: string, shown: PeerCertificate) =>
        shown.fingerprint256 === pinned ? undefined : new Error('the node shows another certificate'),
    },
  })
}

function failureOf(node: StreamNode, error: unknown, signal: AbortSignal | undefined): Error {
  if (signal?.aborted && signal.reason instanceof Error) return signal.reason
  const why = error instanceof Error ? error.message : String(error)
  return new Failure('node_unreachable', `node ${node.id} could not be reached: ${why}`)
}

async function refused(
  node: StreamNode,
  { attemptId }: OutputRequest,
  { statusCode, body }: Dispatcher.ResponseData,
): Promise<never> {
  await body.dump({ limit: 4096 })
  if (statusCode === 404 || statusCode === 410)
    throw new Failure('output_gone', `node ${node.id} no longer keeps the output of attempt ${attemptId}`)
  throw new Fault(`reading output of attempt ${attemptId} from node ${node.id}`, { cause: `status ${statusCode}` })
}

/** The body, its errors told as ours. Not a generator around it: one that waits for a chunk cannot be destroyed. */
function readable(node: StreamNode, body: Readable, signal: AbortSignal | undefined): Readable {
  const output = new Readable({
    read: () => void body.resume(),
    destroy: (error, done) => {
      body.destroy()
      done(error)
    },
  })
  body.on('error', (error) => output.destroy(failureOf(node, error, signal)))
  body.on('end', () => output.push(null))
  body.on('data', (chunk: Buffer) => {
    if (!output.push(chunk)) body.pause()
  })
  return output
}
