// shape.plan.ts: what a sandbox is made to be, whatever kind it is of: a job's, or one that stays. The steps make it from
// this; what runs in it is process.plan.ts' business.

import { type BuildLimits, type JobSpec, MiB, type SandboxSpec } from '@berth/contracts'
import { capabilitiesOf, isSeccompProfile, type RaisedLimit, type RuntimeInput, type SeccompProfile } from '@berth/oci'
import { sandboxCapabilities } from './process.plan.js'

export interface Shape
  extends Pick<
    RuntimeInput,
    'limits' | 'tmpfs' | 'readOnlyRootfs' | 'capabilities' | 'noNewPrivileges' | 'sysctls' | 'raisedLimits'
  > {
  readonly diskBytes: number
  readonly seccompProfile: SeccompProfile
}

/** What this node can and cannot do for a sandbox. */
export interface Abilities {
  /** Hard limits per process that the agent has itself, by name; what is not here has none. */
  readonly hardLimits: Readonly<Partial<Record<string, number>>>
  /** Whether the agent may give more than it has (CAP_SYS_RESOURCE). */
  readonly raisesLimits: boolean
  readonly weighsIo: boolean
  /** How many CPUs the machine has. */
  readonly cpus: number
}

export const jobShape = ({ limits }: JobSpec): Shape => ({
  limits,
  diskBytes: limits.diskBytes,
  seccompProfile: 'default',
})

/** Open files that a command of a build may have: package managers want many. */
const BUILD_OPEN_FILES = 65_536
const BUILD_SHM_BYTES = 64 * MiB

/** A command of a build, and how many files it may have open on this node. */
export function buildShape(
  of: { readonly limits: BuildLimits; readonly tmpfs: SandboxSpec['tmpfs']; readonly newPrivileges: boolean },
  { hardLimits, raisesLimits }: Abilities,
): { readonly shape: Shape; readonly openFiles: number } {
  const { limits, tmpfs, newPrivileges } = of
  const inherited = hardLimits.nofile ?? BUILD_OPEN_FILES
  const openFiles = raisesLimits ? BUILD_OPEN_FILES : Math.min(BUILD_OPEN_FILES, inherited)
  const shape: Shape = {
    limits: { ...limits, shmBytes: BUILD_SHM_BYTES },
    tmpfs,
    noNewPrivileges: !newPrivileges,
    raisedLimits: openFiles > inherited ? [{ type: 'RLIMIT_NOFILE', hard: openFiles }] : [],
    diskBytes: limits.diskBytes,
    seccompProfile: 'default',
  }
  return { shape, openFiles }
}

export function sandboxShape(spec: SandboxSpec, abilities: Abilities): Shape {
  const { limits, seccompProfile } = spec
  return {
    limits,
    diskBytes: limits.diskBytes,
    tmpfs: spec.tmpfs,
    readOnlyRootfs: spec.readOnlyRootfs,
    capabilities: capabilitiesOf(sandboxCapabilities(spec)),
    noNewPrivileges: spec.noNewPrivileges,
    sysctls: spec.sysctls,
    raisedLimits: raised(limits.ulimits, abilities),
    seccompProfile: isSeccompProfile(seccompProfile) ? seccompProfile : 'strict',
  }
}

type Ulimits = SandboxSpec['limits']['ulimits']

function raised(ulimits: Ulimits, { hardLimits }: Abilities): readonly RaisedLimit[] {
  return Object.entries(ulimits).flatMap(([name, { hard }]) => {
    // No core files but where they are asked for, so for those any limit is above what there is.
    const inherited = name === 'core' ? 0 : (hardLimits[name] ?? Number.POSITIVE_INFINITY)
    return hard > inherited ? [{ type: `RLIMIT_${name.toUpperCase()}`, hard }] : []
  })
}

/** Why this node cannot make such a sandbox; undefined when it can. What an operator forbids is not asked here. */
export function impossible(spec: SandboxSpec, abilities: Abilities): string | undefined {
  const { limits, seccompProfile } = spec
  if (!isSeccompProfile(seccompProfile)) return `this node has no seccomp profile ${seccompProfile}`
  if (limits.ioWeight !== undefined && !abilities.weighsIo) return 'the kernel of this node cannot weigh disk access'
  const most = Math.max(-1, ...(limits.cpuset ?? '').split(/[-,]/).filter(Boolean).map(Number))
  if (most >= abilities.cpus) return `this node has CPUs 0 to ${abilities.cpus - 1}, and cpuset names ${most}`
  return abilities.raisesLimits ? undefined : tooHigh(limits.ulimits, abilities)
}

function tooHigh(ulimits: Ulimits, { hardLimits }: Abilities): string | undefined {
  for (const [name, { hard }] of Object.entries(ulimits)) {
    const most = hardLimits[name]
    if (most !== undefined && hard > most) return `this node cannot give a ${name} limit of ${hard}, at most ${most}`
  }
  return undefined
}
