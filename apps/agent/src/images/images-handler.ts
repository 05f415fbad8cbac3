// images-handler.ts: what the API may ask about images; see image-node.ts of libs/contracts. The request is the
// operation: when its caller goes it stops.
import { createReadStream } from 'node:fs'
import {
  BringImage,
  Failure,
  Fault,
  type HeldImage,
  type ImageContents,
  ImageDigest,
  type ImageStep,
  ImportConfig,
  InvalidRequest,
  PullImage,
  PushImage,
} from '@berth/contracts'
import type { NodeHandler, RestCall } from '@berth/node-rpc'
import type { Logger } from '@berth/telemetry'
import { z } from 'zod'
import type { Bringing } from './bring.js'
import { Exclusive } from './exclusive.js'
import type { Images } from './images.js'
import { importRoot } from './import.js'
import { load } from './load.js'
import { type Progress, steps } from './progress.js'
import { pull } from './pull.js'
import { push } from './push.js'
import { parseSave, save } from './save.js'

export interface ImageParts {
  readonly images: Images
  readonly bringing: Bringing
  /** Directories of layers that sandboxes are on. */
  readonly inUse: () => ReadonlySet<string>
  /** Reads what is installed in layers, topmost first. */
  readonly scan: (
    layers: readonly { readonly diffId: string; readonly path: string }[],
    signal: AbortSignal,
  ) => Promise<ImageContents>
  readonly log: Logger
}

/** An image is read one after the other: it takes memory, and most of the disk's time. */
const scanning = new Exclusive()
const SCAN_MS = 120_000

type Answer = (call: RestCall, parts: ImageParts) => Promise<void>

const answers: ReadonlyMap<string, Answer> = new Map<string, Answer>([
  [
    'POST pull',
    async (call, parts) => {
      const request = await call.json(PullImage)
      await told(call, parts, async (progress) => alone(await pull(parts.images, request, call.signal, progress)))
    },
  ],
  [
    'POST push',
    async (call, parts) => {
      const request = await call.json(PushImage)
      await told(call, parts, async (progress) => alone(await push(parts.images, request, call.signal, progress)))
    },
  ],
  [
    'POST load',
    async (call, parts) => {
      const limits = queryOf(call, z.object({ maxBytes: MaxBytes, quotaBytes: MaxBytes }))
      await told(call, parts, () => load(parts.images, call.body, limits, call.signal))
    },
  ],
  [
    'POST import',
    async (call, parts) => {
      const { config, maxBytes: most } = queryOf(call, z.object({ maxBytes: MaxBytes, config: Config }))
      await told(call, parts, async () => alone(await importRoot(parts.images, call.body, config, most, call.signal)))
    },
  ],
  [
    'GET archive',
    async (call, { images }) => {
      const archive = await save(images, parseSave(call.query), call.signal)
      await call.bytes(archive, { headers: { 'content-type': 'application/x-tar' } })
    },
  ],
])

export function imagesHandler(parts: ImageParts): NodeHandler {
  return {
    async request(call) {
      const [, word, ...more] = call.rest
      const digest = ImageDigest.safeParse(word)
      const answer = digest.success
        ? ofImage([call.method, ...more].join(' '), digest.data)
        : answers.get([call.method, word, ...more].join(' '))
      if (!answer) throw new Failure('route_not_found', 'no such request about images')
      await answer(call, parts)
    },
  }
}

function ofImage(asked: string, digest: ImageDigest): Answer | undefined {
  const blob = /^GET blobs (\S+)$/.exec(asked)?.[1]
  if (blob !== undefined) return (call, { images }) => giveBlob(call, images, digest, blob)
  switch (asked) {
    case 'GET':
      return async (call, { images }) => call.answer(200, (await images.get(digest)).image)
    case 'GET packages':
      return async (call, parts) => call.answer(200, await contents(parts, digest, call.signal))
    case 'POST bring':
      return async (call, parts) => {
        const { pass, owner } = await call.json(BringImage)
        const need = { for: pass, owner }
        await told(call, parts, async () => alone(await parts.bringing.ensure(digest, need, call.signal)))
      }
    default:
      return undefined
  }
}

