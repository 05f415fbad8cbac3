/** What a tar header says, as far as unpacking depends on it. */
export interface LayerEntry {
  readonly name: string
  readonly type: string
  readonly linkname?: string | null | undefined
}

/** Where and as what an entry of a layer is unpacked. `path` is relative, without `.` and `..`. */
export type LayerAction =
  | { readonly kind: 'directory' | 'file' | 'fifo' | 'root'; readonly path: string }
  | { readonly kind: 'symlink'; readonly path: string; readonly target: string }
  | { readonly kind: 'hardlink'; readonly path: string; readonly target: string }
  | { readonly kind: 'whiteout'; readonly path: string }
  | { readonly kind: 'opaque'; readonly path: string }

/** A layer that is not unpacked, and why. */
export class LayerRefused extends Error {
  constructor(
    readonly entry: string,
    readonly why: string,
  ) {
    super(`layer entry ${JSON.stringify(entry)}: ${why}`)
    this.name = 'LayerRefused'
  }
}

const WHITEOUT = '.wh.'
/** Everything of lower layers in this directory is hidden (image-spec, layer.md). */
const OPAQUE = '.wh..wh..opq'

/**
 * What to do with one entry. Names are taken as relative to the root whatever they begin with, but one that climbs out
 * of it is refused, not bent: no builder writes those.
 * @throws LayerRefused on names with `..` or NUL, on devices, and on entries of unknown kinds
 */
export function layerAction(entry: LayerEntry): LayerAction {
  const path = inside(entry.name, entry.name)
  const at = path.lastIndexOf('/')
  const [parent, base] = [path.slice(0, Math.max(0, at)), path.slice(at + 1)]
  if (base === OPAQUE) return { kind: 'opaque', path: parent }
  if (base.startsWith(WHITEOUT)) return whiteout(entry.name, parent, base.slice(WHITEOUT.length))
  switch (entry.type) {
    case 'directory':
      return { kind: path === '' ? 'root' : 'directory', path }
    case 'file':
    case 'contiguous-file':
      return { kind: 'file', path }
    case 'fifo':
      return { kind: 'fifo', path }
    case 'symlink':
      return { kind: 'symlink', path, target: entry.linkname ?? '' }
    case 'link':
      return { kind: 'hardlink', path, target: inside(entry.linkname ?? '', entry.name) }
    case 'character-device':
    case 'block-device':
      throw new LayerRefused(entry.name, 'a device: sandboxes get theirs from the runtime')
    default:
      throw new LayerRefused(entry.name, `kind ${entry.type}`)
  }
}

function whiteout(name: string, parent: string, hidden: string): LayerAction {
  if (hidden === '' || hidden === '.' || hidden === '..') throw new LayerRefused(name, 'it hides nothing')
  return { kind: 'whiteout', path: parent === '' ? hidden : `${parent}/${hidden}` }
}

function inside(path: string, entry: string): string {
  if (path.includes('\0')) throw new LayerRefused(entry, 'a NUL in its name')
  const parts = path.split('/').filter((part) => part !== '' && part !== '.')
  if (parts.includes('..')) throw new LayerRefused(entry, 'it climbs out with ".."')
  return parts.join('/')
}
