import { listEvents, streamEvents } from '@berth/contracts'
import { Controller } from '@nestjs/common'
import { serverSentEvents } from '../http/lines.js'
import { type Call, Route } from '../http/route.decorator.js'
import { EventsService } from './events.service.js'

@Controller()
export class EventsController {
  constructor(private readonly events: EventsService) {}

  @Route(listEvents)
  async list({ principal, query }: Call<typeof listEvents>) {
    return { items: [...(await this.events.list(principal.tenantId, query, query.limit))] }
  }

  @Route(streamEvents)
  async stream({ principal, query, asking, signal }: Call<typeof streamEvents>) {
    const { 'last-event-id': given } = asking.headers
    const lastEventId = typeof given === 'string' && given !== '' ? given : undefined
    return serverSentEvents(await this.events.follow(principal, { ...query, lastEventId }, signal), signal)
  }
}
