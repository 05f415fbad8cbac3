// node-calls.ts: requests that a node itself answers. A caller's request is the operation: it ends with the caller, with its
// key, and with this process.
import type { Readable } from 'node:stream'
import { Failure, Fault, type NodeId } from '@berth/contracts'
import { type NodeAction, type NodeAnswer, nodePath, type Query, type Streams, wholeOf } from '@berth/node-rpc'
import { Inject, Injectable } from '@nestjs/common'
import type { z } from 'zod'
import type { Principal } from '../http/auth.js'
import { STREAMS } from '../tokens.js'
import { NodeDoors } from './node-doors.js'
import { Watch } from './watch.js'

/** Longest line of a node's answer that is taken, in characters: an archive's images are told in one. */
const MAX_LINE = 64 * 1024 * 1024
/** Largest answer that is taken whole, in bytes. */
const MAX_ANSWER = 64 * 1024 * 1024

export interface NodeRequest {
  readonly method: 'GET' | 'POST' | 'PUT' | 'DELETE'
  /** Words of the path after the action. */
  readonly rest: readonly string[]
  readonly query?: Query
  /** Sent as JSON. */
  readonly json?: unknown
  /** Sent as it comes. */
  readonly body?: Readable
  /** How long the node may take to begin its answer, in milliseconds. Default 0: as long as it likes. */
  readonly answerWithinMs?: number
}

/** On whose behalf: the call ends when its client goes, or its key is revoked; undefined where it depends on no key. */
export interface CallFor {
  readonly principal: Principal | undefined
  readonly signal: AbortSignal
}

@Injectable()
export class NodeCalls {
  constructor(
    @Inject(STREAMS) private readonly streams: Streams,
    private readonly doors: NodeDoors,
    private readonly watch: Watch,
  ) {}

  /**
   * Calls a node. The answer's body must be read or destroyed.
   * @throws Failure node_unreachable, or with the code that the node answered
   */
  async call(
    { principal, signal }: CallFor,
    nodeId: NodeId,
    action: NodeAction,
    request: NodeRequest,
  ): Promise<NodeAnswer> {
    const { method, rest, query, json, body = json === undefined ? undefined : JSON.stringify(json) } = request
    const door = await this.doors.of(nodeId, nodeId, action)
    if (!door) throw new Failure('node_unreachable', `node ${nodeId} is no more`)
    const watched = this.watch.begin(principal, signal)
    try {
      const answer = await this.streams.call({
        ...door,
        ...{ method, path: nodePath(nodeId, [action, ...rest], query), signal: watched.signal },
        ...{ answerWithinMs: request.answerWithinMs ?? 0 },
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

  /** Calls, and reads the answer as JSON of a schema. @throws as `call`; Fault for an answer of another shape */
  async json<S extends z.ZodType>(
    caller: CallFor,
    nodeId: NodeId,
    action: NodeAction,
    request: NodeRequest,
    schema: S,
  ): Promise<z.output<S>> {
    const { body } = await this.call(caller, nodeId, action, request)
    const asked = `the answer to ${request.method} ${action}/${request.rest.join('/')} of node ${nodeId}`
    const bytes = await wholeOf(body, MAX_ANSWER)
    if (!bytes) throw new Fault(`read ${asked}`, { cause: `over ${MAX_ANSWER} bytes` })
    return parsedAs(schema, bytes.toString(), asked)
  }

  /**
   * Calls, and reads the answer line by line. Leaving the loop ends the call.
   * @throws as `json`; node_unreachable where the answer ends before a line of which `last` says so
   */
  async *values<S extends z.ZodType>(
    caller: CallFor,
    nodeId: NodeId,
    action: NodeAction,
    request: NodeRequest,
    schema: S,
    last: (value: z.output<S>) => boolean,
  ): AsyncGenerator<z.output<S>> {
    const { body } = await this.call(caller, nodeId, action, request)
    yield* valuesIn(body, nodeId, schema, last)
  }
}

/**
 * A node's answer, line by line, to the first of which `last` says that it is the last.
 * @throws Failure node_unreachable where it ends before; Fault for a line of another shape
 */
export async function* valuesIn<S extends z.ZodType>(
  body: Readable,
  nodeId: NodeId,
  schema: S,
  last: (value: z.output<S>) => boolean,
): AsyncGenerator<z.output<S>> {
  for await (const line of linesOf(body)) {
    const value = parsedAs(schema, line, `what node ${nodeId} does`)
    yield value
    if (last(value)) return
  }
  throw new Failure('node_unreachable', `node ${nodeId} went away in the middle`)
}

/**
 * What a node said, as JSON of a schema.
 * @param asked what it is, for the Fault
 * @throws Fault for what is no JSON, or of another shape
 */
export function parsedAs<S extends z.ZodType>(schema: S, text: string, asked: string): z.output<S> {
  const parsed = schema.safeParse(parseJson(text, asked))
  if (parsed.success) return parsed.data
  throw new Fault(`read ${asked}`, { cause: parsed.error })
}

function parseJson(text: string, asked: string): unknown {
  try {
    return JSON.parse(text)
  } catch (cause) {
    throw new Fault(`read ${asked}`, { cause })
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
