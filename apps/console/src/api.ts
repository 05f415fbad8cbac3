// api.ts: the API as the console calls it: routes by their records, as the SDK does, over fetch and the session's cookie.
// The key itself is sent once, to begin the session, and kept nowhere.
import {
  ApiError,
  type Arguments,
  answerOf,
  apiError,
  type Item,
  type Output,
  type Route,
  requestOf,
  SESSION_HEADER,
  Unreachable,
  valuesOf,
} from '@berth/contracts'

export interface CallOptions {
  readonly signal?: AbortSignal | undefined
  readonly headers?: Readonly<Record<string, string>>
  /** Told when the answer has begun: a stream may be silent for hours after that. */
  readonly onOpen?: () => void
}

export interface Upload {
  readonly body: Blob
  /** Told as bytes leave, as a share of 1. */
  readonly onProgress: (share: number) => void
  readonly signal: AbortSignal
}

/** Random, as `crypto.randomUUID` is, which browsers have only on https. */
export function randomId(): string {
  return Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, '0')).join('')
}

export class Api {
  /** @param onSessionOver told when an answer says that the session is no longer good */
  constructor(private readonly onSessionOver: (error: ApiError) => void) {}

  /** @throws ApiError when the API refuses; Unreachable when it cannot be reached; AbortError */
  async call<R extends Route>(route: R, given: Arguments<R>, options: CallOptions = {}): Promise<Output<R>> {
    const answer = await this.#send(route, given, options)
    return answerOf(route, answer.status, await textOf(route, answer))
  }

  /** The values of a route that answers a stream of them. Leaving the loop ends the request. @throws as `call` */
  async *values<R extends Route>(route: R, given: Arguments<R>, options: CallOptions = {}): AsyncGenerator<Item<R>> {
    yield* valuesOf(route, chunksOf(route, await this.#send(route, given, options)))
  }

  /** The bytes of a route that answers them, as they come. @throws as `call` */
  async *bytes<R extends Route>(route: R, given: Arguments<R>, options: CallOptions = {}): AsyncGenerator<Uint8Array> {
    yield* chunksOf(route, await this.#send(route, given, options))
  }

  /**
   * Sends a body of bytes. By XMLHttpRequest: fetch does not tell how much of a body has left.
   * @throws as `call`
   */
  async upload<R extends Route>(route: R, given: Arguments<R>, upload: Upload): Promise<Output<R>> {
    const { method, path } = requestOf(route, given)
    const { status, text } = await new Promise<{ status: number; text: string }>((resolve, reject) => {
      const request = new XMLHttpRequest()
      const abort = () => request.abort()
      upload.signal.addEventListener('abort', abort, { once: true })
      request.upload.onprogress = ({ loaded, total }) => upload.onProgress(total === 0 ? 1 : loaded / total)
      request.onload = () => resolve({ status: request.status, text: request.responseText })
      request.onerror = () => reject(new Unreachable(`${method} ${route.path}`, 'the connection was lost'))
      request.onabort = () => reject(upload.signal.reason)
      request.onloadend = () => upload.signal.removeEventListener('abort', abort)
      request.open(method, path)
      request.setRequestHeader(SESSION_HEADER, '1')
      request.setRequestHeader('content-type', 'application/octet-stream')
      request.send(upload.body)
    })
    if (status in route.reply) return answerOf(route, status, text)
    throw this.#refused(status, text, undefined)
  }

  async #send(route: Route, given: object, { signal, headers = {}, onOpen }: CallOptions): Promise<Response> {
    const { method, path, body } = requestOf(route, given)
    const answer = await fetch(path, {
      method,
      credentials: 'same-origin',
      cache: 'no-store',
      headers: {
        [SESSION_HEADER]: '1',
        ...(body === undefined ? {} : { 'content-type': 'application/json' }),
        ...(method === 'GET' ? {} : { 'idempotency-key': randomId() }),
        ...headers,
      },
      ...(body === undefined ? {} : { body }),
      ...(signal ? { signal } : {}),
    }).catch((cause: unknown) => {
      throw isAbort(cause) ? cause : new Unreachable(`${method} ${route.path}`, cause)
    })
    if (answer.status in route.reply) {
      onOpen?.()
      return answer
    }
    throw this.#refused(answer.status, await textOf(route, answer), answer.headers.get('retry-after') ?? undefined)
  }

  #refused(status: number, text: string, retryAfter: string | undefined): ApiError {
    const error = apiError(status, text, retryAfter)
    if (status === 401 || error.is('tenant_suspended')) this.onSessionOver(error)
    return error
  }
}

/** Address of a route that is a WebSocket, on the page's own host. */
export function socketUrl<R extends Route>(route: R, given: Arguments<R>): string {
  const url = new URL(requestOf(route, given).path, location.href)
  url.protocol = url.protocol === 'https:' ? 'wss:' : 'ws:'
  return url.href
}

export const isAbort = (error: unknown): boolean => error instanceof DOMException && error.name === 'AbortError'

/** What to tell of an error. */
export function messageOf(error: unknown): string {
  if (error instanceof ApiError) return error.message
  if (error instanceof Unreachable) return 'The API cannot be reached.'
  return error instanceof Error ? error.message : String(error)
}

async function textOf(route: Route, answer: Response): Promise<string> {
  return answer.text().catch((cause: unknown) => {
    throw isAbort(cause) ? cause : new Unreachable(`read the answer of ${route.method} ${route.path}`, cause)
  })
}

/** A body as its chunks come; leaving the loop cancels it. Not every browser iterates streams by itself. */
async function* chunksOf(route: Route, { body }: Response): AsyncGenerator<Uint8Array, void, undefined> {
  if (!body) return
  const reader = body.getReader()
  try {
    for (;;) {
      const { done, value } = await reader.read()
      if (done) return
      yield value
    }
  } catch (cause) {
    throw isAbort(cause) ? cause : new Unreachable(`read the answer of ${route.method} ${route.path}`, cause)
  } finally {
    await reader.cancel().catch(() => undefined)
  }
}

/** Most that is kept of a download before it is handed to the browser, which puts large blobs on disk. */
const PART_BYTES = 8 * 1024 * 1024

/**
 * Saves a stream of bytes as a file of the user. It is read to the end first: the session's header cannot be sent with a
 * plain link, and what a sandbox holds must never be a page of this origin.
 * @param onProgress told how many bytes have come
 */
export async function saveAs(
  name: string,
  chunks: AsyncIterable<Uint8Array>,
  onProgress: (bytes: number) => void,
): Promise<void> {
  const parts: Blob[] = []
  let open: Uint8Array<ArrayBuffer>[] = []
  let [held, total] = [0, 0]
  for await (const chunk of chunks) {
    open.push(new Uint8Array(chunk))
    held += chunk.length
    total += chunk.length
    onProgress(total)
    if (held < PART_BYTES) continue
    parts.push(new Blob(open))
    open = []
    held = 0
  }
  const url = URL.createObjectURL(new Blob([...parts, ...open], { type: 'application/octet-stream' }))
  const link = document.createElement('a')
  link.href = url
  link.download = name
  link.click()
  // The browser has begun to read it when the next minute is over.
  setTimeout(() => URL.revokeObjectURL(url), 60_000)
}
