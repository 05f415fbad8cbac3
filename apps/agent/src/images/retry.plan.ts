// retry.plan.ts: whether and when a registry is asked again.

/** In milliseconds. */
export interface Patience {
  readonly firstPauseMs: number
  readonly longestPauseMs: number
  /** How long a registry's own word (`Retry-After`) is waited for. */
  readonly longestAskedMs: number
  /** How often, without any progress between. */
  readonly attempts: number
}

export const patience: Patience = {
  firstPauseMs: 250,
  longestPauseMs: 10_000,
  longestAskedMs: 60_000,
  attempts: 6,
}

/**
 * The pause before another try; undefined: there is none.
 * @param failed tries since the last progress, this one included
 * @param askedMs what the registry asked for
 * @param chance of [0, 1): callers that failed together come back apart
 */
export function pauseMs(failed: number, askedMs: number | undefined, chance: number, of: Patience): number | undefined {
  if (failed >= of.attempts || (askedMs ?? 0) > of.longestAskedMs) return undefined
  const backoff = Math.min(of.firstPauseMs * 2 ** (failed - 1), of.longestPauseMs) * (0.5 + chance / 2)
  return Math.max(backoff, askedMs ?? 0)
}

/** `Retry-After` (RFC 9110, section 10.2.3): seconds, or a date. */
export function retryAfterMs(header: string | undefined, nowMs: number): number | undefined {
  if (header === undefined) return undefined
  if (/^\d{1,9}$/.test(header)) return Number(header) * 1000
  const at = Date.parse(header)
  return Number.isNaN(at) ? undefined : Math.max(0, at - nowMs)
}

/** Statuses that may be others in a moment. */
export const isPassing = (status: number): boolean => status === 408 || status === 429 || status >= 500
