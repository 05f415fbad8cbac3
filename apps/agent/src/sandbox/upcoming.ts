// upcoming.ts: waits for sandboxes that are on their way: a request for something in one may come before the command that
// makes or starts it. Told of every change, so that nobody who waits loses time.

import { Failure } from '@berth/contracts'
import { Changes } from '../logs/changes.js'
import type { LiveSandbox } from './live.js'

/** How long after the API has made a sandbox its command may take to come here. */
const ARRIVAL_MS = 5_000
/** How long a request waits for its sandbox to be up. */
const START_MS = 30_000

export class Upcoming {
  readonly #what: string
  readonly #changes = new Changes()

  /** @param what needs sandboxes that run, for messages */
  constructor(what: string) {
    this.#what = what
  }

  /** Something of a sandbox is new: that it is there, its state, or what is attached to it. */
  tell(): void {
    this.#changes.tell()
  }

  /**
   * Resolves when a sandbox is up: one that is being created or started is waited for, and also one whose command is
   * still on its way here.
   * @param find undefined while the node does not know it
   * @param attached whether a run of it is up, as far as the caller is concerned
   * @throws Failure `sandbox_not_found`, `wrong_state` when it does not come to that, or is paused
   */
  async up(
    find: () => LiveSandbox | undefined,
    attached: (live: LiveSandbox) => boolean,
    signal: AbortSignal,
  ): Promise<LiveSandbox> {
    const live = await this.#until(find, ARRIVAL_MS, signal)
    if (!live) throw new Failure('sandbox_not_found', 'there is no such sandbox on this node')
    await this.#until(() => attached(live) || live.state !== 'creating', START_MS, signal)
    if (attached(live) && live.state !== 'paused') return live
    const { id, state } = live
    throw new Failure('wrong_state', `sandbox ${id} is ${state}, and ${this.#what} need one that runs`, { state })
  }

  /** Looks until there is something, the time is over, or the signal aborts. */
  async #until<T>(look: () => T, ms: number, signal: AbortSignal): Promise<T> {
    const already = look()
    if (already) return already
    const over = new AbortController()
    const stop = () => over.abort()
    const timer = setTimeout(stop, ms)
    signal.addEventListener('abort', stop, { once: true })
    if (signal.aborted) stop()
    try {
      for (;;) {
        const seen = this.#changes.version
        const found = look()
        if (found || over.signal.aborted) return found
        await this.#changes.after(seen, over.signal)
      }
    } finally {
      clearTimeout(timer)
      signal.removeEventListener('abort', stop)
    }
  }
}
