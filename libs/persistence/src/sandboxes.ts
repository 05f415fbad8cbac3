// sandboxes.ts: reading sandboxes.
import { Failure, SandboxId } from '@berth/contracts'
import type { Access, LocatedSandbox, Sandboxes } from './repositories.js'
import type { Statement, Store } from './store.js'

const sandboxNotFound = (ref: string) => new Failure('sandbox_not_found', `there is no sandbox ${ref}`)

const located = `s.id, s.tenant_id AS "tenantId", s.node_id AS "nodeId", s.state`

const locateById: Statement = {
  name: 'locate_sandbox',
  text: `SELECT ${located} FROM sandboxes s WHERE s.id = $2 AND ($1::text IS NULL OR s.tenant_id = $1)`,
}

// Names are of a tenant: operators, who belong to none, find sandboxes by id only.
const locateByName: Statement = {
  name: 'locate_sandbox_by_name',
  text: `SELECT ${located} FROM sandboxes s WHERE s.tenant_id = $1 AND s.name = $2 AND s.deleted_at IS NULL`,
}

async function locate(store: Store, access: Access, ref: string): Promise<LocatedSandbox> {
  const statement = SandboxId.safeParse(ref).success ? locateById : locateByName
  const [row] = await store.rows<LocatedSandbox>(statement, [access === 'operator' ? null : access.tenantId, ref])
  if (!row) throw sandboxNotFound(ref)
  return row
}

export const openSandboxes = (store: Store): Sandboxes => ({
  locate: (access, ref) => locate(store, access, ref),
})
