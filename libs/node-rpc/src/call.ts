// call.ts: a request as a node's handler sees it, once its grant was checked, and the ways to answer it.
import { once } from 'node:events'
import type { IncomingMessage, ServerResponse } from 'node:http'
import { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { type AttemptId, Failure, InvalidRequest, type SandboxId } from '@berth/contracts'
import type { z } from 'zod'
import { bodyOf, wholeOf } from './body.js'
import type { NodeTarget, OutputRequest, OutputTarget, SandboxTarget } from './wire.js'

/** Largest body of JSON, in bytes; the API has its own, smaller limits by route. */
const MAX_JSON = 16 * 1024 * 1024

export interface AnswerHead {
  readonly status?: number
  readonly headers?: Readonly<Record<string, string | number>>
}

export class Exchange {
  /** Aborted when the caller has gone, or has its whole answer. */
  readonly signal: AbortSignal
  #body: Readable | undefined

  constructor(
    readonly request: IncomingMessage,
    readonly response: ServerResponse,
    /** The connection, where that is not the response's (WebSockets). */
    gone: { once(event: 'close', listener: () => void): unknown } = response,
  ) {
    const over = new AbortController()
    gone.once('close', () => over.abort(new Failure('unavailable', 'the caller has gone')))
    this.signal = over.signal
  }

  get method(): string {
    return this.request.method ?? ''
  }

  /** The body as it comes; reading slowly holds the sender back. Fails when the sender goes before its end. */
  get body(): Readable {
    this.#body ??= bodyOf(this.request)
    return this.#body
  }

  /** The body as JSON of a schema. @throws Failure invalid_json, body_too_large; InvalidRequest */
  async json<T>(schema: z.ZodType<T>): Promise<T> {
    const bytes = await wholeOf(this.body, MAX_JSON)
    if (!bytes) throw new Failure('body_too_large', 'more JSON than a node takes')
    const parsed = schema.safeParse(parseJson(bytes))
    if (parsed.success) return parsed.data
    throw new InvalidRequest(
      parsed.error.issues.map(({ path, message }) => ({ field: path.map(String).join('.'), message })),
    )
  }

  /** Answers with JSON; without a value, with nothing. */
  answer(status: number, value?: unknown, headers: AnswerHead['headers'] = {}): void {
    if (this.response.destroyed) return
    if (value === undefined) {
      this.response.writeHead(status, { ...headers }).end()
      return
    }
    const text = Buffer.from(JSON.stringify(value))
    this.response
      .writeHead(status, { 'content-type': 'application/json', 'content-length': text.length, ...headers })
      .end(text)
  }

  /**
   * Answers with bytes, as fast as they are taken. Status and headers go out at once. A source that fails, or a caller
   * that goes, destroys it; the caller then sees a broken answer.
   */
  async bytes(source: Readable, { status = 200, headers = {} }: AnswerHead = {}): Promise<void> {
    if (!this.#begin(status, { 'content-type': 'application/octet-stream', ...headers })) {
      source.destroy()
      return
    }
    await pipeline(source, this.response)
  }

  /**
   * Answers with one JSON value a line (`application/x-ndjson`), each as soon as it is there and not faster than they
   * are taken. Leaves the loop over `items` when the caller goes: what `items` waits for must end with `signal`.
   */
  async lines(
    items: AsyncIterable<unknown> | Iterable<unknown>,
    { status = 200, headers = {} }: AnswerHead = {},
  ): Promise<void> {
    const { response, signal } = this
    if (!this.#begin(status, { 'content-type': 'application/x-ndjson', ...headers })) return
    for await (const item of items) {
      if (signal.aborted) return
      if (!corked(response).write(`${JSON.stringify(item)}\n`)) await drained(response, signal)
    }
    response.end()
  }

  /** False where the caller left before: a pipeline into its response would refuse, and leave the source running. */
  #begin(status: number, headers: NonNullable<AnswerHead['headers']>): boolean {
    if (this.response.destroyed) return false
    this.response.writeHead(status, { 'cache-control': 'no-store', ...headers })
    this.response.flushHeaders()
    return true
  }
}

/** A request with words and a query: one for the node itself. */
export class RestCall extends Exchange {
  /** Words of the path after the subject; the first one is the action. */
  readonly rest: readonly string[]
  readonly query: URLSearchParams

  constructor(target: SandboxTarget | NodeTarget, ...exchange: ConstructorParameters<typeof Exchange>) {
    super(...exchange)
    this.rest = target.rest
    this.query = target.query
  }
}

/** A request for a sandbox. */
export class NodeCall extends RestCall {
  readonly sandboxId: SandboxId

  constructor(target: SandboxTarget, ...exchange: ConstructorParameters<typeof Exchange>) {
    super(target, ...exchange)
    this.sandboxId = target.subject
  }
}

/** A request for a stream of an attempt's output. */
export class OutputCall extends Exchange {
  readonly attemptId: AttemptId
  readonly wanted: OutputRequest

  constructor(target: OutputTarget, ...exchange: ConstructorParameters<typeof Exchange>) {
    super(...exchange)
    this.attemptId = target.attemptId
    this.wanted = target
  }
}

function parseJson(bytes: Buffer): unknown {
  try {
    return JSON.parse(bytes.toString())
  } catch (error) {
    throw new Failure('invalid_json', error instanceof Error ? error.message : String(error))
  }
}

/** What is written until the event loop goes on leaves as one chunk. */
function corked(response: ServerResponse): ServerResponse {
  if (response.writableCorked > 0) return response
  response.cork()
  setImmediate(() => response.uncork())
  return response
}

async function drained(response: ServerResponse, signal: AbortSignal): Promise<void> {
  if (signal.aborted || !response.writableNeedDrain) return
  await once(response, 'drain', { signal }).catch((error: unknown) => {
    if (!signal.aborted) throw error
  })
}
