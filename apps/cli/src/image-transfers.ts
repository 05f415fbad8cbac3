// image-transfers.ts: images that come and go: pull, push, load, import and save, over the API.
import { createReadStream, createWriteStream, rmSync } from 'node:fs'
import { lstat, open, rename, unlink } from 'node:fs/promises'
import type { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import {
  Fault,
  type ImageProgress,
  ignore,
  importImage,
  loadImages,
  pullImage,
  pushImage,
  saveImages,
} from '@berth/contracts'
import { INTERRUPTED, OWN_FAILURE, print, say, shortId, withClient } from './images.js'
import type { Places } from './up/config.js'

export interface PullOptions {
  readonly platform?: string
  readonly quiet: boolean
}

/**
 * Pulls an image and tells what happens.
 * @returns exit code: 0 it is there, 125 it is not
 */
export function pull(places: Places, reference: string, { platform, quiet }: PullOptions): Promise<number> {
  const body = { reference, ...(platform !== undefined && { platform }) }
  return withClient(places, (client) => told(client.values(pullImage, { body }), quiet))
}

export interface PushOptions {
  readonly to?: string
  readonly quiet: boolean
}

/** @returns exit code, as `pull` */
export function push(places: Places, image: string, { to, quiet }: PushOptions): Promise<number> {
  const body = to === undefined ? {} : { reference: to }
  return withClient(places, (client) => told(client.values(pushImage, { params: { image }, body }), quiet, to ?? image))
}

export interface LoadOptions {
  readonly input?: string
  readonly quiet: boolean
}

/** Takes in the images of an archive: a file, or standard input. @returns exit code, as `pull` */
export async function load(places: Places, { input, quiet }: LoadOptions): Promise<number> {
  const bytes = await reading(input ?? '-')
  return withClient(places, (client) => told(client.values(loadImages, {}, { bytes }), quiet))
}

export interface ImportOptions {
  readonly config?: string
  readonly quiet: boolean
}

/** Makes an image of a tar of a root: a file, or `-` for standard input. @returns exit code, as `pull` */
export async function importRoot(
  places: Places,
  file: string,
  reference: string | undefined,
  { config, quiet }: ImportOptions,
): Promise<number> {
  const bytes = await reading(file)
  const query = { ...(reference !== undefined && { reference }), ...(config !== undefined && { config }) }
  return withClient(places, (client) => told(client.values(importImage, { query }, { bytes }), quiet))
}

/** @throws Fault where it cannot be read, or is a terminal, which nobody types an archive into */
async function reading(file: string): Promise<Readable> {
  if (file !== '-') {
    const opened = await open(file).catch((cause: unknown) => {
      throw new Fault(`read ${file}`, { cause })
    })
    if (!(await opened.stat()).isDirectory()) return opened.createReadStream()
    await opened.close()
    throw new Fault(`read ${file}`, { cause: 'it is a directory' })
  }
  if (process.stdin.isTTY) throw new Fault('read an archive', { cause: 'standard input is a terminal' })
  // A stream of its own: it may be left before its end.
  return createReadStream('', { fd: 0, autoClose: false })
}

/**
 * Tells what happens until it is done; ids of the images are what is printed.
 * @param target what it is told of that was done; default: the names of the images
 * @returns exit code
 */
async function told(steps: AsyncIterable<ImageProgress>, quiet: boolean, target?: string): Promise<number> {
  const before = new Map<string, string>()
  for await (const step of steps) {
    const line = step.step === 'done' ? (target ?? lineOf(step, before)) : lineOf(step, before)
    if (line !== undefined && (!quiet || step.step === 'failed')) say(line)
    if (step.step === 'failed') return OWN_FAILURE
    if (step.step !== 'done') continue
    for (const { digest } of step.images) print(digest)
    return 0
  }
  throw new Fault('read what happens', { cause: 'the API went away in the middle' })
}

/**
 * What a step is to somebody who watches; undefined where it says nothing new.
 * @param told what was said of each layer before, which this adds to
 */
export function lineOf(step: ImageProgress, told: Map<string, string>): string | undefined {
  if (step.step === 'failed') return `berth: ${step.message}`
  if (step.step === 'retry') return step.message
  if (step.step === 'done') return step.images.flatMap(({ references }) => references).join(' ') || undefined
  if (told.get(step.digest) === step.state) return undefined
  told.set(step.digest, step.state)
  return `${shortId(step.digest)} ${step.state}`
}

export interface SaveOptions {
  readonly output?: string
  readonly format: 'docker' | 'oci'
}

/** Writes images as one tar: into a file, which is there whole or not at all, or to standard output. */
export function save(places: Places, image: readonly string[], { output, format }: SaveOptions): Promise<void> {
  if (output === undefined && process.stdout.isTTY)
    throw new Fault('save images', { cause: 'standard output is a terminal; name a file with --output' })
  return withClient(places, async (client) => {
    const archive = await client.open(saveImages, { query: { image: [...image], format } })
    try {
      if (output === undefined) await pipeline(archive, process.stdout, { end: false })
      else await intoFile(archive, output)
    } catch (cause) {
      throw new Fault(`save images as ${output ?? 'standard output'}`, { cause })
    }
  })
}

/** Half an archive looks like one, and what was there before is better. Not so of what is no file: /dev/null, or a pipe. */
async function intoFile(bytes: Readable, path: string): Promise<void> {
  const there = await lstat(path).catch((error: unknown) => ignore(error, 'ENOENT'))
  if (there && !there.isFile()) return pipeline(bytes, createWriteStream(path))
  const partial = `${path}.partial`
  const interrupted = () => {
    rmSync(partial, { force: true })
    process.exit(INTERRUPTED)
  }
  const signals = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const
  for (const signal of signals) process.once(signal, interrupted)
  try {
    await pipeline(bytes, createWriteStream(partial))
    await rename(partial, path)
  } catch (error) {
    await unlink(partial).catch((left: unknown) => ignore(left, 'ENOENT'))
    throw error
  } finally {
    for (const signal of signals) process.off(signal, interrupted)
  }
}
