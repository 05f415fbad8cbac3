// registry.ts: the OCI distribution protocol (distribution-spec v1.1), one registry for one operation. undici is the
// client, as for the API: streams with backpressure, time-outs for silence rather than for the whole, and a connector in
// which the address that is really connected to can be judged.
import { type LookupAddress, lookup as resolveName } from 'node:dns'
import type { LookupFunction } from 'node:net'
import type { Readable } from 'node:stream'
import { setTimeout as delay } from 'node:timers/promises'
import { rootCertificates } from 'node:tls'
import { errnoOf, Failure, invariant, type RegistryAccess } from '@berth/contracts'
import { MAX_MANIFEST_BYTES, manifestTypes, type Reference } from '@berth/oci'
import { Agent, type Dispatcher, request } from 'undici'
import { digestOfBytes } from './content.js'
import { addressIn, checkUrl, follow, mayConnect, type Reach } from './reach.js'
import { Authorization, type TokenRequest } from './registry-auth.js'
import { isPassing, type Patience, patience, pauseMs, retryAfterMs } from './retry.plan.js'

export interface RegistryOptions {
  readonly reference: Reference
  readonly access: RegistryAccess
  /** What is done there. */
  readonly actions: 'pull' | 'pull,push'
  readonly signal: AbortSignal
  /** Told of each try that failed and is followed by another. */
  readonly retrying: (message: string) => void
  readonly patience?: Patience
  /** Longest silence of a connection that is open, in milliseconds. */
  readonly silenceMs?: number
}

const SILENCE_MS = 30_000
const CONNECT_MS = 10_000
const MAX_REDIRECTS = 5
const MAX_PROBLEM_BYTES = 16 * 1024
const FORM = 'application/x-www-form-urlencoded'

/** A registry that does not answer as it should, and may in a moment. */
export class Passing extends Failure {
  constructor(
    message: string,
    /** What it asked to be left alone for, in milliseconds. */
    readonly askedMs?: number,
    /** It did not answer at all, or not to the end. */
    readonly isOfConnection = false,
  ) {
    super('registry_unreachable', message)
  }
}

export interface Ask {
  readonly method: 'GET' | 'HEAD' | 'POST' | 'PUT' | 'PATCH'
  /** Below `/v2/<repository>/`, or a URL that the endpoint named. */
  readonly path: string | URL
  /** Default: the one that all is about. */
  readonly repository?: string
  /** Another repository that is read from for this. */
  readonly reads?: string
  readonly headers?: Readonly<Record<string, string>>
  readonly body?: Buffer | (() => Readable)
}

export type Answer = Dispatcher.ResponseData

/** One place where the registry is to be had: itself, or a mirror. */
export class Endpoint {
  readonly #base: URL
  readonly #agent: Agent
  readonly #reach: Reach
  readonly #authorization: Authorization
  readonly #options: RegistryOptions

  constructor(url: string, options: RegistryOptions, isRegistry: boolean) {
    const { access } = options
    this.#base = new URL(url)
    this.#options = options
    this.#reach = { privateAddresses: access.privateAddresses, endpointHost: this.#base.hostname }
    this.#agent = agentFor(access, this.#reach, options.silenceMs ?? SILENCE_MS)
    const login = isRegistry ? (access.login ?? undefined) : undefined
    this.#authorization = new Authorization(login, (wanted) => this.#askToken(wanted))
  }

  get host(): string {
    return this.#base.host
  }

  get base(): URL {
    return this.#base
  }

  close(): Promise<void> {
    return this.#agent.destroy()
  }

  /**
   * Asks, logs in where that is wanted, follows redirects.
   * @returns an answer of any status but 401, 403 and those that pass; its body must be read, or destroyed
   * @throws Failure registry_denied, registry_unreachable; Passing
   */
  async ask(ask: Ask): Promise<Answer> {
    for (let challenged = 0; ; challenged++) {
      const used = this.#authorization.header
      const answer = await this.#followed(ask, used)
      const { statusCode: status } = answer
      if (status === 401 && challenged < 2) {
        await drop(answer)
        const other = ask.repository ?? ask.reads
        const scopes = [
          `repository:${this.#options.reference.repository}:${this.#options.actions}`,
          ...(other === undefined ? [] : [`repository:${other}:pull`]),
        ]
        await this.#authorization.answer(header(answer, 'www-authenticate'), scopes, used)
        continue
      }
      if (status === 401 || status === 403) throw new Failure('registry_denied', await why(answer, this.host))
      if (!isPassing(status)) return answer
      const asked = retryAfterMs(header(answer, 'retry-after'), Date.now())
      throw new Passing(await why(answer, this.host), asked)
    }
  }

