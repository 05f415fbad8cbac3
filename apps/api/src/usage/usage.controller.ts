import { getUsage, InvalidRequest, type Usage } from '@berth/contracts'
import { Controller, Inject } from '@nestjs/common'
import { type Call, Route } from '../http/route.decorator.js'
import { CLOCK, type Clock, DATABASE, type Database } from '../tokens.js'

/** What is summed when no period is asked for, in milliseconds. */
const DEFAULT_PERIOD_MS = 30 * 86_400_000

@Controller()
export class UsageController {
  constructor(
    @Inject(DATABASE) private readonly database: Database,
    @Inject(CLOCK) private readonly clock: Clock,
  ) {}

  @Route(getUsage)
  async get({ principal, query }: Call<typeof getUsage>): Promise<Usage> {
    const to = query.to === undefined ? this.clock.now() : new Date(query.to)
    const from = query.from === undefined ? new Date(to.getTime() - DEFAULT_PERIOD_MS) : new Date(query.from)
    if (from > to) throw new InvalidRequest([{ field: 'from', message: 'must not be after to' }])
    return this.database.usage.get(principal.tenantId, from, to)
  }
}
