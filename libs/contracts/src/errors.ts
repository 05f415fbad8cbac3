/**
 * Every error a caller can meet, in one closed list: code → HTTP status and title. The code is the stable part of a
 * problem document (RFC 9457, `application/problem+json`); docs/errors.md is generated from this table.
 *
 * Three kinds of error exist. A `Failure` is the caller's: it has a code and is shown. A `Fault` comes from outside
 * (Postgres, Redis, a node, the kernel): it names what was attempted and may be worth another try. Anything else is a
 * bug: logged with its stack, shown as `internal_error` without detail.
 */
export const problems = {
  invalid_request: { status: 400, title: 'The request is not valid' },
  invalid_json: { status: 400, title: 'The body is not valid JSON' },
  ticket_invalid: { status: 401, title: 'The ticket was used, has expired, or is none' },
  unauthenticated: { status: 401, title: 'A valid API key is needed' },
  key_expired: { status: 401, title: 'The API key has expired' },
  key_revoked: { status: 401, title: 'The API key was revoked' },
  forbidden_scope: { status: 403, title: 'The API key lacks a scope' },
  quota_exceeded: { status: 403, title: 'A quota of the tenant would be exceeded' },
  policy_forbidden: { status: 403, title: 'The operator does not allow this' },
  path_denied: { status: 403, title: 'The user of the call may not do this to the path' },
  origin_forbidden: { status: 403, title: 'A session only works from its own page' },
  tenant_suspended: { status: 403, title: 'The tenant is suspended' },
  route_not_found: { status: 404, title: 'No such route' },
  tenant_not_found: { status: 404, title: 'No such tenant' },
  key_not_found: { status: 404, title: 'No such API key' },
  node_not_found: { status: 404, title: 'No such node' },
  job_not_found: { status: 404, title: 'No such job' },
  batch_not_found: { status: 404, title: 'No such batch' },
  image_not_found: { status: 404, title: 'No such image' },
  template_not_found: { status: 404, title: 'No such template, or no such version of it' },
  registry_not_found: { status: 404, title: 'No login for such a registry' },
  build_not_found: { status: 404, title: 'No such build' },
  sandbox_not_found: { status: 404, title: 'No such sandbox' },
  exec_not_found: { status: 404, title: 'No such exec' },
  terminal_not_found: { status: 404, title: 'No such terminal' },
  share_not_found: { status: 404, title: 'No such share' },
  path_not_found: { status: 404, title: 'No such file or directory' },
  output_gone: { status: 410, title: 'The output is no longer kept' },
  method_not_allowed: { status: 405, title: 'The route does not take this method' },
  wrong_state: { status: 409, title: 'Wrong state' },
  image_in_use: { status: 409, title: 'The image is used' },
  build_canceled: { status: 409, title: 'The build was canceled' },
  name_taken: { status: 409, title: 'The name is taken' },
  path_exists: { status: 409, title: 'The path exists' },
  path_not_directory: { status: 409, title: 'The path is not a directory' },
  path_is_directory: { status: 409, title: 'The path is a directory' },
  path_not_file: { status: 409, title: 'The path is no regular file' },
  directory_not_empty: { status: 409, title: 'The directory is not empty' },
  path_loop: { status: 409, title: 'The path leads through too many links' },
  watch_limit: { status: 409, title: 'More directories than may be watched' },
  id_taken: { status: 409, title: 'The id is taken by something else' },
  input_gap: { status: 409, title: 'Input does not continue where the last of it ended' },
  idempotency_mismatch: { status: 409, title: 'The idempotency key was used with another request' },
  idempotency_in_progress: { status: 409, title: 'The first request with this idempotency key is still running' },
  version_mismatch: { status: 412, title: 'The object has changed since' },
  body_too_large: { status: 413, title: 'The body is too large' },
  unsupported_media_type: { status: 415, title: 'The body must be application/json' },
  range_not_satisfiable: { status: 416, title: 'The range lies beyond the end' },
  image_invalid: { status: 422, title: 'The image is not what it says or cannot be used' },
  platform_unsupported: { status: 422, title: 'There is no image for this platform' },
  archive_invalid: { status: 422, title: 'The archive cannot be unpacked' },
  context_invalid: { status: 422, title: 'The build context is not what it should be' },
  dockerfile_invalid: { status: 422, title: 'The Dockerfile is not valid' },
  build_failed: { status: 422, title: 'An instruction of the build failed' },
  build_timed_out: { status: 422, title: 'The build took too long' },
  upgrade_required: { status: 426, title: 'This route is a WebSocket' },
  rate_limited: { status: 429, title: 'Too many requests' },
  internal_error: { status: 500, title: 'Internal error' },
  registry_denied: { status: 502, title: 'The registry refuses access, or has no such image' },
  registry_unreachable: { status: 502, title: 'The registry does not answer as it should' },
  image_unavailable: { status: 502, title: 'The image could not be brought to the node' },
  node_unreachable: { status: 502, title: 'The node that holds this could not be reached' },
  unavailable: { status: 503, title: 'Temporarily unavailable' },
  scan_unavailable: { status: 503, title: 'What is in the image, or wrong with it, cannot be told now' },
  no_capacity: { status: 503, title: 'No node has room' },
  disk_full: { status: 507, title: 'The disk limit of the sandbox is reached' },
} as const satisfies Record<string, { readonly status: number; readonly title: string }>

