// operations.ts: work of one sandbox that takes its time and goes on beside its loop, which is told the end of it. One
// piece counts at a time: what a later one has made void comes to its end, and nobody is told.

/** Of a piece of work: what it has changed (undefined where something else tells that), or why it failed. */
export type Finished<T> =
  | { readonly ok: true; readonly change: T | undefined }
  | { readonly ok: false; readonly err: unknown }

export class Operations<T> {
  readonly #running = new Set<Promise<void>>()
  readonly #onFinished: () => void
  #serial = 0
  #finished: Finished<T> | undefined

  /** @param onFinished there may be something to take */
  constructor(onFinished: () => void) {
    this.#onFinished = onFinished
  }

  /** Whether any is under way, those that do not count any more too. */
  get underWay(): boolean {
    return this.#running.size > 0
  }

  begin(work: () => Promise<T | undefined>): void {
    this.#serial += 1
    const serial = this.#serial
    this.#finished = undefined
    const running = work().then(
      (change) => this.#finish(serial, { ok: true, change }),
      (err: unknown) => this.#finish(serial, { ok: false, err }),
    )
    this.#running.add(running)
    void running.finally(() => {
      this.#running.delete(running)
      this.#onFinished()
    })
  }

  /** What counts came to: told once. */
  take(): Finished<T> | undefined {
    const finished = this.#finished
    this.#finished = undefined
    return finished
  }

  /** Resolves when none is under way. */
  async settled(): Promise<void> {
    await Promise.all(this.#running)
  }

  #finish(serial: number, finished: Finished<T>): void {
    if (serial !== this.#serial) return
    this.#finished = finished
    this.#onFinished()
  }
}
