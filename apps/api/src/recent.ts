import type { Clock } from './tokens.js'

export interface RecentOptions {
  readonly clock: Clock
  /** How long an answer is used again, in milliseconds from when it was asked for. */
  readonly forMs: number
  /** Most answers kept; the oldest go first. */
  readonly atMost: number
}

/** Answers of the last moments, by key. Callers who ask for the same at once share one answer; failures are not kept. */
export class Recent<V> {
  private readonly answers = new Map<string, { readonly at: number; readonly value: Promise<V> }>()

  constructor(private readonly options: RecentOptions) {}

  get(key: string, ask: () => Promise<V>): Promise<V> {
    const { clock, forMs } = this.options
    const now = clock.now().getTime()
    const known = this.answers.get(key)
    // A clock that was set back makes an answer old, not young for ever.
    if (known && now >= known.at && now - known.at < forMs) return known.value
    return this.keep(key, now, ask())
  }

  /** The answer kept for `key` is not used any more. */
  drop(key: string): void {
    this.answers.delete(key)
  }

  /** Nothing asked before is used from now on. */
  clear(): void {
    this.answers.clear()
  }

  private keep(key: string, at: number, value: Promise<V>): Promise<V> {
    this.answers.delete(key)
    const [oldest] = this.answers.size >= this.options.atMost ? this.answers.keys() : []
    if (oldest !== undefined) this.answers.delete(oldest)
    const entry = { at, value }
    this.answers.set(key, entry)
    value.catch(() => this.answers.get(key) === entry && this.answers.delete(key))
    return value
  }
}