/** A blob of an image, or its manifest, from an offset on. No other blob is given, though it may be here. */
async function giveBlob(call: RestCall, images: Images, digest: string, blob: string): Promise<void> {
  const { from } = queryOf(call, z.object({ from: z.coerce.number().int().min(0).default(0) }))
  const { manifest, image } = await images.get(digest)
  const wanted = blob === 'manifest' ? manifest.digest : blob
  const has = [manifest.digest, image.digest, ...image.layers.map((layer) => layer.digest)]
  if (!has.includes(wanted)) throw new Failure('image_not_found', `image ${digest} has no blob ${wanted}`)
  await images.needing([wanted], async () => {
    const found = await images.content.find(wanted)
    if (!found) throw new Fault(`give ${wanted} of ${digest}`, { cause: 'it is missing' })
    const headers = { 'content-length': Math.max(0, found.bytes - from) }
    await call.bytes(createReadStream(found.path, { start: from, highWaterMark: 256 * 1024 }), { headers })
  })
}

/** What is installed in an image, whose layers stay while they are read. @throws scan_unavailable after two minutes */
async function contents(
  { images, scan }: ImageParts,
  digest: ImageDigest,
  caller: AbortSignal,
): Promise<ImageContents> {
  const { image } = await images.get(digest)
  const layers = image.layers.map(({ diffId }) => ({ diffId, path: images.layers.path(diffId) })).reverse()
  const diffIds = layers.map(({ diffId }) => diffId)
  return images.needing(diffIds, () =>
    scanning.run('scan', caller, async () => {
      const tooLong = AbortSignal.timeout(SCAN_MS)
      try {
        return await scan(layers, AbortSignal.any([caller, tooLong]))
      } catch (error) {
        if (!tooLong.aborted || caller.aborted) throw error
        throw new Failure('scan_unavailable', `image ${digest} could not be read within ${SCAN_MS / 1000} s`)
      }
    }),
  )
}

/** Answers with steps. What work that failed has left goes at once, but for blobs, which the next try finds. */
export async function told(
  call: RestCall,
  parts: ImageParts,
  work: (progress: Progress) => Promise<Done>,
): Promise<void> {
  let worked = false
  const whole = async (progress: Progress) => {
    const done = await work(progress)
    worked = true
    return done
  }
  try {
    await call.lines(steps(whole, call.signal, parts.log))
  } finally {
    if (!worked) await collect(parts)
  }
}

/** Never rejects: what is not collected now is later. */
async function collect({ images, inUse, log }: ImageParts): Promise<void> {
  await images.collect(inUse()).catch((err: unknown) => log.error({ err }, 'images.collect_failed'))
}

type Done = Extract<ImageStep, { step: 'done' }>['images']

const alone = (image: HeldImage): Done => [{ image, references: [] }]

const MaxBytes = z.coerce.number().int().min(0).optional()
const Config = z
  .string()
  .max(64 * 1024)
  .default('{}')
  .transform((text, context) => {
    const parsed = ImportConfig.safeParse(parseJson(text))
    if (parsed.success) return parsed.data
    context.addIssue({ code: 'custom', message: parsed.error.issues[0]?.message ?? 'must be JSON' })
    return z.NEVER
  })

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return undefined // refused by the schema
  }
}

function queryOf<S extends z.ZodType>(call: RestCall, schema: S): z.output<S> {
  const parsed = schema.safeParse(Object.fromEntries(call.query))
  if (parsed.success) return parsed.data
  throw new InvalidRequest(
    parsed.error.issues.map(({ path, message }) => ({ field: path.map(String).join('.'), message })),
  )
}
