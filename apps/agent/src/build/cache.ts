// cache.ts: what builds of a tenant have left on this node for its next ones. Steps by their key, and what commands keep in
// cache mounts. Nothing is shared between tenants: that a step is there would tell what another one has built. Both go by
// when they were last used, once a tenant has more than it may, or has not come back for long.

import { join } from 'node:path'
import {
  type BuildCachePruned,
  type BuildCache as BuildCacheUsage,
  DAY,
  ImageLayer,
  type TenantId,
} from '@berth/contracts'
import { z } from 'zod'
import type { Images } from '../images/images.js'
import type { MissingRoom } from '../images/room.js'
import { CacheMounts, type KeptMount, type LentMount, type MountPool, type WantedMount } from './cache-mounts.js'
import { type Kept, RecordFiles } from './records.js'

/** What a step has made, as it is kept. */
const StepRecord = z.object({
  createdAt: z.iso.datetime(),
  /** The instruction. */
  description: z.string(),
  layer: ImageLayer,
})
export type CachedStep = z.infer<typeof StepRecord>

/** Of a tenant: some of the oldest go then. */
const MAX_STEPS = 5_000
const UNUSED_MS = 30 * DAY
/** Entries that are told of. */
const MAX_TOLD = 10_000

export interface CacheParts {
  /** The agent's data directory. */
  readonly dataDirectory: string
  readonly images: Pick<Images, 'layers' | 'touch' | 'names'>
  readonly pool: MountPool
  /** Most bytes of cache mounts of all tenants. */
  readonly mountBytes: number
  /** DiffIDs of layers that builds need which are going on. */
  readonly inUse: () => ReadonlySet<string>
}

/** One thing that can go. */
interface Entry {
  readonly kind: 'layer' | 'mount'
  readonly key: string
  readonly description: string
  readonly bytes: number
  /** Of a step: another one may have the same. */
  readonly diffId: string | undefined
  readonly createdAt: string
  readonly lastUsedAt: number
  readonly inUse: boolean
}

const directoryOf = (dataDirectory: string) => join(dataDirectory, 'build-cache')

/** Names of the pool's layers that are cache of builds. */
export const cacheMountNames = (dataDirectory: string) => CacheMounts.names(directoryOf(dataDirectory))

export class BuildCache {
  readonly #parts: CacheParts
  readonly #steps: RecordFiles<CachedStep>
  readonly #mounts: CacheMounts
  /** Layers, with their bytes, that no step has any more and that are there still. */
  readonly #going = new Map<string, number>()

  private constructor(parts: CacheParts, steps: RecordFiles<CachedStep>, mounts: CacheMounts) {
    this.#parts = parts
    this.#steps = steps
    this.#mounts = mounts
  }

  static async open(parts: CacheParts): Promise<BuildCache> {
    const directory = directoryOf(parts.dataDirectory)
    const steps = await RecordFiles.open(directory, 'steps', /^[0-9a-f]{64}$/, StepRecord)
    return new BuildCache(parts, steps, await CacheMounts.open(directory, parts.pool, parts.mountBytes))
  }

  /** Digests and diffIDs that are to be kept. */
  *digests(): Iterable<string> {
    for (const { value } of this.#steps.all()) {
      yield value.layer.diffId
      yield value.layer.digest
    }
  }

  /** What a step made; undefined where it is not known, or what it made is gone. It stays for a while then. */
  async find(tenantId: TenantId, key: string): Promise<CachedStep | undefined> {
    const found = this.#steps.get(tenantId, key)
    if (!found) return undefined
    this.#parts.images.touch(found.value.layer.diffId)
    const layer = await this.#parts.images.layers.built(found.value.layer.diffId)
    if (!layer) {
      await this.#steps.remove(tenantId, key)
      return undefined
    }
    await this.#steps.touch(tenantId, key)
    return { ...found.value, layer }
  }

  async put(tenantId: TenantId, key: string, step: CachedStep): Promise<void> {
    const known = this.#steps.of(tenantId)
    if (known.length >= MAX_STEPS)
      for (const old of byAge(known).slice(0, MAX_STEPS / 10)) await this.#steps.remove(tenantId, old.key)
    await this.#steps.put(tenantId, key, { ...step, description: step.description.slice(0, 4096) })
  }

  lend(wanted: WantedMount): Promise<LentMount> {
    return this.#mounts.lend(wanted)
  }

  async usage(tenantId: TenantId): Promise<BuildCacheUsage> {
    const entries = await this.#entries(tenantId)
    return {
      bytes: total(entries),
      entries: byAge(entries)
        .reverse()
        .slice(0, MAX_TOLD)
        .map(({ key, diffId: _, lastUsedAt, ...told }) => ({
          id: key,
          ...told,
          lastUsedAt: new Date(lastUsedAt).toISOString(),
        })),
    }
  }

