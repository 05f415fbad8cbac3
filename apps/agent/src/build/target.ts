// target.ts: what a layer that is being made puts onto the tree below it. A layer holds its own entries and the
// directories on the way to them: one that is there below comes with what it has there, since an overlay shows the
// upper one's owner and mode.
import { Failure, invariant, MiB } from '@berth/contracts'
import { type Attributes, below, nameOf, parentOf, type Tree, type TreeNode } from './tree.js'

interface Owner {
  readonly uid: number
  readonly gid: number
}

/** An entry of a layer; each comes after the directory that it is in. */
export type Entry = Owner & {
  /** In the image, without a slash before it. */
  readonly path: string
  readonly mode: number
  readonly mtimeMs: number
  readonly attributes: Attributes
} & (
    | { readonly type: 'directory' /** It is there below, and is as it was. */; readonly isKept: boolean }
    | FileEntry
    | { readonly type: 'symlink'; readonly target: string }
    /** Another name of a file that came before. */
    | { readonly type: 'link'; readonly target: string }
    | { readonly type: 'fifo' }
  )

export interface FileEntry {
  readonly type: 'file'
  readonly size: number
  /** SHA-256 in hex, where it is known. */
  readonly digest: string | undefined
  /** The bytes, once for each call. */
  read(): AsyncIterable<Uint8Array>
}

interface Made {
  readonly type: TreeNode['type']
  readonly target?: string
  /** The entry that made it, counted from 1: what was in its place before is gone. 0: it is there below, and shows. */
  readonly since: number
}

/** Of one layer. */
const MAX_ENTRIES = 500_000
/** Of all paths in it together: what is done for one takes time by its length and its depth. */
const MAX_NAME_BYTES = 64 * MiB
const MAX_DEPTH = 512

const merged: Made = { type: 'directory', since: 0 }

export class Target {
  readonly #made = new Map<string, Made>()
  #entries = 0
  #nameBytes = 0
  /** What was found of the directory that was asked for last. */
  #last: { readonly directory: string; readonly since: number } | undefined

  /**
   * @param remembers false: no name comes twice, so that files need not be remembered
   * @param newestMs of what is made newly
   */
  constructor(
    private readonly onto: Tree,
    private readonly remembers: boolean,
    private readonly newestMs: number,
  ) {}

  /** What is there now. */
  async lstat(path: string): Promise<Pick<TreeNode, 'type' | 'target'> | undefined> {
    const made = this.#made.get(path)
    if (path !== '' && this.#since(parentOf(path)) > (made?.since ?? 0)) return undefined
    return made ?? this.onto.lstat(path)
  }

  /** Entries before this one are in no such directory any more; infinite where something on the way is no directory. */
  #since(directory: string): number {
    if (this.#last?.directory === directory) return this.#last.since
    let since = 0
    for (let above = directory; above !== ''; above = parentOf(above)) {
      const way = this.#made.get(above)
      since = Math.max(since, way && way.type !== 'directory' ? Number.POSITIVE_INFINITY : (way?.since ?? 0))
      // Ways are gone from above to below.
      if (this.#last?.directory !== parentOf(above)) continue
      since = Math.max(since, this.#last.since)
      break
    }
    this.#last = { directory, since }
    return since
  }

  /** Whether the layer itself has it. */
  async has(path: string): Promise<boolean> {
    return (await this.lstat(path)) !== undefined && (this.#made.get(path)?.since ?? 0) > 0
  }

  /**
   * What a layer needs for an entry, the entry last; whatever is there gives way.
   * @throws Failure build_failed for names that mean something else in a layer, and for too many
   */
  async *put(entry: Entry): AsyncGenerator<Entry> {
    if (nameOf(entry.path).startsWith('.wh.'))
      throw new Failure('build_failed', `/${entry.path}: no layer can have a name that begins with .wh.`)
    if (entry.path.split('/').length > MAX_DEPTH)
      throw new Failure('build_failed', `more than ${MAX_DEPTH} directories deep`)
    yield* this.#way(parentOf(entry.path))
    const since = this.#entries + 1
    if (this.#last && `${this.#last.directory}/`.startsWith(`${entry.path}/`)) this.#last = undefined
    if (entry.type === 'directory') {
      const there = await this.lstat(entry.path)
      const stays = there?.type === 'directory' ? (this.#made.get(entry.path)?.since ?? 0) : since
      this.#made.set(entry.path, { type: 'directory', since: stays })
    } else if (entry.type === 'symlink') this.#made.set(entry.path, { type: 'symlink', target: entry.target, since })
    else if (this.remembers) this.#made.set(entry.path, { type: 'file', since })
    yield this.#counted(entry)
  }

  /**
   * Directories that are missing, 0755; links must have been followed.
   * @throws Failure build_failed where something else is on the way
   */
  async *makeDirectories(path: string, { uid, gid }: Owner): AsyncGenerator<Entry> {
    if ((await this.lstat(path))?.type === 'directory') return
    let at = ''
    for (const part of path === '' ? [] : path.split('/')) {
      at = below(at, part)
      const there = await this.lstat(at)
      if (there && there.type !== 'directory') throw new Failure('build_failed', `/${at} is there, and is no directory`)
      const directory = { type: 'directory', isKept: false, path: at, mode: 0o755, uid, gid, attributes: {} } as const
      if (!there) yield* this.put({ ...directory, mtimeMs: this.newestMs })
    }
  }

  /** The directories on the way as they are below, unless the layer has them. */
  async *#way(path: string): AsyncGenerator<Entry> {
    // Then those above it are.
    if (this.#made.has(path)) return
    let at = ''
    for (const part of path === '' ? [] : path.split('/')) {
      at = below(at, part)
      if (this.#made.has(at)) continue
      const node = await this.onto.lstat(at)
      invariant(node?.type === 'directory', 'what is not there is made before anything is put in it')
      this.#made.set(at, merged)
      const { mode, uid, gid, mtimeMs } = node
      const attributes = await this.onto.attributes(at)
      yield this.#counted({ type: 'directory', isKept: true, path: at, mode, uid, gid, mtimeMs, attributes })
    }
  }

  #counted(entry: Entry): Entry {
    if (++this.#entries > MAX_ENTRIES)
      throw new Failure('build_failed', `more than ${MAX_ENTRIES} files and directories in one layer`)
    this.#nameBytes += entry.path.length
    if (this.#nameBytes > MAX_NAME_BYTES)
      throw new Failure('build_failed', 'the names in one layer are too long together')
    return entry
  }
}
