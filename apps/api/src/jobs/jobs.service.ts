// jobs.service.ts: jobs, as tenants see them. Admission decides and commits; what follows (sending, placing later)
// goes on in the background, and no answer waits for it.
import {
  type CreatedJob,
  finalJobStates,
  type Job,
  JobId,
  type JobSpec,
  type JobState,
  type TenantId,
  Warnings,
} from '@berth/contracts'
import { inlineStream } from '@berth/domain'
import type { JobFilter, PageOf, PageRequest } from '@berth/persistence'
import { Inject, Injectable } from '@nestjs/common'
import { z } from 'zod'
import type { TenantPrincipal } from '../http/auth.js'
import type { Once } from '../http/route.decorator.js'
import type { Specified } from '../images/templates.service.js'
import { type Admitted, ImageGate } from '../scan/image-gate.js'
import { Changes } from '../scheduling/changes.js'
import { Dispatcher } from '../scheduling/dispatcher.js'
import { DATABASE, type Database } from '../tokens.js'
import { keptInline } from './output.js'
import { Waiters } from './waiters.js'

/** How a caller wants to wait; see the query of `createJob`. */
export interface Waiting {
  readonly wait?: 'running' | 'finished' | undefined
  readonly timeoutMs: number
  readonly output: boolean
}

const finals: ReadonlySet<JobState> = new Set(finalJobStates)
export const isFinal = (state: JobState): boolean => finals.has(state)

const reached = (job: Job, wait: Waiting['wait']): boolean =>
  wait === undefined || isFinal(job.state) || (wait === 'running' && job.state === 'running')

/** What a repeat is told; of earlier versions without warnings. */
const Created = z.object({ id: JobId, warnings: Warnings.default([]) })

@Injectable()
export class JobsService {
  constructor(
    @Inject(DATABASE) private readonly database: Database,
    private readonly images: ImageGate,
    private readonly dispatcher: Dispatcher,
    private readonly changes: Changes,
    private readonly waiters: Waiters,
  ) {}

  /**
   * Admits a job and waits as asked. An idempotency key covers the admission only, so that a caller who lost the
   * connection while waiting goes on waiting for the same job by repeating the request.
   * @param specified not asked for again when a repeat has its answer
   */
  async create(
    { tenantId, keyId }: TenantPrincipal,
    specified: () => Promise<Specified<JobSpec>>,
    waiting: Waiting,
    once: Once,
    signal: AbortSignal,
  ): Promise<CreatedJob> {
    let now: Job | undefined
    const { id, warnings } = await once(Created, async () => {
      const { made, warnings } = await this.admit(tenantId, await specified(), keyId)
      now = made
      return { id: made.id, warnings }
    })
    const job = now && waiting.wait === undefined ? now : await this.get(tenantId, id, waiting, signal, now)
    return { ...job, warnings }
  }

  list(tenantId: TenantId, filter: JobFilter, page: PageRequest): Promise<PageOf<Job>> {
    return this.database.jobs.list({ tenantId }, filter, page)
  }

  /**
   * The job, after waiting as asked.
   * @param known the job as it was just now; answered where Postgres goes away during the wait
   * @throws job_not_found
   */
  async get(tenantId: TenantId, id: JobId, waiting: Waiting, signal: AbortSignal, known?: Job): Promise<Job> {
    const job = await this.waiters.until(
      id,
      () => this.database.jobs.get({ tenantId }, id),
      (seen) => reached(seen, waiting.wait),
      { timeoutMs: waiting.wait === undefined ? 0 : waiting.timeoutMs, signal, known },
    )
    return waiting.output && isFinal(job.state) ? this.withOutput(tenantId, job) : job
  }

  async cancel({ tenantId, keyId }: TenantPrincipal, id: JobId): Promise<Job> {
    const { job, cancel } = await this.database.jobs.requestCancel({ tenantId }, id, keyId)
    if (cancel) this.dispatcher.dispatch([cancel])
    else this.changes.announce([{ jobId: id, tenantId, batchId: job.batchId, finished: isFinal(job.state) }])
    return job
  }

  async delete(tenantId: TenantId, id: JobId): Promise<undefined> {
    this.dispatcher.dispatch(await this.database.jobs.delete({ tenantId }, id))
  }

  private async admit(
    tenantId: TenantId,
    { spec, image: text }: Specified<JobSpec>,
    by: string,
  ): Promise<Admitted<Job>> {
    const { made, warnings } = await this.images.admitted(tenantId, [text], ([image]) =>
      this.database.admission.admitJob(tenantId, spec, by, image),
    )
    if (made.placed) this.dispatcher.dispatch([made.placed])
    else this.changes.queued()
    this.changes.told(tenantId)
    return { made: made.job, warnings }
  }

  private async withOutput(tenantId: TenantId, job: Job): Promise<Job> {
    const attempt = await this.database.jobs.output({ tenantId }, job.id)
    const stream = (name: 'stdout' | 'stderr') =>
      inlineStream((attempt && keptInline(attempt, name)) ?? { data: Buffer.alloc(0), bytes: 0 })
    return { ...job, output: { stdout: stream('stdout'), stderr: stream('stderr') } }
  }
}