  /** Removes what was not used for so long, oldest first, until no more than so much is left. */
  async prune(tenantId: TenantId, { unusedForMs = 0, keepBytes = 0 }): Promise<BuildCachePruned> {
    const until = Date.now() - unusedForMs
    const entries = await this.#entries(tenantId)
    const sharers = new Map<string, number>()
    for (const entry of entries) sharers.set(contentOf(entry), (sharers.get(contentOf(entry)) ?? 0) + 1)
    const before = total(entries)
    let [left, removed] = [before, 0]
    for (const entry of byAge(entries)) {
      if (entry.lastUsedAt > until || (keepBytes > 0 && left <= keepBytes)) break
      if (entry.inUse || !(await this.#remove(tenantId, entry))) continue
      removed += 1
      const others = (sharers.get(contentOf(entry)) ?? 1) - 1
      sharers.set(contentOf(entry), others)
      if (others === 0) left -= entry.bytes
    }
    return { removed, freedBytes: before - left }
  }

  /** Removes what nobody has used for a month. */
  async expire(): Promise<void> {
    for (const tenantId of new Set([...this.#steps.tenants(), ...this.#mounts.tenants()]))
      await this.prune(tenantId, { unusedForMs: UNUSED_MS })
  }

  /**
   * Removes steps until as much is missing no more, what was used last by nobody for longest first. What they made goes with
   * one of the next collections: until then it counts as gone. A layer that an image or a sandbox has would not go: its steps stay.
   * @param missing where inodes are short nobody knows how many a layer has: half of what could go
   * @param inUse directories of layers that sandboxes are on
   */
  async shrink(missing: MissingRoom, inUse: ReadonlySet<string>): Promise<void> {
    const { images, inUse: ofBuilds } = this.#parts
    const [building, named] = [ofBuilds(), images.names()]
    const all = layersOf(this.#steps.all()).filter(
      ({ diffId }) => !building.has(diffId) && !named.has(diffId) && !inUse.has(images.layers.path(diffId)),
    )
    const idle = new Set(all.map(({ diffId }) => diffId))
    for (const [diffId] of this.#going)
      if (idle.has(diffId) || (await images.layers.bytes(diffId)) === undefined) this.#going.delete(diffId)
    const going = sum([...this.#going.values()])
    const half = (going + sum(all.map(({ bytes }) => bytes))) / 2
    let left = Math.max(missing.bytes, missing.inodes ? half : 0) - going
    for (const { diffId, bytes, steps } of byAge(all)) {
      if (left <= 0) return
      for (const { tenantId, key } of steps) await this.#steps.remove(tenantId, key)
      this.#going.set(diffId, bytes)
      left -= bytes
    }
  }

  async #remove(tenantId: TenantId, { kind, key }: Entry): Promise<boolean> {
    if (kind === 'mount') return this.#mounts.remove(tenantId, key)
    await this.#steps.remove(tenantId, key)
    return true
  }

  async #entries(tenantId: TenantId): Promise<readonly Entry[]> {
    const inUse = this.#parts.inUse()
    const steps = this.#steps.of(tenantId).map((step) => entryOfStep(step, inUse))
    return [...steps, ...(await this.#mounts.list(tenantId)).map(entryOfMount)]
  }
}

function entryOfStep({ key, value, lastUsedAt }: Kept<CachedStep>, inUse: ReadonlySet<string>): Entry {
  const { createdAt, description, layer } = value
  const { diffId, sizeBytes, unpackedBytes } = layer
  const bytes = sizeBytes + unpackedBytes
  return { kind: 'layer', key, description, createdAt, lastUsedAt, bytes, diffId, inUse: inUse.has(diffId) }
}

/** Layers, with all steps of all tenants that have made them: one goes when none of them is there any more. */
function layersOf(all: readonly Kept<CachedStep>[]) {
  const steps = new Map<string, Kept<CachedStep>[]>()
  for (const step of all) {
    const { diffId } = step.value.layer
    const same = steps.get(diffId)
    if (same) same.push(step)
    else steps.set(diffId, [step])
  }
  return [...steps].map(([diffId, same]) => ({
    diffId,
    steps: same,
    bytes: Math.max(...same.map(({ value: { layer } }) => layer.sizeBytes + layer.unpackedBytes)),
    lastUsedAt: Math.max(...same.map(({ lastUsedAt }) => lastUsedAt)),
  }))
}

const sum = (numbers: readonly number[]) => numbers.reduce((all, one) => all + one, 0)

const entryOfMount = ({ key, value, lastUsedAt, bytes, inUse }: KeptMount): Entry => ({
  kind: 'mount',
  key,
  description: value.id,
  createdAt: value.createdAt,
  lastUsedAt,
  bytes,
  diffId: undefined,
  inUse,
})

const byAge = <T extends { readonly lastUsedAt: number }>(entries: readonly T[]): T[] =>
  [...entries].sort((a, b) => a.lastUsedAt - b.lastUsedAt)

/** A layer that several steps have made is there once. */
const contentOf = ({ kind, key, diffId }: Entry) => diffId ?? `${kind} ${key}`

function total(entries: readonly Entry[]): number {
  const contents = new Map(entries.map((entry) => [contentOf(entry), entry.bytes]))
  return [...contents.values()].reduce((sum, bytes) => sum + bytes, 0)
}
