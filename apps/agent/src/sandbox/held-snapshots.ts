// held-snapshots.ts: copies of sandboxes' files that others begin with. A copy is taken once, while nothing runs in its
// sandbox, and each of those others gets a writable copy of that one: all take the same little time, whatever is in them.
//
// A copy is a layer of the pool, and a record of it in a file that is written first. It goes a while after the last of those
// that were announced has begun, for one of them may have to begin anew after a crash; or when its time is over; or when
// whoever asked for it has no use for it. What a crash leaves of one without a record is a layer that nobody knows.
import { closeSync, constants, fstatSync, lstatSync, mkdirSync, openSync, readFileSync, writeFileSync } from 'node:fs'
import { readdir, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { Failure, type HoldSnapshot, ignore, SandboxId, SnapshotId, TenantId } from '@berth/contracts'
import { readJson } from '@berth/host'
import { z } from 'zod'
import { writeWhole } from '../journal.js'
import type { LiveSandbox } from './live.js'
import { PinnedImage, pin } from './resident-record.js'
import type { RunnableImage } from './sandbox.js'
import { hostFiles, type Workshop } from './steps.js'

const Held = z.object({
  id: SnapshotId,
  tenantId: TenantId,
  sandboxId: SandboxId,
  hostname: z.string(),
  image: PinnedImage,
  clones: z.number().int(),
  /** Who has begun with it. */
  begun: z.array(SandboxId),
  /** Unix milliseconds. */
  expiresAt: z.number(),
})
type Held = z.infer<typeof Held>

/** The copy that a sandbox was to begin with is there no more. */
export class SnapshotGone extends Error {
  constructor() {
    super('the files that it begins with are kept no more: fork again')
    this.name = 'SnapshotGone'
  }
}

/** Commands come within moments; a node that was away gets them when it is back. */
const KEPT_MS = 600_000
/** After the last has begun, or an agent: one that was killed may have had one begin, and not have written that down. */
const LAST_MS = 15_000
/** Of one tenant at a time: what they hold is beside its quota. */
const MOST_OF_TENANT = 4

export class HeldSnapshots {
  readonly #held = new Map<SnapshotId, Held>()

  private constructor(
    private readonly directory: string,
    private readonly pool: Pick<Workshop['pool'], 'clone' | 'remove' | 'list'>,
  ) {}

  /** @param dataDirectory the agent's. @throws Fault when a record is damaged */
  static async open(
    dataDirectory: string,
    pool: Pick<Workshop['pool'], 'clone' | 'remove' | 'list'>,
  ): Promise<HeldSnapshots> {
    const directory = join(dataDirectory, 'snapshots')
    mkdirSync(directory, { recursive: true, mode: 0o700 })
    const snapshots = new HeldSnapshots(directory, pool)
    const layers = new Set(await pool.list())
    for (const name of await readdir(directory)) {
      const isRecord = SnapshotId.safeParse(name).success
      const held = isRecord ? await readJson(join(directory, name), (value) => Held.parse(value)) : undefined
      // Killed before there was a copy, or the node was cleaned.
      const least = Date.now() + LAST_MS
      if (held && layers.has(held.id))
        snapshots.#held.set(held.id, { ...held, expiresAt: Math.max(held.expiresAt, least) })
      else await rm(join(directory, name), { force: true })
    }
    return snapshots
  }

  /** Layers of the pool that are known here, for the recovery. */
  layers(): readonly string[] {
    return [...this.#held.keys()]
  }

  /** Directories of image layers that those are on who begin with them. */
  layersInUse(): readonly string[] {
    return [...this.#held.values()].flatMap(({ image }) => image.layers)
  }

  /**
   * Copies the files of a sandbox. Asked again with the same id it changes nothing.
   * @param still as `Residents.still`
   * @throws Failure rate_limited; what `still` throws
   */
  async hold(
    live: Pick<LiveSandbox, 'id' | 'tenantId' | 'hostname' | 'spec'>,
    image: RunnableImage,
    { id, clones }: HoldSnapshot,
    still: (work: () => Promise<unknown>) => Promise<unknown>,
  ): Promise<void> {
    const { tenantId } = live
    if (this.#held.has(id)) return
    const ofTenant = [...this.#held.values()].filter((one) => one.tenantId === tenantId)
    const idle = ofTenant.filter(({ begun, clones: wanted }) => begun.length < wanted)
    if (idle.length >= MOST_OF_TENANT)
      throw new Failure(
        'rate_limited',
        `${idle.length} forks of the tenant are under way on this node, which is the most`,
      )
    const expiresAt = Date.now() + KEPT_MS
    this.#save({
      id,
      tenantId,
      sandboxId: live.id,
      hostname: live.hostname,
      image: pin(image),
      clones,
      begun: [],
      expiresAt,
    })
    try {
      await still(() => this.pool.clone(live.id, id, live.spec.limits.diskBytes))
    } catch (error) {
      await this.#remove(id)
      throw error
    }
  }

  /** What a sandbox is on that begins with a copy. @throws SnapshotGone */
  imageOf(id: SnapshotId, tenantId: TenantId): RunnableImage {
    return this.#find(id, tenantId).image
  }

  /**
   * Makes the writable layer of a sandbox.
   * @throws SnapshotGone, Fault
   */
  async begin(id: SnapshotId, { id: sandbox, tenantId, hostname, spec }: LiveSandbox): Promise<void> {
    const { hostname: before } = this.#find(id, tenantId)
    const path = await this.pool.clone(id, sandbox, spec.limits.diskBytes)
    rename(join(path, 'upper'), before, hostname)
    const held = this.#held.get(id)
    if (!held) return
    const begun = [...new Set([...held.begun, sandbox])]
    const last = begun.length >= held.clones ? Date.now() + LAST_MS : held.expiresAt
    this.#save({ ...held, begun, expiresAt: Math.min(held.expiresAt, last) })
  }

  /** Nobody is to begin with it. */
  async release(id: SnapshotId, sandboxId: SandboxId): Promise<void> {
    if (this.#held.get(id)?.sandboxId === sandboxId) await this.#remove(id)
  }

  /** Removes those whose time is over. */
  async expire(now: number): Promise<void> {
    for (const { id, expiresAt } of [...this.#held.values()]) if (expiresAt <= now) await this.#remove(id)
  }

  #find(id: SnapshotId, tenantId: TenantId): Held {
    const held = this.#held.get(id)
    if (held?.tenantId === tenantId) return held
    throw new SnapshotGone()
  }

  #save(held: Held): void {
    writeWhole(join(this.directory, held.id), held)
    this.#held.set(held.id, held)
  }

  /** The layer last: without a record it is removed by the next start. */
  async #remove(id: SnapshotId): Promise<void> {
    this.#held.delete(id)
    await rm(join(this.directory, id), { force: true })
    await this.pool.remove(id)
  }
}

/**
 * Has the files that the node writes into each sandbox say the new name, where they are still what it wrote. Nobody runs on
 * them yet, and a link is not followed.
 */
function rename(upper: string, before: string, after: string): void {
  const etc = join(upper, 'etc')
  if (!lstatSync(etc, { throwIfNoEntry: false })?.isDirectory()) return
  for (const [name, text] of Object.entries(hostFiles(after))) {
    const written = hostFiles(before)[name] ?? ''
    const file = openPlain(join(etc, name))
    if (file === undefined) continue
    try {
      // Of another length it is the sandbox's, and may have gigabytes.
      if (fstatSync(file).size !== Buffer.byteLength(written)) continue
      if (readFileSync(file, { encoding: 'utf8' }) === written) writeFileSync(join(etc, name), text)
    } finally {
      closeSync(file)
    }
  }
}

/** A regular file; undefined where there is something else, or nothing. */
function openPlain(path: string): number | undefined {
  if (!lstatSync(path, { throwIfNoEntry: false })?.isFile()) return undefined
  try {
    return openSync(path, constants.O_RDONLY | constants.O_NOFOLLOW)
  } catch (error) {
    return ignore(error, 'ENOENT', 'ELOOP')
  }
}
