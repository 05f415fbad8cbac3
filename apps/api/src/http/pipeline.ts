// pipeline.ts: what happens to a request around its handler.
//
//   request id, headers                    every request
//     └─ authenticate → scope → rate       before a byte of the body is read
//          └─ body limit → JSON            Fastify, by the route's limit; streamed bodies go to the handler
//               └─ path, query, body       by the route's schemas, all violations at once
//                    └─ idempotency        the stored answer, or go on
//                         └─ handler       Nest: controller → service
//                    ┌─ idempotency        the answer is stored before it is sent
//   one log line ────┘
//
// Fastify hooks rather than Nest guards and interceptors: they run before the body is parsed, see requests that match
// no route, and cost no chain of observables.
import { randomBytes } from 'node:crypto'
import {
  BrokenInvariant,
  Failure,
  InvalidRequest,
  mintId,
  type Reply,
  type Route,
  type Scope,
  takesIdempotencyKey,
} from '@berth/contracts'
import type {
  FastifyInstance,
  FastifyReply,
  FastifyRequest,
  RouteOptions as FastifyRoute,
  onSendAsyncHookHandler,
} from 'fastify'
import { z } from 'zod'
import type { Clock, Logger } from '../tokens.js'
import { type Auth, checkScope, type Principal } from './auth.js'
import { admitBody, installBodies, streamedBody } from './bodies.js'
import { type Idempotency, type IdempotentRequest, idempotentRequest } from './idempotency.js'
import { type RateLimit, rateLimited } from './rate-limit.js'
import type { AnyCall, Once } from './route.decorator.js'
import type { Asking } from './sessions.js'
import { acceptSocket, becameSocket, installSockets, onceClosed, requireUpgrade } from './sockets.js'
import { parseWith } from './violations.js'

export interface PipelineParts {
  readonly auth: Auth
  readonly rateLimit: RateLimit
  readonly idempotency: Idempotency
  readonly clock: Clock
  readonly log: Logger
  /** Where browsers find this API, as an origin; undefined: where the request was sent to. */
  readonly publicOrigin: string | undefined
}

export const DEFAULT_BODY_LIMIT = 64 * 1024

const securityHeaders = {
  'cache-control': 'no-store',
  'content-security-policy': "default-src 'none'; frame-ancestors 'none'",
  'referrer-policy': 'no-referrer',
  'x-content-type-options': 'nosniff',
}

declare module 'fastify' {
  interface FastifyRequest {
    idempotent?: IdempotentRequest
  }
}

/** The caller's `X-Request-Id` where it is fit for logs, else a new id. */
export function requestId(given: string | string[] | undefined): string {
  if (typeof given === 'string' && /^[\w.:/+=-]{1,128}$/.test(given)) return given
  return mintId('request', Date.now(), randomBytes(10))
}

/**
 * Puts the pipeline around every route that is registered afterwards.
 * @returns the routes seen, filled as they are registered
 */
export function installPipeline(fastify: FastifyInstance, parts: PipelineParts): Set<Route> {
  const handled = new Set<Route>()
  acceptJsonOnly(fastify)
  installBodies(fastify)
  installSockets(fastify)
  fastify.addHook('onRequest', (request, reply, done) => {
    reply.headers(securityHeaders).header('x-request-id', request.id)
    // Not the hook `onResponse`: it does not run for a client that goes before its answer.
    reply.raw.once('close', () => logRequest(parts.log, request, reply))
    done()
  })
  fastify.addHook('onRoute', (options) => {
    const route = options.config?.route
    if (!route) throw new BrokenInvariant(`${String(options.method)} ${options.url} was registered without a Route`)
    if (handled.has(route)) throw new BrokenInvariant(`route ${route.id} has two handlers`)
    handled.add(route)
    configure(options, route, parts)
  })
  return handled
}

