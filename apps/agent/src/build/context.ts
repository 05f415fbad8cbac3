// context.ts: what a build copies from. The tar that its caller sends is never unpacked as files of the node: the bytes of all
// its files are appended to one file, and what is where is kept in memory. That file has no name by the time anything is in
// it, so nothing of it outlives its holder, whoever is killed when.
import { createHash, hash } from 'node:crypto'
import { type FileHandle, mkdtemp, open } from 'node:fs/promises'
import { join } from 'node:path'
import type { Readable } from 'node:stream'
import { type ErrorCode, Failure, invariant, KiB, MiB } from '@berth/contracts'
import { removeTree } from '@berth/host'
import { type Content, withRoom } from '../images/content.js'
import { eachEntry, type TarEntry } from '../images/entries.js'
import type { Room } from '../images/room.js'
import { type Attributes, Breather, below, rootNode, type Tree, type TreeNode } from './tree.js'

/** Of a context; a name counts with what it takes in memory. */
const limits = { entries: 500_000, nameBytes: 64 * MiB, depth: 512, pathBytes: 4095, partBytes: 255 } as const
/** Bytes that are written, and read ahead, at once: most files are small. */
const WINDOW = MiB
const CHUNK = 256 * KiB

interface Place extends Omit<TreeNode, 'inode'> {
  /** Where its bytes are in the spool. */
  at: number
  inode?: string
  /** Of a directory. */
  readonly children?: Map<string, Place>
}

/** Entries of all contexts that a node holds: some 500 bytes of its memory each. */
export class ContextMemory {
  #left: number

  /** @param whole what it is a share of */
  constructor(
    entries = 1_000_000,
    private readonly whole?: ContextMemory,
  ) {
    this.#left = entries
  }

  /** @throws Failure no_capacity */
  take(): void {
    if (this.#left <= 0)
      throw new Failure('no_capacity', 'the contexts of builds on the node have as many files as it takes')
    this.whole?.take()
    this.#left -= 1
  }

  give(entries: number): void {
    this.whole?.give(entries)
    this.#left += entries
  }
}

export interface ContextOptions {
  /** Most bytes of the tar, unpacked: of files and of headers. */
  readonly maxBytes: number
  /** Default: its own. */
  readonly memory?: ContextMemory
  readonly signal: AbortSignal
}

/** A context on the node, until it is closed. */
export class Context implements Tree, AsyncDisposable {
  readonly #breather = new Breather(200)
  #window: { readonly at: number; readonly bytes: Buffer } = { at: 0, bytes: Buffer.alloc(0) }

  private constructor(
    private readonly spool: FileHandle,
    private readonly root: Place,
    private readonly forgotten: () => void,
  ) {}

  /**
   * Takes in a tar, plain or packed.
   * @throws Failure context_invalid for what is no tar, was cut, is too large, or names what is not in it; no_capacity
   */
  static async receive(content: Content, source: Readable, options: ContextOptions): Promise<Context> {
    const { maxBytes, memory = new ContextMemory(), signal } = options
    const file = await unnamedFile(content)
    const table = new Table(maxBytes, memory)
    try {
      const spool = new Spool(file, content.room)
      await eachEntry(source, (entry) => table.take(entry, spool), signal, { maxBytes, marked: true })
      await spool.flush()
      return new Context(file, table.root, () => memory.give(table.entries))
    } catch (error) {
      memory.give(table.entries)
      await file.close()
      throw error instanceof Failure ? invalid(error) : error
    }
  }

  async lstat(path: string): Promise<TreeNode | undefined> {
    await this.#breather.next()
    return this.#find(path)
  }

