// keys.ts: API keys. Only hashes are stored: the secrets are 256 random bits, so a plain SHA-256 cannot be guessed.
import { type ApiKey, Failure, KeyId, TenantId, TenantScope } from '@berth/contracts'
import type { Access, KeyRecord, Keys, NewKey, PageRequest } from './repositories.js'
import { brokenConstraint, type Statement, type Store } from './store.js'
import { pageArguments, pageOfRows, tenantNotFound } from './tenants.js'

interface ApiKeyRecord {
  readonly id: string
  readonly name: string
  readonly hint: string
  readonly scopes: readonly string[]
  readonly createdAt: Date
  readonly expiresAt: Date | null
  readonly revokedAt: Date | null
  readonly lastUsedAt: Date | null
}

const scopeOf = (scope: string) => (scope === 'operator' ? scope : TenantScope.parse(scope))

const keyOf = (row: ApiKeyRecord): ApiKey => ({
  id: KeyId.parse(row.id),
  name: row.name,
  hint: row.hint,
  scopes: row.scopes.map(scopeOf),
  createdAt: row.createdAt.toISOString(),
  expiresAt: row.expiresAt?.toISOString() ?? null,
  revokedAt: row.revokedAt?.toISOString() ?? null,
  lastUsedAt: row.lastUsedAt?.toISOString() ?? null,
})

const insertKey: Statement = {
  name: 'insert_key',
  text: `INSERT INTO api_keys (id, tenant_id, name, hash, hint, scopes, created_at, expires_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)`,
}

async function create(store: Store, key: NewKey): Promise<ApiKey> {
  const id = KeyId.parse(store.ids.mint('key'))
  const createdAt = store.clock.now()
  const { tenantId, name, hash, hint, scopes, expiresAt = null } = key
  try {
    await store.rows(insertKey, [id, tenantId, name, Buffer.from(hash), hint, scopes, createdAt, expiresAt])
  } catch (error) {
    if (tenantId === null || brokenConstraint(error) !== 'api_keys_tenant_id_fkey') throw error
    throw tenantNotFound(tenantId)
  }
  return keyOf({ id, name, hint, scopes, createdAt, expiresAt, revokedAt: null, lastUsedAt: null })
}

const ensureOperator: Statement = {
  name: 'ensure_operator_key',
  text: `INSERT INTO api_keys (id, name, hash, hint, scopes, created_at) VALUES ($1, $2, $3, $4, '{operator}', $5)
         ON CONFLICT (hash) DO NOTHING`,
}

export interface KeyRow {
  readonly id: KeyId
  readonly tenant_id: TenantId | null
  readonly tenant_state: KeyRecord['tenantState']
  readonly quota_requests_per_minute: number | null
  readonly scopes: KeyRecord['scopes']
  readonly expires_at: Date | null
  readonly revoked_at: Date | null
}

/** Columns of a `KeyRow`, from `api_keys k` and `tenants t`. */
export const keyColumns =
  'k.id, k.tenant_id, t.state AS tenant_state, t.quota_requests_per_minute, k.scopes, k.expires_at, k.revoked_at'

export const keyRecordOf = (row: KeyRow): KeyRecord => ({
  id: row.id,
  tenantId: row.tenant_id,
  tenantState: row.tenant_state,
  requestsPerMinute: row.quota_requests_per_minute,
  scopes: row.scopes,
  expiresAt: row.expires_at,
  revokedAt: row.revoked_at,
})

const findByHash: Statement = {
  name: 'key_by_hash',
  text: `SELECT ${keyColumns} FROM api_keys k LEFT JOIN tenants t ON t.id = k.tenant_id WHERE k.hash = $1`,
}

async function byHash(store: Store, hash: Uint8Array): Promise<KeyRecord | undefined> {
  const [row] = await store.rows<KeyRow>(findByHash, [Buffer.from(hash)])
  return row && keyRecordOf(row)
}

/** A tenant sees its own keys, operators see their own. */
const owner = (access: Access) => ({ tenantId: access === 'operator' ? null : access.tenantId })

const shown = {
  id: true,
  name: true,
  hint: true,
  scopes: true,
  createdAt: true,
  expiresAt: true,
  revokedAt: true,
  lastUsedAt: true,
} as const

async function list(store: Store, access: Access, page: PageRequest) {
  const { where, ...order } = pageArguments(page)
  const rows = await store.prisma('list keys', (client) =>
    client.apiKey.findMany({ ...order, where: { ...where, ...owner(access) }, select: shown }),
  )
  return pageOfRows(rows, page.limit, keyOf)
}

async function revoke(store: Store, access: Access, id: KeyId): Promise<ApiKey> {
  const mine = { id, ...owner(access) }
  const row = await store.prisma('revoke key', async (client) => {
    await client.apiKey.updateMany({ where: { ...mine, revokedAt: null }, data: { revokedAt: store.clock.now() } })
    return client.apiKey.findFirst({ where: mine, select: shown })
  })
  if (!row) throw new Failure('key_not_found', `there is no key ${id}`)
  return keyOf(row)
}

const touchKeys: Statement = {
  name: 'touch_keys',
  text: `UPDATE api_keys SET last_used_at = $2 WHERE id = ANY($1) AND (last_used_at IS NULL OR last_used_at < $2)`,
}

export const openKeys = (store: Store): Keys => ({
  create: (key) => create(store, key),
  ensureOperator: async ({ name, hash, hint }) => {
    const id = KeyId.parse(store.ids.mint('key'))
    await store.rows(ensureOperator, [id, name, Buffer.from(hash), hint, store.clock.now()])
  },
  byHash: (hash) => byHash(store, hash),
  list: (access, page) => list(store, access, page),
  revoke: (access, id) => revoke(store, access, id),
  touch: async (ids, at) => {
    if (ids.length > 0) await store.rows(touchKeys, [ids, at])
  },
})
