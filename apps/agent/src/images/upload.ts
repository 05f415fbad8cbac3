// upload.ts: a blob to a registry (distribution-spec v1.1, "Push"): mounted from where the registry has it, else in one
// piece, a POST and a PUT. What breaks off goes on from where the registry says that it is; where it says nothing, the
// blob is begun anew in pieces, which can be gone on from. Pieces are also what it gets that takes no more at once.
import { createReadStream } from 'node:fs'
import { type Readable, Transform } from 'node:stream'
import { Failure, KiB, MiB } from '@berth/contracts'
import { follow } from './reach.js'
import { type Answer, drop, type Endpoint, header, Passing, type Registry, refusal } from './registry.js'

export interface SentBlob {
  readonly digest: string
  readonly size: number
  readonly path: string
}

export interface UploadOptions {
  /** Told of the bytes that were sent. */
  readonly moved: (bytes: number) => void
  readonly others: OtherRepositories
}

/** Of pieces, where nobody says how large they may be. */
const PIECE = 32 * MiB
/** No proxy takes less at once. */
const LEAST = 64 * KiB
/** How often a registry may say that a piece is not the next one, in one go. */
const MAX_DISORDER = 3

/** Repositories of the same registry that may have the blobs of an image. */
export class OtherRepositories {
  readonly #left: Set<string>

  constructor(
    private readonly endpoint: Endpoint,
    repositories: readonly string[],
  ) {
    this.#left = new Set(repositories)
  }

  /** One that has the blob, and gives it to this login. Whatever is wrong with one, it is only not asked again. */
  async having(digest: string): Promise<string | undefined> {
    for (const repository of this.#left) {
      const status = await this.#status(repository, digest)
      if (status === 200) return repository
      if (status === undefined) this.#left.delete(repository)
    }
    return undefined
  }

  async #status(repository: string, digest: string): Promise<number | undefined> {
    const ask = { method: 'HEAD', path: `blobs/${digest}`, repository } as const
    const answer = await this.endpoint.ask(ask).catch((error: unknown) => {
      if (!(error instanceof Failure)) throw error
    })
    if (answer) await drop(answer)
    return answer?.statusCode
  }
}

/**
 * Has a blob in the registry.
 * @throws Failure registry_denied, registry_unreachable
 */
export function upload(registry: Registry, blob: SentBlob, options: UploadOptions): Promise<'mounted' | 'sent'> {
  const uploading = new Uploading(registry.itself, blob, options)
  return registry.patiently(
    registry.itself,
    () => uploading.goOn(),
    () => uploading.most,
  )
}

class Uploading {
  /** Most bytes that the registry said it has. */
  most = 0
  /** Where the rest goes; undefined before it is begun, and when it is lost. */
  #at: URL | undefined
  #mountable = true
  /** Bytes of a piece; infinite: all of it in one. */
  #piece = Number.POSITIVE_INFINITY
  /** The registry's word for the least of them, but for the last one. */
  #least = 0
  /** Until it says otherwise; and how many it did take. */
  #takesPieces = true
  #taken = 0
  /** The connection broke; and how many there were when it did so before. */
  #broke = false
  #takenBefore = 0
  #disorder = 0

  constructor(
    private readonly endpoint: Endpoint,
    private readonly blob: SentBlob,
    private readonly options: UploadOptions,
  ) {}

