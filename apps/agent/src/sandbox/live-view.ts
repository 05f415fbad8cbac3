// live-view.ts: a sandbox as the rest of the agent sees it (live.ts): read off what its resident remembers and does.

import type { Processes, SandboxProcess } from '../runtime/processes.js'
import type { Activity } from './activity.js'
import type { ContainerRun } from './container-run.js'
import type { LiveSandbox } from './live.js'
import { hostnameOf } from './main.plan.js'
import type { ResidentMemory } from './resident-memory.js'
import { toldOf } from './resident-report.plan.js'
import type { RunnableImage } from './sandbox.js'
import { sandboxGroup, type Workshop } from './steps.js'

/** What a resident has at a moment. */
export interface Present {
  /** The container, a hidden one too. */
  readonly container: ContainerRun | undefined
  readonly runEnded: AbortSignal
}

export class LiveView implements LiveSandbox {
  readonly #shop: Pick<Workshop, 'tenants' | 'pool'>
  readonly #memory: ResidentMemory
  readonly #activity: Activity
  readonly #present: () => Present

  constructor(
    shop: Pick<Workshop, 'tenants' | 'pool'>,
    memory: ResidentMemory,
    activity: Activity,
    present: () => Present,
  ) {
    this.#shop = shop
    this.#memory = memory
    this.#activity = activity
    this.#present = present
  }

  get id() {
    return this.#memory.command.sandboxId
  }

  get tenantId() {
    return this.#memory.command.tenantId
  }

  get ids() {
    return this.#memory.command.ids
  }

  get spec() {
    return this.#memory.command.spec
  }

  get image(): RunnableImage | undefined {
    return this.#memory.state.image ?? undefined
  }

  get hostname(): string {
    return hostnameOf(this.spec, this.id)
  }

  get directory(): string {
    return this.#memory.paths.directory
  }

  get group(): string {
    return sandboxGroup(this.#shop, this)
  }

  get upper(): string {
    return `${this.#shop.pool.path(this.id)}/upper`
  }

  get state() {
    return toldOf(this.#memory.state).state
  }

  get run(): number {
    return this.#memory.state.run
  }

  get restart(): number {
    return this.#memory.state.restart
  }

  get processes(): Processes | undefined {
    const { container } = this.#present()
    return container?.hidden ? undefined : container?.processes
  }

  get main(): SandboxProcess | undefined {
    return this.#present().container?.main
  }

  get runEnded(): AbortSignal {
    return this.#present().runEnded
  }

  get tenantTerminals(): number {
    return this.#memory.command.tenantTerminals
  }

  touch(): void {
    this.#activity.touch()
  }

  occupy(): () => void {
    return this.#activity.occupy(this.runEnded)
  }
}
