// build-context.ts: a directory → the context that is sent of it: a tar of its files, without what its ignore file names. The
// node applies that file too; here it only saves the way.
import { closeSync, createReadStream, lstatSync, openSync, readSync, type Stats } from 'node:fs'
import { readdir, readFile, readlink } from 'node:fs/promises'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { Fault, ignore, invariant, KiB } from '@berth/contracts'
import { type Ignore, parseIgnore } from '@berth/oci'
import { pack } from 'tar-stream'

/** An entry of a context, by its path below the root. */
export interface ContextEntry {
  readonly path: string
  readonly stats: Stats
}

/** Paths in the directory that is built are from there. */
export interface FoundDockerfile {
  /** Null: it is not in there, or is a link out of it, and its text is sent. */
  readonly path: string | null
  readonly text: string | null
  /** Of one whose text is sent: where its own ignore file would be. */
  readonly ignoreFile: string | null
  /** What `path` leads to where it is a link, else itself. */
  readonly target: string | null
}

/**
 * What of a directory is sent, parents before what is in them. Sockets, pipes and devices are left out.
 * @param dockerfile where it is in the directory it is sent whatever is ignored
 * @throws Fault where the directory, or a part of it that is sent, cannot be read; Failure context_invalid for an ignore
 * file with a pattern that is none
 */
export async function* contextEntries(root: string, dockerfile: FoundDockerfile): AsyncGenerator<ContextEntry> {
  const { path, target, ignoreFile } = dockerfile
  const own = path === null ? undefined : `${path}.dockerignore`
  const named = await textOf(own === undefined ? ignoreFile : join(root, own))
  const text = named ?? (await textOf(join(root, '.dockerignore')))
  const ignored = text === undefined ? undefined : parseIgnore(text)
  if (own === undefined && named !== undefined && ignored) {
    // The node would go by the one that is there, and goes by none where there is none.
    const without = { ...ignored, ignores: (one: string) => one === '.dockerignore' || ignored.ignores(one) }
    yield* below(root, '', without, new Set(), [])
    return
  }
  const always = ['.dockerignore', ...(own ? [own] : []), path, target].filter((one) => one !== null)
  yield* below(root, '', ignored, new Set(always), [])
}

/** @param above directories above that are ignored and not sent yet, outermost first */
async function* below(
  root: string,
  directory: string,
  ignored: Ignore | undefined,
  always: ReadonlySet<string>,
  above: ContextEntry[],
): AsyncGenerator<ContextEntry> {
  const names = await reading(join(root, directory), (path) => readdir(path))
  for (const name of names.sort()) {
    const path = directory === '' ? name : `${directory}/${name}`
    const entry = { path, stats: await reading(join(root, path), (at) => lstatSync(at)) }
    const { stats } = entry
    const out = !always.has(path) && (ignored?.ignores(path) ?? false)
    if (stats.isDirectory()) {
      const mayHave = ignored?.hasExceptions || [...always].some((one) => one.startsWith(`${path}/`))
      if (!out) yield* [...above.splice(0), entry]
      else if (mayHave) above.push(entry)
      if (!out || mayHave) yield* below(root, path, ignored, always, above)
      // Nothing in it was sent.
      if (above.at(-1) === entry) above.pop()
    } else if (!out && (stats.isFile() || stats.isSymbolicLink())) yield* [...above.splice(0), entry]
  }
}

const textOf = async (path: string | null): Promise<string | undefined> =>
  path === null
    ? undefined
    : reading(path, () => readFile(path, 'utf8').catch((error: unknown) => ignore(error, 'ENOENT', 'ENOTDIR')))

/** What is sent is sent in pieces of so many bytes, and a file is read in them: a small one is three of a tar. */
const PIECE = 256 * KiB
/** Longest file that is read at once. */
const SMALL = 64 * KiB

/** Packs entries as a tar. It fails when one cannot be read, or has changed while it was. */
export function packContext(root: string, entries: AsyncIterable<ContextEntry>): Readable {
  const archive = pack()
  const fill = async () => {
    for await (const { path, stats } of entries) await addEntry(archive, root, path, stats)
    archive.finalize()
  }
  fill().catch((error: unknown) => archive.destroy(error instanceof Error ? error : new Error(String(error))))
  return Readable.from(inPieces(archive), { objectMode: false })
}

async function* inPieces(chunks: AsyncIterable<unknown>): AsyncGenerator<Buffer> {
  let held: Buffer[] = []
  let bytes = 0
  for await (const chunk of chunks) {
    invariant(Buffer.isBuffer(chunk), 'a tar is of bytes')
    held.push(chunk)
    bytes += chunk.length
    if (bytes < PIECE) continue
    yield Buffer.concat(held)
    held = []
    bytes = 0
  }
  yield Buffer.concat(held)
}

async function addEntry(archive: ReturnType<typeof pack>, root: string, name: string, stats: Stats): Promise<void> {
  const at = join(root, name)
  // As `docker build` has it: whose files they are here means nothing there.
  const header = { name, mode: stats.mode & 0o7777, mtime: stats.mtime, uid: 0, gid: 0 }
  const { size } = stats
  const link = stats.isSymbolicLink() ? await reading(at, (path) => readlink(path)) : undefined
  const content = stats.isFile() && size <= SMALL ? await reading(at, (path) => contentOf(path, size)) : undefined
  if (content && content.length < size) throw shorter(at)
  await new Promise<void>((done, failed) => {
    const over = (error?: Error | null) => (error ? failed(error) : done())
    if (stats.isDirectory()) archive.entry({ ...header, type: 'directory' }, over)
    else if (link !== undefined) archive.entry({ ...header, type: 'symlink', linkname: link }, over)
    else if (content) archive.entry({ ...header, size }, content, over)
    else {
      const sink = archive.entry({ ...header, size }, over)
      // It fails with the archive, which tells.
      sink.on('error', () => undefined)
      copy(at, size, sink).catch(failed)
    }
  })
}

/** At once: to wait for each of many small files takes longer than to read them. @returns at most so many bytes of it */
function contentOf(path: string, size: number): Buffer {
  const file = openSync(path, 'r')
  try {
    const content = Buffer.allocUnsafe(size)
    return content.subarray(0, readSync(file, content, 0, size, 0))
  } finally {
    closeSync(file)
  }
}

type Sink = ReturnType<ReturnType<typeof pack>['entry']>

async function copy(path: string, size: number, sink: Sink): Promise<void> {
  let left = size
  // No more than it had when its head was written.
  const source = createReadStream(path, { end: size - 1, highWaterMark: PIECE })
  await reading(path, async () => {
    for await (const chunk of source) {
      left -= chunk.length
      if (!sink.write(chunk)) await new Promise((drained) => sink.once('drain', () => drained(undefined)))
    }
  })
  if (left > 0) throw shorter(path)
  sink.end(undefined)
}

const shorter = (path: string) => new Fault(`send ${path}`, { cause: 'it has become shorter while it was read' })

async function reading<T>(path: string, read: (path: string) => T | Promise<T>): Promise<T> {
  try {
    return await read(path)
  } catch (cause) {
    throw new Fault(`read ${path}`, { cause })
  }
}
