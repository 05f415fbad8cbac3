// registry-auth.ts: who we say we are. A registry that wants to know answers 401 with a challenge: Basic, or Bearer, for
// which a token is fetched from the server that it names (distribution's token specification) with the login, or without
// one for what is public.
import type { RegistryLogin } from '@berth/contracts'
import { Failure } from '@berth/contracts'
import { parseChallenges } from '@berth/oci'
import { z } from 'zod'

const Token = z.object({ token: z.string().optional(), access_token: z.string().optional() })
const MAX_TOKEN_BYTES = 64 * 1024

/** Asks the token server: the body of its answer, at most so many bytes, and its status. */
export type AskToken = (
  url: URL,
  authorization: string | undefined,
  most: number,
) => Promise<{ status: number; body: Buffer }>

export class Authorization {
  #header: string | undefined

  /** @param login undefined for a mirror, and where the tenant has none */
  constructor(
    private readonly login: RegistryLogin | undefined,
    private readonly ask: AskToken,
  ) {}

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
    // Somebody else has answered meanwhile: try what they got.
    if (used !== this.#header) return
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
    const url = new URL(realm)
    if (service !== undefined) url.searchParams.set('service', service)
    for (const one of new Set([...(scope === undefined ? [] : [scope]), ...scopes]))
      url.searchParams.append('scope', one)
    const { status, body } = await this.ask(url, this.#basic(), MAX_TOKEN_BYTES)
    if (status === 401 || status === 403)
      throw new Failure('registry_denied', 'the token server of the registry does not take the login')
    const parsed = status === 200 ? Token.safeParse(parseJson(body)) : undefined
    const token = parsed?.data?.token ?? parsed?.data?.access_token
    if (token === undefined || !/^[\x21-\x7e]+$/.test(token))
      throw new Failure('registry_unreachable', `the token server of the registry answers ${status} and no token`)
    return token
  }

  #basic(): string | undefined {
    if (!this.login) return undefined
    const { username, password } = this.login
    return `Basic ${Buffer.from(`${username}:${password}`).toString('base64')}`
  }
}

function parseJson(bytes: Buffer): unknown {
  try {
    return JSON.parse(bytes.toString())
  } catch {
    return undefined // told by what is missing in it
  }
}
