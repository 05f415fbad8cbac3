// build-nodes.ts: what nodes do with builds when they are asked; see build-node.ts of libs/contracts.
import type { Readable } from 'node:stream'
import {
  BuildCache,
  BuildCachePruned,
  type BuildId,
  BuildReferences,
  BuildStep,
  type NodeBuild,
  type NodeId,
  type PruneBuildCache,
  type TenantId,
} from '@berth/contracts'
import { Inject, Injectable } from '@nestjs/common'
import { type CallFor, NodeCalls } from '../streams/node-calls.js'
import { LOG, type Logger } from '../tokens.js'

/** How long a node may take for what it does at once, and for an end that somebody waits for, in milliseconds. */
const AT_ONCE_MS = 10_000
const END_MS = 3_000

@Injectable()
export class BuildNodes {
  constructor(
    private readonly nodes: NodeCalls,
    @Inject(LOG) private readonly log: Logger,
  ) {}

  /** Tells a node of a build that it is to expect. @throws as `NodeCalls.call` */
  async prepare(call: CallFor, nodeId: NodeId, id: BuildId, json: NodeBuild): Promise<void> {
    const request = { method: 'PUT', rest: [id], json, answerWithinMs: AT_ONCE_MS } as const
    const { body } = await this.nodes.call(call, nodeId, 'builds', request)
    body.resume()
  }

  /** Sends the context. @returns images that the build needs. @throws context_invalid, dockerfile_invalid */
  async context(call: CallFor, nodeId: NodeId, id: BuildId, body: Readable): Promise<BuildReferences> {
    const request = { method: 'POST', rest: [id, 'context'], body } as const
    return this.nodes.json(call, nodeId, 'builds', request, BuildReferences)
  }

  /** What happens; the last one is `done` or `failed`. Leaving the loop ends the build. @throws as `NodeCalls.call` */
  solve(
    call: CallFor,
    nodeId: NodeId,
    id: BuildId,
    images: Readonly<Record<string, string>>,
  ): AsyncGenerator<BuildStep> {
    const last = ({ step }: BuildStep) => step === 'done' || step === 'failed'
    const request = { method: 'POST', rest: [id, 'solve'], json: { images } } as const
    return this.nodes.values(call, nodeId, 'builds', request, BuildStep, last)
  }

  /** Ends a build on its node, as far as the node can be reached: it also ends what nobody asks for any more. */
  async end(nodeId: NodeId, id: BuildId): Promise<void> {
    const request = { method: 'DELETE', rest: [id], answerWithinMs: END_MS } as const
    const call = { principal: undefined, signal: AbortSignal.timeout(END_MS) }
    try {
      const { body } = await this.nodes.call(call, nodeId, 'builds', request)
      body.resume()
    } catch (err) {
      this.log.warn({ err, node: nodeId, build: id }, 'build.end.failed')
    }
  }

  cache(call: CallFor, nodeId: NodeId, tenantId: TenantId): Promise<BuildCache> {
    const request = { method: 'GET', rest: ['cache'], query: { tenantId }, answerWithinMs: AT_ONCE_MS } as const
    return this.nodes.json(call, nodeId, 'builds', request, BuildCache)
  }

  prune(call: CallFor, nodeId: NodeId, json: PruneBuildCache): Promise<BuildCachePruned> {
    return this.nodes.json(call, nodeId, 'builds', { method: 'POST', rest: ['cache', 'prune'], json }, BuildCachePruned)
  }
}
