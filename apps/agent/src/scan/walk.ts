// walk.ts: the files of an image that somebody wants, in the merged view of its layers as overlayfs gives it, without
// mounting anything. Layers never change once they are unpacked, and a name is descended into only where its own layer
// says that it is a directory: the kernel follows no link of an image. What is hidden (by a whiteout, by something else of
// that name, by an opaque directory) is not found.
//
// A container follows links, so what it would find by one of a name that is wanted is found here too: the link's text is
// read, and looked up name by name in the merged view, from its root, which `..` does not leave (see `Walker.resolve`).
//
// Names are bytes, a character each (latin1): what is no UTF-8 hides nothing, and is not taken for something else.
//
// Images are made by strangers: entries, entries of one directory, depth, links and files found are bounded, and what is
// left out is told.
import type { Dirent, Stats } from 'node:fs'
import { lstat, opendir, readlink } from 'node:fs/promises'
import { ignore } from '@berth/contracts'
import { expectSuccess, run, unescapedBytes } from '@berth/host'

export interface WalkLimits {
  readonly entries: number
  readonly entriesOfOne: number
  readonly depth: number
  readonly files: number
  readonly links: number
  /** Names that all links together lead through. */
  readonly steps: number
}

export const walkLimits: WalkLimits = {
  ...{ entries: 1_000_000, entriesOfOne: 100_000, depth: 64, files: 50_000, links: 50_000, steps: 5_000_000 },
}

/** What is looked for; paths are relative to the root. */
export interface Wanted {
  readonly file: (path: string) => boolean
  /**
   * Whether something wanted may be in a directory because of its name: then it is looked for where a link of that name
   * leads. The same text for all directories in which the same is looked for.
   */
  readonly place: (path: string) => string | undefined
}

/** A file of the merged view. */
export interface WalkedFile {
  /** As it is wanted: relative to the root, without a slash before it. */
  readonly path: string
  /** Where it is, in each of its layers; another path where links lead there. */
  readonly real: string
  /** Indices of the layers that have it as a regular file, topmost first: the first one is what a container sees. */
  readonly layers: readonly number[]
}

export interface Walked {
  /** Sorted by path. */
  readonly files: readonly WalkedFile[]
  /** What was left out. */
  readonly omitted: readonly string[]
}

/** Directories that are read at once. */
const AT_ONCE = 4
const ATTRIBUTES_MS = 60_000
const ATTRIBUTES_BYTES = 16 * 1024 * 1024
/** As path_resolution(7) has it. */
const MOST_LINKS = 40

/** One directory of the merged view. */
interface Directory {
  /** Where it is. */
  readonly real: string
  /** Layers that make it up, topmost first. */
  readonly layers: readonly number[]
}

/** A directory that is looked through. */
interface Place extends Directory {
  readonly path: string
  readonly depth: number
}

type Kind = 'directory' | 'file' | 'link' | 'whiteout' | 'other'

interface Found {
  readonly kind: Kind
  readonly layers: readonly number[]
}

interface Link extends Omit<Place, 'layers'> {
  /** Where it is. */
  readonly directory: Directory
  readonly name: string
}

/** The path of something in a layer, as the kernel takes it. */
export const bytesOf = (layer: string, real: string): Buffer =>
  Buffer.concat([Buffer.from(`${layer}/`), Buffer.from(real, 'latin1')])

const below = (directory: string, name: string): string => (directory === '' ? name : `${directory}/${name}`)

/**
 * Looks through layers.
 * @param layers directories, topmost first
 * @throws what `signal` is aborted with; Fault when a layer cannot be read
 */
export async function walk(
  layers: readonly string[],
  wanted: Wanted,
  signal: AbortSignal,
  limits = walkLimits,
): Promise<Walked> {
  const opaque: Attributes[] = []
  // Of the lowest it does not matter what it hides.
  for (const layer of layers.slice(0, -1)) opaque.push(await opaqueDirectories(layer, signal))
  const walker = new Walker(layers, opaque, wanted, limits)
  return walker.walk(signal)
}

class Walker {
  private readonly files: WalkedFile[] = []
  private readonly omitted = new Set<string>()
  private readonly waiting: Place[] = []
  private readonly links: Link[] = []
  private entries = 0
  private steps = 0
  /** Directories on the way of links, by where they are. */
  private readonly known = new Map<string, Promise<Found>>()
  /** Where links have led to, and what was looked for there. */
  private readonly seen = new Set<string>()

  constructor(
    private readonly layers: readonly string[],
    /** Of each layer, its opaque directories. */
    private readonly opaque: readonly Attributes[],
    private readonly wanted: Wanted,
    private readonly limits: WalkLimits,
  ) {}

