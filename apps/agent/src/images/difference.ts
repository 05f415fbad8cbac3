// difference.ts: whether two trees of files are the same: names, types, owners, modes, times, contents, attributes.
import { type FileHandle, lstat, open, readdir, readlink } from 'node:fs/promises'
import { join } from 'node:path'
import { expectWhole, run } from '@berth/host'

/** The first thing in which two trees of files differ, as `/path is not` or the like; undefined where they are the same. */
export async function differenceOf(a: string, b: string): Promise<string | undefined> {
  const different = await treeDifference(a, b, '')
  if (different !== undefined) return `${different} is not`
  const [here, there] = await Promise.all([a, b].map(attributesOf))
  return here === there ? undefined : 'extended attributes are not'
}

async function treeDifference(a: string, b: string, path: string): Promise<string | undefined> {
  const [here, there] = await Promise.all([lstat(join(a, path)), lstat(join(b, path))])
  const facts = ({ mode, uid, gid, rdev, nlink, mtimeMs, size }: typeof here) => {
    const isDirectory = (mode & 0o170000) === 0o040000
    return [mode, uid, gid, rdev, mtimeMs, ...(isDirectory ? [] : [nlink, size])].join(' ')
  }
  if (facts(here) !== facts(there)) return `/${path}`
  if (here.isSymbolicLink() && (await readlink(join(a, path))) !== (await readlink(join(b, path)))) return `/${path}`
  if (here.isFile() && !(await sameContent(join(a, path), join(b, path)))) return `/${path}`
  if (!here.isDirectory()) return undefined
  const [names, others] = [(await readdir(join(a, path))).sort(), (await readdir(join(b, path))).sort()]
  if (names.join('\0') !== others.join('\0')) return `/${path}`
  for (const name of names) {
    const different = await treeDifference(a, b, path === '' ? name : `${path}/${name}`)
    if (different !== undefined) return different
  }
  return undefined
}

/** Whether two files hold the same bytes. */
export async function sameContent(a: string, b: string): Promise<boolean> {
  const here = await open(a)
  try {
    const there = await open(b)
    try {
      return await sameBytes(here, there)
    } finally {
      await there.close()
    }
  } finally {
    await here.close()
  }
}

async function sameBytes(here: FileHandle, there: FileHandle): Promise<boolean> {
  const [one, other] = [Buffer.allocUnsafe(256 * 1024), Buffer.allocUnsafe(256 * 1024)]
  for (;;) {
    const [mine, theirs] = await Promise.all([here.read(one, 0, one.length), there.read(other, 0, other.length)])
    if (mine.bytesRead !== theirs.bytesRead) return false
    if (mine.bytesRead === 0) return true
    if (one.compare(other, 0, theirs.bytesRead, 0, mine.bytesRead) !== 0) return false
  }
}

/** All of a tree, in the order of its names. */
async function attributesOf(root: string): Promise<string> {
  const argv = ['getfattr', '--recursive', '--physical', '--no-dereference', '--dump', '--match=-', '.'] as const
  const { stdout } = expectWhole(
    await run(argv, {
      cwd: root,
      timeoutMs: 600_000,
      maxOutputBytes: 64 * 1024 * 1024,
      env: { LC_ALL: 'C', PATH: process.env.PATH ?? '' },
    }),
  )
  return stdout.split('\n\n').sort().join('\n\n')
}
