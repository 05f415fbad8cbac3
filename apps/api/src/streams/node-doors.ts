import type { AttemptId, NodeId, SandboxId } from '@berth/contracts'
import { type Grant, Grants, type StreamNode } from '@berth/node-rpc'
import { Inject, Injectable } from '@nestjs/common'
import { Recent } from '../recent.js'
import { Secrets } from '../secrets.js'
import { CLOCK, type Clock, DATABASE, type Database } from '../tokens.js'

/** How long a node's address is believed, in milliseconds. One that has moved answers nothing, and is asked for anew. */
const BELIEVED_MS = 2000
const MAX_NODES = 10_000

export interface Door {
  readonly node: StreamNode
  readonly grant: string
}

/** What it takes to call a node about a subject: where it is, and a grant. */
@Injectable()
export class NodeDoors {
  private readonly grants: Grants
  private readonly servers: Recent<StreamNode | undefined>

  constructor(
    @Inject(DATABASE) private readonly database: Database,
    @Inject(CLOCK) private readonly clock: Clock,
    secrets: Secrets,
  ) {
    this.grants = new Grants(secrets.grantPrivateKey)
    this.servers = new Recent({ clock, forMs: BELIEVED_MS, atMost: MAX_NODES })
  }

  /** Undefined when there is no such node, or it has not joined yet. */
  async of(
    nodeId: NodeId,
    subject: SandboxId | AttemptId | NodeId,
    action: Grant['action'],
  ): Promise<Door | undefined> {
    const [node, grant] = await Promise.all([
      this.servers.get(nodeId, () => this.find(nodeId)),
      this.grants.get({ nodeId, subject, action }, this.clock.now()),
    ])
    return node && { node, grant }
  }

  /** Believes nothing from before of a node that did not answer: it may have come back elsewhere. */
  forget(nodeId: NodeId): void {
    this.servers.drop(nodeId)
  }

  private async find(nodeId: NodeId): Promise<StreamNode | undefined> {
    const server = await this.database.nodes.streams(nodeId)
    return server && { id: nodeId, ...server }
  }
}
