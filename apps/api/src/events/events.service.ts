// events.service.ts: a tenant's log of events, page by page or as they happen.
//
// A stream is a cursor on the log: it reads what comes after the number that it has reached, and sleeps until the
// tenant is woken. Numbers have no gaps and none comes late, so going on after the last one seen loses and repeats
// nothing, on whichever replica. It reads only as fast as its client does.
import { type BerthEvent, type EventType, InvalidRequest, type TenantId } from '@berth/contracts'
import { Inject, Injectable } from '@nestjs/common'
import type { TenantPrincipal } from '../http/auth.js'
import type { ServerEvent } from '../http/lines.js'
import { Waiters } from '../jobs/waiters.js'
import { Watch } from '../streams/watch.js'
import { DATABASE, type Database } from '../tokens.js'

/** Events read at once by a stream. */
const AT_ONCE = 200

export interface EventQuery {
  readonly after?: string | undefined
  readonly type?: readonly EventType[] | undefined
  readonly subject?: string | undefined
}

/** Where a stream begins: after this number, with the oldest, or with the next. */
export interface StreamQuery extends EventQuery {
  readonly fromStart: boolean
  readonly lastEventId: string | undefined
}

interface Position {
  /** Everything up to this number has been told or does not match. */
  readonly after: number
  readonly events: readonly BerthEvent[]
}

@Injectable()
export class EventsService {
  constructor(
    @Inject(DATABASE) private readonly database: Database,
    private readonly waiters: Waiters,
    private readonly watch: Watch,
  ) {}

  list(tenantId: TenantId, query: EventQuery, limit: number): Promise<readonly BerthEvent[]> {
    return this.database.events.list(tenantId, Number(query.after ?? 0), query, limit)
  }

  /**
   * Events until the client goes, its key is revoked or the process shuts down.
   * @param client aborted when the client goes
   * @throws InvalidRequest, before anything is answered, for what is no id of an event
   */
  async follow(principal: TenantPrincipal, query: StreamQuery, client: AbortSignal) {
    return this.from(await this.beginning(principal.tenantId, query), principal, query, client)
  }

  private async *from(
    first: number,
    principal: TenantPrincipal,
    query: EventQuery,
    client: AbortSignal,
  ): AsyncGenerator<ServerEvent> {
    const watched = this.watch.begin(principal, client)
    const { tenantId } = principal
    const { signal } = watched
    try {
      let after = first
      for (;;) {
        const from = after
        const look = () => this.next(tenantId, from, query)
        const moved = (position: Position) => position.events.length > 0 || position.after > from
        const timeoutMs = Number.POSITIVE_INFINITY
        const position = await this.waiters.until<Position>(tenantId, look, moved, { timeoutMs, signal })
        for (const event of position.events) yield { id: event.id, event: event.type, data: event }
        // Only a shutdown ends a wait that has seen nothing: the client comes back to another replica.
        if (!moved(position)) return
        after = position.after
      }
    } finally {
      watched.stop()
    }
  }

  private async next(tenantId: TenantId, after: number, filter: EventQuery): Promise<Position> {
    // Read first: what is appended between the two is not skipped.
    const last = await this.database.events.last(tenantId)
    if (last <= after) return { after, events: [] }
    const events = await this.database.events.list(tenantId, after, filter, AT_ONCE)
    const told = Number(events.at(-1)?.id ?? after)
    return { after: events.length < AT_ONCE ? Math.max(last, told) : told, events }
  }

  private async beginning(tenantId: TenantId, query: StreamQuery): Promise<number> {
    const { lastEventId = query.after } = query
    if (lastEventId === undefined) return query.fromStart ? 0 : this.database.events.last(tenantId)
    if (/^\d{1,15}$/.test(lastEventId)) return Number(lastEventId)
    throw new InvalidRequest([{ field: 'Last-Event-ID', message: 'must be the id of an event' }])
  }
}
