// registry.fixture.ts: Debian's docker-registry in a directory of its own, images for it, and a proxy in front of it that
// goes wrong as it is told.
import { execFileSync, spawn } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { createServer, type IncomingMessage, request, type ServerResponse } from 'node:http'
import { createServer as createSocketServer } from 'node:net'
import { join } from 'node:path'
import { buffer } from 'node:stream/consumers'
import { setTimeout as delay } from 'node:timers/promises'
import { gzipSync } from 'node:zlib'
import type { RegistryAccess } from '@berth/contracts'
import { mediaTypes } from '@berth/oci'
import { pack } from 'tar-stream'

export const digestOf = (bytes: Buffer): string => `sha256:${createHash('sha256').update(bytes).digest('hex')}`

/** With a colon, which is the user's end in Basic. */
export const LOGIN = { username: 'alice', password: 's3cret:with colon' } as const
const HTPASSWD = 'alice:$2b$04$mu/Ijxkv7DltvzQQbVFnVO3cC.lRDA0U5Wlm7SKadw0T4/lz/4hT2\n'

/** Who gives the tokens of a registry; see tokens.fixture.ts. */
export interface TokenServer {
  readonly url: string
  readonly signer: { readonly service: string; readonly issuer: string; readonly rootcertbundle: string }
}

export interface TestRegistry {
  /** `127.0.0.1:<port>` */
  readonly host: string
  readonly url: string
  /** PEM of its certificate, where it has one. */
  readonly certificate: string | null
  close(): Promise<void>
}

async function freePort(): Promise<number> {
  const server = createSocketServer().listen(0, '127.0.0.1')
  await once(server, 'listening')
  const address = server.address()
  server.close()
  await once(server, 'close')
  if (typeof address !== 'object' || address === null) throw new Error('no port')
  return address.port
}

/** @param login it wants `LOGIN`; `tokens`: it wants what this server gives */
export async function startRegistry(
  options: { readonly login?: boolean; readonly tls?: boolean; readonly tokens?: TokenServer } = {},
): Promise<TestRegistry> {
  const dir = mkdtempSync('/var/tmp/berth-registry-')
  const { tokens } = options
  const port = await freePort()
  const host = `127.0.0.1:${port}`
  const tls = options.tls ? certificateIn(dir) : undefined
  writeFileSync(join(dir, 'htpasswd'), HTPASSWD)
  const config = {
    version: 0.1,
    log: { level: 'error', accesslog: { disabled: true } },
    storage: { filesystem: { rootdirectory: join(dir, 'data') } },
    http: { addr: host, relativeurls: true, ...(tls ? { tls: { certificate: tls.cert, key: tls.key } } : {}) },
    ...(options.login ? { auth: { htpasswd: { realm: 'test', path: join(dir, 'htpasswd') } } } : {}),
    ...(tokens ? { auth: { token: { realm: `${tokens.url}/token`, ...tokens.signer } } } : {}),
  }
  writeFileSync(join(dir, 'config.yml'), JSON.stringify(config)) // JSON is YAML
  const child = spawn('docker-registry', ['serve', join(dir, 'config.yml')], { stdio: 'ignore' })
  const ended = once(child, 'close')
  for (let tries = 0; !(await answers(port)); tries++) {
    if (tries > 500) throw new Error('docker-registry does not come up')
    await delay(20)
  }
  return {
    host,
    url: `${tls ? 'https' : 'http'}://${host}`,
    certificate: tls ? readFileSync(tls.cert, 'utf8') : null,
    async close() {
      child.kill('SIGKILL')
      await ended
      rmSync(dir, { recursive: true })
    },
  }
}

/** Whatever it says: that it listens. */
function answers(port: number): Promise<boolean> {
  return new Promise((done) => {
    const asked = request({ host: '127.0.0.1', port, path: '/' }, (answer) => {
      answer.resume()
      done(true)
    })
    asked.on('error', (error) => done('code' in error && error.code !== 'ECONNREFUSED'))
    asked.end()
  })
}

