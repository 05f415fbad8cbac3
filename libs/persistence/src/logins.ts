// logins.ts: how owners are known to registries. The password is sealed by the caller: Postgres never has its key.
import { Failure } from '@berth/contracts'
import type { RegistryLogins, SealedLogin } from './repositories.js'
import type { Statement, Store } from './store.js'
import { iso } from './views.js'

/** Logins that one owner may have. */
const MAX_LOGINS = 1000

const columns = `registry, username, sealed_password AS "sealedPassword", ${iso('updated_at')} AS "updatedAt"`

const listAll: Statement = {
  name: 'registry_logins',
  text: `SELECT ${columns} FROM registry_logins WHERE owner = $1 ORDER BY registry`,
}
const readOne: Statement = {
  name: 'registry_login',
  text: `SELECT ${columns} FROM registry_logins WHERE owner = $1 AND registry = $2`,
}
const put: Statement = {
  name: 'put_registry_login',
  text: `INSERT INTO registry_logins (owner, registry, username, sealed_password, updated_at, updated_by)
         SELECT $1, $2, $3, $4, $5, $6
         WHERE (SELECT count(*) FROM registry_logins WHERE owner = $1 AND registry <> $2) < ${MAX_LOGINS}
         ON CONFLICT (owner, registry) DO UPDATE SET username = excluded.username,
           sealed_password = excluded.sealed_password, updated_at = excluded.updated_at, updated_by = excluded.updated_by
         RETURNING ${columns}`,
}
const deleteOne: Statement = {
  name: 'delete_registry_login',
  text: 'DELETE FROM registry_logins WHERE owner = $1 AND registry = $2 RETURNING registry',
}

export const openLogins = (store: Store): RegistryLogins => ({
  list: (owner) => store.rows<SealedLogin>(listAll, [owner]),
  get: async (owner, registry) => (await store.rows<SealedLogin>(readOne, [owner, registry]))[0],
  put: async (owner, { registry, username, sealedPassword }, by) => {
    const values = [owner, registry, username, sealedPassword, store.clock.now(), by]
    const [row] = await store.rows<SealedLogin>(put, values)
    if (!row) throw new Failure('quota_exceeded', `there may be ${MAX_LOGINS} logins; delete one`)
    return row
  },
  delete: async (owner, registry) => {
    const [row] = await store.rows<{ registry: string }>(deleteOne, [owner, registry])
    if (!row) throw new Failure('registry_not_found', `there is no login for ${registry}`)
  },
})
