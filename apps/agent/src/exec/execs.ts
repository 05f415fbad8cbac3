// execs.ts: the execs of all sandboxes of the node, as a companion of each.

import { join } from 'node:path'
import { type ExecSpec, Failure, invariant, type SandboxId } from '@berth/contracts'
import type { Logger } from '@berth/telemetry'
import { accountsReader } from '../runtime/identity.js'
import type { SpawnRequest } from '../runtime/init-wire.js'
import type { Companion, LiveSandbox } from '../sandbox/live.js'
import { Upcoming } from '../sandbox/upcoming.js'
import { execRequest } from './exec.plan.js'
import type { ExecDriver } from './exec-driver.js'
import { type ExecLimits, SandboxExecs } from './sandbox-execs.js'

export interface ExecsOptions {
  readonly log: Logger
  /** How processes are started in a run of a sandbox; its processes are there. */
  readonly openDriver: (live: LiveSandbox) => ExecDriver
  /** Processes of the sandbox that were killed for memory so far. */
  readonly oomKills: (live: LiveSandbox) => number
  readonly limits?: Partial<ExecLimits>
}

/** How often it is looked for execs that ended too long ago. */
const EXPIRY_MS = 60_000

export class Execs implements Companion {
  readonly name = 'execs'
  readonly #options: ExecsOptions
  readonly #sandboxes = new Map<SandboxId, SandboxExecs>()
  readonly #upcoming = new Upcoming('commands')
  readonly #upkeep: NodeJS.Timeout

  constructor(options: ExecsOptions) {
    this.#options = options
    this.#upkeep = setInterval(() => this.#expire(), EXPIRY_MS).unref()
  }

  async attach(live: LiveSandbox, adopted: boolean): Promise<void> {
    const driver = this.#options.openDriver(live)
    this.#open(live).attach({ driver, plan: planner(live) }, adopted)
    this.#upcoming.tell()
  }

  async detach(live: LiveSandbox): Promise<void> {
    await this.#open(live).detach()
  }

  changed(): void {
    this.#upcoming.tell()
  }

  async remove(id: SandboxId): Promise<void> {
    const execs = this.#sandboxes.get(id)
    this.#sandboxes.delete(id)
    await execs?.close()
  }

  /**
   * The execs of a sandbox in whatever state.
   * @throws Failure `sandbox_not_found` once it is deleted: they went before it
   * @throws Fault when what is on disk is damaged
   */
  of(live: LiveSandbox): SandboxExecs {
    if (live.state === 'deleted') throw new Failure('sandbox_not_found', `sandbox ${live.id} is deleted`)
    return this.#open(live)
  }

  /**
   * Resolves when commands can be started in a sandbox; see `Upcoming`.
   * @throws Failure `sandbox_not_found`, `wrong_state`
   */
  async up(find: () => LiveSandbox | undefined, signal: AbortSignal): Promise<SandboxExecs> {
    const execs = this.of(await this.#upcoming.up(find, (live) => this.of(live).attached, signal))
    await execs.ready()
    return execs
  }

  /** Leaves everything as it is, for another agent process. */
  async close(): Promise<void> {
    clearInterval(this.#upkeep)
    const all = [...this.#sandboxes.values()]
    this.#sandboxes.clear()
    await Promise.all(all.map((execs) => execs.close()))
  }

  #open(live: LiveSandbox): SandboxExecs {
    const known = this.#sandboxes.get(live.id)
    if (known) return known
    const { log, oomKills, limits = {} } = this.#options
    const execs = SandboxExecs.open({
      directory: join(live.directory, 'execs'),
      memoryBytes: live.spec.limits.memoryBytes,
      log: log.child({ sandbox: live.id }),
      occupy: () => live.occupy(),
      oomKills: () => oomKills(live),
      limits,
    })
    this.#sandboxes.set(live.id, execs)
    return execs
  }

  #expire(): void {
    const now = new Date()
    for (const execs of this.#sandboxes.values()) execs.expire(now)
  }
}

/** Users are looked up in what the sandbox sees now: it may have added some. The plan throws UserNotFound. */
function planner(live: LiveSandbox): (spec: ExecSpec) => SpawnRequest {
  const { image, hostname, upper } = live
  invariant(image, 'a sandbox that runs has an image')
  const accounts = accountsReader(upper, image.layers)
  return (spec) => {
    const place = { spec: live.spec, image: image.config, hostname, ids: live.ids.count }
    return execRequest(spec, place, accounts())
  }
}
