// Calls and sockets, both ends against each other, over TLS on the loopback. What concerns certificates, grants and the
// streams of attempts is in streams.kernel.test.ts.
import { once } from 'node:events'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Readable, Writable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { setTimeout as delay } from 'node:timers/promises'
import { connect } from 'node:tls'
import { Failure, mintId, NodeId, SandboxId } from '@berth/contracts'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from '@jest/globals'
import { WebSocket } from 'ws'
import { z } from 'zod'
import { heldBytes } from '../../../test/support/memory.js'
import type { NodeCall } from './call.js'
import { type Certificate, nodeCertificate } from './certificate.js'
import { type CallRequest, openStreams, type Streams } from './client.js'
import { type SandboxHandler, type StreamServerHandle, serveStreams } from './server.js'
import { newGrantKeys, signGrant } from './token.js'
import { nodePath, type SandboxAction, sandboxPath } from './wire.js'

const KiB = 1024
const MiB = 1024 ** 2
const nodeId = NodeId.parse(mintId('node', 1, Buffer.alloc(10)))
const sandboxId = SandboxId.parse(mintId('sandbox', 1, Buffer.alloc(10)))
const keys = newGrantKeys()

const logged: string[] = []
const note = (_fields: object, event: string) => void logged.push(event)
const log = { info: note, warn: note, error: note }

async function until(what: string, holds: () => boolean, limitMs = 20_000): Promise<void> {
  const end = performance.now() + limitMs
  while (!holds()) {
    if (performance.now() > end) throw new Error(`not within ${limitMs} ms: ${what}`)
    await delay(10)
  }
}

/** What `value` is once it has not changed for a while: everything between the two ends is full. */
async function settled(value: () => number): Promise<number> {
  let last = -1
  for (let quietMs = 0; quietMs < 500; quietMs += 50) {
    if (value() !== last) quietMs = 0
    last = value()
    await delay(50)
  }
  return last
}

let dir: string
let identity: Certificate
let server: StreamServerHandle
let streams: Streams
let handler: SandboxHandler

const serve = (port = 0) =>
  serveStreams({
    ...identity,
    host: '127.0.0.1',
    port,
    nodeId,
    grantKey: () => keys.publicKey,
    output: async (call) => call.answer(204),
    sandbox: {
      files: {
        request: (call) => handler.request(call),
        socket: async (call, accept) => handler.socket?.(call, accept),
      },
      signal: { request: async (call) => call.answer(204) },
    },
    node: { images: { request: async (call) => call.answer(200, { rest: call.rest, query: [...call.query] }) } },
    log,
  })

async function requestOf(
  changed: Partial<CallRequest> & { readonly action?: SandboxAction } = {},
): Promise<CallRequest> {
  const { action = 'files', ...rest } = changed
  const expiresAt = new Date(Date.now() + 60_000)
  return {
    node: { id: nodeId, url: server.url, certificate: identity.certificate },
    grant: await signGrant(keys.privateKey, { nodeId, action, subject: sandboxId, expiresAt }),
    method: 'GET',
    path: sandboxPath(sandboxId, [action]),
    signal: new AbortController().signal,
    ...rest,
  }
}
const call = async (changed: Parameters<typeof requestOf>[0] = {}) => streams.call(await requestOf(changed))
const socket = async (changed: Parameters<typeof requestOf>[0] = {}) => streams.socket(await requestOf(changed))
const answers = (request: (call: NodeCall) => Promise<void>) => {
  handler = { request }
}
const textOf = async (body: Readable) => Buffer.concat(await body.toArray()).toString()

/** So many bytes, made as they are asked for. */
function source(bytes: number) {
  const made = { bytes: 0, closed: false }
  const chunk = Buffer.alloc(64 * KiB, 'x')
  const stream = new Readable({
    read() {
      made.bytes += chunk.length
      this.push(made.bytes > bytes ? null : chunk)
    },
  })
  stream.once('close', () => {
    made.closed = true
  })
  return { made, stream }
}

beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), 'berth-calls-'))
  identity = await nodeCertificate(join(dir, 'node'))
})
afterAll(() => rm(dir, { recursive: true }))
beforeEach(async () => {
  logged.length = 0
  answers(async (one) => one.answer(204))
  server = await serve()
  streams = openStreams()
})
afterEach(async () => {
  await streams.close()
  await server.close()
})

