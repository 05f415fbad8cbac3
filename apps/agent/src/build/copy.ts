// copy.ts: layers that are made of files: COPY and ADD, WORKDIR, and what RUN --mount=type=bind shows. Each is a plan that
// is gone through as often as it is needed: once for the digest of what is copied, once for the tar. Nothing is held but
// names.
import { createHash } from 'node:crypto'
import { PassThrough, Readable, Writable } from 'node:stream'
import { Failure, KiB } from '@berth/contracts'
import { eachEntry, packingOf } from '../images/entries.js'
import { inflate } from '../images/inflate.js'
import { layerLimits } from '../images/layers.js'
import { isTarHeader } from '../images/sparse.js'
import { type CopyRequest, type CopyStep, mayRepeat, namesOwner, type Owner, ownerOf, planCopy } from './copy.plan.js'
import { tarEnd, tarHeader, tarPadding } from './tar.plan.js'
import { type Entry, Target } from './target.js'
import { clamped, emptyTree, follow, nameOf, readSmall, type Tree } from './tree.js'
import { unpacked } from './unpack.plan.js'

export interface CopyOptions {
  /** What is copied from; not used for what is inline. */
  readonly from: Tree
  /** What the layer is put on. */
  readonly onto: Tree
  readonly op: CopyRequest
  /** Unix milliseconds: of what is made newly, and what later times become. */
  readonly newestMs: number
  readonly signal: AbortSignal
}

export interface MadeLayer {
  /**
   * SHA-256, in hex, of what is copied and where to: names, types, modes, owners, links, attributes and contents; no
   * times. Computed when it is asked for.
   * @throws Failure build_failed as `tar` does
   */
  readonly key: Promise<string>
  /** The layer, for `addLayer`. It fails with Failure build_failed for what cannot be copied, naming it. */
  tar(): Readable
}

/** COPY or ADD. */
export function copyLayer(options: CopyOptions): MadeLayer {
  return layerOf(options, false)
}

/**
 * What is at a path of a tree, as a layer on nothing: of a directory what is in it; a file by its name.
 * @returns `path`: where it is in the layer, '' for a directory
 * @throws Failure build_failed when it is not there
 */
export async function sourceLayer(
  from: Tree,
  source: string,
  { newestMs, signal }: Pick<CopyOptions, 'newestMs' | 'signal'>,
): Promise<MadeLayer & { readonly path: string }> {
  const node = await from.lstat(await follow(from, source))
  if (!node) throw new Failure('build_failed', `${JSON.stringify(source)}: not found`)
  const op = { sources: [source], inline: [], destination: '/', chown: null, chmod: null, exclude: [] }
  const options = { from, onto: emptyTree, newestMs, signal }
  const made = layerOf({ ...options, op: { ...op, link: false, extract: false, parents: false } }, true)
  return Object.assign(made, { path: node.type === 'directory' ? '' : nameOf(clamped(source)) })
}

/**
 * WORKDIR: makes a directory, and those on the way to it, where they are missing.
 * @param user whose they are, as USER says it; '' is root
 * @returns undefined where all are there
 * @throws Failure build_failed where something else is there, or the user is unknown
 */
export async function workdirLayer(
  onto: Tree,
  path: string,
  user: string,
  { newestMs, signal }: Pick<CopyOptions, 'newestMs' | 'signal'>,
): Promise<{ tar(): Readable } | undefined> {
  const owner = user === '' ? { uid: 0, gid: 0 } : await ownerIn(onto, user)
  const steps = async function* () {
    const target = new Target(onto, false, newestMs)
    yield* target.makeDirectories(await follow(target, path), owner)
  }
  for await (const _ of steps()) return { tar: () => tarOf(steps, newestMs, signal) }
  return undefined
}

/** Of an image's /etc/passwd and /etc/group. */
const MAX_ACCOUNTS_BYTES = 256 * KiB

