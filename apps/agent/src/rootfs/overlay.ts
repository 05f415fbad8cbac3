import { chownSync, mkdirSync } from 'node:fs'
import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import type { IdRange } from '@berth/contracts'
import { invariant } from '@berth/contracts'

// overlay.ts: a sandbox's root file system, as arguments of berth-enter (libs/init). Nothing is mounted here, and what
// berth-enter mounts is seen in the sandbox's own mount namespace only.

export interface Rootfs {
  /** Unpacked layers, topmost first, with the owners they have in the image. */
  readonly layers: readonly string[]
  /** The writable layer: a directory with `upper` and `work` below it (see `prepareWritable`). */
  readonly writable: string
  /** Directory of the sandbox on the node; mount points are made in it. */
  readonly directory: string
  readonly ids: IdRange
}

/** Where the root file system is seen by the OCI runtime, which berth-enter starts. */
export const rootfsTarget = (directory: string) => join(directory, 'rootfs')

const layerTarget = (directory: string, index: number) => join(directory, 'lower', String(index))

/**
 * The mounts as options of berth-enter: each layer attached with its owners shifted into the tenant's range, all of
 * them under an overlay whose upper belongs to that range already.
 */
export function enterOptions(rootfs: Rootfs): readonly string[] {
  invariant(rootfs.layers.length > 0, 'an image has layers')
  const { directory, writable, ids } = rootfs
  return [
    '--idmap',
    `0:${ids.base}:${ids.count}`,
    ...rootfs.layers.flatMap((layer, i) => ['--lower', layer, layerTarget(directory, i)]),
    '--overlay',
    rootfsTarget(directory),
    join(writable, 'upper'),
    join(writable, 'work'),
  ]
}

/** Makes the empty directories that the mounts go on. Repeatable. */
export async function prepareTargets(rootfs: Pick<Rootfs, 'layers' | 'directory'>): Promise<void> {
  const targets = rootfs.layers.map((_, i) => layerTarget(rootfs.directory, i))
  await Promise.all([rootfsTarget(rootfs.directory), ...targets].map((path) => mkdir(path, { recursive: true })))
}

/**
 * Makes `upper` and `work` in a fresh layer of the pool, owned by the sandbox's root: an overlay made of idmapped
 * lowers and an idmapped upper comes up read-only, since its work directory would belong to an unmapped root.
 */
export function prepareWritable(writable: string, ids: IdRange): void {
  for (const name of ['upper', 'work']) {
    const path = join(writable, name)
    mkdirSync(path, { mode: 0o755 })
    chownSync(path, ids.base, ids.base)
  }
}
