// idempotency.ts: one answer per key. The first request takes the key under a lease; if its replica dies, the lease
// runs out and the same request may begin anew.
import { MINUTE } from '@berth/contracts'
import type { Idempotency, IdempotencyStart } from './repositories.js'
import type { Statement, Store } from './store.js'

const LEASE_MS = MINUTE
const KEPT_MS = 24 * 60 * MINUTE

const take: Statement = {
  name: 'take_idempotency_key',
  text: `INSERT INTO idempotency_keys AS k (principal, key, request_hash, lease_until, created_at, expires_at)
         VALUES ($1, $2, $3, $5, $4, $6)
         ON CONFLICT (principal, key) DO UPDATE SET request_hash = $3, status = NULL, body = NULL, lease_until = $5,
           created_at = $4, expires_at = $6
         WHERE k.expires_at <= $4 OR (k.status IS NULL AND k.lease_until <= $4 AND k.request_hash = $3)
         RETURNING key`,
}

const read: Statement = {
  name: 'read_idempotency_key',
  text: `SELECT request_hash = $3 AS same, status, body FROM idempotency_keys WHERE principal = $1 AND key = $2`,
}

async function begin(store: Store, principal: string, key: string, hash: Uint8Array): Promise<IdempotencyStart> {
  const now = store.clock.now()
  const requestHash = Buffer.from(hash)
  const lease = new Date(now.getTime() + LEASE_MS)
  const [taken] = await store.rows(take, [principal, key, requestHash, now, lease, new Date(now.getTime() + KEPT_MS)])
  if (taken) return { kind: 'new' }
  type Row = { readonly same: boolean; readonly status: number | null; readonly body: string | null }
  const [row] = await store.rows<Row>(read, [principal, key, requestHash])
  // Given up between the two statements: the caller is told to come again, and will then be the first.
  if (!row) return { kind: 'in_progress' }
  if (!row.same) return { kind: 'mismatch' }
  return row.status === null ? { kind: 'in_progress' } : { kind: 'stored', status: row.status, body: row.body }
}

const finish: Statement = {
  name: 'finish_idempotency_key',
  text: 'UPDATE idempotency_keys SET status = $3, body = $4 WHERE principal = $1 AND key = $2 AND status IS NULL',
}

const abandon: Statement = {
  name: 'abandon_idempotency_key',
  text: 'DELETE FROM idempotency_keys WHERE principal = $1 AND key = $2 AND status IS NULL',
}

const expire: Statement = {
  name: 'expire_idempotency_keys',
  text: `WITH gone AS (
      DELETE FROM idempotency_keys WHERE (principal, key) IN (
        SELECT principal, key FROM idempotency_keys WHERE expires_at <= $1 LIMIT $2 FOR UPDATE SKIP LOCKED)
      RETURNING 1)
    SELECT count(*)::integer AS keys FROM gone`,
}

export const openIdempotency = (store: Store): Idempotency => ({
  begin: (principal, key, requestHash) => begin(store, principal, key, requestHash),
  finish: async (principal, key, { status, body }) => {
    await store.rows(finish, [principal, key, status, body])
  },
  abandon: async (principal, key) => {
    await store.rows(abandon, [principal, key])
  },
  expire: async (limit) => (await store.rows<{ keys: number }>(expire, [store.clock.now(), limit]))[0]?.keys ?? 0,
})
