// content.ts: blobs by digest. A blob is written under another name, checked against its digest, synced and renamed, so
// what has the name is whole whoever was killed when.
//
//     blobs/sha256/<hex>        a blob; <hex>.json beside it: what is known of it (Known)
//     partial/<hex>             what came of a blob from one registry so far, to be gone on with
//     incoming/<random>/        entries of an archive while it is read; nothing of it outlives its request
//
// Blobs of the base images stay in their layout, which is read-only here.
import { createHash, type Hash } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { type FileHandle, mkdir, mkdtemp, open, readdir, readFile, rename, rm, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { errnoOf, Failure, Fault, ignore } from '@berth/contracts'
import { CommandFailed, readJson, removeTree, syncDirectory, writeAtomic } from '@berth/host'
import type { Descriptor } from '@berth/oci'
import { z } from 'zod'
import { Exclusive } from './exclusive.js'
import { noRoom, Room } from './room.js'

/** What is known of a blob besides its bytes. */
const Known = z.object({
  /** Of a layer: the digest of the tar inside, once that was computed. */
  diffId: z.string().optional(),
  /** Registries that gave it to somebody; who has a login there may be told that it is here. */
  from: z.array(z.string()).default([]),
})
export type Known = z.infer<typeof Known>

export interface Found {
  readonly path: string
  readonly bytes: number
  /** Of a base image: everybody may have it. */
  readonly isPublic: boolean
}

/** So many registries are remembered for a blob, the latest. */
const MAX_GIVERS = 64
/** A part of a blob is kept for a day. */
const PARTIAL_MS = 86_400_000
/** When the disk is short, what is only kept for another try goes once nothing can be about to use it. */
const SHORT_MS = 120_000

export const digestOf = (hash: Hash): string => `sha256:${hash.digest('hex')}`
export const digestOfBytes = (bytes: Uint8Array): string => digestOf(createHash('sha256').update(bytes))
export const hexOf = (digest: string): string => digest.slice('sha256:'.length)
/** For what is over in a moment. */
export const never: AbortSignal = new AbortController().signal
const blobName = /^[0-9a-f]{64}$/

export class Content {
  readonly room: Room
  /** Paths of parts that are being written. */
  readonly #parts = new Set<string>()
  readonly #exclusive = new Exclusive()

  /** Of a store that is open already, in this process or another. */
  constructor(
    readonly directory: string,
    readonly layout: string,
  ) {
    this.room = Room.of(directory)
  }

  /**
   * Opens the store, and removes what a crash left half-made.
   * @param layout OCI layout of the base images, which may not be there yet
   */
  static async open(directory: string, layout: string): Promise<Content> {
    for (const name of ['blobs/sha256', 'partial', 'incoming'])
      await mkdir(join(directory, name), { recursive: true, mode: 0o700 })
    for (const name of await readdir(join(directory, 'incoming'))) await removeTree(join(directory, 'incoming', name))
    for (const name of await readdir(join(directory, 'blobs/sha256')))
      if (name.endsWith('.tmp')) await rm(join(directory, 'blobs/sha256', name), { force: true })
    const content = new Content(directory, layout)
    await content.forgetParts(new Date())
    return content
  }

  path(digest: string): string {
    return join(this.directory, 'blobs/sha256', hexOf(digest))
  }

  async find(digest: string): Promise<Found | undefined> {
    const [own, base] = [this.path(digest), join(this.layout, 'blobs/sha256', hexOf(digest))]
    const [mine, theirs] = await Promise.all([own, base].map(sizeOf))
    const isPublic = theirs !== undefined
    if (mine !== undefined) return { path: own, bytes: mine, isPublic }
    return theirs === undefined ? undefined : { path: base, bytes: theirs, isPublic }
  }

  async known(digest: string): Promise<Known> {
    return (await readJson(`${this.path(digest)}.json`, (value) => Known.parse(value))) ?? { from: [] }
  }

  /** Adds to what is known of a blob; only of those that are here, not in the layout. */
  learn(digest: string, { diffId, from = [] }: Partial<Known>): Promise<void> {
    return this.exclusively(`${digest}.json`, never, async () => {
      const known = await this.known(digest)
      const learned = {
        diffId: diffId ?? known.diffId,
        from: [...new Set([...from, ...known.from])].slice(0, MAX_GIVERS),
      }
      if (JSON.stringify(learned) === JSON.stringify({ diffId: known.diffId, from: known.from })) return
      await writeAtomic(`${this.path(digest)}.json`, JSON.stringify(learned))
    })
  }

  /** One at a time for each name: a digest, or what is done with it. */
  exclusively<T>(name: string, signal: AbortSignal, work: () => Promise<T>): Promise<T> {
    return this.#exclusive.run(name, signal, work)
  }

  /**
   * Reads a document.
   * @throws Failure image_invalid when it is larger than `most` bytes; Fault when it is not there, or is not what its
   * digest says
   */
  async read({ digest, size }: Pick<Descriptor, 'digest' | 'size'>, most: number): Promise<Buffer> {
    if (size > most) throw new Failure('image_invalid', `${digest} is larger than the ${most} bytes that are read`)
    const found = await this.find(digest)
    if (!found || found.bytes !== size)
      throw new Fault(`read ${digest}`, { cause: 'it is not there, or of another size' })
    const bytes = await readFile(found.path)
    if (digestOfBytes(bytes) !== digest) throw new Fault(`read ${digest}`, { cause: 'it is not what its digest says' })
    return bytes
  }

  /** Stores a document. @returns its digest */
  async add(bytes: Uint8Array): Promise<string> {
    const digest = digestOfBytes(bytes)
    await this.exclusively(digest, never, async () => {
      if (await this.find(digest)) return
      await withRoom(() => writeAtomic(this.path(digest), bytes, { durable: true }))
    })
    return digest
  }

  /** Takes over a file whose digest was computed while it was written. */
  adopt(path: string, digest: string): Promise<void> {
    return this.exclusively(digest, never, async () => {
      // Of an archive that has it twice the first has taken it.
      if (await this.find(digest)) return rm(path, { force: true })
      await withRoom(() => synced(path))
      await this.place(path, digest)
    })
  }

  /** What came of a blob from `host` so far, to be gone on with. Nobody else may have it open: see `exclusively`. */
  async part(digest: string, host: string): Promise<Part> {
    const path = join(this.directory, 'partial', hexOf(digestOfBytes(Buffer.from(`${digest} ${host}`))))
    const file = await withRoom(() => open(path, 'a+', 0o600))
    try {
      const { size } = await file.stat()
      const hash = createHash('sha256')
      if (size > 0) for await (const chunk of createReadStream(path, { highWaterMark: 1024 * 1024 })) hash.update(chunk)
      this.#parts.add(path)
      return new Part(this, path, file, hash, size, () => this.#parts.delete(path))
    } catch (error) {
      await file.close()
      throw error
    }
  }

  /** Lends a directory for the entries of an archive. */
  async withIncoming<T>(work: (directory: string) => Promise<T>): Promise<T> {
    const path = await withRoom(() => mkdtemp(join(this.directory, 'incoming', 'archive-')))
    try {
      return await work(path)
    } finally {
      await removeTree(path)
    }
  }

  /** Names a whole file that is on disk. */
  async place(path: string, digest: string): Promise<void> {
    await rename(path, this.path(digest))
    await syncDirectory(join(this.directory, 'blobs/sha256'))
  }

  /** Removes parts that are of no use any more; not one that is being written. */
  async forgetParts(now: Date): Promise<void> {
    const directory = join(this.directory, 'partial')
    const most = await this.#kept(PARTIAL_MS)
    for (const name of await readdir(directory)) {
      const found = await stat(join(directory, name)).catch((error: unknown) => ignore(error, 'ENOENT'))
      if (this.#parts.has(join(directory, name))) continue
      if (found && now.getTime() - found.mtimeMs > most) await rm(join(directory, name), { force: true })
    }
  }

  /** How long what nobody names is kept, of `ms` at most. */
  async #kept(ms: number): Promise<number> {
    return this.room.left().then(
      () => ms,
      () => Math.min(ms, SHORT_MS),
    )
  }

  /**
   * Removes blobs that `isKept` does not hold, and that have been here for `graceMs`: a pull that was broken off finds
   * what it had.
   */
  async collect(isKept: (digest: string) => boolean, now: Date, graceMs: number): Promise<readonly string[]> {
    const removed: string[] = []
    const least = await this.#kept(graceMs)
    for (const digest of await this.list()) {
      if (isKept(digest)) continue
      await this.exclusively(digest, never, async () => {
        const found = await stat(this.path(digest)).catch((error: unknown) => ignore(error, 'ENOENT'))
        if (!found || now.getTime() - found.ctimeMs < least || isKept(digest)) return
        // What is known of it first: killed in between, a blob of which nothing is known is left, and goes the next time.
        await rm(`${this.path(digest)}.json`, { force: true })
        await rm(this.path(digest), { force: true })
        removed.push(digest)
      })
    }
    return removed
  }

  /** Digests of the blobs that are here; those of the layout are not among them. */
  async list(): Promise<readonly string[]> {
    const names = await readdir(join(this.directory, 'blobs/sha256'))
    return names.filter((name) => blobName.test(name)).map((hex) => `sha256:${hex}`)
  }
}

/** A blob on its way. */
export class Part {
  #hash: Hash

  constructor(
    private readonly content: Content,
    private readonly path: string,
    private readonly file: FileHandle,
    hash: Hash,
    private size: number,
    private readonly closed: () => void,
  ) {
    this.#hash = hash
  }

  get bytes(): number {
    return this.size
  }

  async append(chunk: Uint8Array): Promise<void> {
    await this.content.room.want(chunk.length)
    await withRoom(() => this.file.appendFile(chunk))
    this.#hash.update(chunk)
    this.size += chunk.length
  }

  /** From the beginning again. */
  async restart(): Promise<void> {
    await this.file.truncate(0)
    this.#hash = createHash('sha256')
    this.size = 0
  }

  /** Names the blob. @returns false where it is another: nothing is left of it then */
  async finish(digest: string): Promise<boolean> {
    if (digestOf(this.#hash.copy()) !== digest) {
      await this.drop()
      return false
    }
    await withRoom(() => this.file.sync())
    await this.content.place(this.path, digest)
    return true
  }

  /** Nothing is kept of what came; `append` begins anew. */
  drop(): Promise<void> {
    return this.restart()
  }

  async close(): Promise<void> {
    try {
      await this.file.close()
      if (this.size === 0) await rm(this.path, { force: true })
    } finally {
      this.closed()
    }
  }
}

/** Of a regular file. */
async function sizeOf(path: string): Promise<number | undefined> {
  const found = await stat(path).catch((error: unknown) => ignore(error, 'ENOENT', 'ENOTDIR'))
  return found?.isFile() ? found.size : undefined
}

async function synced(path: string): Promise<void> {
  const file = await open(path, 'r')
  try {
    await file.sync()
  } finally {
    await file.close()
  }
}

/** @throws Failure no_capacity when the node's disk is full */
export async function withRoom<T>(work: () => Promise<T>): Promise<T> {
  try {
    return await work()
  } catch (error) {
    throw orNoRoom(error)
  }
}

/** What is to be told of an error: Failure no_capacity when it comes of the node's disk that is full, else itself. */
export const orNoRoom = (error: unknown): unknown => (isFull(error) ? noRoom() : error)

function isFull(error: unknown): boolean {
  // As programs say ENOSPC, strerror(3).
  if (error instanceof CommandFailed) return error.result.stderr.includes('No space left on device')
  if (error instanceof Fault) return isFull(error.cause)
  return ['ENOSPC', 'EDQUOT'].includes(errnoOf(error) ?? '')
}
