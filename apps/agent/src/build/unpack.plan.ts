// unpack.plan.ts: ADD of an archive: what each of its entries becomes below the directory that it is unpacked into. Links of
// the image and of the archive itself are followed as if that directory were the root, so nothing comes anywhere else.
import { Failure } from '@berth/contracts'
import type { Owner } from './copy.plan.js'
import type { Entry, FileEntry, Target } from './target.js'
import { below, follow, nameOf, parentOf } from './tree.js'

/** An entry's header, as it was read. */
export interface ArchiveHeader {
  readonly name: string
  readonly type: string | null
  readonly mode: number
  readonly uid: number
  readonly gid: number
  readonly size: number
  readonly mtime: Date
  readonly linkname: string | null
  /** Records of extended headers. */
  readonly pax?: unknown
}

const root: Owner = { uid: 0, gid: 0 }
const MAX_PATH_BYTES = 4095
const MAX_NAME_BYTES = 255
/** Beyond that there is none (the last but one is what chown takes for "unchanged"). */
const MAX_ID = 2 ** 32 - 2

/**
 * @param directory that it is unpacked into; it is there
 * @param owner of all of it; undefined: as the archive says
 * @param read the bytes of a file, which can be read once
 * @throws Failure build_failed for what leads out, is a device, or cannot be
 */
export async function* unpacked(
  target: Target,
  directory: string,
  header: ArchiveHeader,
  owner: Owner | undefined,
  read: FileEntry['read'],
): AsyncGenerator<Entry> {
  const name = partsOf(header.name)
  if (name === '') return
  const path = await placeOf(target, directory, name, header.type === 'directory')
  if (path === directory) return
  yield* target.makeDirectories(parentOf(path), root)
  const { uid, gid } = owner ?? { uid: idOf(header, 'uid'), gid: idOf(header, 'gid') }
  if (![uid, gid].every((id) => Number.isInteger(id) && id >= 0 && id <= MAX_ID))
    throw refuse(header.name, 'an owner beyond all ids')
  const mtimeMs = Number.isFinite(header.mtime.getTime()) ? header.mtime.getTime() : 0
  const common = { path, mode: header.mode & 0o7777, uid, gid, mtimeMs, attributes: attributesOf(header.pax) }
  switch (header.type) {
    case 'directory':
      return yield* target.put({ type: 'directory', isKept: false, ...common })
    case 'file':
    case 'contiguous-file':
      return yield* target.put({ type: 'file', ...common, size: header.size, digest: undefined, read })
    case 'symlink': {
      const { linkname } = header
      if (!linkname || linkname.includes('\0') || Buffer.byteLength(linkname) > MAX_PATH_BYTES)
        throw refuse(header.name, 'a link to nowhere')
      return yield* target.put({ type: 'symlink', ...common, mode: 0o777, target: linkname })
    }
    case 'link': {
      const linked = await placeOf(target, directory, partsOf(header.linkname ?? ''), false)
      const there = await target.lstat(linked)
      if (!(await target.has(linked)) || there?.type === 'directory')
        throw refuse(header.name, 'a hard link to what is no file before it in the archive')
      if (linked !== path) yield* target.put({ type: 'link', ...common, attributes: {}, target: linked })
      return
    }
    case 'fifo':
      return yield* target.put({ type: 'fifo', ...common })
    default:
      throw refuse(header.name, 'devices are not taken')
  }
}

const refuse = (name: string, why: string) =>
  new Failure('build_failed', `the archive cannot be unpacked: ${JSON.stringify(name.slice(0, 200))}: ${why}`)

function partsOf(name: string): string {
  const parts = name.split('/').filter((part) => part !== '' && part !== '.')
  if (parts.includes('..')) throw refuse(name, 'it leads out')
  if (/[\0\uFFFD]/.test(name)) throw refuse(name, 'no UTF-8, or a zero in the name')
  if (Buffer.byteLength(name) > MAX_PATH_BYTES || parts.some((part) => Buffer.byteLength(part) > MAX_NAME_BYTES))
    throw refuse(name, 'the name is too long')
  return parts.join('/')
}

/** Those too large for a header are in a record before it, which tar-stream passes on. */
function idOf(header: ArchiveHeader, name: 'uid' | 'gid'): number {
  const { pax } = header
  const written: unknown = typeof pax === 'object' && pax !== null && name in pax ? Reflect.get(pax, name) : undefined
  return typeof written === 'string' && /^\d{1,10}$/.test(written) ? Number(written) : header[name]
}

/** Links on the way are followed; at its end for a directory only, everything else takes a link's place. */
async function placeOf(target: Target, directory: string, name: string, isDirectory: boolean): Promise<string> {
  const parent = await follow(target, parentOf(name), { root: directory })
  const path = below(parent, nameOf(name))
  if (!isDirectory) return path
  const followed = await follow(target, path.slice(directory === '' ? 0 : directory.length + 1), { root: directory })
  return (await target.lstat(followed))?.type === 'directory' ? followed : path
}

/** Those that mean something in any sandbox. Bytes that are no text did not come through the archive's reader. */
function attributesOf(pax: unknown): Record<string, string> {
  const attributes: Record<string, string> = {}
  if (typeof pax !== 'object' || pax === null) return attributes
  for (const [key, value] of Object.entries(pax)) {
    const name = key.startsWith('SCHILY.xattr.') ? key.slice('SCHILY.xattr.'.length) : ''
    if (name !== 'security.capability' && !(name.startsWith('user.') && !name.startsWith('user.overlay.'))) continue
    if (typeof value === 'string' && !value.includes('\uFFFD')) attributes[name] = Buffer.from(value).toString('base64')
  }
  return attributes
}