describe('a call', () => {
  test('arrives as it was made, and so does its answer', async () => {
    answers(async (one) => {
      const value = await one.json(z.object({ a: z.number() }))
      const query = Object.fromEntries(one.query)
      one.answer(201, { method: one.method, id: one.sandboxId, rest: one.rest, query, value }, { etag: '"x"' })
    })
    const path = sandboxPath(sandboxId, ['files', 'a-1', 'b'], { path: '/ä b?&\0', n: 1 })
    const answer = await call({ method: 'PUT', path, body: '{"a":1}' })
    expect(answer).toMatchObject({ status: 201, headers: { etag: '"x"', 'content-type': 'application/json' } })
    expect(JSON.parse(await textOf(answer.body))).toEqual({
      ...{ method: 'PUT', id: sandboxId, rest: ['files', 'a-1', 'b'] },
      ...{ query: { path: '/ä b?&\0', n: '1' }, value: { a: 1 } },
    })
  })

  test('for the node itself arrives with a grant for it, and with no other', async () => {
    const path = nodePath(nodeId, ['images', 'pull'], { a: 'b' })
    const expiresAt = new Date(Date.now() + 60_000)
    const grant = await signGrant(keys.privateKey, { nodeId, action: 'images', subject: nodeId, expiresAt })
    const answer = await call({ path, grant })
    expect(JSON.parse(await textOf(answer.body))).toEqual({ rest: ['images', 'pull'], query: [['a', 'b']] })
    await expect(call({ path })).rejects.toThrow('unauthenticated')
  })

  test('that a handler refuses fails with the same Failure', async () => {
    answers(async () => {
      throw new Failure('wrong_state', 'it is paused', { state: 'paused' })
    })
    await expect(call()).rejects.toEqual(new Failure('wrong_state', 'it is paused', { state: 'paused' }))
    await expect(call()).rejects.toMatchObject({ data: { state: 'paused' } })
    expect(logged).toEqual([])
  })

  test.each<[string, string, RegExp]>([
    ['nonsense', 'nonsense', /invalid_json/],
    ['another shape', '{"a":"x"}', /invalid_request/],
  ])('with %s where JSON is wanted is refused', async (_, body, code) => {
    answers(async (one) => one.answer(200, await one.json(z.object({ a: z.number() }))))
    const failed = await call({ method: 'PUT', body }).catch((error: unknown) => error)
    expect(failed instanceof Failure && failed.code).toMatch(code)
  })

  test.each<[string, () => void]>([
    ['that breaks', () => answers(async () => Promise.reject(new Error('/secret/path')))],
    ['that forgets to answer', () => answers(async () => undefined)],
  ])('to a handler %s is a fault without detail, and logged', async (_, given) => {
    given()
    await expect(call()).rejects.toThrow(/GET \/v1\/sandboxes\/\w+\/files of node \w+: status 500: internal_error/)
    await expect(call()).rejects.not.toThrow(/secret/)
    expect(logged).toContain('streams.failed')
  })

  test('of an action that the node does not know, or with a grant for another, is a fault', async () => {
    await expect(call({ action: 'terminals' })).rejects.toThrow(/404: route_not_found/)
    const { grant } = await requestOf({ action: 'signal' })
    await expect(call({ grant })).rejects.toThrow(/401: unauthenticated/)
    expect((await call({ action: 'signal', grant })).status).toBe(204)
  })

  test('may be answered late where that was asked for', async () => {
    let refused = false
    answers(async (one) => {
      while (!refused) await delay(10)
      one.answer(204)
    })
    const patient = call({ answerWithinMs: 0 })
    await expect(call({ answerWithinMs: 50 })).rejects.toMatchObject({ code: 'node_unreachable' })
    refused = true
    expect((await patient).status).toBe(204)
  })
})

