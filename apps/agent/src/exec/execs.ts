// execs.ts: the execs of all sandboxes of the node, as a companion of each.

import { join } from 'node:path'
import { setTimeout as pause } from 'node:timers/promises'
import { type ExecSpec, Failure, invariant, type SandboxId } from '@berth/contracts'
import type { Logger } from '@berth/telemetry'
import { accountsReader } from '../runtime/identity.js'
import type { SpawnRequest } from '../runtime/init-wire.js'
import type { Companion, LiveSandbox } from '../sandbox/live.js'
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
/** How long a command waits for its sandbox to be up. */
const START_MS = 30_000
/** How long after the API has made a sandbox its command may take to come here. */
const ARRIVAL_MS = 5_000
const LOOK_MS = 20

export class Execs implements Companion {
  readonly name = 'execs'
  readonly #options: ExecsOptions
  readonly #sandboxes = new Map<SandboxId, SandboxExecs>()
  readonly #upkeep: NodeJS.Timeout

  constructor(options: ExecsOptions) {
    this.#options = options
    this.#upkeep = setInterval(() => this.#expire(), EXPIRY_MS).unref()
  }

  async attach(live: LiveSandbox, adopted: boolean): Promise<void> {
    const driver = this.#options.openDriver(live)
    this.#open(live).attach({ driver, plan: planner(live) }, adopted)
  }

  async detach(live: LiveSandbox): Promise<void> {
    await this.#open(live).detach()
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
   * Resolves when commands can be started in a sandbox: one that is being created or started is waited for, and also one
   * whose command is still on its way here.
   * @param find undefined while the node does not know it
   * @throws Failure `sandbox_not_found`, `wrong_state` when it does not come to that, or is paused
   */
  async up(find: () => LiveSandbox | undefined, signal: AbortSignal): Promise<SandboxExecs> {
    const live = await until(find, ARRIVAL_MS, signal)
    if (!live) throw new Failure('sandbox_not_found', 'there is no such sandbox on this node')
    const execs = this.of(live)
    await until(() => execs.attached || live.state !== 'creating', START_MS, signal)
    if (!execs.attached || live.state === 'paused') throw notUp(live)
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

/** Looks until there is something, the time is over, or the signal aborts. */
async function until<T>(look: () => T, ms: number, signal: AbortSignal): Promise<T> {
  for (const end = Date.now() + ms; ; ) {
    const found = look()
    if (found || signal.aborted || Date.now() >= end) return found
    await pause(LOOK_MS)
  }
}

const notUp = ({ id, state }: LiveSandbox) =>
  new Failure('wrong_state', `sandbox ${id} is ${state}, and commands need one that runs`, { state })

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