  async list(path: string): Promise<readonly string[]> {
    return [...(this.#find(path)?.children?.keys() ?? [])].sort()
  }

  async *read(path: string): AsyncGenerator<Uint8Array> {
    const found = this.#find(path)
    invariant(found?.type === 'file', 'only files are read')
    if (found.size <= WINDOW / 4) return yield await this.#small(found.at, found.size)
    for (let at = found.at; at < found.at + found.size; ) {
      const length = Math.min(CHUNK, found.at + found.size - at)
      const { bytesRead, buffer } = await this.spool.read(Buffer.allocUnsafe(length), 0, length, at)
      invariant(bytesRead > 0, 'all of it was written')
      at += bytesRead
      yield buffer.subarray(0, bytesRead)
    }
  }

  async attributes(): Promise<Attributes> {
    return {}
  }

  /** Takes out what `ignores` says; a directory stays while something of it does. */
  async leaveOut(ignores: (path: string) => boolean): Promise<void> {
    const prune = async (directory: Place, path: string) => {
      for (const [name, place] of directory.children ?? []) {
        await this.#breather.next()
        const own = below(path, name)
        if (place.children) await prune(place, own)
        if (ignores(own) && !place.children?.size) directory.children?.delete(name)
      }
    }
    await prune(this.root, '')
  }

  /** Nothing of it may be read any more. */
  async close(): Promise<void> {
    this.forgotten()
    await this.spool.close()
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close()
  }

  #find(path: string): Place | undefined {
    let place: Place | undefined = this.root
    if (path !== '') for (const part of path.split('/')) place = place?.children?.get(part)
    return place
  }

  /** Files that are copied one after another often came one after another. */
  async #small(at: number, size: number): Promise<Buffer> {
    const { at: from, bytes } = this.#window
    const end = from + bytes.length
    if (at >= from && at + size <= end) return bytes.subarray(at - from, at - from + size)
    const isNext = at >= from && at < end + CHUNK
    const length = isNext ? WINDOW : size
    const { bytesRead, buffer } = await this.spool.read(Buffer.allocUnsafe(length), 0, length, at)
    invariant(bytesRead >= size, 'all of it was written')
    this.#window = { at, bytes: buffer.subarray(0, bytesRead) }
    return buffer.subarray(0, size)
  }
}

/** A file of the store without a name; the next start removes the directory if this is killed before it does. */
async function unnamedFile(content: Content): Promise<FileHandle> {
  const directory = await withRoom(() => mkdtemp(join(content.directory, 'incoming', 'context-')))
  try {
    return await withRoom(() => open(join(directory, 'spool'), 'wx+', 0o600))
  } finally {
    await removeTree(directory)
  }
}

/** What is wrong with the archive, or with what is in it, is wrong with the context. */
function invalid(error: Failure): Failure {
  const ours: readonly ErrorCode[] = ['archive_invalid', 'image_invalid']
  return ours.includes(error.code) ? new Failure('context_invalid', `the context: ${error.message}`) : error
}

const refuse = (path: string, why: string) => new Failure('archive_invalid', `${JSON.stringify(path)}: ${why}`)

/** Appends to the file in large pieces. */
class Spool {
  #waiting: Uint8Array[] = []
  #waitingBytes = 0
  #written = 0

  constructor(
    private readonly file: FileHandle,
    private readonly room: Room,
  ) {}

  get end(): number {
    return this.#written + this.#waitingBytes
  }