describe('a body that streams', () => {
  test('may begin long after its call, which is answered all the same', async () => {
    answers((one) => one.bytes(one.body))
    const body = new Readable({ read: () => undefined })
    const answer = await call({ method: 'POST', body })
    body.push('late')
    body.push(null)
    expect(await textOf(answer.body)).toBe('late')
  })

  test('is taken at the pace of the handler, and memory stays flat through half a GiB', async () => {
    const { made, stream } = source(512 * MiB)
    let go: () => void = () => undefined
    const waits = new Promise<void>((resolve) => {
      go = resolve
    })
    let looked = 0
    let peak = 0
    answers(async (one) => {
      await waits
      let bytes = 0
      for await (const chunk of one.body) {
        bytes += chunk.length
        if (bytes - looked < 64 * MiB) continue
        looked = bytes
        peak = Math.max(peak, heldBytes())
      }
      one.answer(200, { bytes })
    })
    const answered = call({ method: 'PUT', body: stream })
    expect(await settled(() => made.bytes)).toBeLessThan(32 * MiB)
    const before = heldBytes()
    go()
    expect(JSON.parse(await textOf((await answered).body))).toEqual({ bytes: 512 * MiB })
    expect(looked).toBeGreaterThan(0)
    expect(peak - before).toBeLessThan(64 * MiB)
  })

  test('comes back while it is sent', async () => {
    const { stream } = source(64 * MiB)
    answers((one) => one.bytes(one.body, { status: 206, headers: { 'content-type': 'text/plain', 'berth-offset': 7 } }))
    const answer = await call({ method: 'POST', body: stream })
    expect(answer).toMatchObject({ status: 206, headers: { 'content-type': 'text/plain', 'berth-offset': '7' } })
    let bytes = 0
    for await (const chunk of answer.body) bytes += chunk.length
    expect(bytes).toBe(64 * MiB)
  })

  test.each<[string, (body: Readable, stop: AbortController) => void]>([
    ['vanishes', (body) => void body.destroy(new Error('connection reset'))],
    ['aborts', (_, stop) => stop.abort(new Error('caller left'))],
  ])('of a caller that %s in the middle fails at the handler, and aborts it', async (_, leave) => {
    const signals: AbortSignal[] = []
    let got = 0
    const failed = new Promise<unknown>((resolve) => {
      answers(async (one) => {
        signals.push(one.signal)
        await pipeline(
          one.body,
          new Writable({
            write: (chunk, _encoding, done) => {
              got += chunk.length
              done()
            },
          }),
        ).catch(resolve)
        throw new Failure('unavailable', 'half a body')
      })
    })
    const body = new Readable({ read: () => undefined })
    const stop = new AbortController()
    const answered = call({ method: 'PUT', body, signal: stop.signal })
    const told = expect(answered).rejects.toThrow()
    body.push(Buffer.alloc(1000))
    await until('some of it came', () => got === 1000)
    leave(body, stop)
    await told
    expect(await failed).toMatchObject({ code: 'unavailable' })
    await until('the handler is aborted', () => signals.every((signal) => signal.aborted))
    expect(got).toBe(1000)
  })

  test('may be refused in the middle: the caller learns why, and stops sending', async () => {
    const { made, stream } = source(1024 * MiB)
    answers(async (one) => {
      const full = new Writable({ write: (_chunk, _encoding, done) => done(new Failure('disk_full', 'no room')) })
      await pipeline(one.body, full)
    })
    await expect(call({ method: 'PUT', body: stream })).rejects.toMatchObject({ code: 'disk_full', message: 'no room' })
    await until('the body is closed', () => made.closed)
    expect(made.bytes).toBeLessThan(512 * MiB)
    // And the node answers the next one.
    answers(async (one) => one.answer(204))
    expect((await call()).status).toBe(204)
  })

  test('may be refused unread', async () => {
    const { made, stream } = source(1024 * MiB)
    answers(async () => Promise.reject(new Failure('path_denied', 'no')))
    await expect(call({ method: 'PUT', body: stream })).rejects.toMatchObject({ code: 'path_denied' })
    await until('the body is closed', () => made.closed)
  })
})

