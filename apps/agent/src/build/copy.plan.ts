// copy.plan.ts: COPY and ADD: what of one tree comes where in another, by the rules of BuildKit (solver/llbsolver/file,
// tonistiigi/fsutil/copy).
//
//   - A source's own links are followed, in its tree; links below a directory that is copied are copied as links.
//   - Of a directory what is in it is copied. A file goes into a directory that is there, or where a slash is at the end.
//   - The way to the destination is followed, in the image; what is missing of it is made, 0755, and belongs to --chown.
//   - A file never replaces a directory, nor a directory a file or a link.
//   - Directories that are there get what they are copied over by; the one that all is copied into does not.
//   - A wildcard that matches nothing copies nothing. All else that is not there is an error.
import { Failure } from '@berth/contracts'
import { type CopyOp, type Ignore, ignorePatterns } from '@berth/oci'
import { type Accounts, identify, UserNotFound } from '../runtime/identity.js'
import type { Entry, Target } from './target.js'
import { Breather, below, clamped, follow, nameOf, parentOf, rootNode, type Tree, type TreeNode } from './tree.js'

export type CopyRequest = Pick<
  CopyOp,
  'sources' | 'inline' | 'destination' | 'chown' | 'chmod' | 'link' | 'extract' | 'exclude' | 'parents'
>

export interface Owner {
  readonly uid: number
  readonly gid: number
}

/** An entry, or an archive of the source tree that is to be unpacked into a directory, which is there by then. */
export type CopyStep = Entry | { readonly type: 'unpack'; readonly source: string; readonly directory: string }

export interface CopyPlan {
  readonly op: CopyRequest
  readonly from: Tree
  readonly target: Target
  /** Of everything that is copied or made; undefined: files keep theirs, what is made is root's. */
  readonly owner: Owner | undefined
  /** Of what is made newly. */
  readonly newestMs: number
  /** The one source is a path, whatever is in its name. */
  readonly isLiteral?: boolean
  /** Whether a file of the source tree is an archive; asked for ADD only. */
  isArchive(path: string): Promise<boolean>
}

const failed = (message: string) => new Failure('build_failed', message)
const root: Owner = { uid: 0, gid: 0 }
const MAX_MATCHES = 100_000

/** Whether a name can come twice, or archives bring their own. */
export const mayRepeat = ({ sources, inline, extract }: CopyRequest): boolean =>
  extract || sources.length + inline.length > 1 || sources.some(hasWildcard)

/**
 * `user[:group]`, by name or number, as COPY --chown takes it: a number alone is the group's too.
 * @param accounts of the image that is copied onto
 * @throws Failure build_failed for a name that is not in it
 */
export function ownerOf(chown: string, accounts: Accounts): Owner {
  try {
    const { uid, gid } = identify(chown, accounts, 2 ** 32 - 1)
    return { uid, gid: /^\d+$/.test(chown) ? uid : gid }
  } catch (error) {
    if (error instanceof UserNotFound) throw failed(error.message)
    throw error
  }
}

/** Whether names are looked up for it. */
export const namesOwner = (chown: string): boolean => !/^\d+(:\d+)?$/.test(chown)

/** @throws Failure build_failed for what cannot be copied, naming it */
export async function* planCopy(plan: CopyPlan): AsyncGenerator<CopyStep> {
  const copying = new Copying(plan)
  for (const source of plan.op.sources) yield* plan.op.parents ? copying.parents(source) : copying.source(source)
  for (const { name, data } of plan.op.inline) yield* copying.inline(name, Buffer.from(data))
}

/** A copy of one source. */
interface Walk {
  readonly source: string
  readonly destination: string
  /** Only what this says, `--parents`; `prefix` is the part of its pattern before the first wildcard. */
  readonly include?: { readonly matched: Ignore; readonly prefix: string }
  /** Paths in the layer of files with several names, by inode. */
  readonly links: Map<string, string>
}

/** A directory that is gone through. */
interface Frame {
  readonly path: string
  readonly names: readonly string[]
  next: number
  readonly node: TreeNode
  /** False while nothing of it is copied. */
  isMade: boolean
}

class Copying {
  readonly #exclude: Ignore | undefined
  readonly #mode: (mode: number, isDirectory: boolean) => number

