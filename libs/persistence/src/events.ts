// events.ts: the append-only log of each tenant.
//
// An event is appended in the statement that makes the change which it tells of. That statement holds the tenant's row
// of tenant_usage and grows `event_number` in it, so that numbers are in the order of commits and without gaps: who
// has read up to a number has missed nothing before it, and nothing will come in there later.
import { type BerthEvent, DAY, type EventType, type TenantId } from '@berth/contracts'
import type { EventFilter, Events, ImageWarning } from './repositories.js'
import type { Statement, Store } from './store.js'
import { tenantNotFound } from './tenants.js'
import { iso } from './views.js'

/** How long events are kept. */
const KEPT_MS = 30 * DAY
/** How long a tenant is not told the same of the same image again. */
const WARNED_MS = DAY
/** Oldest events of one tenant that one call looks at. */
const LOOK_AHEAD = 1000

/** An event before it is appended. `data` is small: states, numbers, a reason. */
export interface NewEvent {
  readonly type: EventType
  readonly at: string
  readonly subject: string
  readonly by: string
  readonly data: Readonly<Record<string, unknown>>
}

const listEvents: Statement = {
  name: 'list_events',
  text: `SELECT e.number::text AS id, e.type, ${iso('e.at')} AS at, e.subject, e.by, e.data FROM events e
         WHERE e.tenant_id = $1 AND e.number > $2 AND ($3::text[] IS NULL OR e.type = ANY($3)) ORDER BY e.number LIMIT $4`,
}

// Apart, so that a plan made for all subjects is not used for one.
const listEventsOf: Statement = {
  name: 'list_events_of',
  text: `SELECT e.number::text AS id, e.type, ${iso('e.at')} AS at, e.subject, e.by, e.data FROM events e
         WHERE e.tenant_id = $1 AND e.subject = $5 AND e.number > $2 AND ($3::text[] IS NULL OR e.type = ANY($3))
         ORDER BY e.number LIMIT $4`,
}

const lastNumber: Statement = {
  name: 'last_event_number',
  text: 'SELECT event_number FROM tenant_usage WHERE tenant_id = $1',
}

// Numbers are given by who holds this row, so nothing is told between the look and what is appended.
const hold: Statement = {
  name: 'hold_events',
  text: 'SELECT event_number FROM tenant_usage WHERE tenant_id = $1 FOR UPDATE',
}

const appendWarned: Statement = {
  name: 'append_image_warned',
  text: `WITH numbered AS (
      UPDATE tenant_usage u SET event_number = u.event_number + 1 WHERE u.tenant_id = $1 AND NOT EXISTS (
        SELECT 1 FROM events e WHERE e.tenant_id = $1 AND e.subject = $2 AND e.type = 'image.warned' AND e.at > $5
          AND e.data - 'image' = $4::jsonb - 'image')
      RETURNING u.event_number)
    INSERT INTO events (tenant_id, number, type, at, subject, by, data)
    SELECT $1, n.event_number, 'image.warned', $3, $2, 'api', $4::jsonb FROM numbered n RETURNING number`,
}

// The oldest events of a tenant have its lowest numbers, so the primary key finds them without an index on time.
const expireEvents: Statement = {
  name: 'expire_events',
  text: `WITH old AS MATERIALIZED (
      SELECT o.tenant_id, o.number FROM tenant_usage u CROSS JOIN LATERAL (
        SELECT first.* FROM (
          SELECT e.tenant_id, e.number, e.at FROM events e WHERE e.tenant_id = u.tenant_id
          ORDER BY e.number LIMIT ${LOOK_AHEAD}) first
        WHERE first.at <= $1) o
      LIMIT $2
    ), gone AS (
      DELETE FROM events e USING old o WHERE e.tenant_id = o.tenant_id AND e.number = o.number RETURNING 1)
    SELECT count(*)::integer AS events FROM gone`,
}

async function list(store: Store, tenantId: TenantId, after: number, filter: EventFilter, limit: number) {
  const values = [tenantId, after, filter.type ?? null, limit]
  return filter.subject === undefined
    ? store.rows<BerthEvent>(listEvents, values)
    : store.rows<BerthEvent>(listEventsOf, [...values, filter.subject])
}

async function last(store: Store, tenantId: TenantId): Promise<number> {
  const [row] = await store.rows<{ event_number: number }>(lastNumber, [tenantId])
  if (!row) throw tenantNotFound(tenantId)
  return row.event_number
}

async function warned(store: Store, tenantId: TenantId, digest: string, warning: ImageWarning): Promise<boolean> {
  const now = store.clock.now()
  const data = JSON.stringify(warning)
  return store.transaction(async (session) => {
    await session.rows(hold, [tenantId])
    const values = [tenantId, digest, now, data, new Date(now.getTime() - WARNED_MS)]
    return (await session.rows(appendWarned, values)).length > 0
  })
}

async function expire(store: Store, limit: number): Promise<number> {
  const before = new Date(store.clock.now().getTime() - KEPT_MS)
  return (await store.rows<{ events: number }>(expireEvents, [before, limit]))[0]?.events ?? 0
}

export const openEvents = (store: Store): Events => ({
  list: (tenantId, after, filter, limit) => list(store, tenantId, after, filter, limit),
  last: (tenantId) => last(store, tenantId),
  warned: (tenantId, digest, warning) => warned(store, tenantId, digest, warning),
  expire: (limit) => expire(store, limit),
})
