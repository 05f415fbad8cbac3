import type { BerthEvent } from '@berth/contracts'

/** Told each event; `resumed`: some may have been missed, look again. */
export type EventListener = (event: BerthEvent | 'resumed') => void

/** The tenant's events, from one stream, for all who listen. */
export class EventFeed {
  readonly #listeners = new Set<EventListener>()
  #last: string | undefined

  /** Listens until the returned function is called. */
  listen(listener: EventListener): () => void {
    this.#listeners.add(listener)
    return () => void this.#listeners.delete(listener)
  }

  /**
   * Follows a stream to its end, which comes with an error.
   * @param open opens it after the event with this id, or at the next event
   */
  async follow(open: (after: string | undefined) => AsyncIterable<BerthEvent>): Promise<never> {
    const stream = open(this.#last)
    // Without a place to go on from, whatever happened before the stream began is in no event.
    if (this.#last === undefined) this.#tell('resumed')
    for await (const event of stream) {
      this.#last = event.id
      this.#tell(event)
    }
    throw new Error('the stream of events ended')
  }

  #tell(event: BerthEvent | 'resumed'): void {
    for (const listener of this.#listeners) listener(event)
  }
}
