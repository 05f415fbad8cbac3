import { Failure, route } from '@berth/contracts'
import { Controller, Inject } from '@nestjs/common'
import { z } from 'zod'
import { Route } from '../http/route.decorator.js'
import { DATABASE, type Database, LOG, type Logger, type NodeQueues, QUEUES } from '../tokens.js'
import { Drain } from './drain.js'

const probe = { method: 'GET', scope: 'public', rate: 'none', tag: 'operations' } as const

const healthz = route({
  ...probe,
  id: 'healthz',
  path: '/healthz',
  summary: 'The process lives',
  reply: { 200: z.object({ status: z.literal('ok') }) },
  errors: [],
})
const readyz = route({
  ...probe,
  id: 'readyz',
  path: '/readyz',
  summary: 'Postgres and Redis answer, and this process takes requests',
  reply: { 200: z.object({ status: z.literal('ok') }) },
  errors: ['unavailable'],
})

@Controller()
export class HealthController {
  constructor(
    @Inject(DATABASE) private readonly database: Database,
    @Inject(QUEUES) private readonly queues: NodeQueues,
    private readonly drain: Drain,
    @Inject(LOG) private readonly log: Logger,
  ) {}

  @Route(healthz)
  async healthz(): Promise<{ status: 'ok' }> {
    return { status: 'ok' }
  }

  @Route(readyz)
  async readyz(): Promise<{ status: 'ok' }> {
    if (this.drain.signal.aborted) throw new Failure('unavailable', 'this process is shutting down')
    const missing = (
      await Promise.all([this.check('postgres', this.database.ping()), this.check('redis', this.queues.ping())])
    ).filter((name) => name !== undefined)
    if (missing.length > 0) throw new Failure('unavailable', `no answer from ${missing.join(' and ')}`, { missing })
    return { status: 'ok' }
  }

  private async check(name: string, answer: Promise<void>): Promise<string | undefined> {
    try {
      await answer
      return undefined
    } catch (err) {
      this.log.warn({ err, name }, 'readyz.missing')
      return name
    }
  }
}