function acceptJsonOnly(fastify: FastifyInstance): void {
  const utf8 = new TextDecoder('utf-8', { fatal: true })
  fastify.removeAllContentTypeParsers()
  fastify.addContentTypeParser('application/json', { parseAs: 'buffer' }, (request, body, done) => {
    const bytes = typeof body === 'string' ? Buffer.from(body) : body
    if (bytes.length === 0) return done(null, undefined)
    request.rawBody = bytes
    try {
      done(null, JSON.parse(utf8.decode(bytes)))
    } catch (error) {
      const why = error instanceof SyntaxError ? error.message : 'it is not UTF-8'
      done(new Failure('invalid_json', `the body is not JSON: ${why.slice(0, 200)}`))
    }
  })
}

function configure(options: FastifyRoute, route: Route, parts: PipelineParts): void {
  options.bodyLimit = route.bodyLimit ?? DEFAULT_BODY_LIMIT
  options.onRequest = async (request, reply) => {
    if (route.scope !== 'public') await admit(route, route.scope, request, reply, parts)
    admitBody(route, request, reply)
  }
  const idempotent = takesIdempotencyKey(route)
  if (idempotent && route.body === 'bytes')
    throw new BrokenInvariant(`route ${route.id}: an idempotency key covers the body, which is not kept`)
  options.preHandler = async (request, reply) => {
    requireUpgrade(route, request)
    request.call = callOf(route, request, reply, parts)
    if (idempotent) await beginOnce(request, reply, parts.idempotency)
  }
  const hooks: onSendAsyncHookHandler[] = [chooseStatus]
  if (idempotent && options.config?.options?.once !== 'handler')
    hooks.push(async (request, reply, payload) => endOnce(request, reply, payload, parts.idempotency))
  if (Object.values(route.reply).some(isStream)) hooks.push(flushHead)
  options.onSend = hooks
}

const isStream = (reply: Reply): boolean =>
  reply === 'bytes' || (typeof reply === 'object' && !(reply instanceof z.ZodType))

async function admit(
  { rate, operators }: Route,
  scope: Exclude<Scope, 'public'>,
  request: FastifyRequest,
  reply: FastifyReply,
  { auth, rateLimit, clock, publicOrigin }: PipelineParts,
): Promise<void> {
  const principal = await auth.authenticate(askingOf(request, publicOrigin))
  request.principal = principal
  checkScope(principal, scope, operators)
  if (rate !== 'none') countRequest(rateLimit, principal, reply, clock.now().getTime())
}

/** What the handler chose, unless it failed after that. */
async function chooseStatus(request: FastifyRequest, reply: FastifyReply, payload: unknown): Promise<unknown> {
  if (request.chosenStatus !== undefined && reply.statusCode < 400) reply.code(request.chosenStatus)
  return payload
}

/** A stream's status and headers go out now, not with its first byte: a silent job may take hours to write one. */
async function flushHead(_request: FastifyRequest, reply: FastifyReply, payload: unknown): Promise<unknown> {
  setImmediate(() => {
    if (!reply.raw.headersSent && !reply.raw.destroyed) reply.raw.flushHeaders()
  })
  return payload
}

function countRequest(rateLimit: RateLimit, principal: Principal, reply: FastifyReply, nowMs: number): void {
  if (principal.kind !== 'tenant') return
  const state = rateLimit.take(principal.tenantId, principal.requestsPerMinute, nowMs)
  reply.headers({
    'ratelimit-limit': state.limit,
    'ratelimit-remaining': state.remaining,
    'ratelimit-reset': state.resetS,
  })
  if (state.retryAfterS !== undefined) throw rateLimited(state)
}

/** `protocol`, `host` and `ip` heed what a trusted proxy says (Fastify's trustProxy). */
export function askingOf(request: FastifyRequest, publicOrigin: string | undefined): Asking {
  const ownOrigin = publicOrigin ?? `${request.protocol}://${request.host}`.toLowerCase()
  return { headers: request.headers, ownOrigin, address: request.ip }
}

const Nothing = z.strictObject({})

