// sandbox-calls.ts: requests that the node of a sandbox answers. Where the sandbox is, what it takes to call its node,
// and what ends the call early (client gone, key revoked, shutdown) are the same for all of them.
//
// What Postgres said is believed for less than a second, as a key is: a burst of execs asks once.
import type { Readable } from 'node:stream'
import { setTimeout as pause } from 'node:timers/promises'
import { type ErrorCode, Failure, Fault, type NodeId, type TenantId } from '@berth/contracts'
import {
  type NodeAnswer,
  type Query,
  type SandboxAction,
  type Streams,
  sandboxPath,
  type WebSocket,
  wholeOf,
} from '@berth/node-rpc'
import type { LocatedSandbox } from '@berth/persistence'
import { Inject, Injectable, StreamableFile } from '@nestjs/common'
import type { z } from 'zod'
import type { TenantPrincipal } from '../http/auth.js'
import { Recent } from '../recent.js'
import { CLOCK, type Clock, DATABASE, type Database, STREAMS } from '../tokens.js'
import { parsedAs } from './node-calls.js'
import { type Door, NodeDoors } from './node-doors.js'
import { pipeSockets } from './pipe-sockets.js'
import { Watch } from './watch.js'

/** What a look-up is believed for, in milliseconds. */
const BELIEVED_MS = 700
const MAX_KNOWN = 10_000
/** How long a command may take to its node, and how often it is looked whether it has come, in milliseconds. */
const ARRIVAL_MS = 5_000
const LOOK_MS = 20
/** Largest answer that is read whole, in bytes. */
const MAX_JSON = 32 * 1024 * 1024

/**
 * Who calls: a principal, whose key is watched, or only a tenant, where something else than a key opens the way (a
 * ticket, a share); `signal` then ends the call when that does.
 */
export type Caller = TenantPrincipal | { readonly kind: 'guest'; readonly tenantId: TenantId }

interface Target {
  /** Words of the path, ids all of them; the first one is the action. Anything else goes into the query. */
  readonly path: readonly [SandboxAction, ...string[]]
  readonly query?: Query
  /** Aborted when the client goes. */
  readonly signal: AbortSignal
  /** What a deleted sandbox is answered with. Default: sandbox_not_found. */
  readonly whenDeleted?: ErrorCode
  /** Made of a deleted sandbox too, of which its node may have something. Default: false */
  readonly alsoDeleted?: boolean
}

export interface SandboxRequest extends Target {
  readonly method: 'GET' | 'POST' | 'PUT' | 'PATCH' | 'DELETE'
  readonly headers?: Readonly<Record<string, string>>
  /** Sent as JSON. */
  readonly json?: unknown
  /** Sent as it comes. */
  readonly body?: Readable
  /** How long the node may take to begin its answer; see `CallRequest.answerWithinMs`. */
  readonly answerWithinMs?: number
}

@Injectable()
export class SandboxCalls {
  private readonly located: Recent<LocatedSandbox>

  constructor(
    @Inject(DATABASE) private readonly database: Database,
    @Inject(STREAMS) private readonly streams: Streams,
    @Inject(CLOCK) clock: Clock,
    private readonly doors: NodeDoors,
    private readonly watch: Watch,
  ) {
    this.located = new Recent({ clock, forMs: BELIEVED_MS, atMost: MAX_KNOWN })
  }

  /**
   * Calls the node of a sandbox. The answer's body is read at the client's pace, and must be read or destroyed.
   * @param ref id or name
   * @throws Failure sandbox_not_found, node_unreachable, or with the code that the node answered
   */
  async call(caller: Caller, ref: string, request: SandboxRequest): Promise<NodeAnswer> {
    const watched = this.watch.begin(caller.kind === 'tenant' ? caller : undefined, request.signal)
    try {
      const { signal } = watched
      const { method, json, headers = {}, body = json === undefined ? undefined : JSON.stringify(json) } = request
      const { answerWithinMs } = request
      const send = () =>
        this.through(caller, ref, request, (door, path) =>
          this.streams.call({
            ...door,
            ...{ method, path, headers, signal },
            ...(body === undefined ? {} : { body }),
            ...(answerWithinMs === undefined ? {} : { answerWithinMs }),
          }),
        )
      const answer = await (request.body ? send() : this.overtaking(caller, ref, signal, send))
      answer.body.once('close', () => watched.stop())
      return answer
    } catch (error) {
      watched.stop()
      throw error
    }
  }

