import { chmodSync, chownSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { cgroupLayout, expectSuccess, openCgroups, run } from '@berth/host'
import { runtimeSpec } from '@berth/oci'

// floor.ts: the peer that jobs are measured against: the bare OCI runtime's `run` of the same root file system with the
// same config.json, and nothing else: no queue, no database, no quota, no limit on disk, no output kept. What it needs
// is laid out before the clock starts, and cleared away after it stopped.

/** Of a job and of its peer. */
export const limits = { memoryBytes: 256 * 1024 ** 2, cpus: 0.5 } as const

const ids = { base: 900_000_000, count: 65_536 }
const enter = resolve('libs/init/build/berth-enter')

export interface Floor {
  /**
   * Runs a command to its end in a fresh container.
   * @returns milliseconds from the start of the runtime to its end
   * @throws when it does not exit with 0, or says something else than `expected`
   */
  run(argv: readonly string[], expected: string): Promise<number>
  close(): Promise<void>
}

/**
 * Unpacks an image once and stands ready to run from it.
 * @param layout OCI image layout that holds the image
 * @param seccompBpf the filter ready-made, or undefined: then the runtime compiles it, as it does for everybody else
 */
export async function openFloor(layout: string, reference: string, seccompBpf: string | undefined): Promise<Floor> {
  const directory = mkdtempSync(join(tmpdir(), 'berth-bench-'))
  chmodSync(directory, 0o711)
  const image = join(directory, 'image')
  mkdirSync(image)
  for (const layer of layersOf(layout, reference))
    expectSuccess(await run(['tar', '-xpf', layer, '-C', image, '--numeric-owner'], { timeoutMs: 120_000 }))
  const cgroups = cgroupLayout()
  let serial = 0
  return {
    async run(argv, expected) {
      const id = `bench-${process.pid}-${serial++}`
      const bundle = join(directory, id)
      for (const name of ['lower', 'upper', 'work', 'rootfs']) mkdirSync(join(bundle, name), { recursive: true })
      for (const name of ['upper', 'work']) chownSync(join(bundle, name), ids.base, ids.base)
      writeFileSync(join(bundle, 'config.json'), JSON.stringify(specOf(bundle, id, argv)))
      const hide = cgroups.hide.flatMap((path) => ['--umount', path])
      const mounts = ['--idmap', `0:${ids.base}:${ids.count}`, '--lower', image, join(bundle, 'lower')]
      const overlay = ['--overlay', join(bundle, 'rootfs'), join(bundle, 'upper'), join(bundle, 'work')]
      const state = join(directory, 'state')
      const crun = ['crun', '--cgroup-manager=cgroupfs', '--root', state, 'run', '--bundle', bundle, id]
      const result = expectSuccess(await run([enter, ...hide, ...mounts, ...overlay, '--', ...crun]))
      if (result.stdout !== expected) throw new Error(`the bare runtime printed ${JSON.stringify(result.stdout)}`)
      rmSync(bundle, { recursive: true })
      return result.wallMs
    },
    async close() {
      await openCgroups(cgroups).remove('berth-bench')
      rmSync(directory, { recursive: true, force: true })
    },
  }

  function specOf(bundle: string, id: string, argv: readonly string[]) {
    const spec = runtimeSpec({
      cgroupPath: `/berth-bench/${id}`,
      cgroupVersion: cgroups.kind === 'v2' ? 'v2' : 'v1',
      architecture: process.arch === 'arm64' ? 'arm64' : 'x64',
      rootfs: join(bundle, 'rootfs'),
      programs: resolve('libs/init/build'),
      files: {},
      hostname: 'bench',
      ids,
      limits: { ...limits, pids: 256, shmBytes: 64 * 1024 ** 2 },
      ...(seccompBpf === undefined ? {} : { seccompBpf }),
    })
    return { ...spec, process: { ...spec.process, args: argv } }
  }
}

interface Named {
  readonly digest: string
  readonly annotations?: Readonly<Record<string, string>>
}

/** Blob paths of an image's layers, lowest first. */
function layersOf(layout: string, reference: string): string[] {
  const blob = (digest: string) => join(layout, 'blobs', ...digest.split(':'))
  const index: { manifests: Named[] } = JSON.parse(readFileSync(join(layout, 'index.json'), 'utf8'))
  const found = index.manifests.find((m) => m.annotations?.['org.opencontainers.image.ref.name'] === reference)
  if (!found) throw new Error(`${layout} has no image ${reference}`)
  const manifest: { layers: Named[] } = JSON.parse(readFileSync(blob(found.digest), 'utf8'))
  return manifest.layers.map((layer) => blob(layer.digest))
}
