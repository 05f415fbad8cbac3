// images.ts: which images this node has, and what holds their content. A base image has a name and comes from the layout
// of `./berth up` (`images.json`); all others are known by digest only (`images/<hex>.json`), since their names, and whose
// they are, are the API's. Records are written last: what they name is there.
import { mkdir, readdir, readFile, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { Failure, type HeldImage, type ImageLayer, type NodeImage } from '@berth/contracts'
import { readJson, writeAtomic } from '@berth/host'
import {
  checkPlatform,
  type Descriptor,
  familiar,
  heldImage,
  Index,
  type LayerCompression,
  layersOf,
  MAX_CONFIG_BYTES,
  MAX_MANIFEST_BYTES,
  mediaTypes,
  parseDocument,
  parseImageConfig,
  parseReference,
  REF_NAME,
  writtenManifest,
} from '@berth/oci'
import { z } from 'zod'
import { atOnce } from './at-once.js'
import { Budget, packedAtMost, tooMuch } from './budget.js'
import { Content, digestOfBytes, hexOf, never } from './content.js'
import { Layers, layerLimits } from './layers.js'
import { Kept, type ManifestDescriptor, type ResolvedImage, Stored, startOf } from './records.js'
import { LayerTooLarge } from './unpack.js'

const MAX_MANIFESTS = 8

/** Architecture names of the OCI image configuration (Go's), by Node's. */
const architectures: Readonly<Record<string, string>> = { x64: 'amd64', arm64: 'arm64' }
/** The only platform whose images run here. */
export const nodePlatform = `linux/${architectures[process.arch] ?? process.arch}`

/** Layers that are unpacked at once for one request. */
const LAYERS_AT_ONCE = 3
/** What was resolved is on its way into a sandbox, which then says itself that it is used. */
const STARTING_MS = 600_000
/** Whoever had an image pulled gets to say that it is theirs before anyone says that it is nobody's. */
const WANTED_MS = 600_000
/** Blobs of a pull that was broken off are kept for the next one. */
const UNNAMED_BLOB_MS = 3_600_000

export interface ComposeOptions {
  readonly platform: string
  /** Most bytes that may be unpacked newly; undefined: what a layer may be at all. */
  readonly maxBytes?: number
  readonly signal: AbortSignal
  /** Brings a blob into the store, and says so to whoever wants to know. */
  readonly obtain: (descriptor: Descriptor) => Promise<void>
  readonly unpacking?: (descriptor: Descriptor, state: 'unpacking' | 'done') => void
}

export class Images {
  readonly #held = new Map<string, Kept>()
  /** See `names`; made anew when images come or go. */
  #names: ReadonlySet<string> | undefined
  /** Digests and diffIDs that work in progress needs, by how many. */
  readonly #needed = new Map<string, number>()
  /** Layers by when they were last resolved or made, in Unix milliseconds. */
  readonly #resolved = new Map<string, number>()
  /** Each names digests and diffIDs that `collect` leaves alone; of a layer that was made here both. */
  readonly keepers = new Set<() => Iterable<string>>()

  private constructor(
    private readonly directory: string,
    readonly content: Content,
    readonly layers: Layers,
    /** berth-layer. */
    readonly program: string,
    private stored: readonly Stored[],
  ) {}

  /**
   * Opens the store of an agent's data directory, and removes what a crash left half-made.
   * @param layout OCI layout of the base images
   * @param program berth-layer
   */
  static async open(directory: string, layout: string, program: string): Promise<Images> {
    const content = await Content.open(directory, layout)
    const layers = await Layers.open(content, program)
    await mkdir(join(directory, 'images'), { recursive: true, mode: 0o700 })
    for (const name of await readdir(join(directory, 'images')))
      if (name.endsWith('.tmp')) await rm(join(directory, 'images', name), { force: true })
    return Images.#read(directory, content, layers, program)
  }

  /** Looks at the store of an agent that works on it. Nothing may be asked of it that changes the store. */
  static async view(directory: string, layout: string, program: string): Promise<Images> {
    const content = new Content(directory, layout)
    return Images.#read(directory, content, new Layers(content, program), program)
  }

  /** As it is on disk now, to be looked at. */
  now(): Promise<Images> {
    return Images.#read(this.directory, this.content, this.layers, this.program)
  }

  static async #read(directory: string, content: Content, layers: Layers, program: string): Promise<Images> {
    const stored = await readJson(join(directory, 'images.json'), (value) => z.array(Stored).parse(value))
    const images = new Images(directory, content, layers, program, stored ?? [])
    for (const name of await readdir(join(directory, 'images'))) {
      const kept = name.endsWith('.json')
        ? await readJson(join(directory, 'images', name), (value) => Kept.parse(value))
        : undefined
      if (kept) images.#held.set(`sha256:${name.slice(0, -'.json'.length)}`, kept)
    }
    return images
  }

  list(): readonly NodeImage[] {
    const base = this.stored.map(({ reference, digest, sizeBytes }) => ({ reference, digest, sizeBytes }))
    const held = [...this.#held].map(
      ([
        digest,
        {
          heldSince,
          manifests: [newest],
        },
      ]) => ({
        digest,
        sizeBytes: newest?.image.layers.reduce((sum, layer) => sum + layer.unpackedBytes, 0) ?? 0,
        heldSince,
      }),
    )
    return [...base, ...held]
  }

  /**
   * Finds an image to start from.
   * @param text as the user wrote it: among the base images only
   * @param digest what the API resolved it to, for this user
   */
  resolve(text: string, digest?: string): ResolvedImage | undefined {
    const found = digest === undefined ? this.#named(text) : this.#withDigest(text, digest)
    if (!found) return undefined
    const layers = this.layerPaths(found.layers)
    return { reference: found.reference, digest: found.digest, layers, config: found.config }
  }

  /** Keeps a layer for ten minutes, until somebody says that it is used. */
  touch(diffId: string): void {
    this.#resolved.set(diffId, Date.now())
  }

  /**
   * Directories of layers that are on their way into a sandbox, topmost first. An image may have a layer several times,
   * commands that change nothing all make the same: overlayfs takes a directory once (ELOOP), and what is below another
   * of itself shows nowhere.
   * @param diffIds lowest first
   */
  layerPaths(diffIds: readonly string[]): readonly string[] {
    for (const diffId of diffIds) this.touch(diffId)
    return [...new Set([...diffIds].reverse())].map((diffId) => this.layers.path(diffId))
  }

  #named(text: string): Stored | undefined {
    const wanted = parseReference(text)
    const name = familiar({ ...wanted, digest: undefined })
    return this.stored.find(({ reference, digest, manifestDigest }) =>
      wanted.digest === undefined ? reference === name : [digest, manifestDigest].includes(wanted.digest),
    )
  }

  #withDigest(text: string, wanted: string): Omit<Stored, 'manifestDigest' | 'sizeBytes'> | undefined {
    const base = this.stored.find(({ digest }) => digest === wanted)
    if (base) return base
    const image = this.#held.get(wanted)?.manifests[0]?.image
    if (!image) return undefined
    return {
      reference: text,
      digest: wanted,
      layers: image.layers.map(({ diffId }) => diffId),
      config: startOf(image.settings),
    }
  }

  /** An image with its manifest, base images too. @throws Failure image_not_found */
  async get(digest: string): Promise<{ readonly manifest: ManifestDescriptor; readonly image: HeldImage }> {
    const held = this.#held.get(digest)?.manifests[0]
    if (held) return held
    const base = this.stored.find((image) => image.digest === digest)
    const blob = base ? await this.content.find(base.manifestDigest) : undefined
    if (!base || !blob) throw new Failure('image_not_found', `the node has no image ${digest}`)
    const { manifest, config } = await this.documents({ digest: base.manifestDigest, size: blob.bytes })
    const layers = []
    for (const { descriptor, diffId } of layersOf(manifest, config))
      layers.push(layerOf(descriptor, diffId, (await this.layers.bytes(diffId)) ?? 0))
    const image = heldImage({ config: digest, manifest: base.manifestDigest }, config, layers)
    const mediaType = manifest.mediaType ?? 'application/vnd.oci.image.manifest.v1+json'
    return { manifest: { mediaType, digest: base.manifestDigest, size: blob.bytes }, image }
  }

  /** Whether an image is here, a base image too. */
  has(digest: string): boolean {
    return this.#held.has(digest) || this.stored.some((image) => image.digest === digest)
  }

  /** Images that are held by digest only. */
  held(): ReadonlyMap<string, Kept> {
    return this.#held
  }

  /** Base images: their manifests and what they are made of. */
  base(): readonly {
    readonly reference: string
    readonly manifestDigest: string
    readonly layers: readonly string[]
  }[] {
    return this.stored
  }

  /** Manifest and configuration of an image whose documents are here. @throws Failure image_invalid */
  async documents(manifest: Pick<Descriptor, 'digest' | 'size'>) {
    const document = parseDocument(await this.content.read(manifest, MAX_MANIFEST_BYTES))
    if (document.kind === 'index') throw new Failure('image_invalid', `${manifest.digest} is an index, no manifest`)
    const config = parseImageConfig(await this.content.read(document.manifest.config, MAX_CONFIG_BYTES))
    return { manifest: document.manifest, config }
  }

  /**
   * Makes an image of blobs: has each brought into the store, and its layers unpacked.
   * @param manifest in the store already
   * @throws Failure platform_unsupported, quota_exceeded, image_invalid, no_capacity; what `obtain` throws
   */
  async compose(manifest: ManifestDescriptor, options: ComposeOptions): Promise<HeldImage> {
    const { obtain, platform, signal } = options
    const parsed = parseDocument(await this.content.read(manifest, MAX_MANIFEST_BYTES))
    if (parsed.kind === 'index') throw new Failure('image_invalid', `${manifest.digest} is an index, no manifest`)
    const { config: wanted } = parsed.manifest
    if (wanted.size > MAX_CONFIG_BYTES) throw new Failure('image_invalid', 'the configuration is too large')
    const needs = new Set([manifest.digest, wanted.digest])
    this.#need(needs, 1)
    try {
      await obtain(wanted)
      const config = parseImageConfig(await this.content.read(wanted, MAX_CONFIG_BYTES))
      checkPlatform(config, platform)
      const layers = layersOf(parsed.manifest, config)
      for (const { descriptor, diffId } of layers)
        for (const one of [descriptor.digest, diffId]) this.#needOne(needs, one)
      const budget = new Budget(options.maxBytes)
      const sizes = await atOnce(LAYERS_AT_ONCE, layers, signal, (layer, stop) =>
        this.#bring(layer, budget, options, stop),
      )
      const described = layers.map(({ descriptor, diffId }, i) => layerOf(descriptor, diffId, sizes[i] ?? 0))
      const image = heldImage({ config: wanted.digest, manifest: manifest.digest }, config, described)
      await this.#keep(manifest, image)
      return image
    } finally {
      this.#need(needs, -1)
    }
  }

  async #bring(
    { descriptor, diffId, compression }: { descriptor: Descriptor; diffId: string; compression: LayerCompression },
    budget: Budget,
    { obtain, unpacking }: ComposeOptions,
    signal: AbortSignal,
  ): Promise<number> {
    // What could not be unpacked in the end need not come.
    if (descriptor.size > packedAtMost(budget.left) && (await this.layers.bytes(diffId)) === undefined) throw tooMuch()
    await obtain(descriptor)
    unpacking?.(descriptor, 'unpacking')
    const wanted = { digest: descriptor.digest, diffId, compression }
    const limits = { ...layerLimits, maxBytes: budget.left }
    const { bytes, added } = await this.layers.ensure(wanted, limits, signal).catch((error: unknown) => {
      throw error instanceof LayerTooLarge && limits.maxBytes < layerLimits.maxBytes ? tooMuch() : error
    })
    if (added) budget.take(bytes)
    unpacking?.(descriptor, 'done')
    return bytes
  }

  /** Says that something is needed until it is said no more, so that nothing of it is collected. */
  #need(digests: Iterable<string>, by: 1 | -1): void {
    for (const digest of digests) {
      const count = (this.#needed.get(digest) ?? 0) + by
      if (count > 0) this.#needed.set(digest, count)
      else this.#needed.delete(digest)
    }
  }

  #needOne(needs: Set<string>, digest: string): void {
    if (needs.has(digest)) return
    needs.add(digest)
    this.#need([digest], 1)
  }

  /** Has `digests` left alone while `work` runs. */
  async needing<T>(digests: Iterable<string>, work: () => Promise<T>): Promise<T> {
    const needs = new Set(digests)
    this.#need(needs, 1)
    try {
      return await work()
    } finally {
      this.#need(needs, -1)
    }
  }

  /**
   * Makes an image of layers that are here, kept as one that was pulled.
   * @param config its configuration, an OCI one that names the layers
   * @param layers lowest first: made here, or of an image that is here
   * @throws Failure image_invalid when it names others, or the blob of one is not here; no_capacity
   */
  async assemble(config: Buffer, layers: readonly ImageLayer[], signal: AbortSignal): Promise<HeldImage> {
    const descriptors = layers.map(({ mediaType, digest, sizeBytes }) => ({ mediaType, digest, size: sizeBytes }))
    const manifest = writtenManifest({ digest: digestOfBytes(config), size: config.length }, descriptors)
    const digest = digestOfBytes(manifest)
    const needs = [digest, digestOfBytes(config), ...layers.flatMap((layer) => [layer.digest, layer.diffId])]
    return this.needing(needs, async () => {
      await this.layers.settle(layers.map(({ diffId }) => diffId))
      await this.content.add(config)
      await this.content.add(manifest)
      const described = { mediaType: mediaTypes.manifest, digest, size: manifest.length }
      return this.compose(described, { platform: nodePlatform, signal, obtain: async () => undefined })
    })
  }

  async #keep(manifest: ManifestDescriptor, image: HeldImage): Promise<void> {
    const others =
      this.#held.get(image.digest)?.manifests.filter((one) => one.manifest.digest !== manifest.digest) ?? []
    const manifests = [{ manifest, image }, ...others].slice(0, MAX_MANIFESTS)
    const kept: Kept = { heldSince: new Date().toISOString(), manifests }
    await writeAtomic(this.#record(image.digest), JSON.stringify(kept), { durable: true })
    this.#held.set(image.digest, kept)
    this.#names = undefined
  }

  #record(digest: string): string {
    return join(this.directory, 'images', `${hexOf(digest)}.json`)
  }

  /** Forgets an image; what is left of it goes with `collect`. A base image stays. */
  async drop(digest: string): Promise<void> {
    this.#held.delete(digest)
    this.#names = undefined
    await rm(this.#record(digest), { force: true })
  }

  /** Forgets images that were not taken in again just now. */
  async dropAll(digests: readonly string[]): Promise<void> {
    for (const digest of digests) {
      const heldSince = this.#held.get(digest)?.heldSince
      const isNew = heldSince !== undefined && Date.now() - Date.parse(heldSince) < WANTED_MS
      if (!isNew && !this.#needed.has(digest)) await this.drop(digest)
    }
  }

  /**
   * Removes layers and blobs that no image names, and nothing needs.
   * @param inUse directories of layers that sandboxes are on, as `resolve` gives them
   */
  async collect(inUse: ReadonlySet<string>, now = new Date()): Promise<{ layers: number; blobs: number }> {
    const kept = new Set([...this.keepers].flatMap((names) => [...names()]))
    const isKept = (digest: string) => this.#needed.has(digest) || this.names().has(digest) || kept.has(digest)
    const layers = await this.layers.collect((diffId) => {
      const resolvedAt = this.#resolved.get(diffId)
      const isStarting = resolvedAt !== undefined && now.getTime() - resolvedAt < STARTING_MS
      return isStarting || inUse.has(this.layers.path(diffId)) || isKept(diffId)
    })
    const blobs = await this.content.collect(isKept, now, UNNAMED_BLOB_MS)
    await this.content.forgetParts(now)
    for (const [diffId, at] of this.#resolved) if (now.getTime() - at >= STARTING_MS) this.#resolved.delete(diffId)
    return { layers: layers.length, blobs: blobs.length }
  }

  /** Digests and diffIDs that images are made of: what `collect` leaves alone. */
  names(): ReadonlySet<string> {
    this.#names ??= this.#allNames()
    return this.#names
  }

  #allNames(): ReadonlySet<string> {
    const held = [...this.#held.values()].flatMap(({ manifests }) =>
      manifests.flatMap(({ image }) => [
        ...[image.digest, image.manifestDigest],
        ...image.layers.flatMap(({ digest, diffId }) => [digest, diffId]),
      ]),
    )
    return new Set([...held, ...this.stored.flatMap(({ layers }) => layers)])
  }

  /**
   * Takes over every named image of the layout. What is there already costs a look at the index.
   * @returns references that are new or changed
   * @throws Failure, Fault when a document or a layer is not what its digest says; nothing of that image is used then
   */
  async importLayout(): Promise<readonly string[]> {
    const index = Index.parse(JSON.parse(await readFile(join(this.content.layout, 'index.json'), 'utf8')))
    const changed: string[] = []
    for (const entry of index.manifests) {
      const name = entry.annotations?.[REF_NAME]
      if (name === undefined) continue
      const reference = familiar(parseReference(name))
      if (this.stored.some((s) => s.reference === reference && s.manifestDigest === entry.digest)) continue
      const image = await this.#take(reference, entry)
      await this.#store([...this.stored.filter((s) => s.reference !== reference), image])
      changed.push(reference)
    }
    return changed
  }

  async #store(stored: readonly Stored[]): Promise<void> {
    await writeAtomic(join(this.directory, 'images.json'), JSON.stringify(stored))
    this.stored = stored
    this.#names = undefined
  }

  async #take(reference: string, entry: Descriptor): Promise<Stored> {
    const { manifest, config } = await this.documents(entry)
    checkPlatform(config, nodePlatform)
    const layers = layersOf(manifest, config)
    const diffIds = layers.map(({ diffId }) => diffId)
    return this.needing(diffIds, async () => {
      let sizeBytes = 0
      for (const { descriptor, diffId, compression } of layers) {
        const wanted = { digest: descriptor.digest, diffId, compression }
        sizeBytes += (await this.layers.ensure(wanted, layerLimits, never)).bytes
      }
      const settings = heldImage({ config: manifest.config.digest, manifest: entry.digest }, config, []).settings
      return {
        reference,
        manifestDigest: entry.digest,
        digest: manifest.config.digest,
        sizeBytes,
        layers: diffIds,
        config: startOf(settings),
      }
    })
  }
}

const layerOf = ({ digest, mediaType, size }: Descriptor, diffId: string, unpackedBytes: number) => ({
  ...{ diffId, digest, mediaType },
  sizeBytes: size,
  unpackedBytes,
})
