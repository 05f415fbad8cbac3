import { createHash } from 'node:crypto'
import { mkdir, mkdtemp, readdir, readFile, rename } from 'node:fs/promises'
import { join } from 'node:path'
import { Fault, GiB, type NodeImage } from '@berth/contracts'
import { readJson, removeTree, writeAtomic } from '@berth/host'
import {
  type Descriptor,
  familiar,
  ImageConfig,
  Index,
  layerCompression,
  Manifest,
  parseReference,
  REF_NAME,
} from '@berth/oci'
import { z } from 'zod'
import { type LayerSource, unpackLayer } from './unpack.js'

// images.ts: which images this node has. A layer is a directory `layers/sha256/<hex>/` with the files in `fs` and its
// size in `layer.json`; it is made under another name and renamed when it is whole, so what has the name is complete.
// `images.json` names images and is written last: it never names a layer that is not there.

/** Unpacked layers are bounded whoever made them. */
const layerLimits = { maxBytes: 64 * GiB, maxEntries: 2_000_000 } as const

const Stored = z.object({
  reference: z.string(),
  manifestDigest: z.string(),
  digest: z.string().regex(/^sha256:[0-9a-f]{64}$/),
  sizeBytes: z.number().int(),
  /** diffIDs, lowest layer first. */
  layers: z.array(z.string().regex(/^sha256:[0-9a-f]{64}$/)),
  config: z.object({
    env: z.array(z.string()),
    entrypoint: z.array(z.string()),
    command: z.array(z.string()),
    workingDir: z.string().optional(),
    user: z.string().optional(),
    stopSignal: z.string().optional(),
  }),
})
type Stored = z.infer<typeof Stored>

/** An image as a sandbox starts from it. */
export interface ResolvedImage {
  readonly reference: string
  readonly digest: string
  /** Directories, topmost first. */
  readonly layers: readonly string[]
  readonly config: Stored['config']
}

const LayerRecord = z.object({ bytes: z.number().int() })

/** Architecture names of the OCI image configuration (Go's), by Node's. */
const architectures: Readonly<Record<string, string>> = { x64: 'amd64', arm64: 'arm64' }

export class Images {
  readonly #inFlight = new Map<string, Promise<number>>()

  private constructor(
    private readonly directory: string,
    private stored: readonly Stored[],
  ) {}

  /** Opens the store of an agent's data directory, and removes layers that a crash left half-made. */
  static async open(dataDirectory: string): Promise<Images> {
    const layers = join(dataDirectory, 'layers', 'sha256')
    await mkdir(layers, { recursive: true, mode: 0o700 })
    for (const name of await readdir(layers)) if (name.startsWith('.making-')) await removeTree(join(layers, name))
    const stored = await readJson(join(dataDirectory, 'images.json'), (value) => z.array(Stored).parse(value))
    return new Images(dataDirectory, stored ?? [])
  }

  list(): readonly NodeImage[] {
    return this.stored.map(({ reference, digest, sizeBytes }) => ({ reference, digest, sizeBytes }))
  }

  /** Finds an image by name, tag or digest, as Docker would take it; undefined when the node has none. */
  resolve(text: string): ResolvedImage | undefined {
    const wanted = parseReference(text)
    const name = familiar({ ...wanted, digest: undefined })
    const found = this.stored.find(({ reference, digest, manifestDigest }) =>
      wanted.digest === undefined ? reference === name : [digest, manifestDigest].includes(wanted.digest),
    )
    if (!found) return undefined
    const layers = [...found.layers].reverse().map((diffId) => join(this.layerPath(diffId), 'fs'))
    return { reference: found.reference, digest: found.digest, layers, config: found.config }
  }

  /**
   * Takes over every named image of an OCI image layout. What is there already costs a look at the index.
   * @returns references that are new or changed
   * @throws Fault when a document or a layer is not what its digest says; nothing of that image is used then
   */
  async importLayout(layout: string): Promise<readonly string[]> {
    const index = Index.parse(JSON.parse(await readFile(join(layout, 'index.json'), 'utf8')))
    const changed: string[] = []
    for (const entry of index.manifests) {
      const name = entry.annotations?.[REF_NAME]
      if (name === undefined) continue
      const reference = familiar(parseReference(name))
      if (this.stored.some((s) => s.reference === reference && s.manifestDigest === entry.digest)) continue
      const image = await this.take(layout, reference, entry)
      await this.store([...this.stored.filter((s) => s.reference !== reference), image])
      changed.push(reference)
    }
    return changed
  }