describe('lines', () => {
  test('arrive each as soon as it is there', async () => {
    const steps: (() => void)[] = []
    answers((one) =>
      one.lines(
        (async function* () {
          for (let i = 0; i < 3; i++) {
            yield { i }
            await new Promise<void>((resolve) => steps.push(resolve))
          }
        })(),
      ),
    )
    const { body, headers } = await call()
    expect(headers['content-type']).toBe('application/x-ndjson')
    let text = ''
    body.on('data', (chunk) => {
      text += chunk
    })
    for (let i = 0; i < 3; i++) {
      await until(`line ${i}`, () => text.endsWith(`{"i":${i}}\n`) && steps.length > i)
      steps[i]?.()
    }
    await once(body, 'end')
    expect(text).toBe('{"i":0}\n{"i":1}\n{"i":2}\n')
  })

  test('are made no faster than they are read, and no more once the reader has gone', async () => {
    let made = 0
    let left = false
    answers((one) =>
      one.lines(
        (async function* () {
          try {
            for (;;) {
              made += KiB
              yield { text: 'x'.repeat(KiB) }
            }
          } finally {
            left = true
          }
        })(),
      ),
    )
    const { body } = await call()
    expect(await settled(() => made)).toBeLessThan(32 * MiB)
    body.destroy()
    await until('the generator is left', () => left)
  })

  test('that break off fail at the reader', async () => {
    answers((one) =>
      one.lines(
        (async function* () {
          yield 1
          throw new Error('broke')
        })(),
      ),
    )
    await expect(call().then(({ body }) => textOf(body))).rejects.toMatchObject({ code: 'node_unreachable' })
    await until('logged', () => logged.includes('streams.cut'))
  })
})

describe('a node that restarts', () => {
  test('ends calls and sockets as unreachable, and is called again', async () => {
    const port = Number(new URL(server.url).port)
    handler = {
      request: (one) => one.bytes(one.body),
      socket: async (_one, accept) => void (await accept()).resume(),
    }
    const upload = new Readable({ read: () => undefined })
    const answer = await call({ method: 'POST', body: upload })
    const opened = await socket()
    const closed = once(opened, 'close')
    opened.resume()
    const read = expect(textOf(answer.body)).rejects.toMatchObject({ code: 'node_unreachable' })
    await server.close()
    await read
    expect((await closed)[0]).toBe(1001)
    await expect(call()).rejects.toMatchObject({ code: 'node_unreachable' })
    await expect(socket()).rejects.toMatchObject({ code: 'node_unreachable' })
    server = await serve(port)
    answers(async (one) => one.answer(204))
    expect((await call()).status).toBe(204)
  })
})

