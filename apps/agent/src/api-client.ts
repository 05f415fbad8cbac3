// api-client.ts: what an agent asks of the API: join, heartbeat, reports, images that it lacks. One pool of keep-alive
// connections, and another for the bytes of images, which must hold up no heartbeat.

import {
  Fault,
  findNodeImage,
  heartbeat,
  type ImageSources,
  type Input,
  joinNode,
  type NodeReport,
  type Output,
  type Route,
  readNodeImage,
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
/** Layers of images on their way at once. */
const TRANSFERS = 16
/** A transfer that is silent for so long is cut. */
const SILENT_MS = 30_000

export class ApiClient {
  readonly #pool: Pool
  readonly #transfers: Pool
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
    this.#transfers = new Pool(origin, {
      connections: TRANSFERS,
      headersTimeout: SILENT_MS,
      bodyTimeout: SILENT_MS,
      connectTimeout: 5_000,
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

  /** Where an image is to be had that this node lacks. @param need see `ImageNeed` */
  findImage(digest: string, need: string): Promise<ImageSources> {
    const path = findNodeImage.path.replace(':digest', digest)
    return this.#post(findNodeImage, findNodeImage.reply[200], { for: need }, path)
  }

  /** A part of an image as another node has it, from an offset on. What is begun to be read is let go with the loop. */
  async readImage(
    digest: string,
    blob: string,
    { need, from, signal }: { readonly need: string; readonly from: number; readonly signal: AbortSignal },
  ): Promise<AsyncIterable<Uint8Array>> {
    const attempted = `read ${blob} of image ${digest}`
    const path = readNodeImage.path.replace(':digest', digest).replace(':blob', blob)
    const query = new URLSearchParams({ for: need, from: String(from) })
    try {
      const { statusCode, body } = await this.#transfers.request({
        method: 'GET',
        path: `${this.#path}${path}?${query}`,
        headers: { authorization: `Bearer ${this.#token}` },
        signal,
      })
      if (statusCode === 200) return faults(body, attempted, signal)
      throw refusal(statusCode, await body.text(), attempted)
    } catch (cause) {
      signal.throwIfAborted()
      throw cause instanceof Refused ? cause : new Fault(attempted, { cause })
    }
  }

  async close(): Promise<void> {
    await Promise.all([this.#pool.destroy(), this.#transfers.destroy()])
  }

  async #post<T>(route: Route, reply: z.ZodType<T>, body: unknown, path = route.path): Promise<T> {
    const attempted = `${route.method} ${route.path}`
    const { status, text } = await this.#exchange(path, JSON.stringify(body), attempted)
    if (status !== 200) throw refusal(status, text, attempted)
    try {
      return reply.parse(JSON.parse(text))
    } catch (cause) {
      throw new Fault(`understand the answer to ${attempted}`, { cause })
    }
  }

  async #exchange(path: string, body: string, attempted: string) {
    try {
      const response = await this.#pool.request({
        method: 'POST',
        path: this.#path + path,
        headers: { authorization: `Bearer ${this.#token}`, 'content-type': 'application/json' },
        body,
      })
      return { status: response.statusCode, text: await response.body.text() }
    } catch (cause) {
      throw new Fault(attempted, { cause })
    }
  }
}

/** @throws the signal's reason, or Fault where it breaks off */
async function* faults(
  body: AsyncIterable<Uint8Array> & { destroy(): unknown },
  attempted: string,
  signal: AbortSignal,
): AsyncGenerator<Uint8Array> {
  try {
    yield* body
  } catch (cause) {
    signal.throwIfAborted()
    throw new Fault(attempted, { cause })
  } finally {
    body.destroy()
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
