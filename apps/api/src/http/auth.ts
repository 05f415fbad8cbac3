// auth.ts: credential → principal. Secrets are 256 random bits, so their SHA-256 is what is stored and looked up: no
// slow hash is needed, and an index lookup of a hash tells nothing through its timing.
//
// What a lookup found is believed for less than a second. That keeps Postgres off the path of most requests, and a
// revoked key, a passed expiry or a suspended tenant is refused by every replica within that second. A browser's session
// is looked up with its key and judged as the key is, so it ends with it.
import { createHash, randomBytes } from 'node:crypto'
import type { IncomingHttpHeaders } from 'node:http'
import {
  Failure,
  invariant,
  type KeyId,
  type NodeId,
  type Scope,
  type TenantId,
  type TenantScope,
} from '@berth/contracts'
import type { KeyRecord, SessionRecord } from '@berth/persistence'
import { Inject, Injectable } from '@nestjs/common'
import { Recent } from '../recent.js'
import { CLOCK, type Clock, DATABASE, type Database, LOG, type Logger } from '../tokens.js'
import { type Asking, claimsSession, requireOwnPage, sessionTokenOf } from './sessions.js'

/** What a lookup is believed for, in milliseconds. */
const BELIEVED_MS = 700
const MAX_KNOWN = 10_000

/** What a request was authenticated by: the table to look into, and the SHA-256 of the secret in base64. */
type Credential = `${Table}:${string}`
const tables = ['key', 'node', 'session'] as const
type Table = (typeof tables)[number]

export interface TenantPrincipal {
  readonly kind: 'tenant'
  readonly tenantId: TenantId
  readonly keyId: KeyId
  readonly scopes: ReadonlySet<string>
  readonly requestsPerMinute: number
  /** When the credential ends by itself, as far as is known. */
  readonly until: Date | null
  readonly credential: Credential
}
export interface OperatorPrincipal {
  readonly kind: 'operator'
  readonly keyId: KeyId
  readonly credential: Credential
}
export interface NodePrincipal {
  readonly kind: 'node'
  readonly nodeId: NodeId
  readonly credential: Credential
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

type Known = KeyRecord | SessionRecord | { readonly nodeId: NodeId } | undefined

/** SHA-256 of a secret: what is stored of it. */
export const hashOf = (secret: string): Buffer => createHash('sha256').update(secret).digest()

/** A new secret of 256 random bits: `brt_` for keys, `brn_` for nodes, `brk_` for tickets, `brl_` for links. */
export const newSecret = (kind: 'brt' | 'brn' | 'brk' | 'brl'): string =>
  `${kind}_${randomBytes(32).toString('base64url')}`

const wellFormed = /^br[tns]_[\w-]{32,200}$/

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
  private readonly usedSessions = new Set<string>()

  constructor(
    @Inject(DATABASE) private readonly database: Database,
    @Inject(CLOCK) private readonly clock: Clock,
    @Inject(LOG) private readonly log: Logger,
  ) {
    this.known = new Recent({ clock, forMs: BELIEVED_MS, atMost: MAX_KNOWN })
  }

  /**
   * Who calls: by the key or token in its headers, else by the session in its cookie where a page of ours sent it.
   * @throws unauthenticated, key_revoked, key_expired, tenant_suspended, origin_forbidden
   * @throws Fault when Postgres cannot be asked
   */
  async authenticate(asking: Asking): Promise<Principal> {
    const secret = credentialOf(asking.headers)
    if (secret !== undefined) return this.authenticateSecret(secret)
    const session = claimsSession(asking) ? sessionTokenOf(asking) : undefined
    if (session === undefined) throw new Failure('unauthenticated', 'send a key: Authorization: Bearer brt_…')
    requireOwnPage(asking)
    if (!session.startsWith('brs_') || !wellFormed.test(session)) throw sessionOver()
    return this.principalOf('session', hashOf(session).toString('base64'))
  }

