// pipe-sockets.ts: one WebSocket into another, both ways, message by message.
//
// What the receiver has not taken yet is bounded: beyond HIGH_WATER the sender's connection is not read any more until
// less than half of that waits, so a slow reader slows its writer, through TCP, and memory stays flat.
import { closeCodes, closeOf, closeSocket, type WebSocket } from '@berth/node-rpc'

/** What may wait to be sent in one direction, in bytes, beside the message that went over it. */
const HIGH_WATER = 512 * 1024
/** How often a client is asked for a sign of life, in milliseconds; twice in vain, and it is cut off. */
const PING_MS = 20_000
/** How long the other end may take to answer a close, in milliseconds. */
const CLOSE_GRACE_MS = 2000

export interface PipeOptions {
  /** Ends both; the client is told by the close code of the reason. */
  readonly signal: AbortSignal
  readonly pingMs?: number
}

/**
 * Copies until either end closes, passing its close code on, or `signal` ends both. A node that vanishes closes its
 * client with 1001: it may come again.
 * @param client accepted, paused
 * @param node opened, paused
 * @returns resolves when both are closed; never rejects
 */
export async function pipeSockets(client: WebSocket, node: WebSocket, options: PipeOptions): Promise<void> {
  const { signal } = options
  const stopPings = keepAlive(client, options.pingMs ?? PING_MS)
  const end = () => {
    const { code, reason } = closeOf(signal.reason)
    close(client, code, reason)
    close(node, closeCodes.goingAway, 'the client was cut off')
  }
  signal.addEventListener('abort', end, { once: true })
  const closed = Promise.all([pass(client, node, closeCodes.goingAway), pass(node, client, closeCodes.goingAway)])
  if (signal.aborted) end()
  client.resume()
  node.resume()
  await closed
  signal.removeEventListener('abort', end)
  stopPings()
}

/** Copies one way. @returns resolves when `from` is closed, and `to` was told */
function pass(from: WebSocket, to: WebSocket, codeWithout: number): Promise<void> {
  const sent = () => {
    if (from.isPaused && to.bufferedAmount <= HIGH_WATER / 2) from.resume()
  }
  from.on('message', (data, binary) => {
    // Frames that come after the other end began to close have nowhere to go.
    if (to.readyState !== to.OPEN) return
    to.send(data, { binary }, sent)
    if (to.bufferedAmount > HIGH_WATER) from.pause()
  })
  return new Promise((resolve) => {
    const over = (code: number, reason: Buffer) => {
      // 1005 and 1006 are no codes of a frame: closed without one, and lost.
      if (code === 1005) close(to, closeCodes.ended, '')
      else if (code === 1006) close(to, codeWithout, 'the other end is gone')
      else close(to, code, reason.toString())
      resolve()
    }
    if (from.readyState === from.CLOSED) over(1006, Buffer.alloc(0))
    else from.once('close', over)
  })
}

/** Closes in time: an end that does not answer, or does not read, is cut off. */
function close(socket: WebSocket, code: number, reason: string): void {
  if (socket.readyState === socket.CLOSED) return
  // Paused, it would not read the answer.
  socket.resume()
  if (socket.readyState === socket.OPEN) closeSocket(socket, code, reason)
  const cut = setTimeout(() => socket.terminate(), CLOSE_GRACE_MS)
  socket.once('close', () => clearTimeout(cut))
}

/** Terminates a peer that gives no sign of life: no message, no pong, and nothing that it takes from us. */
function keepAlive(socket: WebSocket, everyMs: number): () => void {
  let alive = true
  let waiting = 0
  const note = () => {
    alive = true
  }
  socket.on('message', note).on('pong', note).on('ping', note)
  const timer = setInterval(() => {
    // A socket that we do not read, because the other end is slow, cannot show anything.
    const progress = socket.bufferedAmount < waiting || socket.isPaused
    waiting = socket.bufferedAmount
    if (!alive && !progress) {
      socket.terminate()
      return
    }
    alive = false
    if (socket.readyState === socket.OPEN) socket.ping()
  }, everyMs)
  return () => clearInterval(timer)
}