  constructor(private readonly plan: CopyPlan) {
    const { exclude, chmod } = plan.op
    this.#exclude = exclude.length > 0 ? patterns('--exclude', exclude) : undefined
    this.#mode = chmod === null ? (mode) => mode : changedMode(chmod)
  }

  async *source(written: string): AsyncGenerator<CopyStep> {
    const { from, op, isLiteral = false } = this.plan
    const found = await matchesOf(from, written, isLiteral)
    const files = found.filter(({ node }) => node.type !== 'directory')
    if (files.length > 1 && !(await this.#endsInDirectory()))
      throw failed(`${quoted(written)} matches several files: the destination must end with "/"`)
    for (const { path, name, node } of found) {
      if (node.type !== 'directory' && this.#exclude?.ignores(name)) continue
      if (op.extract && node.type === 'file' && (await this.plan.isArchive(path))) {
        const directory = await follow(this.plan.target, op.destination)
        yield* this.#make(directory)
        yield { type: 'unpack', source: path, directory }
      } else if (node.type === 'directory') {
        yield* this.#walk({ source: path, destination: yield* this.#directory(), links: new Map() })
      } else {
        const walk = { source: path, destination: yield* this.#file(name), links: new Map() }
        yield* this.#leaf(walk, path, node, walk.destination)
      }
    }
  }

  /** `a/./b/c`: b/c of a, with b. */
  async *parents(written: string): AsyncGenerator<CopyStep> {
    const pivot = written.indexOf('/./')
    const pattern = clamped(pivot < 0 ? written : written.slice(pivot + 3))
    if (pattern === '') return yield* this.source(written)
    const bases = await matchesOf(this.plan.from, pivot < 0 ? '/' : written.slice(0, pivot))
    const isPlain = !hasWildcard(written)
    const prefix = pattern.split('/')
    const wild = prefix.findIndex(hasWildcard)
    const include = {
      matched: patterns(written, [pattern]),
      prefix: isPlain ? pattern : prefix.slice(0, wild < 0 ? undefined : wild).join('/'),
    }
    for (const { path, node } of bases) {
      if (isPlain && (node.type !== 'directory' || !(await this.plan.from.lstat(below(path, pattern)))))
        throw failed(`${quoted(written)}: not found`)
      if (node.type !== 'directory') continue
      yield* this.#walk({ source: path, destination: yield* this.#directory(), include, links: new Map() })
    }
  }

  async *inline(written: string, data: Buffer): AsyncGenerator<CopyStep> {
    const path = yield* this.#file(nameOf(clamped(written)))
    await this.#checkFree(path)
    yield* this.plan.target.put({
      ...{ type: 'file', path, mode: this.#mode(0o644, false), ...(this.plan.owner ?? root), attributes: {} },
      ...{ mtimeMs: this.plan.newestMs, size: data.length, digest: undefined },
      read: async function* () {
        yield data
      },
    })
  }

  async #endsInDirectory(): Promise<boolean> {
    const { op, target } = this.plan
    if (op.destination.endsWith('/')) return true
    return (await target.lstat(await follow(target, op.destination)))?.type === 'directory'
  }

  #make(path: string): AsyncGenerator<Entry> {
    return this.plan.target.makeDirectories(path, this.plan.owner ?? root)
  }

  /** Where what is in a directory goes. */
  async *#directory(): AsyncGenerator<Entry, string> {
    const path = await follow(this.plan.target, this.plan.op.destination)
    yield* this.#make(path)
    return path
  }

  /** Where a file of this name goes. */
  async *#file(name: string): AsyncGenerator<Entry, string> {
    const { target, op } = this.plan
    if (op.destination.endsWith('/')) yield* this.#make(await follow(target, op.destination))
    const path = await follow(target, op.destination)
    if ((await target.lstat(path))?.type === 'directory') return below(path, name)
    yield* this.#make(parentOf(path))
    return path
  }

  async *#walk(walk: Walk): AsyncGenerator<Entry> {
    const { from } = this.plan
    const enter = async (path: string, node: TreeNode, isMade: boolean): Promise<Frame> => {
      return {
        path,
        node,
        isMade,
        next: 0,
        names: await from.list(path === '' ? walk.source : below(walk.source, path)),
      }
    }
    const frames: Frame[] = [await enter('', rootNode, true)]
    for (let frame = frames.at(-1); frame; frame = frames.at(-1)) {
      const name = frame.names[frame.next++]
      if (name === undefined) {
        frames.pop()
        continue
      }
      const path = below(frame.path, name)
      const source = below(walk.source, path)
      const node = await from.lstat(source)
      if (!node) continue
      const isWanted = (walk.include?.matched.ignores(path) ?? true) && !this.#exclude?.ignores(path)
      // Whatever is above one that is made is made.
      if (isWanted && !frame.isMade) for (const above of frames) yield* this.#above(walk, above)
      if (isWanted && node.type === 'directory') yield* this.#over(walk, path, source, node)
      else if (isWanted) yield* this.#leaf(walk, source, node, below(walk.destination, path))
      if (node.type === 'directory' && (isWanted || this.#mayHold(walk, path)))
        frames.push(await enter(path, node, isWanted))
    }
  }

  /** Whether something below what is not copied itself may be. */
  #mayHold({ include }: Walk, path: string): boolean {
    if (this.#exclude?.ignores(path)) return this.#exclude.hasExceptions
    if (!include) return true
    return (
      `${path}/`.startsWith(include.prefix === '' ? '' : `${include.prefix}/`) || include.prefix.startsWith(`${path}/`)
    )
  }

  /** A directory of which something is copied, while it is not itself: as in its tree, unless it is there. */
  async *#above(walk: Walk, frame: Frame): AsyncGenerator<Entry> {
    if (frame.isMade) return
    frame.isMade = true
    const there = await this.plan.target.lstat(below(walk.destination, frame.path))
    if (there?.type !== 'directory') yield* this.#over(walk, frame.path, below(walk.source, frame.path), frame.node)
  }

  async *#over(walk: Walk, path: string, source: string, node: TreeNode): AsyncGenerator<Entry> {
    const destination = below(walk.destination, path)
    const there = await this.plan.target.lstat(destination)
    if (there && there.type !== 'directory')
      throw failed(`/${destination} is there and is no directory: no directory can be copied over it`)
    yield* this.plan.target.put({
      type: 'directory',
      isKept: false,
      ...(await this.#common(source, node, destination)),
    })
  }

  async *#leaf(walk: Walk, source: string, node: TreeNode, destination: string): AsyncGenerator<Entry> {
    const { from, target } = this.plan
    await this.#checkFree(destination)
    const common = await this.#common(source, node, destination)
    switch (node.type) {
      case 'file': {
        const linked = node.inode === undefined ? undefined : walk.links.get(node.inode)
        if (linked !== undefined) return yield* target.put({ type: 'link', target: linked, ...common, attributes: {} })
        if (node.inode !== undefined) walk.links.set(node.inode, destination)
        const { size, digest } = node
        yield* target.put({ type: 'file', ...common, size, digest, read: () => from.read(source) })
        return
      }
      case 'symlink':
        yield* target.put({ type: 'symlink', ...common, mode: 0o777, target: node.target ?? '' })
        return
      case 'fifo':
        yield* target.put({ type: 'fifo', ...common })
        return
      default:
        throw failed(`/${source} is a device or a socket, which cannot be copied`)
    }
  }