  async walk(signal: AbortSignal): Promise<Walked> {
    if (this.opaque.some(({ cut }) => cut))
      this.omit('that directories are replaced whole, where many are or paths are long')
    this.waiting.push({ path: '', depth: 0, ...this.root() })
    while (this.waiting.length > 0) {
      signal.throwIfAborted()
      // The last ones first: what waits stays as little as the tree is deep.
      await Promise.all(this.waiting.splice(-AT_ONCE).map((place) => this.visit(place, true)))
    }
    // Links that are found where others lead come after those.
    for (let next = 0; next < this.links.length; next += AT_ONCE) {
      signal.throwIfAborted()
      await Promise.all(this.links.slice(next, next + AT_ONCE).map((link) => this.follow(link)))
    }
    const files = this.files.sort((a, b) => (a.path < b.path ? -1 : 1))
    return { files, omitted: [...this.omitted].sort() }
  }

  private root(): Directory {
    return { real: '', layers: this.shown('', [...this.layers.keys()]) }
  }

  /** What of a directory's layers is seen: none below one in which it is opaque. */
  private shown(real: string, layers: readonly number[]): readonly number[] {
    const end = layers.findIndex((layer) => this.opaque[layer]?.paths.has(real))
    return end < 0 ? layers : layers.slice(0, end + 1)
  }

  /** @param isWhole all that is below is looked at; else only what is wanted by its name */
  private async visit(place: Place, isWhole: boolean): Promise<void> {
    const names = new Map<string, { kind: Kind; layers: number[]; ended: boolean }>()
    for (const layer of place.layers) {
      for (const [name, kind] of await this.read(layer, place.real)) {
        const known = names.get(name)
        if (!known) names.set(name, { kind, layers: [layer], ended: kind !== 'directory' && kind !== 'file' })
        else if (known.ended) continue
        else if (known.kind === kind) known.layers.push(layer)
        else known.ended = true
      }
    }
    for (const [name, found] of names) {
      if (isWhole) this.found(place, name, found)
      else await this.foundByLink(place, name, found)
    }
  }

  private found(place: Place, name: string, { kind, layers }: Found): void {
    const path = below(place.path, name)
    const depth = place.depth + 1
    if (kind === 'directory') {
      if (depth > this.limits.depth) this.omit(`directories deeper than ${this.limits.depth}`)
      else this.waiting.push({ path, depth, real: path, layers: this.shown(path, layers) })
    } else if (kind === 'file' && this.wanted.file(path)) this.take({ path, real: path, layers })
    else if (kind === 'link') this.foundLink(place, name)
  }

  /** What is in a directory that a link leads to was looked at under the names that it has there. */
  private async foundByLink(place: Place, name: string, { kind, layers }: Found): Promise<void> {
    const [path, real] = [below(place.path, name), below(place.real, name)]
    if (kind === 'file' && this.wanted.file(path) && !this.wanted.file(real)) this.take({ path, real, layers })
    if (kind === 'directory') await this.enter({ path, depth: place.depth + 1, real, layers: this.shown(real, layers) })
    if (kind === 'link') this.foundLink(place, name)
  }

  private foundLink({ path: parent, depth, real, layers }: Place, name: string): void {
    const path = below(parent, name)
    if (!this.wanted.file(path) && this.wanted.place(path) === undefined) return
    if (this.links.length >= this.limits.links) this.omit(`links after the first ${this.limits.links}`)
    else this.links.push({ path, depth: depth + 1, real: below(real, name), directory: { real, layers }, name })
  }

  private take(file: WalkedFile): void {
    if (this.files.length >= this.limits.files) this.omit(`files after the first ${this.limits.files}`)
    else this.files.push(file)
  }

  private async follow({ path, depth, directory, name }: Link): Promise<void> {
    const target = await this.resolve(directory, name)
    if (target?.kind === 'directory') return this.enter({ path, depth, real: target.real, layers: target.layers })
    if (target?.kind !== 'file' || !this.wanted.file(path) || this.wanted.file(target.real)) return
    this.take({ path, real: target.real, layers: target.layers })
  }

  /** Looks for what is wanted by a name in a directory that has another. */
  private async enter(place: Place): Promise<void> {
    const wanted = this.wanted.place(place.path)
    if (wanted === undefined || wanted === this.wanted.place(place.real)) return
    const key = `${wanted}\0${place.real}`
    if (this.seen.has(key)) return
    this.seen.add(key)
    if (place.depth > this.limits.depth) this.omit(`directories deeper than ${this.limits.depth}`)
    else await this.visit(place, false)
  }

  /** What a name in a directory leads to, through links; undefined where that is nothing. */
  private async resolve(directory: Directory, name: string): Promise<(Found & Directory) | undefined> {
    const root = this.root()
    const way: Directory[] = []
    // All of these are directories, as they were found to be.
    for (const part of directory.real.split('/').filter((text) => text !== '')) {
      const above = way.at(-1) ?? root
      way.push({ real: below(above.real, part), layers: (await this.look(above, part)).layers })
    }
    const rest = [name]
    let links = 0
    for (;;) {
      if (this.steps++ >= this.limits.steps) {
        this.omit(`links after the first ${this.limits.steps} names that they lead through`)
        return undefined
      }
      const next = rest.pop()
      const here = way.at(-1) ?? root
      if (next === undefined) return { kind: 'directory', ...here }
      if (next === '' || next === '.') continue
      if (next === '..') {
        way.pop()
        continue
      }
      const found = await this.look(here, next)
      const real = below(here.real, next)
      const [top] = found.layers
      if (found.kind === 'directory') way.push({ real, layers: found.layers })
      else if (found.kind === 'file') return rest.length === 0 ? { ...found, real } : undefined
      else if (found.kind !== 'link' || top === undefined || ++links > MOST_LINKS) return undefined
      else {
        const text = await readlink(bytesOf(this.layers[top] ?? '', real), 'latin1')
        if (text.startsWith('/')) way.length = 0
        rest.push(...text.split('/').reverse())
      }
    }
  }

