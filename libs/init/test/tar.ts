// tar.ts: archives as bytes, the odd ones that no tar writes included. Format: POSIX.1-2024, pax, "ustar Interchange
// Format"; base 256 as GNU tar writes it.
import { execFileSync } from 'node:child_process'

export interface Member {
  readonly name: string
  readonly type?: string
  readonly content?: string | Buffer
  readonly link?: string
  readonly mode?: number
  readonly uid?: number
  readonly gid?: number
  readonly mtime?: number
  /** Records of an extended header before it (with type g: of it itself). */
  readonly pax?: Readonly<Record<string, string>>
  /** Ids as GNU writes those too large for octal. */
  readonly base256?: boolean
}

const padded = (bytes: Buffer) => Buffer.concat([bytes, Buffer.alloc(-bytes.length & 511)])

function binary(value: number, size: number): Buffer {
  const field = Buffer.alloc(size, value < 0 ? 0xff : 0)
  field.writeBigInt64BE(BigInt(value), size - 8)
  field[0] = value < 0 ? 0xff : (field[0] ?? 0) | 0x80
  return field
}

function number(value: number, size: number, base256 = false): Buffer {
  if (value < 0 || base256) return binary(value, size)
  return Buffer.from(`${value.toString(8).padStart(size - 1, '0')}\0`)
}

function header(member: Member, size: number): Buffer {
  const block = Buffer.alloc(512)
  block.write(member.name.slice(0, 100), 0)
  number(member.mode ?? 0o644, 8).copy(block, 100)
  number(member.uid ?? 0, 8, member.base256).copy(block, 108)
  number(member.gid ?? 0, 8).copy(block, 116)
  number(size, 12).copy(block, 124)
  number(member.mtime ?? 0, 12).copy(block, 136)
  block.write(' '.repeat(8), 148)
  block.write(member.type ?? '0', 156)
  block.write((member.link ?? '').slice(0, 100), 157)
  block.write('ustar\0' + '00', 257, 'latin1')
  const sum = block.reduce((total, byte) => total + byte, 0)
  block.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148, 'latin1')
  return block
}

function record(key: string, value: string): string {
  const rest = ` ${key}=${value}\n`
  let length = Buffer.byteLength(rest) + 1
  while (`${length}`.length + Buffer.byteLength(rest) !== length) length++
  return `${length}${rest}`
}

function withContent(member: Member, content: Buffer): Buffer {
  return Buffer.concat([header(member, content.length), padded(content)])
}

function bytesOf(member: Member): Buffer {
  const records = Buffer.from(
    Object.entries(member.pax ?? {})
      .map(([key, value]) => record(key, value))
      .join(''),
  )
  if (member.type === 'g') return withContent(member, records)
  const content = Buffer.from(member.content ?? '')
  const long = member.name.length > 100 ? [withContent({ name: 'L', type: 'L' }, Buffer.from(`${member.name}\0`))] : []
  const extended = records.length > 0 ? [withContent({ name: 'x', type: 'x' }, records)] : []
  return Buffer.concat([...long, ...extended, withContent(member, content)])
}

/** The ways in which GNU tar has files with holes. */
export const sparseKinds = ['gnu', '0.0', '0.1', '1.0'] as const

/** What GNU tar makes of files of a directory; on any file system it finds their holes, as blocks of zeros. */
export function sparseTar(kind: (typeof sparseKinds)[number], directory: string, names: readonly string[]): Buffer {
  const format = kind === 'gnu' ? ['--format=gnu'] : ['--format=pax', `--sparse-version=${kind}`]
  const how = ['--create', '--sparse', '--hole-detection=raw', ...format, '--directory', directory]
  return execFileSync('tar', [...how, ...names], { maxBuffer: 1 << 28 })
}

/** An archive of these members in their order, with its end marker. */
export const tar = (members: readonly Member[]): Buffer => Buffer.concat([...members.map(bytesOf), Buffer.alloc(1024)])
