// fsck.ts: whether the store is what it says: every blob has its digest, every layer is what its blob unpacks to, every
// image has all that it names, and nothing is there that nobody names.
import { createHash } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { lstat, readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { Failure, Fault } from '@berth/contracts'
import { layersOf } from '@berth/oci'
import { digestOf } from './content.js'
import { differenceOf } from './difference.js'
import type { Images } from './images.js'
import type { Wanted } from './layers.js'

export interface Findings {
  readonly images: number
  readonly layers: number
  readonly blobs: number
  /** What is wrong, a line each. */
  readonly problems: readonly string[]
  /** What is there for a while only, and right: parts of blobs, blobs of pulls that were broken off. */
  readonly notes: readonly string[]
}

/**
 * Checks a store. Nothing is changed but for copies of layers, made to compare with and removed.
 * @param busy an agent works on it: what is half-made may be its
 */
export async function fsck(images: Images, busy: boolean, signal: AbortSignal): Promise<Findings> {
  const checking = new Fsck(images, busy, signal)
  await checking.run()
  return checking.findings()
}

/** As text: problems first, a summary last. */
export function describeFindings({ images, layers, blobs, problems, notes }: Findings): string {
  const lines = [...problems.map((problem) => `wrong: ${problem}`), ...notes.map((note) => `note: ${note}`)]
  const verdict = problems.length === 0 ? 'nothing is wrong' : `${problems.length} wrong`
  return [...lines, `${images} images, ${layers} layers, ${blobs} blobs: ${verdict}`, ''].join('\n')
}

/** A layer may be of no image while its image is being made, and until it is collected. */
const UNNAMED_MS = 900_000
/** Beside an agent, which may start once and again. */
const TRIES = 3

class Fsck {
  readonly #problems: string[] = []
  readonly #notes: string[] = []
  readonly #bad = new Set<string>()
  #counts = { images: 0, layers: 0, blobs: 0 }

  constructor(
    private readonly images: Images,
    private readonly busy: boolean,
    private readonly signal: AbortSignal,
  ) {}

  findings = (): Findings => ({ ...this.#counts, problems: this.#problems, notes: this.#notes })

  async run(): Promise<void> {
    await this.#blobs()
    const layers = await this.#images()
    await this.#layers(layers)
    await this.#halfMade()
  }

  async #blobs(): Promise<void> {
    const named = this.images.names()
    for (const digest of await this.images.content.list()) {
      this.#counts.blobs++
      await this.#check(`blob ${digest}`, digest, async () => {
        const found = await digestOfFile(this.images.content.path(digest))
        if (found === digest && !named.has(digest))
          this.#notes.push(`blob ${digest}: of no image, kept for an hour for the next pull`)
        if (found === digest) return undefined
        this.#bad.add(digest)
        return `its bytes are ${found}`
      })
    }
  }

  /**
   * Notes what `look` finds, or fails with. Beside an agent images go meanwhile, with all that they are made of, and one
   * that starts takes the copies that are compared with: what is wrong then is looked at again while an image has it.
   */
  async #check(name: string, digest: string, look: () => Promise<string | undefined>): Promise<void> {
    for (let tries = this.busy ? TRIES : 1; ; tries--) {
      this.signal.throwIfAborted()
      const problem = await look().catch((error: unknown) => {
        if (this.busy || error instanceof Failure || error instanceof Fault) return Object(error)
        throw error
      })
      if (problem === undefined) return
      const isGone = this.busy && typeof problem !== 'string' && !(await this.images.now()).names().has(digest)
      if (isGone) return void this.#notes.push(`${name}: went meanwhile`)
      if (tries > 1) continue
      const text = typeof problem === 'string' ? problem : problem.message
      return void this.#problems.push(`${name}: ${text}`)
    }
  }

  /** Layers of all images by diffID, each with a blob that it comes from. */
  async #images(): Promise<ReadonlyMap<string, Wanted>> {
    const layers = new Map<string, Wanted>()
    const check = async (name: string, manifestDigest: string) => {
      this.#counts.images++
      await this.#check(`image ${name}`, manifestDigest, async () => {
        for (const layer of await this.#image(manifestDigest)) layers.set(layer.diffId, layer)
        return undefined
      })
    }
    for (const { reference, manifestDigest } of this.images.base()) await check(reference, manifestDigest)
    for (const [digest, { manifests }] of this.images.held())
      for (const { manifest } of manifests) await check(digest, manifest.digest)
    return layers
  }

  async #image(manifestDigest: string): Promise<readonly Wanted[]> {
    const { content } = this.images
    const found = await content.find(manifestDigest)
    if (!found) throw new Fault(`find ${manifestDigest}`, { cause: 'its manifest is missing' })
    const { manifest, config } = await this.images.documents({ digest: manifestDigest, size: found.bytes })
    const layers = layersOf(manifest, config)
    for (const { descriptor, diffId } of layers) {
      const blob = await content.find(descriptor.digest)
      if (blob?.bytes !== descriptor.size)
        throw new Fault(`find ${descriptor.digest}`, { cause: 'the blob is missing' })
      if ((await this.images.layers.bytes(diffId)) === undefined)
        throw new Fault(`find ${diffId}`, { cause: 'the layer is not unpacked' })
    }
    return layers.map(({ descriptor, diffId, compression }) => ({ digest: descriptor.digest, diffId, compression }))
  }

  async #layers(named: ReadonlyMap<string, Wanted>): Promise<void> {
    const { layers } = this.images
    for (const diffId of await layers.list()) {
      this.#counts.layers++
      await this.#check(`layer ${diffId}`, diffId, () => this.#layer(diffId, named.get(diffId)))
    }
  }

  async #layer(diffId: string, wanted: Wanted | undefined): Promise<string | undefined> {
    const { layers } = this.images
    if ((await layers.bytes(diffId)) === undefined) return 'its record is missing; a pull makes it anew'
    if (wanted) {
      if (this.#bad.has(wanted.digest)) return undefined
      return layers.withCopy(wanted, this.signal, async (copy) =>
        copy.diffId === diffId ? differentFiles(layers.path(diffId), copy.path) : `its blob holds ${copy.diffId}`,
      )
    }
    if (await layers.built(diffId)) {
      this.#notes.push(`layer ${diffId}: of no image, made here and kept by the cache of builds, or about to go`)
      return undefined
    }
    const { mtimeMs } = await lstat(join(layers.path(diffId), '..'))
    if (Date.now() - mtimeMs > UNNAMED_MS) return 'of no image'
    this.#notes.push(`layer ${diffId}: of no image yet, or no more`)
    return undefined
  }

  async #halfMade(): Promise<void> {
    const { content } = this.images
    const into = (list: string) => (this.busy ? this.#notes.push(list) : this.#problems.push(list))
    for (const name of await readdir(join(content.directory, 'layers/sha256')))
      if (!/^[0-9a-f]{64}$/.test(name)) into(`layers/sha256/${name}: half-made`)
    for (const name of await readdir(join(content.directory, 'incoming'))) into(`incoming/${name}: half-made`)
    for (const name of await readdir(join(content.directory, 'blobs/sha256')))
      if (!/^[0-9a-f]{64}(\.json)?$/.test(name)) into(`blobs/sha256/${name}: half-made`)
    for (const name of await readdir(join(content.directory, 'partial')))
      this.#notes.push(`partial/${name}: kept for a day for the next pull`)
  }
}

async function digestOfFile(path: string): Promise<string> {
  const hash = createHash('sha256')
  for await (const chunk of createReadStream(path, { highWaterMark: 1024 * 1024 })) hash.update(chunk)
  return digestOf(hash)
}

async function differentFiles(here: string, inBlob: string): Promise<string | undefined> {
  const different = await differenceOf(here, inBlob)
  return different === undefined ? undefined : `${different} as in its blob`
}
