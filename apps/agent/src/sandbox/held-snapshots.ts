// held-snapshots.ts: copies of sandboxes' files that others begin with. A copy is taken once, while nothing runs in its
// sandbox, and each of those others gets a writable copy of that one: all take the same little time, whatever is in them.
//
// A copy is a layer of the pool, and a record of it in a file that is written first. It goes a while after the last of those
// that were announced has begun, for one of them may have to begin anew after a crash; or when its time is over; or when
// whoever asked for it has no use for it, or has gone before it was there; or when sandboxes have come that may need its
// room (copies.ts). What a crash leaves of one without a record is a layer that nobody knows.
import { closeSync, constants, fstatSync, lstatSync, mkdirSync, openSync, readFileSync, writeFileSync } from 'node:fs'
import { readdir, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { Failure, type HoldSnapshot, ignore, MiB, SandboxId, SnapshotId, TenantId } from '@berth/contracts'
import { readJson } from '@berth/host'
import { z } from 'zod'
import { writeWhole } from '../journal.js'
import type { Copies, CopyPool } from './copies.js'
import type { LiveSandbox } from './live.js'
import { PinnedImage, pin } from './resident-record.js'
import type { RunnableImage } from './sandbox.js'
import { hostFiles } from './steps.js'

const Held = z.object({
  id: SnapshotId,
  tenantId: TenantId,
  sandboxId: SandboxId,
  hostname: z.string(),
  image: PinnedImage,
  clones: z.number().int(),
  /** Who has begun with it, or was deleted before. */
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
/** Of one tenant at a time, that others are still to begin with. */
const MOST_OF_TENANT = 4

/** What writing a name may take, metadata included. */
const NAME_ROOM_BYTES = 4 * MiB

/** What is asked for by whom. */
export interface Holding extends HoldSnapshot {
  /** Has the copying done while nothing in the sandbox runs; as `Residents.still`. */
  readonly still: (work: () => Promise<unknown>) => Promise<unknown>
  /** Aborted when whoever asked has gone. */
  readonly signal: AbortSignal
}

export class HeldSnapshots {
  readonly #held = new Map<SnapshotId, Held>()
  /** Those of which there is no copy yet; they do not fail. */
  readonly #making = new Map<SnapshotId, Promise<void>>()

  private constructor(
    private readonly directory: string,
    private readonly pool: CopyPool,
    private readonly copies: Copies,
  ) {}

  /** @param dataDirectory the agent's. @throws Fault when a record is damaged */
  static async open(dataDirectory: string, pool: CopyPool, copies: Copies): Promise<HeldSnapshots> {
    const directory = join(dataDirectory, 'snapshots')
    mkdirSync(directory, { recursive: true, mode: 0o700 })
    const snapshots = new HeldSnapshots(directory, pool, copies)
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
    await copies.adopt(snapshots.layers())
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
   * Copies the files of a sandbox. Asked again with the same id it changes nothing, and is done when the first is; where
   * that failed it tries in its place.
   * @throws Failure rate_limited, no_capacity; what `still` throws; the signal's reason, with nothing held
   */
  async hold(
    live: Pick<LiveSandbox, 'id' | 'tenantId' | 'hostname' | 'spec'>,
    image: RunnableImage,
    asked: Holding,
  ): Promise<void> {
    const { id } = asked
    for (let making = this.#making.get(id); making; making = this.#making.get(id)) await making
    if (this.#held.has(id)) return
    const made = this.#make(live, image, asked)
    const over = made.then(
      () => undefined,
      () => undefined,
    )
    this.#making.set(id, over)
    void over.then(() => this.#making.delete(id))
    await made
  }

  async #make(
    live: Pick<LiveSandbox, 'id' | 'tenantId' | 'hostname' | 'spec'>,
    image: RunnableImage,
    { id, clones, still, signal }: Holding,
  ): Promise<void> {
    const { id: sandboxId, tenantId, hostname, spec } = live
    const ofTenant = [...this.#held.values()].filter((one) => one.tenantId === tenantId)
    const idle = ofTenant.filter(({ begun, clones: wanted }) => begun.length < wanted)
    if (idle.length >= MOST_OF_TENANT)
      throw new Failure(
        'rate_limited',
        `${idle.length} forks of the tenant are under way on this node, which is the most`,
      )
    const expiresAt = Date.now() + KEPT_MS
    this.#save({ id, tenantId, sandboxId, hostname, image: pin(image), clones, begun: [], expiresAt })
    try {
      await this.copies.take(sandboxId, id, spec.limits.diskBytes, still)
      // Nobody would know of it, and it would be there for as long as those that somebody wants.
      signal.throwIfAborted()
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
    const { diskBytes } = spec.limits
    // Its disk may be full already. Nothing of it runs before its limit is what it is to be.
    const room = this.copies.bytes(id) + NAME_ROOM_BYTES > diskBytes ? NAME_ROOM_BYTES : 0
    const path = await this.pool.clone(id, sandbox, diskBytes + room).catch((error: unknown) => {
      throw this.#held.has(id) ? error : new SnapshotGone()
    })
    rename(join(path, 'upper'), before, hostname)
    if (room > 0) await this.pool.resize(sandbox, diskBytes)
    this.#leave(id, sandbox)
  }

  /** A sandbox goes, whether it has begun or not. */
  forgo(id: SnapshotId, { id: sandbox, tenantId }: Pick<LiveSandbox, 'id' | 'tenantId'>): void {
    if (this.#held.get(id)?.tenantId === tenantId) this.#leave(id, sandbox)
  }

  /** Nobody is to begin with it, also where it is only being made. */
  async release(id: SnapshotId, sandboxId: SandboxId): Promise<void> {
    await this.#making.get(id)
    if (this.#held.get(id)?.sandboxId === sandboxId) await this.#remove(id)
  }

  /** Removes those whose time is over, and the largest while they take what sandboxes may need. */
  async expire(now: number): Promise<void> {
    for (const { id, expiresAt } of this.#made()) if (expiresAt <= now) await this.#remove(id)
    let excess = await this.copies.excess()
    for (const { id } of this.#made().sort((a, b) => this.copies.bytes(b.id) - this.copies.bytes(a.id))) {
      if (excess <= 0) return
      excess -= this.copies.bytes(id)
      await this.#remove(id)
    }
  }

  #made(): Held[] {
    return [...this.#held.values()].filter(({ id }) => !this.#making.has(id))
  }

  /** It needs it no more, unless it begins anew. */
  #leave(id: SnapshotId, sandbox: SandboxId): void {
    const held = this.#held.get(id)
    if (!held) return
    const begun = [...new Set([...held.begun, sandbox])]
    const last = begun.length >= held.clones ? Date.now() + LAST_MS : held.expiresAt
    this.#save({ ...held, begun, expiresAt: Math.min(held.expiresAt, last) })
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
    await this.copies.drop(id)
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
