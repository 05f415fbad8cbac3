// layer-tree.ts: the files of an image, as an overlay of its layers would show them. Each component of a path is looked
// up in each layer by itself (lstat), so that the kernel follows no link of a layer. Layers do not change while they are in
// use.
import { closeSync, constants, type Dirent, lstatSync, openSync, readlinkSync, readSync, type Stats } from 'node:fs'
import { open, opendir } from 'node:fs/promises'
import { join } from 'node:path'
import { Failure, ignore, invariant, MiB } from '@berth/contracts'
import { expectSuccess, run, unescaped } from '@berth/host'
import { abortable } from '../images/exclusive.js'
import { type Attributes, Breather, nameOf, parentOf, type Tree, type TreeNode } from './tree.js'

/** Names in one directory; they are held in memory. */
const MAX_NAMES = 200_000
/** Directories whose places are remembered. */
const MAX_KNOWN = 10_000
/** Calls to the kernel before others get their turn: 3 us each, where a call by a thread costs 30. */
const CALLS_AT_ONCE = 64
const CHUNK = 256 * 1024
/** Such files are read in one call, 20 us with those around it; by a thread it is 150. */
const SMALL = 32 * 1024

/** Directories that one name of the merged tree stands for, topmost first; none where there is no such directory. */
type Places = readonly string[]

export class LayerTree implements Tree {
  readonly #known = new Map<string, Places>()
  readonly #breather = new Breather(CALLS_AT_ONCE)

  private constructor(
    /** Unpacked layers, topmost first. */
    private readonly layers: readonly string[],
    private readonly opaque: ReadonlyMap<string, ReadonlySet<string>>,
    private readonly signal: AbortSignal,
  ) {}

  /**
   * @param layers directories of unpacked layers, topmost first, as sandboxes mount them
   * @throws Failure build_failed for layers with too many extended attributes
   */
  static async open(layers: readonly string[], signal: AbortSignal): Promise<LayerTree> {
    const opaque = new Map<string, ReadonlySet<string>>()
    let bytes = 0
    // There is nothing that the lowest could hide.
    for (const layer of layers.slice(0, -1)) {
      const attributes = await attributesOf(layer, signal)
      bytes += attributes.bytes
      if (bytes > MAX_HELD_BYTES) throw tooMany()
      opaque.set(layer, attributes.opaque)
    }
    return new LayerTree(layers, opaque, signal)
  }

  async lstat(path: string): Promise<TreeNode | undefined> {
    const found = await this.#find(path)
    return found && nodeOf(found.stats, found.place)
  }

  async list(path: string): Promise<readonly string[]> {
    const names = new Set<string>()
    const hidden = new Set<string>()
    for (const place of await this.#places(path)) {
      for await (const entry of await opendir(place, { bufferSize: 1024 })) {
        const { name } = entry
        if (names.has(name) || hidden.has(name)) continue
        if (name.includes('\uFFFD')) throw new Failure('build_failed', `/${path}: a name in it is not UTF-8`)
        if (isWhiteout(entry)) hidden.add(name)
        else names.add(name)
        if (names.size + hidden.size > MAX_NAMES)
          throw new Failure('build_failed', `/${path}: more than ${MAX_NAMES} names`)
      }
      this.signal.throwIfAborted()
    }
    return [...names].sort()
  }

  async *read(path: string): AsyncGenerator<Uint8Array> {
    const found = await this.#find(path)
    if (!found?.stats.isFile()) throw new Failure('build_failed', `/${path}: no file`)
    if (found.stats.size <= SMALL) {
      yield readWhole(found.place, found.stats.size)
      return
    }
    const file = await open(found.place, constants.O_RDONLY | constants.O_NOFOLLOW)
    try {
      for (let left = found.stats.size; left > 0; ) {
        this.signal.throwIfAborted()
        const { buffer, bytesRead } = await file.read(Buffer.allocUnsafe(Math.min(left, CHUNK)), 0)
        invariant(bytesRead > 0, 'layers do not change')
        left -= bytesRead
        yield buffer.subarray(0, bytesRead)
      }
    } finally {
      await file.close()
    }
  }

  async attributes(path: string): Promise<Attributes> {
    const found = await this.#find(path)
    const layer = found && this.#layerOf(found.place, path)
    if (layer === undefined) return {}
    const { kept } = await attributesOf(layer, this.signal)
    return kept.get(path) ?? {}
  }

  /** The topmost thing under a name, unless that hides it. */
  async #find(path: string): Promise<{ readonly stats: Stats; readonly place: string } | undefined> {
    const name = nameOf(path)
    for (const above of path === '' ? this.layers : await this.#places(parentOf(path))) {
      const place = join(above, name)
      const stats = await this.#lstat(place)
      if (stats) return isWhiteout(stats) ? undefined : { stats, place }
    }
    return undefined
  }

  /** As overlayfs merges: down to what is opaque, or no directory. */
  async #places(path: string): Promise<Places> {
    if (path === '') return this.layers
    const known = this.#known.get(path)
    if (known) return known
    const places: string[] = []
    const name = nameOf(path)
    for (const above of await this.#places(parentOf(path))) {
      const place = join(above, name)
      const stats = await this.#lstat(place)
      if (!stats) continue
      if (!stats.isDirectory()) break
      places.push(place)
      if (this.opaque.get(this.#layerOf(place, path) ?? '')?.has(path)) break
    }
    if (this.#known.size >= MAX_KNOWN) this.#known.clear()
    this.#known.set(path, places)
    return places
  }

  #layerOf(place: string, path: string): string | undefined {
    return this.layers.find((layer) => join(layer, path) === place)
  }

  async #lstat(place: string): Promise<Stats | undefined> {
    const turn = this.#breather.next()
    if (turn) {
      await turn
      this.signal.throwIfAborted()
    }
    try {
      return lstatSync(place, { throwIfNoEntry: false })
    } catch (error) {
      // Names that no file system takes are not there.
      return ignore(error, 'ENAMETOOLONG', 'ENOTDIR')
    }
  }
}

