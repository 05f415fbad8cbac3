// copies.ts: copies of writable layers that are no sandbox's: of which images are made, and with which sandboxes begin.
//
// Nobody writes to a copy, so it can come to hold what it refers to when it is made, and no more: all of that once its
// sandbox has replaced every block of its files, which it may without coming to its own limit. No reservation of a sandbox
// counts that. So each copy counts here, as what it refers to, against what the pool has besides what its layers may
// come to. Of that a share is never offered to sandboxes, so there is always room for some copies.
import { Failure } from '@berth/contracts'
import type { Pool } from '../storage/pool.js'

export type CopyPool = Pick<Pool, 'clone' | 'remove' | 'path' | 'list' | 'fill' | 'resize'>

/** Cache mounts of builds, which have a share of the pool of their own. */
const CACHE = 'cache_'

type Fill = Awaited<ReturnType<Pool['fill']>>

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
      const [layers, fill] = await this.#look()
      const bytes = fill.get(id)?.usedBytes ?? limitBytes
      const left = this.#left(layers, fill)
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
    return this.#bytes.size === 0 ? 0 : -this.#left(...(await this.#look()))
  }

  bytes(id: string): number {
    return this.#bytes.get(id) ?? 0
  }

  /** The file system may have more than the pool. */
  #look(): Promise<readonly [readonly string[], Fill]> {
    return Promise.all([this.pool.list(), this.pool.fill()])
  }

  #left(layers: readonly string[], fill: Fill): number {
    const reserved = layers.filter((name) => !this.#bytes.has(name) && !name.startsWith(CACHE))
    const bytes = [...reserved.map((name) => fill.get(name)?.limitBytes ?? 0), ...this.#bytes.values()]
    return bytes.reduce((left, one) => left - one, this.mostBytes)
  }
}
