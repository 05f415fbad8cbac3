// layers.ts: unpacked layers by diffID. A layer is a directory `layers/sha256/<hex>/` with the files in `fs` and its size
// in `layer.json`; it is made under another name, synced, and renamed when it is whole.
import { mkdir, mkdtemp, readdir, rename } from 'node:fs/promises'
import { join } from 'node:path'
import { Failure, GiB } from '@berth/contracts'
import { readJson, removeTree, syncDirectory, writeAtomic } from '@berth/host'
import type { LayerCompression } from '@berth/oci'
import { z } from 'zod'
import { type Content, hexOf, never, withRoom } from './content.js'
import { Exclusive } from './exclusive.js'
import { noRoom } from './room.js'
import { diffIdOf, type LayerLimits, LayerTooLarge, unpackLayer } from './unpack.js'

/** Unpacked layers are bounded whoever made them. */
export const layerLimits = { maxBytes: 64 * GiB, maxEntries: 2_000_000 } as const

const LayerRecord = z.object({ bytes: z.number().int() })
const MAKING = '.making-'

export interface Wanted {
  readonly digest: string
  readonly diffId: string
  readonly compression: LayerCompression
}

export class Layers {
  readonly #exclusive = new Exclusive()
  private readonly root: string

  /** Of a store that is open already, in this process or another. */
  constructor(
    private readonly content: Content,
    private readonly program: string,
  ) {
    this.root = join(content.directory, 'layers/sha256')
  }

  /**
   * Opens the layers beside `content`, and removes those that a crash left half-made.
   * @param program berth-layer
   */
  static async open(content: Content, program: string): Promise<Layers> {
    const layers = new Layers(content, program)
    await mkdir(layers.root, { recursive: true, mode: 0o700 })
    for (const name of await readdir(layers.root))
      if (name.startsWith(MAKING)) await removeTree(join(layers.root, name))
    return layers
  }

  /** The files of a layer. */
  path(diffId: string): string {
    return join(this.root, hexOf(diffId), 'fs')
  }

  /** Bytes of its files; undefined where it is not here. */
  async bytes(diffId: string): Promise<number | undefined> {
    const record = await readJson(join(this.root, hexOf(diffId), 'layer.json'), (value) => LayerRecord.parse(value))
    return record?.bytes
  }

  /**
   * Unpacks a layer unless it is here; who asks at once waits for the same. That the blob is this layer is checked even
   * if it is here: by naming what others have nobody comes to have it.
   * @returns bytes of its files, and whether it was unpacked now
   * @throws Failure image_invalid when the blob holds another tar, and as `unpackLayer`
   */
  ensure(
    wanted: Wanted,
    limits: LayerLimits,
    signal: AbortSignal,
  ): Promise<{ readonly bytes: number; readonly added: boolean }> {
    return this.#exclusive.run(wanted.diffId, signal, async () => {
      const { digest, diffId, compression } = wanted
      const [bytes, blob] = [await this.bytes(diffId), await this.content.find(digest)]
      if (!blob) throw new Failure('image_invalid', `the blob ${digest} is missing`)
      const source = { blob: blob.path, compression }
      if (bytes === undefined) return { bytes: await this.#make(wanted, source, limits, signal), added: true }
      const proven = blob.isPublic || (await this.content.known(digest)).diffId === diffId
      if (!proven) {
        confirm(diffId, await diffIdOf(source, limits, signal))
        await this.content.learn(digest, { diffId })
      }
      return { bytes, added: false }
    })
  }

  /** Removes layers that `isKept` does not hold. @returns their diffIDs */
  async collect(isKept: (diffId: string) => boolean): Promise<readonly string[]> {
    const removed: string[] = []
    for (const diffId of await this.list()) {
      if (isKept(diffId)) continue
      await this.#exclusive.run(diffId, never, async () => {
        // Whoever wanted it meanwhile said so before they asked for it.
        if (isKept(diffId)) return
        await this.#remove(diffId)
        removed.push(diffId)
      })
    }
    return removed
  }

  async #remove(diffId: string): Promise<void> {
    const aside = await mkdtemp(join(this.root, MAKING))
    // Out of its name first: half of a layer must not have it.
    await rename(join(this.root, hexOf(diffId)), join(aside, 'gone'))
    await removeTree(aside)
  }

  /** DiffIDs of the layers that are here. */
  async list(): Promise<readonly string[]> {
    const names = await readdir(this.root)
    return names.filter((name) => /^[0-9a-f]{64}$/.test(name)).map((hex) => `sha256:${hex}`)
  }

  /** Lends the layer unpacked once more, under a name that the next start removes, to be compared with. */
  async withCopy<T>(
    { digest, compression }: Wanted,
    signal: AbortSignal,
    work: (copy: { readonly path: string; readonly diffId: string }) => Promise<T>,
  ): Promise<T> {
    const blob = await this.content.find(digest)
    if (!blob) throw new Failure('image_invalid', `the blob ${digest} is missing`)
    const aside = await mkdtemp(join(this.root, MAKING))
    try {
      const path = join(aside, 'fs')
      await mkdir(path, { mode: 0o755 })
      const source = { blob: blob.path, compression }
      const { diffId } = await unpackLayer(this.program, source, path, layerLimits, signal, false)
      return await work({ path, diffId })
    } finally {
      await removeTree(aside)
    }
  }

  async #make(
    { diffId, digest }: Wanted,
    source: { blob: string; compression: LayerCompression },
    limits: LayerLimits,
    signal: AbortSignal,
  ) {
    const room = await this.content.room.left()
    const bounded = {
      maxBytes: Math.min(limits.maxBytes, room.bytes),
      maxEntries: Math.min(limits.maxEntries, room.inodes),
    }
    const making = await withRoom(() => mkdtemp(join(this.root, MAKING)))
    try {
      await withRoom(() => mkdir(join(making, 'fs'), { mode: 0o755 }))
      const unpacked = await unpackLayer(this.program, source, join(making, 'fs'), bounded, signal)
      confirm(diffId, unpacked.diffId)
      const record = JSON.stringify({ bytes: unpacked.bytes })
      await withRoom(() => writeAtomic(join(making, 'layer.json'), record, { durable: true }))
      await rename(making, join(this.root, hexOf(diffId)))
      await syncDirectory(this.root)
      if (!(await this.content.find(digest))?.isPublic) await this.content.learn(digest, { diffId })
      return unpacked.bytes
    } catch (error) {
      await removeTree(making)
      throw error instanceof LayerTooLarge && room.bytes < limits.maxBytes ? noRoom() : error
    }
  }
}

function confirm(promised: string, found: string): void {
  if (found !== promised)
    throw new Failure('image_invalid', `a layer holds ${found}, and the image promises ${promised}`)
}
