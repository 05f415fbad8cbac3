import { randomBytes } from 'node:crypto'
import { Failure, type Session, TenantScope } from '@berth/contracts'
import { Inject, Injectable } from '@nestjs/common'
import { CLOCK, type Clock, DATABASE, type Database } from '../tokens.js'
import { Auth, checkScope, hashOf, type TenantPrincipal } from './auth.js'
import { type Asking, requireOwnPage, sessionCookie, sessionTokenOf } from './sessions.js'
import { SignInLimit } from './sign-in-limit.js'

/** A session that was begun, and the header that makes the browser keep it. */
export interface Begun {
  readonly session: Session
  readonly setCookie: string
}

@Injectable()
export class SessionsService {
  private readonly limit = new SignInLimit()

  constructor(
    @Inject(DATABASE) private readonly database: Database,
    private readonly auth: Auth,
    @Inject(CLOCK) private readonly clock: Clock,
  ) {}

  /**
   * Begins a session under a new token, whatever cookie came with the request; the session of that cookie ends.
   * @throws origin_forbidden, rate_limited, unauthenticated and what else a key may be refused for
   */
  async begin(asking: Asking, apiKey: string): Promise<Begun> {
    requireOwnPage(asking)
    const principal = await this.checked(asking.address, apiKey)
    const token = `brs_${randomBytes(32).toString('base64url')}`
    const { expiresAt } = await this.database.sessions.create({ hash: hashOf(token), keyId: principal.keyId })
    await this.endOf(asking)
    const maxAgeS = Math.floor((expiresAt.getTime() - this.clock.now().getTime()) / 1000)
    return {
      session: await this.describe({ ...principal, until: expiresAt }),
      setCookie: sessionCookie(asking.ownOrigin, token, maxAgeS),
    }
  }

  async describe({ tenantId, keyId, scopes, until }: TenantPrincipal): Promise<Session> {
    const { id, name } = await this.database.tenants.get(tenantId)
    return {
      tenant: { id, name },
      keyId,
      scopes: TenantScope.options.filter((scope) => scopes.has(scope)),
      expiresAt: until?.toISOString() ?? null,
    }
  }

  /** @returns the header that makes the browser forget the cookie. @throws origin_forbidden */
  async end(asking: Asking): Promise<string> {
    requireOwnPage(asking)
    await this.endOf(asking)
    return sessionCookie(asking.ownOrigin, undefined, 0)
  }

  private async endOf(asking: Asking): Promise<void> {
    const token = sessionTokenOf(asking)
    if (token === undefined) return
    await this.database.sessions.end(hashOf(token))
    this.auth.forget()
  }

  /** Whose key it is. Of all that may go wrong only a key that is none counts against the address. */
  private async checked(address: string, apiKey: string): Promise<TenantPrincipal> {
    this.limit.take(address, this.clock.now().getTime())
    try {
      const principal = await this.auth.authenticateSecret(apiKey)
      checkScope(principal, 'tenant:read')
      if (principal.kind !== 'tenant') throw new Failure('forbidden_scope', 'the console acts for a tenant')
      this.limit.giveBack(address, this.clock.now().getTime())
      return principal
    } catch (error) {
      if (!(error instanceof Failure && error.code === 'unauthenticated'))
        this.limit.giveBack(address, this.clock.now().getTime())
      throw error
    }
  }
}
