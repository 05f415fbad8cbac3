import { Fault } from '@berth/contracts'
import type { Cgroups } from './cgroup.js'
import { CgroupsV1, type Hierarchy } from './cgroup-v1.js'
import { CgroupsV2 } from './cgroup-v2.js'
import { type MountEntry, readMounts } from './mount.js'

/** Which cgroups this machine has. */
export interface CgroupLayout {
  /** `hybrid`: the controllers that matter are in v1, and a cgroup2 is mounted beside. */
  readonly kind: 'v1' | 'v2' | 'hybrid'
  readonly hierarchies: readonly Hierarchy[]
  /** Where cgroup2 is mounted, if it is. */
  readonly unified: string | undefined
  /**
   * Mount points that must be absent from the mount namespace in which the OCI runtime runs: crun refuses a host where
   * both versions have controllers.
   */
  readonly hide: readonly string[]
}

/** The layout of a machine with these mounts. @throws Fault when no hierarchy limits memory */
export function cgroupLayout(mounts: readonly MountEntry[] = readMounts()): CgroupLayout {
  const hierarchies = mounts.filter((entry) => entry.type === 'cgroup').map(hierarchyOf)
  const unified = mounts.find((entry) => entry.type === 'cgroup2')?.target
  if (hierarchies.some((hierarchy) => hierarchy.controllers.includes('memory'))) {
    const hide = mounts.filter((entry) => entry.type === 'cgroup2').map((entry) => entry.target)
    return { kind: unified === undefined ? 'v1' : 'hybrid', hierarchies, unified, hide }
  }
  if (unified !== undefined) return { kind: 'v2', hierarchies: [], unified, hide: [] }
  throw new Fault('find the cgroups of this machine', { cause: new Error('no memory controller is mounted') })
}

/** The cgroups of a machine with this layout. */
export function openCgroups(layout: CgroupLayout = cgroupLayout()): Cgroups {
  if (layout.kind === 'v2' && layout.unified !== undefined) return new CgroupsV2(layout.unified)
  return new CgroupsV1(layout.hierarchies)
}

const flags = new Set(['rw', 'ro', 'xattr', 'noprefix', 'clone_children', 'cpuset_v2_mode', 'none'])

function hierarchyOf(entry: MountEntry): Hierarchy {
  const controllers = entry.superOptions.filter((option) => !flags.has(option) && !option.includes('='))
  return { path: entry.target, controllers }
}
