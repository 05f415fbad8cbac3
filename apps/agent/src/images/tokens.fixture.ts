// tokens.fixture.ts: a server that gives tokens to docker-registry's clients (distribution, "token" and "token/oauth"), signed
// as it wants them.
import { sign, X509Certificate } from 'node:crypto'
import { once } from 'node:events'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { createServer, type IncomingMessage } from 'node:http'
import { text } from 'node:stream/consumers'
import { certificateIn, LOGIN, type TokenServer } from './registry.fixture.js'

/** How a token was asked for. */
export interface TokenAsked {
  readonly method: string
  readonly authorization: string | undefined
  readonly query: Readonly<Record<string, string>>
  readonly form: Readonly<Record<string, string>>
}

const SERVICE = 'registry of the tests'

export class Tokens implements TokenServer, AsyncDisposable {
  readonly asked: TokenAsked[] = []
  /** What GET is answered; undefined: it is taken, with `LOGIN`. */
  status: number | undefined
  /** The only identity token that is taken. */
  identityToken = 'identity token'
  /** Whether another one comes with each token, which then is the only one. */
  rotates = false
  /** Repositories of which nothing is allowed. */
  forbidden: readonly string[] = []
  readonly signer: TokenServer['signer']
  readonly #directory = mkdtempSync('/var/tmp/berth-tokens-')
  readonly #files = certificateIn(this.#directory)
  readonly #server = createServer((request, response) => {
    void this.#answer(request).then(([status, body]) =>
      response.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(body)),
    )
  })

  private constructor() {
    this.signer = { service: SERVICE, issuer: 'tests', rootcertbundle: this.#files.cert }
  }

  static async start(): Promise<Tokens> {
    const tokens = new Tokens()
    tokens.#server.listen(0, '127.0.0.1')
    await once(tokens.#server, 'listening')
    return tokens
  }

  get url(): string {
    const address = this.#server.address()
    return `http://127.0.0.1:${typeof address === 'object' && address ? address.port : 0}`
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#server.closeAllConnections()
    this.#server.close()
    await once(this.#server, 'close')
    rmSync(this.#directory, { recursive: true })
  }

  async #answer(request: IncomingMessage): Promise<readonly [number, object]> {
    const { method = '', headers } = request
    const query = new URL(request.url ?? '', this.url).searchParams
    const form = new URLSearchParams(await text(request))
    this.asked.push({
      ...{ method, authorization: headers.authorization },
      ...{ query: Object.fromEntries(query), form: Object.fromEntries(form) },
    })
    if (method === 'GET') {
      if (this.status !== undefined) return [this.status, {}]
      const basic = `Basic ${Buffer.from(`${LOGIN.username}:${LOGIN.password}`).toString('base64')}`
      return headers.authorization === basic ? [200, { token: this.#token(query.getAll('scope')) }] : [401, {}]
    }
    const taken =
      form.get('grant_type') === 'password'
        ? form.get('username') === LOGIN.username && form.get('password') === LOGIN.password
        : form.get('grant_type') === 'refresh_token' && form.get('refresh_token') === this.identityToken
    if (!taken || form.get('service') !== SERVICE || !form.get('client_id')) return [400, { error: 'invalid_grant' }]
    if (this.rotates) this.identityToken = `identity token ${this.asked.length}`
    const more = this.rotates ? { refresh_token: this.identityToken } : {}
    return [200, { access_token: this.#token((form.get('scope') ?? '').split(' ')), ...more }]
  }

  /** distribution, "token/jwt". */
  #token(scopes: readonly string[]): string {
    const now = Math.floor(Date.now() / 1000)
    const access = scopes
      .map((scope) => scope.split(':'))
      .map(([type, name = '', actions = '']) => ({ type, name, actions: actions.split(',') }))
      .filter(({ name }) => !this.forbidden.includes(name))
    const certificate = new X509Certificate(readFileSync(this.#files.cert)).raw.toString('base64')
    const claims = {
      iss: 'tests',
      sub: 'alice',
      aud: SERVICE,
      jti: '1',
      nbf: now - 10,
      iat: now,
      exp: now + 300,
      access,
    }
    const encoded = [{ typ: 'JWT', alg: 'ES256', x5c: [certificate] }, claims]
      .map((part) => Buffer.from(JSON.stringify(part)).toString('base64url'))
      .join('.')
    const key = { key: readFileSync(this.#files.key), dsaEncoding: 'ieee-p1363' } as const
    return `${encoded}.${sign('sha256', Buffer.from(encoded), key).toString('base64url')}`
  }
}
