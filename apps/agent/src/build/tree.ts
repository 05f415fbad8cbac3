// tree.ts: trees of files that a build copies from and onto: a context, the layers of an image, nothing at all. They are
// looked at by name, one component at a time, and links are followed here, never by the kernel: whatever a link says, it
// leads to something of its own tree. Nothing of a tree changes while it is looked at.
//
// A path in a tree is relative to its root, without `.` and `..`; '' is the root.
import { setImmediate } from 'node:timers/promises'
import { Failure } from '@berth/contracts'

/** Extended attributes by name, as bytes in base64. */
export type Attributes = Readonly<Record<string, string>>

export interface TreeNode {
  /** `other`: devices, sockets. */
  readonly type: 'file' | 'directory' | 'symlink' | 'fifo' | 'other'
  /** Permissions, set-id and sticky bits. */
  readonly mode: number
  readonly uid: number
  readonly gid: number
  /** Bytes of a file, 0 of all else. */
  readonly size: number
  /** Whole milliseconds since 1970. */
  readonly mtimeMs: number
  /** Of a link, as it is written. */
  readonly target?: string
  /** SHA-256 of a file's bytes in hex, where that is known. */
  readonly digest?: string
  /** Of a file with several names: the same for all of them, and for no other. */
  readonly inode?: string
}

export interface Tree {
  /** What is there under a name; a link is not followed, and below what is no directory there is nothing. */
  lstat(path: string): Promise<TreeNode | undefined>
  /** Names in a directory, sorted; none for what is no directory. @throws Failure build_failed for too many, or no UTF-8 */
  list(path: string): Promise<readonly string[]>
  /** The bytes of a file. */
  read(path: string): AsyncIterable<Uint8Array>
  /** Those that mean something in any sandbox: `user.*`, `security.capability`. */
  attributes(path: string): Promise<Attributes>
}

/** Lets others have their turn: what is asked a hundred thousand times, and answers at once, would keep them from it. */
export class Breather {
  #asked = 0

  constructor(private readonly atOnce: number) {}

  /** @returns undefined while it is still one's own */
  next(): Promise<void> | undefined {
    return ++this.#asked % this.atOnce === 0 ? setImmediate() : undefined
  }
}

/** `scratch`. */
export const emptyTree: Tree = {
  lstat: async (path) => (path === '' ? rootNode : undefined),
  list: async () => [],
  read: () => {
    throw new Failure('build_failed', 'there is no such file')
  },
  attributes: async () => ({}),
}

export const rootNode: TreeNode = { type: 'directory', mode: 0o755, uid: 0, gid: 0, size: 0, mtimeMs: 0 }

export const below = (directory: string, name: string): string => (directory === '' ? name : `${directory}/${name}`)
export const parentOf = (path: string): string => path.slice(0, Math.max(0, path.lastIndexOf('/')))
export const nameOf = (path: string): string => path.slice(path.lastIndexOf('/') + 1)

/** A path as it is written, absolute or not, in a tree: what leads above the root stays at the root. */
export function clamped(path: string): string {
  const way: string[] = []
  for (const part of path.split('/'))
    if (part === '..') way.pop()
    else if (part !== '' && part !== '.') way.push(part)
  return way.join('/')
}

/** Like the kernel (path_resolution(7)). */
const MAX_LINKS = 40

/**
 * Follows the links of a way, and unless told otherwise a link at its end, without leaving `root`: that is where absolute
 * links begin. What is not there is taken as it is written.
 * @throws Failure build_failed where links lead round and round
 */
export async function follow(
  tree: { lstat(path: string): Promise<Pick<TreeNode, 'target'> | undefined> },
  path: string,
  { last = true, root = '' } = {},
): Promise<string> {
  let at: string[] = []
  // The next one last: a way may have thousands of parts, and so may each link on it.
  const rest = path.split('/').reverse()
  for (let links = 0; rest.length > 0; ) {
    const part = rest.pop() ?? ''
    if (part === '..') at.pop()
    if (part === '' || part === '.' || part === '..') continue
    at.push(part)
    if (!last && rest.length === 0) break
    const { target } = (await tree.lstat(root === '' ? at.join('/') : below(root, at.join('/')))) ?? {}
    if (target === undefined) continue
    if (++links > MAX_LINKS) throw new Failure('build_failed', `${path}: too many links`)
    at = target.startsWith('/') ? [] : at.slice(0, -1)
    rest.push(...target.split('/').reverse())
  }
  return root === '' ? at.join('/') : at.length === 0 ? root : below(root, at.join('/'))
}

/**
 * Reads a small file of a tree, by whatever links lead to it.
 * @returns undefined where no file is
 * @throws Failure build_failed when it is larger than `most` bytes
 */
export async function readSmall(tree: Tree, path: string, most: number): Promise<Buffer | undefined> {
  const found = await follow(tree, path)
  const node = await tree.lstat(found)
  if (node?.type !== 'file') return undefined
  if (node.size > most) throw new Failure('build_failed', `${path}: larger than the ${most} bytes that are read of it`)
  const chunks: Uint8Array[] = []
  for await (const chunk of tree.read(found)) chunks.push(chunk)
  return Buffer.concat(chunks)
}
