// registry-auth.ts: who we say we are. A registry that wants to know answers 401 with a challenge: Basic, or Bearer, for
// which a token is fetched from the server that it names (distribution's token specification) with the login, or without
// one for what is public. An identity token is for token servers only: whoever has it may ask for tokens.
import type { RegistryLogin } from '@berth/contracts'
import { Failure } from '@berth/contracts'
import { parseChallenges } from '@berth/oci'
import { z } from 'zod'

const Token = z.object({
  token: z.string().optional(),
  access_token: z.string().optional(),
  refresh_token: z.string().optional(),
})
const MAX_TOKEN_BYTES = 64 * 1024

/** What a token server is asked: by GET with `authorization`, or by POST with a form. */
export interface TokenRequest {
  readonly url: URL
  readonly authorization?: string | undefined
  readonly form?: URLSearchParams
  /** Bytes of an answer. */
  readonly most: number
}
/** Asks the token server: the body of its answer, at most so many bytes, and its status. */
export type AskToken = (request: TokenRequest) => Promise<{ status: number; body: Buffer }>

export class Authorization {
  #header: string | undefined
  /** The token server may give another one with each token. */
  #identityToken: string | undefined

  /** @param login undefined for a mirror, and where the tenant has none */
  constructor(
    private readonly login: RegistryLogin | undefined,
    private readonly ask: AskToken,
  ) {
    this.#identityToken = login?.identityToken
  }

  /** Of the next request to the endpoint; undefined as long as nobody asked for one. */
  get header(): string | undefined {
    return this.#header
  }

  /**
   * Answers a challenge. A token that has expired on the way is challenged again, and replaced.
   * @param scopes wanted besides those that the challenge names
   * @throws Failure registry_denied when there is nothing to answer with, or the token server refuses
   */
  async answer(challenge: string | undefined, scopes: readonly string[], used: string | undefined): Promise<void> {
    // Somebody else has answered meanwhile, or is about to: try what they got. An identity token may be good for once.
    if (used !== this.#header) return
    this.#answering ??= this.#answer(challenge, scopes, used).finally(() => {
      this.#answering = undefined
    })
    await this.#answering
  }
  #answering: Promise<void> | undefined

  async #answer(challenge: string | undefined, scopes: readonly string[], used: string | undefined): Promise<void> {
    const challenges = parseChallenges(challenge ?? '')
    const bearer = challenges.find(({ scheme }) => scheme === 'bearer')
    if (bearer) {
      this.#header = `Bearer ${await this.#token(bearer.parameters, scopes)}`
      return
    }
    const basic = this.#basic()
    if (!challenges.some(({ scheme }) => scheme === 'basic') || basic === undefined)
      throw new Failure(
        'registry_denied',
        this.login ? 'the registry asks for a login of another kind' : 'the registry asks for a login',
      )
    if (used === basic) throw new Failure('registry_denied', 'the registry does not take the login')
    this.#header = basic
  }

  async #token(
    { realm, service, scope }: Readonly<Record<string, string>>,
    scopes: readonly string[],
  ): Promise<string> {
    if (realm === undefined || !URL.canParse(realm))
      throw new Failure('registry_unreachable', 'the registry names no token server')
    const wanted = { realm, service, scopes: [...new Set([...(scope === undefined ? [] : [scope]), ...scopes])] }
    const { status, body } = await (this.#identityToken === undefined
      ? this.#askByLogin(wanted)
      : this.#post(wanted, { grant_type: 'refresh_token', refresh_token: this.#identityToken }))
    if (status === 401 || status === 403)
      throw new Failure('registry_denied', 'the token server of the registry does not take the login')
    const { data } = (status === 200 ? Token.safeParse(parseJson(body)) : undefined) ?? {}
    const token = data?.token ?? data?.access_token
    if (token === undefined || !/^[\x21-\x7e]+$/.test(token))
      throw new Failure('registry_unreachable', `the token server of the registry answers ${status} and no token`)
    if (this.#identityToken !== undefined && data?.refresh_token) this.#identityToken = data.refresh_token
    return token
  }

  /** By GET, as all servers used to; those that know OAuth2 only say so. */
  async #askByLogin(wanted: Wanted): Promise<{ status: number; body: Buffer }> {
    const { realm, service, scopes } = wanted
    const url = new URL(realm)
    if (service !== undefined) url.searchParams.set('service', service)
    for (const scope of scopes) url.searchParams.append('scope', scope)
    const got = await this.ask({ url, authorization: this.#basic(), most: MAX_TOKEN_BYTES })
    const { username, password } = this.login ?? {}
    if ((got.status !== 404 && got.status !== 405) || username === undefined || password === undefined) return got
    return this.#post(wanted, { grant_type: 'password', username, password })
  }

  /** Distribution's "token/oauth": a form, with scopes apart by spaces. */
  async #post({ realm, service, scopes }: Wanted, grant: Readonly<Record<string, string>>) {
    const form = new URLSearchParams({ ...grant, client_id: 'berth', scope: scopes.join(' ') })
    if (service !== undefined) form.set('service', service)
    const { status, body } = await this.ask({ url: new URL(realm), form, most: MAX_TOKEN_BYTES })
    // How OAuth2 says of a grant that it is none (RFC 6749, section 5.2).
    return { status: status === 400 ? 401 : status, body }
  }

  #basic(): string | undefined {
    const { username, password } = this.login ?? {}
    if (username === undefined || password === undefined) return undefined
    return `Basic ${Buffer.from(`${username}:${password}`).toString('base64')}`
  }
}

interface Wanted {
  readonly realm: string
  readonly service: string | undefined
  readonly scopes: readonly string[]
}

function parseJson(bytes: Buffer): unknown {
  try {
    return JSON.parse(bytes.toString())
  } catch {
    return undefined // told by what is missing in it
  }
}
