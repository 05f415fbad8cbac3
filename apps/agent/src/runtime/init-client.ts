// init-client.ts: one connection to a sandbox's berth-init. It greets, sends requests and hands on events; what they
// mean is main-process.ts' business. berth-init keeps all that was not acknowledged, so a connection may be dropped and
// opened again at any time without loss.

import { closeSync, constants, openSync } from 'node:fs'
import { connect, type Socket } from 'node:net'
import { basename, dirname } from 'node:path'
import { Fault } from '@berth/contracts'
import {
  EventReader,
  encodeRequest,
  type InitEvent,
  type InitRequest,
  PROTOCOL_VERSION,
  ProtocolError,
} from './init-wire.js'

export type ProcessInfo = Extract<InitEvent, { type: 'state' }>

export interface OpenOptions {
  /** For connecting and greeting together. */
  readonly timeoutMs: number
  /** Called in order, synchronously, for every event after the greeting. */
  readonly onEvent: (event: InitEvent) => void
}

/** An open, greeted connection. */
export class InitClient {
  readonly #socket: Socket
  /** What init knew when it was greeted. */
  readonly processes: readonly ProcessInfo[]
  /** Resolves when the connection is over, with the error if it was one. */
  readonly closed: Promise<Error | undefined>

  private constructor(socket: Socket, processes: readonly ProcessInfo[], closed: Promise<Error | undefined>) {
    this.#socket = socket
    this.processes = processes
    this.closed = closed
  }

  /**
   * Connects to the socket at `path` (of any length) and greets.
   * @throws Fault when nobody listens, or init does not answer in time or in another version
   */
  static async open(path: string, options: OpenOptions): Promise<InitClient> {
    const socket = connectTo(path)
    const reader = new EventReader()
    const processes: ProcessInfo[] = []
    let announced: number | undefined
    let greeted = false
    const closed = endOf(socket)
    try {
      await new Promise<void>((resolve, reject) => {
        const timer = setTimeout(() => reject(new Error('no answer in time')), options.timeoutMs)
        const settle = (error?: Error) => {
          clearTimeout(timer)
          if (error) reject(error)
          else resolve()
        }
        const receive = (event: InitEvent) => {
          if (greeted) options.onEvent(event)
          else if (event.type === 'hello' && event.version === PROTOCOL_VERSION) announced = event.processes
          else if (event.type === 'state' && announced !== undefined) processes.push(event)
          else throw new ProtocolError(`answered the greeting with ${event.type}`)
          if (greeted || processes.length !== announced) return
          greeted = true
          settle()
        }
        socket.on('data', (chunk) => feed(socket, reader, chunk, receive))
        closed.then((error) => settle(error ?? new Error('the connection was closed')))
        socket.write(encodeRequest({ type: 'hello' }))
      })
    } catch (cause) {
      socket.destroy()
      throw new Fault(`connect to ${path}`, { cause })
    }
    return new InitClient(socket, processes, closed)
  }

  /** Sends a request; on a connection that is over it is dropped, which `closed` tells. */
  send(request: InitRequest): void {
    if (!this.#socket.destroyed) this.#socket.write(encodeRequest(request))
  }

  close(): void {
    this.#socket.destroy()
  }
}

/** A socket address holds 107 bytes (unix(7)), and data directories may be deeper: go through the open directory. */
function connectTo(path: string): Socket {
  const directory = openSync(dirname(path), constants.O_RDONLY | constants.O_DIRECTORY)
  const socket = connect(`/proc/self/fd/${directory}/${basename(path)}`)
  // connect(2) on a UNIX socket is done, or refused, before `connect` returns.
  closeSync(directory)
  return socket
}

function feed(socket: Socket, reader: EventReader, chunk: Buffer, receive: (event: InitEvent) => void): void {
  try {
    for (const event of reader.push(chunk)) receive(event)
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