async function ownerIn(onto: Tree, name: string): Promise<Owner> {
  if (!namesOwner(name)) return ownerOf(name, { passwd: '', group: '' })
  const read = async (path: string) => (await readSmall(onto, path, MAX_ACCOUNTS_BYTES))?.toString() ?? ''
  return ownerOf(name, { passwd: await read('etc/passwd'), group: await read('etc/group') })
}

function layerOf({ from, onto, op, newestMs, signal }: CopyOptions, isLiteral: boolean): MadeLayer {
  const archives = new Map<string, Promise<boolean>>()
  const isArchive = (path: string) => {
    const known = archives.get(path) ?? isTar(from, path, signal)
    archives.set(path, known)
    return known
  }
  const begin = async () => {
    const owner = op.chown === null ? undefined : await ownerIn(onto, op.chown)
    // A layer of --link is the same on whatever it is put: nothing of what is below is asked for.
    const target = new Target(op.link ? emptyTree : onto, mayRepeat(op), newestMs)
    return { target, owner, steps: planCopy({ op, from, target, owner, newestMs, isLiteral, isArchive }) }
  }
  const entries: Entries = async function* (write) {
    const { target, owner, steps } = await begin()
    for await (const step of steps)
      if (step.type !== 'unpack') yield step
      else await unpackInto(step, from, target, owner, write, signal)
  }
  const key = async () => keyOf((await begin()).steps, from, signal)
  let known: Promise<string> | undefined
  return {
    get key() {
      known ??= key()
      return known
    },
    tar: () => tarOf(entries, newestMs, signal),
  }
}

/** Entries of a layer; what does not come as one is written by `write`. */
type Entries = (write: (entry: Entry) => Promise<void>) => AsyncGenerator<Entry>

async function unpackInto(
  { source, directory }: Extract<CopyStep, { type: 'unpack' }>,
  from: Tree,
  target: Target,
  owner: Owner | undefined,
  write: (entry: Entry) => Promise<void>,
  signal: AbortSignal,
): Promise<void> {
  try {
    const limits = { maxBytes: layerLimits.maxBytes }
    const archive = Readable.from(from.read(source), { objectMode: false })
    const take = async (entry: Parameters<Parameters<typeof eachEntry>[1]>[0]) => {
      const read = () => entry as AsyncIterable<Uint8Array>
      for await (const made of unpacked(target, directory, entry.header, owner, read)) await write(made)
      entry.resume()
    }
    await eachEntry(archive, take, signal, limits)
  } catch (error) {
    throw error instanceof Failure && error.code !== 'build_failed' ? notUnpacked(source, error) : error
  }
}

const notUnpacked = (source: string, error: Failure) =>
  error.code === 'archive_invalid' || error.code === 'image_invalid'
    ? new Failure('build_failed', `/${source} cannot be unpacked: ${error.message}`)
    : error

async function keyOf(steps: AsyncIterable<CopyStep>, from: Tree, signal: AbortSignal): Promise<string> {
  const hash = createHash('sha256')
  for await (const step of steps) {
    signal.throwIfAborted()
    if (step.type === 'unpack') {
      const digest = (await from.lstat(step.source))?.digest ?? (await digestOf(from.read(step.source)))
      hash.update(JSON.stringify(['unpack', step.directory, digest]))
    } else if (step.type !== 'directory' || !step.isKept) {
      const { type, path, mode, uid, gid, attributes } = step
      const content = step.type === 'file' ? (step.digest ?? (await digestOf(step.read()))) : ''
      const target = step.type === 'symlink' || step.type === 'link' ? step.target : ''
      const sorted = Object.entries(attributes).sort(([a], [b]) => (a < b ? -1 : 1))
      hash.update(JSON.stringify([type, path, mode, uid, gid, target, content, sorted]))
    }
  }
  return hash.digest('hex')
}

async function digestOf(bytes: AsyncIterable<Uint8Array>): Promise<string> {
  const hash = createHash('sha256')
  for await (const chunk of bytes) hash.update(chunk)
  return hash.digest('hex')
}

/** Small writes are put together. */
const CHUNK = 256 * KiB

