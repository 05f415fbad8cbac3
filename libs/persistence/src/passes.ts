// passes.ts: tickets and shares of terminals. Only hashes are stored: the tokens are 256 random bits.
import {
  Failure,
  MINUTE,
  type SandboxId,
  ShareId,
  type TerminalId,
  type TerminalMode,
  type TerminalShare,
} from '@berth/contracts'
import type { PassedTerminal, Passes } from './repositories.js'
import type { Statement, Store } from './store.js'
import { iso } from './views.js'

/** How long a ticket waits for its one use, in milliseconds. */
const TICKET_MS = MINUTE
/** Shares that one terminal may have at once. */
const MAX_SHARES = 100

const insertTicket: Statement = {
  name: 'insert_ticket',
  text: `INSERT INTO passes (token_hash, tenant_id, sandbox_id, terminal_id, mode, created_by, credential, created_at, expires_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)`,
}

// Deleting it is taking it: of two who come with the same ticket one finds it.
const takeTicket: Statement = {
  name: 'take_ticket',
  text: `DELETE FROM passes WHERE token_hash = $1 AND share_id IS NULL
         RETURNING tenant_id, sandbox_id, terminal_id, mode, credential, expires_at`,
}

interface TicketRow {
  readonly tenant_id: PassedTerminal['tenantId']
  readonly sandbox_id: SandboxId
  readonly terminal_id: TerminalId
  readonly mode: TerminalMode
  readonly credential: string
  readonly expires_at: Date
}

const insertShare: Statement = {
  name: 'insert_share',
  text: `INSERT INTO passes (token_hash, share_id, tenant_id, sandbox_id, terminal_id, mode, created_by, created_at, expires_at)
         SELECT $1, $2, $3, $4, $5, $6, $7, $8, $9
         WHERE (SELECT count(*) FROM passes WHERE sandbox_id = $4 AND terminal_id = $5 AND share_id IS NOT NULL) < ${MAX_SHARES}
         RETURNING share_id`,
}

const findShare: Statement = {
  name: 'share_by_hash',
  text: `SELECT p.tenant_id, p.sandbox_id, p.terminal_id, p.mode FROM passes p JOIN tenants t ON t.id = p.tenant_id
         WHERE p.token_hash = $1 AND p.share_id IS NOT NULL AND p.expires_at > $2 AND t.state = 'active'`,
}

const listShares: Statement = {
  name: 'list_shares',
  text: `SELECT share_id AS id, mode, ${iso('created_at')} AS "createdAt", ${iso('expires_at')} AS "expiresAt",
                created_by AS "createdBy"
         FROM passes WHERE tenant_id = $1 AND sandbox_id = $2 AND terminal_id = $3 AND share_id IS NOT NULL
           AND expires_at > $4 ORDER BY share_id DESC`,
}

const deleteShare: Statement = {
  name: 'delete_share',
  text: `DELETE FROM passes WHERE tenant_id = $1 AND sandbox_id = $2 AND terminal_id = $3 AND share_id = $4 RETURNING 1`,
}

const expirePasses: Statement = {
  name: 'expire_passes',
  text: `WITH gone AS (
           DELETE FROM passes WHERE token_hash IN (
             SELECT token_hash FROM passes WHERE expires_at <= $1 LIMIT $2 FOR UPDATE SKIP LOCKED)
           RETURNING 1)
         SELECT count(*)::integer AS passes FROM gone`,
}

const passed = (row: Omit<TicketRow, 'credential' | 'expires_at'>): PassedTerminal => ({
  tenantId: row.tenant_id,
  sandboxId: row.sandbox_id,
  terminalId: row.terminal_id,
  mode: row.mode,
})

export const openPasses = (store: Store): Passes => ({
  createTicket: async ({ hash, by, credential, tenantId, sandboxId, terminalId, mode }) => {
    const now = store.clock.now()
    const expiresAt = new Date(now.getTime() + TICKET_MS)
    const terminal = [tenantId, sandboxId, terminalId, mode]
    await store.rows(insertTicket, [Buffer.from(hash), ...terminal, by, credential, now, expiresAt])
    return { expiresAt }
  },
  takeTicket: async (hash) => {
    const [row] = await store.rows<TicketRow>(takeTicket, [Buffer.from(hash)])
    if (!row || row.expires_at <= store.clock.now()) return undefined
    return { ...passed(row), credential: row.credential }
  },
  createShare: async ({ hash, by, validForMs, tenantId, sandboxId, terminalId, mode }) => {
    const now = store.clock.now()
    const expiresAt = new Date(now.getTime() + validForMs)
    const id = ShareId.parse(store.ids.mint('share'))
    const terminal = [tenantId, sandboxId, terminalId, mode]
    const [row] = await store.rows(insertShare, [Buffer.from(hash), id, ...terminal, by, now, expiresAt])
    if (!row) throw new Failure('quota_exceeded', `a terminal may have ${MAX_SHARES} shares; revoke one`)
    return { id, mode, createdAt: now.toISOString(), expiresAt: expiresAt.toISOString(), createdBy: by }
  },
  share: async (hash) => {
    const [row] = await store.rows<TicketRow>(findShare, [Buffer.from(hash), store.clock.now()])
    return row && passed(row)
  },
  shares: ({ tenantId }, sandboxId, terminalId) =>
    store.rows<TerminalShare>(listShares, [tenantId, sandboxId, terminalId, store.clock.now()]),
  revokeShare: async ({ tenantId }, sandboxId, terminalId, id) => {
    const [row] = await store.rows(deleteShare, [tenantId, sandboxId, terminalId, id])
    if (!row) throw new Failure('share_not_found', `the terminal has no share ${id}`)
  },
  expire: async (limit) =>
    (await store.rows<{ passes: number }>(expirePasses, [store.clock.now(), limit]))[0]?.passes ?? 0,
})
