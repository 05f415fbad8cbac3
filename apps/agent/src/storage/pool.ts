import { existsSync, renameSync } from 'node:fs'
import { mkdir, open, readdir, rename, rm, statfs } from 'node:fs/promises'
import { join } from 'node:path'
import { errnoOf, Fault, ignore, invariant, MiB } from '@berth/contracts'
import { expectSuccess, expectWhole, mountAt, run, unmount } from '@berth/host'

// pool.ts: where writable layers live. Each is a btrfs subvolume with a qgroup limit, so that its size is a hard limit
// of the kernel's, creating one costs a millisecond, and removing one does not walk its files.
//
// On a btrfs data directory the pool is a directory; elsewhere it is a file system on a sparse loop file, the only mount
// that an agent keeps in the host's table. Names: `<id>` in use, `.ready-*` made ahead, `.trash-*` given up: what a
// crash leaves under the last two is used or removed by the next `open`.

/** BTRFS_SUPER_MAGIC, statfs(2). */
const BTRFS_MAGIC = 0x9123683e

/** More than one is a batch: `btrfs subvolume delete` takes many paths for the price of one process. */
const MAX_DELETE_BATCH = 64
/** Making one takes two processes: of the CPU that the sandbox needs which was just given one, unless few are left. */
const REFILL_MS = 200

/** A line for each layer, some 60 bytes. */
const MAX_QGROUPS = 64 * MiB

export interface PoolOptions {
  /** Directory of the agent; the pool is `pool` in it, its file `pool.img`. */
  readonly dataDir: string
  /** Size of the loop file where one is made. It is sparse, but btrfs may fill it. */
  readonly sizeBytes: number
  /** How many layers are made ahead, and the limit they are given: what most sandboxes ask for. */
  readonly ready: { readonly count: number; readonly limitBytes: number }
}

/** What a layer holds: `referencedBytes` counts towards its limit. */
export interface LayerUsage {
  readonly referencedBytes: number
  readonly exclusiveBytes: number
}

export class Pool {
  private readonly ready: string[] = []
  private readonly trash: {
    readonly path: string
    readonly done: () => void
    readonly failed: (e: unknown) => void
  }[] = []
  private serial = 0
  private refilling: Promise<void> | undefined
  private emptying: Promise<void> | undefined
  private soon: NodeJS.Timeout | undefined
  private closed = false

  private constructor(
    private readonly root: string,
    private readonly options: PoolOptions,
  ) {}

  /**
   * Opens the pool, making and mounting it where that has not been done, and clears away what a crash left.
   * @throws Fault naming the step that failed
   */
  static async open(options: PoolOptions): Promise<Pool> {
    const root = join(options.dataDir, 'pool')
    await mkdir(root, { recursive: true, mode: 0o700 })
    if ((await statfs(root)).type !== BTRFS_MAGIC) await mountLoop(root, options)
    // Idempotent: enabling enabled quotas changes nothing.
    expectSuccess(await run(['btrfs', 'quota', 'enable', root]))
    const pool = new Pool(root, options)
    await pool.adoptLeftovers()
    pool.refill()
    return pool
  }

  path(id: string): string {
    invariant(/^[a-z0-9_]{1,64}$/.test(id), `layer id ${id}`)
    return join(this.root, id)
  }

  /**
   * Makes an empty layer. `limitBytes` holds whatever is written below its path, metadata of small files included.
   * @throws Fault when the pool is full, or a layer of this id exists
   */
  async create(id: string, limitBytes: number): Promise<string> {
    const path = this.path(id)
    const made = this.ready.pop() ?? (await this.makeReady())
    this.refillSoon()
    if (existsSync(path)) {
      this.ready.push(made)
      throw new Fault(`create layer ${id}`, { cause: 'it exists' })
    }
    // The limit goes first: under its own name a layer is never seen without one.
    if (limitBytes !== this.options.ready.limitBytes) await setLimit(made, limitBytes)
    // A thread's turn is longer than this takes.
    renameSync(made, path)
    return path
  }

  /** Also of a layer that is full: by its number, because by its path it would first have to be written to. */
  async resize(id: string, limitBytes: number): Promise<void> {
    const number = expectSuccess(await run(['btrfs', 'inspect-internal', 'rootid', this.path(id)])).stdout.trim()
    expectSuccess(await run(['btrfs', 'qgroup', 'limit', String(limitBytes), `0/${number}`, this.root]))
  }

  /** A writable copy that shares all blocks with `from` until either changes. */
  async clone(from: string, id: string, limitBytes: number): Promise<string> {
    const temporary = join(this.root, `.ready-clone-${process.pid}-${this.serial++}`)
    try {
      expectSuccess(await run(['btrfs', 'subvolume', 'snapshot', this.path(from), temporary]))
      await setLimit(temporary, limitBytes)
      await rename(temporary, this.path(id))
    } catch (error) {
      if (existsSync(temporary)) await this.discard(temporary)
      throw error
    }
    return this.path(id)
  }

  async usage(id: string): Promise<LayerUsage> {
    const result = expectSuccess(await run(['btrfs', 'qgroup', 'show', '--raw', '-f', '--sync', this.path(id)]))
    const fields = /^0\/\d+\s+(\d+)\s+(\d+)/m.exec(result.stdout)
    if (!fields) throw new Fault(`usage of layer ${id}`, { cause: result.stdout })
    return { referencedBytes: Number(fields[1]), exclusiveBytes: Number(fields[2]) }
  }