  /** Removes layers that no image names and `inUse` (paths as `resolve` gives them) does not hold. */
  async collect(inUse: ReadonlySet<string>): Promise<readonly string[]> {
    const named = new Set(this.stored.flatMap((image) => image.layers.map((diffId) => diffId.slice('sha256:'.length))))
    const root = join(this.directory, 'layers', 'sha256')
    const garbage = (await readdir(root)).filter((hex) => !named.has(hex) && !inUse.has(join(root, hex, 'fs')))
    const idle = garbage.filter((hex) => !hex.startsWith('.making-'))
    for (const hex of idle) await removeTree(join(root, hex))
    return idle
  }

  private async store(stored: readonly Stored[]): Promise<void> {
    await writeAtomic(join(this.directory, 'images.json'), JSON.stringify(stored))
    this.stored = stored
  }

  private async take(layout: string, reference: string, entry: Descriptor): Promise<Stored> {
    const manifest = Manifest.parse(JSON.parse(await readVerified(layout, entry)))
    const image = ImageConfig.parse(JSON.parse(await readVerified(layout, manifest.config)))
    if (image.architecture !== architectures[process.arch])
      throw new Fault(`import ${reference}`, { cause: `it is for ${image.architecture}, this node is ${process.arch}` })
    const { diff_ids: diffIds } = image.rootfs
    if (diffIds.length !== manifest.layers.length)
      throw new Fault(`import ${reference}`, { cause: 'configuration and manifest disagree on the number of layers' })
    let sizeBytes = 0
    for (const [i, descriptor] of manifest.layers.entries())
      sizeBytes += await this.ensureLayer(sourceOf(layout, descriptor, diffIds[i] ?? ''))
    return {
      reference,
      manifestDigest: entry.digest,
      digest: manifest.config.digest,
      sizeBytes,
      layers: diffIds,
      config: configOf(image),
    }
  }

  /** Unpacks a layer unless it is there; two callers unpack it once. @returns bytes of its files */
  private ensureLayer(source: LayerSource): Promise<number> {
    const running = this.#inFlight.get(source.diffId)
    if (running) return running
    const making = this.makeLayer(source).finally(() => this.#inFlight.delete(source.diffId))
    this.#inFlight.set(source.diffId, making)
    return making
  }

  private async makeLayer(source: LayerSource): Promise<number> {
    const path = this.layerPath(source.diffId)
    const known = await readJson(join(path, 'layer.json'), (value) => LayerRecord.parse(value))
    if (known) return known.bytes
    const making = await mkdtemp(join(this.directory, 'layers', 'sha256', '.making-'))
    try {
      await mkdir(join(making, 'fs'), { mode: 0o755 })
      const bytes = await unpackLayer(source, join(making, 'fs'), layerLimits)
      await writeAtomic(join(making, 'layer.json'), JSON.stringify({ bytes }))
      await rename(making, path)
      return bytes
    } catch (error) {
      await removeTree(making)
      throw error
    }
  }

  private layerPath(diffId: string): string {
    return join(this.directory, 'layers', ...diffId.split(':'))
  }
}

const blobPath = (layout: string, digest: string) => join(layout, 'blobs', ...digest.split(':'))

/** Reads a document whose digest and size were promised. @throws Fault when they differ */
async function readVerified(layout: string, { digest, size }: Descriptor): Promise<string> {
  const bytes = await readFile(blobPath(layout, digest))
  const found = `sha256:${createHash('sha256').update(bytes).digest('hex')}`
  if (found !== digest || bytes.length !== size)
    throw new Fault(`verify ${digest}`, { cause: `found ${found} of ${bytes.length} bytes, promised ${size}` })
  return bytes.toString('utf8')
}

function sourceOf(layout: string, { mediaType, digest, size }: Descriptor, diffId: string): LayerSource {
  const compression = layerCompression(mediaType)
  if (compression !== 'none' && compression !== 'gzip')
    throw new Fault(`unpack ${digest}`, { cause: `media type ${mediaType} is not supported` })
  return { blob: blobPath(layout, digest), compression, digest, sizeBytes: size, diffId }
}

function configOf({ config }: ImageConfig): Stored['config'] {
  return {
    env: config.Env ?? [],
    entrypoint: config.Entrypoint ?? [],
    command: config.Cmd ?? [],
    ...(config.WorkingDir ? { workingDir: config.WorkingDir } : {}),
    ...(config.User ? { user: config.User } : {}),
    ...(config.StopSignal ? { stopSignal: config.StopSignal } : {}),
  }
}
