// exec-driver.ts: how a process is run beside the main process of a sandbox. `init` asks berth-init, which spawns nothing
// on the node; `oci` asks the OCI runtime, for sandboxes whose berth-init has no socket. exec-driver.contract.ts says what
// both do.

import type { SpawnRequest } from '../runtime/init-wire.js'
import type { OutputSinks, Processes, SandboxProcess } from '../runtime/processes.js'

/** Runs processes in one sandbox, for as long as one run of it lasts. */
export interface ExecDriver {
  readonly name: 'init' | 'oci'
  /** Resolves when `allocate` can be called. @throws Fault when the sandbox cannot be reached */
  ready(): Promise<void>
  /** A number that is not in use. It is written down before `start`, so that a process is never without a record. */
  allocate(): number
  start(number: number, spawn: SpawnRequest, sinks: OutputSinks): SandboxProcess
  /**
   * Goes on with what a former agent started. What was never started is gone with `UnknownProcess`.
   * @param flags `tty` and `stdin` of `spawnFlags`, as it was started with
   * @returns undefined when processes end with their agent
   */
  resume(number: number, flags: number, sinks: OutputSinks): SandboxProcess | undefined
}

export class InitDriver implements ExecDriver {
  readonly name = 'init'
  readonly #processes: Processes

  constructor(processes: Processes) {
    this.#processes = processes
  }

  async ready(): Promise<void> {
    await this.#processes.known()
  }

  allocate(): number {
    return this.#processes.allocate()
  }

  start(number: number, spawn: SpawnRequest, sinks: OutputSinks): SandboxProcess {
    return this.#processes.run(number, spawn, sinks)
  }

  resume(number: number, flags: number, sinks: OutputSinks): SandboxProcess {
    return this.#processes.resume(number, flags, sinks)
  }
}