describe('a socket', () => {
  const echo: SandboxHandler = {
    request: async (one) => one.answer(204),
    socket: async (_one, accept) => {
      const accepted = await accept()
      accepted.on('message', (data, binary) => accepted.send(data, { binary }))
      accepted.resume()
    },
  }
  async function next(from: WebSocket): Promise<string> {
    from.resume()
    const [data, binary] = await once(from, 'message')
    return `${binary ? 'binary' : 'text'} ${data}`
  }

  test('carries text and bytes both ways, from the first message on', async () => {
    handler = {
      ...echo,
      socket: async (one, accept) => {
        const accepted = await accept()
        accepted.send(`hello ${one.rest.join('/')} ${one.query}`)
        accepted.on('message', (data, binary) => accepted.send(data, { binary }))
        accepted.resume()
      },
    }
    const opened = await socket({ path: sandboxPath(sandboxId, ['files', 'x'], { a: 1 }) })
    await delay(50)
    expect(await next(opened)).toBe('text hello files/x a=1')
    opened.send('text')
    expect(await next(opened)).toBe('text text')
    opened.send(Buffer.from('bytes'))
    expect(await next(opened)).toBe('binary bytes')
    opened.close(4321, 'enough')
    expect((await once(opened, 'close'))[0]).toBe(4321)
  })

  test('that a handler refuses fails with the same Failure, before it is open', async () => {
    handler = { ...echo, socket: () => Promise.reject(new Failure('exec_not_found', 'no such', { exec: 'x' })) }
    await expect(socket()).rejects.toEqual(new Failure('exec_not_found', 'no such', { exec: 'x' }))
  })

  test.each<[string, () => Error, number]>([
    ['gone', () => new Failure('exec_not_found', 'gone'), 4404],
    ['revoked', () => new Failure('key_revoked', 'revoked'), 4401],
    ['nonsense', () => new Failure('invalid_request', 'what?'), 4400],
    ['over', () => new Failure('unavailable', 'bye'), 1001],
    ['a bug', () => new Error('/secret'), 1011],
    ['a very long story', () => new Failure('output_gone', 'ä'.repeat(1000)), 4404],
  ])('whose handler throws later is closed for it: %s', async (_, error, code) => {
    handler = {
      ...echo,
      socket: async (_one, accept) => {
        await accept()
        throw error()
      },
    }
    const opened = await socket()
    opened.resume()
    const [got, reason] = await once(opened, 'close')
    expect(got).toBe(code)
    expect(String(reason)).not.toContain('secret')
  })

  test('without a handler, without a grant, or with one for another action is refused', async () => {
    await expect(socket({ action: 'signal' })).rejects.toThrow(/404: route_not_found/)
    handler = echo
    await expect(socket({ grant: 'a.b.c' })).rejects.toThrow(/401/)
    const { grant } = await requestOf({ action: 'signal' })
    await expect(socket({ grant })).rejects.toThrow(/401/)
  })

  test('tells its handler when the caller goes, and ends with the signal', async () => {
    const signals: AbortSignal[] = []
    handler = {
      ...echo,
      socket: async (one, accept) => {
        signals.push(one.signal)
        await echo.socket?.(one, accept)
      },
    }
    const stop = new AbortController()
    const opened = await socket({ signal: stop.signal })
    expect(signals.map((one) => one.aborted)).toEqual([false])
    const closed = once(opened, 'close')
    stop.abort()
    await closed
    await until('the handler knows', () => signals[0]?.aborted === true)
    await expect(socket({ signal: stop.signal })).rejects.toThrow()
  })

  test('closes on a message of 10 MiB, on either side', async () => {
    handler = echo
    const opened = await socket()
    opened.resume()
    opened.send(Buffer.alloc(10 * MiB))
    expect((await once(opened, 'close'))[0]).toBe(1009)

    handler = {
      ...echo,
      socket: async (_one, accept) => {
        const accepted = await accept()
        accepted.resume()
        accepted.send(Buffer.alloc(10 * MiB))
      },
    }
    const other = await socket()
    other.resume()
    await expect(once(other, 'close')).rejects.toThrow('Max payload size exceeded')
    // The largest that is allowed goes through.
    handler = echo
    const third = await socket()
    third.send(Buffer.alloc(MiB))
    expect(await next(third)).toHaveLength('binary '.length + MiB)
    third.terminate()
  })

  async function raw(...parts: (string | Buffer)[]): Promise<string> {
    const connection = connect({ port: Number(new URL(server.url).port), host: '127.0.0.1', rejectUnauthorized: false })
    connection.on('error', () => undefined)
    let answer = ''
    connection.on('data', (chunk) => {
      answer += chunk.toString('latin1')
    })
    for (const part of parts) connection.write(part)
    await once(connection, 'close')
    return answer
  }
  const head = async (...lines: string[]) => {
    const { grant, path } = await requestOf()
    return [
      `GET ${path} HTTP/1.1`,
      'Host: x',
      'Connection: Upgrade',
      `Authorization: Bearer ${grant}`,
      ...lines,
      '',
      '',
    ].join('\r\n')
  }
  const key = `Sec-WebSocket-Key: ${Buffer.alloc(16).toString('base64')}`

  test.each([
    ['another protocol', ['Upgrade: h2c', key, 'Sec-WebSocket-Version: 13']],
    ['no key', ['Upgrade: websocket', 'Sec-WebSocket-Version: 13']],
    ['a short key', ['Upgrade: websocket', 'Sec-WebSocket-Key: eA==', 'Sec-WebSocket-Version: 13']],
    ['no version', ['Upgrade: websocket', key]],
    ['an old version', ['Upgrade: websocket', key, 'Sec-WebSocket-Version: 8']],
  ])('is not begun with %s', async (_, lines) => {
    handler = echo
    expect(await raw(await head(...lines))).toMatch(/^HTTP\/1.1 400 /)
  })

  test('is closed on garbage, and the node lives on', async () => {
    handler = echo
    const begin = await head('Upgrade: websocket', key, 'Sec-WebSocket-Version: 13')
    const answer = await raw(begin, Buffer.alloc(1000, 0xff))
    expect(answer).toMatch(/^HTTP\/1.1 101 /)
    expect(answer).toContain('\x03\xea') // 1002
    expect((await call()).status).toBe(204)
  })
})
