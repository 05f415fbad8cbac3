// route.decorator.ts: one line from a Route record to a handler. Method, path, success status, scope, limits and
// schemas come from the record (see pipeline.ts for who reads them when); the handler's argument and result are typed
// by it.
import { type Input, type Method, type Output, type Route as RouteRecord } from '@berth/contracts'
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
import type { Principal, PrincipalOf } from './auth.js'
import type { Asking } from './sessions.js'

/** Runs `work` once per idempotency key; a repeat gets what the first run stored. See `RouteOptions.once`. */
export type Once = <T>(schema: z.ZodType<T>, work: () => Promise<T>) => Promise<T>

/** A request after all checks, as a handler receives it. */
export interface Call<R extends RouteRecord> extends Input<R> {
  readonly principal: PrincipalOf<R['scope']>
  /** Aborted when the client has gone. */
  readonly signal: AbortSignal
  readonly once: Once
  readonly asking: Asking
  /** Adds a header to the answer. */
  readonly header: (name: string, value: string) => void
}

/** The same before its types are known. */
export interface AnyCall {
  readonly params: unknown
  readonly query: unknown
  readonly body: unknown
  readonly principal: Principal | undefined
  readonly signal: AbortSignal
  readonly once: Once
  readonly asking: Asking
  readonly header: (name: string, value: string) => void
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
    rawBody?: Buffer
    principal?: Principal
  }
}

type Answer<R extends RouteRecord> = Output<R> | ('bytes' extends R['reply'][keyof R['reply']] ? StreamableFile : never)

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

/** The success status of a route: the first that its record lists. */
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
