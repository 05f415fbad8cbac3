// tree.fixture.ts: trees of files as tests write them.
import { createHash } from 'node:crypto'
import { type Attributes, parentOf, rootNode, type Tree, type TreeNode } from './tree.js'

type Written =
  | string
  | ({
      readonly text?: string
      readonly link?: string
      readonly directory?: true
      readonly other?: 'fifo' | 'other'
      readonly attributes?: Attributes
    } & Partial<Pick<TreeNode, 'mode' | 'uid' | 'gid' | 'mtimeMs' | 'inode'>>)

/** Files, links and directories by path; a text is a file. Directories on the way are there: 0755, of root. */
export function treeOf(written: Readonly<Record<string, Written>>): Tree {
  const nodes = new Map<string, TreeNode & { readonly text?: string; readonly attributes?: Attributes }>([
    ['', rootNode],
  ])
  for (const [path, given] of Object.entries(written)) {
    for (let above = parentOf(path); above !== ''; above = parentOf(above))
      if (!nodes.has(above)) nodes.set(above, rootNode)
    const { text, link, directory, other, ...rest } = typeof given === 'string' ? { text: given } : given
    const common = { uid: 0, gid: 0, mtimeMs: 1000, size: 0 }
    if (link !== undefined) nodes.set(path, { type: 'symlink', mode: 0o777, ...common, target: link, ...rest })
    else if (directory) nodes.set(path, { ...rootNode, ...rest })
    else if (other) nodes.set(path, { type: other, mode: 0o600, ...common, ...rest })
    else {
      const digest = createHash('sha256')
        .update(text ?? '')
        .digest('hex')
      nodes.set(path, {
        type: 'file',
        mode: 0o644,
        ...common,
        size: text?.length ?? 0,
        digest,
        text: text ?? '',
        ...rest,
      })
    }
  }
  const isThere = (path: string): boolean =>
    path === '' || (nodes.get(parentOf(path))?.type === 'directory' && isThere(parentOf(path)))
  const find = (path: string) => (isThere(path) ? nodes.get(path) : undefined)
  return {
    lstat: async (path) => find(path),
    list: async (path) =>
      [...nodes.keys()]
        .filter((one) => one !== '' && parentOf(one) === path && isThere(one))
        .map((one) => one.slice(path === '' ? 0 : path.length + 1))
        .sort(),
    async *read(path) {
      yield Buffer.from(find(path)?.text ?? '')
    },
    attributes: async (path) => find(path)?.attributes ?? {},
  }
}
