import { createHash, type Hash } from 'node:crypto'
import { createReadStream, createWriteStream } from 'node:fs'
import { chmod, lchown, link, lstat, lutimes, mkdir, rm, symlink, utimes } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { Transform } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { createGunzip } from 'node:zlib'
import { Fault, ignore } from '@berth/contracts'
import { expectSuccess, run } from '@berth/host'
import { type LayerAction, LayerRefused, layerAction } from '@berth/oci'
import { extract, type Header } from 'tar-stream'

// unpack.ts: one layer's tar → a directory that overlayfs takes as a lower one.
//
// Layers come from anywhere, so two rules hold for every entry: its name stays inside (libs/oci decides), and no
// directory on its way is a link, since a link made by an earlier entry may lead to the host. Owners are the image's
// own; they are shifted into a tenant's range when the layer is mounted.

export interface LayerSource {
  readonly blob: string
  readonly compression: 'none' | 'gzip'
  /** Digest of the blob as it is stored. */
  readonly digest: string
  readonly sizeBytes: number
  /** Digest of the tar inside. */
  readonly diffId: string
}

/** What a layer may become; a tar bomb ends here. */
export interface LayerLimits {
  readonly maxBytes: number
  readonly maxEntries: number
}

/**
 * Unpacks a layer into `target`, an empty directory that nobody else uses.
 * @returns bytes of all files
 * @throws LayerRefused for what is not allowed in a layer, Fault when a digest or size is not what was promised
 */
export async function unpackLayer(source: LayerSource, target: string, limits: LayerLimits): Promise<number> {
  const [packed, plain] = [createHash('sha256'), createHash('sha256')]
  const counted = { bytes: 0, files: 0, entries: 0 }
  const tar = extract()
  const entries = (async () => {
    const directories: { readonly path: string; readonly mtime: Date }[] = []
    for await (const entry of tar) {
      if (++counted.entries > limits.maxEntries) throw new LayerRefused(entry.header.name, 'too many entries')
      counted.files += entry.header.size
      if (counted.files > limits.maxBytes) throw new LayerRefused(entry.header.name, 'the layer is too large')
      const action = layerAction(entry.header)
      await place(target, action, entry.header, entry)
      if (action.kind === 'directory') directories.push({ path: action.path, mtime: mtimeOf(entry.header) })
    }
    // A directory's time changes with what is put in it, so it is set when all is there.
    for (const { path, mtime } of directories.reverse()) await utimes(join(target, path), mtime, mtime)
  })()
  const unpacked = source.compression === 'gzip' ? [createGunzip()] : []
  const bounded = meter(plain, (bytes) => bytes > limits.maxBytes + limits.maxEntries * 1024)
  const reading = pipeline([
    createReadStream(source.blob),
    meter(packed, (n) => n > source.sizeBytes),
    ...unpacked,
    bounded,
    tar,
  ])
  await Promise.all([entries, reading])
  confirm(source.blob, packed, source.digest)
  confirm(`${source.blob}, unpacked`, plain, source.diffId)
  return counted.files
}

/** Hashes what passes, and ends it when it becomes more than it may. */
function meter(hash: Hash, isTooMuch: (bytes: number) => boolean): Transform {
  let bytes = 0
  return new Transform({
    transform(chunk: Buffer, _encoding, done) {
      bytes += chunk.length
      hash.update(chunk)
      if (isTooMuch(bytes)) done(new LayerRefused('', 'it is larger than it says'))
      else done(null, chunk)
    },
  })
}

function confirm(what: string, hash: Hash, expected: string): void {
  const found = `sha256:${hash.digest('hex')}`
  if (found !== expected) throw new Fault(`verify ${what}`, { cause: `digest ${found}, promised ${expected}` })
}

/** The bytes of an entry; whatever is not read is skipped by `resume`. */
interface Content extends AsyncIterable<unknown> {
  resume(): unknown
}

async function place(target: string, action: LayerAction, header: Header, content: Content): Promise<void> {
  const path = join(target, action.path)
  if (action.kind !== 'root' && action.kind !== 'opaque') await clearWay(target, action.path, action.kind)
  switch (action.kind) {
    case 'root':
    case 'directory':
      await mkdir(path, { recursive: true })
      await own(path, header)
      break
    case 'file':
      // wx: the way was cleared, so whatever is there now was not there a moment ago.
      await pipeline(content, createWriteStream(path, { flags: 'wx', mode: 0o600 }))
      await own(path, header)
      await utimes(path, mtimeOf(header), mtimeOf(header))
      break
    case 'symlink':
      await symlink(action.target, path)
      await lchown(path, header.uid, header.gid)
      await lutimes(path, mtimeOf(header), mtimeOf(header))
      break
    case 'hardlink':
      await hardLink(target, action)
      break
    case 'fifo':
      expectSuccess(await run(['mkfifo', path]))
      await own(path, header)
      break
    case 'whiteout':
      // overlayfs: a character device 0:0 hides the name in lower layers (overlayfs.rst, "whiteouts").
      expectSuccess(await run(['mknod', path, 'c', '0', '0']))
      break
    case 'opaque':
      await mkdir(path, { recursive: true })
      expectSuccess(await run(['setfattr', '--name', 'trusted.overlay.opaque', '--value', 'y', path]))
      break
  }
  content.resume()
}

async function own(path: string, header: Header): Promise<void> {
  await lchown(path, header.uid, header.gid)
  // After the owner, since a change of owner clears set-user-id.
  await chmod(path, header.mode & 0o7777)
}

const mtimeOf = (header: Header) => header.mtime

async function hardLink(target: string, action: Extract<LayerAction, { kind: 'hardlink' }>): Promise<void> {
  await checkParents(target, action.target)
  const found = await kindOf(join(target, action.target))
  if (found !== 'file')
    throw new LayerRefused(action.path, `a hard link to ${action.target}, which is no file of this layer`)
  await link(join(target, action.target), join(target, action.path))
}

/** Makes the directories above an entry, and removes what an earlier entry left at its place. */
async function clearWay(target: string, path: string, kind: LayerAction['kind']): Promise<void> {
  await checkParents(target, path)
  await mkdir(dirname(join(target, path)), { recursive: true })
  const found = await kindOf(join(target, path))
  if (found === undefined || (found === 'directory' && kind === 'directory')) return
  await rm(join(target, path), { recursive: true })
}

/** @throws LayerRefused when something on the way to `path` is there and is no directory */
async function checkParents(target: string, path: string): Promise<void> {
  const parts = path.split('/').slice(0, -1)
  for (let depth = 1; depth <= parts.length; depth++) {
    const way = parts.slice(0, depth).join('/')
    const found = await kindOf(join(target, way))
    if (found === undefined) return
    if (found !== 'directory') throw new LayerRefused(path, `${way} on its way is no directory`)
  }
}

async function kindOf(path: string): Promise<'directory' | 'file' | 'other' | undefined> {
  const found = await lstat(path).catch((error: unknown) => ignore(error, 'ENOENT', 'ENOTDIR'))
  if (!found) return undefined
  return found.isDirectory() ? 'directory' : found.isFile() ? 'file' : 'other'
}
