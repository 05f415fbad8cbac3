// idempotency.ts: a request that carries an `Idempotency-Key` is carried out once. Its answer is kept for a day, per
// API key, sealed (answers may hold secrets that are to be shown only once); a repeat gets the same answer.
//
// A request that was refused (4xx) frees the key: it changed nothing, and a later repeat may succeed. One that ended
// in a fault keeps it until its lease is over, because whether it took effect is not known.
import { createHash } from 'node:crypto'
import { Failure, InvalidRequest } from '@berth/contracts'
import { Inject, Injectable } from '@nestjs/common'
import { Secrets } from '../secrets.js'
import { DATABASE, type Database, LOG, type Logger } from '../tokens.js'
import type { Principal } from './auth.js'

/** One request with a key. */
export interface IdempotentRequest {
  readonly principal: string
  readonly key: string
  readonly hash: Buffer
}

export interface StoredAnswer {
  readonly status: number
  /** JSON text; null for an answer without a body. */
  readonly body: string | null
}

/**
 * The request as its repeats are recognised: by who asks, method, path and body, but not the query, which says only
 * how to wait for the answer.
 * @throws InvalidRequest unless the key is 1 to 255 printable ASCII characters
 */
export function idempotentRequest(
  principal: Principal,
  key: string,
  request: { readonly method: string; readonly path: string; readonly rawBody: Buffer | undefined },
): IdempotentRequest {
  if (!/^[\x21-\x7e]{1,255}$/.test(key))
    throw new InvalidRequest([{ field: 'Idempotency-Key', message: 'must be 1 to 255 printable ASCII characters' }])
  const hash = createHash('sha256').update(`${request.method}\n${request.path}\n`)
  if (request.rawBody) hash.update(request.rawBody)
  const who = principal.kind === 'node' ? principal.nodeId : principal.keyId
  return { principal: who, key, hash: hash.digest() }
}

@Injectable()
export class Idempotency {
  constructor(
    @Inject(DATABASE) private readonly database: Database,
    private readonly secrets: Secrets,
    @Inject(LOG) private readonly log: Logger,
  ) {}

  /**
   * @returns the stored answer of an earlier one; undefined where this is the first and must be carried out, which
   * ends with `finish` or `abandon`
   * @throws idempotency_mismatch, idempotency_in_progress
   */
  async begin(request: IdempotentRequest): Promise<StoredAnswer | undefined> {
    const { principal, key } = request
    const start = await this.database.idempotency.begin(principal, key, request.hash)
    switch (start.kind) {
      case 'new':
        return undefined
      case 'stored':
        return { status: start.status, body: start.body === null ? null : this.open(request, start.body) }
      case 'in_progress':
        throw new Failure('idempotency_in_progress', `the first request with the key ${key} has not ended; try again`)
      case 'mismatch':
        throw new Failure('idempotency_mismatch', `the key ${key} was used with another method, path or body`)
    }
  }

  async finish(request: IdempotentRequest, { status, body }: StoredAnswer): Promise<void> {
    const { principal, key } = request
    const sealed = body === null ? null : this.secrets.seal(body, contextOf(request))
    await this.database.idempotency.finish(principal, key, { status, body: sealed })
  }

  /** Frees the key. Where that fails the lease ends it, a minute later. */
  async abandon({ principal, key }: IdempotentRequest): Promise<void> {
    await this.database.idempotency.abandon(principal, key).catch((err: unknown) => {
      this.log.warn({ err, principal }, 'idempotency.abandon.failed')
    })
  }

  private open(request: IdempotentRequest, sealed: string): string {
    const body = this.secrets.open(sealed, contextOf(request))
    if (body !== undefined) return body
    // The installation's secrets were replaced: what was stored before cannot be read.
    throw new Failure('idempotency_mismatch', `the answer kept for the key ${request.key} is gone; use another key`)
  }
}

const contextOf = ({ principal, key }: IdempotentRequest): string => `${principal}\n${key}`
