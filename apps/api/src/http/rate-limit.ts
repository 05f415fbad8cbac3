// rate-limit.ts: a token bucket per tenant, in this process. A bucket holds a tenth of a minute's requests (at least
// 10, so that small quotas allow small bursts) and fills at the tenant's rate. Of several replicas each lets through
// its share; see docs/decisions/010-rate-limit-in-process.md for why not in Redis.
import { Failure } from '@berth/contracts'

interface Bucket {
  tokens: number
  at: number
  capacity: number
  perMs: number
}

/** Outcome of one request, as its answer's headers tell it. */
export interface RateState {
  readonly limit: number
  readonly remaining: number
  /** Seconds until the bucket is full. */
  readonly resetS: number
  /** Seconds until the next request is let through; undefined where this one was. */
  readonly retryAfterS: number | undefined
}

const MAX_BUCKETS = 50_000

/** Bucket sizes of a tenant on one of `replicas`. */
export function bucketOf(requestsPerMinute: number, replicas: number): { capacity: number; perMs: number } {
  const share = requestsPerMinute / replicas
  return { capacity: share === 0 ? 0 : Math.max(10, share / 10), perMs: share / 60_000 }
}

export class RateLimit {
  private readonly buckets = new Map<string, Bucket>()

  constructor(private readonly replicas: number) {}

  /** Takes one request of `tenant` at `nowMs` (Unix milliseconds). A changed rate acts at once. */
  take(tenant: string, requestsPerMinute: number, nowMs: number): RateState {
    const bucket = this.filled(tenant, requestsPerMinute, nowMs)
    const allowed = bucket.tokens >= 1
    if (allowed) bucket.tokens -= 1
    const { tokens, capacity, perMs } = bucket
    const seconds = (missing: number) => (perMs === 0 ? 60 : Math.max(1, Math.ceil(missing / perMs / 1000)))
    return {
      limit: requestsPerMinute,
      remaining: Math.floor(tokens),
      resetS: seconds(capacity - tokens),
      retryAfterS: allowed ? undefined : seconds(1 - tokens),
    }
  }

  private filled(tenant: string, requestsPerMinute: number, nowMs: number): Bucket {
    const { capacity, perMs } = bucketOf(requestsPerMinute, this.replicas)
    const known = this.buckets.get(tenant)
    if (!known) {
      if (this.buckets.size >= MAX_BUCKETS) this.dropFull(nowMs)
      const fresh = { tokens: capacity, at: nowMs, capacity, perMs }
      this.buckets.set(tenant, fresh)
      return fresh
    }
    // A clock that was set back must not empty the bucket.
    known.tokens = Math.min(capacity, known.tokens + Math.max(0, nowMs - known.at) * perMs)
    known.at = nowMs
    known.capacity = capacity
    known.perMs = perMs
    return known
  }

  /** A full bucket holds no information: forgetting it changes nothing. */
  private dropFull(nowMs: number): void {
    for (const [tenant, { tokens, at, capacity, perMs }] of this.buckets)
      if (tokens + (nowMs - at) * perMs >= capacity) this.buckets.delete(tenant)
  }
}

/** The 429 of a request that was not let through. */
export function rateLimited(state: RateState): Failure {
  const { limit, retryAfterS } = state
  return new Failure('rate_limited', `the tenant may make ${limit} requests a minute; try again in ${retryAfterS} s`, {
    quota: 'requestsPerMinute',
    limit,
    retryAfterSeconds: retryAfterS,
  })
}
