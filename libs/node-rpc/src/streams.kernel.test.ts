// Both ends against each other, over TLS on the loopback.
import { once } from 'node:events'
import { mkdtemp, rm, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { PassThrough, Readable } from 'node:stream'
import { setTimeout as delay } from 'node:timers/promises'
import { connect } from 'node:tls'
import { AttemptId, Failure, mintId, NodeId, SandboxId } from '@berth/contracts'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from '@jest/globals'
import { generate } from 'selfsigned'
import { heldBytes } from '../../../test/support/memory.js'
import type { OutputCall } from './call.js'
import { type Certificate, nodeCertificate } from './certificate.js'
import { openStreams, type StreamNode, type Streams } from './client.js'
import { type SandboxHandler, type StreamServerHandle, serveStreams } from './server.js'
import { newGrantKeys, signGrant } from './token.js'
import { type OutputRequest, outputPath, type SandboxAction } from './wire.js'

const MiB = 1024 ** 2
const nodeId = NodeId.parse(mintId('node', 1, Buffer.alloc(10)))
const attemptId = AttemptId.parse(mintId('attempt', 1, Buffer.alloc(10)))
const sandboxId = SandboxId.parse(mintId('sandbox', 1, Buffer.alloc(10)))
const keys = newGrantKeys()
const wanted = { attemptId, stream: 'stdout' as const, since: 0, follow: false }

const logged: string[] = []
const note = (_fields: object, event: string) => void logged.push(event)
const log = { info: note, warn: note, error: note }

async function until(what: string, holds: () => boolean, limitMs = 10_000): Promise<void> {
  const end = performance.now() + limitMs
  while (!holds()) {
    if (performance.now() > end) throw new Error(`not within ${limitMs} ms: ${what}`)
    await delay(10)
  }
}

let dir: string
let identity: Certificate
let server: StreamServerHandle
let streams: Streams
let output: (call: OutputCall) => Promise<void>
let handlers: Partial<Record<SandboxAction, SandboxHandler>>
let grantKey: string | undefined

const serve = (certificate: Certificate, port = 0) =>
  serveStreams({
    ...certificate,
    host: '127.0.0.1',
    port,
    nodeId,
    grantKey: () => grantKey,
    output: (call) => output(call),
    sandbox: handlers,
    log,
  })
const node = (): StreamNode => ({ id: nodeId, url: server.url, certificate: identity.certificate })
const grant = (changed: object = {}) =>
  signGrant(keys.privateKey, {
    ...{ nodeId, action: 'output' as const, subject: attemptId, expiresAt: new Date(Date.now() + 60_000) },
    ...changed,
  })
interface Opening extends Partial<OutputRequest> {
  readonly node?: StreamNode
  readonly grant?: string
  readonly signal?: AbortSignal
}
const open = async (changed: Opening = {}): Promise<Readable> => {
  const { signal = new AbortController().signal, ...request } = changed
  const path = outputPath({ ...wanted, ...request })
  const opening = { node: changed.node ?? node(), grant: changed.grant ?? (await grant()) }
  return (await streams.call({ ...opening, method: 'GET', path, signal })).body
}
const sends = (make: (call: OutputCall) => Readable) => (call: OutputCall) => call.bytes(make(call))
const textOf = async (bytes: Readable) => Buffer.concat(await bytes.toArray()).toString()

beforeAll(async () => {
  dir = await mkdtemp(join(tmpdir(), 'berth-rpc-'))
  identity = await nodeCertificate(join(dir, 'node'))
})
afterAll(() => rm(dir, { recursive: true }))
beforeEach(async () => {
  logged.length = 0
  grantKey = keys.publicKey
  output = sends(() => Readable.from([Buffer.from('hello')]))
  handlers = {}
  server = await serve(identity)
  streams = openStreams()
})
afterEach(async () => {
  await streams.close()
  await server.close()
})

describe('a certificate', () => {
  test('is made once, for root only, and made anew when damaged', async () => {
    const home = join(dir, 'certificate')
    const first = await nodeCertificate(home)
    expect(await nodeCertificate(home)).toEqual(first)
    expect((await stat(join(home, 'streams.pem'))).mode & 0o777).toBe(0o600)
    await writeFile(join(home, 'streams.pem'), first.certificate)
    const second = await nodeCertificate(home)
    expect(second.certificate).not.toBe(first.certificate)
    expect(await nodeCertificate(home)).toEqual(second)
  })
})

describe('output', () => {
  test('is asked for as given, and arrives byte for byte', async () => {
    const asked: unknown[] = []
    const bytes = Buffer.from(Array.from({ length: 300_000 }, (_, i) => (i * 31) % 256))
    output = sends(({ wanted: { attemptId, stream, since, follow } }) => {
      asked.push(attemptId, stream, since, follow)
      return Readable.from([bytes.subarray(0, 1), bytes.subarray(1, 200_000), bytes.subarray(200_000)])
    })
    const got = Buffer.concat(await (await open({ stream: 'stderr', since: 12, follow: true })).toArray())
    expect(got.equals(bytes)).toBe(true)
    expect(asked).toEqual([attemptId, 'stderr', 12, true])
  })

  test('is told at once while a job runs, before there is any', async () => {
    const live = new PassThrough()
    output = sends(() => live)
    const reader = await open({ follow: true })
    const chunks: string[] = []
    reader.on('data', (chunk: Buffer) => chunks.push(chunk.toString()))
    for (const word of ['one', 'two']) {
      live.write(word)
      await until(`${word} read`, () => chunks.at(-1) === word)
    }
    live.end()
    await once(reader, 'end')
  })

  test('that is no longer kept is told apart', async () => {
    output = async () => {
      throw new Failure('output_gone', 'nothing is kept')
    }
    await expect(open()).rejects.toMatchObject({ code: 'output_gone' })
  })

  test('of many readers at once goes over one pool', async () => {
    output = sends(({ wanted: { since } }) => Readable.from([Buffer.alloc(70_000, since)]))
    const all = await Promise.all(
      Array.from({ length: 100 }, async (_, i) => (await (await open({ since: i })).toArray()).flat()),
    )
    for (const [i, chunks] of all.entries()) expect(Buffer.concat(chunks).equals(Buffer.alloc(70_000, i))).toBe(true)
  })

  test('of a failing producer fails at the reader, and is logged', async () => {
    output = sends(() =>
      Readable.from(
        (async function* () {
          yield Buffer.from('some')
          throw new Error('disk broke')
        })(),
      ),
    )
    await expect(open().then(textOf)).rejects.toMatchObject({ code: 'node_unreachable' })
    await until('logged', () => logged.includes('streams.cut'))
  })

  test('that cannot be opened is a fault, without detail', async () => {
    output = async () => {
      throw new Error('/var/lib/secret/path')
    }
    await expect(open()).rejects.toThrow(/status 500/)
    expect(logged).toContain('streams.failed')
  })
})

describe('backpressure', () => {
  const FLOOD_BYTES = 384 * MiB

  /** Made as it is asked for. */
  function flood() {
    const made = { bytes: 0, closed: false }
    const chunk = Buffer.alloc(64 * 1024, 'x')
    const source = new Readable({
      read() {
        made.bytes += chunk.length
        this.push(made.bytes > FLOOD_BYTES ? null : chunk)
      },
    })
    source.once('close', () => {
      made.closed = true
    })
    output = sends(() => source)
    return made
  }

  test('a reader that pauses stops the producer, and memory stays flat through what follows', async () => {
    const made = flood()
    const reader = await open()
    // All buffers between the two are full when nothing was made for a while.
    let stopped = -1
    for (let quietMs = 0; quietMs < 500; quietMs += 50) {
      if (made.bytes !== stopped) quietMs = 0
      stopped = made.bytes
      await delay(50)
    }
    expect(stopped).toBeLessThan(32 * MiB)

    const before = heldBytes()
    let peak = before
    let bytes = 0
    let looked = 0
    for await (const chunk of reader) {
      bytes += chunk.length
      if (bytes - looked < 32 * MiB) continue
      looked = bytes
      peak = Math.max(peak, heldBytes())
    }
    expect(bytes).toBe(FLOOD_BYTES)
    expect(peak - before).toBeLessThan(64 * MiB)
  })

  test('a slow reader does not hold up another', async () => {
    flood()
    const slow = await open()
    output = sends(() => Readable.from([Buffer.from('quick')]))
    expect(await textOf(await open())).toBe('quick')
    slow.destroy()
  })

  test.each<[string, (reader: Readable, stop: AbortController) => void]>([
    ['destroys its stream unread', (reader) => void reader.destroy()],
    ['destroys its stream half-way', (reader) => void reader.once('data', () => reader.destroy())],
    ['aborts', (_reader, stop) => stop.abort(new Error('caller left'))],
  ])('a reader that %s ends the producer', async (_what, leave) => {
    const made = flood()
    const stop = new AbortController()
    const reader = await open({ signal: stop.signal })
    reader.on('error', () => undefined)
    leave(reader, stop)
    await until('the producer is closed', () => made.closed)
    expect(made.bytes).toBeLessThan(64 * MiB)
  })

  test('a reader that leaves a silent job ends the producer', async () => {
    const silent = new PassThrough()
    const signals: AbortSignal[] = []
    output = sends(({ signal }) => {
      signals.push(signal)
      return silent
    })
    const reader = await open({ follow: true })
    const read = textOf(reader)
    reader.destroy()
    await expect(read).rejects.toThrow()
    await until('the producer is closed', () => silent.destroyed && signals.every(({ aborted }) => aborted))
  })

  test('a reader that leaves while its output is being opened ends the producer', async () => {
    const late = new PassThrough()
    const stop = new AbortController()
    output = async (call) => {
      stop.abort(new Error('caller left'))
      await once(call.signal, 'abort')
      await call.bytes(late)
    }
    await expect(open({ signal: stop.signal })).rejects.toThrow('caller left')
    await until('the producer is closed', () => late.destroyed)
  })
})

describe('who may', () => {
  test.each<[string, () => Promise<string>]>([
    ['without a grant', async () => ''],
    ['with nonsense', async () => 'a.b.c'],
    ['with an expired grant', () => grant({ expiresAt: new Date(Date.now() - 60_000) })],
    [
      'with a grant for another attempt',
      () => grant({ subject: AttemptId.parse(mintId('attempt', 2, Buffer.alloc(10))) }),
    ],
    ['with a grant for another action', () => grant({ action: 'files' })],
    ['with a grant for another node', () => grant({ nodeId: NodeId.parse(mintId('node', 2, Buffer.alloc(10))) })],
  ])('not one %s', async (_what, token) => {
    await expect(open({ grant: await token() })).rejects.toThrow(/status 401/)
  })

  test('nobody, before the node has joined', async () => {
    grantKey = undefined
    await expect(open()).rejects.toThrow(/status 401/)
  })

  test('a node that shows another certificate is not talked to, also when the pinned one signed it', async () => {
    const other = await nodeCertificate(join(dir, 'other'))
    await expect(open({ node: { ...node(), certificate: other.certificate } })).rejects.toMatchObject({
      code: 'node_unreachable',
    })
    const signed = await generate([{ name: 'commonName', value: '127.0.0.1' }], {
      algorithm: 'sha256',
      keyType: 'ec',
      ca: { key: identity.key, cert: identity.certificate },
      extensions: [{ name: 'subjectAltName', altNames: [{ type: 7, ip: '127.0.0.1' }] }],
    })
    await server.close()
    server = await serve({ certificate: signed.cert, key: signed.private })
    await expect(open()).rejects.toMatchObject({ code: 'node_unreachable' })
  })

  test('a node that comes back with a new certificate is reached by it, and no more by the old one', async () => {
    expect(await textOf(await open())).toBe('hello')
    const port = Number(new URL(server.url).port)
    await server.close()
    const renewed = await nodeCertificate(join(dir, 'renewed'))
    server = await serve(renewed, port)
    await expect(open()).rejects.toMatchObject({ code: 'node_unreachable' })
    expect(await textOf(await open({ node: { ...node(), certificate: renewed.certificate } }))).toBe('hello')
  })
})

describe('a node that fails', () => {
  test('is told as unreachable: not there, gone on the way; and is reached again', async () => {
    const live = new PassThrough()
    output = sends(() => live)
    const reading = textOf(await open({ follow: true }))
    live.write('some')
    const port = Number(new URL(server.url).port)
    const failed = expect(reading).rejects.toMatchObject({ code: 'node_unreachable' })
    await server.close()
    await failed
    await expect(open()).rejects.toThrow(Failure)
    server = await serve(identity, port)
    output = sends(() => Readable.from([Buffer.from('back')]))
    expect(await textOf(await open())).toBe('back')
  })
})

describe('raw requests', () => {
  /** Sends text as it is, and returns all that is answered. */
  async function raw(text: string): Promise<string> {
    const socket = connect({ port: Number(new URL(server.url).port), host: '127.0.0.1', rejectUnauthorized: false })
    socket.on('error', () => undefined)
    let answer = ''
    socket.on('data', (chunk) => {
      answer += chunk
    })
    socket.write(text)
    await once(socket, 'close')
    return answer
  }
  const head = (line: string, ...headers: string[]) =>
    [`${line} HTTP/1.1`, 'Host: x', 'Connection: close', ...headers, '', ''].join('\r\n')

  test.each([
    ['404', head('GET /')],
    ['404', head(`POST ${outputPath(wanted)}`)],
    ['404', head(`GET /v1/sandboxes/${sandboxId}/execs/../files`)],
    ['401', head(`GET /v1/sandboxes/${sandboxId}/execs`)],
    ['401', head(`PUT /v1/sandboxes/${sandboxId}/files`, 'Content-Length: 1000000')],
    ['404', head('GET /v1/attempts/../../etc/passwd')],
    ['401', head(`GET ${outputPath(wanted)}`)],
    ['401', head(`GET ${outputPath(wanted)}`, 'Authorization: Basic eDp5')],
    ['431', head(`GET ${outputPath(wanted)}`, `X: ${'x'.repeat(40_000)}`)],
    ['400', 'nonsense\r\n\r\n'],
    ['400', head(`GET ${outputPath(wanted)}`, 'Content-Length: 5', 'Transfer-Encoding: chunked')],
  ])('%s', async (status, text) => expect(await raw(text)).toMatch(new RegExp(`^HTTP/1.1 ${status} `)))
})
