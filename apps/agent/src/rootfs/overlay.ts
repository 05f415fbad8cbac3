import { chownSync, mkdirSync } from 'node:fs'
import { mkdir } from 'node:fs/promises'
import { join } from 'node:path'
import type { IdRange } from '@berth/contracts'
import { invariant } from '@berth/contracts'
import type { Bind } from '@berth/oci'

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

/**
 * Something of the node's that a container sees besides its image, in the one mount namespace that it is in. What is of
 * several layers is seen from `path` on: absolute, as all of them together have it, and no part of it a link.
 */
export type Attachment = {
  /** Where, in the container. */
  readonly target: string
} & (
  | {
      readonly kind: 'layers'
      /** Topmost first. */
      readonly layers: readonly string[]
      readonly path: string
      /** Whether it may be written to: what is written goes with the container, and counts to its disk limit. */
      readonly writable: boolean
    }
  | { readonly kind: 'volume'; readonly directory: string; readonly readOnly: boolean }
  | {
      /** In memory only, for reading: a secret, most often. */
      readonly kind: 'file'
      readonly bytes: Uint8Array
      readonly uid: number
      readonly gid: number
      readonly mode: number
    }
)

/** Where the root file system is seen by the OCI runtime, which berth-enter starts. */
export const rootfsTarget = (directory: string) => join(directory, 'rootfs')

const layerTarget = (directory: string, index: number) => join(directory, 'lower', String(index))
const attachmentTarget = (directory: string, index: number) => join(directory, 'attached', String(index))
const scratchOf = (writable: string, index: number) => join(writable, `scratch-${index}`)

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

/** The mounts of what is attached, as further options of berth-enter. What is in files comes by its input. */
export const attachOptions = (attachments: readonly Attachment[], at: Omit<Rootfs, 'layers'>): readonly string[] =>
  attachments.flatMap((one, i) => attachOption(one, i, at))

function attachOption(one: Attachment, i: number, { directory, writable, ids }: Omit<Rootfs, 'layers'>): string[] {
  const target = attachmentTarget(directory, i)
  switch (one.kind) {
    case 'layers': {
      const lowers = one.layers.flatMap((layer, at) => ['--lower', layer, layerTarget(directory, at)])
      const scratch = scratchOf(writable, i)
      const upper = ['--overlay', target, join(scratch, 'upper'), join(scratch, 'work')]
      return [...lowers, ...(one.writable ? upper : ['--overlay-ro', target])]
    }
    case 'volume':
      return ['--volume', one.directory, target]
    case 'file': {
      const { uid, gid, mode, bytes } = one
      const owner = [String(ids.base + uid), String(ids.base + gid)]
      return ['--file', target, ...owner, mode.toString(8), String(bytes.length)]
    }
  }
}

/** What the container is to have bound, once berth-enter has mounted it. */
export const attachedBinds = (attachments: readonly Attachment[], directory: string): readonly Bind[] =>
  attachments.map((one, i) => boundAs(one, attachmentTarget(directory, i)))

function boundAs(one: Attachment, at: string): Bind {
  switch (one.kind) {
    case 'layers':
      return { path: one.target, source: join(at, one.path), readOnly: !one.writable }
    case 'volume':
      return { path: one.target, source: at, readOnly: one.readOnly }
    case 'file':
      return { path: one.target, source: join(at, 'content'), readOnly: true }
  }
}

/** What berth-enter reads: the files, one after the other. Undefined without any. */
export function attachedInput(attachments: readonly Attachment[]): Uint8Array | undefined {
  const files = attachments.flatMap((one) => (one.kind === 'file' ? [one.bytes] : []))
  return files.length === 0 ? undefined : Buffer.concat(files)
}

/** Makes room in a fresh layer of the pool for what is written to attached layers. */
export function prepareScratch(attachments: readonly Attachment[], writable: string, ids: IdRange): void {
  for (const [i, one] of attachments.entries()) {
    if (one.kind !== 'layers' || !one.writable) continue
    mkdirSync(scratchOf(writable, i), { mode: 0o755 })
    prepareWritable(scratchOf(writable, i), ids)
  }
}

/** Makes the empty directories that so many layers and attachments are mounted on. Repeatable. */
export async function prepareTargets(directory: string, layers: number, attachments: number): Promise<void> {
  const targets = [
    ...Array.from({ length: layers }, (_, i) => layerTarget(directory, i)),
    ...Array.from({ length: attachments }, (_, i) => attachmentTarget(directory, i)),
  ]
  await Promise.all([rootfsTarget(directory), ...targets].map((path) => mkdir(path, { recursive: true })))
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
