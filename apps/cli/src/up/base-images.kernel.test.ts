import { spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { existsSync, mkdtempSync, readdirSync, readFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { expectSuccess, readMounts, removeTree, run } from '@berth/host'
import { afterAll, beforeAll, expect, test } from '@jest/globals'
import { z } from 'zod'
import { ensureBaseImages } from './base-images.js'
import { defaultImageCache } from './config.js'

const work = mkdtempSync(join(tmpdir(), 'berth-images-'))
const imagesDir = join(work, 'images')
afterAll(() => removeTree(work))

beforeAll(async () => {
  await ensureBaseImages({ imagesDir, cacheDir: defaultImageCache(process.env), say: () => undefined })
}, 600_000)

const Descriptor = z.object({
  digest: z.string(),
  size: z.number(),
  annotations: z.record(z.string(), z.string()).optional(),
})
const Index = z.object({ manifests: z.array(Descriptor) })
const Manifest = z.object({ config: Descriptor, layers: z.array(Descriptor) })
const Config = z.object({
  rootfs: z.object({ diff_ids: z.array(z.string()) }),
  config: z.object({ Cmd: z.array(z.string()) }),
})

const blob = (digest: string) => join(imagesDir, 'blobs', digest.replace(':', '/'))
const json = <T>(path: string, schema: z.ZodType<T>) => schema.parse(JSON.parse(readFileSync(path, 'utf8')))

function imageOf(reference: string) {
  const index = json(join(imagesDir, 'index.json'), Index)
  const found = index.manifests.find(
    ({ annotations }) => annotations?.['org.opencontainers.image.ref.name'] === reference,
  )
  if (!found) throw new Error(`no ${reference} in ${JSON.stringify(index)}`)
  const manifest = json(blob(found.digest), Manifest)
  return { manifest, config: json(blob(manifest.config.digest), Config) }
}

test('every blob is what its digest says, and the layers are their diffIDs', () => {
  for (const name of readdirSync(join(imagesDir, 'blobs/sha256')))
    expect(
      createHash('sha256')
        .update(readFileSync(blob(`sha256:${name}`)))
        .digest('hex'),
    ).toBe(name)
  for (const reference of ['debian:latest', 'python:latest', 'node:latest']) {
    const { manifest, config } = imageOf(reference)
    expect(config.rootfs.diff_ids).toEqual(manifest.layers.map(({ digest }) => digest))
  }
})

test.each<[string, readonly [string, ...string[]], string]>([
  ['debian:latest', ['sh', '-c', 'echo $((6 * 7))'], '42\n'],
  ['python:latest', ['python', '-c', 'import json; print(json.dumps([6 * 7]))'], '[42]\n'],
  ['node:latest', ['node', '-e', 'console.log(6 * 7)'], '42\n'],
])('the layers of %s make a root in which %j runs', async (reference, command, output) => {
  const root = mkdtempSync(join(work, 'root-'))
  const { layers } = imageOf(reference).manifest
  for (const { digest } of layers)
    expectSuccess(await run(['tar', '-xpf', blob(digest), '-C', root, '--numeric-owner']))
  expect(readdirSync(join(root, 'dev'))).toEqual([])
  expect(expectSuccess(await run(['chroot', root, ...command])).stdout).toBe(output)
  await removeTree(root)
})

test('a second run changes nothing', async () => {
  const options = { imagesDir, cacheDir: defaultImageCache(process.env), say: () => undefined }
  expect(await ensureBaseImages(options)).toBe('unchanged')
})

test('a killed build leaves no mount and no process, is never used, and is cleared by the next', async () => {
  const [cacheDir, images] = [join(work, 'killed cache'), join(work, 'killed')]
  const module = join(import.meta.dirname, '../../dist/up/base-images.js')
  const options = `{ ...${JSON.stringify({ cacheDir, imagesDir: images })}, say: () => undefined }`
  const script = `import(${JSON.stringify(module)}).then((m) => m.ensureBaseImages(${options}))`
  const child = spawn(process.execPath, ['-e', script], { stdio: 'inherit' })
  const ended = new Promise((resolve) => child.on('exit', resolve))
  const mounted = () =>
    processes(cacheDir).some(({ mounts }) => mounts.some(({ target }) => target.endsWith('/debian/proc')))
  await until('mmdebstrap has mounted /proc in the new root', mounted)
  child.kill('SIGKILL')
  await ended
  await until('its processes are gone', () => processes(cacheDir).length === 0)
  expect(readMounts().filter(({ target }) => target.startsWith(work))).toEqual([])
  expect(existsSync(images)).toBe(false)
  const stop = new AbortController()
  const left = readdirSync(cacheDir)
  const second = ensureBaseImages({ imagesDir: images, cacheDir, say: () => stop.abort(), signal: stop.signal })
  await expect(second).rejects.toThrow(/canceled/)
  expect(left).toHaveLength(1)
  expect(readdirSync(cacheDir)).toEqual([])
}, 120_000)

/** Processes whose command line names `path`, with what they have mounted. */
const processes = (path: string) =>
  readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name) && Number(name) !== process.pid)
    .filter((name) => commandLine(name).includes(path) && !commandLine(name).startsWith(process.execPath))
    .map((name) => ({ pid: Number(name), mounts: readMounts(Number(name)) }))

function commandLine(pid: string): string {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, 'utf8')
  } catch {
    return '' // it ended meanwhile
  }
}

async function until(what: string, condition: () => boolean): Promise<void> {
  const deadline = Date.now() + 60_000
  while (!condition()) {
    if (Date.now() > deadline) throw new Error(`waited a minute in vain until ${what}`)
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
}
