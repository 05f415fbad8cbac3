// bodies.ts: request bodies that are streamed to the handler as they come, and how long any body may take.
import type { Readable } from 'node:stream'
import { Failure, type Route } from '@berth/contracts'
import { bodyOf, lingerAfter } from '@berth/node-rpc'
import type { FastifyInstance, FastifyReply, FastifyRequest } from 'fastify'

/** A body that is parsed must have come within this, in milliseconds; one that is streamed takes as long as it takes. */
const BODY_WITHIN_MS = 120_000

/** The content type by which Fastify is made to leave a body alone. */
const STREAMED = 'application/octet-stream'

/** Lets requests wait for `100 Continue` (RFC 9110, 10.1.1): it is sent when somebody is about to read the body. */
export function installBodies(fastify: FastifyInstance): void {
  fastify.server.on('checkContinue', (request, response) => fastify.server.emit('request', request, response))
  fastify.addContentTypeParser(STREAMED, (request, _payload, done) => {
    const streamed = request.routeOptions.config.route?.body === 'bytes'
    done(
      streamed
        ? null
        : new Failure('unsupported_media_type', 'send JSON with the header Content-Type: application/json'),
    )
  })
}

const expectsContinue = (request: FastifyRequest): boolean => /^100-continue$/i.test(request.headers.expect ?? '')

/** For `onRequest`, once the request may be made: before it a body is not asked for. */
export function admitBody(route: Route, request: FastifyRequest, reply: FastifyReply): void {
  // Refused before the body was asked for, a client may or may not send it: only a new connection is safe.
  if (expectsContinue(request)) reply.header('connection', 'close')
  if (route.body === 'bytes') {
    // Any content is welcome; Fastify would parse JSON and refuse what it does not know.
    request.raw.headers['content-type'] = STREAMED
    lingerAfter(request.raw, reply.raw)
    return
  }
  if (request.headers['content-length'] === undefined && request.headers['transfer-encoding'] === undefined) return
  continueNow(request, reply)
  lingerAfter(request.raw, reply.raw)
  const { raw } = request
  const late = setTimeout(() => raw.complete || raw.socket.destroy(), BODY_WITHIN_MS)
  raw.once('close', () => clearTimeout(late))
}

function continueNow(request: FastifyRequest, reply: FastifyReply): void {
  if (!expectsContinue(request) || reply.raw.headersSent) return
  reply.removeHeader('connection')
  reply.raw.writeContinue()
}

/** The body as it comes. A client that waits for `100 Continue` gets it when the first byte is wanted. */
export const streamedBody = (request: FastifyRequest, reply: FastifyReply): Readable =>
  bodyOf(request.raw, () => continueNow(request, reply))
