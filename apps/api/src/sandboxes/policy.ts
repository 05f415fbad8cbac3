// policy.ts: the operator's policy of sandboxes, from the configuration.
import { Failure } from '@berth/contracts'
import { defaultSandboxPolicy, forbidden, type SandboxPolicy } from '@berth/domain'
import type { Config } from '../config.js'

export function sandboxPolicy(config: Config): SandboxPolicy {
  const { BERTH_SANDBOX_CAP_ADD: capAdd, BERTH_SANDBOX_SYSCTLS: sysctls, BERTH_SANDBOX_SECCOMP: profiles } = config
  return {
    capAdd: capAdd ? new Set(capAdd) : defaultSandboxPolicy.capAdd,
    sysctls: sysctls ?? defaultSandboxPolicy.sysctls,
    seccompProfiles: profiles ? new Set(profiles) : defaultSandboxPolicy.seccompProfiles,
    newPrivileges: config.BERTH_SANDBOX_NEW_PRIVILEGES,
    cpuset: config.BERTH_SANDBOX_CPUSET,
    maxOomScoreAdj: config.BERTH_SANDBOX_MAX_OOM_SCORE,
    max: {
      cpus: config.BERTH_SANDBOX_MAX_CPUS,
      memoryBytes: config.BERTH_SANDBOX_MAX_MEMORY,
      diskBytes: config.BERTH_SANDBOX_MAX_DISK,
      swapBytes: config.BERTH_SANDBOX_MAX_SWAP,
      pids: config.BERTH_SANDBOX_MAX_PIDS,
      openFiles: config.BERTH_SANDBOX_MAX_OPEN_FILES,
    },
  }
}

/** @throws policy_forbidden naming the policy that the spec goes against */
export function requireAllowed(policy: SandboxPolicy, spec: Parameters<typeof forbidden>[1]): void {
  const found = forbidden(policy, spec)
  if (found) throw new Failure('policy_forbidden', found.message, { policy: found.policy })
}
