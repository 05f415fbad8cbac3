import type { heartbeat, joinNode, NodeId, Output } from '@berth/contracts'
import type { HeartbeatBody, JoinBody, Standing } from '@berth/persistence'
import { withoutCredentials } from '@berth/queue'
import { Inject, Injectable } from '@nestjs/common'
import type { Config } from '../config.js'
import { Changes } from '../scheduling/changes.js'
import { Secrets } from '../secrets.js'
import { NodeDoors } from '../streams/node-doors.js'
import { CONFIG, DATABASE, type Database } from '../tokens.js'
import { NodeUsers } from './node-users.js'

/** How often a node is to say that it lives, in milliseconds; it is taken for lost after 15 s (domain/placement). */
const HEARTBEAT_MS = 2000

/** What agents ask. */
@Injectable()
export class ProtocolService {
  constructor(
    @Inject(DATABASE) private readonly database: Database,
    @Inject(CONFIG) private readonly config: Config,
    private readonly secrets: Secrets,
    private readonly users: NodeUsers,
    private readonly changes: Changes,
    private readonly doors: NodeDoors,
  ) {}

  /** The node may read its queue before it is told where that is. @throws Fault when Redis does not answer: join again */
  async join(id: NodeId, body: JoinBody): Promise<Output<typeof joinNode>> {
    const password = await this.users.ensure(id)
    const { changed, ...standing } = await this.database.nodes.join(id, body)
    // It may be elsewhere than before, and will be asked for what it has as soon as it works.
    this.doors.forget(id)
    this.changes.announceSandboxes(changed)
    this.changes.roomMade()
    const redisUrl = withoutCredentials((this.config.BERTH_NODE_REDIS_URL ?? this.config.REDIS_URL).reveal())
    return {
      nodeId: id,
      queue: { redisUrl, username: id, password },
      grantKey: this.secrets.grantPublicKey,
      heartbeatMs: HEARTBEAT_MS,
      ...answerOf(standing),
    }
  }

  async heartbeat(id: NodeId, body: HeartbeatBody): Promise<Output<typeof heartbeat>> {
    const { changed, ...standing } = await this.database.nodes.heartbeat(id, body)
    this.changes.announceSandboxes(changed)
    return answerOf(standing)
  }
}

const answerOf = ({ unwanted, unwantedSandboxes, unwantedImages, tenantLimits }: Omit<Standing, 'changed'>) => ({
  unwanted: [...unwanted],
  unwantedSandboxes: [...unwantedSandboxes],
  unwantedImages: [...unwantedImages],
  tenantLimits: [...tenantLimits],
})
