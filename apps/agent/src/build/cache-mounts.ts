// cache-mounts.ts: what `RUN --mount=type=cache` keeps between builds. Each is a layer of the pool, of one tenant and one
// identity, with owners as they are inside: it is mounted with shifted ids. Its record is written last: one that a crash
// left without is removed by recovery, as it knows no name for it.

import { createHash } from 'node:crypto'
import { chmodSync, chownSync, mkdirSync } from 'node:fs'
import { join } from 'node:path'
import { Failure, MiB, type TenantId } from '@berth/contracts'
import { z } from 'zod'
import { Exclusive } from '../images/exclusive.js'
import { Turns } from '../sandbox/turns.js'
import type { Pool } from '../storage/pool.js'
import { type Kept, RecordFiles } from './records.js'

const MountRecord = z.object({ createdAt: z.iso.datetime(), id: z.string() })
type MountRecord = z.infer<typeof MountRecord>

/** Of a tenant on this node; a build that wants more at once is refused. */
const MAX_MOUNTS = 256
/** What a mount may hold at least. */
const MIN_BYTES = 64 * MiB

export type MountPool = Pick<Pool, 'create' | 'remove' | 'path' | 'resize' | 'fill' | 'list'>

export interface WantedMount {
  readonly tenantId: TenantId
  /** As the Dockerfile names it; by default its target. */
  readonly id: string
  /** All that makes it another one: its first content, owner and mode. */
  readonly identity: string
  readonly sharing: 'shared' | 'private' | 'locked'
  readonly mode: number
  readonly uid: number
  readonly gid: number
  /** What all mounts of the tenant may have. */
  readonly cacheBytes: number
  readonly signal: AbortSignal
  /** Fills a new one, an empty directory. */
  readonly seed: (directory: string) => Promise<void>
}

/** A mount while a command has it. */
export interface LentMount {
  readonly directory: string
  release(): void
}

export interface KeptMount extends Kept<MountRecord> {
  readonly bytes: number
  readonly inUse: boolean
}

export class CacheMounts {
  readonly #files: RecordFiles<MountRecord>
  readonly #pool: MountPool
  readonly #making = new Exclusive()
  readonly #users = new Map<string, number>()
  /** Of mounts that somebody has, or waits for. */
  readonly #locks = new Map<string, Turns>()

  /** Most bytes of all tenants. */
  readonly #mostBytes: number
  /** What those that are in use may come to. */
  readonly #limits = new Map<string, number>()

  private constructor(files: RecordFiles<MountRecord>, pool: MountPool, mostBytes: number) {
    this.#files = files
    this.#pool = pool
    this.#mostBytes = mostBytes
  }

  /**
   * @param directory of all tenants' cache
   * @param mostBytes of all mounts
   */
  static async open(directory: string, pool: MountPool, mostBytes: number): Promise<CacheMounts> {
    const files = await CacheMounts.#read(directory)
    const there = new Set(await pool.list())
    for (const { tenantId, key } of files.all()) if (!there.has(key)) await files.remove(tenantId, key)
    return new CacheMounts(files, pool, mostBytes)
  }

  /** Names of the pool's layers that are cache of builds, and not to be removed as leftovers. */
  static async names(directory: string): Promise<readonly string[]> {
    return (await CacheMounts.#read(directory)).all().map(({ key }) => key)
  }

  static #read(directory: string): Promise<RecordFiles<MountRecord>> {
    return RecordFiles.open(directory, 'mounts', /^cache_[0-9a-f]{40}$/, MountRecord)
  }

