// leases.ts: who needs the processes of a sandbox, whether it runs or not. Files can be read and written in a stopped one
// too: its resident then keeps a hidden container for as long as anybody holds a lease, and a while longer.

import { Failure } from '@berth/contracts'
import type { Changes } from '../logs/changes.js'
import type { Processes } from '../runtime/processes.js'
import type { Lease, LiveSandbox } from './live.js'
import type { ResidentMemory } from './resident-memory.js'

/** A hidden container stays this long after its last lease. */
const IDLE_MS = 5_000
/** A lease waits this long for a sandbox that is on its way from one state to another. */
const PATIENCE_MS = 30_000

export class Leases {
  readonly #live: LiveSandbox
  readonly #memory: ResidentMemory
  readonly #changes: Changes
  readonly #processes: () => Processes | undefined
  #count = 0
  #hiddenUntil = 0
  #failure: string | undefined

  /** @param processes those of its container once that is up, hidden or not */
  constructor(live: LiveSandbox, memory: ResidentMemory, changes: Changes, processes: () => Processes | undefined) {
    this.#live = live
    this.#memory = memory
    this.#changes = changes
    this.#processes = processes
  }

  get count(): number {
    return this.#count
  }

  /** How long a hidden container is to stay, in Unix milliseconds. */
  get hiddenUntil(): number {
    return this.#hiddenUntil
  }

  /** A hidden container did not come up: whoever waits for it is told why. */
  fail(message: string): void {
    this.#failure = message
    this.#changes.tell()
  }

  /** @throws Failure `wrong_state`, `sandbox_not_found` where it cannot have processes, `unavailable` where it does not come up */
  async take(): Promise<Lease> {
    this.#count += 1
    this.#failure = undefined
    this.#changes.tell()
    try {
      const processes = await this.#serving()
      return { live: this.#live, processes, [Symbol.asyncDispose]: this.#release() }
    } catch (error) {
      await this.#release()()
      throw error
    }
  }

  #release(): () => Promise<void> {
    let held = true
    return async () => {
      if (!held) return
      held = false
      this.#count -= 1
      this.#hiddenUntil = Date.now() + IDLE_MS
      this.#changes.tell()
    }
  }

  async #serving(): Promise<Processes> {
    const patience = new AbortController()
    const timer = setTimeout(() => patience.abort(), PATIENCE_MS)
    try {
      for (;;) {
        const seen = this.#changes.version
        const processes = this.#processes()
        if (processes) return processes
        const refusal = this.#refusal()
        if (refusal) throw refusal
        if (patience.signal.aborted) throw this.#unavailable(`it is ${this.#memory.state.phase}`)
        await this.#changes.after(seen, patience.signal)
      }
    } finally {
      clearTimeout(timer)
    }
  }

  #refusal(): Failure | undefined {
    const { id, state } = this.#live
    const { phase, outcome } = this.#memory.state
    if (this.#memory.command.desired === 'deleted' || phase === 'removing' || phase === 'removed')
      return new Failure('sandbox_not_found', `sandbox ${id} is deleted`)
    const wrong = (why: string) => new Failure('wrong_state', `sandbox ${id} is ${state}: ${why}`, { state })
    if (phase === 'frozen' || phase === 'freezing') return wrong('its processes are frozen')
    if (phase === 'fresh' && outcome) return wrong('it has no files')
    return this.#failure === undefined ? undefined : this.#unavailable(this.#failure)
  }

  #unavailable(why: string): Failure {
    return new Failure('unavailable', `sandbox ${this.#live.id} does not come up: ${why}`)
  }
}
