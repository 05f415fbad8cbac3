// uploads.fixture.ts: the half of a registry that takes blobs, strict where Debian's docker-registry is not: it keeps what
// came of a request that broke off and tells how much that is, wants pieces in their order, and has limits for them.
import { once } from 'node:events'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import { digestOf } from './registry.fixture.js'

export interface UploadRules {
  /** Most bytes of a request; more are answered 413. */
  readonly maxBody?: number
  /** `OCI-Chunk-Min-Length`: a piece that is smaller must be the last. */
  readonly least?: number
  /** Methods that are answered 405 when they bring something. */
  readonly refused?: readonly string[]
  /** It closes on what it does not take, rather than have it said whole. */
  readonly abrupt?: boolean
  /** It says nothing of uploads. */
  readonly silent?: boolean
  /** After how many bytes a request breaks off; asked for each that brings some. */
  readonly cut?: (request: Brought) => number | undefined
}

export interface Brought {
  readonly method: string
  /** As it was announced. */
  readonly bytes: number
  /** `Content-Range` */
  readonly range: string | undefined
}

interface Upload {
  bytes: Buffer
  isOver: boolean
}

export class UploadRegistry implements AsyncDisposable {
  rules: UploadRules = {}
  readonly blobs = new Map<string, Buffer>()
  /** Requests that brought something, in their order. */
  readonly brought: Brought[] = []
  /** All requests, as `METHOD path`, uploads without their number. */
  readonly asked: string[] = []
  /** Bytes that arrived, in all. */
  received = 0
  readonly #uploads = new Map<string, Upload>()
  readonly #server = createServer((request, response) => void this.#answer(request, response))

  static async start(): Promise<UploadRegistry> {
    const registry = new UploadRegistry()
    registry.#server.listen(0, '127.0.0.1')
    await once(registry.#server, 'listening')
    return registry
  }

  get host(): string {
    const address = this.#server.address()
    return `127.0.0.1:${typeof address === 'object' && address ? address.port : 0}`
  }

  get url(): string {
    return `http://${this.host}`
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#server.closeAllConnections()
    this.#server.close()
    await once(this.#server, 'close')
  }

  async #answer(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const { method = '' } = request
    const url = new URL(request.url ?? '', this.url)
    const [, id] = /\/blobs\/uploads\/(\d+)$/.exec(url.pathname) ?? []
    this.asked.push(`${method} ${url.pathname.replace(/\d+$/, 'N')}`)
    const say = (status: number, headers: Record<string, string> = {}) => response.writeHead(status, headers).end()
    if (method === 'HEAD') return void say(this.blobs.has(url.pathname.split('/').at(-1) ?? '') ? 200 : 404)
    if (method === 'POST') {
      const number = String(this.#uploads.size)
      this.#uploads.set(number, { bytes: Buffer.alloc(0), isOver: false })
      const least = this.rules.least === undefined ? {} : { 'oci-chunk-min-length': String(this.rules.least) }
      return void say(202, { location: `${url.pathname}${number}`, range: '0-0', ...least })
    }
    const upload = this.#uploads.get(id ?? '')
    if (!upload || (method === 'GET' && this.rules.silent)) return void say(404)
    if (method === 'GET') return void say(204, this.#whereIs(url, upload))
    const status = await this.#take(request, upload)
    if (status === undefined) return void request.destroy()
    if (status !== 200 && this.rules.abrupt) return void say(status, { connection: 'close' })
    if (status !== 200) {
      for await (const _ of request) {
        // It is of no use.
      }
      return void say(status)
    }
    if (method === 'PATCH') return void say(202, this.#whereIs(url, upload))
    const digest = digestOf(upload.bytes)
    if (url.searchParams.get('digest') !== digest) return void say(400)
    this.blobs.set(digest, upload.bytes)
    say(201, { location: `/v2/x/blobs/${digest}` })
  }

  #whereIs(url: URL, { bytes }: Upload): Record<string, string> {
    return { location: url.pathname, range: `0-${Math.max(0, bytes.length - 1)}` }
  }

  /** @returns status; undefined where the request is broken off */
  async #take(request: IncomingMessage, upload: Upload): Promise<number | undefined> {
    const { method = '', headers } = request
    const brought = { method, bytes: Number(headers['content-length']), range: headers['content-range'] }
    if (brought.bytes === 0) return 200
    this.brought.push(brought)
    const { maxBody = Number.POSITIVE_INFINITY, least = 0, refused = [], cut } = this.rules
    if (brought.bytes > maxBody) return 413
    if (refused.includes(method)) return 405
    const first = Number(/^(\d+)-/.exec(brought.range ?? '0-')?.[1])
    if (upload.isOver || first !== upload.bytes.length) return 416
    upload.isOver = brought.bytes < least
    let left = cut?.(brought) ?? Number.POSITIVE_INFINITY
    const chunks: Buffer[] = []
    for await (const chunk of request as AsyncIterable<Buffer>) {
      const part = chunk.subarray(0, left)
      chunks.push(part)
      left -= part.length
      if (left === 0) break
    }
    const all = Buffer.concat(chunks)
    this.received += all.length
    upload.bytes = Buffer.concat([upload.bytes, all])
    return left === 0 ? undefined : 200
  }
}