  /** Calls, and reads the answer as JSON of a schema. @throws as `call`; Fault for an answer of another shape */
  async json<T>(caller: Caller, ref: string, request: SandboxRequest, schema: z.ZodType<T>): Promise<T> {
    const { body } = await this.call(caller, ref, request)
    const bytes = await wholeOf(body, MAX_JSON)
    if (!bytes) throw new Fault('read the answer of a node', { cause: `over ${MAX_JSON} bytes` })
    return parsedAs(schema, bytes.toString(), `the answer to ${request.method} ${request.path.join('/')} of ${ref}`)
  }

  /**
   * Opens a WebSocket of the node, and once there is one, the client's; then copies between them until the end.
   * @param accept `call.socket`
   * @throws as `call`, before anything was accepted
   */
  async attach(caller: Caller, ref: string, target: Target, accept: () => Promise<WebSocket>): Promise<void> {
    const watched = this.watch.begin(caller.kind === 'tenant' ? caller : undefined, target.signal)
    const socket = new AbortController()
    try {
      const node = await this.through(caller, ref, target, (door, path) =>
        this.streams.socket({ ...door, path, signal: socket.signal }),
      )
      const client = await accept()
      await pipeSockets(client, node, watched)
    } finally {
      // Whatever happened: a node's socket is not left behind.
      socket.abort()
      watched.stop()
    }
  }

  /** Where a sandbox is. @throws sandbox_not_found */
  locate({ tenantId }: Caller, ref: string): Promise<LocatedSandbox> {
    return this.located.get(`${tenantId} ${ref}`, () => this.database.sandboxes.locate({ tenantId }, ref))
  }

  private async through<T>(
    caller: Caller,
    ref: string,
    target: Target,
    open: (door: Door, path: string) => Promise<T>,
  ): Promise<T> {
    const { id, nodeId, state } = await this.locate(caller, ref)
    const { path, query, whenDeleted = 'sandbox_not_found', alsoDeleted = false } = target
    if (state === 'deleted' && !alsoDeleted) throw deleted(ref, whenDeleted)
    const door = nodeId && (await this.doors.of(nodeId, id, path[0]))
    if (!door) throw new Failure('node_unreachable', `the node that held sandbox ${ref} is no more`)
    return open(door, sandboxPath(id, path, query)).catch(async (error: unknown) => {
      this.forget(nodeId, error)
      // Its node knows of the deletion before we do, who believe for a moment that it is there.
      if (isUnknown(error) && (await this.locateAnew(caller, ref)).state === 'deleted') throw deleted(ref, whenDeleted)
      throw error
    })
  }

  /** A call that came to the node before the command that starts its sandbox is made again: it would have waited. */
  private async overtaking<T>(caller: Caller, ref: string, signal: AbortSignal, send: () => Promise<T>): Promise<T> {
    for (let left = ARRIVAL_MS; ; left -= LOOK_MS) {
      try {
        return await send()
      } catch (error) {
        const early = left > 0 && !signal.aborted && error instanceof Failure && error.code === 'wrong_state'
        if (!early || (await this.locateAnew(caller, ref)).state !== 'creating') throw error
      }
      await pause(LOOK_MS)
    }
  }

  private locateAnew(caller: Caller, ref: string): Promise<LocatedSandbox> {
    this.located.drop(`${caller.tenantId} ${ref}`)
    return this.locate(caller, ref)
  }

  /** A node that did not answer may have moved: the next call asks where it is. */
  private forget(nodeId: NodeId, error: unknown): void {
    if (error instanceof Failure && error.code === 'node_unreachable') this.doors.forget(nodeId)
  }
}

const deleted = (ref: string, code: ErrorCode): Failure => new Failure(code, `sandbox ${ref} is deleted`)

const isUnknown = (error: unknown): boolean => error instanceof Failure && error.code === 'sandbox_not_found'

/** Headers of a node's answer that are the client's business. */
const passed = ['content-length', 'content-range', 'accept-ranges', 'etag', 'last-modified', 'berth-offset'] as const

/** A node's answer as the answer of a route: its status, its type, what else of its head matters, and its bytes. */
export function passOn(
  call: { readonly status: (status: number) => void; readonly header: (name: string, value: string) => void },
  answer: NodeAnswer,
): StreamableFile {
  call.status(answer.status)
  for (const name of passed) {
    const value = answer.headers[name]
    if (value !== undefined) call.header(name, value)
  }
  return new StreamableFile(answer.body, { type: answer.headers['content-type'] ?? 'application/octet-stream' })
}