  /** What a name in a directory of the merged view is; `whiteout` where it is nothing. Asked for again it costs nothing. */
  private look(directory: Directory, name: string): Promise<Found> {
    const real = below(directory.real, name)
    const found = this.known.get(real) ?? this.lookAt(directory, real)
    this.known.set(real, found)
    return found
  }

  private async lookAt(directory: Directory, real: string): Promise<Found> {
    const layers: number[] = []
    let kind: Kind = 'whiteout'
    for (const layer of directory.layers) {
      if (!this.count()) break
      const stats = await lstat(bytesOf(this.layers[layer] ?? '', real)).catch((error: unknown) =>
        ignore(error, 'ENOENT', 'ENAMETOOLONG'),
      )
      if (!stats) continue
      const its = kindOfStats(stats)
      if (layers.length > 0 && its !== kind) break
      kind = its
      layers.push(layer)
      if (kind !== 'directory' && kind !== 'file') break
    }
    return { kind, layers: kind === 'directory' ? this.shown(real, layers) : layers }
  }

  /** Names of a directory of one layer, as far as limits let it. */
  private async read(layer: number, real: string): Promise<ReadonlyMap<string, Kind>> {
    const found = new Map<string, Kind>()
    const at = bytesOf(this.layers[layer] ?? '', real)
    // The layer's own place comes before a path that is as long as can be.
    const directory = await opendir(at, { bufferSize: 256, encoding: 'latin1' }).catch((error: unknown) =>
      ignore(error, 'ENAMETOOLONG'),
    )
    if (!directory) {
      this.omit('directories whose path is too long')
      return found
    }
    for await (const entry of directory) {
      if (found.size >= this.limits.entriesOfOne) {
        this.omit(`entries of a directory after the first ${this.limits.entriesOfOne}`)
        break
      }
      if (!this.count()) break
      found.set(entry.name, await this.kindOf(entry, layer, real))
    }
    return found
  }

  private async kindOf(entry: Dirent, layer: number, real: string): Promise<Kind> {
    if (entry.isDirectory()) return 'directory'
    if (entry.isFile()) return 'file'
    if (entry.isSymbolicLink()) return 'link'
    if (!entry.isCharacterDevice()) return 'other'
    const stats = await lstat(bytesOf(this.layers[layer] ?? '', below(real, entry.name))).catch((error: unknown) =>
      ignore(error, 'ENAMETOOLONG'),
    )
    return stats ? kindOfStats(stats) : 'other'
  }

  /** Whether one more entry may be looked at. */
  private count(): boolean {
    if (this.entries++ < this.limits.entries) return true
    this.omit(`entries after the first ${this.limits.entries}`)
    return false
  }

  private omit(what: string): void {
    this.omitted.add(what)
  }
}

function kindOfStats(stats: Stats): Kind {
  if (stats.isDirectory()) return 'directory'
  if (stats.isFile()) return 'file'
  if (stats.isSymbolicLink()) return 'link'
  return stats.isCharacterDevice() && stats.rdev === 0 ? 'whiteout' : 'other'
}

interface Attributes {
  readonly paths: ReadonlySet<string>
  /** There are more. */
  readonly cut: boolean
}

/** Directories of a layer that hide what lower ones have there. */
async function opaqueDirectories(layer: string, signal: AbortSignal): Promise<Attributes> {
  const match = '--match=^trusted\\.overlay\\.opaque$'
  const argv = ['getfattr', '--recursive', '--physical', '--no-dereference', match, '.'] as const
  const limits = { timeoutMs: ATTRIBUTES_MS, maxOutputBytes: ATTRIBUTES_BYTES }
  const result = await run(argv, { cwd: layer, ...limits, encoding: 'latin1', signal })
  // It goes on after a path that is too long for it, and says so with 1.
  if (result.exitCode !== 1) expectSuccess(result)
  return { paths: parseAttributes(result.stdout), cut: result.truncated || result.exitCode !== 0 }
}

/** Paths that getfattr(1) tells of. */
export function parseAttributes(text: string): ReadonlySet<string> {
  const paths = [...text.matchAll(/^# file: (.*)$/gm)].map(([, path = '']) => unescapedBytes(path))
  return new Set(paths.map((path) => (path === '.' ? '' : path.replace(/^\.\//, ''))))
}
