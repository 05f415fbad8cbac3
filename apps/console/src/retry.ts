// retry.ts: when to try again after a connection was lost.

const FIRST_MS = 500
const LONGEST_MS = 15_000

/**
 * Milliseconds until the next try. Doubles with every failure up to 15 s, and varies by a quarter each way, so that
 * the pages that a restart cut off do not come back all at once.
 * @param failures in a row so far, from 1
 * @param random in [0, 1)
 */
export function retryDelayMs(failures: number, random: number): number {
  const base = Math.min(LONGEST_MS, FIRST_MS * 2 ** Math.min(failures - 1, 10))
  return Math.round(base * (0.75 + random / 2))
}
