import { z } from 'zod'
import { KeyId, TenantId } from './ids.js'
import { ImagePolicy } from './image-scan.js'
import { Name, Page, pageOf, route, TenantScope, Time, tenantScopes } from './route.js'
import { Bytes, GiB, KiB, MiB } from './units.js'

const count = (max: number) => z.number().int().min(0).max(max)

/**
 * What a tenant may have at one moment. `unfinishedJobs` is refused over its limit; jobs over `concurrentJobs`,
 * `cpus`, `memoryBytes` or `diskBytes` wait in the queue, unless one alone is larger than the quota. A sandbox does not
 * wait: it is refused over `sandboxes`, `cpus`, `memoryBytes` or `diskBytes`.
 */
export const Quota = z.strictObject({
  unfinishedJobs: count(10_000_000).describe('Jobs that may be queued or running at once'),
  concurrentJobs: count(100_000).describe('Jobs that may run at once'),
  cpus: z.number().min(0).max(100_000).describe('CPUs that running jobs and sandboxes may ask for, in all'),
  memoryBytes: Bytes(0, 2 ** 50).describe('Memory that running jobs and sandboxes may ask for, in all'),
  diskBytes: Bytes(0, 2 ** 50).describe('Writable disk that running jobs and existing sandboxes may ask for, in all'),
  imageBytes: Bytes(0, 2 ** 50).describe("Layers of the tenant's own images, unpacked, each counted once"),
  sandboxes: count(100_000).describe('Sandboxes that may exist at once, stopped ones included'),
  terminals: count(100_000).describe('Terminals that may be open on one node at once'),
  pids: count(4_194_304).describe('Processes and threads on one node, in all'),
  requestsPerMinute: count(10_000_000).describe('API requests a minute; short bursts of a tenth of it are let through'),
})
export type Quota = z.infer<typeof Quota>

export const defaultQuota: Quota = {
  unfinishedJobs: 20_000,
  concurrentJobs: 16,
  cpus: 16,
  memoryBytes: 16 * GiB,
  diskBytes: 64 * GiB,
  imageBytes: 32 * GiB,
  sandboxes: 64,
  terminals: 64,
  pids: 8192,
  requestsPerMinute: 60_000,
}

export const Tenant = z.object({
  id: TenantId,
  name: Name,
  state: z.enum(['active', 'suspended']),
  quota: Quota,
  imagePolicy: ImagePolicy.nullable().describe('Which images it may not start; null: as of the installation'),
  createdAt: Time,
})
export type Tenant = z.infer<typeof Tenant>

export const Scopes = z.array(TenantScope).min(1).max(tenantScopes.length)

/** An API key without its secret. `hint` is the secret's first characters, to tell keys apart. */
export const ApiKey = z.object({
  id: KeyId,
  name: Name,
  hint: z.string(),
  scopes: z.array(z.union([TenantScope, z.literal('operator')])),
  createdAt: Time,
  expiresAt: Time.nullable(),
  revokedAt: Time.nullable(),
  lastUsedAt: Time.nullable(),
})
export type ApiKey = z.infer<typeof ApiKey>

export const NewApiKey = ApiKey.extend({ secret: z.string().describe('Shown only in this answer') })
export type NewApiKey = z.infer<typeof NewApiKey>

const KeyRequest = z.strictObject({
  name: Name,
  scopes: Scopes.default([...tenantScopes]),
  expiresAt: Time.optional(),
})
const tenantParams = z.object({ tenantId: TenantId })

