// room.ts: the disk that images leave to everything else. Whatever tenants have brought here, sandboxes that run must
// still be able to write: what comes in stops before the disk is full, not when it is.
import { statfs } from 'node:fs/promises'
import { Failure, GiB, MiB } from '@berth/contracts'

/** Bytes and inodes; a file system that has as many inodes as it wants has infinitely many. */
interface Disk {
  readonly bytes: number
  readonly free: number
  readonly inodes: number
  readonly freeInodes: number
}

/** How much is written between two looks at the disk. */
const STEP = 16 * MiB

/** Bytes of a disk that images do not take: a twentieth, 10 GiB at most; of its inodes a twentieth. */
export const reserveOf = (bytes: number): number => Math.min(bytes / 20, 10 * GiB)

/** How many bytes have to go, one step of writing included; and whether inodes are short too. */
export interface MissingRoom {
  readonly bytes: number
  readonly inodes: boolean
}

export class Room {
  #written = Number.POSITIVE_INFINITY

  constructor(private readonly look: () => Promise<Disk>) {}

  static of(directory: string): Room {
    return new Room(async () => {
      const { bsize, blocks, bavail, files, ffree } = await statfs(directory)
      const inodes = files === 0 ? Number.POSITIVE_INFINITY : files
      return { bytes: blocks * bsize, free: bavail * bsize, inodes, freeInodes: files === 0 ? inodes : ffree }
    })
  }

  /** What may be written. @throws Failure no_capacity when that is nothing */
  async left(): Promise<{ readonly bytes: number; readonly inodes: number }> {
    const { bytes, free, inodes, freeInodes } = await this.look()
    const left = {
      bytes: Math.floor(free - reserveOf(bytes)),
      inodes: Number.isFinite(inodes) ? Math.floor(freeInodes - inodes / 20) : Number.MAX_SAFE_INTEGER,
    }
    if (left.bytes <= 0 || left.inodes <= 0) throw noRoom()
    return left
  }

  /** What has to go before anything may be written again; undefined where there is room. */
  async missing(): Promise<MissingRoom | undefined> {
    const { bytes, free, inodes, freeInodes } = await this.look()
    const left = free - reserveOf(bytes)
    const isOutOfInodes = Number.isFinite(inodes) && freeInodes - inodes / 20 < 1
    if (left >= 1 && !isOutOfInodes) return undefined
    return { bytes: left < 1 ? STEP - Math.floor(left) : 0, inodes: isOutOfInodes }
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
