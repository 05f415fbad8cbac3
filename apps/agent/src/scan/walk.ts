// walk.ts: the files of an image that somebody wants, in the merged view of its layers as overlayfs gives it, without
// mounting anything. Layers never change once they are unpacked, and a name is descended into only where its own layer
// says that it is a directory: no link is ever followed, so none leads out. What is hidden (by a whiteout, by something
// else of that name, by an opaque directory) is not found.
//
// Images are made by strangers: entries, entries of one directory, depth and files found are bounded, and what is left out
// is told.
import type { Dirent } from 'node:fs'
import { lstat, opendir } from 'node:fs/promises'
import { join } from 'node:path'
import { errnoOf, ignore } from '@berth/contracts'
import { expectSuccess, run, unescaped } from '@berth/host'

export interface WalkLimits {
  readonly entries: number
  readonly entriesOfOne: number
  readonly depth: number
  readonly files: number
}

export const walkLimits: WalkLimits = { entries: 1_000_000, entriesOfOne: 100_000, depth: 64, files: 50_000 }

/** A file of the merged view. */
export interface WalkedFile {
  /** Relative to the root, without a slash before it. */
  readonly path: string
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

/** One directory of the merged view. */
interface Place {
  readonly path: string
  readonly depth: number
  /** Layers that make it up, topmost first. */
  readonly layers: readonly number[]
}

type Kind = 'directory' | 'file' | 'whiteout' | 'other'

/**
 * Looks through layers.
 * @param layers directories, topmost first
 * @param isWanted told paths of regular files
 * @throws what `signal` is aborted with; Fault when a layer cannot be read
 */
export async function walk(
  layers: readonly string[],
  isWanted: (path: string) => boolean,
  signal: AbortSignal,
  limits = walkLimits,
): Promise<Walked> {
  const opaque: Attributes[] = []
  // Of the lowest it does not matter what it hides.
  for (const layer of layers.slice(0, -1)) opaque.push(await opaqueDirectories(layer, signal))
  const walker = new Walker(layers, opaque, isWanted, limits)
  return walker.walk(signal)
}

class Walker {
  private readonly files: WalkedFile[] = []
  private readonly omitted = new Set<string>()
  private readonly waiting: Place[] = []
  private entries = 0

  constructor(
    private readonly layers: readonly string[],
    /** Of each layer, its opaque directories. */
    private readonly opaque: readonly Attributes[],
    private readonly isWanted: (path: string) => boolean,
    private readonly limits: WalkLimits,
  ) {}

  async walk(signal: AbortSignal): Promise<Walked> {
    if (this.opaque.some(({ cut }) => cut)) this.omit('that directories are replaced whole, where many are')
    this.waiting.push({ path: '', depth: 0, layers: this.shown('', [...this.layers.keys()]) })
    while (this.waiting.length > 0) {
      signal.throwIfAborted()
      // The last ones first: what waits stays as little as the tree is deep.
      await Promise.all(this.waiting.splice(-AT_ONCE).map((place) => this.visit(place)))
    }
    const files = this.files.sort((a, b) => (a.path < b.path ? -1 : 1))
    return { files, omitted: [...this.omitted].sort() }
  }

  /** What of a directory's layers is seen: none below one in which it is opaque. */
  private shown(path: string, layers: readonly number[]): readonly number[] {
    const end = layers.findIndex((layer) => this.opaque[layer]?.paths.has(path))
    return end < 0 ? layers : layers.slice(0, end + 1)
  }

  private async visit(place: Place): Promise<void> {
    const names = new Map<string, { kind: Kind; layers: number[]; ended: boolean }>()
    for (const layer of place.layers) {
      const entries = await this.read(layer, place.path)
      for (const [name, kind] of entries) {
        const known = names.get(name)
        if (!known) names.set(name, { kind, layers: [layer], ended: kind === 'whiteout' || kind === 'other' })
        else if (known.ended) continue
        else if (known.kind === kind) known.layers.push(layer)
        else known.ended = true
      }
    }
    for (const [name, { kind, layers }] of names) this.found(place, name, kind, layers)
  }

  private found(place: Place, name: string, kind: Kind, layers: readonly number[]): void {
    const path = place.path === '' ? name : `${place.path}/${name}`
    if (kind === 'directory') {
      if (place.depth >= this.limits.depth) this.omit(`directories deeper than ${this.limits.depth}`)
      else this.waiting.push({ path, depth: place.depth + 1, layers: this.shown(path, layers) })
    } else if (kind === 'file' && this.isWanted(path)) {
      if (this.files.length >= this.limits.files) this.omit(`files after the first ${this.limits.files}`)
      else this.files.push({ path, layers })
    }
  }

  /** Names of a directory of one layer, as far as limits let it. */
  private async read(layer: number, path: string): Promise<ReadonlyMap<string, Kind>> {
    const found = new Map<string, Kind>()
    const at = join(this.layers[layer] ?? '', path)
    // A name that is no UTF-8 is not read as it is, so nothing is there under what was read; and the layer's own place
    // comes before a path that is as long as can be.
    const directory = await opendir(at, { bufferSize: 256 }).catch((error: unknown) =>
      ignore(error, 'ENOENT', 'ENAMETOOLONG'),
    )
    if (!directory) {
      this.omit('directories whose path is too long, or not UTF-8')
      return found
    }
    for await (const entry of directory) {
      if (found.size >= this.limits.entriesOfOne) {
        this.omit(`entries of a directory after the first ${this.limits.entriesOfOne}`)
        break
      }
      if (this.entries >= this.limits.entries) {
        this.omit(`entries after the first ${this.limits.entries}`)
        break
      }
      this.entries++
      found.set(entry.name, await kindOf(entry, at))
    }
    return found
  }

  private omit(what: string): void {
    this.omitted.add(what)
  }
}

async function kindOf(entry: Dirent, directory: string): Promise<Kind> {
  if (entry.isDirectory()) return 'directory'
  if (entry.isFile()) return 'file'
  if (!entry.isCharacterDevice()) return 'other'
  const { rdev } = await lstat(join(directory, entry.name)).catch((error: unknown) => {
    if (errnoOf(error) === 'ENOENT') return { rdev: -1 }
    throw error
  })
  return rdev === 0 ? 'whiteout' : 'other'
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
  const { stdout, truncated } = expectSuccess(await run(argv, { cwd: layer, ...limits, signal }))
  return { paths: parseAttributes(stdout), cut: truncated }
}

/** Paths that getfattr(1) tells of; control characters, backslashes and what is not ASCII it writes as `\ooo`. */
export function parseAttributes(text: string): ReadonlySet<string> {
  const paths = [...text.matchAll(/^# file: (.*)$/gm)].map(([, path = '']) => unescaped(path))
  return new Set(paths.map((path) => (path === '.' ? '' : path.replace(/^\.\//, ''))))
}
