import { readFileSync } from 'node:fs'
import { Fault, ignore } from '@berth/contracts'
import { expectSuccess, run } from './run.js'

/** One line of mountinfo (proc_pid_mountinfo(5)); paths are unescaped. */
export interface MountEntry {
  readonly id: number
  readonly parent: number
  /** `major:minor`. */
  readonly device: string
  /** The directory of the filesystem that is the root of this mount. */
  readonly root: string
  readonly target: string
  readonly options: readonly string[]
  readonly type: string
  readonly source: string
  readonly superOptions: readonly string[]
}

/** Parses the text of a `/proc/PID/mountinfo`. @throws Fault on a line of another form */
export function parseMountinfo(text: string): readonly MountEntry[] {
  return text
    .split('\n')
    .filter((line) => line !== '')
    .map(parseLine)
}

function parseLine(line: string): MountEntry {
  const words = line.split(' ')
  const dash = words.indexOf('-', 6) // optional fields end with a lone dash
  const [id, parent, device, root, target, options] = words
  const [type, source, superOptions] = words.slice(dash + 1)
  if (dash < 0 || !root || !target || !device || !type || options === undefined || source === undefined)
    throw new Fault('parse mountinfo', { cause: line })
  return {
    id: Number(id),
    parent: Number(parent),
    device,
    root: unescapePath(root),
    target: unescapePath(target),
    options: options.split(','),
    type,
    source: unescapePath(source),
    superOptions: (superOptions ?? '').split(','),
  }
}

/** The kernel writes space, tab, newline and backslash as octal escapes, byte by byte. */
const unescapePath = (text: string) =>
  text.replace(/\\([0-7]{3})/g, (_, digits: string) => String.fromCharCode(Number.parseInt(digits, 8)))

/**
 * The mounts that a process sees.
 * @returns an empty list when the process is gone
 */
export function readMounts(pid: number | 'self' = 'self'): readonly MountEntry[] {
  try {
    return parseMountinfo(readFileSync(`/proc/${pid}/mountinfo`, 'utf8'))
  } catch (error) {
    // A process that ends while it is read answers EINVAL (its namespace is gone) or ESRCH.
    ignore(error, 'ENOENT', 'ESRCH', 'EINVAL')
    return []
  }
}

/** True for the path itself and everything below it; both absolute and without `..`. */
export const isAtOrBelow = (path: string, root: string) => path === root || path.startsWith(`${root}/`)

/** The topmost mount at exactly this path. */
export const mountAt = (target: string, mounts: readonly MountEntry[] = readMounts()) =>
  mounts.findLast((entry) => entry.target === target)

export interface MountRequest {
  readonly source: string
  readonly target: string
  readonly type?: string
  readonly options?: readonly string[]
}

/** Mounts through mount(8), without its canonicalising of paths. @throws CommandFailed with what it said */
export async function mount(request: MountRequest): Promise<void> {
  const type = request.type ? ['-t', request.type] : []
  const options = request.options?.length ? ['-o', request.options.join(',')] : []
  expectSuccess(await run(['mount', '-n', ...type, ...options, '--', request.source, request.target]))
}

/**
 * Unmounts the topmost mount at `target`; nothing mounted there is fine.
 * @param options.lazy detach now, clean up when it is no longer busy
 * @throws CommandFailed when it is busy
 */
export async function unmount(target: string, options: { readonly lazy?: boolean } = {}): Promise<void> {
  if (!mountAt(target)) return
  const result = await run(['umount', '-n', ...(options.lazy ? ['-l'] : []), '--', target])
  if (result.exitCode !== 0 && mountAt(target)) expectSuccess(result)
}
