import type { Readable } from 'node:stream'
import { Failure, type OutputStream } from '@berth/contracts'
import { GRANT_LIFETIME_MS, type Streams, signGrant } from '@berth/node-rpc'
import type { AttemptOutput } from '@berth/persistence'
import { Inject, Injectable } from '@nestjs/common'
import { Secrets } from '../secrets.js'
import { CLOCK, type Clock, DATABASE, type Database, STREAMS } from '../tokens.js'

/** Output streams of nodes, each opened with a grant for it. */
@Injectable()
export class NodeOutput {
  constructor(
    @Inject(DATABASE) private readonly database: Database,
    @Inject(STREAMS) private readonly streams: Streams,
    private readonly secrets: Secrets,
    @Inject(CLOCK) private readonly clock: Clock,
  ) {}

  /** @throws output_gone (the node or what it kept is gone), node_unreachable */
  async open(
    { attemptId, nodeId }: AttemptOutput,
    part: { readonly stream: OutputStream; readonly since: number; readonly follow: boolean },
    signal: AbortSignal,
  ): Promise<Readable> {
    const server = await this.database.nodes.streams(nodeId)
    if (!server) throw new Failure('output_gone', `node ${nodeId}, which held it, was removed`)
    const expiresAt = new Date(this.clock.now().getTime() + GRANT_LIFETIME_MS)
    const grant = await signGrant(this.secrets.grantPrivateKey, { nodeId, action: 'output', attemptId, expiresAt })
    return this.streams.openOutput({ node: { id: nodeId, ...server }, grant, attemptId, ...part, signal })
  }
}