function callOf(route: Route, request: FastifyRequest, reply: FastifyReply, parts: PipelineParts): AnyCall {
  const { principal } = request
  const params = parseWith(route.params ?? Nothing, request.params, 'path')
  const query = parseWith(route.query ?? Nothing, { ...Object(request.query) }, 'query')
  const body = route.body instanceof z.ZodType ? parseWith(route.body, request.body, 'body') : noBody(request.body)
  const header = (name: string, value: string) => void reply.header(name, value)
  const status = (status: number) => {
    request.chosenStatus = status
  }
  return {
    ...{ params, query, body, principal, header, status },
    signal: goneSignal(request, reply),
    once: onceOf(request, reply, parts.idempotency),
    asking: askingOf(request, parts.publicOrigin),
    get stream() {
      return streamedBody(request, reply)
    },
    socket: () => acceptSocket(request, reply),
  }
}

function noBody(body: unknown): undefined {
  if (body !== undefined) parseWith(Nothing, body, 'body')
  return undefined
}

/** Aborted when the connection closes before the answer is out, or the socket that it became is closed. */
function goneSignal(request: FastifyRequest, reply: FastifyReply): AbortSignal {
  const controller = new AbortController()
  const gone = () => controller.abort(new Failure('unavailable', 'the client has gone'))
  reply.raw.once('close', () => {
    if (!onceClosed(request, gone) && !reply.raw.writableFinished) gone()
  })
  return controller.signal
}

async function beginOnce(request: FastifyRequest, reply: FastifyReply, idempotency: Idempotency): Promise<void> {
  const key = request.headers['idempotency-key']
  if (key === undefined || !request.principal) return
  if (typeof key !== 'string') throw new InvalidRequest([{ field: 'Idempotency-Key', message: 'must be given once' }])
  const asked = idempotentRequest(request.principal, key, {
    method: request.method,
    path: request.url.split('?')[0] ?? '',
    rawBody: request.rawBody,
  })
  if (request.routeOptions.config.options?.once === 'handler') {
    request.idempotent = asked
    return
  }
  const stored = await idempotency.begin(asked)
  if (!stored) {
    request.idempotent = asked
    return
  }
  reply.code(stored.status).header('idempotent-replayed', 'true')
  if (stored.body !== null) reply.type('application/json; charset=utf-8')
  await reply.send(stored.body ?? undefined)
}

/** Stores the answer before it is sent, so that a caller who has it can rely on it. */
async function endOnce(
  request: FastifyRequest,
  reply: FastifyReply,
  payload: unknown,
  idempotency: Idempotency,
): Promise<unknown> {
  const { idempotent } = request
  if (!idempotent) return payload
  delete request.idempotent
  const { statusCode } = reply
  if (statusCode < 400)
    await idempotency.finish(idempotent, { status: statusCode, body: typeof payload === 'string' ? payload : null })
  else if (statusCode < 500) await idempotency.abandon(idempotent)
  return payload
}

function onceOf(request: FastifyRequest, reply: FastifyReply, idempotency: Idempotency): Once {
  return async (schema, work) => {
    const { idempotent } = request
    if (!idempotent) return work()
    const stored = await idempotency.begin(idempotent)
    if (stored) {
      reply.header('idempotent-replayed', 'true')
      return schema.parse(JSON.parse(stored.body ?? 'null'))
    }
    try {
      const result = await work()
      await idempotency.finish(idempotent, { status: reply.statusCode, body: JSON.stringify(result) })
      return result
    } catch (error) {
      if (error instanceof Failure) await idempotency.abandon(idempotent)
      throw error
    }
  }
}

function logRequest(log: Logger, request: FastifyRequest, reply: FastifyReply): void {
  const { principal, id, method } = request
  const route = request.routeOptions.config.route?.id
  log.info(
    {
      requestId: id,
      method,
      route: route ?? null,
      status: reply.statusCode,
      ms: Math.round(reply.elapsedTime * 10) / 10,
      ...(principal?.kind === 'tenant' ? { tenant: principal.tenantId } : {}),
      ...(principal?.kind === 'node' ? { node: principal.nodeId } : {}),
      ...(reply.raw.writableFinished || becameSocket(request) ? {} : { gone: true }),
    },
    'request',
  )
}
