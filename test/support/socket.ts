import { once } from 'node:events'
import { type RawData, WebSocket } from 'ws'
import { type Api, stack, until } from './berth.js'

/** A WebSocket of the public API: output put together by its channel, and the frames of text. */
export class Attached {
  readonly output = new Map<number, Buffer[]>()
  // biome-ignore lint/suspicious/noExplicitAny: frames of every shape, checked by each test
  readonly told: any[] = []
  bytes = 0
  closed: { readonly code: number; readonly reason: string } | undefined

  private constructor(readonly socket: WebSocket) {
    socket.on('message', (data, binary) => this.#receive(bytesOf(data), binary))
    socket.on('close', (code, reason) => {
      this.closed = { code, reason: reason.toString() }
    })
    socket.on('error', () => undefined)
  }

  /** Opens it; fails with the status of the answer where it is refused. */
  static async open(api: Api, path: string): Promise<Attached> {
    const socket = new WebSocket(`${stack().url.replace(/^http/, 'ws')}${path}`, {
      headers: { authorization: `Bearer ${api.key}` },
      perMessageDeflate: false,
    })
    const attached = new Attached(socket)
    const refused = new Promise<never>((_, reject) => {
      socket.once('unexpected-response', (request, response) => {
        request.destroy()
        reject(new Error(`refused: ${response.statusCode}`))
      })
      socket.once('error', reject)
    })
    await Promise.race([once(socket, 'open'), refused])
    return attached
  }

  text(channel = 1): string {
    return Buffer.concat(this.output.get(channel) ?? []).toString()
  }

  input(text: string | Buffer): void {
    this.socket.send(Buffer.concat([Buffer.of(0), Buffer.from(text)]))
  }

  control(frame: object): void {
    this.socket.send(JSON.stringify(frame))
  }

  types(): readonly string[] {
    return this.told.map(({ type }) => type)
  }

  async end(): Promise<{ readonly code: number; readonly reason: string }> {
    return until('the socket closes', async () => this.closed, 60_000)
  }

  #receive(data: Buffer, binary: boolean): void {
    if (!binary) {
      this.told.push(JSON.parse(data.toString()))
      return
    }
    const channel = data[0] ?? 0
    this.bytes += data.length - 1
    this.output.set(channel, [...(this.output.get(channel) ?? []), data.subarray(1)])
  }
}

function bytesOf(data: RawData): Buffer {
  if (Buffer.isBuffer(data)) return data
  return Array.isArray(data) ? Buffer.concat(data) : Buffer.from(data)
}
