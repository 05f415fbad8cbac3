import { closeSync, lstatSync, lutimesSync, openSync, readdirSync, readlinkSync, readSync, type Stats } from 'node:fs'
import { dirname, join } from 'node:path'
import { invariant } from '@berth/contracts'

/** Path below the root (no leading slash) → what lstat(2) says of it. Sorted by path, parents before children. */
export type Tree = ReadonlyMap<string, Stats>

/**
 * Lists a root filesystem without following links.
 * @param emptied directories below the root whose content is left out (`dev`: an image holds no device nodes)
 */
export function readTree(root: string, emptied: readonly string[]): Tree {
  const tree = new Map<string, Stats>()
  const visit = (directory: string) => {
    for (const name of readdirSync(join(root, directory)).sort()) {
      const path = directory === '' ? name : `${directory}/${name}`
      const stats = lstatSync(join(root, path))
      tree.set(path, stats)
      if (stats.isDirectory() && !emptied.includes(path)) visit(path)
    }
  }
  visit('')
  return tree
}

/**
 * Gives every entry a time that a second build gives it too: what was written by the build itself (since `sinceMs`),
 * or lies after `epochS`, gets `epochS`. What packages brought keeps its time, which Python's .pyc files record.
 */
export function settleTimes(root: string, sinceMs: number, epochS: number): void {
  // Children first: setting a child's time changes no directory, but reading a listing twice would cost more.
  for (const [path, stats] of [...readTree(root, [])].reverse())
    if (stats.mtimeMs >= sinceMs || stats.mtimeMs > epochS * 1000) lutimesSync(join(root, path), epochS, epochS)
}

/** What a layer on top of `base` holds: paths to store, and paths of `base` that are gone. Both sorted. */
export interface Difference {
  readonly changed: readonly string[]
  readonly removed: readonly string[]
}

/** Compares two trees by type, owner, mode, time, size, link target and content. */
export function difference(base: { root: string; tree: Tree }, next: { root: string; tree: Tree }): Difference {
  const changed = new Set<string>()
  for (const [path, stats] of next.tree) {
    const before = base.tree.get(path)
    if (before && sameEntry(join(base.root, path), before, join(next.root, path), stats)) continue
    // A layer names the parents of what it changes, so that unpacking it alone makes them with the right mode.
    for (let at = path; at !== '.'; at = dirname(at)) changed.add(at)
  }
  const gone = [...base.tree.keys()].filter((path) => !next.tree.has(path))
  const removed = gone.filter((path) => !gone.includes(dirname(path)))
  return { changed: [...next.tree.keys()].filter((path) => changed.has(path)), removed }
}

function sameEntry(pathA: string, a: Stats, pathB: string, b: Stats): boolean {
  if (a.mode !== b.mode || a.uid !== b.uid || a.gid !== b.gid) return false
  if (a.isDirectory()) return true
  if (Math.trunc(a.mtimeMs / 1000) !== Math.trunc(b.mtimeMs / 1000) || a.size !== b.size) return false
  if (a.isSymbolicLink()) return readlinkSync(pathA) === readlinkSync(pathB)
  return !a.isFile() || sameContent(pathA, pathB)
}

const chunkBytes = 256 * 1024
const chunkA = Buffer.allocUnsafe(chunkBytes)
const chunkB = Buffer.allocUnsafe(chunkBytes)

/** Compares two files of equal size. */
function sameContent(pathA: string, pathB: string): boolean {
  const a = openSync(pathA, 'r')
  const b = openSync(pathB, 'r')
  try {
    for (;;) {
      const read = readSync(a, chunkA)
      invariant(read === readSync(b, chunkB), 'files of equal size are read alike')
      if (read === 0) return true
      if (chunkA.compare(chunkB, 0, read, 0, read) !== 0) return false
    }
  } finally {
    closeSync(a)
    closeSync(b)
  }
}
