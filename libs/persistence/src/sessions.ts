// sessions.ts: sessions of browsers. What is stored of the cookie's token is its SHA-256, as of keys. A session is worth
// what its key is worth: it is always read together with it.
import { HOUR } from '@berth/contracts'
import { type KeyRow, keyColumns, keyRecordOf } from './keys.js'
import type { SessionRecord, Sessions } from './repositories.js'
import type { Statement, Store } from './store.js'

/** How long a session lasts at most, and without being used, in milliseconds. */
const LIFETIME_MS = 12 * HOUR
const IDLE_MS = HOUR
/** Sessions that one key may have at once. */
const PER_KEY = 100

const insertSession: Statement = {
  name: 'insert_session',
  text: `WITH oldest AS (
           DELETE FROM sessions WHERE token_hash IN (
             SELECT token_hash FROM sessions WHERE key_id = $2 ORDER BY created_at DESC OFFSET ${PER_KEY - 1}))
         INSERT INTO sessions (token_hash, key_id, created_at, last_used_at, expires_at) VALUES ($1, $2, $3, $3, $4)`,
}

const findSession: Statement = {
  name: 'session_by_hash',
  text: `SELECT ${keyColumns}, s.last_used_at, s.expires_at AS session_expires_at
         FROM sessions s JOIN api_keys k ON k.id = s.key_id LEFT JOIN tenants t ON t.id = k.tenant_id
         WHERE s.token_hash = $1`,
}

interface SessionRow extends KeyRow {
  readonly last_used_at: Date
  readonly session_expires_at: Date
}

async function byHash(store: Store, hash: Uint8Array): Promise<SessionRecord | undefined> {
  const [row] = await store.rows<SessionRow>(findSession, [Buffer.from(hash)])
  if (!row) return undefined
  return {
    key: keyRecordOf(row),
    expiresAt: row.session_expires_at,
    idleAt: new Date(row.last_used_at.getTime() + IDLE_MS),
  }
}

const endSession: Statement = { name: 'end_session', text: 'DELETE FROM sessions WHERE token_hash = $1' }

const touchSessions: Statement = {
  name: 'touch_sessions',
  text: 'UPDATE sessions SET last_used_at = $2 WHERE token_hash = ANY($1) AND last_used_at < $2',
}

const expireSessions: Statement = {
  name: 'expire_sessions',
  text: `WITH gone AS (
           DELETE FROM sessions WHERE token_hash IN (
             SELECT token_hash FROM sessions WHERE expires_at <= $1 OR last_used_at <= $2
             LIMIT $3 FOR UPDATE SKIP LOCKED)
           RETURNING 1)
         SELECT count(*)::integer AS sessions FROM gone`,
}

export const openSessions = (store: Store): Sessions => ({
  create: async ({ hash, keyId }) => {
    const now = store.clock.now()
    const expiresAt = new Date(now.getTime() + LIFETIME_MS)
    await store.rows(insertSession, [Buffer.from(hash), keyId, now, expiresAt])
    return { expiresAt }
  },
  byHash: (hash) => byHash(store, hash),
  end: async (hash) => {
    await store.rows(endSession, [Buffer.from(hash)])
  },
  touch: async (hashes, at) => {
    if (hashes.length > 0) await store.rows(touchSessions, [hashes.map((hash) => Buffer.from(hash)), at])
  },
  expire: async (limit) => {
    const now = store.clock.now()
    const idle = new Date(now.getTime() - IDLE_MS)
    return (await store.rows<{ sessions: number }>(expireSessions, [now, idle, limit]))[0]?.sessions ?? 0
  },
})
