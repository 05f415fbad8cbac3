// oci-runtime.ts: crun and runc, driven by argv. A container is started through berth-enter, which mounts its root file
// system in a mount namespace of its own and opens berth-init's socket; so what the runtime leaves behind on the host is
// its state directory and its cgroup, and nothing in the mount table.

import { mkdir } from 'node:fs/promises'
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
  readonly signal: AbortSignal
}

/** The containers below one state directory. */
export interface OciRuntime {
  readonly name: RuntimeName
  /** For people, e.g. `crun 1.8.1`. */
  readonly version: string
  /**
   * Starts a container and returns once its init has been executed.
   * @throws CommandFailed with what the runtime or berth-enter said; something of the container may be left
   */
  start(container: ContainerStart): Promise<void>
  /** Ends a container, whatever its state, and removes what the runtime keeps of it; an unknown one is fine. */
  delete(id: string): Promise<void>
  /** Ids of all containers that have a state directory, half-made ones included. */
  stateDirectory: string
}

export interface RuntimeOptions {
  /** Absolute path of the runtime's own state, below the agent's data directory. */
  readonly stateDirectory: string
  /** Path of berth-enter. */
  readonly enter: string
  /** Mount points that crun must not see (a cgroup2 tree beside v1 controllers). */
  readonly hide: readonly string[]
}

/** What differs between the two. */
interface Dialect {
  readonly name: RuntimeName
  readonly global: readonly string[]
  /** True where `delete` failed only because there is no such container. */
  readonly isGone: (result: ProcessResult) => boolean
}

const dialects: Readonly<Record<RuntimeName, Dialect>> = {
  crun: {
    name: 'crun',
    global: ['--cgroup-manager=cgroupfs'],
    isGone: (result) => /No such file or directory|does not exist/.test(result.stderr),
  },
  runc: { name: 'runc', global: [], isGone: (result) => /does not exist/.test(result.stderr) },
}

const START_TIMEOUT_MS = 30_000
const DELETE_TIMEOUT_MS = 10_000

/**
 * Finds the runtime to use: the one asked for, or with `auto` the first of crun and runc that is installed.
 * @throws Fault when there is none
 */
export async function openRuntime(wanted: RuntimeName | 'auto', options: RuntimeOptions): Promise<OciRuntime> {
  const candidates = wanted === 'auto' ? runtimeNames : [wanted]
  const errors: unknown[] = []
  for (const name of candidates) {
    try {
      const version = versionOf(expectSuccess(await run([name, '--version'])))
      await mkdir(options.stateDirectory, { recursive: true, mode: 0o700 })
      return new ArgvRuntime(dialects[name], version, options)
    } catch (error) {
      errors.push(error)
    }
  }
  throw new Fault(`find an OCI runtime (${candidates.join(' or ')})`, {
    cause: new AggregateError(errors, String(errors)),
  })
}

/** `crun version 1.8.1` → `crun 1.8.1`. */
const versionOf = (result: ProcessResult) => (result.stdout.split('\n')[0] ?? '').replace(' version', '').trim()

class ArgvRuntime implements OciRuntime {
  readonly #dialect: Dialect
  readonly #options: RuntimeOptions
  readonly version: string

  constructor(dialect: Dialect, version: string, options: RuntimeOptions) {
    this.#dialect = dialect
    this.version = version
    this.#options = options
  }

  get name(): RuntimeName {
    return this.#dialect.name
  }

  get stateDirectory(): string {
    return this.#options.stateDirectory
  }

  async start({ id, bundle, enter, signal }: ContainerStart): Promise<void> {
    const hide = this.#options.hide.flatMap((path) => ['--umount', path])
    const program = this.#argv('run', '--detach', '--preserve-fds=1', '--bundle', bundle, id)
    const result = await run([this.#options.enter, ...enter, ...hide, '--', ...program], {
      timeoutMs: START_TIMEOUT_MS,
      signal,
    })
    expectSuccess(result)
  }

  async delete(id: string): Promise<void> {
    const result = await run(this.#argv('delete', '--force', id), { timeoutMs: DELETE_TIMEOUT_MS })
    if (result.exitCode !== 0 && !this.#dialect.isGone(result)) throw new CommandFailed(result)
    // A runtime that was killed half-way leaves a directory that its own `delete` does not know what to do with.
    await removeTree(`${this.#options.stateDirectory}/${id}`)
  }

  #argv(...args: readonly string[]): [string, ...string[]] {
    return [this.#dialect.name, '--root', this.#options.stateDirectory, ...this.#dialect.global, ...args]
  }
}