  async #followed(ask: Ask, authorization: string | undefined): Promise<Answer> {
    const { reference } = this.#options
    const root = `${this.#base.pathname.replace(/\/$/, '')}/v2/${ask.repository ?? reference.repository}`
    let url = ask.path instanceof URL ? ask.path : new URL(`${root}/${ask.path}`, this.#base)
    let login = url.origin === this.#base.origin ? authorization : undefined
    for (let redirects = 0; ; redirects++) {
      const answer = await this.#once(url, ask, login)
      const location = header(answer, 'location')
      const isRedirect = [301, 302, 303, 307, 308].includes(answer.statusCode) && location !== undefined
      // What it asks for is for the endpoint, not for where the endpoint sends us.
      if (answer.statusCode === 401 && url.origin !== this.#base.origin)
        throw new Failure('registry_denied', await why(answer, url.host))
      if (!isRedirect) return answer
      await drop(answer)
      const move = redirects < MAX_REDIRECTS ? follow(this.#base, url, location) : { refused: 'too many redirects' }
      if ('refused' in move) throw new Failure('registry_unreachable', `${this.host} answers with ${move.refused}`)
      url = move.to
      login = move.keepsLogin ? login : undefined
    }
  }

  async #once(url: URL, { method, headers, body }: Ask, authorization: string | undefined): Promise<Answer> {
    const address = addressIn(url)
    if (address !== undefined && !mayConnect(url.hostname, address, this.#reach)) throw notThere(url.hostname)
    try {
      return await request(url, {
        dispatcher: this.#agent,
        method,
        headers: { 'user-agent': 'berth', ...headers, ...(authorization === undefined ? {} : { authorization }) },
        body: typeof body === 'function' ? body() : (body ?? null),
        signal: this.#options.signal,
      })
    } catch (error) {
      throw this.failure(error)
    }
  }

  /** What a broken connection is told as. */
  failure(error: unknown): unknown {
    const { signal } = this.#options
    if (signal.aborted) return signal.reason
    if (error instanceof Failure) return error
    const code = errnoOf(error)
    // What no system call, nor undici, has a code for is a bug.
    if (code === undefined) return error
    const told = `${this.host}: ${(error instanceof Error && error.message) || code}`
    // A certificate does not become right by waiting.
    if (/CERT|SIGNATURE|ERR_TLS|ERR_SSL|ENOTFOUND/.test(code)) return new Failure('registry_unreachable', told)
    return new Passing(told, undefined, true)
  }

  async #askToken({ url: server, authorization, form, most }: TokenRequest) {
    const refused = checkUrl(this.#base, server)
    if (refused !== undefined) throw new Failure('registry_unreachable', `a token server ${refused}`)
    const asked = form
      ? { method: 'POST' as const, headers: { 'content-type': FORM }, body: Buffer.from(form.toString()) }
      : { method: 'GET' as const, headers: authorization === undefined ? {} : { authorization } }
    const answer = await this.#once(server, { ...asked, path: server }, undefined)
    if (isPassing(answer.statusCode)) {
      await drop(answer)
      throw new Passing(`${server.host} answers ${answer.statusCode}`)
    }
    return { status: answer.statusCode, body: await this.read(answer, most) }
  }

  /** @throws Failure image_invalid when it is more than `most` bytes */
  async read(answer: Answer, most: number): Promise<Buffer> {
    const chunks: Buffer[] = []
    let bytes = 0
    try {
      if (Number(header(answer, 'content-length') ?? 0) > most) throw tooLarge(most)
      for await (const chunk of answer.body) {
        bytes += chunk.length
        if (bytes > most) throw tooLarge(most)
        chunks.push(chunk)
      }
    } catch (error) {
      answer.body.destroy()
      throw this.failure(error)
    }
    return Buffer.concat(chunks)
  }
}

const tooLarge = (most: number) => new Failure('image_invalid', `a document of more than ${most} bytes`)

/** What can be had of one repository. */
export class Registry {
  readonly endpoints: readonly Endpoint[]
  readonly #options: RegistryOptions

  constructor(options: RegistryOptions) {
    this.#options = options
    const { endpoints } = options.access
    const own = new URL(endpoints.at(-1) ?? '').origin
    this.endpoints = endpoints.map(
      (url, index) => new Endpoint(url, options, index === endpoints.length - 1 || new URL(url).origin === own),
    )
  }

  get host(): string {
    return this.#options.reference.registry
  }

  async close(): Promise<void> {
    await Promise.all(this.endpoints.map((endpoint) => endpoint.close()))
  }

  /** The registry itself, where things are pushed to. */
  get itself(): Endpoint {
    const itself = this.endpoints.at(-1)
    invariant(itself, 'a registry has an endpoint')
    return itself
  }

  /**
   * A manifest or an index, by tag or digest.
   * @throws Failure registry_denied when there is none, image_invalid when it is not what its digest says
   */
  manifest(name: string): Promise<{ readonly bytes: Buffer; readonly digest: string; readonly mediaType: string }> {
    return this.anywhere(async (endpoint) => {
      const answer = await endpoint.ask({
        method: 'GET',
        path: `manifests/${name}`,
        headers: { accept: manifestTypes.join(', ') },
      })
      if (answer.statusCode !== 200) throw await refusal(answer, endpoint.host, this.#inFull(name))
      const bytes = await endpoint.read(answer, MAX_MANIFEST_BYTES)
      const digest = digestOfBytes(bytes)
      if (name.includes(':') && digest !== name)
        throw new Failure('image_invalid', `${endpoint.host} gives ${digest} for the manifest ${name}`)
      return { bytes, digest, mediaType: (header(answer, 'content-type') ?? '').split(';')[0]?.trim() ?? '' }
    })
  }

  #inFull(name: string): string {
    const { registry, repository } = this.#options.reference
    return `${registry}/${repository}${name.includes(':') ? '@' : ':'}${name}`
  }

  /** Whether whoever is logged in may have the blob. */
  has(digest: string): Promise<boolean> {
    return this.patiently(this.itself, async () => (await this.#head(this.itself, digest)) === 200)
  }

  async #head(endpoint: Endpoint, digest: string): Promise<number> {
    const answer = await endpoint.ask({ method: 'HEAD', path: `blobs/${digest}` })
    await drop(answer)
    return answer.statusCode
  }

  /** Tries mirrors, then the registry itself; each as `patiently`. */
  async anywhere<T>(work: (endpoint: Endpoint) => Promise<T>, moved?: () => number): Promise<T> {
    for (const endpoint of this.endpoints.slice(0, -1)) {
      try {
        return await this.patiently(endpoint, () => work(endpoint), moved)
      } catch (error) {
        if (!(error instanceof Failure) || this.#options.signal.aborted || error.code === 'no_capacity') throw error
        this.#options.retrying(`mirror ${endpoint.host}: ${error.message}`)
      }
    }
    return this.patiently(this.itself, () => work(this.itself), moved)
  }

  /**
   * Tries until it works, with pauses.
   * @param moved says how far `work` has come, in bytes: progress is a new beginning for the patience
   */
  async patiently<T>(endpoint: Endpoint, work: () => Promise<T>, moved: () => number = () => 0): Promise<T> {
    const { signal, retrying, patience: of = patience } = this.#options
    for (let failed = 1, before = moved(); ; failed++) {
      signal.throwIfAborted()
      try {
        return await work()
      } catch (error) {
        if (!(error instanceof Passing)) throw error
        if (moved() > before) failed = 1
        before = Math.max(before, moved())
        const pause = pauseMs(failed, error.askedMs, Math.random(), of)
        if (pause === undefined) throw error
        retrying(`${endpoint.host}: ${error.message}; again in ${Math.ceil(pause)} ms`)
        await delay(pause, undefined, { signal })
      }
    }
  }
}

export const header = (answer: Pick<Answer, 'headers'>, name: string): string | undefined =>
  [answer.headers[name]].flat()[0]

/** Lets the connection go on, where little is left to read. */
export const drop = (answer: Answer): Promise<void> =>
  answer.body.dump({ limit: MAX_PROBLEM_BYTES }).catch(() => undefined)

/** @throws never: what a status that was not expected means */
export async function refusal(answer: Answer, host: string, what: string): Promise<Failure> {
  const said = await why(answer, host)
  if (answer.statusCode === 404) return new Failure('registry_denied', `${said}: there is no ${what}, or not for you`)
  return new Failure('registry_unreachable', said)
}

/** What a registry says of its refusal, made short and printable. */
async function why(answer: Answer, host: string): Promise<string> {
  let text = ''
  try {
    for await (const chunk of answer.body) {
      text += chunk.toString()
      if (text.length > MAX_PROBLEM_BYTES) break
    }
  } catch {
    // What it said so far is enough.
  }
  const [, message] = /"message"\s*:\s*"([^"]{1,300})/.exec(text) ?? []
  return `${host} answers ${answer.statusCode}${message === undefined ? '' : ` (${message.replace(/[^\x20-\x7e]/g, '?')})`}`
}

const notThere = (host: string) =>
  new Failure('registry_unreachable', `${host} is at an address that this registry may not be at`)

function agentFor({ certificates }: RegistryAccess, reach: Reach, silenceMs: number): Agent {
  const ca = certificates === null ? {} : { ca: [...rootCertificates, certificates] }
  return new Agent({
    headersTimeout: silenceMs,
    bodyTimeout: silenceMs,
    keepAliveTimeout: 10_000,
    connections: 8,
    connect: { timeout: CONNECT_MS, lookup: lookupFor(reach), ...ca },
  })
}

/** Looks a name up, and judges what it leads to at the moment in which it is connected to. */
function lookupFor(reach: Reach): LookupFunction {
  return (hostname, options, done) => {
    resolveName(hostname, { ...options, all: true }, (error, found: LookupAddress[]) => {
      if (error) return done(error, '', 4)
      const allowed = found.filter(({ address }) => mayConnect(hostname, address, reach))
      const [first] = allowed
      if (!first) return done(notThere(hostname), '', 4)
      if (options.all) done(null, allowed)
      else done(null, first.address, first.family)
    })
  }
}
