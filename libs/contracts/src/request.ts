// request.ts: a call of a route as values, for clients of any kind: what to send, and what an answer says. How bytes get
// there and back is the client's (libs/sdk: undici; apps/console: fetch).
import { z } from 'zod'
import { type ErrorCode, Fault, problems, type Violation } from './errors.js'
import type { Call, Lines, Output, Route } from './route.js'

type Needed<C> = { [K in keyof C as C[K] extends undefined ? never : object extends C[K] ? never : K]: C[K] }
type Optional<C> = { [K in keyof C as C[K] extends undefined ? never : object extends C[K] ? K : never]?: C[K] }
/** What a call of a route takes: its params, query and body; what may be empty may be left out. */
export type Arguments<R extends Route> = Needed<Call<R>> & Optional<Call<R>>

/** A value of a route that answers a stream of them. */
export type Item<R extends Route> = {
  [S in keyof R['reply']]: R['reply'][S] extends { readonly item: infer I extends z.ZodType } ? z.output<I> : never
}[keyof R['reply']]

const Parts = z.looseObject({
  params: z.record(z.string(), z.string()).default({}),
  query: z.record(z.string(), z.unknown()).default({}),
  body: z.unknown().optional(),
})

/** What is sent for a call: `path` with its query, from the root of the API; `body` as JSON, where there is one. */
export interface CallRequest {
  readonly method: Route['method']
  readonly path: string
  readonly body: string | undefined
}

export function requestOf(route: Route, given: object): CallRequest {
  const { params, query, body } = Parts.parse(given)
  const text = body === undefined || route.body === 'bytes' ? undefined : JSON.stringify(body)
  return { method: route.method, path: pathOf(route, params) + queryOf(query), body: text }
}

/** Fills `:name` in a route's path. */
export function pathOf(route: Pick<Route, 'path'>, params: Readonly<Record<string, string>>): string {
  return route.path.replace(/:([a-zA-Z]+)/g, (_, name: string) => encodeURIComponent(params[name] ?? ''))
}

/** A query string with its `?`, or nothing; lists are repeated, what is undefined is left out. */
export function queryOf(query: Readonly<Record<string, unknown>>): string {
  const pairs = Object.entries(query).flatMap(([name, value]) =>
    (Array.isArray(value) ? value : [value])
      .filter((one) => one !== undefined)
      .map((one): [string, string] => [name, String(one)]),
  )
  return pairs.length === 0 ? '' : `?${new URLSearchParams(pairs)}`
}

/**
 * The value of a successful answer, checked against the route's schema; undefined where it is empty.
 * @throws ApiError where it is not what the route answers
 */
export function answerOf<R extends Route>(route: R, status: number, text: string): Output<R> {
  const reply = route.reply[status]
  if (reply !== 'empty' && !(reply instanceof z.ZodType)) throw apiError(status, text, undefined)
  const parsed = reply === 'empty' ? undefined : parsedAs(route, reply, status, text)
  return parsed as Output<R> // what the schema of this very route gave
}

function parsedAs(route: Route, schema: z.ZodType, status: number, text: string): unknown {
  const parsed = schema.safeParse(parseJson(text))
  if (parsed.success) return parsed.data
  const [issue] = parsed.error.issues
  const where = issue?.path.length ? `${issue.path.join('.')}: ` : ''
  const detail = `the answer of ${route.method} ${route.path} is not as expected: ${where}${issue?.message ?? ''}`
  throw new ApiError(status, 'unknown', detail, '')
}

/** Longest line of a stream that is taken, in characters: above every line that the API sends. */
const MAX_LINE = 16 * 1024 * 1024

/**
 * The values of a streamed answer as they come: lines of JSON, or the data of server-sent events (HTML, 9.2.6).
 * @throws ApiError on a line that is not what the route answers
 */
export async function* valuesOf<R extends Route>(
  route: R,
  chunks: AsyncIterable<Uint8Array>,
): AsyncGenerator<Item<R>, void, undefined> {
  const lines = Object.values(route.reply).find((reply): reply is Lines => typeof reply === 'object' && 'item' in reply)
  if (!lines) throw new TypeError(`${route.id} answers no stream of values`)
  const prefix = lines.kind === 'events' ? 'data:' : ''
  for await (const line of linesOf(chunks)) {
    if (line === '' || !line.startsWith(prefix)) continue
    yield parsedAs(route, lines.item, 200, line.slice(prefix.length)) as Item<R> // what the schema of this very route gave
  }
}

async function* linesOf(chunks: AsyncIterable<Uint8Array>): AsyncGenerator<string, void, undefined> {
  const decoder = new TextDecoder()
  let rest = ''
  for await (const chunk of chunks) {
    const [first = '', ...others] = decoder.decode(chunk, { stream: true }).split('\n')
    rest += first
    for (const next of others) {
      yield rest.replace(/\r$/, '')
      rest = next
    }
    if (rest.length > MAX_LINE) throw new ApiError(200, 'unknown', 'a line of the answer has no end', '')
  }
  if (rest !== '') yield rest
}

const ProblemDocument = z.looseObject({
  code: z.string(),
  detail: z.string().default(''),
  title: z.string().default(''),
  requestId: z.string().default(''),
  errors: z.array(z.object({ field: z.string(), message: z.string() })).default([]),
})

/** The API refused or failed: its code (docs/errors.md), and what it says. */
export class ApiError extends Error {
  constructor(
    readonly status: number,
    /** One of the documented codes, or another text where what answered is not a Berth API of this version. */
    readonly code: ErrorCode | (string & {}),
    message: string,
    /** Names the request in the API's log. */
    readonly requestId: string,
    readonly violations: readonly Violation[] = [],
    /** Further members of the problem document, e.g. `quota`, `limit`, `used`. */
    readonly data: Readonly<Record<string, unknown>> = {},
    /** After so long the same call may succeed; from `Retry-After`. */
    readonly retryAfterMs: number | undefined = undefined,
  ) {
    super(message)
    this.name = 'ApiError'
  }

  is(code: ErrorCode): boolean {
    return this.code === code
  }
}

/** The API could not be reached, or the connection was lost; the same call may succeed later. */
export class Unreachable extends Fault {
  constructor(attempted: string, cause: unknown) {
    super(attempted, { cause })
    this.name = 'Unreachable'
  }
}

/**
 * Reads an answer that is not a success.
 * @param retryAfter the header `Retry-After` in seconds
 */
export function apiError(status: number, body: string, retryAfter: string | undefined): ApiError {
  const seconds = Number(retryAfter)
  const retryAfterMs = retryAfter && Number.isFinite(seconds) ? seconds * 1000 : undefined
  const parsed = ProblemDocument.safeParse(parseJson(body))
  if (!parsed.success) {
    const message = `HTTP ${status} without a problem document: ${body.slice(0, 200) || 'empty body'}`
    return new ApiError(status, 'unknown', message, '', [], {}, retryAfterMs)
  }
  const { code, detail, title, requestId, errors, ...data } = parsed.data
  const all = errors.map(({ field, message }) => `${field}: ${message}`).join('; ')
  const message = all || detail || title || code
  return new ApiError(status, code, message, requestId, errors, data, retryAfterMs)
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return undefined // a proxy's HTML, for example; the caller tells what came instead
  }
}

/** True for the codes that this version documents. */
export const isErrorCode = (code: string): code is ErrorCode => Object.hasOwn(problems, code)