  async #checkFree(destination: string): Promise<void> {
    if ((await this.plan.target.lstat(destination))?.type === 'directory')
      throw failed(`/${destination} is there and is a directory: no file can be copied over it`)
  }

  async #common(source: string, node: TreeNode, path: string) {
    const { owner = { uid: node.uid, gid: node.gid }, from } = this.plan
    const mode = this.#mode(node.mode, node.type === 'directory')
    return { path, mode, ...owner, mtimeMs: node.mtimeMs, attributes: await from.attributes(source) }
  }
}

const quoted = (text: string) => JSON.stringify(text)

/** @throws Failure build_failed for patterns that are none */
function patterns(whose: string, written: readonly string[]): Ignore {
  try {
    return ignorePatterns(written)
  } catch (error) {
    throw error instanceof Failure ? failed(`${whose}: ${error.message}`) : error
  }
}

function hasWildcard(text: string): boolean {
  return /[*?[]/.test(text.replaceAll(/\\./g, ''))
}

interface Match {
  /** With all links followed. */
  readonly path: string
  readonly node: TreeNode
  /** As it is called where it was found. */
  readonly name: string
}

/** What a source names. @throws Failure build_failed where that is not there, and not only a wildcard's */
async function matchesOf(from: Tree, written: string, isLiteral = false): Promise<readonly Match[]> {
  const parts = clamped(written).split('/')
  const wild = isLiteral ? -1 : parts.findIndex(hasWildcard)
  const resolved = async (path: string): Promise<Match> => {
    const found = await follow(from, path)
    const node = await from.lstat(found)
    if (!node) throw failed(`${quoted(written)}: ${wild < 0 ? '' : `/${path} `}not found`)
    return { path: found, node, name: nameOf(path) }
  }
  if (wild < 0) return [await resolved(parts.join('/'))]
  const base = await resolved(parts.slice(0, wild).join('/'))
  let found: readonly string[] = [base.path]
  for (const part of parts.slice(wild)) found = await matchedBy(from, found, part, written)
  const matches: Match[] = []
  for (const path of found) matches.push(await resolved(path))
  return matches
}

/** Go's filepath.Match for one part of a path: what is not the last is no link. */
async function matchedBy(from: Tree, directories: readonly string[], part: string, written: string): Promise<string[]> {
  const found: string[] = []
  // Unlike a pattern to ignore, this knows neither "**" nor "!" nor spaces around it.
  const one = part.replaceAll(/\\.|\*+/g, (text) => (text.startsWith('*') ? '*' : text)).replace(/^[! ]/, '\\$&')
  const matched = patterns(quoted(written), [one.replace(/(?<!\\) $/, '[ ]')])
  const breather = new Breather(100)
  for (const directory of directories)
    for (const name of await from.list(directory)) {
      await breather.next()
      if (matched.ignores(name)) found.push(below(directory, name))
      if (found.length > MAX_MATCHES) throw failed(`${quoted(written)} matches more than ${MAX_MATCHES} names`)
    }
  return found
}

/** chmod(1): octal, or clauses such as `u=rwX,go-w`; without `ugoa` they are for all. */
export function changedMode(chmod: string): (mode: number, isDirectory: boolean) => number {
  if (/^0*[0-7]{1,4}$/.test(chmod)) return () => Number.parseInt(chmod, 8)
  const clauses = chmod.split(',').map((clause) => {
    const [, who = '', actions = ''] = /^([ugoa]*)((?:[-+=](?:[rwxXst]*|[ugo]))+)$/.exec(clause) ?? []
    if (actions === '') throw failed(`--chmod=${chmod}: neither octal, 0 to 7777, nor what chmod takes`)
    return { who: who === '' || who.includes('a') ? 'ugo' : who, actions: [...actions.matchAll(/([-+=])([^-+=]*)/g)] }
  })
  return (before, isDirectory) => {
    let mode = before
    for (const { who, actions } of clauses)
      for (const [, sign, what = ''] of actions) mode = changed(mode, isDirectory, who, sign ?? '', what)
    return mode
  }
}

const shifts = { u: 6, g: 3, o: 0 } as const

function changed(mode: number, isDirectory: boolean, who: string, sign: string, what: string): number {
  let [bits, mask] = [0, 0]
  for (const [name, shift] of Object.entries(shifts)) {
    if (!who.includes(name)) continue
    mask |= 7 << shift
    const setId = name === 'u' ? 0o4000 : name === 'g' ? 0o2000 : 0
    if (!isDirectory || what.includes('s')) mask |= setId
    if (what.includes('s')) bits |= setId
    for (const [copied, from] of Object.entries(shifts)) if (what === copied) bits |= ((mode >> from) & 7) << shift
    if (what.includes('r')) bits |= 4 << shift
    if (what.includes('w')) bits |= 2 << shift
    if (what.includes('x') || (what.includes('X') && (isDirectory || (mode & 0o111) !== 0))) bits |= 1 << shift
  }
  if (what.includes('t')) bits |= 0o1000
  if (what.includes('t') && who === 'ugo') mask |= 0o1000
  if (sign === '+') return mode | bits
  return sign === '-' ? mode & ~bits : (mode & ~mask) | bits
}
