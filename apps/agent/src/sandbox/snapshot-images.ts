// snapshot-images.ts: what comes of a sandbox's files: an image (commit), a tar (export). A commit copies the writable layer,
// which costs the same whatever is in it, while nothing in the sandbox runs, and packs the copy at its leisure: the sandbox
// stands still for milliseconds, and what it costs besides is by what the sandbox has changed. A copy carries a name of its
// own in the pool; one that a killed agent left is removed by the next as any other layer that nobody knows. Packing, and
// unpacking what was packed, are errands of the tenant: its memory and its CPU.
import { existsSync, lstatSync } from 'node:fs'
import { join } from 'node:path'
import type { Readable } from 'node:stream'
import { Failure, type HeldImage, type ImageLayer, type NodeCommit, type TenantId } from '@berth/contracts'
import { FairTurns } from '@berth/domain'
import { committedConfig, EMPTY_DIFF_ID, MAX_CONFIG_BYTES } from '@berth/oci'
import type { Logger } from '@berth/telemetry'
import { withRoom } from '../images/content.js'
import type { Images } from '../images/images.js'
import { addLayer } from '../images/ingest.js'
import { packUpper } from '../images/pack.js'
import { Progress } from '../images/progress.js'
import type { Copies } from './copies.js'
import { asErrand, beginErrand, endErrand } from './errand.js'
import type { LiveSandbox } from './live.js'
import type { Residents } from './residents.js'
import type { RunnableImage } from './sandbox.js'
import { findEtc, mountPoints, placedFiles, type Workshop } from './steps.js'

export interface SnapshotParts {
  readonly residents: Pick<Residents, 'find' | 'still'>
  readonly images: Images
  readonly copies: Pick<Copies, 'take' | 'drop'>
  readonly shop: Pick<Workshop, 'cgroups' | 'tenants'>
  readonly log: Logger
}

/** Layers that are packed at once: each takes what it gets of disk and CPU. One tenant has two of them at most. */
const COMMITS_AT_ONCE = { all: 3, each: Number.POSITIVE_INFINITY }
/** Exports of one tenant: each has a process on the node, for as long as its reader takes. */
const EXPORTS_OF_TENANT = 4

export class SnapshotImages {
  readonly #parts: SnapshotParts
  readonly #commits = new FairTurns(COMMITS_AT_ONCE)
  readonly #exports = new Map<TenantId, number>()
  #serial = 0

  constructor(parts: SnapshotParts) {
    this.#parts = parts
  }

  /**
   * Makes an image of a sandbox that runs, is paused or is stopped.
   * @param progress told of its layers
   * @throws Failure wrong_state, image_not_found where the image that it is on is no more, image_invalid,
   * quota_exceeded, no_capacity, unavailable
   */
  async commit(
    id: LiveSandbox['id'],
    asked: NodeCommit,
    signal: AbortSignal,
    progress = new Progress(),
  ): Promise<HeldImage> {
    const live = this.#parts.residents.find(id)
    const { tenantId } = live
    const image = imageOf(live)
    const { images } = this.#parts
    const base = await images.get(image.digest)
    const give = await this.#commits.take(tenantId, signal)
    try {
      const digests = base.image.layers.flatMap(({ digest, diffId }) => [digest, diffId])
      return await images.needing([base.image.digest, base.manifest.digest, ...digests], async () => {
        for (const { digest, sizeBytes } of base.image.layers) progress.layer(digest, 'present', sizeBytes, sizeBytes)
        const layer = await this.#layerOf(live, image, asked, signal)
        progress.layer(layer.digest, 'done', layer.sizeBytes, layer.sizeBytes)
        return await this.#assemble(base.image, layer, asked, signal)
      })
    } finally {
      give()
    }
  }

