import { z } from 'zod'
import { SandboxId } from './ids.js'
import { Flag, route, Time } from './route.js'

/** What may happen, closed. `sandbox.<state>` tells a change of state; the others what their names say. */
export const eventTypes = [
  'sandbox.created',
  'sandbox.creating',
  'sandbox.running',
  'sandbox.paused',
  'sandbox.stopped',
  'sandbox.failed',
  'sandbox.lost',
  'sandbox.deleted',
  'sandbox.restarted',
  'sandbox.updated',
  'sandbox.ended',
  'sandbox.warning',
  'sandbox.limit_hit',
  'job.queued',
  'job.placed',
  'job.running',
  'job.succeeded',
  'job.failed',
  'job.timed_out',
  'job.canceled',
  'build.started',
  'build.succeeded',
  'build.failed',
  'build.canceled',
  'image.warned',
] as const
export const EventType = z.enum(eventTypes)
export type EventType = z.infer<typeof EventType>

/** One entry of a tenant's append-only log. Events are kept for 30 days. */
export const BerthEvent = z.object({
  id: z.string().describe('Position in the log of the tenant: grows by one with every event'),
  type: EventType,
  at: Time,
  subject: z.string().describe('Id of the sandbox, job or build, or digest of the image'),
  by: z.string().describe('`sandbox`, `agent`, `api`, or the id of the key that asked'),
  data: z.record(z.string(), z.unknown()).describe('Depends on the type; see docs/events.md'),
})
export type BerthEvent = z.infer<typeof BerthEvent>

/** Limits whose first hit in a run is told as `sandbox.limit_hit`. */
export const LimitHit = z.enum(['memory', 'pids', 'disk', 'cpu'])
export type LimitHit = z.infer<typeof LimitHit>

const query = {
  after: z
    .string()
    .regex(/^\d{1,15}$/, 'must be the id of an event')
    .optional()
    .describe('Only later ones'),
  type: z.union([EventType.transform((type) => [type]), z.array(EventType)]).optional(),
  subject: z.union([SandboxId, z.string().max(128)]).optional(),
} as const

export const listEvents = route({
  id: 'listEvents',
  method: 'GET',
  path: '/v1/events',
  scope: 'tenant:read',
  rate: 'read',
  tag: 'events',
  summary: 'List events, oldest first',
  query: z.strictObject({ ...query, limit: z.coerce.number().int().min(1).max(1000).default(100) }),
  reply: { 200: z.object({ items: z.array(BerthEvent) }) },
  errors: [],
})
export const streamEvents = route({
  id: 'streamEvents',
  method: 'GET',
  path: '/v1/events/stream',
  scope: 'tenant:read',
  rate: 'read',
  tag: 'events',
  summary: 'Events as they happen, by server-sent events',
  description:
    'Goes on after `Last-Event-ID` (or `after`), with no event lost or told twice; without either it begins with the next ' +
    'event, or with `fromStart=true` with the oldest that is kept.',
  headers: { 'Last-Event-ID': 'Id of the last event seen' },
  query: z.strictObject({ ...query, fromStart: Flag.default(false) }),
  reply: { 200: { kind: 'events', item: BerthEvent } },
  errors: [],
})
