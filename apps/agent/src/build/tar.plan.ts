// tar.plan.ts: entries of a layer as a tar (POSIX.1-2024, pax, "ustar Interchange Format"). Written here rather than by
// tar-stream, whose extended headers are text: a file's capabilities are bytes.
import { paxRecord as record } from '../images/sparse.js'
import type { Entry } from './target.js'

const BLOCK = 512
const types = { file: '0', link: '1', symlink: '2', directory: '5', fifo: '6' } as const
const END = Buffer.alloc(2 * BLOCK)

/** What ends a tar. */
export const tarEnd = (): Buffer => END

/** What fills the last block of a file. */
export const tarPadding = (size: number): Buffer => END.subarray(0, -size & (BLOCK - 1))

/**
 * The headers of an entry; the bytes of a file come after them.
 * @param newestMs later times become this
 */
export function tarHeader(entry: Entry, newestMs: number): Buffer {
  const name = entry.type === 'directory' ? `${entry.path}/` : entry.path
  const link = entry.type === 'symlink' || entry.type === 'link' ? entry.target : ''
  const size = entry.type === 'file' ? entry.size : 0
  const seconds = Math.max(0, Math.floor(Math.min(entry.mtimeMs, newestMs) / 1000))
  const records: Buffer[] = []
  if (!isShort(name)) records.push(record('path', Buffer.from(name)))
  if (!isShort(link)) records.push(record('linkpath', Buffer.from(link)))
  for (const [key, value, digits] of [
    ['size', size, 11] as const,
    ['uid', entry.uid, 7] as const,
    ['gid', entry.gid, 7] as const,
  ])
    if (value >= 8 ** digits) records.push(record(key, Buffer.from(String(value))))
  for (const [key, value] of Object.entries(entry.attributes).sort(([a], [b]) => (a < b ? -1 : 1)))
    if (!key.includes('=')) records.push(record(`SCHILY.xattr.${key}`, Buffer.from(value, 'base64')))
  const fields = { mode: entry.mode, uid: entry.uid, gid: entry.gid, seconds }
  const own = block({ ...fields, name, link, size, type: types[entry.type] })
  if (records.length === 0) return own
  const extended = Buffer.concat(records)
  const before = block({ ...fields, name: 'pax', link: '', size: extended.length, type: 'x' })
  return Buffer.concat([before, extended, tarPadding(extended.length), own])
}

const isShort = (text: string) => text.length <= 100 && Buffer.byteLength(text) === text.length

interface Fields {
  readonly name: string
  readonly link: string
  readonly type: string
  readonly mode: number
  readonly uid: number
  readonly gid: number
  readonly size: number
  readonly seconds: number
}

function block({ name, link, type, mode, uid, gid, size, seconds }: Fields): Buffer {
  const bytes = Buffer.alloc(BLOCK)
  // Of what is too long for a field the extended header has all.
  const octal = (value: number, at: number, digits: number) =>
    bytes.write((value % 8 ** digits).toString(8).padStart(digits, '0'), at)
  bytes.write(name.slice(0, 100), 0, 100)
  octal(mode, 100, 7)
  octal(uid, 108, 7)
  octal(gid, 116, 7)
  octal(size, 124, 11)
  octal(seconds, 136, 11)
  bytes.fill(' ', 148, 156)
  bytes.write(type, 156)
  bytes.write(link.slice(0, 100), 157, 100)
  bytes.write('ustar\0' + '00', 257)
  let sum = 0
  for (const byte of bytes) sum += byte
  octal(sum, 148, 6)
  bytes[154] = 0
  return bytes
}