  /**
   * The whole root of a sandbox as it is, while it is read; broken off where the sandbox goes meanwhile.
   * @throws Failure wrong_state, rate_limited
   */
  export(id: LiveSandbox['id'], signal: AbortSignal): Readable {
    const { residents, images, shop, log } = this.#parts
    const live = residents.find(id)
    const { tenantId, ids, upper } = live
    const image = imageOf(live)
    const open = this.#exports.get(tenantId) ?? 0
    if (open >= EXPORTS_OF_TENANT)
      throw new Failure('rate_limited', `${open} exports of the tenant are under way on this node, which is the most`)
    const errand = beginErrand(shop, tenantId)
    this.#exports.set(tenantId, open + 1)
    // Of what is being removed everything seems to be gone by the time it is opened, and is left out.
    const confirm = () => {
      if (!existsSync(upper)) throw new Failure('sandbox_not_found', `sandbox ${id} was deleted while it was read`)
    }
    const options = {
      program: images.program,
      upper,
      ids,
      lowers: image.layers,
      groups: errand.groups,
      confirm,
      signal,
    }
    const { tar, ended } = packUpper(options)
    const over = async () => {
      const left = (this.#exports.get(tenantId) ?? 1) - 1
      if (left > 0) this.#exports.set(tenantId, left)
      else this.#exports.delete(tenantId)
      await endErrand(errand, log)
    }
    // Whoever reads the tar is told by it.
    ended.then(over, over)
    return tar
  }

  /** What a sandbox has changed, of a copy that is there no longer than that takes. */
  async #layerOf(live: LiveSandbox, image: RunnableImage, asked: NodeCommit, signal: AbortSignal): Promise<ImageLayer> {
    const { id, tenantId, ids, spec } = live
    const { residents, images, copies } = this.#parts
    const copy = `copy_${process.pid}_${this.#serial++}`
    const still = (work: () => Promise<unknown>) => stillWithFiles(residents, id, asked.pause, signal, work)
    const path = await withRoom(() => copies.take(id, copy, spec.limits.diskBytes, still))
    try {
      const upper = join(path, 'upper')
      return await asErrand(this.#parts, tenantId, signal, (groups) => {
        const { maxBytes } = asked
        const { tar } = packUpper({
          ...{ program: images.program, upper, ids, signal, without: placedFiles, maxBytes, groups },
          stubs: [...mountPoints, ...spec.tmpfs.map(({ path }) => path), ...untouchedEtc(upper, image, ids.base)],
        })
        return addLayer(images, tar, { maxBytes, groups, signal })
      })
    } finally {
      await copies.drop(copy)
    }
  }

  async #assemble(base: HeldImage, layer: ImageLayer, asked: NodeCommit, signal: AbortSignal): Promise<HeldImage> {
    const { content } = this.#parts.images
    const found = await content.find(base.digest)
    if (!found) throw new Failure('image_not_found', `the node has no image ${base.digest} any more`)
    const below = await content.read({ digest: base.digest, size: found.bytes }, MAX_CONFIG_BYTES)
    const { comment, author, changes } = asked
    const createdAt = new Date().toISOString()
    const config = committedConfig(below, { diffId: layer.diffId, createdAt, comment, author, changes })
    const layers = layer.diffId === EMPTY_DIFF_ID ? base.layers : [...base.layers, layer]
    return this.#parts.images.assemble(config, layers, signal)
  }
}

/** What the files of a sandbox are on that can be copied. @throws Failure wrong_state where they cannot */
export function imageOf({ id, state, image }: LiveSandbox): RunnableImage {
  if (image && ['running', 'paused', 'stopped', 'failed'].includes(state)) return image
  throw new Failure('wrong_state', `sandbox ${id} is ${state}: its files cannot be copied`, { state })
}

/**
 * Does `work` on the files of a sandbox while nothing in it runs. It may have had to wait for that.
 * @throws Failure wrong_state, sandbox_not_found where there are none any more; the signal's reason; as `Residents.still`
 */
export const stillWithFiles = (
  residents: SnapshotParts['residents'],
  id: LiveSandbox['id'],
  pause: boolean,
  signal: AbortSignal,
  work: () => Promise<unknown>,
): Promise<unknown> =>
  residents.still(id, pause, () => {
    signal.throwIfAborted()
    imageOf(residents.find(id))
    return work()
  })

/** The node makes /etc above the image's for its files: as long as nobody changed it, it is nothing of the sandbox's. */
function untouchedEtc(upper: string, { layers }: RunnableImage, base: number): readonly string[] {
  const [above, below] = [lstatSync(join(upper, 'etc'), { throwIfNoEntry: false }), findEtc(layers)]
  if (!above || !below) return []
  const same = above.mode === below.mode && above.uid === base + below.uid && above.gid === base + below.gid
  return same ? ['etc'] : []
}
