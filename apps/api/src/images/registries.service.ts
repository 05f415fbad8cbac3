// registries.service.ts: how owners are known to registries. A password, or an identity token, is sealed before it is
// stored, and opened only to be sent to a node that is about to speak to that registry.
import { readFile } from 'node:fs/promises'
import {
  Failure,
  Fault,
  invariant,
  type listRegistries,
  type Output,
  type RegistryAccess,
  type RegistryAccount,
  type RegistryLogin,
} from '@berth/contracts'
import type { ImageOwner } from '@berth/domain'
import type { Reference } from '@berth/oci'
import type { SealedLogin } from '@berth/persistence'
import { Inject, Injectable } from '@nestjs/common'
import type { Config } from '../config.js'
import { Secrets } from '../secrets.js'
import { CONFIG, DATABASE, type Database } from '../tokens.js'
import { type ImageCaller, ownerOf } from './image-names.js'
import { routeTo } from './registry.plan.js'

const accountOf = ({ registry, username, updatedAt }: SealedLogin): RegistryAccount => ({
  registry,
  username,
  updatedAt,
})

/** As what a secret was sealed. */
const kinds = { password: 'registry login', identityToken: 'registry identity token' } as const

/** What a secret was sealed for: moved to another row, it opens nowhere. */
const contextOf = (kind: keyof typeof kinds, owner: ImageOwner, registry: string, username: string): string =>
  JSON.stringify([kinds[kind], owner, registry, username])

@Injectable()
export class RegistriesService {
  constructor(
    @Inject(DATABASE) private readonly database: Database,
    @Inject(CONFIG) private readonly config: Config,
    private readonly secrets: Secrets,
  ) {}

  async list(caller: ImageCaller): Promise<Output<typeof listRegistries>> {
    return { items: (await this.database.images.logins.list(ownerOf(caller))).map(accountOf) }
  }

  /** @throws registry_not_found */
  async get(caller: ImageCaller, registry: string): Promise<RegistryAccount> {
    const login = await this.database.images.logins.get(ownerOf(caller), registry)
    if (!login) throw new Failure('registry_not_found', `there is no login for ${registry}`)
    return accountOf(login)
  }

  async put(caller: ImageCaller, registry: string, login: RegistryLogin): Promise<RegistryAccount> {
    const owner = ownerOf(caller)
    const { username, password, identityToken } = login
    const kind = identityToken === undefined ? 'password' : 'identityToken'
    const secret = identityToken ?? password
    invariant(secret !== undefined, 'a login has one of its secrets')
    const sealedPassword = this.secrets.sealLogin(secret, contextOf(kind, owner, registry, username))
    return accountOf(await this.database.images.logins.put(owner, { registry, username, sealedPassword }, caller.keyId))
  }

  /** @throws registry_not_found */
  delete(caller: ImageCaller, registry: string): Promise<void> {
    return this.database.images.logins.delete(ownerOf(caller), registry)
  }

  /**
   * How a node is to speak to a registry for an owner.
   * @throws policy_forbidden; registry_denied where the login was sealed with keys that are lost
   */
  async access(owner: ImageOwner, { registry }: Reference, use: 'pull' | 'push'): Promise<RegistryAccess> {
    const route = routeTo(registry, this.config, use)
    const login = await this.login(owner, registry)
    return { ...route, endpoints: [...route.endpoints], certificates: await this.certificates(), login }
  }

  private async login(owner: ImageOwner, registry: string): Promise<RegistryLogin | null> {
    const sealed = await this.database.images.logins.get(owner, registry)
    if (!sealed) return null
    const { username, sealedPassword } = sealed
    for (const kind of ['password', 'identityToken'] as const) {
      const secret = this.secrets.openLogin(sealedPassword, contextOf(kind, owner, registry, username))
      if (secret !== undefined) return { username, [kind]: secret }
    }
    throw new Failure('registry_denied', `the login for ${registry} cannot be read any more: set it again`)
  }

  /** Read each time: an authority that the operator adds is trusted from then on. */
  private async certificates(): Promise<string | null> {
    const file = this.config.BERTH_REGISTRY_CA
    if (file === undefined) return null
    return readFile(file, 'utf8').catch((cause: unknown) => {
      throw new Fault(`read the certificates of BERTH_REGISTRY_CA (${file})`, { cause })
    })
  }
}
