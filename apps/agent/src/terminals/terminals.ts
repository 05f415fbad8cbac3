// terminals.ts: the terminals of all sandboxes of the node, as a companion of each.

import { join } from 'node:path'
import { invariant, QuotaExceeded, type SandboxId, type TenantId, type TerminalSpec } from '@berth/contracts'
import type { Logger } from '@berth/telemetry'
import { accountsReader } from '../runtime/identity.js'
import type { SpawnRequest } from '../runtime/init-wire.js'
import type { NodeClock } from '../sandbox/clocks.plan.js'
import type { Companion, LiveSandbox } from '../sandbox/live.js'
import { Upcoming } from '../sandbox/upcoming.js'
import { Drawing } from './drawing.js'
import { startThread } from './drawing.thread.js'
import { SandboxTerminals } from './sandbox-terminals.js'
import { terminalRequest } from './terminal.plan.js'

const EXPIRY_MS = 60_000

export class Terminals implements Companion {
  readonly name = 'terminals'
  readonly #log: Logger
  readonly #drawing: Drawing
  readonly #sandboxes = new Map<SandboxId, { readonly tenantId: TenantId; readonly terminals: SandboxTerminals }>()
  readonly #upcoming = new Upcoming('terminals')
  readonly #upkeep: NodeJS.Timeout

  constructor(log: Logger) {
    this.#log = log
    this.#drawing = new Drawing({ start: startThread, log })
    this.#upkeep = setInterval(() => this.#expire(), EXPIRY_MS).unref()
  }

  async attach(live: LiveSandbox, adopted: boolean): Promise<void> {
    const { processes } = live
    invariant(processes, 'terminals are attached to a run that is up')
    await this.of(live).attach({ processes, plan: planner(live) }, adopted)
    this.#upcoming.tell()
  }

  async detach(live: LiveSandbox): Promise<void> {
    await this.of(live).detach()
  }

  changed(): void {
    this.#upcoming.tell()
  }

  async remove(id: SandboxId): Promise<void> {
    const known = this.#sandboxes.get(id)
    this.#sandboxes.delete(id)
    await known?.terminals.close()
  }

  warn(live: LiveSandbox, clock: NodeClock, endsAt: Date): void {
    this.of(live).notice(`this sandbox is stopped at ${endsAt.toISOString()} (${clock})`)
  }

  /** The terminals of a sandbox in whatever state. @throws Fault when what is on disk is damaged */
  of(live: LiveSandbox): SandboxTerminals {
    const known = this.#sandboxes.get(live.id)
    if (known) return known.terminals
    const terminals = SandboxTerminals.open({
      directory: join(live.directory, 'terminals'),
      drawing: this.#drawing,
      log: this.#log.child({ sandbox: live.id }),
      touch: () => live.touch(),
      admit: () => this.#admit(live),
    })
    this.#sandboxes.set(live.id, { tenantId: live.tenantId, terminals })
    return terminals
  }

  /**
   * Resolves when terminals can be opened in a sandbox; see `Upcoming`.
   * @throws Failure `sandbox_not_found`, `wrong_state`
   */
  async up(find: () => LiveSandbox | undefined, signal: AbortSignal): Promise<SandboxTerminals> {
    const terminals = this.of(await this.#upcoming.up(find, (live) => this.of(live).attached, signal))
    await terminals.ready()
    return terminals
  }

  /** Leaves everything as it is, for another agent process. */
  async close(): Promise<void> {
    clearInterval(this.#upkeep)
    const all = [...this.#sandboxes.values()]
    this.#sandboxes.clear()
    await Promise.all(all.map(({ terminals }) => terminals.close()))
    this.#drawing.close()
  }

  #admit({ tenantId, tenantTerminals }: LiveSandbox): void {
    const open = [...this.#sandboxes.values()]
      .filter((one) => one.tenantId === tenantId)
      .reduce((sum, { terminals }) => sum + terminals.open, 0)
    if (open >= tenantTerminals) throw new QuotaExceeded('terminals', tenantTerminals, open, 1)
  }

  #expire(): void {
    const now = new Date()
    for (const { terminals } of this.#sandboxes.values()) terminals.expire(now)
  }
}

/** Users and their shells are looked up in what the sandbox sees now. */
function planner(live: LiveSandbox): (spec: TerminalSpec) => SpawnRequest {
  const { image, hostname, upper } = live
  invariant(image, 'a sandbox that runs has an image')
  const accounts = accountsReader(upper, image.layers)
  return (spec) => {
    const place = { spec: live.spec, image: image.config, hostname, ids: live.ids.count }
    return terminalRequest(spec, place, accounts())
  }
}