function readWhole(place: string, size: number): Uint8Array {
  const file = openSync(place, constants.O_RDONLY | constants.O_NOFOLLOW)
  try {
    const bytes = Buffer.allocUnsafe(size)
    invariant(readSync(file, bytes, 0, size, 0) === size, 'layers do not change')
    return bytes
  } finally {
    closeSync(file)
  }
}

/** Devices are in no layer but for these: overlayfs.rst, "whiteouts and opaque directories". */
const isWhiteout = (found: Stats | Dirent) => found.isCharacterDevice()

function nodeOf(stats: Stats, place: string): TreeNode {
  const { uid, gid, nlink, ino, dev } = stats
  const common = { mode: stats.mode & 0o7777, uid, gid, mtimeMs: Math.trunc(stats.mtimeMs) }
  if (stats.isDirectory()) return { type: 'directory', size: 0, ...common }
  if (stats.isSymbolicLink()) return { type: 'symlink', size: 0, ...common, target: readlinkSync(place) }
  if (stats.isFIFO()) return { type: 'fifo', size: 0, ...common }
  if (!stats.isFile()) return { type: 'other', size: 0, ...common }
  return { type: 'file', size: stats.size, ...common, ...(nlink > 1 ? { inode: `${dev}:${ino}` } : {}) }
}

interface LayerAttributes {
  /** Paths of opaque directories. */
  readonly opaque: ReadonlySet<string>
  readonly kept: ReadonlyMap<string, Attributes>
  /** What it takes in memory, about. */
  readonly bytes: number
}

/** By layer, the latest last. A layer's are read once, at 10 us for each of its files. */
const known = new Map<string, { readonly attributes: Promise<LayerAttributes>; bytes: number }>()
const MAX_KNOWN_LAYERS = 200
/** Of all that are known, of those of one tree, and of getfattr for one layer: whoever makes layers says how many. */
const MAX_KNOWN_BYTES = 256 * MiB
const MAX_HELD_BYTES = 32 * MiB
const MAX_ATTRIBUTE_BYTES = 4 * MiB
/** Of one file's, besides their text. */
const BYTES_EACH = 300
const OPAQUE = 'trusted.overlay.opaque'

const tooMany = () => new Failure('build_failed', 'the layers have too many extended attributes')

function attributesOf(layer: string, signal: AbortSignal): Promise<LayerAttributes> {
  const found = known.get(layer)
  known.delete(layer)
  // Several may wait for it: that one gives up is nothing to the others.
  const one = found ?? { attributes: readAttributes(layer), bytes: 0 }
  known.set(layer, one)
  if (!found)
    one.attributes.then(
      ({ bytes }) => {
        one.bytes = bytes
        forgetOldest()
      },
      () => known.get(layer) === one && known.delete(layer),
    )
  forgetOldest()
  return abortable(one.attributes, signal)
}

function forgetOldest(): void {
  let held = [...known.values()].reduce((sum, { bytes }) => sum + bytes, 0)
  for (const [layer, { bytes }] of known) {
    if (known.size <= MAX_KNOWN_LAYERS && held <= MAX_KNOWN_BYTES) return
    known.delete(layer)
    held -= bytes
  }
}

/** By a program, since Node has no call for it; it follows no link. */
async function readAttributes(layer: string): Promise<LayerAttributes> {
  const wanted = '^(trusted\\.overlay\\.opaque|security\\.capability|user\\..*)$'
  const argv = ['getfattr', '--recursive', '--physical', '--no-dereference', '--dump', `--match=${wanted}`] as const
  const options = { cwd: layer, timeoutMs: 600_000, maxOutputBytes: MAX_ATTRIBUTE_BYTES }
  const result = await run([...argv, '--encoding=base64', '.'], options)
  if (result.truncated) throw tooMany()
  const attributes = parseAttributes(expectSuccess(result).stdout)
  if (attributes.bytes > MAX_HELD_BYTES) throw tooMany()
  return attributes
}

/** What getfattr --dump --encoding=base64 wrote; paths come as ./a/b or a/b, with octal escapes. */
export function parseAttributes(dump: string): LayerAttributes {
  const opaque = new Set<string>()
  const kept = new Map<string, Attributes>()
  for (const block of dump.split('\n\n')) {
    const [head = '', ...lines] = block.split('\n')
    const written = unescaped(head.replace(/^# file: /, '')).replace(/^\.\/?/, '')
    const attributes: Record<string, string> = {}
    for (const line of lines) {
      const at = line.indexOf('=0s')
      const name = unescaped(line.slice(0, at))
      if (at < 0) continue
      if (name === OPAQUE) opaque.add(written)
      else attributes[name] = line.slice(at + 3)
    }
    if (Object.keys(attributes).length > 0) kept.set(written, attributes)
  }
  return { opaque, kept, bytes: dump.length + BYTES_EACH * (opaque.size + kept.size) }
}
