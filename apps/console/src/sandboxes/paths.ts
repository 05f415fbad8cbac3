// paths.ts: absolute paths in a sandbox, as text. What they lead to is for the sandbox to say.
import type { FileStat } from '@berth/contracts'

/** The path of an entry; names may hold anything but `/`. */
export const joined = (directory: string, name: string): string =>
  directory === '/' ? `/${name}` : `${directory.replace(/\/+$/, '')}/${name}`

export const parentOf = (path: string): string => path.replace(/\/+$/, '').replace(/\/[^/]*$/, '') || '/'

/** From the root to the path itself: name and path of each directory on the way. */
export function crumbsOf(path: string): readonly { readonly name: string; readonly path: string }[] {
  const names = path.split('/').filter((name) => name !== '')
  return [{ name: '/', path: '/' }, ...names.map((name, i) => ({ name, path: `/${names.slice(0, i + 1).join('/')}` }))]
}

/** A path as typed, made absolute from a directory; `.`, `..` and doubled slashes are left to the sandbox. */
export const resolved = (directory: string, typed: string): string =>
  typed.startsWith('/') ? typed : joined(directory, typed)

/** Directories first, then by name, numbers in their order. */
export function sorted(entries: readonly FileStat[]): readonly FileStat[] {
  const order = new Intl.Collator('en', { numeric: true })
  const rank = ({ kind }: FileStat) => (kind === 'directory' ? 0 : 1)
  return [...entries].sort((a, b) => rank(a) - rank(b) || order.compare(a.name, b.name))
}

const kinds: Readonly<Record<FileStat['kind'], string>> = {
  ...{ file: '-', directory: 'd', symlink: 'l', fifo: 'p', socket: 's', block: 'b', char: 'c' },
}

/** Kind and rights as ls(1) shows them: `-rwxr-xr-x`. */
export function modeText({ kind, mode }: Pick<FileStat, 'kind' | 'mode'>): string {
  const bits = Number.parseInt(mode, 8)
  const special = [
    [bits & 0o4000, 's'],
    [bits & 0o2000, 's'],
    [bits & 0o1000, 't'],
  ] as const
  const parts = special.map(([set, letter], i) => {
    const three = (bits >> (6 - 3 * i)) & 7
    const execute = three & 1 ? (set ? letter : 'x') : set ? letter.toUpperCase() : '-'
    return `${three & 4 ? 'r' : '-'}${three & 2 ? 'w' : '-'}${execute}`
  })
  return kinds[kind] + parts.join('')
}
