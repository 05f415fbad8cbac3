// mounts.ts: `RUN --mount=…` as what is attached to a container. What of it counts for the cache is told by itself, so that
// a step that was made before needs nothing of it. Values of secrets do not count, and are nowhere but in memory.

import { createHash } from 'node:crypto'
import { lstatSync } from 'node:fs'
import { join } from 'node:path'
import { Failure, GiB, type IdRange, ignore, type SandboxSpec, type TenantId } from '@berth/contracts'
import type { CopySource, RunMount, RunOp } from '@berth/oci'
import type { Attachment } from '../rootfs/overlay.js'
import type { LentMount, WantedMount } from './cache-mounts.js'
import type { Root } from './roots.js'
import { below, follow, type Tree, type TreeNode } from './tree.js'

export interface MountParts {
  readonly rootOf: (from: CopySource) => Promise<Root>
  readonly lend: (wanted: WantedMount) => Promise<LentMount>
  /** Puts what is below a path of a root into an empty directory. */
  readonly fill: (directory: string, from: Root, path: string) => Promise<void>
  readonly secrets: ReadonlyMap<string, Uint8Array>
  readonly tenantId: TenantId
  readonly ids: IdRange
  readonly memoryBytes: number
  readonly cacheBytes: number
  readonly signal: AbortSignal
}

/** What a container is to have, until it is released. */
export interface Mounted {
  readonly attachments: readonly Attachment[]
  readonly tmpfs: SandboxSpec['tmpfs']
  readonly env: Readonly<Record<string, string>>
  /** Every part of the ways to them: what the runtime makes there is not the command's. */
  readonly ways: readonly Way[]
  release(): void
}

/** A place in a root, and what was there. */
export interface Way {
  /** None of its parts is a link, of what was there. */
  readonly path: string
  readonly was: Pick<TreeNode, 'mode' | 'uid' | 'gid'> | undefined
}

/** Characters of all of them: they are arguments of a program. */
const MAX_WAYS = 64 * 1024
const MAX_MOUNTS = 64
/** Least size of a file system in memory: a page. */
const MIN_TMPFS_BYTES = 4096

const refused = (why: string) => new Failure('build_failed', `--mount: ${why}`)

/** What of the mounts makes another command of it. */
export function mountsKey(parts: MountParts, mounts: readonly RunMount[]): Promise<readonly string[]> {
  return Promise.all(mounts.map(async (mount) => JSON.stringify(await keyOf(parts, mount))))
}

async function keyOf(parts: MountParts, mount: RunMount): Promise<readonly unknown[]> {
  switch (mount.type) {
    case 'bind':
      return ['bind', mount.target, mount.readWrite, await sourceKey(parts, mount.from, mount.source)]
    case 'cache':
      return ['cache', mount.target, mount.readOnly, await identityOf(parts, mount)]
    case 'secret':
      return ['secret', mount.id, mount.target, mount.env, mount.mode, mount.uid, mount.gid]
    case 'tmpfs':
      return ['tmpfs', mount.target, mount.size]
  }
}

async function sourceKey(parts: MountParts, from: CopySource, source: string): Promise<string> {
  const root = await parts.rootOf(from)
  return root.keyOf(await found(await root.tree(), source))
}

/** @throws Failure build_failed where there is nothing */
async function found(tree: Tree, source: string): Promise<string> {
  const path = await follow(tree, source)
  const node = await tree.lstat(path)
  if (node?.type !== 'file' && node?.type !== 'directory') throw refused(`there is no ${source} to be mounted`)
  return path
}

/** One with other content to begin with, or another owner, is another cache. */
async function identityOf(parts: MountParts, mount: CacheMount): Promise<string> {
  const seed = mount.from === null ? '' : await sourceKey(parts, mount.from, mount.source)
  const whole = JSON.stringify([mount.id, seed, mount.mode, mount.uid, mount.gid])
  return createHash('sha256').update(whole).digest('hex')
}

