// steps.ts: what a sandbox is made of, a job's, one that stays, or that of a command of a build, in the order in which it is made. What a step acquires
// is named by the sandbox alone, so its release needs nothing that was remembered: it is idempotent, bears that the step was never taken or
// broke off in the middle, and is run in reverse order at the end, after a failure, and after a crash.

import { chmodSync, chownSync, lstatSync, mkdirSync, type Stats, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { AttemptId, IdRange, SandboxId, TenantId } from '@berth/contracts'
import { type Cgroups, removeTree } from '@berth/host'
import { type Architecture, runtimeSpec, seccomp } from '@berth/oci'
import type { Logger } from '@berth/telemetry'
import {
  type Attachment,
  attachedBinds,
  attachedInput,
  attachOptions,
  enterOptions,
  prepareScratch,
  prepareWritable,
  rootfsTarget,
} from '../rootfs/overlay.js'
import { type OciRuntime, RootReadOnly } from '../runtime/oci-runtime.js'
import type { ReadyMadeSeccomp } from '../runtime/seccomp.js'
import type { Pool } from '../storage/pool.js'
import type { Abilities, Shape } from './shape.plan.js'
import type { Stage } from './stage.js'
import type { TenantGroups } from './tenants.js'

/** What an image brings to a sandbox. */
export interface SandboxImage {
  /** Directories of its unpacked layers, topmost first. */
  readonly layers: readonly string[]
}

/** What the steps work with; one of each per agent. */
export interface Workshop {
  readonly pool: Pick<Pool, 'create' | 'clone' | 'remove' | 'path' | 'list' | 'resize' | 'usage' | 'fill'>
  readonly cgroups: Cgroups
  readonly cgroupVersion: 'v1' | 'v2'
  /** Group above all tenants, e.g. `berth`. */
  readonly cgroupParent: string
  readonly tenants: TenantGroups
  readonly runtime: OciRuntime
  readonly stage: Stage
  readonly architecture: Architecture
  readonly seccomp: ReadyMadeSeccomp
  readonly abilities: Abilities
}

/** A command of a build: the build, and a number in it. */
export type BuildCommandId = string & { readonly [buildCommand]: true }
declare const buildCommand: unique symbol

/** Enough to release everything. */
export interface Named {
  readonly id: AttemptId | SandboxId | BuildCommandId
  readonly tenantId: TenantId
  readonly paths: { readonly bundle: string; readonly socket: string }
}

/** Enough to acquire everything. */
export interface Wanted extends Named {
  readonly ids: IdRange
  readonly shape: Shape
  readonly image: SandboxImage
  readonly hostname: string
  /** What it sees besides its image. Default: nothing. */
  readonly attachments?: readonly Attachment[]
  readonly signal: AbortSignal
}

export interface Step {
  readonly name: 'layer' | 'bundle' | 'cgroup' | 'container'
  acquire(shop: Workshop, wanted: Wanted): Promise<void>
  release(shop: Workshop, named: Named): Promise<void>
}

export const sandboxGroup = (shop: Pick<Workshop, 'tenants'>, { tenantId, id }: Pick<Named, 'tenantId' | 'id'>) =>
  `${shop.tenants.group(tenantId)}/${id}`

/** The writable layer with its hard limit. */
const layer: Step = {
  name: 'layer',
  async acquire(shop, { id, ids, shape, image, hostname, attachments = [] }) {
    const path = await shop.pool.create(id, shape.diskBytes)
    prepareWritable(path, ids)
    prepareScratch(attachments, path, ids)
    placeHostFiles(join(path, 'upper'), image.layers, ids.base, hostname)
  },
  release: (shop, { id }) => shop.pool.remove(id),
}

/** config.json. */
const bundle: Step = {
  name: 'bundle',
  async acquire(shop, wanted) {
    const { paths, ids, hostname, shape, attachments = [] } = wanted
    const { diskBytes: _, seccompProfile, ...confines } = shape
    const { ioWeight: __, ...limits } = confines.limits
    const ready = shop.seccomp[seccompProfile]
    const spec = runtimeSpec({
      ...confines,
      limits,
      cgroupPath: `/${sandboxGroup(shop, wanted)}`,
      cgroupVersion: shop.cgroupVersion,
      architecture: shop.architecture,
      rootfs: rootfsTarget(shop.stage.directory),
      programs: shop.stage.programs,
      binds: attachedBinds(attachments, shop.stage.directory),
      hostname,
      ids,
      seccomp: seccomp(seccompProfile, shop.architecture),
      ...(ready === undefined ? {} : { seccompBpf: ready }),
    })
    mkdirSync(paths.bundle, { mode: 0o700 })
    // Some 40 KiB into the page cache: three turns of a thread, to open, write and close, take longer than that.
    writeFileSync(join(paths.bundle, 'config.json'), JSON.stringify(spec))
  },
  release: (_shop, { paths }) => removeTree(paths.bundle),
}

/** The tenant's group with the tenant's limits; the sandbox's own, below it, is made by the runtime. */
const cgroup: Step = {
  name: 'cgroup',
  acquire: async (shop, { tenantId }) => shop.tenants.ensure(tenantId),
  // The tenant's group stays for its other sandboxes; it goes once it is unused (tenants.ts).
  release: (shop, named) => shop.cgroups.remove(sandboxGroup(shop, named)),
}

/** The container with berth-init running and nothing else. */
const container: Step = {
  name: 'container',
  async acquire(shop, { id, tenantId, ids, paths, image, shape, attachments = [], signal }) {
    const { directory } = shop.stage
    const layers = [image.layers, ...attachments.map((one) => (one.kind === 'layers' ? one.layers : []))]
    await shop.stage.prepare(Math.max(...layers.map(({ length }) => length)), attachments.length)
    const rootfs = { layers: image.layers, writable: shop.pool.path(id), directory, ids }
    const mounts = [...enterOptions(rootfs), ...attachOptions(attachments, rootfs)]
    const stdin = attachedInput(attachments)
    const enter = [...mounts, '--listen', paths.socket]
    const start = { id, bundle: paths.bundle, enter, ...(stdin === undefined ? {} : { stdin }), signal }
    await shop.runtime.start(start).catch((error: unknown) => {
      if (!(error instanceof RootReadOnly)) throw error
      return withRoom(shop, id, shape.diskBytes, () => shop.runtime.start(start))
    })
    // Where its file is depends on the scheduler of the disks, and runtimes know one of the places only.
    const { ioWeight } = shape.limits
    if (ioWeight !== undefined) shop.cgroups.setLimits(sandboxGroup(shop, { tenantId, id }), { ioWeight })
  },
  async release(shop, named) {
    await shop.cgroups.kill(sandboxGroup(shop, named))
    await shop.runtime.forget(named.id)
    await removeTree(named.paths.socket)
  },
}

/** Room that mounting an overlay may take. It holds no byte of the tenant's: the limit is back before anything runs. */
const MOUNT_ROOM_BYTES = 4 * 1024 * 1024

/** Lets a sandbox whose disk is full start, so that its owner can make room in it. */
async function withRoom(shop: Workshop, id: Named['id'], diskBytes: number, work: () => Promise<void>): Promise<void> {
  const { usedBytes = diskBytes } = (await shop.pool.fill()).get(id) ?? {}
  await shop.pool.resize(id, Math.max(usedBytes, diskBytes) + MOUNT_ROOM_BYTES)
  try {
    await work()
  } finally {
    await shop.pool.resize(id, diskBytes)
  }
}

export const steps: readonly Step[] = [layer, bundle, cgroup, container]
/** Those of each run of a sandbox that stays: its layer is made once, and lives as long as it does. */
export const runSteps: readonly Step[] = [bundle, cgroup, container]
export const layerStep = layer

/**
 * Releases everything, or what `only` names, last made first. Every release is tried even if another fails.
 * @throws AggregateError of what failed
 */
export async function releaseAll(shop: Workshop, named: Named, log: Logger, only = steps): Promise<void> {
  const errors: unknown[] = []
  for (const step of [...only].reverse()) {
    log.debug({ sandbox: named.id, step: step.name }, 'step.release')
    try {
      await step.release(shop, named)
    } catch (error) {
      errors.push(error)
    }
  }
  if (errors.length > 0) throw new AggregateError(errors, `release ${named.id}: ${errors.map(String).join('; ')}`)
}

/**
 * Puts /etc/hosts, /etc/hostname and an empty /etc/resolv.conf where the sandbox will see them: straight into its
 * writable layer, owned by its root, because a bind mount each would cost more and be read-only or shared.
 */
function placeHostFiles(upper: string, layers: readonly string[], base: number, hostname: string): void {
  const found = findEtc(layers)
  if (found && !found.isDirectory()) return // an image whose /etc is a link or a file gets none
  const etc = join(upper, 'etc')
  mkdirSync(etc)
  // An upper directory hides the attributes of the one below it, so it gets the same.
  chownSync(etc, base + (found?.uid ?? 0), base + (found?.gid ?? 0))
  chmodSync(etc, (found?.mode ?? 0o755) & 0o7777)
  for (const [name, text] of Object.entries(hostFiles(hostname))) {
    const path = join(etc, name)
    writeFileSync(path, text, { flag: 'wx', mode: 0o644 })
    chownSync(path, base, base)
  }
}

/** What the node writes into /etc of a sandbox, by name. */
export const hostFiles = (hostname: string): Readonly<Record<string, string>> => ({
  hosts: `127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\t${hostname}\n`,
  hostname: `${hostname}\n`,
  'resolv.conf': '',
})

/** Those of every container, which no image has of it, as with Docker. */
export const placedFiles: readonly string[] = Object.keys(hostFiles('')).map((name) => `etc/${name}`)

/** Where the runtime mounts something in every container; it makes the directories that are missing. */
export const mountPoints: readonly string[] = ['dev', 'proc', 'sys']

/** /etc of an image. @param layers topmost first */
export function findEtc(layers: readonly string[]): Stats | undefined {
  for (const directory of layers) {
    const found = lstatSync(join(directory, 'etc'), { throwIfNoEntry: false })
    if (found) return found
  }
  return undefined
}
