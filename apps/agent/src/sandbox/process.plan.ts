// process.plan.ts: a job's spec, its image and its user → the process that berth-init starts.

import type { JobSpec } from '@berth/contracts'
import { defaultCapabilityMask } from '@berth/oci'
import type { Identity } from '../runtime/identity.js'
import { type SpawnRequest, spawnFlags } from '../runtime/init-wire.js'

/** The part of an image's configuration that a process is made from; each may be missing. */
export interface ImageConfig {
  readonly env?: readonly string[] | undefined
  readonly workingDir?: string | undefined
  readonly user?: string | undefined
}

const PATH = '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'

/** RLIMIT_ numbers (asm-generic/resource.h). */
const RLIMIT_CORE = 4
const RLIMIT_NOFILE = 7

/** Output on its way; larger ones did not make 1 GiB of output faster. Counts to the sandbox's memory. */
const RING_BYTES = 64 * 1024

/** Later ones win: defaults, the image's, the job's. */
export function environment(spec: JobSpec, image: ImageConfig, home: string, hostname: string): readonly string[] {
  const variables = new Map([
    ['PATH', PATH],
    ['HOME', home],
    ['HOSTNAME', hostname],
  ])
  for (const line of image.env ?? []) {
    const equals = line.indexOf('=')
    if (equals > 0) variables.set(line.slice(0, equals), line.slice(equals + 1))
  }
  for (const [name, value] of Object.entries(spec.env)) variables.set(name, value)
  return [...variables].map(([name, value]) => `${name}=${value}`)
}

/**
 * The process to start. Root of the sandbox gets the default capabilities; any other user none at all, and can gain
 * none (no_new_privs).
 */
export function spawnRequest(spec: JobSpec, image: ImageConfig, who: Identity, hostname: string): SpawnRequest {
  const effective = who.uid === 0 ? defaultCapabilityMask : 0n
  const nofile = BigInt(spec.limits.openFiles)
  return {
    flags: spawnFlags.main | spawnFlags.noNewPrivs | (spec.stdin === undefined ? 0 : spawnFlags.stdin),
    uid: who.uid,
    gid: who.gid,
    groups: who.groups,
    capabilities: { bounding: defaultCapabilityMask, effective, inheritable: 0n, ambient: 0n },
    limits: [
      { resource: RLIMIT_NOFILE, soft: nofile, hard: nofile },
      { resource: RLIMIT_CORE, soft: 0n, hard: 0n },
    ],
    timeoutMs: spec.timeoutMs,
    graceMs: spec.graceMs,
    oomScoreAdj: 0,
    rows: 0,
    columns: 0,
    ringBytes: RING_BYTES,
    cwd: spec.workingDir ?? (image.workingDir || '/'),
    argv: spec.command,
    env: environment(spec, image, who.home, hostname),
  }
}

/** A name that every host name syntax takes: the random end of the attempt's id. */
export const hostnameOf = (spec: JobSpec, attemptId: string) => spec.hostname ?? attemptId.slice(-12)
