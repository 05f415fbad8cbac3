// activity.ts: whether anything goes on in a sandbox that its idle clock has to know of, and when it last did.

export class Activity {
  #lastAt: number | undefined
  #occupants = 0
  #over = false
  #timer: NodeJS.Timeout | undefined
  readonly #onChange: () => void
  readonly #save: () => void

  /**
   * @param onChange whether there is activity has changed
   * @param save the time of the last one is to be written down: a while after each
   */
  constructor(lastAt: number | undefined, onChange: () => void, save: () => void) {
    this.#lastAt = lastAt
    this.#onChange = onChange
    this.#save = save
  }

  /** Unix milliseconds; undefined where there was none. */
  get lastAt(): number | undefined {
    return this.#lastAt
  }

  get now(): boolean {
    return this.#occupants > 0
  }

  touch(): void {
    this.#lastAt = Date.now()
    if (!this.#over) this.#timer ??= setTimeout(() => this.flush(), SAVED_AFTER_MS).unref()
  }

  /** There is activity until the returned function is called, or `until` aborts. */
  occupy(until: AbortSignal): () => void {
    let held = true
    const leave = () => {
      until.removeEventListener('abort', leave)
      if (!held) return
      held = false
      this.#occupants -= 1
      this.touch()
      this.#onChange()
    }
    this.#occupants += 1
    this.touch()
    this.#onChange()
    until.addEventListener('abort', leave, { once: true })
    if (until.aborted) leave()
    return leave
  }

  /** There is nothing any more to write it down for. */
  end(): void {
    this.#over = true
    clearTimeout(this.#timer)
    this.#timer = undefined
  }

  /** Writes down what is not written yet. */
  flush(): void {
    if (this.#timer === undefined) return
    clearTimeout(this.#timer)
    this.#timer = undefined
    this.#save()
  }
}

/** A crash of the agent makes the idle clock forget no more than this. */
const SAVED_AFTER_MS = 5_000
