// wakes.ts: those who wait for something to change look again, here and on the other replicas. An id is of whatever is
// waited for: a job, a batch, a sandbox, a build, or a tenant, whose events it stands for; or that something has come free.
import { Inject, Injectable } from '@nestjs/common'
import { Waiters } from '../jobs/waiters.js'
import { LOG, type Logger, type NodeQueues, QUEUES } from '../tokens.js'

/** Ids are gathered for this long before other replicas are told: one message for a burst. */
const GATHER_MS = 5
/** More than this at once are not told: everyone has a slow clock of their own. */
const MAX_GATHERED = 10_000

/** The id of whatever has come free on any node, or of any tenant's quota. */
export const ROOM = 'room'

@Injectable()
export class Wakes {
  private readonly gathered = new Set<string>()
  private timer: NodeJS.Timeout | undefined
  private silent = false

  constructor(
    private readonly waiters: Waiters,
    @Inject(QUEUES) private readonly queues: NodeQueues,
    @Inject(LOG) private readonly log: Logger,
  ) {}

  /** Begins to hear other replicas. */
  listen(): void {
    this.queues.subscribeWake((ids) => this.waiters.wake(ids))
  }

  /** Wakes in the background; a message that is lost costs a waiter some seconds. */
  wake(ids: Iterable<string>): void {
    const distinct = new Set(ids)
    this.waiters.wake(distinct)
    for (const id of distinct) if (this.gathered.size < MAX_GATHERED) this.gathered.add(id)
    if (this.gathered.size > 0) this.timer ??= setTimeout(() => void this.publish(), GATHER_MS)
  }

  private async publish(): Promise<void> {
    const ids = [...this.gathered]
    this.gathered.clear()
    this.timer = undefined
    try {
      await this.queues.publishWake(ids)
      this.silent = false
    } catch (err) {
      if (!this.silent) this.log.warn({ err }, 'wake.failed')
      this.silent = true
    }
  }
}
