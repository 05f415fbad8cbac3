// copies.ts: copies of writable layers that are no sandbox's: of which images are made, and with which sandboxes begin.
//
// Nobody writes to a copy, so it can come to hold what it refers to when it is made, and no more: all of that once its
// sandbox has replaced every block of its files, which it may without coming to its own limit. No reservation of a sandbox
// counts that. So each copy counts here, as what it refers to, against what the pool has besides what its layers may
// come to. Of that a share is never offered to sandboxes, so there is always room for some copies.
import { Failure } from '@berth/contracts'
import type { Pool } from '../storage/pool.js'

export type CopyPool = Pick<Pool, 'clone' | 'remove' | 'path' | 'list' | 'fill' | 'resize'>

/** Cache mounts of builds have a share of the pool of their own; what has another name is nobody's yet, or nobody's any more. */
const counted = /^(?!cache_)[a-z0-9_]+$/

export class Copies {
  readonly #bytes = new Map<string, number>()

  /** @param mostBytes what writable layers and copies may come to together: what the node offers, and the share of copies */
  constructor(
    private readonly pool: CopyPool,
    private readonly mostBytes: number,
  ) {}

  /** Counts those of a former agent; what there is no layer of is nothing. */
  async adopt(ids: readonly string[]): Promise<void> {
    const fill = await this.pool.fill()
    for (const id of ids) this.#bytes.set(id, fill.get(id)?.usedBytes ?? 0)
  }

  /**
   * Makes a copy.
   * @param still has the copying done while nothing changes; what it throws is thrown
   * @returns its path
   * @throws Failure no_capacity; Fault
   */
  async take(
    from: string,
    id: string,
    limitBytes: number,
    still: (work: () => Promise<unknown>) => Promise<unknown>,
  ): Promise<string> {
    // Counts as nothing until it is known what it refers to, which it is once it is there.
    this.#bytes.set(id, 0)
    try {
      await still(() => this.pool.clone(from, id, limitBytes))
      const fill = await this.pool.fill()
      const bytes = fill.get(id)?.usedBytes ?? limitBytes
      const left = this.#left(fill)
      if (bytes > left)
        throw new Failure(
          'no_capacity',
          `a copy of the files may come to hold ${bytes} bytes, and the node has ${Math.max(0, left)} for copies just now`,
          { asked: { diskBytes: bytes } },
        )
      this.#bytes.set(id, bytes)
      return this.pool.path(id)
    } catch (error) {
      await this.drop(id)
      throw error
    }
  }

  async drop(id: string): Promise<void> {
    await this.pool.remove(id)
    this.#bytes.delete(id)
  }

  /** How many bytes of copies have to go, as sandboxes have come since that may need them; none: 0 or less. */
  async excess(): Promise<number> {
    return this.#bytes.size === 0 ? 0 : -this.#left(await this.pool.fill())
  }

  bytes(id: string): number {
    return this.#bytes.get(id) ?? 0
  }

  #left(fill: Awaited<ReturnType<Pool['fill']>>): number {
    let left = this.mostBytes
    for (const [name, { limitBytes }] of fill) if (!this.#bytes.has(name) && counted.test(name)) left -= limitBytes
    for (const bytes of this.#bytes.values()) left -= bytes
    return left
  }
}
