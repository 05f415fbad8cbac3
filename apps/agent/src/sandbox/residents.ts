// residents.ts: all sandboxes of the node that stay, beside the supervisor, which has those of jobs.

import { type ApplySandbox, Failure, Fault, type SandboxId } from '@berth/contracts'
import type { Companion, Lease, LiveSandbox } from './live.js'
import type { Surroundings } from './sandbox.js'

export interface ResidentsOptions extends Surroundings {
  /** Attached in this order, detached in the reverse. */
  readonly companions: readonly Companion[]
}

export class Residents {
  readonly #sandboxes = new Map<SandboxId, LiveSandbox>()

  constructor(readonly options: ResidentsOptions) {}

  /** Makes what is wanted of a sandbox the agent's own; returns once it is written down. */
  async apply(_command: ApplySandbox): Promise<void> {
    throw new Fault('apply a sandbox', { cause: 'this node holds none' })
  }

  get(id: SandboxId): LiveSandbox | undefined {
    return this.#sandboxes.get(id)
  }

  /**
   * The processes of a running sandbox; of a stopped one those of a hidden container on the same files. Waits while the
   * sandbox is on its way from one state to another.
   * @throws Failure `sandbox_not_found`, `wrong_state`
   */
  async lease(id: SandboxId): Promise<Lease> {
    throw new Failure('sandbox_not_found', `there is no sandbox ${id} on this node`)
  }

  standing(): readonly { readonly id: SandboxId; readonly generation: number }[] {
    return []
  }
}
