// database-files.ts: the operator's records of vulnerabilities as files: one with an object, an array or a line each, or a
// directory of such files, as `gsutil rsync` or unzip of OSV's exports make it.
import { createHash } from 'node:crypto'
import type { Dirent } from 'node:fs'
import { readdir, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { Fault, ignore } from '@berth/contracts'

/** What is read as records in a directory. */
const isRecords = (name: string): boolean => /\.(?:json|jsonl|ndjson)$/.test(name) && !name.startsWith('.')
const MAX_DEPTH = 4
const MAX_FILES = 1_000_000
/** In a directory, files whose changes in place are noticed; of more, only that some come and go. */
const MAX_WATCHED = 1000

/** Paths in their order; of one that is a file, itself. */
export async function filesOf(path: string): Promise<readonly string[]> {
  const found: string[] = []
  const enter = async (directory: string, depth: number): Promise<void> => {
    for (const entry of (await readdir(directory, { withFileTypes: true })).sort(byName)) {
      const at = join(directory, entry.name)
      // The operator's own links, as in what a volume of Kubernetes mounts, are followed.
      const isDirectory = entry.isSymbolicLink() ? (await stat(at)).isDirectory() : entry.isDirectory()
      if (isDirectory && depth < MAX_DEPTH && !entry.name.startsWith('.')) await enter(at, depth + 1)
      if (!isDirectory && isRecords(entry.name)) found.push(at)
      if (found.length > MAX_FILES)
        throw new Fault(`read vulnerabilities of ${path}`, { cause: `there are more than ${MAX_FILES} files` })
    }
  }
  if (!(await stat(path)).isDirectory()) return [path]
  await enter(path, 0)
  return found
}

const byName = (a: Dirent, b: Dirent): number => (a.name < b.name ? -1 : 1)

/** Changes when the files do, as far as that can be told without reading them; undefined where there is nothing. */
export async function signatureOf(path: string): Promise<string | undefined> {
  const hash = createHash('sha256')
  let watched = 0
  const look = async (at: string, depth: number): Promise<boolean> => {
    const found = await stat(at).catch((error: unknown) => ignore(error, 'ENOENT'))
    if (!found) return false
    hash.update(`${at}\0${found.ino} ${found.size} ${found.ctimeMs}\n`)
    if (!found.isDirectory() || depth > MAX_DEPTH) return true
    for (const entry of (await readdir(at, { withFileTypes: true })).sort(byName)) {
      if (!entry.isFile() && !entry.name.startsWith('.')) await look(join(at, entry.name), depth + 1)
      else if (isRecords(entry.name) && watched++ < MAX_WATCHED) await look(join(at, entry.name), depth + 1)
    }
    return true
  }
  return (await look(path, 0)) ? hash.digest('hex') : undefined
}
