import { mkdirSync } from 'node:fs'
import { arch } from 'node:os'
import { join } from 'node:path'
import { Fault } from '@berth/contracts'
import { cgroupLayout, openCgroups } from '@berth/host'
import type { Architecture } from '@berth/oci'
import type { Logger } from '@berth/telemetry'
import { openRuntime, type RuntimeName } from '../runtime/oci-runtime.js'
import { readyMadeSeccomp } from '../runtime/seccomp.js'
import { Pool } from '../storage/pool.js'
import { abilitiesOf } from './abilities.js'
import { openStage } from './stage.js'
import type { Workshop } from './steps.js'
import { TenantGroups } from './tenants.js'

export interface WorkshopOptions {
  /** The agent's data directory, absolute. */
  readonly dataDirectory: string
  readonly cgroupParent: string
  readonly runtime: RuntimeName | 'auto'
  /** Directory of berth-init, berth-enter and berth-files. */
  readonly initDirectory: string
  /** Size of the pool where it is a loop file of its own. */
  readonly poolBytes: number
  /** Writable layers made ahead, and the limit they have. */
  readonly ready: { readonly count: number; readonly limitBytes: number }
  readonly log: Logger
}

/** A workshop, and the one thing in it that has an end. */
export interface OpenWorkshop extends Workshop {
  readonly pool: Pool
}

/**
 * Makes the node ready for sandboxes: runtime, cgroups, stage, pool, seccomp filter. Repeatable, also over what a
 * killed agent left.
 * @throws Fault naming what the node lacks
 */
export async function openWorkshop(options: WorkshopOptions): Promise<OpenWorkshop> {
  const { dataDirectory, cgroupParent, initDirectory } = options
  const architecture = supported(arch())
  mkdirSync(dataDirectory, { recursive: true, mode: 0o711 })
  const stage = openStage(dataDirectory, initDirectory)
  const layout = cgroupLayout()
  const runtime = await openRuntime(options.runtime, {
    stateDirectory: join(dataDirectory, 'runtime'),
    enter: join(initDirectory, 'berth-enter'),
    hide: layout.hide,
  })
  const cgroups = openCgroups(layout)
  cgroups.create(cgroupParent)
  const cgroupPath = `/${cgroupParent}/seccomp`
  const filter = { runtime, architecture, directory: dataDirectory, cgroupPath, program: join(stage.programs, 'init') }
  const [pool, filters] = await Promise.all([
    Pool.open({ dataDir: dataDirectory, sizeBytes: options.poolBytes, ready: options.ready }),
    readyMadeSeccomp(filter),
  ])
  // Now that the disk of the pool is there.
  cgroups.countDisks(cgroupParent)
  const cgroupVersion = layout.kind === 'v2' ? 'v2' : 'v1'
  const tenants = new TenantGroups(cgroups, cgroupParent, options.log)
  const abilities = abilitiesOf(cgroups.weighsIo(cgroupParent))
  const common = { pool, cgroups, cgroupVersion, cgroupParent, tenants, runtime, stage, architecture } as const
  return { ...common, seccomp: filters, abilities }
}

function supported(name: string): Architecture {
  if (name === 'x64' || name === 'arm64') return name
  throw new Fault('use this machine', { cause: new Error(`no seccomp profile for ${name}`) })
}
