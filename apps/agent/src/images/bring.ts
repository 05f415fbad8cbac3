// bring.ts: images that this node is to start something from and does not have. They come from another node, through the
// API, blob by blob, gone on with where one broke off; where no other node can give one, from the registry that it was
// pulled from. An image is brought once, however many wait for it, and as long as any of them does.
import { setTimeout as pause } from 'node:timers/promises'
import { Failure, Fault, type HeldImage, type ImageSources } from '@berth/contracts'
import { FairTurns, OneTurn } from '@berth/domain'
import { type Descriptor, MAX_MANIFEST_BYTES, mediaTypes, parseDocument } from '@berth/oci'
import type { Logger } from '@berth/telemetry'
import { digestOfBytes, type Part } from './content.js'
import { abortable } from './exclusive.js'
import { type Images, nodePlatform } from './images.js'
import { Progress } from './progress.js'
import { type PullTimes, pull } from './pull.js'
import type { ManifestDescriptor } from './records.js'
import { type Patience, patience, pauseMs } from './retry.plan.js'

/** For whom an image is brought. */
export interface Need {
  /** The attempt or sandbox that starts from it, or a pass: what the API is shown. */
  readonly for: string
  /** Whose it is: a tenant, or the operator. */
  readonly owner: string
}

/** What knows where images are: the API. */
export interface Giver {
  /** @throws Fault; with `status` 404 where there is no such image for this node */
  findImage(digest: string, need: string): Promise<ImageSources>
  /** @throws as `findImage` */
  readImage(
    digest: string,
    blob: string,
    options: { readonly need: string; readonly from: number; readonly signal: AbortSignal },
  ): Promise<AsyncIterable<Uint8Array>>
}

export interface BringingOptions {
  readonly images: Images
  readonly giver: Giver
  readonly log: Logger
  readonly patience?: Patience
  /** Of pulls. */
  readonly times?: PullTimes
}

/** Images on their way at once; the others wait. Whoever's registry is slow has three of them at most. */
const AT_ONCE = { all: 6, each: Number.POSITIVE_INFINITY }
/** Sooner than the API gives a start up that does not get on (domain/sandbox-due): so it is told why. */
const WITHIN_MS = 4.5 * 60_000

interface Flight {
  readonly needs: Set<Need>
  readonly line: OneTurn
  readonly ended: AbortController
  readonly brought: Promise<HeldImage>
}

export class Bringing {
  readonly #options: BringingOptions
  readonly #flights = new Map<string, Flight>()
  readonly #turns = new FairTurns(AT_ONCE)

  constructor(options: BringingOptions) {
    this.#options = options
  }

  /**
   * Has an image here; one that is here costs nothing.
   * @throws Failure image_unavailable saying why, or the signal's reason
   */
  async ensure(digest: string, need: Need, signal: AbortSignal): Promise<HeldImage> {
    const { images } = this.#options
    if (images.has(digest)) return (await images.get(digest)).image
    signal.throwIfAborted()
    const late = AbortSignal.timeout(WITHIN_MS)
    const flight = this.#flights.get(digest) ?? this.#begin(digest)
    flight.needs.add(need)
    flight.line.stand(need.owner)
    try {
      return await abortable(flight.brought, AbortSignal.any([signal, late]))
    } catch (error) {
      signal.throwIfAborted()
      throw unavailable(digest, late.aborted ? `it did not come within ${WITHIN_MS / 60_000} minutes` : whyOf(error))
    } finally {
      flight.needs.delete(need)
      if (flight.needs.size === 0) flight.ended.abort(new Failure('unavailable', 'nobody waits for it any more'))
    }
  }

  #begin(digest: string): Flight {
    const ended = new AbortController()
    const needs = new Set<Need>()
    const line = new OneTurn(this.#turns, ended.signal)
    const brought = this.#bring(digest, line, needs, ended.signal)
    // Whoever waits is told; all of them may have left.
    brought.catch(() => undefined)
    const flight = { needs, line, ended, brought }
    this.#flights.set(digest, flight)
    // One that is being ended must not be joined.
    const over = () => {
      if (this.#flights.get(digest) === flight) this.#flights.delete(digest)
    }
    ended.signal.addEventListener('abort', over, { once: true })
    void brought.then(over, over)
    return flight
  }

  async #bring(digest: string, line: OneTurn, needs: ReadonlySet<Need>, signal: AbortSignal): Promise<HeldImage> {
    const { log } = this.#options
    // Whoever asks stands in line, and adds its need, right after this was called.
    const give = await line.turn
    try {
      const began = performance.now()
      const image = await this.#fetch(digest, needs, signal)
      const layers = image.layers.length
      log.info({ image: digest, layers, ms: Math.round(performance.now() - began) }, 'image.brought')
      return image
    } catch (err) {
      if (!signal.aborted) log.warn({ image: digest, err }, 'image.not_brought')
      throw err
    } finally {
      give()
    }
  }

  async #fetch(digest: string, needs: ReadonlySet<Need>, signal: AbortSignal): Promise<HeldImage> {
    const { giver, images, log } = this.#options
    const trying = this.#trying(needs, signal)
    const sources = await trying((need) => giver.findImage(digest, need.for))
    if (sources.nodes) {
      try {
        return await this.#fromNodes(digest, trying, needs, signal)
      } catch (err) {
        if (sources.registry === null || signal.aborted) throw err
        log.warn({ image: digest, err }, 'image.not_from_nodes')
      }
    }
    if (sources.registry === null)
      throw new Failure('image_not_found', 'no other node has it, and it came from no registry')
    const image = await pull(images, sources.registry, signal, new Progress(), this.#options.times)
    if (image.digest === digest) return image
    throw new Failure('image_invalid', `${sources.registry.reference} is image ${image.digest} now`)
  }