  /** Of every layer that has a limit: what counts towards it, and the limit. One look at all, a moment old. */
  async fill(): Promise<ReadonlyMap<string, { readonly usedBytes: number; readonly limitBytes: number }>> {
    const show = ['btrfs', 'qgroup', 'show', '--raw', '-r', this.root] as const
    const result = expectWhole(await run(show, { maxOutputBytes: MAX_QGROUPS }))
    const rows = result.stdout.matchAll(/^0\/\d+\s+(\d+)\s+\d+\s+(\d+)\s+(?:\S*\/)?(\S+)$/gm)
    return new Map(
      [...rows].map(([, used, limit, name = '']) => [name, { usedBytes: Number(used), limitBytes: Number(limit) }]),
    )
  }

  /** Ids of all layers in use. */
  async list(): Promise<readonly string[]> {
    return (await readdir(this.root)).filter((name) => !name.startsWith('.')).sort()
  }

  /** Removes a layer and all in it. One that is not there is no error. Resolves when it is gone. */
  async remove(id: string): Promise<void> {
    const path = join(this.root, `.trash-${id}-${process.pid}-${this.serial++}`)
    // As before each start: nothing is left of it.
    if (!existsSync(this.path(id))) return
    try {
      await rename(this.path(id), path)
    } catch (error) {
      if (errnoOf(error) !== 'ENOSPC') return ignore(error, 'ENOENT')
      // A full file system takes no new name, and yet lets layers go, which is how it gets room again.
      return this.discard(this.path(id))
    }
    await this.discard(path)
  }

  /** Finishes what is under way and, where the pool is a loop file of its own, unmounts it; the layers stay. */
  async close(): Promise<void> {
    this.closed = true
    clearTimeout(this.soon)
    await this.refilling
    await this.emptying
    if (mountAt(this.root)) await unmount(this.root)
  }

  private async adoptLeftovers(): Promise<void> {
    // Those made ahead go too: a clone in the making may hold data, and an older configuration set another limit.
    const left = (await readdir(this.root)).filter((name) => /^\.(trash|ready)-/.test(name))
    await Promise.all(left.map((name) => this.discard(join(this.root, name))))
  }

  private refillSoon(): void {
    const refill = () => {
      this.soon = undefined
      this.refill()
    }
    if (this.ready.length < this.options.ready.count / 2) this.refill()
    else this.soon ??= setTimeout(refill, REFILL_MS).unref()
  }

  private refill(): void {
    if (this.refilling || this.closed) return
    this.refilling = (async () => {
      while (!this.closed && this.ready.length < this.options.ready.count) this.ready.push(await this.makeReady())
    })()
      // A full or broken pool shows itself to the next `create`, which makes its own.
      .catch(() => undefined)
      .finally(() => {
        this.refilling = undefined
      })
  }

  private async makeReady(): Promise<string> {
    const path = join(this.root, `.ready-${process.pid}-${this.serial++}`)
    expectSuccess(await run(['btrfs', 'subvolume', 'create', path]))
    await setLimit(path, this.options.ready.limitBytes)
    return path
  }

  private discard(path: string): Promise<void> {
    const gone = new Promise<void>((done, failed) => this.trash.push({ path, done, failed }))
    this.startEmptying()
    return gone
  }

  private startEmptying(): void {
    this.emptying ??= this.empty().finally(() => {
      this.emptying = undefined
      // What came between the last look and here would otherwise wait for the next removal.
      if (this.trash.length > 0) this.startEmptying()
    })
  }

  private async empty(): Promise<void> {
    while (this.trash.length > 0) {
      const batch = this.trash.splice(0, MAX_DELETE_BATCH)
      const result = await run(['btrfs', 'subvolume', 'delete', ...batch.map((entry) => entry.path)])
      for (const entry of batch)
        if (existsSync(entry.path)) entry.failed(new Fault(`remove ${entry.path}`, { cause: result.stderr.trim() }))
        else entry.done()
    }
  }
}

async function setLimit(path: string, limitBytes: number): Promise<void> {
  expectSuccess(await run(['btrfs', 'qgroup', 'limit', String(limitBytes), path]))
}

/** Makes the file system under a temporary name, so that a crash leaves no half-made one under the real name. */
async function mountLoop(root: string, options: PoolOptions): Promise<void> {
  const image = join(options.dataDir, 'pool.img')
  if (!existsSync(image)) {
    const making = `${image}.making`
    await rm(making, { force: true })
    const file = await open(making, 'w', 0o600)
    try {
      await file.truncate(options.sizeBytes)
    } finally {
      await file.close()
    }
    expectSuccess(await run(['mkfs.btrfs', '--quiet', '--metadata', 'single', making]))
    await rename(making, image)
  }
  // nodev, but not nosuid: a writable layer may hold a tenant's set-user-id programs. `loop` frees the device at umount.
  // Removed layers give their space back at the next commit but one, hence not the default of 30 s.
  const flags = 'loop,nodev,noatime,discard=async,commit=5'
  expectSuccess(await run(['mount', '-t', 'btrfs', '-o', flags, image, root]))
}
