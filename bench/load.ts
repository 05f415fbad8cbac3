// load.ts: how long many calls of one kind take, with a fixed number of them in flight.

export interface Measured {
  readonly perSecond: number
  readonly p50: number
  readonly p95: number
  readonly p99: number
}

/**
 * Runs `call` `count` times with `inFlight` of them at once, after a tenth of it as a warm-up.
 * @returns milliseconds per call, and calls per second over the whole span
 */
export async function measure(count: number, inFlight: number, call: () => Promise<void>): Promise<Measured> {
  await burst(Math.max(inFlight, Math.ceil(count / 10)), inFlight, call)
  const started = performance.now()
  const times = (await burst(count, inFlight, call)).sort((a, b) => a - b)
  const seconds = (performance.now() - started) / 1000
  const at = (share: number) => times[Math.min(times.length - 1, Math.floor(times.length * share))] ?? Number.NaN
  return { perSecond: count / seconds, p50: at(0.5), p95: at(0.95), p99: at(0.99) }
}

async function burst(count: number, inFlight: number, call: () => Promise<void>): Promise<number[]> {
  const times: number[] = []
  let left = count
  const worker = async () => {
    while (left-- > 0) {
      const started = performance.now()
      await call()
      times.push(performance.now() - started)
    }
  }
  await Promise.all(Array.from({ length: inFlight }, worker))
  return times
}
