// node-users.ts: each node's user in Redis. Redis keeps users in memory, so all of them are set again when the API
// starts; when Redis itself comes back, the queue library does it.
import type { NodeId } from '@berth/contracts'
import { Inject, Injectable } from '@nestjs/common'
import { Secrets } from '../secrets.js'
import { DATABASE, type Database, LOG, type Logger, type NodeQueues, QUEUES } from '../tokens.js'

@Injectable()
export class NodeUsers {
  constructor(
    @Inject(DATABASE) private readonly database: Database,
    @Inject(QUEUES) private readonly queues: NodeQueues,
    private readonly secrets: Secrets,
    @Inject(LOG) private readonly log: Logger,
  ) {}

  /** Lets the node use its queue. @returns its password @throws Fault when Redis does not answer */
  async ensure(id: NodeId): Promise<string> {
    const password = this.secrets.queuePassword(id)
    await this.queues.ensureNodeUser(id, password)
    return password
  }

  /** Lets all known nodes in. What fails now is mended by the node's next join, or when Redis is back. */
  async ensureAll(): Promise<void> {
    let after: string | undefined
    do {
      const page = await this.database.nodes.list({ limit: 200, after })
      await Promise.all(page.items.map(({ id }) => this.ensure(id)))
      after = page.next ?? undefined
    } while (after !== undefined)
  }

  /** Ends the node's access, in the background: its token is void already, so a failure leaves an idle queue only. */
  remove(id: NodeId): void {
    this.queues.removeNode(id).catch((err: unknown) => this.log.warn({ err, node: id }, 'node.queue.left'))
  }
}
