// process.plan.ts: a spec, its image and its user → the process that berth-init starts. One plan for the command of a job,
// the main process of a sandbox and whatever is run in it later: they differ in what they are given, and are confined by
// the same rules.

import { type JobSpec, type SandboxSpec, type UlimitName, ulimitNames } from '@berth/contracts'
import { capabilityMask, capabilityNames, defaultCapabilities } from '@berth/oci'
import type { Identity } from '../runtime/identity.js'
import { type ResourceLimit, type SpawnRequest, spawnFlags } from '../runtime/init-wire.js'

/** The part of an image's configuration that a process is made from; each may be missing. */
export interface ImageConfig {
  readonly env?: readonly string[] | undefined
  readonly workingDir?: string | undefined
  readonly user?: string | undefined
  readonly entrypoint?: readonly string[] | undefined
  readonly command?: readonly string[] | undefined
  /** As the image gives it: a name or a number, or something else altogether. */
  readonly stopSignal?: string | undefined
}

/** What a process may do and use, whoever it is. */
export interface Confinement {
  /** Mask of the capabilities of root in the sandbox; nobody in it can have any other. */
  readonly capabilities: bigint
  readonly noNewPrivileges: boolean
  readonly limits: readonly ResourceLimit[]
  readonly oomScoreAdj: number
}

export interface ProcessPlan {
  readonly command: readonly string[]
  /** `NAME=value`, as `environment` makes it. */
  readonly env: readonly string[]
  readonly workingDir: string
  readonly who: Identity
  readonly confinement: Confinement
  /** `spawnFlags` besides no_new_privs. */
  readonly flags: number
  readonly terminal?: { readonly rows: number; readonly columns: number } | null
  /** 0: none. */
  readonly timeoutMs: number
  readonly graceMs: number
}

const PATH = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'

/** Output on its way; larger ones did not make 1 GiB of output faster. Counts to the sandbox's memory. */
const RING_BYTES = 64 * 1024

/** Limits of a process by name → RLIMIT_ numbers (asm-generic/resource.h). */
const rlimits: Readonly<Record<UlimitName, number>> = {
  cpu: 0,
  fsize: 1,
  data: 2,
  stack: 3,
  core: 4,
  rss: 5,
  nproc: 6,
  nofile: 7,
  memlock: 8,
  locks: 10,
  sigpending: 11,
  msgqueue: 12,
  nice: 13,
  rtprio: 14,
  rttime: 15,
}

const limit = (name: UlimitName, soft: number, hard: number): ResourceLimit => ({
  resource: rlimits[name],
  soft: BigInt(soft),
  hard: BigInt(hard),
})

/** Later ones win: defaults, the image's, then each of `given`. */
export function environment(
  image: ImageConfig,
  home: string,
  hostname: string,
  ...given: readonly Readonly<Record<string, string>>[]
): readonly string[] {
  const variables = new Map([
    ['PATH', PATH],
    ['HOME', home],
    ['HOSTNAME', hostname],
  ])
  for (const line of image.env ?? []) {
    const equals = line.indexOf('=')
    if (equals > 0) variables.set(line.slice(0, equals), line.slice(equals + 1))
  }
  for (const env of given) for (const [name, value] of Object.entries(env)) variables.set(name, value)
  return [...variables].map(([name, value]) => `${name}=${value}`)
}

/**
 * The process to start. Root of the sandbox gets the capabilities that it is confined to; any other user none at all,
 * and can gain none unless new privileges are allowed.
 */
export function processRequest(plan: ProcessPlan): SpawnRequest {
  const { who, confinement } = plan
  const { capabilities: bounding } = confinement
  return {
    flags: plan.flags | (confinement.noNewPrivileges ? spawnFlags.noNewPrivs : 0),
    uid: who.uid,
    gid: who.gid,
    groups: who.groups,
    capabilities: { bounding, effective: who.uid === 0 ? bounding : 0n, inheritable: 0n, ambient: 0n },
    limits: confinement.limits,
    timeoutMs: plan.timeoutMs,
    graceMs: plan.graceMs,
    oomScoreAdj: confinement.oomScoreAdj,
    rows: plan.terminal?.rows ?? 0,
    columns: plan.terminal?.columns ?? 0,
    ringBytes: RING_BYTES,
    cwd: plan.workingDir,
    argv: plan.command,
    env: plan.env,
  }
}

/** The command of a job. */
export function spawnRequest(spec: JobSpec, image: ImageConfig, who: Identity, hostname: string): SpawnRequest {
  return processRequest({
    command: spec.command,
    env: environment(image, who.home, hostname, spec.env),
    workingDir: spec.workingDir ?? (image.workingDir || '/'),
    who,
    confinement: {
      capabilities: capabilityMask(defaultCapabilities),
      noNewPrivileges: true,
      limits: [limit('nofile', spec.limits.openFiles, spec.limits.openFiles), limit('core', 0, 0)],
      oomScoreAdj: 0,
    },
    flags: spawnFlags.main | (spec.stdin === undefined ? 0 : spawnFlags.stdin),
    timeoutMs: spec.timeoutMs,
    graceMs: spec.graceMs,
  })
}

/** A command of a build. */
export function buildRequest(of: {
  readonly command: readonly string[]
  readonly env: Readonly<Record<string, string>>
  readonly workingDir: string
  readonly who: Identity
  readonly hostname: string
  readonly openFiles: number
  readonly newPrivileges: boolean
  readonly timeoutMs: number
}): SpawnRequest {
  return processRequest({
    command: of.command,
    env: environment({}, of.who.home, of.hostname, of.env),
    workingDir: of.workingDir,
    who: of.who,
    confinement: {
      capabilities: capabilityMask(defaultCapabilities),
      noNewPrivileges: !of.newPrivileges,
      limits: [limit('nofile', of.openFiles, of.openFiles), limit('core', 0, 0)],
      oomScoreAdj: 0,
    },
    flags: spawnFlags.main,
    timeoutMs: of.timeoutMs,
    graceMs: 0,
  })
}

/** What every process of a sandbox is held to. That the operator allows it was checked when the sandbox was made. */
export function sandboxConfinement(spec: SandboxSpec): Confinement {
  const { ulimits } = spec.limits
  const named = { nofile: { soft: 1024, hard: 1024 }, core: { soft: 0, hard: 0 }, ...ulimits }
  return {
    capabilities: sandboxCapabilities(spec),
    noNewPrivileges: spec.noNewPrivileges,
    limits: ulimitsOf(named),
    oomScoreAdj: spec.oomScoreAdj,
  }
}

const ulimitsOf = (named: SandboxSpec['limits']['ulimits']): readonly ResourceLimit[] =>
  ulimitNames.flatMap((name) => {
    const { soft, hard } = named[name] ?? {}
    return soft === undefined || hard === undefined ? [] : [limit(name, soft, hard)]
  })

/** Docker's rule: dropping `ALL` leaves what is added, adding `ALL` leaves what is not dropped. */
export function sandboxCapabilities({ capAdd, capDrop }: Pick<SandboxSpec, 'capAdd' | 'capDrop'>): bigint {
  const all = (names: readonly string[]) => names.includes('CAP_ALL')
  const base = all(capAdd) ? capabilityNames : all(capDrop) ? [] : defaultCapabilities
  return (capabilityMask(base) & ~capabilityMask(all(capDrop) ? [] : capDrop)) | capabilityMask(capAdd)
}

/** A name that every host name syntax takes: the random end of the attempt's id. */
export const hostnameOf = (spec: JobSpec, attemptId: string) => spec.hostname ?? attemptId.slice(-12)
