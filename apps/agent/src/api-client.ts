// api-client.ts: what an agent asks of the API: join, heartbeat, reports. One pool of keep-alive connections.

import {
  Fault,
  heartbeat,
  type Input,
  joinNode,
  type NodeReport,
  type Output,
  type Route,
  reportNode,
} from '@berth/contracts'
import { Pool } from 'undici'
import type { z } from 'zod'

export type Joined = Output<typeof joinNode>
export type JoinBody = Input<typeof joinNode>['body']
export type HeartbeatBody = Input<typeof heartbeat>['body']

/** The API answered with an error; `code` is the problem document's, if it was one. */
export class Refused extends Fault {
  constructor(
    readonly status: number,
    readonly code: string | undefined,
    attempted: string,
    detail: string,
  ) {
    super(attempted, { cause: new Error(`${status} ${code ?? ''}: ${detail}`) })
    this.name = 'Refused'
  }

  /** True where saying the same again cannot help: the API takes the request itself for wrong. */
  get final(): boolean {
    return this.status === 400 || this.status === 413 || this.status === 415
  }
}

/** Reports travel side by side with heartbeats. */
const CONNECTIONS = 4
const TIMEOUT_MS = 15_000

export class ApiClient {
  readonly #pool: Pool
  readonly #path: string
  readonly #token: string

  /** @param url base URL of the API, with or without a path */
  constructor(url: string, token: string) {
    const { origin, pathname } = new URL(url)
    this.#pool = new Pool(origin, {
      connections: CONNECTIONS,
      headersTimeout: TIMEOUT_MS,
      bodyTimeout: TIMEOUT_MS,
      connectTimeout: 5_000,
      // Below the 60 s and more that servers and load balancers keep an idle connection.
      keepAliveTimeout: 30_000,
    })
    this.#path = pathname.replace(/\/$/, '')
    this.#token = token
  }

  /** @throws Fault when the API is away, Refused when it says no */
  join(body: JoinBody): Promise<Joined> {
    return this.#post(joinNode, joinNode.reply[200], body)
  }

  heartbeat(body: HeartbeatBody): Promise<Output<typeof heartbeat>> {
    return this.#post(heartbeat, heartbeat.reply[200], body)
  }

  /** Returns when all are stored. */
  async report(reports: readonly NodeReport[]): Promise<void> {
    await this.#post(reportNode, reportNode.reply[200], { reports })
  }

  async close(): Promise<void> {
    await this.#pool.destroy()
  }

  async #post<T>(route: Route, reply: z.ZodType<T>, body: unknown): Promise<T> {
    const attempted = `${route.method} ${route.path}`
    const { status, text } = await this.#exchange(route, JSON.stringify(body), attempted)
    if (status !== 200) throw refusal(status, text, attempted)
    try {
      return reply.parse(JSON.parse(text))
    } catch (cause) {
      throw new Fault(`understand the answer to ${attempted}`, { cause })
    }
  }

  async #exchange(route: Route, body: string, attempted: string) {
    try {
      const response = await this.#pool.request({
        method: 'POST',
        path: this.#path + route.path,
        headers: { authorization: `Bearer ${this.#token}`, 'content-type': 'application/json' },
        body,
      })
      return { status: response.statusCode, text: await response.body.text() }
    } catch (cause) {
      throw new Fault(attempted, { cause })
    }
  }
}

function refusal(status: number, text: string, attempted: string): Refused {
  try {
    const problem: unknown = JSON.parse(text)
    if (typeof problem === 'object' && problem !== null && 'code' in problem && typeof problem.code === 'string')
      return new Refused(status, problem.code, attempted, text.slice(0, 1000))
  } catch (error) {
    if (!(error instanceof SyntaxError)) throw error // a proxy's page instead of a problem document
  }
  return new Refused(status, undefined, attempted, text.slice(0, 200))
}
