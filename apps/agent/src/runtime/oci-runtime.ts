// oci-runtime.ts: crun and runc, driven by argv. A container is started through berth-enter, which mounts its root file
// system in a mount namespace of its own and opens berth-init's socket. So what a container leaves on the host is its
// processes, its cgroup and its state directory, and all three can be removed without asking the runtime: measured with
// crun 1.8.1, killing the cgroup and removing both directories takes 3 ms, `crun delete --force` 17 to 20 ms.

import { mkdirSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import { Fault } from '@berth/contracts'
import { CommandFailed, expectSuccess, type ProcessResult, removeTree, run } from '@berth/host'

export const runtimeNames = ['crun', 'runc'] as const
export type RuntimeName = (typeof runtimeNames)[number]

export interface ContainerStart {
  /** Also the name of the runtime's state directory. */
  readonly id: string
  /** Directory that holds config.json. */
  readonly bundle: string
  /** berth-enter's options that mount the root file system and open the socket as fd 3. */
  readonly enter: readonly string[]
  /** What berth-enter's options read from its input. */
  readonly stdin?: Uint8Array
  /** Aborting kills the runtime; something of the container may be left then. */
  readonly signal: AbortSignal
}

/** An OCI runtime with a state directory of its own. */
export interface OciRuntime {
  readonly name: RuntimeName
  /** For people, e.g. `crun 1.8.1`. */
  readonly version: string
  readonly stateDirectory: string
  /** argv of one of its commands, run where it can work (without the cgroup2 mount of a hybrid host). */
  command(...args: readonly string[]): [string, ...string[]]
  /**
   * Starts a container and returns once its init has been executed.
   * @throws CommandFailed with what the runtime or berth-enter said; something of the container may be left.
   *   RootReadOnly, with nothing of it left, where the writable layer is too full to be mounted; ContainerRefused where
   *   the runtime itself cannot make what it was asked for
   */
  start(container: ContainerStart): Promise<void>
  /** Removes what the runtime keeps of a container whose processes are dead; an unknown one is fine. */
  forget(id: string): Promise<void>
  /** Containers that the runtime keeps something of, half-made ones included. */
  list(): readonly string[]
}

export interface RuntimeOptions {
  /** Absolute path, below the agent's data directory. */
  readonly stateDirectory: string
  /** Path of berth-enter. */
  readonly enter: string
  /** Mount points that the runtime must not see (a cgroup2 tree beside v1 controllers). */
  readonly hide: readonly string[]
}

const globalOptions: Readonly<Record<RuntimeName, readonly string[]>> = {
  crun: ['--cgroup-manager=cgroupfs'],
  runc: [],
}

/** How berth-enter executes it. crun knows a sealed copy of itself; runc makes its own in any case. */
const sealOptions: Readonly<Record<RuntimeName, readonly string[]>> = { crun: ['--seal'], runc: [] }

const START_TIMEOUT_MS = 30_000

/** Exit codes of berth-enter: for what fails in it, and when the overlay came up read-only (libs/init/README.md). */
const [ENTER_FAILED, READ_ONLY] = [120, 121]

/** An overlay writes to its upper when it is mounted, and on a layer whose limit is reached it cannot. */
export class RootReadOnly extends Fault {
  constructor(id: string, cause: unknown) {
    super(`mount the root of ${id} for writing`, { cause })
    this.name = 'RootReadOnly'
  }
}

/** The runtime would not make a container of its root and mounts. */
export class ContainerRefused extends CommandFailed {
  constructor(result: ProcessResult) {
    super(result)
    this.name = 'ContainerRefused'
  }

  /** What the runtime said, in a line; paths of the node may be in it. */
  get said(): string {
    return this.result.stderr.trim().split('\n').at(-1) ?? ''
  }
}

/**
 * Finds the runtime to use: the one asked for, or with `auto` the first of crun and runc that is installed.
 * @throws Fault when there is none
 */
export async function openRuntime(wanted: RuntimeName | 'auto', options: RuntimeOptions): Promise<OciRuntime> {
  const errors: unknown[] = []
  for (const name of wanted === 'auto' ? runtimeNames : [wanted]) {
    try {
      const version = versionOf(expectSuccess(await run([name, '--version'])))
      mkdirSync(options.stateDirectory, { recursive: true, mode: 0o700 })
      return new ArgvRuntime(name, version, options)
    } catch (error) {
      errors.push(error)
    }
  }
  throw new Fault('find an OCI runtime', { cause: new Error(errors.map(String).join('; ')) })
}

/** `crun version 1.8.1` → `crun 1.8.1`. */
const versionOf = (result: ProcessResult) => (result.stdout.split('\n')[0] ?? '').replace(' version', '').trim()

class ArgvRuntime implements OciRuntime {
  readonly #options: RuntimeOptions

  constructor(
    readonly name: RuntimeName,
    readonly version: string,
    options: RuntimeOptions,
  ) {
    this.#options = options
  }

  get stateDirectory(): string {
    return this.#options.stateDirectory
  }

  command(...args: readonly string[]): [string, ...string[]] {
    return this.#argv([], args)
  }

  async start({ id, bundle, enter, stdin, signal }: ContainerStart): Promise<void> {
    const argv = this.#argv(enter, ['run', '--detach', '--preserve-fds=1', '--bundle', bundle, id])
    const result = await run(argv, {
      timeoutMs: START_TIMEOUT_MS,
      signal,
      ...(stdin === undefined ? {} : { stdin }),
    })
    if (result.exitCode === READ_ONLY) throw new RootReadOnly(id, new Error(result.stderr.trim()))
    const { exitCode } = result
    if (exitCode !== undefined && exitCode > 0 && exitCode !== ENTER_FAILED) throw new ContainerRefused(result)
    expectSuccess(result)
  }

  async forget(id: string): Promise<void> {
    await removeTree(join(this.stateDirectory, id))
  }

  list(): readonly string[] {
    return readdirSync(this.stateDirectory, { withFileTypes: true })
      .filter((entry) => entry.isDirectory())
      .map((entry) => entry.name)
  }

  #argv(enter: readonly string[], args: readonly string[]): [string, ...string[]] {
    const hide = this.#options.hide.flatMap((path) => ['--umount', path])
    const program = [this.name, '--root', this.stateDirectory, ...globalOptions[this.name], ...args]
    return [this.#options.enter, ...enter, ...hide, ...sealOptions[this.name], '--', ...program]
  }
}
