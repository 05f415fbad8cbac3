// changes.ts: a stored change → those who wait for it, the nodes that are to act on it, and the placer where room was
// made; builds that wait for room hear of that too.
import type { TenantId } from '@berth/contracts'
import type { BuildRecord, ChangedSandbox, JobChange, SandboxChange } from '@berth/persistence'
import { Injectable } from '@nestjs/common'
import { Dispatcher } from './dispatcher.js'
import { Placer } from './placer.js'
import { ROOM, Wakes } from './wakes.js'

@Injectable()
export class Changes {
  constructor(
    private readonly wakes: Wakes,
    private readonly placer: Placer,
    private readonly dispatcher: Dispatcher,
  ) {}

  /** Jobs have changed. */
  announce(changes: readonly JobChange[]): void {
    this.wakes.wake(changes.flatMap(({ jobId, batchId, tenantId }) => [jobId, tenantId, ...(batchId ? [batchId] : [])]))
  }

  /** Sandboxes have changed. */
  announceSandboxes(changes: readonly SandboxChange[]): void {
    this.wakes.wake(changes.flatMap(({ sandboxId, tenantId, told }) => [sandboxId, ...(told ? [tenantId] : [])]))
  }

  /** A build has begun or ended. */
  announceBuild({ id, tenantId, endedAt }: BuildRecord): void {
    this.wakes.wake([id, tenantId])
    if (endedAt !== null) this.roomMade()
  }

  /** There are new events of a tenant. */
  told(tenantId: TenantId): void {
    this.wakes.wake([tenantId])
  }

  /** Sandboxes have changed, and all that follows. */
  follow(changed: readonly ChangedSandbox[]): void {
    this.dispatcher.dispatch(changed.flatMap(({ command }) => command ?? []))
    this.announceSandboxes(changed.map(({ change }) => change))
    if (changed.some(({ freed }) => freed)) this.roomMade()
  }

  /** Something that waits may fit now: in the queue, or on whatever replica it waits. */
  roomMade(): void {
    this.placer.trigger()
    this.wakes.wake([ROOM])
  }

  /** There is more in the queue. */
  queued(): void {
    this.placer.trigger()
  }
}
