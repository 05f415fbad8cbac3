// base-images.ts: what bases/make.sh makes, for a tenant of a test. A finished set is kept as an archive, under a hash of all
// that it is made of, beside the base images that data directories share.
import { execFile } from 'node:child_process'
import { createHash } from 'node:crypto'
import {
  closeSync,
  createReadStream,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeSync,
} from 'node:fs'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { promisify } from 'node:util'
import { type Api, stack } from '../support/berth.js'

const bases = join(import.meta.dirname, 'bases')
const cacheDir = `${process.env.BERTH_IMAGE_CACHE || '/var/cache/berth/images'}-guide`

/** Names of the images, all of which Dockerfiles of the guide name or what their replacements mount. */
const names = [
  ...['node:18', 'node:18-alpine', 'python:3.11-slim', 'python:latest', 'python:3.11-alpine', 'alpine:3.18'],
  ...['golang:1.21-alpine', 'gcr.io/distroless/base-debian11', 'debian-slim', 'packages', 'wheels', 'npm'],
]

/** Makes the tenant have the base images of the guide. */
export async function ensureGuideImages(api: Api): Promise<void> {
  const archive = join(cacheDir, `${await recipeKey(api)}.tar`)
  if (!existsSync(archive)) return await make(api, archive)
  const loaded = await api.raw('POST', '/v1/images/load?wait=done', streamed(Readable.toWeb(createReadStream(archive))))
  if (loaded.status !== 201) throw new Error(`load: ${await loaded.text()}`)
}

async function make(api: Api, archive: string): Promise<void> {
  const env = { ...process.env, BERTH_URL: stack().url, BERTH_API_KEY: api.key, NODE_OPTIONS: '' }
  await promisify(execFile)(join(bases, 'make.sh'), { env, maxBuffer: 2 ** 26 })
  const query = names.map((name) => `image=${encodeURIComponent(name)}`).join('&')
  const saved = await api.raw('GET', `/v1/images/archive?${query}`)
  if (!saved.ok || !saved.body) throw new Error(`save: ${await saved.text()}`)
  rmSync(cacheDir, { recursive: true, force: true })
  mkdirSync(cacheDir, { recursive: true, mode: 0o700 })
  const file = openSync(`${archive}.new`, 'w', 0o600)
  for await (const chunk of saved.body) writeSync(file, chunk)
  closeSync(file)
  renameSync(`${archive}.new`, archive)
}

async function recipeKey(api: Api): Promise<string> {
  const hash = createHash('sha256')
  for (const name of ['debian', 'node']) hash.update((await api.get(`/v1/images/${name}`)).body.digest)
  const files = readdirSync(bases, { recursive: true, withFileTypes: true }).filter((entry) => entry.isFile())
  for (const file of files.map((entry) => join(entry.parentPath, entry.name)).sort())
    hash.update(JSON.stringify([file.slice(bases.length), readFileSync(file, 'utf8')]))
  return hash.digest('hex').slice(0, 32)
}

const streamed = (body: ReadableStream) => ({ body, duplex: 'half' }) as const
