import { createHash } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { copyFile, link, mkdir, readdir, readFile, rename, rm, stat, writeFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { errnoOf, Fault, ignore } from '@berth/contracts'
import { expectSuccess, run, writeAtomic } from '@berth/host'
import type { Difference } from './tree.js'

// An OCI image layout (image-spec, image-layout.md): `oci-layout`, `index.json`, and content in `blobs/sha256/<hex>`.
// Blobs are written before what names them, and `index.json` last: an index never names what is not there.

export interface Descriptor {
  readonly mediaType: string
  readonly digest: string
  readonly size: number
  readonly annotations?: Readonly<Record<string, string>>
}

export interface ImageRecipe {
  /** Names under which the image is found, e.g. `python:latest`. */
  readonly references: readonly string[]
  readonly layers: readonly Descriptor[]
  readonly env: readonly string[]
  readonly command: readonly string[]
  readonly annotations: Readonly<Record<string, string>>
  readonly createdS: number
}

const blobPath = (layout: string, digest: string) => join(layout, 'blobs', ...digest.split(':'))

/** Starts an empty layout in a directory, which is made. */
export async function createLayout(layout: string): Promise<void> {
  await mkdir(join(layout, 'blobs/sha256'), { recursive: true })
  await writeFile(join(layout, 'oci-layout'), JSON.stringify({ imageLayoutVersion: '1.0.0' }))
}

/**
 * Stores part of a root filesystem as an uncompressed tar layer, whose digest is therefore its diffID too. Layers are
 * left uncompressed because they are read once, on this machine, where gzip costs more time than its disk saves.
 */
export async function addLayer(layout: string, root: string, content: Difference): Promise<Descriptor> {
  const file = join(layout, 'layer.tar')
  const lists = `${file}.list`
  await writeFile(lists, content.changed.map((path) => `${path}\0`).join(''))
  await tar(['--create', `--file=${file}`, `--directory=${root}`, '--no-recursion', '--null', `--files-from=${lists}`])
  if (content.removed.length > 0) await addWhiteouts(layout, file, content.removed)
  const digest = await digestOf(file)
  const { size } = await stat(file)
  await rename(file, blobPath(layout, digest))
  await rm(lists)
  return { mediaType: 'application/vnd.oci.image.layer.v1.tar', digest, size }
}

/** A removed path is an empty file with the prefix `.wh.` (image-spec, layer.md). */
async function addWhiteouts(layout: string, file: string, removed: readonly string[]): Promise<void> {
  const directory = join(layout, 'whiteouts')
  const names = removed.map((path) => join(dirname(path), `.wh.${path.slice(path.lastIndexOf('/') + 1)}`))
  for (const name of names) {
    await mkdir(dirname(join(directory, name)), { recursive: true })
    await writeFile(join(directory, name), '')
  }
  await tar(['--append', `--file=${file}`, `--directory=${directory}`, '--mtime=@0', '--', ...names])
  await rm(directory, { recursive: true })
}

const tar = async (args: readonly string[]) => {
  const stable = ['--format=pax', '--pax-option=exthdr.name=%d/PaxHeaders/%f,delete=atime,delete=ctime']
  const exact = ['--numeric-owner', '--xattrs', '--xattrs-include=security.capability']
  return expectSuccess(await run(['tar', ...stable, ...exact, ...args], { timeoutMs: 300_000 }))
}

async function digestOf(file: string): Promise<string> {
  const hash = createHash('sha256')
  for await (const chunk of createReadStream(file, { highWaterMark: 1024 * 1024 })) hash.update(chunk)
  return `sha256:${hash.digest('hex')}`
}

/** Adds configuration and manifest of an image. @returns one index entry for each of its references */
export async function addImage(layout: string, image: ImageRecipe): Promise<readonly Descriptor[]> {
  const created = new Date(image.createdS * 1000).toISOString()
  const config = await addJson(layout, 'application/vnd.oci.image.config.v1+json', {
    created,
    architecture: architecture(),
    os: 'linux',
    config: { Env: image.env, Cmd: image.command, WorkingDir: '/' },
    rootfs: { type: 'layers', diff_ids: image.layers.map((layer) => layer.digest) },
    history: image.layers.map(() => ({ created, created_by: 'berth up' })),
  })
  const mediaType = 'application/vnd.oci.image.manifest.v1+json'
  const manifest = await addJson(layout, mediaType, {
    schemaVersion: 2,
    mediaType,
    config,
    layers: image.layers,
    annotations: image.annotations,
  })
  return image.references.map((reference) => ({
    ...manifest,
    annotations: { 'org.opencontainers.image.ref.name': reference, ...image.annotations },
  }))
}

async function addJson(layout: string, mediaType: string, value: unknown): Promise<Descriptor> {
  const text = JSON.stringify(value)
  const digest = `sha256:${createHash('sha256').update(text).digest('hex')}`
  await writeFile(blobPath(layout, digest), text)
  return { mediaType, digest, size: Buffer.byteLength(text) }
}

/** Node's name of this machine's processor as Go, and so OCI, names it. */
export const architecture = () => goArchitectures[process.arch] ?? process.arch
const goArchitectures: Readonly<Record<string, string>> = { x64: 'amd64', ia32: '386' }

/** Writes the index, which makes everything added so far visible. */
export async function writeIndex(layout: string, manifests: readonly Descriptor[]): Promise<void> {
  const mediaType = 'application/vnd.oci.image.index.v1+json'
  await writeAtomic(join(layout, 'index.json'), JSON.stringify({ schemaVersion: 2, mediaType, manifests }))
}

/**
 * Makes `to` hold the same images as the layout `from`, sharing blobs by hard link where both are on one filesystem.
 * A reader of `to` sees the old index or the new one, and all blobs of either.
 * @returns false when it did already, and nothing was changed
 */
export async function copyLayout(from: string, to: string): Promise<boolean> {
  const index = await readFile(join(from, 'index.json'), 'utf8')
  const current = await readFile(join(to, 'index.json'), 'utf8').catch((error: unknown) => ignore(error, 'ENOENT'))
  if (current === index) return false
  await createLayout(to)
  for (const name of await readdir(join(from, 'blobs/sha256')))
    await share(join(from, 'blobs/sha256', name), join(to, 'blobs/sha256', name))
  await writeAtomic(join(to, 'index.json'), index)
  return true
}

async function share(from: string, to: string): Promise<void> {
  try {
    await link(from, to)
  } catch (error) {
    const code = errnoOf(error)
    if (code === 'EEXIST') return
    if (code !== 'EXDEV' && code !== 'EPERM' && code !== 'EMLINK')
      throw new Fault(`link ${from} to ${to}`, { cause: error })
    await copyFile(from, `${to}.tmp`)
    await rename(`${to}.tmp`, to)
  }
}
