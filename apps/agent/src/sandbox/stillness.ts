// stillness.ts: what runs in a sandbox stands still while its files are worked on, and goes on right after. One piece of work
// at a time: what one has thawed is not frozen for another.
import { Failure } from '@berth/contracts'
import type { Cgroups } from '@berth/host'
import type { Logger } from '@berth/telemetry'

export class Stillness {
  #last: Promise<unknown> = Promise.resolve()

  constructor(
    private readonly cgroups: Pick<Cgroups, 'freeze' | 'thaw'>,
    private readonly log: Logger,
  ) {}

  /**
   * @param group of what is to stand still, asked for when it is this one's turn; undefined: nothing is
   * @throws Failure `unavailable` where something in it cannot be frozen; what `work` throws
   */
  during<T>(group: () => string | undefined, work: () => Promise<T>): Promise<T> {
    const turn = this.#last.then(() => this.#hold(group(), work))
    this.#last = turn.catch(() => undefined)
    return turn
  }

  /** Resolves when nothing is held still, and nobody waits for that. */
  async over(): Promise<void> {
    for (let seen: unknown; seen !== this.#last; ) {
      seen = this.#last
      await seen
    }
  }

  async #hold<T>(group: string | undefined, work: () => Promise<T>): Promise<T> {
    if (group === undefined) return work()
    try {
      this.log.debug({}, 'sandbox.still')
      await this.cgroups.freeze(group).catch((err: unknown) => {
        this.log.warn({ err }, 'sandbox.not_still')
        throw new Failure('unavailable', 'the sandbox does not stand still: try again, or without a pause')
      })
      return await work()
    } finally {
      this.cgroups.thaw(group)
    }
  }
}
