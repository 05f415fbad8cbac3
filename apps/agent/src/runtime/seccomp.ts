// seccomp.ts: the default filter as ready-made BPF. Compiling it took half of every start (docs/decisions/003), so crun
// does it once: it leaves what it compiled in the state directory of a container, here one that is created, never
// started, and removed. The result is kept under the digest of runtime and profile.

import { createHash } from 'node:crypto'
import { copyFile, mkdir, readFile } from 'node:fs/promises'
import { join } from 'node:path'
import { Fault, ignore } from '@berth/contracts'
import { expectSuccess, removeTree, run, writeAtomic } from '@berth/host'
import { type Architecture, defaultSeccomp } from '@berth/oci'
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

/**
 * The default filter as base64 of its BPF, or undefined for a runtime that takes no ready-made one (runc).
 * @throws Fault when crun does not compile it
 */
export async function readyMadeSeccomp(options: SeccompOptions): Promise<string | undefined> {
  const { runtime, architecture, directory } = options
  if (runtime.name !== 'crun') return undefined
  const seccomp = defaultSeccomp(architecture)
  const digest = createHash('sha256').update(runtime.version).update(JSON.stringify(seccomp)).digest('hex')
  const path = join(directory, 'seccomp', `${digest.slice(0, 32)}.bpf`)
  const kept = await readFile(path).catch((error: unknown) => ignore(error, 'ENOENT'))
  if (kept) return kept.toString('base64')
  const compiled = await compile(options, seccomp)
  await writeAtomic(path, compiled)
  return compiled.toString('base64')
}

/** A sock_filter is 8 bytes, and the shortest filter worth the name has a few. */
const isProgram = (bpf: Buffer) => bpf.length >= 64 && bpf.length % 8 === 0

async function compile(options: SeccompOptions, seccomp: unknown): Promise<Buffer> {
  const { runtime, directory } = options
  const bundle = join(directory, 'seccomp', 'bundle')
  const id = 'seccomp'
  await removeTree(bundle)
  for (const name of ['dev', 'proc', 'sys']) await mkdir(join(bundle, 'rootfs', name), { recursive: true, mode: 0o700 })
  await copyFile(options.program, join(bundle, 'rootfs', 'program'))
  await writeAtomic(join(bundle, 'config.json'), JSON.stringify(emptyContainer(options.cgroupPath, seccomp)))
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

const emptyContainer = (cgroupsPath: string, seccomp: unknown) => ({
  ociVersion: '1.0.2',
  root: { path: 'rootfs', readonly: true },
  process: { terminal: false, user: { uid: 0, gid: 0 }, args: ['/program'], cwd: '/', env: [], noNewPrivileges: true },
  mounts: [],
  linux: { cgroupsPath, namespaces: [{ type: 'pid' }, { type: 'mount' }], seccomp },
})