  /** Whose key or token this is. @throws as `authenticate` */
  async authenticateSecret(secret: string): Promise<Principal> {
    if (!wellFormed.test(secret) || secret.startsWith('brs_'))
      throw new Failure('unauthenticated', 'the key is not one of ours')
    return this.principalOf(secret.startsWith('brn_') ? 'node' : 'key', hashOf(secret).toString('base64'))
  }

  /** Whose credential this is now. Throws like `authenticate` once it is no longer good. */
  async confirm({ credential }: { readonly credential: string }): Promise<Principal> {
    const table = tables.find((name) => credential.startsWith(`${name}:`))
    invariant(table, 'a credential names its table')
    return this.principalOf(table, credential.slice(table.length + 1))
  }

  /** Believes nothing from before: after this replica changed a key, a tenant or a node. */
  forget(): void {
    this.known.clear()
  }

  /** Writes down which keys and sessions were used since the last call. */
  async noteUse(): Promise<void> {
    const [keys, sessions] = [[...this.used], [...this.usedSessions]]
    this.used.clear()
    this.usedSessions.clear()
    const now = this.clock.now()
    const hashes = sessions.map((hash) => Buffer.from(hash, 'base64'))
    const noted = [this.database.keys.touch(keys, now), this.database.sessions.touch(hashes, now)]
    await Promise.all(noted).catch((err: unknown) => {
      this.log.warn({ err, keys: keys.length, sessions: sessions.length }, 'auth.touch.failed')
    })
  }

  /** @param hash in base64 */
  private async principalOf(table: Table, hash: string): Promise<Principal> {
    const credential: Credential = `${table}:${hash}`
    const found = await this.known.get(credential, () => this.ask(table, Buffer.from(hash, 'base64')))
    if (!found) throw table === 'session' ? sessionOver() : new Failure('unauthenticated', 'the key is not one of ours')
    if ('nodeId' in found) return { kind: 'node', nodeId: found.nodeId, credential }
    const key = 'key' in found ? found.key : found
    this.checkStanding(key)
    if ('key' in found) this.useSession(hash, found)
    this.used.add(key.id)
    if (key.tenantId === null) return { kind: 'operator', keyId: key.id, credential }
    return {
      kind: 'tenant',
      tenantId: key.tenantId,
      keyId: key.id,
      scopes: new Set(key.scopes),
      requestsPerMinute: key.requestsPerMinute ?? 0,
      until: found.expiresAt,
      credential,
    }
  }

  private useSession(hash: string, { expiresAt, idleAt }: SessionRecord): void {
    const now = this.clock.now()
    if (expiresAt <= now || idleAt <= now) throw sessionOver()
    this.usedSessions.add(hash)
  }

  private checkStanding({ id, revokedAt, expiresAt, tenantState }: KeyRecord): void {
    if (revokedAt) throw new Failure('key_revoked', `key ${id} was revoked at ${revokedAt.toISOString()}`)
    if (expiresAt && expiresAt <= this.clock.now())
      throw new Failure('key_expired', `key ${id} expired at ${expiresAt.toISOString()}`)
    if (tenantState === 'suspended') throw new Failure('tenant_suspended', 'the tenant is suspended by the operator')
  }

  private async ask(table: Table, hash: Buffer): Promise<Known> {
    if (table === 'key') return this.database.keys.byHash(hash)
    if (table === 'session') return this.database.sessions.byHash(hash)
    const node = await this.database.nodes.byToken(hash)
    return node && { nodeId: node.id }
  }
}

const sessionOver = () => new Failure('unauthenticated', 'the session is over; sign in again')

/**
 * Refuses a principal that may not call a route of this scope.
 * @param operators whether the route is one for operators too
 * @throws forbidden_scope naming what is missing
 */
export function checkScope(principal: Principal, scope: Exclude<Scope, 'public'>, operators = false): void {
  if (operators && principal.kind === 'operator') return
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
