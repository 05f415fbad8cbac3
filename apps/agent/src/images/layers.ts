// layers.ts: unpacked layers by diffID. A layer is a directory `layers/sha256/<hex>/`; it is made under another name, synced,
// and renamed when it is whole:
//
//     fs            its files
//     layer.json    their size
//     packed.gz     of a layer that was made here: its blob, which `blobs/` has as another link once an image has it
//     packed.json   what that is
//
// Layers that are made here come one a step of a build, and most are of no use once it is done. They are not synced, and
// their records say in which boot of the machine that was: a crash of the machine that may have torn them is the end of that
// boot, so the next start removes them; a crash of the agent tears nothing. `settle` syncs all of an image at once.
import { link, mkdir, mkdtemp, readdir, readFile, rename, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { errnoOf, Failure, GiB, type ImageLayer, ignore } from '@berth/contracts'
import { CommandFailed, expectSuccess, readJson, removeTree, run, syncDirectory, writeAtomic } from '@berth/host'
import { type LayerCompression, layerMediaType } from '@berth/oci'
import { z } from 'zod'
import { type Content, hexOf, never, withRoom } from './content.js'
import { differenceOf } from './difference.js'
import { Exclusive } from './exclusive.js'
import { noRoom } from './room.js'
import { diffIdOf, type LayerLimits, LayerTooLarge, unpackLayer } from './unpack.js'

/** Unpacked layers are bounded whoever made them. */
export const layerLimits = { maxBytes: 64 * GiB, maxBytesWithHoles: 64 * GiB, maxEntries: 2_000_000 } as const

/** `unsynced`: what it is of is not on disk for sure, since it was written in this boot of the machine. */
const AnyRecord = z.looseObject({ unsynced: z.string().optional() })
const LayerRecord = z.object({ bytes: z.number().int() })
const PackedRecord = z.object({ digest: z.string(), sizeBytes: z.number().int() })
const MAKING = '.making-'
const SETTLING = '.settling'
const records = { layer: 'layer.json', packed: 'packed.json' } as const
export const PACKED = 'packed.gz'
/** Of a disk with much to write. */
const SYNC_MS = 600_000

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
   * Opens the layers beside `content`, and removes those that a crash left half-made, or may have torn.
   * @param program berth-layer
   */
  static async open(content: Content, program: string): Promise<Layers> {
    const layers = new Layers(content, program)
    await mkdir(layers.root, { recursive: true, mode: 0o700 })
    for (const name of await readdir(layers.root))
      if (name.startsWith(MAKING)) await removeTree(join(layers.root, name))
    await layers.#removeTorn()
    return layers
  }

  async #removeTorn(): Promise<void> {
    const boot = await bootId()
    const isTorn = async (diffId: string, name: keyof typeof records) => {
      const record = await this.#record(diffId, name).catch(() => ({ unsynced: 'it cannot be read' }))
      return record?.unsynced !== undefined && record.unsynced !== boot
    }
    for (const diffId of await this.list()) {
      if (await isTorn(diffId, 'layer')) await this.#remove(diffId)
      else if (await isTorn(diffId, 'packed'))
        for (const name of [records.packed, PACKED]) await rm(this.#at(diffId, name), { force: true })
    }
  }

  /** The files of a layer. */
  path(diffId: string): string {
    return join(this.root, hexOf(diffId), 'fs')
  }

  #at(diffId: string, name: string): string {
    return join(this.root, hexOf(diffId), name)
  }

  #record(diffId: string, name: keyof typeof records): Promise<z.infer<typeof AnyRecord> | undefined> {
    return readJson(this.#at(diffId, records[name]), (value) => AnyRecord.parse(value))
  }

  /** Bytes of its files; undefined where it is not here. */
  async bytes(diffId: string): Promise<number | undefined> {
    const record = await readJson(this.#at(diffId, records.layer), (value) => LayerRecord.parse(value))
    return record?.bytes
  }

  /** A layer that was made here, as an image has it; undefined where there is none. */
  async built(diffId: string): Promise<ImageLayer | undefined> {
    const [unpackedBytes, packed] = [
      await this.bytes(diffId),
      await readJson(this.#at(diffId, records.packed), (value) => PackedRecord.parse(value)),
    ]
    if (unpackedBytes === undefined || !packed) return undefined
    const { digest, sizeBytes } = packed
    return { diffId, digest, mediaType: layerMediaType('gzip'), sizeBytes, unpackedBytes }
  }

  /**
   * Takes in a layer that is made here, unless it is here already. It is not synced: see `settle`.
   * @param make fills `fs` and `packed.gz` of a directory
   * @param known told of its name before it has it
   */
  async add(
    limits: LayerLimits,
    make: (directory: string, limits: LayerLimits) => Promise<Omit<ImageLayer, 'mediaType'>>,
    known: (diffId: string) => void,
  ): Promise<ImageLayer> {
    return this.#making(limits, async (making, bounded) => {
      const { diffId, unpackedBytes, digest, sizeBytes } = await make(making, bounded)
      known(diffId)
      const boot = { unsynced: await bootId() }
      const record = (name: keyof typeof records, value: object) =>
        withRoom(() => writeFile(join(making, records[name]), JSON.stringify({ ...value, ...boot }), { mode: 0o600 }))
      await record('packed', { digest, sizeBytes })
      return this.#exclusive.run(diffId, never, async () => {
        const built = await this.built(diffId)
        if (built) return built
        if ((await this.bytes(diffId)) === undefined) {
          await record('layer', { bytes: unpackedBytes })
          await this.#place(making, diffId)
        } else for (const name of [PACKED, records.packed]) await rename(join(making, name), this.#at(diffId, name))
        return { diffId, digest, mediaType: layerMediaType('gzip'), sizeBytes, unpackedBytes }
      })
    })
  }

  /**
   * Has layers that were made here on disk, and their blobs under their names. Two syncs of the file system however many
   * they are; none where they are settled.
   */
  settle(diffIds: readonly string[]): Promise<void> {
    return this.#exclusive.run('settle', never, async () => {
      const written: string[] = []
      for (const diffId of new Set(diffIds))
        for (const name of ['layer', 'packed'] as const) {
          const { unsynced, ...synced } = (await this.#record(diffId, name)) ?? {}
          if (unsynced === undefined) continue
          const path = this.#at(diffId, records[name])
          await withRoom(() => writeFile(`${path}${SETTLING}`, JSON.stringify(synced), { mode: 0o600 }))
          written.push(path)
        }
      if (written.length > 0) await this.#sync()
      const linked = await Promise.all([...new Set(diffIds)].map((diffId) => this.#linkBlob(diffId)))
      for (const path of written) await rename(`${path}${SETTLING}`, path)
      if (written.length > 0 || linked.includes(true)) await this.#sync()
    })
  }

  /** True: it was not there. */
  async #linkBlob(diffId: string): Promise<boolean> {
    const built = await this.built(diffId)
    if (!built || (await this.content.find(built.digest))) return false
    await link(this.#at(diffId, PACKED), this.content.path(built.digest)).catch((error) => ignore(error, 'EEXIST'))
    await this.content.learn(built.digest, { diffId })
    return true
  }

  /** Everything of the file system, since nobody knows how many files a layer has. */
  async #sync(): Promise<void> {
    await withRoom(async () => expectSuccess(await run(['sync', '--file-system', this.root], { timeoutMs: SYNC_MS })))
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
      // Of a build: whoever wants it now may name it for good.
      if (bytes !== undefined) await this.settle([diffId])
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

  #make(
    { diffId, digest }: Wanted,
    source: { blob: string; compression: LayerCompression },
    limits: LayerLimits,
    signal: AbortSignal,
  ) {
    return this.#making(limits, async (making, bounded) => {
      const unpacked = await unpackLayer(this.program, source, join(making, 'fs'), bounded, signal)
      confirm(diffId, unpacked.diffId)
      const record = JSON.stringify({ bytes: unpacked.bytes })
      await withRoom(() => writeAtomic(join(making, records.layer), record, { durable: true }))
      await this.#place(making, diffId)
      await syncDirectory(join(this.root, hexOf(diffId)))
      await syncDirectory(this.root)
      if (!(await this.content.find(digest))?.isPublic) await this.content.learn(digest, { diffId })
      return unpacked.bytes
    })
  }

  /**
   * Gives a layer its name. One that is there lost its record on a damaged disk: where its files are right it gets the new
   * one and stays, since sandboxes may be on it; else the new one is there instead.
   */
  async #place(making: string, diffId: string): Promise<void> {
    const place = join(this.root, hexOf(diffId))
    const isThere = await rename(making, place).then(
      () => false,
      (error: unknown) => {
        ignore(error, 'ENOTEMPTY', 'EEXIST')
        return true
      },
    )
    if (!isThere) return
    if (await isSame(join(place, 'fs'), join(making, 'fs'))) {
      // The record that makes it whole last.
      for (const name of [PACKED, records.packed, records.layer])
        await rename(join(making, name), join(place, name)).catch((error: unknown) => ignore(error, 'ENOENT'))
    } else {
      await this.#remove(diffId)
      await rename(making, place)
    }
  }

  /** Lends a directory with an empty `fs`, under a name that the next start removes, and bounds by the disk's room. */
  async #making<T>(limits: LayerLimits, work: (making: string, bounded: LayerLimits) => Promise<T>): Promise<T> {
    const room = await this.content.room.left()
    const bounded = {
      ...limits,
      maxBytes: Math.min(limits.maxBytes, room.bytes),
      maxEntries: Math.min(limits.maxEntries, room.inodes),
    }
    const making = await withRoom(() => mkdtemp(join(this.root, MAKING)))
    try {
      await withRoom(() => mkdir(join(making, 'fs'), { mode: 0o755 }))
      return await work(making, bounded)
    } catch (error) {
      throw error instanceof LayerTooLarge && room.bytes < limits.maxBytes ? noRoom() : error
    } finally {
      // Under its own name by now, unless it failed.
      await removeTree(making)
    }
  }
}

/** Another after each start of the machine (random(4)). */
const bootId = async () => (await readFile('/proc/sys/kernel/random/boot_id', 'utf8')).trim()

/** What cannot be read is not the same. */
const isSame = (a: string, b: string): Promise<boolean> =>
  differenceOf(a, b).then(
    (different) => different === undefined,
    (error: unknown) => {
      if (errnoOf(error) === undefined && !(error instanceof CommandFailed)) throw error
      return false
    },
  )

function confirm(promised: string, found: string): void {
  if (found !== promised)
    throw new Failure('image_invalid', `a layer holds ${found}, and the image promises ${promised}`)
}
