// auth.ts: credential → principal. Secrets are 256 random bits, so their SHA-256 is what is stored and looked up: no
// slow hash is needed, and an index lookup of a hash tells nothing through its timing.
//
// What a lookup found is believed for less than a second. That keeps Postgres off the path of most requests, and a
// revoked key, a passed expiry or a suspended tenant is refused by every replica within that second.
import { createHash, randomBytes } from 'node:crypto'
import type { IncomingHttpHeaders } from 'node:http'
import { Failure, type KeyId, type NodeId, type Scope, type TenantId, type TenantScope } from '@berth/contracts'
import type { KeyRecord } from '@berth/persistence'
import { Inject, Injectable } from '@nestjs/common'
import { Recent } from '../recent.js'
import { CLOCK, type Clock, DATABASE, type Database, LOG, type Logger } from '../tokens.js'

/** What a lookup is believed for, in milliseconds. */
const BELIEVED_MS = 700
const MAX_KNOWN = 10_000

export interface TenantPrincipal {
  readonly kind: 'tenant'
  readonly tenantId: TenantId
  readonly keyId: KeyId
  readonly scopes: ReadonlySet<string>
  readonly requestsPerMinute: number
  readonly credential: string
}
export interface OperatorPrincipal {
  readonly kind: 'operator'
  readonly keyId: KeyId
  readonly credential: string
}
export interface NodePrincipal {
  readonly kind: 'node'
  readonly nodeId: NodeId
  readonly credential: string
}
export type Principal = TenantPrincipal | OperatorPrincipal | NodePrincipal

/** Whose call a route of scope S takes. */
export type PrincipalOf<S extends Scope> = S extends TenantScope
  ? TenantPrincipal
  : S extends 'operator'
    ? OperatorPrincipal
    : S extends 'node'
      ? NodePrincipal
      : undefined

type Known = KeyRecord | { readonly nodeId: NodeId } | undefined

/** SHA-256 of a secret: what is stored of it. */
export const hashOf = (secret: string): Buffer => createHash('sha256').update(secret).digest()

/** A new secret of 256 random bits: `brt_` for keys, `brn_` for nodes. */
export const newSecret = (kind: 'brt' | 'brn'): string => `${kind}_${randomBytes(32).toString('base64url')}`

const wellFormed = /^br[tn]_[\w-]{32,200}$/

/** The secret of `Authorization: Bearer` or `X-API-Key`; undefined where there is none. */
export function credentialOf(headers: IncomingHttpHeaders): string | undefined {
  const bearer = /^bearer +(\S+) *$/i.exec(headers.authorization ?? '')?.[1]
  if (bearer !== undefined) return bearer
  const key = headers['x-api-key']
  return typeof key === 'string' && key !== '' ? key : undefined
}

@Injectable()
export class Auth {
  private readonly known: Recent<Known>
  private readonly used = new Set<KeyId>()

  constructor(
    @Inject(DATABASE) private readonly database: Database,
    @Inject(CLOCK) private readonly clock: Clock,
    @Inject(LOG) private readonly log: Logger,
  ) {
    this.known = new Recent({ clock, forMs: BELIEVED_MS, atMost: MAX_KNOWN })
  }

  /**
   * Who calls. @throws unauthenticated, key_revoked, key_expired, tenant_suspended
   * @throws Fault when Postgres cannot be asked
   */
  async authenticate(headers: IncomingHttpHeaders): Promise<Principal> {
    const secret = credentialOf(headers)
    if (secret === undefined) throw new Failure('unauthenticated', 'send a key: Authorization: Bearer brt_…')
    if (!wellFormed.test(secret)) throw new Failure('unauthenticated', 'the key is not one of ours')
    return this.principalOf(secret.startsWith('brn_') ? 'node' : 'key', hashOf(secret))
  }

  /** Throws like `authenticate` once the credential of a principal is no longer good. */
  async confirm({ kind, credential }: Principal): Promise<void> {
    await this.principalOf(kind === 'node' ? 'node' : 'key', Buffer.from(credential, 'base64'))
  }

  /** Believes nothing from before: after this replica changed a key, a tenant or a node. */
  forget(): void {
    this.known.clear()
  }

  /** Writes down which keys were used since the last call. */
  async noteUse(): Promise<void> {
    if (this.used.size === 0) return
    const ids = [...this.used]
    this.used.clear()
    await this.database.keys.touch(ids, this.clock.now()).catch((err: unknown) => {
      this.log.warn({ err, keys: ids.length }, 'auth.touch.failed')
    })
  }

  private async principalOf(kind: 'node' | 'key', hash: Buffer): Promise<Principal> {
    const credential = hash.toString('base64')
    const found = await this.known.get(credential, () => this.ask(kind, hash))
    if (!found) throw new Failure('unauthenticated', 'the key is not one of ours')
    if ('nodeId' in found) return { kind: 'node', nodeId: found.nodeId, credential }
    this.checkStanding(found)
    this.used.add(found.id)
    if (found.tenantId === null) return { kind: 'operator', keyId: found.id, credential }
    return {
      kind: 'tenant',
      tenantId: found.tenantId,
      keyId: found.id,
      scopes: new Set(found.scopes),
      requestsPerMinute: found.requestsPerMinute ?? 0,
      credential,
    }
  }

  private checkStanding({ id, revokedAt, expiresAt, tenantState }: KeyRecord): void {
    if (revokedAt) throw new Failure('key_revoked', `key ${id} was revoked at ${revokedAt.toISOString()}`)
    if (expiresAt && expiresAt <= this.clock.now())
      throw new Failure('key_expired', `key ${id} expired at ${expiresAt.toISOString()}`)
    if (tenantState === 'suspended') throw new Failure('tenant_suspended', 'the tenant is suspended by the operator')
  }

  private async ask(kind: 'node' | 'key', hash: Buffer): Promise<Known> {
    if (kind === 'key') return this.database.keys.byHash(hash)
    const node = await this.database.nodes.byToken(hash)
    return node && { nodeId: node.id }
  }
}

/** Refuses a principal that may not call a route of this scope. @throws forbidden_scope naming what is missing */
export function checkScope(principal: Principal, scope: Exclude<Scope, 'public'>): void {
  if (scope === 'operator' || scope === 'node') {
    if (principal.kind === scope) return
    throw new Failure('forbidden_scope', `this route is for ${scope}s; the key belongs to a ${principal.kind}`, {
      scope,
    })
  }
  if (principal.kind !== 'tenant')
    throw new Failure('forbidden_scope', `this route acts for a tenant; the key belongs to a ${principal.kind}`, {
      scope,
    })
  if (!principal.scopes.has(scope)) throw new Failure('forbidden_scope', `the key lacks the scope ${scope}`, { scope })
}
