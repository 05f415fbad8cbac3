// image-nodes.ts: what nodes do with images when they are asked. A caller's request is the operation: it ends with the
// caller, with its key, and with this process, and the node then keeps nothing that anybody sees.
import type { Readable } from 'node:stream'
import { Failure, Fault, HeldImage, ImageStep, type NodeId } from '@berth/contracts'
import { type NodeAnswer, nodePath, type Query, type Streams } from '@berth/node-rpc'
import { Inject, Injectable } from '@nestjs/common'
import type { Principal } from '../http/auth.js'
import { NodeDoors } from '../streams/node-doors.js'
import { Watch } from '../streams/watch.js'
import { STREAMS } from '../tokens.js'

/** Longest line of a node's answer that is taken, in characters: an archive's images are told in one. */
const MAX_LINE = 64 * 1024 * 1024

export interface NodeRequest {
  readonly method: 'GET' | 'POST'
  readonly rest: readonly string[]
  readonly query?: Query
  /** Sent as JSON. */
  readonly json?: unknown
  /** Sent as it comes. */
  readonly body?: Readable
}

/** On whose behalf: the call ends when its client goes, or its key is revoked. */
export interface ImageCall {
  readonly principal: Principal
  readonly signal: AbortSignal
}

@Injectable()
export class ImageNodes {
  constructor(
    @Inject(STREAMS) private readonly streams: Streams,
    private readonly doors: NodeDoors,
    private readonly watch: Watch,
  ) {}

  /**
   * Calls a node. The answer's body must be read or destroyed.
   * @throws Failure node_unreachable, or with the code that the node answered
   */
  async call({ principal, signal }: ImageCall, nodeId: NodeId, request: NodeRequest): Promise<NodeAnswer> {
    const { method, rest, query, json, body = json === undefined ? undefined : JSON.stringify(json) } = request
    const door = await this.doors.of(nodeId, nodeId, 'images')
    if (!door) throw new Failure('node_unreachable', `node ${nodeId} is no more`)
    const watched = this.watch.begin(principal, signal)
    try {
      const answer = await this.streams.call({
        ...door,
        ...{ method, path: nodePath(nodeId, ['images', ...rest], query), signal: watched.signal, answerWithinMs: 0 },
        ...(body !== undefined && { body }),
      })
      answer.body.once('close', () => watched.stop())
      return answer
    } catch (error) {
      watched.stop()
      if (error instanceof Failure && error.code === 'node_unreachable') this.doors.forget(nodeId)
      throw error
    }
  }

  /** What happens, step by step; the last one is `done` or `failed`. Leaving the loop ends it. @throws as `call` */
  async *steps(call: ImageCall, nodeId: NodeId, request: NodeRequest): AsyncGenerator<ImageStep> {
    const { body } = await this.call(call, nodeId, request)
    for await (const line of linesOf(body)) {
      const step = ImageStep.safeParse(JSON.parse(line))
      if (!step.success) throw new Fault(`read what node ${nodeId} does with an image`, { cause: step.error })
      yield step.data
      if (step.data.step === 'done' || step.data.step === 'failed') return
    }
    throw new Failure('node_unreachable', `node ${nodeId} went away in the middle`)
  }

  /** An image as the node holds it. @throws image_not_found and as `call` */
  async held(call: ImageCall, nodeId: NodeId, digest: string): Promise<HeldImage> {
    const { body } = await this.call(call, nodeId, { method: 'GET', rest: [digest] })
    let text = ''
    for await (const line of linesOf(body)) text += line
    const held = HeldImage.safeParse(JSON.parse(text))
    if (held.success) return held.data
    throw new Fault(`read image ${digest} of node ${nodeId}`, { cause: held.error })
  }
}

async function* linesOf(body: Readable): AsyncGenerator<string> {
  const decoder = new TextDecoder()
  let rest = ''
  for await (const chunk of body) {
    const [first = '', ...others] = decoder.decode(chunk, { stream: true }).split('\n')
    rest += first
    for (const next of others) {
      if (rest !== '') yield rest
      rest = next
    }
    if (rest.length > MAX_LINE) throw new Fault('read the answer of a node', { cause: 'a line has no end' })
  }
  if (rest !== '') yield rest
}
