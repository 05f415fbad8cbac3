// waiting.ts: waits that end, and leave nothing behind.

/** Resolves when `promise` does, the signal aborts, or `ms` are over. @returns whether it was the promise */
export function within(promise: Promise<unknown>, signal: AbortSignal, ms?: number): Promise<boolean> {
  return new Promise((resolve, reject) => {
    const settle = (done: boolean) => {
      clearTimeout(timer)
      signal.removeEventListener('abort', stop)
      resolve(done)
    }
    const stop = () => settle(false)
    const timer = ms === undefined ? undefined : setTimeout(stop, ms)
    signal.addEventListener('abort', stop, { once: true })
    if (signal.aborted) stop()
    promise.then(
      () => settle(true),
      (error: unknown) => {
        stop()
        reject(error)
      },
    )
  })
}

/**
 * Does work with a signal that aborts when either of two does. Not AbortSignal.any: what that makes stays with the
 * longer-lived one for as long as it lives.
 */
export async function withEither<T>(
  signals: readonly [AbortSignal, AbortSignal],
  work: (signal: AbortSignal) => Promise<T>,
): Promise<T> {
  const controller = new AbortController()
  const stop = (event: Event) => {
    if (event.target instanceof AbortSignal) controller.abort(event.target.reason)
  }
  for (const signal of signals) {
    if (signal.aborted) controller.abort(signal.reason)
    signal.addEventListener('abort', stop, { once: true })
  }
  try {
    return await work(controller.signal)
  } finally {
    for (const signal of signals) signal.removeEventListener('abort', stop)
  }
}