  /**
   * Lends a mount to a command, made where there is none.
   * @throws the signal's reason; Fault when the pool is full
   */
  async lend(wanted: WantedMount): Promise<LentMount> {
    const name = this.#nameFor(wanted)
    this.#users.set(name, (this.#users.get(name) ?? 0) + 1)
    const lock = wanted.sharing === 'locked' ? this.#lockOf(name) : undefined
    let locked = false
    const release = () => {
      if (locked) lock?.release()
      const left = (this.#users.get(name) ?? 1) - 1
      this.#users.set(name, left)
      if (left > 0) return
      this.#users.delete(name)
      this.#locks.delete(name)
      this.#limits.delete(name)
    }
    try {
      await lock?.take(wanted.signal)
      locked = true
      await this.#making.run(name, wanted.signal, () => this.#ready(name, wanted))
      return { directory: filesOf(this.#pool.path(name)), release }
    } catch (error) {
      release()
      throw error
    }
  }

  /** Of one tenant, with what they hold: a moment old. */
  async list(tenantId: TenantId): Promise<readonly KeptMount[]> {
    const kept = this.#files.of(tenantId)
    if (kept.length === 0) return []
    const fill = await this.#pool.fill()
    return kept.map((one) => ({
      ...one,
      bytes: fill.get(one.key)?.usedBytes ?? 0,
      inUse: this.#users.has(one.key),
    }))
  }

  tenants(): readonly TenantId[] {
    return this.#files.tenants()
  }

  /** @returns false where a command has it by now */
  async remove(tenantId: TenantId, name: string): Promise<boolean> {
    return this.#making.run(name, new AbortController().signal, async () => {
      if (this.#users.has(name)) return false
      // The record first: a layer without one is nobody's.
      await this.#files.remove(tenantId, name)
      await this.#pool.remove(name)
      return true
    })
  }

  /** A private one is one that nobody else has just now. */
  #nameFor({ tenantId, identity, sharing }: WantedMount): string {
    for (let i = 0; sharing === 'private' && i < MAX_MOUNTS; i++) {
      const name = nameOf(tenantId, identity, i)
      if (!this.#users.has(name)) return name
    }
    return nameOf(tenantId, identity, 0)
  }

  async #ready(name: string, wanted: WantedMount): Promise<void> {
    const { tenantId, id, mode, uid, gid, seed } = wanted
    // One at a time: what this may come to is what others may not.
    const limit = await this.#making.run('limits', wanted.signal, () => this.#limitFor(name, wanted))
    if (this.#files.get(tenantId, name)) {
      await this.#files.touch(tenantId, name)
      return this.#pool.resize(name, limit)
    }
    // Of an attempt at this that failed.
    await this.#pool.remove(name)
    const directory = filesOf(await this.#pool.create(name, limit))
    try {
      mkdirSync(directory)
      await seed(directory)
      chownSync(directory, uid, gid)
      chmodSync(directory, mode & 0o7777)
      await this.#files.put(tenantId, name, { createdAt: new Date().toISOString(), id: id.slice(0, 4096) })
    } catch (error) {
      await this.#pool.remove(name)
      throw error
    }
  }

  /**
   * What a mount may come to: half of what is left to all, and no more than is left to its tenant. Where that is too
   * little, those that nobody has just now go, oldest first.
   * @throws Failure no_capacity
   */
  async #limitFor(name: string, { tenantId, cacheBytes }: WantedMount): Promise<number> {
    const known = this.#limits.get(name)
    if (known !== undefined) return known
    const fill = await this.#pool.fill()
    const bytesOf = (key: string) => Math.max(fill.get(key)?.usedBytes ?? 0, this.#limits.get(key) ?? 0)
    const sum = (keys: Iterable<string>) => [...new Set(keys)].reduce((bytes, key) => bytes + bytesOf(key), 0)
    const others = this.#files.all().filter(({ key }) => key !== name)
    const own = bytesOf(name)
    // Those that are being made have no record yet.
    let left = this.#mostBytes - sum([...others.map(({ key }) => key), ...this.#limits.keys()])
    let mounts = others.filter((one) => one.tenantId === tenantId).length
    for (const { tenantId: owner, key } of [...others].sort((a, b) => a.lastUsedAt - b.lastUsedAt)) {
      const isWanted = left < Math.max(own, 2 * MIN_BYTES) || (mounts >= MAX_MOUNTS && owner === tenantId)
      if (!isWanted || this.#users.has(key) || !(await this.remove(owner, key))) continue
      left += bytesOf(key)
      if (owner === tenantId) mounts -= 1
    }
    if (mounts >= MAX_MOUNTS && !this.#files.get(tenantId, name))
      throw new Failure('no_capacity', `the tenant has ${mounts} cache mounts in use on the node, which is the most`)
    if (left < Math.max(own, MIN_BYTES)) throw new Failure('no_capacity', 'the node has no room for cache mounts')
    const ofTenant = cacheBytes - sum(this.#files.of(tenantId).flatMap(({ key }) => (key === name ? [] : [key])))
    const limit = Math.max(own, MIN_BYTES, Math.min(ofTenant, own + Math.floor((left - own) / 2)))
    this.#limits.set(name, limit)
    return limit
  }

  #lockOf(name: string): Turns {
    const known = this.#locks.get(name) ?? new Turns(1)
    this.#locks.set(name, known)
    return known
  }
}

const filesOf = (layer: string) => join(layer, 'fs')

/** Nothing of a tenant's choosing is in a name of the pool but by its digest. */
function nameOf(tenantId: TenantId, identity: string, index: number): string {
  const digest = createHash('sha256')
    .update(JSON.stringify([tenantId, identity, index]))
    .digest('hex')
  return `cache_${digest.slice(0, 40)}`
}