/**
 * Makes ready what a command mounts.
 * @param onto what it runs on; not asked for without mounts
 * @throws Failure build_failed for a secret that is needed and not given, for what is not there, for a place where nothing
 *   may be mounted
 */
export async function mountAll(parts: MountParts, op: RunOp, onto: Root): Promise<Mounted> {
  const { mounts, script } = op
  if (mounts.length > MAX_MOUNTS) throw refused(`there are more than ${MAX_MOUNTS}`)
  const attachments: Attachment[] = []
  const tmpfs: SandboxSpec['tmpfs'] = []
  const env: Record<string, string> = {}
  const holders: Holder[] = []
  const caches = await lendAll(parts, mounts)
  try {
    for (const mount of mounts) {
      if (mount.type === 'tmpfs') tmpfs.push(inMemory(parts, mount))
      else if (mount.type === 'bind') {
        attachments.push(await bound(parts, mount))
        holders.push({ target: mount.target, isLink: await linksOfSource(parts, mount) })
      } else if (mount.type === 'secret') secretOf(parts, mount, attachments, env)
      else {
        const { target, readOnly } = mount
        const directory = caches.directory(mount)
        attachments.push({ kind: 'volume', directory, readOnly, target: placeOf(target) })
        holders.push({ target, isLink: async (path) => isLinkIn(directory, path) })
      }
    }
    const targets = [...attachments.map(({ target }) => target), ...tmpfs.map(({ path }) => path)]
    const ways = (await Promise.all(targets.map(async (target) => waysTo(await onto.tree(), target)))).flat()
    await checkWithin(holders, targets, onto)
    if (ways.reduce((sum, { path: { length } }) => sum + length, 0) > MAX_WAYS)
      throw refused('the targets are too long, all together')
    if (script) attachments.push(inFile(script.path, Buffer.from(script.data), { uid: 0, gid: 0, mode: 0o555 }))
    return { attachments, tmpfs, env, ways, release: caches.release }
  } catch (error) {
    caches.release()
    throw error
  }
}

/** @throws Failure build_failed where links lead to where nothing may be mounted */
async function waysTo(onto: Tree, target: string): Promise<readonly Way[]> {
  const path = await follow(onto, target)
  placeOf(path)
  const parts = path.split('/').map((_, i, all) => all.slice(0, i + 1).join('/'))
  return Promise.all(parts.map(async (part) => ({ path: part, was: await onto.lstat(part) })))
}

/** A mount in which there may be links. */
interface Holder {
  readonly target: string
  /** @param path in it, of which no part before the last is a link */
  readonly isLink: (path: string) => Promise<boolean>
}

/**
 * Links of what is mounted are followed by the runtime as well, when it mounts something within: there may be none.
 * @throws Failure build_failed
 */
async function checkWithin(holders: readonly Holder[], targets: readonly string[], onto: Root): Promise<void> {
  const resolved = async (target: string) => follow(await onto.tree(), target)
  const places = await Promise.all(targets.map(resolved))
  for (const { target, isLink } of holders) {
    const above = `${await resolved(target)}/`
    for (const place of places) {
      if (!place.startsWith(above)) continue
      const parts = place.slice(above.length).split('/')
      for (let i = 1; i <= parts.length; i++)
        if (await isLink(parts.slice(0, i).join('/')))
          throw refused(`the target cannot be reached by a link of another mount: /${place}`)
    }
  }
}

async function linksOfSource({ rootOf }: MountParts, { from, source }: RunMount & { type: 'bind' }) {
  const tree = await (await rootOf(from)).tree()
  const root = await found(tree, source)
  return async (path: string) => (await tree.lstat(below(root, path)))?.type === 'symlink'
}

/** What another command of the tenant does to a shared cache meanwhile is not seen: it is the tenant's own container. */
const isLinkIn = (directory: string, path: string): boolean => {
  try {
    return lstatSync(join(directory, path), { throwIfNoEntry: false })?.isSymbolicLink() ?? false
  } catch (error) {
    return ignore(error, 'ENOTDIR', 'ENAMETOOLONG') ?? false
  }
}

type CacheMount = RunMount & { readonly type: 'cache' }

