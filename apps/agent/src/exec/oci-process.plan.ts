// oci-process.plan.ts: a process as OCI runtimes take it (`process` of config.json, OCI runtime-spec 1.0.2), and what a
// runtime says when it could not be started. The only place that knows their words: there is no other way to tell.

import { capabilitiesOf } from '@berth/oci'
import { type FailedStage, type SpawnRequest, spawnFlags } from '../runtime/init-wire.js'

const rlimitNames =
  'CPU FSIZE DATA STACK CORE RSS NPROC NOFILE MEMLOCK AS LOCKS SIGPENDING MSGQUEUE NICE RTPRIO RTTIME'.split(' ')

/** For `exec --process`. */
export function ociProcess(spawn: SpawnRequest): object {
  const { bounding, effective, inheritable, ambient } = spawn.capabilities
  const terminal = (spawn.flags & spawnFlags.tty) !== 0
  return {
    terminal,
    ...(terminal ? { consoleSize: { height: spawn.rows, width: spawn.columns } } : {}),
    user: { uid: spawn.uid, gid: spawn.gid, additionalGids: spawn.groups },
    args: spawn.argv,
    env: spawn.env,
    cwd: spawn.cwd,
    capabilities: {
      bounding: capabilitiesOf(bounding),
      effective: capabilitiesOf(effective),
      permitted: capabilitiesOf(effective),
      inheritable: capabilitiesOf(inheritable),
      ambient: capabilitiesOf(ambient),
    },
    rlimits: spawn.limits.map(({ resource, soft, hard }) => ({
      type: `RLIMIT_${rlimitNames[resource] ?? resource}`,
      soft: Number(soft),
      hard: Number(hard),
    })),
    noNewPrivileges: (spawn.flags & spawnFlags.noNewPrivs) !== 0,
    oomScoreAdj: spawn.oomScoreAdj,
  }
}

const ENOENT = 2
const EACCES = 13
const EINVAL = 22

/** Why a runtime that wrote no pid could not start a process, from what it said on stderr. */
export function startFailure(said: string): { readonly stage: FailedStage; readonly errno: number } {
  if (/chdir|\bcwd\b/i.test(said)) return { stage: 'cwd', errno: ENOENT }
  if (/not found|no such file/i.test(said)) return { stage: 'exec', errno: ENOENT }
  if (/permission denied|is a directory|exec format/i.test(said)) return { stage: 'exec', errno: EACCES }
  return { stage: 'setup', errno: EINVAL }
}
