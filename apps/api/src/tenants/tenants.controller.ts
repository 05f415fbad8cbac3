import {
  createKey,
  createTenant,
  createTenantKey,
  getOwnTenant,
  getTenant,
  KeyId,
  listKeys,
  listTenants,
  revokeKey,
  TenantId,
  updateTenant,
} from '@berth/contracts'
import { Controller } from '@nestjs/common'
import { pageAnswer, pageRequest } from '../http/paging.js'
import { type Call, Route } from '../http/route.decorator.js'
import { TenantsService } from './tenants.service.js'

@Controller()
export class TenantsController {
  constructor(private readonly tenants: TenantsService) {}

  @Route(createTenant)
  create({ body }: Call<typeof createTenant>) {
    return this.tenants.create(body.name, body.quota)
  }

  @Route(listTenants)
  async list({ query }: Call<typeof listTenants>) {
    return pageAnswer(await this.tenants.list(query, pageRequest(query, TenantId)))
  }

  @Route(getTenant)
  get({ params }: Call<typeof getTenant>) {
    return this.tenants.get(params.tenantId)
  }

  @Route(updateTenant)
  update({ params, body }: Call<typeof updateTenant>) {
    return this.tenants.update(params.tenantId, body)
  }

  @Route(createTenantKey)
  createTenantKey({ params, body }: Call<typeof createTenantKey>) {
    return this.tenants.createKeyFor(params.tenantId, body)
  }

  @Route(createKey)
  createKey({ principal, body }: Call<typeof createKey>) {
    return this.tenants.createKey(principal, body)
  }

  @Route(listKeys)
  async listKeys({ principal, query }: Call<typeof listKeys>) {
    return pageAnswer(await this.tenants.listKeys(principal.tenantId, pageRequest(query, KeyId)))
  }

  @Route(revokeKey)
  revokeKey({ principal, params }: Call<typeof revokeKey>) {
    return this.tenants.revokeKey(principal.tenantId, params.keyId)
  }

  @Route(getOwnTenant)
  own({ principal }: Call<typeof getOwnTenant>) {
    return this.tenants.get(principal.tenantId)
  }
}
