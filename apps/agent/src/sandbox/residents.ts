// residents.ts: all sandboxes of the node that stay, beside the supervisor, which has those of jobs. Takes commands (the
// whole of what is wanted of a sandbox, so that any of them may be lost or repeated), lets each sandbox live its own loop,
// and tells what became of them.

import type { ApplySandbox, SandboxId, SandboxReport } from '@berth/contracts'
import { Failure } from '@berth/contracts'
import type { HeldSnapshots } from './held-snapshots.js'
import type { Companion, Lease, LiveSandbox } from './live.js'
import { Resident, type ResidentContext } from './resident.js'
import { freshState, type ResidentRecord, type ResidentRecords } from './resident-record.js'
import type { Surroundings } from './sandbox.js'
import { Turns } from './turns.js'

/** Where residents tell what became of sandboxes. */
export interface SandboxReporting {
  /** There is something to tell of a sandbox. @param urgent somebody may be waiting for it */
  sandbox(id: SandboxId, urgent: boolean): void
}

export interface ResidentsOptions extends Surroundings {
  readonly records: ResidentRecords
  /** Files that sandboxes begin with. */
  readonly held: HeldSnapshots
  /** Attached in this order, detached in the reverse. */
  readonly companions: readonly Companion[]
  readonly reports: SandboxReporting
}

/** Deleted sandboxes whose generation is remembered: a command that was overtaken must not make them anew. */
const MAX_REMEMBERED = 10_000
/** Hidden containers at once: nobody's quota counts them. */
const MAX_HIDDEN = 32
/** Counters of control groups are looked at this often, and how full the layers are every third time. */
const WATCH_MS = 5_000
const DISK_EVERY = 3

export class Residents {
  readonly #options: ResidentsOptions
  readonly #context: ResidentContext
  readonly #residents = new Map<SandboxId, Resident>()
  readonly #removed = new Map<SandboxId, number>()
  readonly #lives = new Set<Promise<void>>()
  readonly #watching: NodeJS.Timeout
  #watched = 0
  #closed = false

  constructor(options: ResidentsOptions) {
    this.#options = options
    this.#context = {
      around: options,
      records: options.records,
      held: options.held,
      companions: options.companions,
      hiddenPlaces: new Turns(MAX_HIDDEN),
      onChange: (resident, urgent) => {
        for (const companion of options.companions) companion.changed?.(resident.live)
        if (!resident.unwanted && !this.#closed) options.reports.sandbox(resident.id, urgent)
      },
    }
    this.#watching = setInterval(() => void this.#watch(), WATCH_MS).unref()
  }