export type ErrorCode = keyof typeof problems

/** One thing wrong with a request: `field` is a JSON path such as `limits.memory` or `jobs[3].command`. */
export interface Violation {
  readonly field: string
  readonly message: string
}

/** The caller's error: shown with its code, message and data. `data` holds JSON members added to the problem. */
export class Failure extends Error {
  constructor(
    readonly code: ErrorCode,
    message: string,
    readonly data: Readonly<Record<string, unknown>> = {},
  ) {
    super(message)
    this.name = 'Failure'
  }
}

/** A request that a schema refused; names every field that is wrong. */
export class InvalidRequest extends Failure {
  constructor(readonly violations: readonly Violation[]) {
    const first = violations[0]
    super('invalid_request', first ? `${first.field}: ${first.message}` : 'the request is not valid', {
      errors: violations,
    })
    this.name = 'InvalidRequest'
  }
}

/** Admission refused: which quota, its limit, what is used now and what was asked for. */
export class QuotaExceeded extends Failure {
  constructor(
    readonly quota: string,
    readonly limit: number,
    readonly used: number,
    readonly asked: number,
  ) {
    super('quota_exceeded', `quota ${quota}: ${used} of ${limit} in use, ${asked} asked for`, {
      quota,
      limit,
      used,
      asked,
    })
    this.name = 'QuotaExceeded'
  }
}

/** Something outside the process failed: what was attempted, and why (`cause`). */
export class Fault extends Error {
  constructor(
    readonly attempted: string,
    options: { readonly cause: unknown },
  ) {
    const cause = options.cause instanceof Error ? options.cause.message : String(options.cause)
    super(`${attempted}: ${cause}`, options)
    this.name = 'Fault'
  }
}

/** Marks a condition that only a bug can break. */
export class BrokenInvariant extends Error {
  constructor(message: string) {
    super(`broken invariant: ${message}`)
    this.name = 'BrokenInvariant'
  }
}

/** Throws `BrokenInvariant` unless `condition` holds. */
export function invariant(condition: unknown, message: string): asserts condition {
  if (!condition) throw new BrokenInvariant(message)
}

/** The end of an exhaustive switch: does not compile while a case is missing. */
export function unreachable(value: never): never {
  throw new BrokenInvariant(`unhandled case ${JSON.stringify(value)}`)
}

/** Node's error code (`ENOENT`, …) of an unknown thrown value, if it has one. */
export function errnoOf(error: unknown): string | undefined {
  if (typeof error !== 'object' || error === null || !('code' in error)) return undefined
  return typeof error.code === 'string' ? error.code : undefined
}

/**
 * Ignores exactly the named error codes and rethrows anything else: `await rm(path).catch((e) => ignore(e, 'ENOENT'))`.
 */
export function ignore(error: unknown, ...codes: readonly string[]): undefined {
  const code = errnoOf(error)
  if (code !== undefined && codes.includes(code)) return undefined
  throw error
}