  async #fromNodes(digest: string, trying: Trying, needs: ReadonlySet<Need>, signal: AbortSignal): Promise<HeldImage> {
    const { images, giver } = this.#options
    const manifest = await trying(async (need) => {
      const body = await giver.readImage(digest, 'manifest', { need: need.for, from: 0, signal })
      return whole(body, MAX_MANIFEST_BYTES)
    })
    const descriptor = await this.#manifest(digest, manifest)
    return images.compose(descriptor, {
      platform: nodePlatform,
      signal,
      obtain: (blob) => this.#obtain(digest, blob, trying, needs, signal),
    })
  }

  /** All that is in an image follows from its digest; what does not fit is nobody's image. */
  async #manifest(digest: string, bytes: Buffer): Promise<ManifestDescriptor> {
    const document = parseDocument(bytes)
    if (document.kind === 'index' || document.manifest.config.digest !== digest)
      throw new Failure('image_invalid', `the manifest that came is not of image ${digest}`)
    await this.#options.images.content.add(bytes)
    const mediaType = document.manifest.mediaType ?? mediaTypes.manifest
    return { mediaType, digest: digestOfBytes(bytes), size: bytes.length }
  }

  /**
   * Has a blob in the store. One that is here is fetched again unless everybody may have it, or it came this way for the
   * same owner: what a manifest names, whoever made it need not have.
   */
  #obtain(
    image: string,
    { digest, size }: Descriptor,
    trying: Trying,
    needs: ReadonlySet<Need>,
    signal: AbortSignal,
  ): Promise<void> {
    const { content } = this.#options.images
    const owner = ownerOf(needs)
    const giver = `nodes for ${owner}`
    return content.exclusively(`${digest} ${giver}`, signal, async () => {
      const found = await content.find(digest)
      if (found && (found.isPublic || (await content.known(digest)).from.includes(giver))) {
        if (found.bytes === size) return
        throw new Failure('image_invalid', `the blob ${digest} has ${found.bytes} bytes, and ${size} are promised`)
      }
      const part = await content.part(digest, giver)
      try {
        await this.#receive(image, { digest, size }, part, trying, signal)
      } finally {
        await part.close()
      }
      await content.learn(digest, { from: [giver] })
    })
  }

  async #receive(
    image: string,
    { digest, size }: { readonly digest: string; readonly size: number },
    part: Part,
    trying: Trying,
    signal: AbortSignal,
  ): Promise<void> {
    if (part.bytes > size) await part.restart()
    // Of another time: perhaps before a power failure, which may have taken what was not synced.
    let isMixed = part.bytes > 0
    await trying(
      async (need) => {
        const from = part.bytes
        if (from < size || size === 0) {
          for await (const chunk of await this.#options.giver.readImage(image, digest, {
            need: need.for,
            from,
            signal,
          })) {
            if (part.bytes + chunk.length > size)
              throw new Failure('image_invalid', `the blob ${digest} has more than ${size} bytes`)
            await part.append(chunk)
          }
        }
        const ended = `it ended after ${part.bytes} of ${size} bytes`
        if (part.bytes < size) throw new Fault(`read ${digest}`, { cause: ended })
        if (await part.finish(digest)) return
        if (!isMixed) throw new Failure('image_invalid', `the bytes of ${digest} have another digest`)
        isMixed = false
        throw new Fault(`read ${digest}`, { cause: 'what was there of it did not fit' })
      },
      () => part.bytes,
    )
  }

  /** Work that is tried again after a pause while it may help, the longer the more often it failed without progress. */
  #trying(needs: ReadonlySet<Need>, signal: AbortSignal): Trying {
    return async (work, progress = () => 0) => {
      let [failed, most] = [0, progress()]
      for (;;) {
        const need = needOf(needs)
        try {
          return await work(need)
        } catch (error) {
          signal.throwIfAborted()
          if (!(error instanceof Fault)) throw error
          // It may have been refused because whoever it was asked for has left; others have not.
          if (isFinal(error) && !needs.has(need)) continue
          if (isFinal(error)) throw new Failure('image_not_found', 'no other node has it, or it is not needed any more')
          failed = progress() > most ? 1 : failed + 1
          most = Math.max(most, progress())
          const ms = pauseMs(failed, undefined, Math.random(), this.#options.patience ?? patience)
          if (ms === undefined) throw error
          await pause(ms, undefined, { signal })
        }
      }
    }
  }
}

type Trying = <T>(work: (need: Need) => Promise<T>, progress?: () => number) => Promise<T>

/** Of those that still wait. @throws Fault where all have left */
function needOf(needs: ReadonlySet<Need>): Need {
  const [need] = needs
  if (need) return need
  throw new Failure('unavailable', 'nobody waits for it any more')
}

const ownerOf = (needs: ReadonlySet<Need>): string => needOf(needs).owner

/** What the API refuses for good: the node may not have the image, or nobody does. */
const isFinal = (error: Fault): boolean => 'status' in error && error.status === 404

/** For whoever started it: of faults, which name what is inside of the installation, only the log tells. */
const whyOf = (error: unknown): string =>
  error instanceof Failure ? error.message : 'what has it did not give it; the node has logged why'

const unavailable = (digest: string, why: string) =>
  new Failure('image_unavailable', `image ${digest} could not be brought to the node: ${why}`)

async function whole(body: AsyncIterable<Uint8Array>, most: number): Promise<Buffer> {
  const chunks: Uint8Array[] = []
  let length = 0
  for await (const chunk of body) {
    chunks.push(chunk)
    length += chunk.length
    if (length > most) throw new Failure('image_invalid', `a manifest of more than ${most} bytes`)
  }
  return Buffer.concat(chunks)
}
