// console.ts: the console's files, as apps/console builds them, read once at start. Names under assets/ hold a hash of
// the content and are kept by browsers for ever; every other path below /console is the page, which finds its way by
// itself. The page may load scripts and styles of this origin only, and nothing inline: what a tenant's sandbox writes
// can be shown in it, but never run.
import { readdirSync, readFileSync } from 'node:fs'
import { extname, join, relative } from 'node:path'
import { fileURLToPath } from 'node:url'
import { Failure, ignore, route } from '@berth/contracts'
import { Controller, StreamableFile } from '@nestjs/common'
import { z } from 'zod'
import { type Call, Route } from '../http/route.decorator.js'

const publicPage = {
  method: 'GET',
  scope: 'public',
  rate: 'none',
  tag: 'console',
  // The page's own, such as the directory that its files page shows: nothing here reads it, and none is refused.
  query: z.object({}),
  errors: ['route_not_found'],
} as const

const page = route({
  ...publicPage,
  id: 'console',
  path: '/console',
  summary: 'The console',
  reply: { 200: 'bytes' },
})
const part = route({
  ...publicPage,
  id: 'consolePart',
  path: '/console/*',
  summary: 'A page of the console, or a part of it',
  params: z.object({ '*': z.string() }),
  reply: { 200: 'bytes' },
})

export const CONSOLE_POLICY = [
  "default-src 'none'",
  "script-src 'self'",
  "style-src 'self'",
  "connect-src 'self'",
  "img-src 'self' data:",
  "base-uri 'none'",
  "form-action 'none'",
  "frame-ancestors 'none'",
  "require-trusted-types-for 'script'",
  "trusted-types 'none'",
].join('; ')

const types: Readonly<Record<string, string>> = {
  '.html': 'text/html; charset=utf-8',
  '.js': 'text/javascript; charset=utf-8',
  '.css': 'text/css; charset=utf-8',
  '.svg': 'image/svg+xml',
}

const directory = fileURLToPath(new URL('../../../console/dist', import.meta.url))
const PAGE = 'index.html'

/** Path below the directory → content; empty where the console was not built. */
function readFiles(): ReadonlyMap<string, Buffer> {
  const entries = listed()
  return new Map(
    entries
      .filter((entry) => entry.isFile())
      .map((entry) => join(entry.parentPath, entry.name))
      .map((path) => [relative(directory, path), readFileSync(path)]),
  )
}

function listed() {
  try {
    return readdirSync(directory, { recursive: true, withFileTypes: true })
  } catch (error) {
    ignore(error, 'ENOENT')
    return []
  }
}

@Controller()
export class ConsoleController {
  private readonly files = readFiles()

  @Route(page)
  async page(call: Call<typeof page>): Promise<StreamableFile> {
    return this.answer(PAGE, call)
  }

  @Route(part)
  async part(call: Call<typeof part>): Promise<StreamableFile> {
    const path = call.params['*']
    if (this.files.has(path) && path !== PAGE && types[extname(path)]) return this.answer(path, call)
    if (path.startsWith('assets/')) throw new Failure('route_not_found', 'the console has no such part')
    return this.answer(PAGE, call)
  }

  private answer(path: string, { asking, header }: Call<typeof page> | Call<typeof part>): StreamableFile {
    const plain = this.files.get(path)
    if (!plain) throw new Failure('route_not_found', 'the console is not built: npm run build')
    header('content-security-policy', CONSOLE_POLICY)
    header('cross-origin-opener-policy', 'same-origin')
    header('cache-control', path.startsWith('assets/') ? 'public, max-age=31536000, immutable' : 'no-cache')
    header('vary', 'accept-encoding')
    const coding = codingOf(asking.headers['accept-encoding'], (name) => this.files.has(`${path}.${name}`))
    if (coding) header('content-encoding', coding.name)
    const bytes = (coding && this.files.get(`${path}.${coding.extension}`)) ?? plain
    return new StreamableFile(bytes, { type: types[extname(path)] ?? 'application/octet-stream', length: bytes.length })
  }
}

const codings = [
  { name: 'br', extension: 'br' },
  { name: 'gzip', extension: 'gz' },
] as const

/** The best coding that is there and that `Accept-Encoding` (RFC 9110, 12.5.3) takes; undefined: plain. */
export function codingOf(accepted: string | readonly string[] | undefined, has: (extension: string) => boolean) {
  const taken = new Map(
    String(accepted ?? '')
      .split(',')
      .map((one) => {
        const [name = '', ...parameters] = one.split(';').map((part) => part.trim().toLowerCase())
        const weight = parameters.find((parameter) => parameter.startsWith('q='))
        return [name, weight === undefined || Number(weight.slice(2)) > 0]
      }),
  )
  return codings.find(({ name, extension }) => taken.get(name) === true && has(extension))
}