export const createTenant = route({
  id: 'createTenant',
  method: 'POST',
  path: '/v1/tenants',
  scope: 'operator',
  rate: 'none',
  tag: 'tenants',
  summary: 'Create a tenant',
  body: z.strictObject({ name: Name, quota: Quota.partial().optional() }),
  reply: { 201: Tenant },
  errors: ['name_taken'],
})
export const listTenants = route({
  id: 'listTenants',
  method: 'GET',
  path: '/v1/tenants',
  scope: 'operator',
  rate: 'none',
  tag: 'tenants',
  summary: 'List tenants',
  query: z.strictObject({ ...Page.query, name: Name.optional() }),
  reply: { 200: pageOf(Tenant) },
  errors: [],
})
export const getTenant = route({
  id: 'getTenant',
  method: 'GET',
  path: '/v1/tenants/:tenantId',
  scope: 'operator',
  rate: 'none',
  tag: 'tenants',
  summary: 'Get a tenant',
  params: tenantParams,
  reply: { 200: Tenant },
  errors: ['tenant_not_found'],
})
export const updateTenant = route({
  id: 'updateTenant',
  method: 'PATCH',
  path: '/v1/tenants/:tenantId',
  scope: 'operator',
  rate: 'none',
  tag: 'tenants',
  summary: 'Change quota, state or policy of images of a tenant',
  description:
    'Quota fields that are not given stay as they are. A suspended tenant can do nothing, and its queued jobs wait.',
  params: tenantParams,
  body: z.strictObject({
    quota: Quota.partial().optional(),
    state: z.enum(['active', 'suspended']).optional(),
    imagePolicy: ImagePolicy.nullable()
      .optional()
      .describe('In effect on every replica within two seconds; null: as of the installation'),
  }),
  reply: { 200: Tenant },
  errors: ['tenant_not_found'],
})
export const createTenantKey = route({
  id: 'createTenantKey',
  method: 'POST',
  path: '/v1/tenants/:tenantId/keys',
  scope: 'operator',
  rate: 'none',
  tag: 'keys',
  summary: 'Create an API key for a tenant',
  params: tenantParams,
  body: KeyRequest,
  reply: { 201: NewApiKey },
  errors: ['tenant_not_found'],
})
export const createKey = route({
  id: 'createKey',
  method: 'POST',
  path: '/v1/keys',
  scope: 'keys:write',
  rate: 'write',
  tag: 'keys',
  summary: 'Create an API key of your tenant',
  description: 'A key can only give scopes that it holds itself. The secret is shown in this answer and never again.',
  body: KeyRequest,
  reply: { 201: NewApiKey },
  errors: [],
})
export const listKeys = route({
  id: 'listKeys',
  method: 'GET',
  path: '/v1/keys',
  scope: 'keys:read',
  rate: 'read',
  tag: 'keys',
  summary: 'List the API keys of your tenant',
  query: z.strictObject({ ...Page.query }),
  reply: { 200: pageOf(ApiKey) },
  errors: [],
})
export const revokeKey = route({
  id: 'revokeKey',
  method: 'DELETE',
  path: '/v1/keys/:keyId',
  scope: 'keys:write',
  rate: 'write',
  tag: 'keys',
  summary: 'Revoke an API key',
  description: 'In effect on every replica within a second. Revoking a revoked key changes nothing.',
  params: z.object({ keyId: KeyId }),
  reply: { 200: ApiKey },
  errors: ['key_not_found'],
})
export const getOwnTenant = route({
  id: 'getOwnTenant',
  method: 'GET',
  path: '/v1/tenant',
  scope: 'tenant:read',
  rate: 'read',
  tag: 'tenants',
  summary: 'Get your tenant and its quota',
  reply: { 200: Tenant },
  errors: [],
})

/** What a tenant uses now, beside its quota, and what its jobs have used in a span of time. */
export const Usage = z.object({
  now: z.object({
    unfinishedJobs: z.number().int(),
    runningJobs: z.number().int(),
    sandboxes: z.number().int().describe('That exist'),
    cpus: z.number(),
    memoryBytes: z.number().int(),
    diskBytes: z.number().int(),
    imageBytes: z.number().int(),
  }),
  quota: Quota,
  period: z.object({
    from: Time,
    to: Time,
    jobs: z.number().int(),
    attempts: z.number().int(),
    cpuMs: z.number(),
    wallMs: z.number(),
    memoryByteMs: z.number().describe('Sum over attempts of memory limit times wall time, in byte milliseconds'),
    outputBytes: z.number(),
  }),
})
export type Usage = z.infer<typeof Usage>

export const getUsage = route({
  id: 'getUsage',
  method: 'GET',
  path: '/v1/usage',
  scope: 'usage:read',
  rate: 'read',
  tag: 'usage',
  summary: 'Use against quota now, and totals of a period',
  query: z.strictObject({ from: Time.optional(), to: Time.optional() }),
  reply: { 200: Usage },
  errors: [],
})

export const bodyLimits = { plain: 64 * KiB, job: 16 * MiB } as const