export function certificateIn(dir: string) {
  const [key, cert] = [join(dir, 'key.pem'), join(dir, 'cert.pem')]
  const subject = ['-subj', '/CN=registry', '-addext', 'subjectAltName=IP:127.0.0.1']
  const how = ['-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', '2']
  execFileSync('openssl', ['req', ...how, ...subject, '-keyout', key, '-out', cert], { stdio: 'ignore' })
  return { key, cert }
}

export const accessTo = (
  registry: Pick<TestRegistry, 'url' | 'certificate'>,
  more: Partial<RegistryAccess> = {},
): RegistryAccess => ({
  endpoints: [registry.url],
  certificates: registry.certificate,
  login: null,
  privateAddresses: true,
  ...more,
})

/** A tar of files by name; what is not a string or bytes makes a directory. */
export async function tarOf(files: Readonly<Record<string, string | Buffer | null>>): Promise<Buffer> {
  const archive = pack()
  for (const [name, content] of Object.entries(files))
    if (content === null) archive.entry({ name, type: 'directory', mode: 0o755, mtime: new Date(1000) })
    else archive.entry({ name, mode: 0o644, mtime: new Date(1000) }, content)
  archive.finalize()
  return buffer(archive)
}

export interface TestImage {
  readonly config: Buffer
  readonly manifest: Buffer
  readonly mediaType: string
  readonly blobs: readonly Buffer[]
  readonly tars: readonly Buffer[]
}

export interface TestLayer {
  readonly mediaType: string
  readonly digest: string
  readonly size: number
}

/** @param change of configuration and manifest, before they are written */
export function imageOf(
  tars: readonly Buffer[],
  change: {
    readonly config?: object
    readonly manifest?: object | ((layers: readonly TestLayer[]) => object)
    readonly pack?: (tar: Buffer) => Buffer
    readonly layerType?: string
  } = {},
): TestImage {
  const packed = change.pack ?? ((tar: Buffer) => gzipSync(tar, { level: 1 }))
  const blobs = tars.map(packed)
  const config = Buffer.from(
    JSON.stringify({
      architecture: process.arch === 'arm64' ? 'arm64' : 'amd64',
      os: 'linux',
      config: { Cmd: ['/bin/sh'] },
      rootfs: { type: 'layers', diff_ids: tars.map(digestOf) },
      history: tars.map((_, i) => ({ created_by: `layer ${i}` })),
      ...change.config,
    }),
  )
  const layerType = change.layerType ?? `${mediaTypes.layer}+gzip`
  const layers = blobs.map((blob) => ({ mediaType: layerType, digest: digestOf(blob), size: blob.length }))
  const manifest = Buffer.from(
    JSON.stringify({
      schemaVersion: 2,
      mediaType: mediaTypes.manifest,
      config: { mediaType: mediaTypes.config, digest: digestOf(config), size: config.length },
      layers,
      ...(typeof change.manifest === 'function' ? change.manifest(layers) : change.manifest),
    }),
  )
  return { config, manifest, mediaType: mediaTypes.manifest, blobs, tars }
}

/** Bytes that do not compress. */
export const noise = (bytes: number): Buffer => randomBytes(bytes)

interface PublishedTo {
  readonly url: string
  /** What its own client sends. */
  readonly headers?: Readonly<Record<string, string>>
}

/** Puts an image into a registry, by the protocol and not by the product. */
export async function publish(registry: PublishedTo, repository: string, tag: string, image: TestImage): Promise<void> {
  const { headers = {} } = registry
  for (const blob of [...image.blobs, image.config]) {
    const begun = await fetch(`${registry.url}/v2/${repository}/blobs/uploads/`, { method: 'POST', headers })
    const at = new URL(begun.headers.get('location') ?? '', registry.url)
    at.searchParams.set('digest', digestOf(blob))
    const put = await fetch(at, {
      method: 'PUT',
      body: new Uint8Array(blob),
      headers: { ...headers, 'content-type': 'application/octet-stream' },
    })
    if (put.status !== 201) throw new Error(`blob: ${put.status} ${await put.text()}`)
  }
  await publishManifest(registry, repository, tag, image.manifest, image.mediaType)
}