/**
 * Lends every cache that a command mounts: one that it has in two places once, and all in one order, whatever theirs in
 * the Dockerfile, so that no two commands wait for each other.
 */
async function lendAll(parts: MountParts, mounts: readonly RunMount[]) {
  const caches = mounts.filter((mount): mount is CacheMount => mount.type === 'cache')
  const wanted = new Map<string, CacheMount[]>()
  for (const mount of caches) {
    const identity = await identityOf(parts, mount)
    wanted.set(identity, [...(wanted.get(identity) ?? []), mount])
  }
  const lent: LentMount[] = []
  const directories = new Map<CacheMount, string>()
  const release = () => {
    for (const one of lent.splice(0)) one.release()
  }
  try {
    for (const [identity, same] of [...wanted].sort(([a], [b]) => (a < b ? -1 : 1))) {
      const [first] = same
      if (!first) continue
      const one = await lendFor(parts, first, identity)
      lent.push(one)
      for (const mount of same) directories.set(mount, one.directory)
    }
  } catch (error) {
    release()
    throw error
  }
  return { release, directory: (mount: CacheMount) => directories.get(mount) ?? '' }
}

/** Where the node itself mounts, nothing else may be. */
function placeOf(target: string): string {
  const path = `/${target.split('/').filter(Boolean).join('/')}`
  if (/^\/(proc|sys|dev)?(\/|$)/.test(path) && !path.startsWith('/dev/shm/'))
    throw refused(`the target cannot be /, /proc, /sys or /dev, or below these: ${path}`)
  return path
}

function inMemory({ memoryBytes }: MountParts, { target, size }: RunMount & { type: 'tmpfs' }) {
  const sizeBytes = Math.min(64 * GiB, Math.max(MIN_TMPFS_BYTES, size ?? memoryBytes))
  return { path: placeOf(target), sizeBytes, mode: 0o1777 }
}

async function bound(parts: MountParts, mount: RunMount & { type: 'bind' }): Promise<Attachment> {
  const root = await parts.rootOf(mount.from)
  const path = await found(await root.tree(), mount.source)
  const layers = await root.directories()
  return { kind: 'layers', layers, path: `/${path}`, writable: mount.readWrite, target: placeOf(mount.target) }
}

async function lendFor(parts: MountParts, mount: CacheMount, identity: string): Promise<LentMount> {
  const { tenantId, cacheBytes, signal, ids } = parts
  const { id, sharing, mode, from, source } = mount
  checkOwner(mount, ids)
  return parts.lend({
    ...{ tenantId, id, sharing, mode, cacheBytes, signal },
    uid: mount.uid,
    gid: mount.gid,
    identity,
    seed: async (directory) => {
      if (from === null) return
      const root = await parts.rootOf(from)
      await parts.fill(directory, root, await found(await root.tree(), source))
    },
  })
}

function secretOf(
  { secrets, ids }: MountParts,
  mount: RunMount & { type: 'secret' },
  attachments: Attachment[],
  env: Record<string, string>,
): void {
  const bytes = secrets.get(mount.id)
  if (!bytes && mount.required) throw refused(`the secret ${mount.id} is needed, and was not given`)
  if (!bytes) return
  checkOwner(mount, ids)
  if (mount.target !== null) attachments.push(inFile(placeOf(mount.target), bytes, mount))
  if (mount.env === null) return
  const value = Buffer.from(bytes).toString()
  if (value.includes('\0')) throw refused(`the secret ${mount.id} has a zero byte, which no variable can have`)
  env[mount.env] = value
}

const inFile = (
  target: string,
  bytes: Uint8Array,
  { uid, gid, mode }: { readonly uid: number; readonly gid: number; readonly mode: number },
): Attachment => ({ kind: 'file', bytes, uid, gid, mode, target })

/** Others are no ids of the tenant's. */
function checkOwner({ uid, gid }: { readonly uid: number; readonly gid: number }, { count }: IdRange): void {
  if (uid >= count || gid >= count) throw refused(`uid and gid must be below ${count}`)
}
