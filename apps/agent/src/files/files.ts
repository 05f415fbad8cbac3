// files.ts: operations on files of the sandboxes of this node, each a process in its sandbox. What may go on at the same
// time is bounded by sandbox: berth-init knows so many processes, and each takes memory of it.

import { Failure, invariant, type SandboxId } from '@berth/contracts'
import type { Logger } from '@berth/telemetry'
import { readAccounts } from '../runtime/identity.js'
import type { Lease, LiveSandbox } from '../sandbox/live.js'
import { FileProcess } from './file-process.js'
import { type FileOperation, filesRequest } from './files.plan.js'

export interface FilesOptions {
  /** The processes of a sandbox, running or stopped. @throws Failure sandbox_not_found, wrong_state */
  readonly lease: (id: SandboxId) => Promise<Lease>
  readonly log: Logger
  readonly limits?: Partial<FilesLimits>
}

export interface FilesLimits {
  /** In one sandbox at the same time; others wait for their turn. */
  readonly running: number
  readonly waiting: number
  /** Watches last as long as somebody looks: they do not count among those, and none waits. */
  readonly watches: number
}

const defaultLimits: FilesLimits = { running: 32, waiting: 256, watches: 32 }

/** What goes on in one sandbox. */
interface Busy {
  running: number
  watches: number
  readonly waiting: Set<() => void>
}

export class Files {
  readonly #options: FilesOptions
  readonly #limits: FilesLimits
  readonly #busy = new Map<SandboxId, Busy>()

  constructor(options: FilesOptions) {
    this.#options = options
    this.#limits = { ...defaultLimits, ...options.limits }
  }

  /**
   * Carries an operation out.
   * @param work does what there is to do with the process; where it ends before that, the process is killed
   * @param signal kills the process
   * @throws Failure of the operation, or sandbox_not_found, wrong_state, unavailable; InvalidRequest for an unknown user
   */
  async run<T>(
    id: SandboxId,
    operation: FileOperation,
    signal: AbortSignal,
    work: (process: FileProcess) => Promise<T>,
  ): Promise<T> {
    const leave = await this.#enter(id, operation.kind === 'watch', signal)
    let process: FileProcess
    try {
      process = await this.#start(id, operation, signal)
    } catch (error) {
      leave()
      throw error
    }
    // Whoever is killed may take a moment, or wait for a frozen sandbox to go on; the caller does not.
    void process.over.then(leave)
    const kill = () => process.kill()
    signal.addEventListener('abort', kill, { once: true })
    try {
      return await work(process)
    } finally {
      signal.removeEventListener('abort', kill)
      process.kill()
    }
  }

  async #start(id: SandboxId, operation: FileOperation, signal: AbortSignal): Promise<FileProcess> {
    const lease = await this.#options.lease(id)
    try {
      signal.throwIfAborted()
      const { live, processes } = lease
      await processes.known()
      const process = new FileProcess(processes, requestOf(operation, live), live.spec)
      const idle = operation.kind === 'watch' ? undefined : live.occupy()
      live.touch()
      void process.over.then(() => {
        idle?.()
        return this.#release(lease)
      })
      return process
    } catch (error) {
      await this.#release(lease)
      throw error
    }
  }

  async #release(lease: Lease): Promise<void> {
    try {
      await lease[Symbol.asyncDispose]()
    } catch (err) {
      this.#options.log.error({ sandbox: lease.live.id, err }, 'files.release_failed')
    }
  }

  /** Waits for a turn. @returns what ends it @throws Failure unavailable, watch_limit; the signal's reason */
  async #enter(id: SandboxId, watch: boolean, signal: AbortSignal): Promise<() => void> {
    const busy = this.#busy.get(id) ?? { running: 0, watches: 0, waiting: new Set() }
    this.#busy.set(id, busy)
    if (watch) {
      if (busy.watches >= this.#limits.watches)
        throw new Failure('watch_limit', `at most ${this.#limits.watches} watches at the same time`)
      busy.watches += 1
    } else if (busy.running < this.#limits.running) {
      busy.running += 1
    } else {
      // The turn is handed over, so `running` stays.
      await this.#turn(busy, signal)
    }
    return () => this.#leave(id, busy, watch)
  }

  #turn(busy: Busy, signal: AbortSignal): Promise<void> {
    if (busy.waiting.size >= this.#limits.waiting)
      throw new Failure('unavailable', `${this.#limits.waiting} file operations wait for their turn already`)
    return new Promise((resolve, reject) => {
      const go = () => {
        signal.removeEventListener('abort', give)
        resolve()
      }
      const give = () => {
        busy.waiting.delete(go)
        reject(signal.reason)
      }
      busy.waiting.add(go)
      signal.addEventListener('abort', give, { once: true })
      if (signal.aborted) give()
    })
  }

  #leave(id: SandboxId, busy: Busy, watch: boolean): void {
    const [next] = busy.waiting
    if (watch) busy.watches -= 1
    else if (next) {
      busy.waiting.delete(next)
      next()
    } else busy.running -= 1
    if (busy.running === 0 && busy.watches === 0) this.#busy.delete(id)
  }
}

/** Users are looked up in what the sandbox sees now: it may have added some. */
function requestOf(operation: FileOperation, live: LiveSandbox) {
  const { image } = live
  invariant(image, 'a sandbox with a container has an image')
  const place = { spec: live.spec, image: image.config, ids: live.ids.count }
  return filesRequest(operation, place, readAccounts([live.upper, ...image.layers]))
}