export async function publishManifest(
  registry: PublishedTo,
  repository: string,
  tag: string,
  bytes: Buffer,
  type: string,
) {
  const url = `${registry.url}/v2/${repository}/manifests/${tag}`
  const headers = { ...registry.headers, 'content-type': type }
  const put = await fetch(url, { method: 'PUT', body: new Uint8Array(bytes), headers })
  if (put.status !== 201) throw new Error(`manifest: ${put.status} ${await put.text()}`)
}

/** What goes wrong with one request. */
export type Trouble =
  | {
      readonly kind: 'answer'
      readonly status: number
      readonly headers?: Record<string, string>
      readonly body?: Buffer
    }
  /** So many bytes of the body, then nothing: the connection is reset, ended as if all were said, or stays silent. */
  | { readonly kind: 'cut' | 'end' | 'silence'; readonly after: number }
  | { readonly kind: 'corrupt' }
  | { readonly kind: 'slow' }
  /** A byte at a time, without an end. */
  | { readonly kind: 'drip' }

export interface Asked {
  readonly method: string
  readonly path: string
  readonly headers: IncomingMessage['headers']
}

export interface FaultyProxy extends TestRegistry {
  readonly asked: Asked[]
  /** Asked for each request; undefined: it is passed on. */
  trouble: (asked: Asked) => Trouble | undefined
}

export async function startProxy(to: TestRegistry): Promise<FaultyProxy> {
  const server = createServer((incoming, response) => {
    const asked = { method: incoming.method ?? '', path: incoming.url ?? '', headers: incoming.headers }
    proxy.asked.push(asked)
    const trouble = proxy.trouble(asked)
    if (trouble?.kind === 'answer') {
      incoming.resume()
      response.writeHead(trouble.status, trouble.headers).end(trouble.body)
    } else if (trouble?.kind === 'drip') {
      const dripping = setInterval(() => response.write('x'), 20)
      response.once('close', () => clearInterval(dripping))
    } else forward(to, incoming, response, trouble)
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const address = server.address()
  const host = `127.0.0.1:${typeof address === 'object' && address ? address.port : 0}`
  const proxy: FaultyProxy = {
    host,
    url: `http://${host}`,
    certificate: null,
    asked: [],
    trouble: () => undefined,
    async close() {
      server.closeAllConnections()
      server.close()
      await once(server, 'close')
    },
  }
  return proxy
}

function forward(
  to: TestRegistry,
  incoming: IncomingMessage,
  response: ServerResponse,
  trouble: Trouble | undefined,
): void {
  const headers = { ...incoming.headers, host: to.host }
  const asked = request(`${to.url}${incoming.url}`, { method: incoming.method, headers }, async (answer) => {
    const { 'content-length': length, ...others } = answer.headers
    const head =
      trouble?.kind === 'end' ? others : { ...others, ...(length === undefined ? {} : { 'content-length': length }) }
    response.writeHead(answer.statusCode ?? 0, head)
    let sent = 0
    for await (const chunk of answer as AsyncIterable<Buffer>) {
      if (trouble?.kind === 'corrupt') chunk[0] = (chunk[0] ?? 0) ^ 1
      if (trouble?.kind === 'slow') await delay(20)
      const after = trouble && 'after' in trouble ? trouble.after : Number.POSITIVE_INFINITY
      const part = chunk.subarray(0, Math.max(0, after - sent))
      sent += part.length
      if (part.length > 0) await new Promise<void>((done) => response.write(part, () => done()))
      if (sent < after) continue
      answer.destroy()
      if (trouble?.kind === 'silence') return
      if (trouble?.kind === 'end') response.end()
      else response.socket?.resetAndDestroy()
      return
    }
    response.end()
  })
  asked.on('error', () => response.destroy())
  incoming.on('aborted', () => asked.destroy())
  incoming.pipe(asked)
}
