// exclusive.ts: one at a time for each name; who waits may give up.

export class Exclusive {
  readonly #last = new Map<string, Promise<void>>()

  /**
   * Runs `work` when nothing else runs under this name.
   * @throws the signal's reason when it is aborted before that; what `work` throws
   */
  async run<T>(name: string, signal: AbortSignal, work: () => Promise<T>): Promise<T> {
    const before = this.#last.get(name)
    let leave: () => void = () => undefined
    const mine = new Promise<void>((done) => {
      leave = done
    })
    // Whoever comes next waits for those before too: one that gave up must not let them in.
    const all = Promise.all([before, mine]).then(() => undefined)
    this.#last.set(name, all)
    try {
      if (before) await abortable(before, signal)
      signal.throwIfAborted()
      return await work()
    } finally {
      leave()
      if (this.#last.get(name) === all) this.#last.delete(name)
    }
  }
}

/** @throws the signal's reason when it is aborted first */
export function abortable<T>(promise: Promise<T>, signal: AbortSignal): Promise<T> {
  return new Promise((resolve, reject) => {
    const stop = () => reject(signal.reason)
    if (signal.aborted) stop()
    signal.addEventListener('abort', stop, { once: true })
    // Always: that the promise rejects when nobody waits for it any more must not end the process.
    promise.then(resolve, reject).finally(() => signal.removeEventListener('abort', stop))
  })
}
