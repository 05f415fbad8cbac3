// limit-keeper.ts: the limits of one sandbox: those that its control group and its layer have against those that it is to
// have, and those that it has run into.

import type { LimitHit, SandboxSpec } from '@berth/contracts'
import type { CgroupUsage } from '@berth/host'
import { groupLimits } from '@berth/oci'
import type { Logger } from '@berth/telemetry'
import type { LiveSandbox } from './live.js'
import type { ResidentMemory } from './resident-memory.js'
import type { Workshop } from './steps.js'

export interface LayerFill {
  readonly usedBytes: number
  readonly limitBytes: number
}

/** What the kernel refused is tried again after so long. */
const RETRY_MS = 5_000
/** Held back by its CPU limit for this long in one run: worth to be told. */
const THROTTLED_US = 10_000_000

export class LimitKeeper {
  readonly #shop: Pick<Workshop, 'pool' | 'cgroups'>
  readonly #memory: ResidentMemory
  readonly #live: LiveSandbox
  readonly #log: Logger
  /** What the group has; undefined while there is none. */
  #applied: string | undefined
  #tryAt = 0

  constructor(shop: Pick<Workshop, 'pool' | 'cgroups'>, memory: ResidentMemory, live: LiveSandbox, log: Logger) {
    this.#shop = shop
    this.#memory = memory
    this.#live = live
    this.#log = log
  }

  /** What resident.plan.ts has to know. */
  get observed() {
    const { spec } = this.#live
    return {
      limitsDiffer: this.#applied !== undefined && this.#applied !== limitsOf(spec),
      diskDiffers: this.#memory.state.diskBytes !== spec.limits.diskBytes,
      resizeAt: this.#tryAt,
    }
  }

  /** A container is made with the limits of the spec. */
  begin(): void {
    this.#applied = limitsOf(this.#live.spec)
  }

  /** A container is taken over: whether the last change came through nobody knows, so they are given again. */
  adopt(): void {
    this.#applied = ''
  }

  end(): void {
    this.#applied = undefined
  }

  /** Gives layer and group what the spec says; what fails is tried again later. */
  async apply(now: number): Promise<void> {
    const { spec, id, group } = this.#live
    try {
      if (this.#memory.state.diskBytes !== spec.limits.diskBytes) {
        await this.#shop.pool.resize(id, spec.limits.diskBytes)
        this.#memory.save({ diskBytes: spec.limits.diskBytes })
      }
      if (this.#applied === undefined) return
      this.#shop.cgroups.setLimits(group, groupLimits(spec.limits))
      this.#applied = limitsOf(spec)
      this.#log.info({}, 'sandbox.resized')
    } catch (err) {
      // E.g. less memory than it holds just now, which cgroup v1 refuses.
      this.#log.warn({ err }, 'sandbox.resize_failed')
      this.#tryAt = now + RETRY_MS
    }
  }

  /** Notes what was run into for the first time in this run. @returns whether there was anything */
  watch(usage: CgroupUsage | undefined, fill?: LayerFill): boolean {
    const hits: readonly (readonly [LimitHit, boolean])[] = [
      ['memory', (usage?.oomKills ?? 0) > 0],
      ['pids', (usage?.pidsRefused ?? 0) > 0],
      ['cpu', (usage?.cpuThrottledUs ?? 0) > THROTTLED_US],
      ['disk', fill !== undefined && isFull(fill)],
    ]
    const fresh = hits.filter(([limit, hit]) => hit && this.#memory.hit(limit))
    for (const [limit] of fresh) this.#log.info({ limit }, 'sandbox.limit_hit')
    return fresh.length > 0
  }
}

const limitsOf = (spec: SandboxSpec): string => JSON.stringify(groupLimits(spec.limits))

/** The kernel refuses what does not fit, so a full layer is a little less than full. */
const isFull = ({ usedBytes, limitBytes }: LayerFill) => usedBytes >= limitBytes - Math.max(65_536, limitBytes / 200)
