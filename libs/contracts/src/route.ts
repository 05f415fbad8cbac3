import { z } from 'zod'
import type { ErrorCode } from './errors.js'

/**
 * What a key may do. `operator` keys belong to no tenant and may do everything operators do; `node` is the scope of a
 * node's own token. The others are a tenant's: a key holds any set of them.
 */
export const tenantScopes = [
  'jobs:read',
  'jobs:write',
  'sandboxes:read',
  'sandboxes:write',
  'images:read',
  'images:write',
  'usage:read',
  'tenant:read',
  'keys:read',
  'keys:write',
] as const
export const TenantScope = z.enum(tenantScopes)
export type TenantScope = z.infer<typeof TenantScope>
export type Scope = TenantScope | 'operator' | 'node' | 'public'

/** Which budget of requests a call is counted against; see the tenant's `requestsPerMinute`. */
export type RateClass = 'read' | 'write' | 'none'

export type Method = 'GET' | 'POST' | 'PUT' | 'PATCH' | 'DELETE'

/** A stream of JSON values of one schema: one a line (`application/x-ndjson`), or as server-sent events. */
export interface Lines {
  readonly kind: 'ndjson' | 'events'
  readonly item: z.ZodType
}

/**
 * What a successful answer holds: a schema, raw bytes, a stream of JSON values, nothing, or (with status 101) a
 * WebSocket whose frames the route's description tells.
 */
export type Reply = z.ZodType | Lines | 'bytes' | 'empty' | 'socket'

/**
 * One route of the API. The guard, the validation, the OpenAPI document, the SDK and the cross-tenant test are all
 * derived from this record; without a `scope` it does not compile.
 */
export interface Route {
  readonly id: string
  readonly method: Method
  /** Path with `:name` for parameters, e.g. `/v1/jobs/:id`. */
  readonly path: string
  readonly scope: Scope
  /** Whether operators may call it too, who belong to no tenant: for what is public. */
  readonly operators?: true
  readonly rate: RateClass
  readonly tag: string
  readonly summary: string
  readonly description?: string
  readonly params?: z.ZodType
  readonly query?: z.ZodType
  /** `bytes`: any content, streamed to the handler as it comes. */
  readonly body?: z.ZodType | 'bytes'
  /** Largest body in bytes; 64 KiB where it is not given. Streamed bodies have no limit but the sandbox's disk. */
  readonly bodyLimit?: number
  /** Headers that mean something to the route besides the usual ones: name → description, for the document. */
  readonly headers?: Readonly<Record<string, string>>
  /** `none`: a repeat is harmless by nature, or recognised by an id or offset in the request itself. */
  readonly idempotency?: 'none'
  /** Success status → what it answers. Of several the lowest is meant unless the handler chooses another. */
  readonly reply: Readonly<Record<number, Reply>>
  /** Codes this route may answer besides those that every route may (see `commonErrors`). */
  readonly errors: readonly ErrorCode[]
}

/** Codes that any route may answer. */
export const commonErrors = [
  'invalid_request',
  'unauthenticated',
  'key_expired',
  'key_revoked',
  'forbidden_scope',
  'rate_limited',
  'internal_error',
  'unavailable',
] as const satisfies readonly ErrorCode[]

/** Identity that keeps a route's own types. */
export function route<const R extends Route>(definition: R): R {
  return definition
}

type Parsed<R, K extends string> = R extends { readonly [P in K]: infer S extends z.ZodType } ? z.output<S> : undefined
type Given<R, K extends string> = R extends { readonly [P in K]: infer S extends z.ZodType } ? z.input<S> : undefined

/** What a handler receives, after parsing. */
export interface Input<R extends Route> {
  readonly params: Parsed<R, 'params'>
  readonly query: Parsed<R, 'query'>
  readonly body: Parsed<R, 'body'>
}

/** What a client sends, before parsing. */
export interface Call<R extends Route> {
  readonly params: Given<R, 'params'>
  readonly query: Given<R, 'query'>
  readonly body: Given<R, 'body'>
}

/** The JSON of a successful answer. */
export type Output<R extends Route> = {
  [S in keyof R['reply']]: R['reply'][S] extends z.ZodType ? z.output<R['reply'][S]> : undefined
}[keyof R['reply']]

/** Opaque position in a list; lists are newest first and stable while rows are added. */
export const Page = {
  query: { cursor: z.string().max(200).optional(), limit: z.coerce.number().int().min(1).max(200).default(50) },
} as const

/** One page of a list. `nextCursor` is null on the last page. */
export const pageOf = <T extends z.ZodType>(item: T) =>
  z.object({ items: z.array(item), nextCursor: z.string().nullable() })

/** A boolean as queries spell it. */
export const Flag = z.enum(['true', 'false']).transform((text) => text === 'true')

/** RFC 3339 time in UTC. */
export const Time = z.iso.datetime()

/** Human-given name: letters, digits, `.`, `_`, `-`; 1 to 63 characters, beginning with a letter or a digit. */
export const Name = z
  .string()
  .regex(/^[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}$/, 'must be 1 to 63 letters, digits, ".", "_" or "-"')

/** A template by its name, in its newest version or, as `name@3`, in that one. */
export const TemplateRef = z
  .string()
  .regex(/^[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}(@[1-9]\d{0,8})?$/, 'must be the name of a template, or name@version')

/** Free labels: up to 32, keys as names (with `/` allowed), values up to 256 characters without control characters. */
export const Labels = z
  .record(
    z.string().regex(/^[a-zA-Z0-9][a-zA-Z0-9._/-]{0,62}$/, 'must be 1 to 63 letters, digits, ".", "_", "/" or "-"'),
    z
      .string()
      .max(256)
      .regex(/^[^\p{Cc}]*$/u, 'must not contain control characters'),
  )
  .refine((labels) => Object.keys(labels).length <= 32, 'must be at most 32 labels')
