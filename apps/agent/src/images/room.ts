// room.ts: the disk that images leave to everything else. Whatever tenants have brought here, sandboxes that run must
// still be able to write: what comes in stops before the disk is full, not when it is.
import { statfs } from 'node:fs/promises'
import { Failure, GiB, MiB } from '@berth/contracts'

interface Disk {
  readonly bytes: number
  readonly free: number
}

/** How much is written between two looks at the disk. */
const STEP = 16 * MiB

/** Bytes of a disk that images do not take: a twentieth, 10 GiB at most. */
export const reserveOf = (bytes: number): number => Math.min(bytes / 20, 10 * GiB)

export class Room {
  #written = Number.POSITIVE_INFINITY

  constructor(private readonly look: () => Promise<Disk>) {}

  static of(directory: string): Room {
    return new Room(async () => {
      const { bsize, blocks, bavail } = await statfs(directory)
      return { bytes: blocks * bsize, free: bavail * bsize }
    })
  }

  /** Bytes that may be written. @throws Failure no_capacity when there are none */
  async left(): Promise<number> {
    const { bytes, free } = await this.look()
    const left = free - reserveOf(bytes)
    if (left <= 0) throw noRoom()
    return left
  }

  /** To be told of bytes before they are written. @throws Failure no_capacity */
  async want(bytes: number): Promise<void> {
    this.#written += bytes
    if (this.#written < STEP) return
    await this.left()
    this.#written = 0
  }
}

export const noRoom = (): Failure => new Failure('no_capacity', 'the disk of the node is full')
