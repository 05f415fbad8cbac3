import { z } from 'zod'
import { route, TenantScope, Time } from './route.js'
import { Tenant } from './tenant.js'

/** A browser's session: who it acts for, and until when. The cookie is httpOnly and SameSite=Strict. */
export const Session = z.object({
  tenant: Tenant.pick({ id: true, name: true }),
  keyId: z.string(),
  scopes: z.array(TenantScope),
  expiresAt: Time.nullable().describe('null: the caller came with a key that does not expire'),
})
export type Session = z.infer<typeof Session>

/** A session counts only with this header, which other sites cannot send, or on a WebSocket of the same origin. */
export const SESSION_HEADER = 'x-berth-session'

const headers = { [SESSION_HEADER]: 'Any value: shows that a page of this API sent the request' }

export const createSession = route({
  id: 'createSession',
  method: 'POST',
  path: '/v1/session',
  scope: 'public',
  rate: 'none',
  tag: 'session',
  summary: 'Sign in to the console with a key of a tenant',
  description:
    'Sets the cookie. The key needs the scope `tenant:read`. The session ends with its key, after twelve hours, or after ' +
    `an hour in which no page of it was connected. Needs the header \`${SESSION_HEADER}\`, as every use of the session does.`,
  headers,
  body: z.strictObject({ apiKey: z.string().max(256) }),
  reply: { 201: Session },
  errors: ['invalid_json', 'tenant_suspended', 'origin_forbidden'],
})
export const getSession = route({
  id: 'getSession',
  method: 'GET',
  path: '/v1/session',
  scope: 'tenant:read',
  rate: 'none',
  tag: 'session',
  summary: 'Who the caller is',
  reply: { 200: Session },
  errors: [],
})
export const deleteSession = route({
  id: 'deleteSession',
  method: 'DELETE',
  path: '/v1/session',
  scope: 'public',
  rate: 'none',
  tag: 'session',
  summary: 'Sign out',
  headers,
  reply: { 204: 'empty' },
  errors: ['origin_forbidden'],
})