  async append(chunk: Uint8Array): Promise<void> {
    this.#waiting.push(chunk)
    this.#waitingBytes += chunk.length
    if (this.#waitingBytes >= WINDOW) await this.flush()
  }

  async flush(): Promise<void> {
    const bytes = Buffer.concat(this.#waiting)
    this.#waiting = []
    this.#waitingBytes = 0
    await this.room.want(bytes.length)
    for (let at = 0; at < bytes.length; ) {
      const rest = bytes.length - at
      at += (await withRoom(() => this.file.write(bytes, at, rest, this.#written + at))).bytesWritten
    }
    this.#written += bytes.length
  }
}

/** The entries so far. Among equal names the last counts, as when they are unpacked. */
class Table {
  readonly root: Place = { ...rootNode, at: 0, children: new Map() }
  #entries = 0
  #nameBytes = 0
  #inodes = 0

  constructor(
    private readonly maxBytes: number,
    private readonly memory: ContextMemory,
  ) {}

  get entries(): number {
    return this.#entries
  }

  #count(shown: () => string): void {
    if (this.#entries >= limits.entries) throw refuse(shown(), `more than ${limits.entries} entries`)
    this.memory.take()
    this.#entries += 1
  }

  async take(entry: TarEntry, spool: Spool): Promise<void> {
    const { type, name, size, linkname, mode, mtime } = entry.header
    const path = partsOf(name)
    const shown = path.join('/')
    this.#count(() => shown)
    if (size > this.maxBytes) throw refuse(shown, `more than ${this.maxBytes} bytes`)
    if (this.#nameBytes > limits.nameBytes) throw refuse(shown, 'the names are too long together')
    const seconds = mtime.getTime()
    const common = {
      ...{ mode: mode & 0o7777, uid: 0, gid: 0, mtimeMs: Number.isFinite(seconds) ? seconds : 0 },
      ...{ size: 0, at: spool.end },
    }
    switch (type) {
      case 'file':
      case 'contiguous-file':
        this.#put(path, { type: 'file', ...common, size, digest: await spooled(entry, size, spool) })
        return
      case 'directory':
        this.#directory(path, common)
        break
      case 'symlink':
        if (!linkname || linkname.includes('\0') || Buffer.byteLength(linkname) > limits.pathBytes)
          throw refuse(shown, 'a link to nowhere')
        this.#nameBytes += linkname.length
        this.#put(path, { type: 'symlink', ...common, target: linkname })
        break
      case 'link':
        this.#put(path, this.#linked(shown, linkname ?? ''))
        break
      case 'block-device':
      case 'character-device':
      case 'fifo':
        throw refuse(shown, 'devices and named pipes are not taken')
      default:
        throw refuse(shown, 'it is neither a file, nor a directory, nor a link')
    }
    entry.resume()
  }

  /** What an earlier entry is. */
  #linked(shown: string, target: string): Place {
    let found: Place | undefined = this.root
    for (const part of partsOf(target)) found = found?.children?.get(part)
    if (!found || found.children)
      throw refuse(shown, `a hard link to ${JSON.stringify(target)}, which is no file before it`)
    if (found.type === 'file') found.inode ??= String(++this.#inodes)
    return found
  }

  #directory(path: readonly string[], common: Omit<Place, 'type'>): void {
    const found = path.length === 0 ? this.root : this.#parent(path).get(path.at(-1) ?? '')
    if (found?.children) Object.assign(found, { mode: common.mode, mtimeMs: common.mtimeMs })
    else this.#put(path, { type: 'directory', ...common, children: new Map() })
  }

  #put(path: readonly string[], place: Place): void {
    const name = path.at(-1)
    if (name === undefined) throw refuse('', 'the root is a directory')
    this.#nameBytes += name.length
    this.#parent(path).set(name, place)
  }

  /** Where the last part of a path belongs; directories that no entry named are made. */
  #parent(path: readonly string[]): Map<string, Place> {
    let children = this.root.children
    for (const part of path.slice(0, -1)) {
      let next: Place | undefined = children?.get(part)
      if (!next) {
        this.#count(() => path.join('/'))
        this.#nameBytes += part.length
        next = { ...rootNode, at: 0, children: new Map() }
        children?.set(part, next)
      }
      if (!next.children) throw refuse(path.join('/'), `${JSON.stringify(part)} on the way is no directory`)
      children = next.children
    }
    invariant(children, 'the root is a directory')
    return children
  }
}

/** `/a//b/./c` is a/b/c, as when it is unpacked below a directory. */
function partsOf(name: string): readonly string[] {
  const parts = name.split('/').filter((part) => part !== '' && part !== '.')
  if (parts.includes('..')) throw refuse(name, 'a name with ".."')
  if (name.includes('\0') || name.includes('\uFFFD')) throw refuse(name, 'no UTF-8, or a zero in the name')
  if (parts.length > limits.depth) throw refuse(name.slice(0, 100), `more than ${limits.depth} directories deep`)
  if (Buffer.byteLength(name) > limits.pathBytes || parts.some((part) => Buffer.byteLength(part) > limits.partBytes))
    throw refuse(name.slice(0, 100), 'the name is too long')
  return parts
}

/** @returns SHA-256 of its bytes */
async function spooled(entry: TarEntry, size: number, spool: Spool): Promise<string> {
  const digest = createHash('sha256')
  const chunks: Uint8Array[] = []
  for await (const chunk of entry) {
    invariant(chunk instanceof Uint8Array, 'bytes come as bytes')
    if (size > WINDOW) {
      digest.update(chunk)
      await spool.append(chunk)
    } else chunks.push(chunk)
  }
  if (size > WINDOW) return digest.digest('hex')
  const bytes = Buffer.concat(chunks)
  await spool.append(bytes)
  return hash('sha256', bytes, 'hex')
}
