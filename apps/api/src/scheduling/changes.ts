// changes.ts: a stored change → those who wait for it, here and on other replicas, and the placer where room was made.
import type { JobChange } from '@berth/persistence'
import { Inject, Injectable } from '@nestjs/common'
import { Waiters } from '../jobs/waiters.js'
import { LOG, type Logger, type NodeQueues, QUEUES } from '../tokens.js'
import { Placer } from './placer.js'

@Injectable()
export class Changes {
  private silent = false

  constructor(
    private readonly waiters: Waiters,
    private readonly placer: Placer,
    @Inject(QUEUES) private readonly queues: NodeQueues,
    @Inject(LOG) private readonly log: Logger,
  ) {}

  /** Begins to hear other replicas. */
  listen(): void {
    this.queues.subscribeWake((jobs) => this.waiters.wake(jobs))
  }

  /** Wakes in the background; a message that is lost costs a waiter some seconds. */
  announce(changes: readonly JobChange[]): void {
    if (changes.length === 0) return
    const jobs = changes.map(({ jobId }) => jobId)
    this.waiters.wake(jobs)
    this.waiters.wake(new Set(changes.flatMap(({ batchId }) => batchId ?? [])))
    void this.publish(jobs)
  }

  /** Something that waits in the queue may fit now. */
  roomMade(): void {
    this.placer.trigger()
  }

  private async publish(jobs: Parameters<NodeQueues['publishWake']>[0]): Promise<void> {
    try {
      await this.queues.publishWake(jobs)
      this.silent = false
    } catch (err) {
      if (!this.silent) this.log.warn({ err }, 'wake.failed')
      this.silent = true
    }
  }
}
