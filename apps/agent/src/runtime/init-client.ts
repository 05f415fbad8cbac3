// init-client.ts: one connection to a sandbox's berth-init. It greets, sends requests and hands on events; what they
// mean is the business of processes.ts. berth-init keeps all that was not acknowledged, so a connection may be dropped and
// opened again at any time without loss.

import { closeSync, constants, openSync } from 'node:fs'
import { connect, type Socket } from 'node:net'
import { basename, dirname } from 'node:path'
import { Fault, KiB } from '@berth/contracts'
import { EventReader } from './event-reader.js'
import { encodeRequest, type InitEvent, type InitRequest, PROTOCOL_VERSION, ProtocolError } from './init-wire.js'

export type ProcessInfo = Extract<InitEvent, { type: 'state' }>

export interface OpenOptions {
  /** For connecting and greeting together. */
  readonly timeoutMs: number
  /** Says that the sandbox is frozen and cannot answer: then `timeoutMs` does not count. */
  readonly frozen?: (() => boolean) | undefined
  /** Gives up. */
  readonly signal?: AbortSignal
}

/** An open, greeted connection. */
export class InitClient {
  readonly #socket: Socket
  readonly #greeting: Greeting
  /** Resolves when the connection is over, with the error if it was one. */
  readonly closed: Promise<Error | undefined>

  private constructor(socket: Socket, greeting: Greeting, closed: Promise<Error | undefined>) {
    this.#socket = socket
    this.#greeting = greeting
    this.closed = closed
  }

  /**
   * Connects to the socket at `path` (of any length) and greets.
   * @throws Fault when nobody listens, or init does not answer in time or in another version
   */
  static async open(path: string, options: OpenOptions): Promise<InitClient> {
    const greeting = new Greeting()
    const reader = new EventReader()
    const socket = connectTo(path, (chunk) => feed(socket, reader, chunk, greeting))
    const closed = endOf(socket)
    try {
      await new Promise<void>((resolve, reject) => {
        const timer = setInterval(() => {
          if (!options.frozen?.()) reject(new Error('no answer in time'))
        }, options.timeoutMs)
        const giveUp = () => reject(new Error('given up'))
        options.signal?.addEventListener('abort', giveUp)
        if (options.signal?.aborted) giveUp()
        void greeting.done.then(resolve)
        void closed.then((error) => reject(error ?? new Error('the connection was closed')))
        void Promise.race([greeting.done, closed]).then(() => {
          clearInterval(timer)
          options.signal?.removeEventListener('abort', giveUp)
        })
        socket.write(encodeRequest({ type: 'hello' }))
      })
    } catch (cause) {
      socket.destroy()
      throw new Fault(`connect to ${path}`, { cause })
    }
    return new InitClient(socket, greeting, closed)
  }

  /** What init knew when it was greeted. */
  get processes(): readonly ProcessInfo[] {
    return this.#greeting.processes
  }

  /** Hands every event after the greeting to `listener`, in order; nothing is read before this is called. */
  listen(listener: (event: InitEvent) => void): void {
    this.#greeting.listen(listener)
    this.#socket.resume()
  }

  /** Sends a request; on a connection that is over it is dropped, which `closed` tells. */
  send(request: InitRequest): void {
    if (!this.#socket.destroyed) this.#socket.write(encodeRequest(request))
  }

  close(): void {
    this.#socket.destroy()
  }
}

/** HELLO, as many STATEs as it announces, then whatever there is: it may come in the same chunk, before anyone listens. */
class Greeting {
  readonly processes: ProcessInfo[] = []
  readonly done: Promise<void>
  #settle: () => void = () => undefined
  #announced: number | undefined
  #backlog: InitEvent[] = []
  #listener: ((event: InitEvent) => void) | undefined

  constructor() {
    this.done = new Promise((resolve) => {
      this.#settle = resolve
    })
  }

  get complete(): boolean {
    return this.processes.length === this.#announced
  }

  listen(listener: (event: InitEvent) => void): void {
    this.#listener = listener
    for (const event of this.#backlog.splice(0)) listener(event)
  }

  /** @throws ProtocolError when the greeting is not one */
  receive(event: InitEvent): void {
    if (this.complete) {
      if (this.#listener) this.#listener(event)
      else this.#backlog.push(event)
      return
    }
    if (event.type === 'hello' && event.version === PROTOCOL_VERSION) this.#announced = event.processes
    else if (event.type === 'state' && this.#announced !== undefined) this.processes.push(event)
    else throw new ProtocolError(`answered the greeting with ${event.type}`)
    if (this.complete) this.#settle()
  }

  get listening(): boolean {
    return this.#listener !== undefined
  }
}

/** What was read from a socket, any of them, until its events are told; as much as the kernel holds of one. */
const scratch = Buffer.allocUnsafeSlow(256 * KiB)

/** A socket address holds 107 bytes (unix(7)), and data directories may be deeper: go through the open directory. */
function connectTo(path: string, read: (chunk: Buffer) => void): Socket {
  const directory = openSync(dirname(path), constants.O_RDONLY | constants.O_DIRECTORY)
  const socket = connect({
    path: `/proc/self/fd/${directory}/${basename(path)}`,
    onread: {
      buffer: scratch,
      callback: (bytes) => {
        read(scratch.subarray(0, bytes))
        return true
      },
    },
  })
  // connect(2) on a UNIX socket is done, or refused, before `connect` returns.
  closeSync(directory)
  return socket
}

function feed(socket: Socket, reader: EventReader, chunk: Buffer, greeting: Greeting): void {
  try {
    for (const event of reader.push(chunk)) greeting.receive(event)
    // What is not read stays with init, and only this chunk has to be held.
    if (greeting.complete && !greeting.listening) socket.pause()
  } catch (error) {
    if (!(error instanceof ProtocolError)) throw error
    socket.destroy(error)
  }
}

function endOf(socket: Socket): Promise<Error | undefined> {
  return new Promise((resolve) => {
    let failure: Error | undefined
    socket.on('error', (error) => {
      failure = error
    })
    socket.on('close', () => resolve(failure))
  })
}
