import { type ErrorCode, Fault, problems, type Violation } from '@berth/contracts'
import { z } from 'zod'

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
