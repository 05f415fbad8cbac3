// fetch.ts: a blob from a registry into the store, gone on with where it broke off, whoever broke it off.
import { Failure } from '@berth/contracts'
import type { Descriptor } from '@berth/oci'
import type { Content, Part } from './content.js'
import { drop, type Endpoint, header, Passing, type Registry, refusal } from './registry.js'

export interface FetchOptions {
  readonly signal: AbortSignal
  /** Told of the bytes that are here. */
  readonly moved: (bytes: number) => void
}

/**
 * Has a blob in the store.
 *
 * One that is here is fetched again unless everybody may have it, or the registry that gave it once says that this
 * login may: a manifest that names what somebody else has must not be a way to it, nor to its size. Fetches from
 * different registries do not wait for each other: one that is slow holds up those only who believe it.
 * @returns whether it was here
 * @throws Failure image_invalid when it is not what digest and size promise: nothing of it is kept then
 */
export function fetchBlob(
  registry: Registry,
  content: Content,
  { digest, size }: Pick<Descriptor, 'digest' | 'size'>,
  options: FetchOptions,
): Promise<'present' | 'fetched'> {
  return content.exclusively(`${digest} ${registry.host}`, options.signal, async () => {
    const found = await content.find(digest)
    if (found && (found.isPublic || (await isVouchedFor(registry, content, digest, options.signal)))) {
      if (found.bytes === size) return 'present'
      throw lies(digest, `it has ${found.bytes} bytes, and ${size} are promised`)
    }
    const part = await content.part(digest, registry.host)
    try {
      if (part.bytes > size) await part.restart()
      const fetching = new Fetching(part, { digest, size }, options)
      await registry.anywhere(
        (endpoint) => fetching.goOn(endpoint),
        () => fetching.most,
      )
    } finally {
      await part.close()
    }
    await content.learn(digest, { from: [registry.host] })
    return 'fetched'
  })
}

async function isVouchedFor(
  registry: Registry,
  content: Content,
  digest: string,
  signal: AbortSignal,
): Promise<boolean> {
  if (!(await content.known(digest)).from.includes(registry.host)) return false
  return registry.has(digest).catch((error: unknown) => {
    // Away, perhaps, while a mirror is not: then it is fetched from there.
    if (error instanceof Failure && !signal.aborted) return false
    throw error
  })
}

const lies = (digest: string, why: string) =>
  new Failure('image_invalid', `the blob ${digest} is not what it says: ${why}`)

class Fetching {
  /** Most bytes that were here at once. */
  most: number
  /** The part holds bytes of another time or place: when they do not fit it is begun anew, once. */
  #mixed: boolean
  /** What was told of the bytes by whom, to be asked for no others. */
  #tag: { readonly endpoint: Endpoint; readonly etag: string } | undefined
  /** Where an answer ended that said it was whole. */
  #endedAt: number | undefined

  constructor(
    private readonly part: Part,
    private readonly wanted: { readonly digest: string; readonly size: number },
    private readonly options: FetchOptions,
  ) {
    this.most = part.bytes
    this.#mixed = part.bytes > 0
  }

  async goOn(endpoint: Endpoint): Promise<void> {
    const { part } = this
    const { digest, size } = this.wanted
    if (part.bytes < size || size === 0) await this.#receive(endpoint)
    if (part.bytes < size) throw await this.#short(endpoint)
    if (await part.finish(digest)) return
    if (!this.#mixed) throw lies(digest, 'its bytes have another digest')
    this.#mixed = false
    throw new Passing('what was there of a blob did not fit')
  }

  async #receive(endpoint: Endpoint): Promise<void> {
    const { part } = this
    const { digest, size } = this.wanted
    const offset = part.bytes
    if (offset > 0 && this.#tag?.endpoint !== endpoint) this.#mixed = true
    const condition = this.#tag?.endpoint === endpoint ? { 'if-range': this.#tag.etag } : {}
    const headers = offset === 0 ? {} : { range: `bytes=${offset}-`, ...condition }
    const answer = await endpoint.ask({ method: 'GET', path: `blobs/${digest}`, headers })
    try {
      await this.#check(answer.statusCode, header(answer, 'content-range'), header(answer, 'content-length'), offset)
      if (answer.statusCode !== 200 && answer.statusCode !== 206) throw await refusal(answer, endpoint.host, digest)
      const etag = header(answer, 'etag')
      // A weak one is no promise of equal bytes (RFC 9110, section 13.1.5).
      this.#tag = etag === undefined || etag.startsWith('W/') ? undefined : { endpoint, etag }
      if (answer.statusCode === 200 && offset > 0) {
        await part.restart()
        this.#mixed = false
      }
      for await (const chunk of answer.body) {
        if (part.bytes + chunk.length > size) {
          await part.drop()
          throw lies(digest, `more than the ${size} bytes that are promised`)
        }
        await part.append(chunk)
        this.most = Math.max(this.most, part.bytes)
        this.options.moved(part.bytes)
      }
    } catch (error) {
      answer.body.destroy()
      throw endpoint.failure(error)
    }
    await drop(answer)
  }

  /** @throws Failure image_invalid, Passing when it is not the part that was asked for */
  async #check(status: number, range: string | undefined, length: string | undefined, offset: number): Promise<void> {
    const { digest, size } = this.wanted
    const [, first, all] = /^bytes (\d+)-\d+\/(\d+|\*)$/.exec(range ?? '') ?? []
    const total = status === 206 ? all : status === 200 ? length : undefined
    if (status === 416 || (total !== undefined && total !== '*' && Number(total) !== size)) {
      await this.part.drop()
      throw lies(digest, `it has ${total ?? 'fewer'} bytes, and ${size} are promised`)
    }
    if (status !== 206 || Number(first) === offset) return
    await this.part.restart()
    throw new Passing('another part of a blob than was asked for')
  }

  async #short(endpoint: Endpoint): Promise<Failure> {
    const { digest, size } = this.wanted
    const { bytes } = this.part
    if (this.#endedAt === bytes) {
      await this.part.drop()
      return lies(digest, `it has ${bytes} bytes, and ${size} are promised`)
    }
    this.#endedAt = bytes
    return new Passing(`${endpoint.host} sent ${bytes} of ${size} bytes`)
  }
}