  /** Makes what is wanted of a sandbox the agent's own; returns once it is written down. */
  async apply(command: ApplySandbox): Promise<void> {
    const { sandboxId: id, tenantId, tenantLimits, generation } = command
    const { shop, records, log } = this.#options
    if (generation <= (this.#removed.get(id) ?? 0)) {
      log.info({ sandbox: id, generation }, 'sandbox.command_of_removed')
      return
    }
    shop.tenants.limit(tenantId, tenantLimits)
    const known = this.#residents.get(id)
    if (known) {
      known.apply(command)
      return
    }
    // What this node has told of and does not know has lost its files: that it is gone is all there is to tell.
    const wanted = command.known ? { ...command, desired: 'deleted' as const } : command
    const accepted = { command: wanted, acceptedAt: new Date().toISOString() }
    records.accept(accepted)
    log.info({ sandbox: id, generation, desired: wanted.desired, run: command.run }, 'sandbox.accepted')
    this.#begin(new Resident(this.#context, accepted, freshState))
  }

  /** Goes on with a sandbox of a former agent. @param alive see `Resident.recover` */
  async enter(record: ResidentRecord, alive: boolean): Promise<void> {
    const { accepted, state } = record
    if (!accepted) return
    const { tenantId, tenantLimits } = accepted.command
    this.#options.shop.tenants.limit(tenantId, tenantLimits)
    const resident = new Resident(this.#context, accepted, state)
    await resident.recover(alive)
    this.#begin(resident)
  }

  get(id: SandboxId): LiveSandbox | undefined {
    return this.#residents.get(id)?.live
  }

  /** @throws Failure `sandbox_not_found` */
  find(id: SandboxId): LiveSandbox {
    return this.#find(id).live
  }

  /**
   * The processes of a running sandbox; of a stopped one those of a hidden container on the same files. Waits while the
   * sandbox is on its way from one state to another.
   * @throws Failure `sandbox_not_found`, `wrong_state` (paused, or without files), `unavailable` (does not come up)
   */
  async lease(id: SandboxId): Promise<Lease> {
    return this.#find(id).leases.take()
  }

  /** Sends a signal to the main process of a sandbox. @throws Failure `sandbox_not_found`, `wrong_state` */
  signal(id: SandboxId, signal: number): void {
    this.#find(id).signal(signal)
  }

  /**
   * Does `work` on the files of a sandbox while nothing in it runs, unless `freeze` is false; it goes on right after.
   * @throws Failure `sandbox_not_found`, `unavailable` where something in it cannot be frozen; what `work` throws
   */
  still<T>(id: SandboxId, freeze: boolean, work: () => Promise<T>): Promise<T> {
    return this.#find(id).still(freeze, work)
  }

  /** Ends and deletes a sandbox that nobody wants any more, without a report. */
  discard(id: SandboxId): void {
    this.#residents.get(id)?.discard()
  }

  /** Every sandbox that was not removed and reported as such. */
  standing(): readonly { readonly id: SandboxId; readonly generation: number }[] {
    return [...this.#residents.values()]
      .filter(({ unwanted }) => !unwanted)
      .map(({ id, memory }) => ({ id, generation: memory.command.generation }))
  }

  /** What is to be told of a sandbox now; undefined when there is nothing of it any more. */
  report(id: SandboxId): SandboxReport | undefined {
    return this.#residents.get(id)?.report()
  }

  /** A report was stored by the API. */
  stored(report: SandboxReport): void {
    const resident = this.#residents.get(report.sandboxId)
    if (!resident) return
    if (report.state === 'deleted') this.#background(this.#forget(resident))
    else resident.memory.stored(report)
  }

  /** Directories of image layers that sandboxes are on. */
  layersInUse(): ReadonlySet<string> {
    return new Set([...this.#residents.values()].flatMap(({ live }) => live.image?.layers ?? []))
  }

  /** Lets go of all sandboxes without ending them; what is under way is waited for. */
  async close(): Promise<void> {
    this.#closed = true
    clearInterval(this.#watching)
    // Their processes are gone once the connections are: they must not take that for an end.
    await Promise.all(this.#options.companions.map((companion) => companion.close?.()))
    await Promise.all([...this.#residents.values()].map((resident) => resident.close()))
    await Promise.allSettled(this.#lives)
  }

  #find(id: SandboxId): Resident {
    const resident = this.#residents.get(id)
    if (!resident) throw new Failure('sandbox_not_found', `there is no sandbox ${id} on this node`)
    return resident
  }

  #begin(resident: Resident): void {
    this.#residents.set(resident.id, resident)
    this.#options.shop.tenants.hold(resident.live.tenantId)
    this.#context.onChange(resident, false)
    this.#background(this.#life(resident))
  }

  async #life(resident: Resident): Promise<void> {
    if ((await resident.run()) === 'left') return
    this.#options.log.info({ sandbox: resident.id }, 'sandbox.removed')
    // Else it goes once the API has stored that it is gone.
    if (resident.unwanted) await this.#forget(resident)
  }

  async #forget(resident: Resident): Promise<void> {
    const { id, live, memory } = resident
    if (this.#residents.get(id) !== resident) return
    this.#residents.delete(id)
    this.#options.shop.tenants.release(live.tenantId)
    this.#removed.set(id, memory.command.generation)
    const [oldest] = this.#removed.keys()
    if (this.#removed.size > MAX_REMEMBERED && oldest) this.#removed.delete(oldest)
    await this.#options.records.remove(id)
    this.#options.log.debug({ sandbox: id }, 'sandbox.forgotten')
  }

  async #watch(): Promise<void> {
    const { shop, log } = this.#options
    if (this.#residents.size === 0) return
    this.#watched += 1
    try {
      const fill = this.#watched % DISK_EVERY === 0 ? await shop.pool.fill() : undefined
      for (const resident of this.#residents.values()) resident.watch(fill?.get(resident.id))
    } catch (err) {
      log.error({ err }, 'sandbox.watch_failed')
    }
  }

  #background(work: Promise<void>): void {
    const guarded = work.catch((err: unknown) => this.#options.log.error({ err }, 'sandbox.failed'))
    this.#lives.add(guarded)
    void guarded.finally(() => this.#lives.delete(guarded))
  }
}
