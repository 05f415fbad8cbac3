// load.ts: how long many calls of one kind take, with a fixed number of them in flight.

export interface Measured {
  readonly perSecond: number
  readonly p50: number
  readonly p95: number
  readonly p99: number
}

/** One call. @returns its milliseconds: what comes before and after it in the function is not measured */
export type Timed = () => Promise<number>

/**
 * Runs `call` `count` times with `inFlight` of them at once, after a tenth of it as a warm-up.
 * @returns milliseconds per call, and calls per second over the whole span
 */
export async function measure(count: number, inFlight: number, call: Timed): Promise<Measured> {
  await burst(Math.max(inFlight, Math.ceil(count / 10)), inFlight, call)
  const started = performance.now()
  const times = await burst(count, inFlight, call)
  const seconds = (performance.now() - started) / 1000
  return { perSecond: count / seconds, ...percentiles(times) }
}

export function percentiles(times: readonly number[]): Omit<Measured, 'perSecond'> {
  const sorted = [...times].sort((a, b) => a - b)
  const at = (share: number) => sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? Number.NaN
  return { p50: at(0.5), p95: at(0.95), p99: at(0.99) }
}

async function burst(count: number, inFlight: number, call: Timed): Promise<number[]> {
  const times: number[] = []
  await eachOf(Array(count).keys(), inFlight, async () => times.push(await call()))
  return times
}

/** Does the work for each item, with `inFlight` of them at once. */
export async function eachOf<T>(
  items: Iterable<T>,
  inFlight: number,
  work: (item: T) => Promise<unknown>,
): Promise<void> {
  const left = items[Symbol.iterator]()
  const worker = async () => {
    for (let next = left.next(); !next.done; next = left.next()) await work(next.value)
  }
  await Promise.all(Array.from({ length: inFlight }, worker))
}

/** Milliseconds of one piece of work. */
export async function timed(work: () => Promise<unknown>): Promise<number> {
  const started = performance.now()
  await work()
  return performance.now() - started
}
