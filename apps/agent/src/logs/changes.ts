/**
 * A counter that many can wait on: whoever looks at something that changes notes `version` first, looks, and then waits
 * for another version, so that no change between the two is missed. Nothing is queued for those who wait.
 */
export class Changes {
  #version = 0
  readonly #waiting = new Set<() => void>()

  /** Grows with every change. */
  get version(): number {
    return this.#version
  }

  tell(): void {
    this.#version += 1
    for (const wake of [...this.#waiting]) wake()
  }

  /** Resolves once `version` is no longer `seen`, or the signal aborts. */
  after(seen: number, signal: AbortSignal): Promise<void> {
    return new Promise((resolve) => {
      const done = () => {
        signal.removeEventListener('abort', done)
        this.#waiting.delete(done)
        resolve()
      }
      signal.addEventListener('abort', done, { once: true })
      if (signal.aborted || seen !== this.#version) done()
      else this.#waiting.add(done)
    })
  }
}
