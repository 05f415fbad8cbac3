import { chmodSync, chownSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { cgroupLayout, expectSuccess, openCgroups, type ProcessResult, run } from '@berth/host'
import { runtimeSpec } from '@berth/oci'

// floor.ts: the peer that jobs and sandboxes are measured against: the bare OCI runtime with the same root file system
// and the same config.json, and nothing else: no queue, no database, no quota, no limit on disk, no output kept. What it
// needs is laid out before the clock starts, and cleared away after it stopped.

/** Of a job or sandbox and of its peer. */
export const limits = { memoryBytes: 256 * 1024 ** 2, cpus: 0.5 } as const
export type FloorLimits = Readonly<Record<keyof typeof limits, number>>

const ids = { base: 900_000_000, count: 65_536 }
const enter = resolve('libs/init/build/berth-enter')

export interface Floor {
  /**
   * Runs a command to its end in a fresh container.
   * @returns milliseconds from the start of the runtime to its end
   * @throws when it does not exit with 0, or says something else than `expected`
   */
  run(argv: readonly string[], expected: string): Promise<number>
  /** Starts a container that sleeps. */
  start(): Promise<Container>
  close(): Promise<void>
}

export interface Container {
  /** Milliseconds that the runtime took until it ran. */
  readonly startMs: number
  /** Runs a command in it by `exec` of the runtime. Returns and throws as `run` of a floor. */
  exec(argv: readonly string[], expected: string): Promise<number>
  /** What runs a command in it, for those who want its streams. @param options of the runtime's `exec` */
  execArgv(options: readonly string[], argv: readonly string[]): Argv
  /** Charged to its control group, as stats of a sandbox tell it. */
  memoryBytes(): number
  /** @returns milliseconds */
  freeze(how: 'pause' | 'resume'): Promise<number>
  close(): Promise<void>
}

type Argv = [string, ...string[]]

/**
 * Unpacks an image once and stands ready to run from it.
 * @param layout OCI image layout that holds the image
 * @param seccompBpf the filter ready-made, or undefined: then the runtime compiles it, as it does for everybody else
 */
export async function openFloor(
  layout: string,
  reference: string,
  seccompBpf: string | undefined,
  limited: FloorLimits = limits,
): Promise<Floor> {
  const directory = mkdtempSync(join(tmpdir(), 'berth-bench-'))
  chmodSync(directory, 0o711)
  const image = join(directory, 'image')
  mkdirSync(image)
  for (const layer of layersOf(layout, reference))
    expectSuccess(await run(['tar', '-xpf', layer, '-C', image, '--numeric-owner'], { timeoutMs: 120_000 }))
  const cgroups = cgroupLayout()
  const groups = openCgroups(cgroups)
  let serial = 0
  return {
    async run(argv, expected) {
      const { id, bundle } = layOut(argv)
      const { wallMs } = checked(await run(runtime(mountsOf(bundle), ['run', '--bundle', bundle, id])), expected)
      rmSync(bundle, { recursive: true })
      return wallMs
    },
    async start() {
      // The shell lets go of the pipes, which would otherwise be waited for.
      const { id, bundle } = layOut(['sh', '-c', 'exec sleep infinity </dev/null >/dev/null 2>&1'])
      const made = checked(await run(runtime(mountsOf(bundle), ['run', '--detach', '--bundle', bundle, id])), '')
      const execArgv: Container['execArgv'] = (options, argv) => runtime([], ['exec', ...options, id, ...argv])
      return {
        startMs: made.wallMs,
        execArgv,
        exec: async (argv, expected) => checked(await run(execArgv([], argv)), expected).wallMs,
        memoryBytes() {
          const group = `berth-bench/${id}`
          return (groups.usage(group)?.memoryBytes ?? Number.NaN) - (groups.traffic(group)?.cacheBytes ?? 0)
        },
        freeze: async (how) => expectSuccess(await run(runtime([], [how, id]))).wallMs,
        async close() {
          expectSuccess(await run(runtime([], ['delete', '--force', id])))
          rmSync(bundle, { recursive: true })
        },
      }
    },
    async close() {
      await groups.remove('berth-bench')
      rmSync(directory, { recursive: true, force: true })
    },
  }

  function layOut(argv: readonly string[]) {
    const id = `bench-${process.pid}-${serial++}`
    const bundle = join(directory, id)
    for (const name of ['lower', 'upper', 'work', 'rootfs']) mkdirSync(join(bundle, name), { recursive: true })
    for (const name of ['upper', 'work']) chownSync(join(bundle, name), ids.base, ids.base)
    writeFileSync(join(bundle, 'config.json'), JSON.stringify(specOf(bundle, id, argv)))
    return { id, bundle }
  }

  function mountsOf(bundle: string): string[] {
    const lower = ['--idmap', `0:${ids.base}:${ids.count}`, '--lower', image, join(bundle, 'lower')]
    return [...lower, '--overlay', join(bundle, 'rootfs'), join(bundle, 'upper'), join(bundle, 'work')]
  }

  function runtime(mounts: readonly string[], args: readonly string[]): Argv {
    const hide = cgroups.hide.flatMap((path) => ['--umount', path])
    const crun = ['crun', '--cgroup-manager=cgroupfs', '--root', join(directory, 'state')]
    return [enter, ...hide, ...mounts, '--', ...crun, ...args]
  }

  function specOf(bundle: string, id: string, argv: readonly string[]) {
    const spec = runtimeSpec({
      cgroupPath: `/berth-bench/${id}`,
      cgroupVersion: cgroups.kind === 'v2' ? 'v2' : 'v1',
      architecture: process.arch === 'arm64' ? 'arm64' : 'x64',
      rootfs: join(bundle, 'rootfs'),
      programs: resolve('libs/init/build'),
      hostname: 'bench',
      ids,
      limits: { ...limited, pids: 256, shmBytes: 64 * 1024 ** 2 },
      ...(seccompBpf === undefined ? {} : { seccompBpf }),
    })
    return { ...spec, process: { ...spec.process, args: argv } }
  }
}

function checked(result: ProcessResult, expected: string): ProcessResult {
  const { stdout } = expectSuccess(result)
  if (stdout !== expected) throw new Error(`the bare runtime printed ${JSON.stringify(stdout)}`)
  return result
}

interface Named {
  readonly digest: string
  readonly annotations?: Readonly<Record<string, string>>
}

/** Blob paths of an image's layers, lowest first. */
export function layersOf(layout: string, reference: string): string[] {
  const blob = (digest: string) => join(layout, 'blobs', ...digest.split(':'))
  const index: { manifests: Named[] } = JSON.parse(readFileSync(join(layout, 'index.json'), 'utf8'))
  const found = index.manifests.find((m) => m.annotations?.['org.opencontainers.image.ref.name'] === reference)
  if (!found) throw new Error(`${layout} has no image ${reference}`)
  const manifest: { layers: Named[] } = JSON.parse(readFileSync(blob(found.digest), 'utf8'))
  return manifest.layers.map((layer) => blob(layer.digest))
}
