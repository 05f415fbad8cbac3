import { randomBytes } from 'node:crypto'
import { lstatSync } from 'node:fs'
import { open, readFile, rename, rm } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { Fault, ignore } from '@berth/contracts'
import { isAtOrBelow, readMounts } from './mount.js'

export interface WriteOptions {
  /** Default 0o600. */
  readonly mode?: number
  /** Also survive a crash of the machine, not only of the process: fsync of file and directory. */
  readonly durable?: boolean
}

/**
 * Replaces a file whole: a reader sees the old content or the new, whenever the writer is killed.
 * @throws Fault naming the path; nothing of the new content is left then
 */
export async function writeAtomic(path: string, data: string | Uint8Array, options: WriteOptions = {}): Promise<void> {
  const temporary = `${path}.${randomBytes(6).toString('hex')}.tmp`
  try {
    const file = await open(temporary, 'wx', options.mode ?? 0o600)
    try {
      await file.writeFile(data)
      if (options.durable) await file.sync()
    } finally {
      await file.close()
    }
    await rename(temporary, path)
    if (options.durable) await syncDirectory(dirname(path))
  } catch (cause) {
    await rm(temporary, { force: true })
    throw new Fault(`write ${path}`, { cause })
  }
}

/** What was named or renamed in a directory survives a crash of the machine. */
export async function syncDirectory(path: string): Promise<void> {
  const directory = await open(path, 'r')
  try {
    await directory.sync()
  } finally {
    await directory.close()
  }
}

/**
 * Reads a JSON file and hands the value to `parse`, which checks its shape (a zod schema's `parse`).
 * @returns undefined when there is no such file
 * @throws Fault naming the path when it cannot be read, is not JSON or has another shape
 */
export async function readJson<T>(path: string, parse: (value: unknown) => T): Promise<T | undefined> {
  try {
    const text = await readFile(path, 'utf8').catch((error: unknown) => ignore(error, 'ENOENT'))
    return text === undefined ? undefined : parse(JSON.parse(text))
  } catch (cause) {
    throw new Fault(`read ${path}`, { cause })
  }
}

/**
 * Removes a directory tree, or a file, without following links; one that is not there is fine.
 * @throws Fault when something is mounted at or below it: what is mounted is never emptied by accident
 */
export async function removeTree(path: string): Promise<void> {
  const mounted = readMounts().find((entry) => isAtOrBelow(entry.target, path))
  if (mounted) throw new Fault(`remove ${path}`, { cause: new Error(`${mounted.target} is a mount point`) })
  try {
    await rm(path, { recursive: true, force: true })
  } catch (cause) {
    throw new Fault(`remove ${path}`, { cause })
  }
}

/**
 * The absolute path of `relative` below `root`, for paths that came from outside. No part of it may be empty, `.` or
 * `..`, and no existing part may be a symbolic link, so that the kernel resolves it to where it says. It holds only
 * as long as nobody else writes below `root`.
 * @throws Fault naming the offending part
 */
export function beneath(root: string, relative: string): string {
  const refuse = (why: string) =>
    new Fault(`resolve ${JSON.stringify(relative)} below ${root}`, { cause: new Error(why) })
  let path = root
  for (const part of relative.split('/')) {
    if (part === '' || part === '.' || part === '..' || part.includes('\0'))
      throw refuse('it could leave the directory')
    path = join(path, part)
    if (lstatSync(path, { throwIfNoEntry: false })?.isSymbolicLink()) throw refuse(`${path} is a symbolic link`)
  }
  return path
}
