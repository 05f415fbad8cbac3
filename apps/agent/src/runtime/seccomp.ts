// seccomp.ts: the filters as ready-made BPF. Compiling one took half of every start (docs/decisions/003), so crun
// does it once: it leaves what it compiled in the state directory of a container, here one that is created, never
// started, and removed. The result is kept under the digest of runtime and profile.

import { createHash } from 'node:crypto'
import { copyFile, mkdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { Fault, ignore } from '@berth/contracts'
import { expectSuccess, removeTree, run, writeAtomic } from '@berth/host'
import { type Architecture, type SeccompProfile, seccomp, seccompProfiles } from '@berth/oci'
import type { OciRuntime } from './oci-runtime.js'

export interface SeccompOptions {
  readonly runtime: OciRuntime
  readonly architecture: Architecture
  /** The agent's data directory; the filter is kept in `seccomp/` there. */
  readonly directory: string
  /** A cgroup below the agent's own parent, from the root of each hierarchy. */
  readonly cgroupPath: string
  /** Any static program. */
  readonly program: string
}

/** Each filter as base64 of its BPF; none for a runtime that takes no ready-made ones (runc). */
export type ReadyMadeSeccomp = Readonly<Partial<Record<SeccompProfile, string>>>

/** @throws Fault when crun does not compile one */
export async function readyMadeSeccomp(options: SeccompOptions): Promise<ReadyMadeSeccomp> {
  if (options.runtime.name !== 'crun') return {}
  const made: Partial<Record<SeccompProfile, string>> = {}
  for (const profile of seccompProfiles) made[profile] = await readyMade(options, profile)
  return made
}

async function readyMade(options: SeccompOptions, profile: SeccompProfile): Promise<string> {
  const { runtime, architecture, directory } = options
  const filter = seccomp(profile, architecture)
  const digest = createHash('sha256').update(runtime.version).update(JSON.stringify(filter)).digest('hex')
  const path = join(directory, 'seccomp', `${profile}-${digest.slice(0, 32)}.bpf`)
  const kept = await readFile(path).catch((error: unknown) => ignore(error, 'ENOENT'))
  if (kept) return kept.toString('base64')
  const compiled = await compile(options, filter)
  await writeAtomic(path, compiled)
  return compiled.toString('base64')
}

/** A sock_filter is 8 bytes, and the shortest filter worth the name has a few. */
const isProgram = (bpf: Buffer) => bpf.length >= 64 && bpf.length % 8 === 0

async function compile(options: SeccompOptions, filter: unknown): Promise<Buffer> {
  const { runtime, directory } = options
  const bundle = join(directory, 'seccomp', 'bundle')
  const id = 'seccomp'
  await removeTree(bundle)
  for (const name of ['dev', 'proc', 'sys']) await mkdir(join(bundle, 'rootfs', name), { recursive: true, mode: 0o700 })
  await copyFile(options.program, join(bundle, 'rootfs', 'program'))
  await writeAtomic(join(bundle, 'config.json'), JSON.stringify(emptyContainer(options.cgroupPath, filter)))
  try {
    expectSuccess(await run(runtime.command('create', '--bundle', bundle, id)))
    const bpf = await readFile(join(runtime.stateDirectory, id, 'seccomp.bpf'))
    if (!isProgram(bpf)) throw new Error(`crun left ${bpf.length} bytes`)
    return bpf
  } catch (cause) {
    throw new Fault('compile the seccomp profile', { cause })
  } finally {
    await run(runtime.command('delete', '--force', id))
    await removeTree(bundle)
  }
}

const emptyContainer = (cgroupsPath: string, filter: unknown) => ({
  ociVersion: '1.0.2',
  root: { path: 'rootfs', readonly: true },
  process: { terminal: false, user: { uid: 0, gid: 0 }, args: ['/program'], cwd: '/', env: [], noNewPrivileges: true },
  mounts: [],
  linux: { cgroupsPath, namespaces: [{ type: 'pid' }, { type: 'mount' }], seccomp: filter },
})
