import type { Node, NodeId } from '@berth/contracts'
import type { Streams } from '@berth/node-rpc'
import type { PageOf, PageRequest } from '@berth/persistence'
import { Inject, Injectable } from '@nestjs/common'
import { Auth, hashOf, newSecret } from '../http/auth.js'
import { Changes } from '../scheduling/changes.js'
import { DATABASE, type Database, STREAMS } from '../tokens.js'
import { NodeUsers } from './node-users.js'

/** Nodes, as operators manage them. */
@Injectable()
export class NodesService {
  constructor(
    @Inject(DATABASE) private readonly database: Database,
    @Inject(STREAMS) private readonly streams: Streams,
    private readonly users: NodeUsers,
    private readonly auth: Auth,
    private readonly changes: Changes,
  ) {}

  async create(name: string): Promise<Node & { token: string }> {
    const token = newSecret('brn')
    return { ...(await this.database.nodes.create({ name, tokenHash: hashOf(token) })), token }
  }

  list(page: PageRequest): Promise<PageOf<Node>> {
    return this.database.nodes.list(page)
  }

  get(id: NodeId): Promise<Node> {
    return this.database.nodes.get(id)
  }

  async update(id: NodeId, state: 'ready' | 'draining'): Promise<Node> {
    const node = await this.database.nodes.update(id, { state })
    if (state === 'ready') this.changes.roomMade()
    return node
  }

  async rotateToken(id: NodeId): Promise<Node & { token: string }> {
    const token = newSecret('brn')
    const node = await this.database.nodes.rotateToken(id, hashOf(token))
    this.auth.forget()
    return { ...node, token }
  }

  async delete(id: NodeId): Promise<undefined> {
    const { jobs, sandboxes, builds } = await this.database.nodes.delete(id)
    this.auth.forget()
    this.streams.forget(id)
    this.users.remove(id)
    this.changes.announce(jobs)
    this.changes.announceSandboxes(sandboxes)
    for (const build of builds) this.changes.announceBuild(build)
    this.changes.roomMade()
  }
}
