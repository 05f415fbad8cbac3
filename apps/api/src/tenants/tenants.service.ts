import {
  type ApiKey,
  Failure,
  InvalidRequest,
  type KeyId,
  type NewApiKey,
  Quota,
  type Tenant,
  type TenantId,
  type TenantScope,
} from '@berth/contracts'
import type { PageOf, PageRequest } from '@berth/persistence'
import { Inject, Injectable } from '@nestjs/common'
import { Auth, hashOf, newSecret, type TenantPrincipal } from '../http/auth.js'
import { CLOCK, type Clock, DATABASE, type Database } from '../tokens.js'

interface KeyRequest {
  readonly name: string
  readonly scopes: readonly TenantScope[]
  readonly expiresAt?: string | undefined
}

/** Some fields of a quota, as a request gives them. */
type QuotaChange = { readonly [K in keyof Quota]?: Quota[K] | undefined }

interface TenantChange {
  readonly quota?: QuotaChange | undefined
  readonly state?: Tenant['state'] | undefined
  readonly imagePolicy?: Tenant['imagePolicy'] | undefined
}

/** Without the fields that are not given. */
function givenFields(change: QuotaChange): Partial<Quota> {
  const given: Partial<Record<keyof Quota, number>> = {}
  for (const name of Quota.keyof().options) {
    const value = change[name]
    if (value !== undefined) given[name] = value
  }
  return given
}

/** Characters of a secret that are stored and shown, to tell keys apart: prefix and 24 random bits. */
const HINT_LENGTH = 8

@Injectable()
export class TenantsService {
  constructor(
    @Inject(DATABASE) private readonly database: Database,
    private readonly auth: Auth,
    @Inject(CLOCK) private readonly clock: Clock,
  ) {}

  create(name: string, quota: QuotaChange = {}): Promise<Tenant> {
    return this.database.tenants.create({ name, quota: givenFields(quota) })
  }

  list(filter: { readonly name?: string | undefined }, page: PageRequest): Promise<PageOf<Tenant>> {
    return this.database.tenants.list(filter, page)
  }

  get(id: TenantId): Promise<Tenant> {
    return this.database.tenants.get(id)
  }

  async update(id: TenantId, { quota = {}, state, imagePolicy }: TenantChange): Promise<Tenant> {
    const tenant = await this.database.tenants.update(id, { quota: givenFields(quota), state, imagePolicy })
    this.auth.forget()
    return tenant
  }

  /** A key of a tenant, made by its operator. */
  createKeyFor(tenantId: TenantId, request: KeyRequest): Promise<NewApiKey> {
    return this.makeKey(tenantId, request)
  }

  /** A key of the caller's tenant. @throws forbidden_scope when it would hold what the caller's key does not */
  async createKey(principal: TenantPrincipal, request: KeyRequest): Promise<NewApiKey> {
    const beyond = request.scopes.filter((scope) => !principal.scopes.has(scope))
    if (beyond.length > 0)
      throw new Failure('forbidden_scope', `the key cannot give ${beyond.join(', ')}: it does not hold that itself`)
    return this.makeKey(principal.tenantId, request)
  }

  listKeys(tenantId: TenantId, page: PageRequest): Promise<PageOf<ApiKey>> {
    return this.database.keys.list({ tenantId }, page)
  }

  async revokeKey(tenantId: TenantId, id: KeyId): Promise<ApiKey> {
    const key = await this.database.keys.revoke({ tenantId }, id)
    this.auth.forget()
    return key
  }

  private async makeKey(tenantId: TenantId, { name, scopes, expiresAt }: KeyRequest): Promise<NewApiKey> {
    if (expiresAt !== undefined && new Date(expiresAt) <= this.clock.now())
      throw new InvalidRequest([{ field: 'expiresAt', message: 'must be in the future' }])
    const secret = newSecret('brt')
    const key = await this.database.keys.create({
      tenantId,
      name,
      scopes: [...new Set(scopes)],
      hash: hashOf(secret),
      hint: secret.slice(0, HINT_LENGTH),
      expiresAt: expiresAt === undefined ? undefined : new Date(expiresAt),
    })
    return { ...key, secret }
  }
}
