import { readdirSync, readFileSync, readlinkSync } from 'node:fs'
import { readdir } from 'node:fs/promises'
import { errnoOf, ignore } from '@berth/contracts'
import type { Cgroups } from './cgroup.js'
import { cgroupLayout, openCgroups } from './cgroup-layout.js'
import { isAtOrBelow, type MountEntry, readMounts } from './mount.js'

/** Which berth instance is meant: all that is found belongs to it by its cgroups or its data directory. */
export interface Instance {
  readonly cgroupParent: string
  /** Absolute, without a trailing slash. */
  readonly dataDir: string
  /** Directories below `dataDir` whose entries stand for sandboxes: `agent/attempts`, `agent/pool`, … */
  readonly trees?: readonly string[]
}

/** What is really there, as sorted plain texts: equal inventories mean that nothing was left or lost. */
export interface Inventory {
  /** `pid name`: in a cgroup of the instance, or with a path of its data directory among the arguments. */
  readonly processes: readonly string[]
  /** `target (type)` at or below the data directory, or an overlay made of it, in whichever mount namespace. */
  readonly mounts: readonly string[]
  /** Groups below the parent, in any hierarchy. */
  readonly cgroups: readonly string[]
  /** `/dev/loopN file` for files below the data directory. */
  readonly loops: readonly string[]
  /** Entries of `trees`, relative to the data directory. */
  readonly trees: readonly string[]
  /** Network links and named network namespaces `berth…`. */
  readonly links: readonly string[]
  readonly netns: readonly string[]
}

/** Looks at the machine; changes nothing. What ends while it looks is left out. */
export async function takeInventory(instance: Instance): Promise<Inventory> {
  const { cgroupParent, dataDir } = instance
  const pids = listDirectory('/proc')
    .filter((name) => /^\d+$/.test(name))
    .map(Number)
  const cgroups = openCgroups(cgroupLayout())
  const trees = await Promise.all((instance.trees ?? []).map((tree) => entriesOf(dataDir, tree)))
  return {
    processes: sorted(processesOf(pids, cgroups.processes(cgroupParent), dataDir)),
    mounts: sorted(mountsOf(pids, dataDir)),
    cgroups: sorted(groupsBelow(cgroups, cgroupParent)),
    loops: sorted(loopsOf(dataDir)),
    trees: sorted(trees.flat()),
    links: sorted(listDirectory('/sys/class/net').filter(isOurs)),
    netns: sorted(listDirectory('/run/netns').filter(isOurs)),
  }
}

const sorted = (texts: Iterable<string>): readonly string[] => [...new Set(texts)].sort()
const isOurs = (name: string) => name.startsWith('berth')

function processesOf(pids: readonly number[], inGroups: readonly number[], dataDir: string): readonly string[] {
  const members = new Set(inGroups)
  return pids
    .filter((pid) => pid !== process.pid)
    .filter((pid) => members.has(pid) || argumentsOf(pid).some((word) => mentions(word, dataDir)))
    .map((pid) => `${pid} ${readGone(`/proc/${pid}/comm`)}`)
}

const argumentsOf = (pid: number) => readGone(`/proc/${pid}/cmdline`).split('\0')

/** `/data`, `/data/x`, `--root=/data/x`, `-D/data`; not `/database`. */
const mentions = (word: string, path: string) => {
  const at = word.indexOf(path)
  return at >= 0 && [undefined, '/', ':', ','].includes(word[at + path.length])
}

/** A private namespace hides its mounts from ours, so one process of each namespace is asked that has not ended since. */
function mountsOf(pids: readonly number[], dataDir: string): readonly string[] {
  const byNamespace = new Map<string, number[]>()
  for (const pid of pids) {
    const namespace = namespaceOf(pid)
    if (namespace === undefined) continue
    const members = byNamespace.get(namespace)
    if (members) members.push(pid)
    else byNamespace.set(namespace, [pid])
  }
  return [...byNamespace.values()]
    .flatMap(mountsOfAny)
    .filter((entry) => isAtOrBelow(entry.target, dataDir) || isMadeOf(entry, dataDir))
    .map((entry) => `${entry.target} (${entry.type})`)
}

/** Every namespace has a mount at least: none means that the process is gone. */
function mountsOfAny(members: readonly number[]): readonly MountEntry[] {
  for (const pid of members) {
    const mounts = readMounts(pid)
    if (mounts.length > 0) return mounts
  }
  return []
}

const isMadeOf = (entry: MountEntry, dataDir: string) =>
  entry.type === 'overlay' && entry.superOptions.some((option) => mentions(option, dataDir))

function namespaceOf(pid: number): string | undefined {
  try {
    return readlinkSync(`/proc/${pid}/ns/mnt`)
  } catch (error) {
    // EACCES: it has capabilities that we lack, so it is nothing that an agent of ours could have started.
    return ignore(error, 'ENOENT', 'ESRCH', 'EACCES')
  }
}

function groupsBelow(cgroups: Cgroups, group: string): readonly string[] {
  const below = cgroups.children(group).flatMap((name) => groupsBelow(cgroups, `${group}/${name}`))
  return cgroups.usage(group) === undefined ? below : [group, ...below]
}

function loopsOf(dataDir: string): readonly string[] {
  return listDirectory('/sys/block')
    .filter((name) => name.startsWith('loop'))
    .map((name) => ({ name, file: readGone(`/sys/block/${name}/loop/backing_file`) }))
    .filter(({ file }) => isAtOrBelow(file, dataDir))
    .map(({ name, file }) => `/dev/${name} ${file}`)
}

async function entriesOf(dataDir: string, tree: string): Promise<readonly string[]> {
  const names = await readdir(`${dataDir}/${tree}`).catch((error: unknown) => ignore(error, 'ENOENT'))
  return (names ?? []).map((name) => `${tree}/${name}`)
}

function listDirectory(path: string): readonly string[] {
  try {
    return readdirSync(path)
  } catch (error) {
    ignore(error, 'ENOENT')
    return []
  }
}

/** A file of /proc or /sys, trimmed; empty when its subject is gone. */
function readGone(path: string): string {
  try {
    return readFileSync(path, 'utf8').trim()
  } catch (error) {
    if (errnoOf(error) !== 'ENXIO') ignore(error, 'ENOENT', 'ESRCH', 'ENODEV')
    return ''
  }
}
