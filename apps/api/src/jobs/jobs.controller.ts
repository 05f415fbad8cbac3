import {
  cancelBatch,
  cancelJob,
  createBatch,
  createJob,
  deleteJob,
  getBatch,
  getJob,
  getJobOutput,
  JobId,
  listJobs,
  streamJobOutput,
} from '@berth/contracts'
import { Controller, StreamableFile } from '@nestjs/common'
import { pageAnswer, pageRequest } from '../http/paging.js'
import { type Call, Route } from '../http/route.decorator.js'
import { TemplatesService } from '../images/templates.service.js'
import { Follow } from '../streams/follow.js'
import { BatchesService } from './batches.service.js'
import { JobsService } from './jobs.service.js'

const OCTETS = { type: 'application/octet-stream' } as const

@Controller()
export class JobsController {
  constructor(
    private readonly jobs: JobsService,
    private readonly batches: BatchesService,
    private readonly follow: Follow,
    private readonly templates: TemplatesService,
  ) {}

  @Route(createJob, { once: 'handler' })
  create({ principal, body, query, once, signal }: Call<typeof createJob>) {
    const specified = () => this.templates.job(principal.tenantId, body)
    return this.jobs.create(principal, specified, query, once, signal)
  }

  @Route(listJobs)
  async list({ principal, query }: Call<typeof listJobs>) {
    return pageAnswer(await this.jobs.list(principal.tenantId, query, pageRequest(query, JobId)))
  }

  @Route(getJob)
  get({ principal, params, query, signal }: Call<typeof getJob>) {
    return this.jobs.get(principal.tenantId, params.jobId, query, signal)
  }

  @Route(cancelJob)
  cancel({ principal, params }: Call<typeof cancelJob>) {
    return this.jobs.cancel(principal, params.jobId)
  }

  @Route(deleteJob)
  delete({ principal, params }: Call<typeof deleteJob>) {
    return this.jobs.delete(principal.tenantId, params.jobId)
  }

  @Route(getJobOutput)
  output({ principal, params, signal }: Call<typeof getJobOutput>) {
    return this.follow.both(principal, params.jobId, signal)
  }

  @Route(streamJobOutput)
  async stream({ principal, params, query, signal }: Call<typeof streamJobOutput>) {
    return new StreamableFile(await this.follow.open(principal, { ...params, ...query }, signal), OCTETS)
  }

  @Route(createBatch)
  async createBatch({ principal, body }: Call<typeof createBatch>) {
    const jobs = await this.templates.jobs(principal.tenantId, body.jobs)
    return this.batches.create(principal, body.name, jobs)
  }

  @Route(getBatch)
  getBatch({ principal, params, query, signal }: Call<typeof getBatch>) {
    return this.batches.get(principal.tenantId, params.batchId, query.wait ? query.timeoutMs : 0, signal)
  }

  @Route(cancelBatch)
  cancelBatch({ principal, params }: Call<typeof cancelBatch>) {
    return this.batches.cancel(principal, params.batchId)
  }
}
