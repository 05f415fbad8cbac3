// problem.filter.ts: every error, wherever it was thrown, becomes a problem document (RFC 9457) here and nowhere else.
// A Failure is shown. A Fault is 503 and logged; anything else is a bug: logged with its stack, shown as nothing.
import { type ErrorCode, errnoOf, Failure, Fault, InvalidRequest, problems, type Route } from '@berth/contracts'
import { type ArgumentsHost, Catch, type ExceptionFilter, HttpException, NotFoundException } from '@nestjs/common'
import type { FastifyReply, FastifyRequest } from 'fastify'
import type { Logger } from '../tokens.js'
import { closeForError } from './sockets.js'

export interface ProblemDocument {
  readonly status: number
  readonly headers: Readonly<Record<string, string>>
  readonly body: Readonly<Record<string, unknown>>
}

const limitText = (bytes: number): string => (bytes % 1048576 ? `${bytes / 1024} KiB` : `${bytes / 1048576} MiB`)

/** Fastify's own errors, by their code; Nest wraps those of the body. */
function failureOfFastify(error: unknown, bodyLimit: number): Failure | undefined {
  switch (errnoOf(error instanceof HttpException ? error.cause : error)) {
    case 'FST_ERR_CTP_BODY_TOO_LARGE':
      return new Failure('body_too_large', `the body may be ${limitText(bodyLimit)} at most`, { limitBytes: bodyLimit })
    case 'FST_ERR_CTP_INVALID_MEDIA_TYPE':
      return new Failure('unsupported_media_type', 'send JSON with the header Content-Type: application/json')
    case 'FST_ERR_CTP_INVALID_CONTENT_LENGTH':
      return new Failure('invalid_json', 'the body is not as long as its Content-Length')
    case 'FST_ERR_BAD_URL':
    case 'FST_ERR_MAX_PARAM_LENGTH':
      return new InvalidRequest([{ field: 'path', message: 'is not a valid path' }])
    default:
      return undefined
  }
}

/** Methods that a path takes, by the list of routes. */
export function methodsOf(routes: readonly Route[], path: string): string[] {
  const parts = path.split('/')
  const fits = (pattern: string) => {
    const wanted = pattern.split('/')
    return wanted.length === parts.length && wanted.every((part, i) => part.startsWith(':') || part === parts[i])
  }
  return [...new Set(routes.filter((route) => fits(route.path)).map((route) => route.method))]
}

function missing(routes: readonly Route[], method: string, url: string): { failure: Failure; allow?: string } {
  const path = url.split('?')[0] ?? ''
  const allow = methodsOf(routes, path).join(', ')
  if (allow) return { failure: new Failure('method_not_allowed', `${method} is not one of ${allow}`), allow }
  return { failure: new Failure('route_not_found', `there is no ${method} ${path.slice(0, 200)}`) }
}

/** The document of an error code. */
export function problemDocument(
  code: ErrorCode,
  detail: string,
  requestId: string,
  data: Readonly<Record<string, unknown>> = {},
): ProblemDocument {
  const { status, title } = problems[code]
  const body = { type: `urn:berth:problem:${code}`, title, status, code, detail, requestId, ...data }
  return { status, body, headers: headersOf(code, data) }
}

function headersOf(code: ErrorCode, data: Readonly<Record<string, unknown>>): Readonly<Record<string, string>> {
  if (problems[code].status === 401) return { 'www-authenticate': 'Bearer realm="berth"' }
  if (code === 'rate_limited') return { 'retry-after': String(data.retryAfterSeconds ?? 1) }
  if (code === 'upgrade_required') return { upgrade: 'websocket', connection: 'Upgrade' }
  if (code === 'unavailable' || code === 'idempotency_in_progress') return { 'retry-after': '1' }
  return {}
}

@Catch()
export class ProblemFilter implements ExceptionFilter {
  constructor(
    private readonly routes: readonly Route[],
    private readonly log: Logger,
  ) {}

  catch(error: unknown, host: ArgumentsHost): void {
    const http = host.switchToHttp()
    this.answer(error, http.getRequest<FastifyRequest>(), http.getResponse<FastifyReply>())
  }

  /** Answers with the error's problem document, unless an answer is under way already. */
  answer(error: unknown, request: FastifyRequest, reply: FastifyReply): void {
    const { status, headers, body } = this.documentOf(error, request)
    if (closeForError(request, error) || reply.sent) return
    // Fastify would close at once, and the reset may overtake the answer; see lingerAfter for how long it goes on.
    if (status === 413) reply.removeHeader('connection')
    void reply.code(status).headers(headers).type('application/problem+json').send(JSON.stringify(body))
  }

  private documentOf(error: unknown, request: FastifyRequest): ProblemDocument {
    const { id: requestId } = request
    if (error instanceof Failure) return problemDocument(error.code, error.message, requestId, error.data)
    if (error instanceof NotFoundException) {
      const { failure, allow } = missing(this.routes, request.method, request.url)
      const document = problemDocument(failure.code, failure.message, requestId)
      return allow ? { ...document, headers: { allow } } : document
    }
    const known = failureOfFastify(error, request.routeOptions.bodyLimit)
    if (known) return problemDocument(known.code, known.message, requestId, known.data)
    return this.documentOfTrouble(error, requestId)
  }

  private documentOfTrouble(error: unknown, requestId: string): ProblemDocument {
    if (error instanceof Fault) {
      this.log.warn({ requestId, err: error }, 'request.fault')
      return problemDocument('unavailable', 'something this depends on does not answer; try again', requestId)
    }
    this.log.error({ requestId, err: error }, 'request.bug')
    return problemDocument('internal_error', 'this is a bug; its log line carries the request id', requestId)
  }
}
