import {
  createNode,
  deleteNode,
  getNode,
  heartbeat,
  joinNode,
  listNodes,
  NodeId,
  reportNode,
  rotateNodeToken,
  updateNode,
} from '@berth/contracts'
import { Controller } from '@nestjs/common'
import { pageAnswer, pageRequest } from '../http/paging.js'
import { type Call, Route } from '../http/route.decorator.js'
import { Reports } from '../scheduling/reports.js'
import { NodesService } from './nodes.service.js'
import { ProtocolService } from './protocol.service.js'

@Controller()
export class NodesController {
  constructor(
    private readonly nodes: NodesService,
    private readonly protocol: ProtocolService,
    private readonly reports: Reports,
  ) {}

  @Route(createNode)
  create({ body }: Call<typeof createNode>) {
    return this.nodes.create(body.name)
  }

  @Route(listNodes)
  async list({ query }: Call<typeof listNodes>) {
    return pageAnswer(await this.nodes.list(pageRequest(query, NodeId)))
  }

  @Route(getNode)
  get({ params }: Call<typeof getNode>) {
    return this.nodes.get(params.nodeId)
  }

  @Route(updateNode)
  update({ params, body }: Call<typeof updateNode>) {
    return this.nodes.update(params.nodeId, body.state)
  }

  @Route(rotateNodeToken)
  rotateToken({ params }: Call<typeof rotateNodeToken>) {
    return this.nodes.rotateToken(params.nodeId)
  }

  @Route(deleteNode)
  delete({ params }: Call<typeof deleteNode>) {
    return this.nodes.delete(params.nodeId)
  }

  @Route(joinNode)
  join({ principal, body }: Call<typeof joinNode>) {
    return this.protocol.join(principal.nodeId, body)
  }

  @Route(heartbeat)
  heartbeat({ principal, body }: Call<typeof heartbeat>) {
    return this.protocol.heartbeat(principal.nodeId, body)
  }

  @Route(reportNode)
  async report({ principal, body }: Call<typeof reportNode>) {
    return { stored: await this.reports.store(principal.nodeId, body.reports) }
  }
}
