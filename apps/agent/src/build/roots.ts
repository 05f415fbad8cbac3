// roots.ts: the files of a build's context, and of its stages and images: as trees to look at and, for what is mounted, as
// directories of the node.

import { createHash } from 'node:crypto'
import { mkdirSync } from 'node:fs'
import { join } from 'node:path'
import { pipeline } from 'node:stream/promises'
import { Failure, type ImageLayer } from '@berth/contracts'
import type { Images } from '../images/images.js'
import { layerLimits } from '../images/layers.js'
import { unpackTar } from '../images/unpack.js'
import { sourceLayer } from './copy.js'
import { LayerTree } from './layer-tree.js'
import { emptyTree, type Tree } from './tree.js'

/** Files that a stage begins with, or that are copied from or mounted. */
export interface Root {
  tree(): Promise<Tree>
  /** Equal for equal content. @param path of the tree, none of whose parts is a link */
  keyOf(path: string): Promise<string>
  /** Directories whose overlay is the tree, topmost first. */
  directories(): Promise<readonly string[]>
}

export interface RootParts {
  readonly images: Images
  /** Of the build: what is made here goes with it. */
  readonly directory: string
  /** Most bytes that a context may be, unpacked. */
  readonly maxContextBytes: number
  readonly signal: AbortSignal
}

/** Tells what is made of these layers from all else. @param layers lowest first */
export const chainOf = (layers: readonly ImageLayer[]): string =>
  createHash('sha256')
    .update(JSON.stringify(layers.map(({ diffId }) => diffId)))
    .digest('hex')

/** What is made of layers, lowest first; nothing at all is `scratch`. */
export function layersRoot({ images, directory, signal }: RootParts, layers: readonly ImageLayer[]): Root {
  const paths = () => images.layerPaths(layers.map(({ diffId }) => diffId))
  let tree: Promise<Tree> | undefined
  return {
    tree() {
      tree ??= layers.length === 0 ? Promise.resolve(emptyTree) : LayerTree.open(paths(), signal)
      return tree
    },
    keyOf: async (path) => `${chainOf(layers)} ${path}`,
    async directories() {
      if (layers.length > 0) return paths()
      const nothing = join(directory, 'nothing')
      mkdirSync(nothing, { recursive: true, mode: 0o755 })
      return [nothing]
    },
  }
}

/** The context. As files on the node it is only where a command mounts it: all of it, once. */
export function contextRoot(parts: RootParts, context: Tree): Root {
  let unpacked: Promise<readonly string[]> | undefined
  const keys = new Map<string, Promise<string>>()
  const root: Root = {
    tree: async () => context,
    keyOf(path) {
      const key = keys.get(path) ?? source(parts, context, path).then((made) => made.key)
      keys.set(path, key)
      return key
    },
    directories() {
      unpacked ??= (async () => {
        const directory = join(parts.directory, 'context')
        mkdirSync(directory, { mode: 0o755 })
        await fill(parts, directory, root, '')
        return [directory]
      })()
      return unpacked
    },
  }
  return root
}

/** Puts what is below a path of a root into an empty directory, with its owners. */
export async function fill(parts: RootParts, directory: string, from: Root, path: string): Promise<void> {
  const { images, signal, maxContextBytes } = parts
  const tree = await from.tree()
  if ((await tree.lstat(path))?.type !== 'directory') throw new Failure('build_failed', `/${path}: no directory`)
  const made = await source(parts, tree, path)
  const limits = { ...layerLimits, maxBytes: Math.min(layerLimits.maxBytes, maxContextBytes) }
  await unpackTar(images.program, directory, limits, signal, false, (into) => pipeline(made.tar(), into, { signal }))
}

const source = ({ signal }: RootParts, tree: Tree, path: string) =>
  sourceLayer(tree, `/${path}`, { newestMs: Date.now(), signal })
