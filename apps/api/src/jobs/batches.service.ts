import type { Batch, BatchId, CreatedBatch, JobSpec, TenantId } from '@berth/contracts'
import { Inject, Injectable } from '@nestjs/common'
import type { TenantPrincipal } from '../http/auth.js'
import type { Specified } from '../images/templates.service.js'
import { ImageGate } from '../scan/image-gate.js'
import { Changes } from '../scheduling/changes.js'
import { Dispatcher } from '../scheduling/dispatcher.js'
import { DATABASE, type Database } from '../tokens.js'
import { Waiters } from './waiters.js'

/** Least time between two counts of a batch's jobs: each end of a job wakes those who wait for the batch. */
const COUNT_PACE_MS = 100

@Injectable()
export class BatchesService {
  constructor(
    @Inject(DATABASE) private readonly database: Database,
    private readonly images: ImageGate,
    private readonly dispatcher: Dispatcher,
    private readonly changes: Changes,
    private readonly waiters: Waiters,
  ) {}

  async create(
    { tenantId, keyId }: TenantPrincipal,
    name: string | undefined,
    specified: readonly Specified<JobSpec>[],
  ): Promise<CreatedBatch> {
    const [jobs, texts] = [specified.map(({ spec }) => spec), specified.map(({ image }) => image)]
    const { made, warnings } = await this.images.admitted(tenantId, texts, (images) =>
      this.database.admission.admitBatch(tenantId, name, jobs, keyId, images),
    )
    this.dispatcher.dispatch(made.placed)
    this.changes.told(tenantId)
    this.changes.queued()
    return { ...made.batch, jobIds: [...made.jobIds], warnings }
  }

  /** The batch; with `waitMs` once all its jobs have ended, or when that time is over. @throws batch_not_found */
  get(tenantId: TenantId, id: BatchId, waitMs: number, signal: AbortSignal): Promise<Batch> {
    return this.waiters.until(
      id,
      () => this.database.batches.get({ tenantId }, id),
      (batch) => batch.finishedAt !== null,
      { timeoutMs: waitMs, signal, paceMs: COUNT_PACE_MS },
    )
  }

  async cancel({ tenantId, keyId }: TenantPrincipal, id: BatchId): Promise<Batch> {
    const { batch, cancels, changed } = await this.database.batches.cancel({ tenantId }, id, keyId)
    this.dispatcher.dispatch(cancels)
    this.changes.announce(changed)
    return batch
  }
}
