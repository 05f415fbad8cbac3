// client.ts: calls routes. A route's record says all there is to know about a call, so there is one method for all of
// them, typed from the record:
//
//     const client = new Client({ url, apiKey })
//     const job = await client.call(createJob, { body: { command: ['true'] }, query: { wait: 'finished' } })
//     for await (const frame of client.values(runExec, { params: { sandbox }, body: { command: ['make'] } })) …
//     await client.send(writeFile, { params: { sandbox }, query: { path: '/tmp/x' } }, createReadStream('x'))
//     const socket = await client.socket(attachExec, { params: { sandbox, exec } })
//
// Every call that changes something carries an idempotency key, so a call whose answer was lost is safely repeated.
import { randomUUID } from 'node:crypto'
import type { Readable } from 'node:stream'
import {
  ApiError,
  type Arguments,
  answerOf,
  apiError,
  type Item,
  type Output,
  parseDuration,
  type Route,
  requestOf,
  takesIdempotencyKey,
  Unreachable,
  valuesOf,
} from '@berth/contracts'
import { type Dispatcher, Pool, errors as undici } from 'undici'
import type { WebSocket } from 'ws'
import { openSocket } from './socket.js'

export interface ClientOptions {
  /** Base address, e.g. `http://127.0.0.1:7433`. */
  readonly url: string
  /** Secret of an API key; without one only public routes answer. */
  readonly apiKey?: string
  /** How often a call is repeated after a lost connection, 429 or 503. Default 3. */
  readonly retries?: number
  /** Connections kept at most. Default 32. */
  readonly connections?: number
}

export interface CallOptions {
  readonly signal?: AbortSignal
  /** Chosen by the caller where a repeat may come from another process. */
  readonly idempotencyKey?: string
  /** Headers that mean something to the route, such as `If-Match`, `Range` or `Last-Event-ID`. */
  readonly headers?: Readonly<Record<string, string>>
}

/** Longest silence of the API before it answers, besides what the call itself asks it to wait (`timeoutMs`). */
const answerWithinMs = 90_000
/** A wait asked for by the API that is longer than this is the caller's decision. */
const longestRetryMs = 10_000

export class Client implements AsyncDisposable {
  readonly #pool: Pool
  readonly #origin: string
  readonly #base: string
  readonly #key: string | undefined
  readonly #retries: number

  /** @throws Unreachable when the address is not an http or https URL */
  constructor(options: ClientOptions) {
    const url = URL.canParse(options.url) ? new URL(options.url) : undefined
    if (!url || !/^https?:$/.test(url.protocol)) throw new Unreachable('read the address', `${options.url} is no URL`)
    this.#pool = new Pool(url.origin, {
      connections: options.connections ?? 32,
      headersTimeout: answerWithinMs,
      bodyTimeout: 0,
    })
    this.#origin = url.origin
    this.#base = url.pathname.replace(/\/$/, '')
    this.#key = options.apiKey
    this.#retries = options.retries ?? 3
  }

  /**
   * Calls a route and checks its answer against the route's schema.
   * @throws ApiError when the API refuses; Unreachable when it cannot be reached
   */
  async call<R extends Route>(route: R, given: Arguments<R>, options: CallOptions = {}): Promise<Output<R>> {
    const request = this.#request(route, given, options)
    const { status, text } = await this.#retrying(isRepeatable(route, given), options, async () => {
      const answer = await this.#once(route, request)
      return { status: answer.statusCode, text: await body(answer, route) }
    })
    return answerOf(route, status, text)
  }

  /**
   * Opens a route that answers raw bytes. Leaving the stream unread holds the sender back; destroying it closes the
   * connection.
   */
  async open<R extends Route>(route: R, given: Arguments<R>, options: CallOptions = {}): Promise<Readable> {
    const request = this.#request(route, given, options)
    return (await this.#retrying(isRepeatable(route, given), options, () => this.#once(route, request))).body
  }

  /**
   * The values of a route that answers a stream of them, as they come. Leaving the loop closes the connection.
   * @param options `bytes`: the body of a route that takes bytes, sent as fast as they are taken; such a call is not repeated
   * @throws ApiError when the API refuses; Unreachable when it cannot be reached, also in the middle
   */
  async *values<R extends Route>(
    route: R,
    given: Arguments<R>,
    { bytes: sent, ...options }: CallOptions & { readonly bytes?: Readable } = {},
  ): AsyncGenerator<Item<R>> {
    const bytes = sent
      ? (await this.#sending(route, given, sent, options)).body
      : await this.open(route, given, options)
    try {
      yield* valuesOf(route, bytes)
    } catch (cause) {
      throw isLost(cause) ? new Unreachable(`read the answer of ${route.method} ${route.path}`, cause) : cause
    }
  }

  /**
   * Calls a route that takes bytes, sending `bytes` as fast as they are taken. It is not repeated: a stream can be read
   * only once.
   * @throws as `call`
   */
  async send<R extends Route>(
    route: R,
    given: Arguments<R>,
    bytes: Readable | Uint8Array | string,
    options: CallOptions = {},
  ): Promise<Output<R>> {
    const answer = await this.#sending(route, given, bytes, options)
    return answerOf(route, answer.statusCode, await body(answer, route))
  }

  /**
   * Connects to a route that is a WebSocket (of `ws`). It comes **paused**: add listeners, then `resume()` it.
   * @throws as `call`
   */
  socket<R extends Route>(route: R, given: Arguments<R>, options: CallOptions = {}): Promise<WebSocket> {
    const { path, headers } = this.#request(route, given, options)
    const url = this.#origin.replace(/^http/, 'ws') + path
    return openSocket(url, { headers: { ...headers }, what: `${route.method} ${route.path}`, signal: options.signal })
  }

  /** Closes all connections; what is running fails. Sockets are their owners'. */
  async close(): Promise<void> {
    await this.#pool.destroy()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }

  #sending(route: Route, given: object, bytes: Readable | Uint8Array | string, options: CallOptions) {
    const headers = { 'content-type': 'application/octet-stream', ...options.headers }
    // The answer may come when all was taken, however long that is.
    const request = { ...this.#request(route, given, { ...options, headers }), body: bytes, headersTimeout: 0 }
    return this.#once(route, request)
  }

  /** @param repeatable whether a call whose answer was lost may be made again */
  async #retrying<T>(repeatable: boolean, options: CallOptions, send: () => Promise<T>): Promise<T> {
    for (let attempt = 1; ; attempt++) {
      try {
        return await send()
      } catch (error) {
        const waitMs = attempt > this.#retries ? undefined : retryAfter(error, attempt, repeatable)
        if (waitMs === undefined) throw error
        await pause(waitMs, options.signal)
      }
    }
  }

  #request(route: Route, given: object, options: CallOptions): Request {
    const { method, path, body } = requestOf(route, given)
    const headers: Record<string, string> = { accept: 'application/json', ...options.headers }
    if (this.#key) headers.authorization = `Bearer ${this.#key}`
    if (body !== undefined) headers['content-type'] = 'application/json'
    if (method !== 'GET') headers['idempotency-key'] = options.idempotencyKey ?? randomUUID()
    return {
      method,
      path: this.#base + path,
      headers,
      body: body ?? null,
      headersTimeout: answerWithinMs + waitOf(given),
      ...(options.signal ? { signal: options.signal } : {}),
    }
  }

  async #once(route: Route, request: Dispatcher.RequestOptions): Promise<Dispatcher.ResponseData> {
    const attempted = `${request.method} ${route.path}`
    const answer = await this.#pool.request(request).catch((cause: unknown) => {
      throw isLost(cause) ? new Unreachable(attempted, cause) : cause
    })
    if (answer.statusCode in route.reply) return answer
    const retry = answer.headers['retry-after']
    throw apiError(answer.statusCode, await body(answer, route), typeof retry === 'string' ? retry : undefined)
  }
}

