// route.decorator.ts: one line from a Route record to a handler. Method, path, success status, scope, limits and
// schemas come from the record (see pipeline.ts for who reads them when); the handler's argument and result are typed
// by it.
import type { Readable } from 'node:stream'
import type { Input, Lines, Method, Output, Route as RouteRecord } from '@berth/contracts'
import type { WebSocket } from '@berth/node-rpc'
import {
  createParamDecorator,
  type ExecutionContext,
  HttpCode,
  RequestMapping,
  RequestMethod,
  type StreamableFile,
} from '@nestjs/common'
import { RouteConfig } from '@nestjs/platform-fastify'
import type { FastifyRequest } from 'fastify'
import type { z } from 'zod'
import type { OperatorPrincipal, Principal, PrincipalOf } from './auth.js'
import type { Asking } from './sessions.js'

/** Runs `work` once per idempotency key; a repeat gets what the first run stored. See `RouteOptions.once`. */
export type Once = <T>(schema: z.ZodType<T>, work: () => Promise<T>) => Promise<T>

/** A request after all checks, as a handler receives it. */
export type Call<R extends RouteRecord> = BaseCall<R> &
  (R['body'] extends 'bytes' ? StreamedCall : unknown) &
  (Replies<R> extends 'socket' ? SocketCall : unknown)

interface BaseCall<R extends RouteRecord> extends Input<R> {
  readonly principal: PrincipalOf<R['scope']> | (R extends { readonly operators: true } ? OperatorPrincipal : never)
  /** Aborted when the client has gone. */
  readonly signal: AbortSignal
  readonly once: Once
  readonly asking: Asking
  /** Adds a header to the answer. */
  readonly header: (name: string, value: string) => void
  /** Chooses the status of a successful answer where it is not the lowest of the route's. */
  readonly status: (status: number) => void
}

interface StreamedCall {
  /** The body as it comes, read at the reader's pace. Destroying it leaves the answer possible. */
  readonly stream: Readable
}

interface SocketCall {
  /**
   * Finishes the handshake; whatever is thrown before it is answered as of any route, what is thrown afterwards closes
   * the socket. It comes **paused**: add listeners, then `resume()` it.
   */
  readonly socket: () => Promise<WebSocket>
}

/** The same before its types are known. */
export interface AnyCall extends StreamedCall, SocketCall {
  readonly params: unknown
  readonly query: unknown
  readonly body: unknown
  readonly principal: Principal | undefined
  readonly signal: AbortSignal
  readonly once: Once
  readonly asking: Asking
  readonly header: (name: string, value: string) => void
  readonly status: (status: number) => void
}

export interface RouteOptions {
  /**
   * What an idempotency key covers: the whole answer, or only what the handler runs through `call.once`, so that a
   * repeat goes through the rest of it again.
   */
  readonly once?: 'answer' | 'handler'
}

declare module 'fastify' {
  interface FastifyContextConfig {
    route?: RouteRecord
    options?: RouteOptions
  }
  interface FastifyRequest {
    call?: AnyCall
    /** See `Call.status`. */
    chosenStatus?: number
    rawBody?: Buffer
    principal?: Principal
  }
}

type Replies<R extends RouteRecord> = R['reply'][keyof R['reply']]
type Answer<R extends RouteRecord> =
  | Output<R>
  | (Extract<Replies<R>, 'bytes' | Lines> extends never ? never : StreamableFile)
  // biome-ignore lint/suspicious/noConfusingVoidType: a handler of a socket answers by it, and returns nothing
  | (Replies<R> extends 'socket' ? void : never)

const methods: Readonly<Record<Method, RequestMethod>> = {
  GET: RequestMethod.GET,
  POST: RequestMethod.POST,
  PUT: RequestMethod.PUT,
  PATCH: RequestMethod.PATCH,
  DELETE: RequestMethod.DELETE,
}

const CallOf = createParamDecorator(
  (_: unknown, context: ExecutionContext) => context.switchToHttp().getRequest<FastifyRequest>().call,
)

/** The success status of a route unless its handler chooses another: keys of numbers come in their order. */
export const successStatus = (route: RouteRecord): number => Number(Object.keys(route.reply)[0] ?? 200)

/** Makes a method the handler of a route. */
export function Route<const R extends RouteRecord>(route: R, options: RouteOptions = {}) {
  return <H extends (call: Call<R>) => Promise<Answer<R>>>(
    target: object,
    name: string,
    descriptor: TypedPropertyDescriptor<H>,
  ): void => {
    RequestMapping({ method: methods[route.method], path: route.path })(target, name, descriptor)
    HttpCode(successStatus(route))(target, name, descriptor)
    RouteConfig({ route, options })(target, name, descriptor)
    CallOf()(target, name, 0)
  }
}
