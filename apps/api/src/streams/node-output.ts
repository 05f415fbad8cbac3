import type { Readable } from 'node:stream'
import { Failure, type OutputStream } from '@berth/contracts'
import { outputPath, type Streams } from '@berth/node-rpc'
import type { AttemptOutput } from '@berth/persistence'
import { Inject, Injectable } from '@nestjs/common'
import { STREAMS } from '../tokens.js'
import { NodeDoors } from './node-doors.js'

/** Output streams of nodes, each opened with a grant for it. */
@Injectable()
export class NodeOutput {
  constructor(
    @Inject(STREAMS) private readonly streams: Streams,
    private readonly doors: NodeDoors,
  ) {}

  /** @throws output_gone (the node or what it kept is gone), node_unreachable */
  async open(
    { attemptId, nodeId }: AttemptOutput,
    part: { readonly stream: OutputStream; readonly since: number; readonly follow: boolean },
    signal: AbortSignal,
  ): Promise<Readable> {
    const door = await this.doors.of(nodeId, attemptId, 'output')
    if (!door) throw new Failure('output_gone', `node ${nodeId}, which held it, was removed`)
    const answer = await this.streams.call({ ...door, method: 'GET', path: outputPath({ attemptId, ...part }), signal })
    return answer.body
  }
}