/** Nothing is done, and nothing can fail, before somebody reads it. */
function tarOf(entries: Entries, newestMs: number, signal: AbortSignal): Readable {
  const bytes = async function* () {
    const out = new PassThrough({ highWaterMark: CHUNK })
    const writer = new TarWriter(out, newestMs, signal)
    const all = async () => {
      for await (const entry of entries((one) => writer.write(one))) await writer.write(entry)
      await writer.end()
    }
    all().catch((error: unknown) => out.destroy(error instanceof Error ? error : new Error(String(error))))
    yield* out
  }
  return Readable.from(bytes(), { objectMode: false, highWaterMark: CHUNK })
}

class TarWriter {
  #waiting: Uint8Array[] = []
  #waitingBytes = 0

  constructor(
    private readonly out: PassThrough,
    private readonly newestMs: number,
    private readonly signal: AbortSignal,
  ) {}

  async write(entry: Entry): Promise<void> {
    await this.#give(tarHeader(entry, this.newestMs))
    if (entry.type !== 'file') return
    let size = 0
    for await (const chunk of entry.read()) {
      size += chunk.length
      await this.#give(chunk)
    }
    if (size !== entry.size) throw new Failure('build_failed', `/${entry.path} became another while it was read`)
    await this.#give(tarPadding(size))
  }

  async end(): Promise<void> {
    await this.#give(tarEnd())
    await this.#flush()
    this.out.end()
  }

  async #give(bytes: Uint8Array): Promise<void> {
    this.#waiting.push(bytes)
    this.#waitingBytes += bytes.length
    if (this.#waitingBytes >= CHUNK) await this.#flush()
  }

  async #flush(): Promise<void> {
    this.signal.throwIfAborted()
    const bytes = Buffer.concat(this.#waiting)
    this.#waiting = []
    this.#waitingBytes = 0
    if (!this.out.destroyed && this.out.write(bytes)) return
    await drained(this.out, this.signal)
  }
}

/** Resolves when more is wanted. @throws when nobody reads it any more */
function drained(out: PassThrough, signal: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const over = (then: () => void) => () => {
      out.off('drain', onDrain).off('close', onClose)
      signal.removeEventListener('abort', onAbort)
      then()
    }
    const onDrain = over(resolve)
    const onClose = over(() => reject(new Error('nobody reads it')))
    const onAbort = over(() => reject(signal.reason))
    if (out.destroyed) return onClose()
    out.on('drain', onDrain).on('close', onClose)
    signal.addEventListener('abort', onAbort)
  })
}

/** Whether a file, unpacked where it is packed, begins with a tar's header. */
async function isTar(from: Tree, path: string, signal: AbortSignal): Promise<boolean> {
  const beginning = await firstBytes(from.read(path), 6)
  const packing = packingOf(beginning)
  if (packing === 'none') return isHeader(await firstBytes(from.read(path), 512))
  const [enough, chunks]: [AbortController, Buffer[]] = [new AbortController(), []]
  let bytes = 0
  const sink = new Writable({
    write(chunk: Buffer, _encoding, done) {
      bytes += chunk.length
      chunks.push(chunk)
      if (bytes >= 512) enough.abort()
      done()
    },
  })
  const source = Readable.from(from.read(path), { objectMode: false })
  await inflate(source, packing, [sink], AbortSignal.any([signal, enough.signal])).catch((error: unknown) => {
    signal.throwIfAborted()
    if (enough.signal.aborted || (error instanceof Failure && error.code === 'image_invalid')) return
    throw error instanceof Failure ? notUnpacked(path, error) : error
  })
  return isHeader(Buffer.concat(chunks).subarray(0, 512))
}

async function firstBytes(bytes: AsyncIterable<Uint8Array>, most: number): Promise<Buffer> {
  let first: Buffer = Buffer.alloc(0)
  for await (const chunk of bytes) {
    first = Buffer.concat([first, chunk]).subarray(0, most)
    if (first.length === most) break
  }
  return first
}

const isHeader = (block: Buffer) => block[0] !== 0 && isTarHeader(block)
