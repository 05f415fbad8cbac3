// policy.ts: what an operator lets tenants ask for in a sandbox. A spec that asks for more is refused with the name of
// the policy that stands in the way. Whatever a policy allows, a sandbox stays in namespaces of its own.
import { type SandboxLimits, type SandboxSpec, type UlimitName } from '@berth/contracts'

export interface SandboxPolicy {
  /** Capabilities that may be added, as `CAP_NAME`; dropping is never refused. */
  readonly capAdd: ReadonlySet<string>
  /** Sysctls that may be set: a name, or a beginning of one that ends with `*`. Never more than `safeSysctls`. */
  readonly sysctls: readonly string[]
  readonly seccompProfiles: ReadonlySet<string>
  /** Whether `noNewPrivileges: false` may be asked for. */
  readonly newPrivileges: boolean
  readonly cpuset: boolean
  /** Highest `oomScoreAdj`. Lower ones than 0 are refused by the schema. */
  readonly maxOomScoreAdj: number
  /** Largest limits of one sandbox; what is not given is bounded by quota and nodes only. */
  readonly max: {
    readonly cpus?: number | undefined
    readonly memoryBytes?: number | undefined
    readonly diskBytes?: number | undefined
    readonly pids?: number | undefined
    readonly swapBytes?: number | undefined
    readonly openFiles?: number | undefined
  }
}

/**
 * Sysctls that belong to a sandbox's own namespaces (ipc, network), so that setting them reaches nothing outside:
 * namespaces(7), and Documentation/admin-guide/sysctl of Linux.
 */
export const safeSysctls = [
  ...['kernel.msgmax', 'kernel.msgmnb', 'kernel.msgmni', 'kernel.sem', 'kernel.shmall', 'kernel.shmmax'],
  ...['kernel.shmmni', 'kernel.shm_rmid_forced', 'fs.mqueue.*', 'net.*'],
] as const

/** Whether `name` is one of the patterns, or begins as one that ends with `*` does. */
const matches = (patterns: readonly string[], name: string): boolean =>
  patterns.some((pattern) => (pattern.endsWith('*') ? name.startsWith(pattern.slice(0, -1)) : name === pattern))

/** Docker's default capabilities less those that a sandbox has anyway; each acts on the sandbox's namespaces only. */
export const defaultSandboxPolicy: SandboxPolicy = {
  capAdd: new Set([
    ...['CAP_CHOWN', 'CAP_DAC_OVERRIDE', 'CAP_FOWNER', 'CAP_FSETID', 'CAP_KILL', 'CAP_NET_BIND_SERVICE'],
    ...['CAP_SETFCAP', 'CAP_SETGID', 'CAP_SETPCAP', 'CAP_SETUID', 'CAP_SYS_CHROOT', 'CAP_NET_RAW', 'CAP_AUDIT_WRITE'],
    ...['CAP_MKNOD', 'CAP_SYS_NICE', 'CAP_LEASE'],
  ]),
  sysctls: safeSysctls,
  seccompProfiles: new Set(['default', 'strict']),
  newPrivileges: false,
  cpuset: true,
  maxOomScoreAdj: 1000,
  max: { swapBytes: 0 },
}

/** What is refused, and by which policy. */
export interface Forbidden {
  /** Stable name of the policy, as in docs/sandboxes.md. */
  readonly policy:
    | ('privileged' | 'capAdd' | 'sysctls' | 'seccompProfile' | 'noNewPrivileges' | 'cpuset' | 'oomScoreAdj')
    | `max.${keyof SandboxPolicy['max']}`
  readonly message: string
}

type Asked = Pick<
  SandboxSpec,
  'privileged' | 'capAdd' | 'sysctls' | 'seccompProfile' | 'noNewPrivileges' | 'oomScoreAdj' | 'limits'
>

const noFile: Partial<Record<UlimitName, { readonly hard: number }>> = {}

function tooLarge({ max }: SandboxPolicy, limits: SandboxLimits): Forbidden | undefined {
  const { nofile } = { ...noFile, ...limits.ulimits }
  const asked = { ...limits, openFiles: nofile?.hard ?? 0 }
  for (const name of ['cpus', 'memoryBytes', 'diskBytes', 'pids', 'swapBytes', 'openFiles'] as const) {
    const most = max[name]
    if (most !== undefined && asked[name] > most)
      return { policy: `max.${name}`, message: `${name} may be ${most} at most; ${asked[name]} was asked for` }
  }
  return undefined
}

const list = (names: Iterable<string>): string => [...names].sort().join(', ') || 'none'

/** What of the spec the policy forbids first; undefined where all of it is allowed. */
export function forbidden(policy: SandboxPolicy, spec: Asked): Forbidden | undefined {
  if (spec.privileged)
    return { policy: 'privileged', message: 'privileged sandboxes are for nobody: ask for what is needed by name' }
  const capability = spec.capAdd.find((name) => !policy.capAdd.has(name))
  if (capability !== undefined)
    return { policy: 'capAdd', message: `${capability} may not be added; allowed are ${list(policy.capAdd)}` }
  const sysctl = Object.keys(spec.sysctls).find((name) => !matches(safeSysctls, name) || !matches(policy.sysctls, name))
  if (sysctl !== undefined)
    return { policy: 'sysctls', message: `${sysctl} may not be set; allowed are ${list(policy.sysctls)}` }
  if (!policy.seccompProfiles.has(spec.seccompProfile))
    return {
      policy: 'seccompProfile',
      message: `there is no profile ${spec.seccompProfile}; there are ${list(policy.seccompProfiles)}`,
    }
  if (!spec.noNewPrivileges && !policy.newPrivileges)
    return { policy: 'noNewPrivileges', message: 'processes may not gain privileges: noNewPrivileges must be true' }
  if (spec.limits.cpuset !== undefined && !policy.cpuset)
    return { policy: 'cpuset', message: 'sandboxes may not choose their CPUs' }
  if (spec.oomScoreAdj > policy.maxOomScoreAdj)
    return { policy: 'oomScoreAdj', message: `oomScoreAdj may be ${policy.maxOomScoreAdj} at most` }
  return tooLarge(policy, spec.limits)
}