interface Request extends Dispatcher.RequestOptions {
  readonly headers: Readonly<Record<string, string>>
}

async function body(answer: Dispatcher.ResponseData, route: Route): Promise<string> {
  try {
    return await answer.body.text()
  } catch (cause) {
    throw new Unreachable(`read the answer of ${route.method} ${route.path}`, cause)
  }
}

/** Errors of the network, as opposed to an abort by the caller or a bug. */
export function isLost(error: unknown): boolean {
  if (error instanceof undici.RequestAbortedError) return false
  if (error instanceof undici.UndiciError) return true
  return typeof error === 'object' && error !== null && 'syscall' in error
}

/** What a call asks the API to wait before it answers, in milliseconds. */
function waitOf(given: object): number {
  const query = 'query' in given && typeof given.query === 'object' ? given.query : null
  const wanted = query && 'timeoutMs' in query ? query.timeoutMs : undefined
  if (typeof wanted === 'number') return wanted
  return typeof wanted === 'string' ? (parseDuration(wanted) ?? 0) : 0
}

/**
 * A route without idempotency keys may only be called again where the request names what it makes: a command would
 * otherwise run twice.
 */
function isRepeatable(route: Route, given: object): boolean {
  if (route.method !== 'POST' || takesIdempotencyKey(route)) return true
  const body = 'body' in given && typeof given.body === 'object' ? given.body : null
  return body !== null && 'id' in body && body.id !== undefined
}

/** How long to wait before the same call again, or undefined when it would be of no use. */
function retryAfter(error: unknown, attempt: number, repeatable: boolean): number | undefined {
  const backoffMs = 100 * 2 ** (attempt - 1)
  if (error instanceof Unreachable) return repeatable ? backoffMs : undefined
  if (!(error instanceof ApiError) || ![429, 503].includes(error.status)) return undefined
  const waitMs = error.retryAfterMs ?? backoffMs
  return waitMs <= longestRetryMs ? waitMs : undefined
}

function pause(ms: number, signal: AbortSignal | undefined): Promise<void> {
  return new Promise((resolve, reject) => {
    signal?.throwIfAborted()
    const onAbort = () => {
      clearTimeout(timer)
      reject(signal?.reason)
    }
    const timer = setTimeout(() => {
      signal?.removeEventListener('abort', onAbort)
      resolve()
    }, ms)
    signal?.addEventListener('abort', onAbort, { once: true })
  })
}