  /** @throws Passing for what may go on in a moment */
  async goOn(): Promise<'mounted' | 'sent'> {
    this.#disorder = 0
    for (;;) {
      const offset = await this.#offset()
      if (offset === 'mounted') return offset
      this.most = Math.max(this.most, offset)
      const isWhole = offset === 0 && Math.max(this.#piece, this.#least) >= this.blob.size
      try {
        if (await (isWhole ? this.#sendWhole() : this.#sendPieces(offset))) return 'sent'
      } catch (error) {
        this.#broke = error instanceof Passing && error.isOfConnection
        throw error
      }
    }
  }

  /** Where to go on from. */
  async #offset(): Promise<number | 'mounted'> {
    if (this.#at && this.#takesPieces) {
      const there = await this.#there(this.#at)
      const gained = this.#taken > this.#takenBefore || (there ?? 0) > this.most
      // So that not all is lost when it breaks again; some close on what is too large before anybody is told so.
      if (this.#broke && !gained) this.#shrink(4)
      this.#broke = false
      this.#takenBefore = this.#taken
      if (there !== undefined) return there
    }
    return (await this.#begin()) ? 0 : 'mounted'
  }

  /** What the registry has of it; undefined where it does not tell. */
  async #there(at: URL): Promise<number | undefined> {
    const answer = await this.endpoint.ask({ method: 'GET', path: at }).catch(unlessDenied)
    if (!answer) return undefined
    await drop(answer)
    const end = endOf(answer)
    if (answer.statusCode >= 300 || end === undefined || end > this.blob.size) return undefined
    this.#moveTo(answer)
    return end
  }

  /** False: it is there by now, mounted. */
  async #begin(): Promise<boolean> {
    const { digest } = this.blob
    const from = this.#mountable ? await this.options.others.having(digest) : undefined
    const headers = { 'content-length': '0' }
    const mount = from === undefined ? '' : `?mount=${encodeURIComponent(digest)}&from=${encodeURIComponent(from)}`
    const ask = { method: 'POST', path: `blobs/uploads/${mount}`, headers } as const
    const begun = await (from === undefined
      ? this.endpoint.ask(ask)
      : this.endpoint.ask({ ...ask, reads: from }).catch(unlessDenied))
    this.#mountable = false
    // It may be read there, and not be mounted from there.
    if (!begun) return this.#begin()
    if (from !== undefined && begun.statusCode === 201) {
      await drop(begun)
      return false
    }
    if (begun.statusCode !== 202 || header(begun, 'location') === undefined) throw await notTaken(begun, this.endpoint)
    await drop(begun)
    const least = header(begun, 'oci-chunk-min-length') ?? ''
    this.#least = /^\d{1,15}$/.test(least) ? Number(least) : 0
    this.#moveTo(begun)
    return true
  }

  /** @returns false where it is to be sent otherwise */
  async #sendWhole(): Promise<boolean> {
    const { size } = this.blob
    const answer = await this.#put(size)
    if (await isTaken(answer)) return true
    const { statusCode: status } = answer
    if ((status !== 413 && status !== 405) || !this.#takesPieces || !this.#shrink(2, size))
      throw await notTaken(answer, this.endpoint)
    await drop(answer)
    return false
  }

  /** @returns false where it is to be gone on with otherwise */
  async #sendPieces(offset: number): Promise<boolean> {
    const { size } = this.blob
    for (let at = offset; at < size; ) {
      const length = Math.min(Math.max(this.#piece, this.#least), size - at)
      const answer = await this.#patch(at, length)
      if (answer.statusCode < 200 || answer.statusCode >= 300) return this.#otherwise(answer, length)
      await drop(answer)
      this.#moveTo(answer)
      this.#taken++
      const end = endOf(answer) ?? at + length
      if (end <= at || end > at + length) throw new Passing(`${this.endpoint.host} has ${end} bytes of a blob`)
      at = end
      this.most = Math.max(this.most, at)
    }
    const answer = await this.#put(0)
    if (await isTaken(answer)) return true
    throw await notTaken(answer, this.endpoint)
  }

  /** A piece was not taken. */
  async #otherwise(answer: Answer, length: number): Promise<false> {
    const { statusCode: status } = answer
    if (status === 413 && this.#shrink(2, length)) {
      await drop(answer)
      return false
    }
    if (status === 416 && ++this.#disorder <= MAX_DISORDER) {
      await drop(answer)
      return false
    }
    if (this.#taken > 0 && status === 404) {
      await drop(answer)
      this.#at = undefined
      throw this.#lost()
    }
    if (this.#taken > 0 || ![400, 404, 405, 416].includes(status)) throw await notTaken(answer, this.endpoint)
    await drop(answer)
    this.#takesPieces = false
    this.#piece = Number.POSITIVE_INFINITY
    this.#at = undefined
    return false
  }

  /**
   * Makes pieces of a part of what they are now; half of it at first.
   * @param than they must become smaller than that. @returns false where they cannot
   */
  #shrink(part: number, than = Number.POSITIVE_INFINITY): boolean {
    const now = Math.min(this.#piece, than)
    const next = this.#piece < this.blob.size ? now / part : Math.min(PIECE, this.blob.size / 2)
    this.#piece = Math.max(LEAST, Math.ceil(next))
    return Math.max(this.#piece, this.#least) < than
  }

  #patch(at: number, length: number): Promise<Answer> {
    const range = `${at}-${at + length - 1}`
    const headers = { ...bytesOf(length), 'content-range': range }
    return this.endpoint.ask({ method: 'PATCH', path: this.#location(), headers, body: () => this.#part(at, length) })
  }

  /** Ends it, with all of it or with nothing more. */
  #put(length: number): Promise<Answer> {
    const at = new URL(this.#location())
    at.searchParams.set('digest', this.blob.digest)
    const body = length === 0 ? {} : { body: () => this.#part(0, length) }
    return this.endpoint.ask({ method: 'PUT', path: at, headers: bytesOf(length), ...body })
  }

  #location(): URL {
    if (this.#at) return this.#at
    throw this.#lost()
  }

  #lost(): Passing {
    return new Passing(`${this.endpoint.host} has lost what came of a blob`)
  }

  #moveTo(answer: Answer): void {
    const location = header(answer, 'location')
    if (location === undefined) return
    const move = follow(this.endpoint.base, this.endpoint.base, location)
    if ('refused' in move)
      throw new Failure('registry_unreachable', `${this.endpoint.host} answers with ${move.refused}`)
    this.#at = move.to
  }

  /** A part of the file, which tells how far it was read. */
  #part(at: number, length: number): Readable {
    const { moved } = this.options
    let bytes = at
    const source = createReadStream(this.blob.path, { start: at, end: at + length - 1, highWaterMark: 256 * KiB })
    const meter = new Transform({
      transform(chunk: Buffer, _encoding, done) {
        bytes += chunk.length
        moved(bytes)
        done(null, chunk)
      },
    })
    source.once('error', (error) => meter.destroy(error))
    meter.once('close', () => source.destroy())
    return source.pipe(meter)
  }
}

const bytesOf = (length: number) => ({
  ...{ 'content-length': String(length), 'content-type': 'application/octet-stream' },
})

/** Where what is there ends: `Range: 0-N`, with `0-0` for nothing as well. */
function endOf(answer: Answer): number | undefined {
  const [, last] = /^(?:bytes=)?0-(\d{1,15})$/.exec(header(answer, 'range') ?? '') ?? []
  if (last === undefined) return undefined
  return last === '0' ? 0 : Number(last) + 1
}

async function isTaken(answer: Answer): Promise<boolean> {
  if (answer.statusCode !== 201 && answer.statusCode !== 204) return false
  await drop(answer)
  return true
}

export const notTaken = (answer: Answer, endpoint: Endpoint): Promise<Failure> =>
  refusal(answer, endpoint.host, 'such repository')

function unlessDenied(error: unknown): undefined {
  if (error instanceof Failure && error.code === 'registry_denied') return undefined
  throw error
}
