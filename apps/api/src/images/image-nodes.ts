// image-nodes.ts: what nodes do with images when they are asked. What a caller leaves is kept by the node in a way that
// nobody sees.
import { Fault, HeldImage, ImageContents, ImageStep, type NodeId } from '@berth/contracts'
import type { NodeAnswer } from '@berth/node-rpc'
import { Injectable } from '@nestjs/common'
import { type CallFor, NodeCalls, type NodeRequest } from '../streams/node-calls.js'

/** Most bytes that a node is asked to take in where no quota says less. */
export const NO_LIMIT = 2 ** 50

@Injectable()
export class ImageNodes {
  constructor(private readonly nodes: NodeCalls) {}

  /** The answer's body must be read or destroyed. @throws as `NodeCalls.call` */
  call(call: CallFor, nodeId: NodeId, request: NodeRequest): Promise<NodeAnswer> {
    return this.nodes.call(call, nodeId, 'images', request)
  }

  /** What happens, step by step; the last one is `done` or `failed`. Leaving the loop ends it. @throws as `call` */
  steps(call: CallFor, nodeId: NodeId, request: NodeRequest): AsyncGenerator<ImageStep> {
    return this.nodes.values(call, nodeId, 'images', request, ImageStep, isLastStep)
  }

  /** An image as the node holds it. @throws image_not_found and as `call`; Fault where the node tells of another one */
  async held(call: CallFor, nodeId: NodeId, digest: string): Promise<HeldImage> {
    const held = await this.nodes.json(call, nodeId, 'images', { method: 'GET', rest: [digest] }, HeldImage)
    // It may be given a name by what is told: no node is to put another image under it.
    if (held.digest !== digest)
      throw new Fault(`read image ${digest} of node ${nodeId}`, { cause: `it is ${held.digest}` })
    return held
  }

  /** What is installed in an image. @throws image_not_found, scan_unavailable and as `call` */
  contents(call: CallFor, nodeId: NodeId, digest: string): Promise<ImageContents> {
    return this.nodes.json(call, nodeId, 'images', { method: 'GET', rest: [digest, 'packages'] }, ImageContents)
  }
}

export const isLastStep = ({ step }: ImageStep): boolean => step === 'done' || step === 'failed'
