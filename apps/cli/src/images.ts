// images.ts: `./berth images`: what the API has, over the API; and whether this machine's node holds it whole. Images that
// come and go are in image-transfers.ts.
import { spawn } from 'node:child_process'
import {
  type Arguments,
  Failure,
  Fault,
  getImage,
  getImageHistory,
  type Image,
  type ImageHistoryEntry,
  listImages,
  pruneImages,
  removeImage,
  tagImage,
} from '@berth/contracts'
import { ApiError, Client } from '@berth/sdk'
import { readCredentials } from './credentials.js'
import { ageText, sizeText } from './figures.js'
import type { Places } from './up/config.js'
import { readDaemon } from './up/daemon.js'
import { agentProgram } from './up/up.js'

/** What Berth itself got wrong, as `docker run` has it. */
export const OWN_FAILURE = 125
export const INTERRUPTED = 130
const SOME_FAILED = 1

/** Runs with a client of the API that `up` started, or that the environment names. */
export async function withClient<T>(places: Places, work: (client: Client) => Promise<T>): Promise<T> {
  const client = new Client(await readCredentials(places))
  try {
    return await work(client)
  } finally {
    await client.close()
  }
}

export const say = (line: string): void => void process.stderr.write(`${line}\n`)
export const print = (line: string): void => void process.stdout.write(`${line}\n`)

/** `sha256:` and 64 digits → the first twelve, as Docker shows them. */
export const shortId = (digest: string): string => digest.slice('sha256:'.length, 'sha256:'.length + 12)

export interface ListOptions {
  readonly label: readonly string[]
  readonly dangling: boolean
  readonly quiet: boolean
  readonly json: boolean
}

/** Prints the images that jobs and sandboxes can start from, one a line. @param reference a name, or its beginning with `*` */
export function listAll(places: Places, reference: string | undefined, options: ListOptions): Promise<void> {
  const filter = {
    ...(reference !== undefined && { reference }),
    ...(options.label.length > 0 && { label: [...options.label] }),
    ...(options.dangling && { dangling: 'true' as const }),
  }
  return withClient(places, async (client) => {
    const now = new Date()
    for (let cursor: string | undefined; ; ) {
      const query = { limit: 200, ...filter, ...(cursor !== undefined && { cursor }) }
      const page = await client.call(listImages, { query })
      for (const image of page.items) for (const line of linesOf(image, options, now)) print(line)
      if (page.nextCursor === null) return
      cursor = page.nextCursor
    }
  })
}

/** What images say of themselves may hold C1 controls, which JSON has as they are, and some terminals obey. */
export const jsonText = (value: unknown, indent?: number): string =>
  JSON.stringify(value, undefined, indent).replace(
    /[\u007f-\u009f]/g,
    (one) => `\\u${one.charCodeAt(0).toString(16).padStart(4, '0')}`,
  )

/** What is printed of an image: a line for each of its names, or one where names are not told. */
export function linesOf(image: Image, { quiet, json }: Pick<ListOptions, 'quiet' | 'json'>, now: Date): string[] {
  if (json) return [jsonText(image)]
  const id = shortId(image.digest)
  if (quiet) return [id]
  const added = image.addedAt === null ? '-' : ageText(now.getTime() - Date.parse(image.addedAt))
  const more = [id, sizeText(image.sizeBytes), image.base ? 'base' : image.visibility, added]
  const names = image.references.length === 0 ? ['<none>'] : image.references
  return names.map((name) => [name, ...more].join('\t'))
}

/** Prints images with their layers and settings, as a list in JSON. @returns exit code: 1 where one is not there */
export function inspect(places: Places, images: readonly string[]): Promise<number> {
  return withClient(places, async (client) => {
    const found: unknown[] = []
    const code = await each(images, async (image) => {
      found.push(await client.call(getImage, { params: { image } }))
    })
    print(jsonText(found, 2))
    return code
  })
}

/** Prints what made each layer, newest first. */
export function history(places: Places, image: string): Promise<void> {
  return withClient(places, async (client) => {
    const { items } = await client.call(getImageHistory, { params: { image } })
    for (const entry of items) print(historyLine(entry))
  })
}

export const historyLine = ({ digest, ageMs, sizeBytes, createdBy, comment }: ImageHistoryEntry): string =>
  [
    digest === null ? '-' : shortId(digest),
    ageMs === null ? '-' : ageText(ageMs),
    sizeText(sizeBytes),
    // A command may be of several lines, or hold what a terminal would obey.
    `${createdBy}${comment === '' ? '' : ` (${comment})`}`.replace(/[\s\p{Cc}]+/gu, ' ').trim() || '-',
  ].join('\t')

export function tag(places: Places, image: string, reference: string): Promise<void> {
  return withClient(places, async (client) => {
    await client.call(tagImage, { params: { image, reference } })
  })
}

/** Removes names, and with the last one of an image the image. @returns exit code: 1 where one could not be */
export function remove(places: Places, images: readonly string[], force: boolean): Promise<number> {
  return withClient(places, (client) =>
    each(images, async (image) => {
      const query = force ? { force: 'true' as const } : {}
      const { untagged, deleted } = await client.call(removeImage, { params: { image }, query })
      for (const name of untagged) print(`Untagged: ${name}`)
      if (deleted !== null) print(`Deleted: ${deleted}`)
    }),
  )
}

/** Does something with each, and goes on where the API refuses one. @returns exit code */
async function each(images: readonly string[], work: (image: string) => Promise<void>): Promise<number> {
  let code = 0
  for (const image of images)
    await work(image).catch((error: unknown) => {
      if (!(error instanceof ApiError || error instanceof Failure)) throw error
      say(`berth: ${error.message}`)
      code = SOME_FAILED
    })
  return code
}

export interface PruneOptions {
  readonly all: boolean
  readonly olderThan?: string
  readonly label: readonly string[]
}

/** Removes images that nothing uses. */
export function prune(places: Places, { all, olderThan, label }: PruneOptions): Promise<void> {
  const body: Arguments<typeof pruneImages>['body'] = {
    ...{ all, label: [...label] },
    ...(olderThan !== undefined && { olderThan }),
  }
  return withClient(places, async (client) => {
    const { deleted, freedBytes } = await client.call(pruneImages, { body })
    for (const digest of deleted) print(`Deleted: ${digest}`)
    say(`${sizeText(freedBytes)} freed`)
  })
}

/**
 * Checks the images of this machine's node, and prints what is wrong with them; beside an agent that runs too.
 * @returns exit code: 0 nothing is wrong, 1 something is, 125 it could not be checked
 */
export async function checkImages(places: Places): Promise<number> {
  const agent = await readDaemon({ runDir: places.run, logDir: places.logs }, 'agent')
  if (!agent) throw new Fault('check images', { cause: 'no agent was started here; "./berth up" does' })
  const child = spawn(process.execPath, [agentProgram, '--fsck'], {
    stdio: ['ignore', 'inherit', 'inherit'],
    env: { ...agent.env, PATH: process.env.PATH ?? '' },
  })
  return new Promise((done, failed) => {
    child.once('error', failed)
    child.once('close', (code) => done(code === 0 || code === 1 ? code : OWN_FAILURE))
  })
}
