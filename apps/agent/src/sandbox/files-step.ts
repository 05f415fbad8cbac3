// files-step.ts: the files of a sandbox that stays, made once: its image, which stays the same for as long as it exists,
// and its writable layer on that.

import { type ApplySandbox, Failure, type SandboxReason } from '@berth/contracts'
import type { Logger } from '@berth/telemetry'
import { type HeldSnapshots, SnapshotGone } from './held-snapshots.js'
import type { LiveSandbox } from './live.js'
import { noPhases, pin, type ResidentState } from './resident-record.js'
import type { Surroundings } from './sandbox.js'
import { sandboxShape } from './shape.plan.js'
import { layerStep, type Named } from './steps.js'

class NoImage extends Error {
  constructor(reference: string) {
    super(`the node has no image ${reference}`)
    this.name = 'NoImage'
  }
}

/**
 * @param command says what the API resolved the image to, and with a copy of whose files it begins, if any
 * @param signal ends the way of an image to this node
 * @throws where there is no such image, or no copy that it begins with, or the layer cannot be made; what is half-made then goes with the next try
 */
export async function makeFiles(
  { shop, resolveImage, held }: Surroundings & { readonly held: HeldSnapshots },
  live: LiveSandbox,
  { sandboxId, tenantId, image: digest, snapshot }: ApplySandbox,
  named: Named,
  log: Logger,
  signal: AbortSignal,
): Promise<Pick<ResidentState, 'image' | 'diskBytes' | 'phases'>> {
  const { spec, ids, hostname } = live
  const began = performance.now()
  const need = { for: sandboxId, owner: tenantId }
  const image = snapshot
    ? held.imageOf(snapshot, tenantId)
    : await resolveImage({ reference: spec.image, digest, need, signal })
  if (!image) throw new NoImage(spec.image)
  const resolved = performance.now()
  const shape = sandboxShape(spec, shop.abilities)
  signal.throwIfAborted()
  await layerStep.release(shop, named)
  log.debug({ step: 'layer' }, 'step.acquire')
  if (snapshot) await held.begin(snapshot, live)
  else await layerStep.acquire(shop, { ...named, ids, shape, image, hostname, signal })
  log.debug({ step: 'layer' }, 'step.acquired')
  const phases = { ...noPhases, imageMs: round(resolved - began), rootfsMs: round(performance.now() - resolved) }
  return { image: pin(image), diskBytes: spec.limits.diskBytes, phases }
}

/** Why a sandbox has no files, as its owner reads it. */
export function whyNoFiles(err: unknown, log: Logger): SandboxReason {
  const at = new Date().toISOString()
  if (err instanceof NoImage) return { code: 'image_not_found', message: err.message, by: 'agent', at }
  if (err instanceof Failure && err.code === 'image_unavailable')
    return { code: err.code, message: err.message, by: 'agent', at }
  if (err instanceof SnapshotGone) return { code: 'start_failed', message: err.message, by: 'agent', at }
  log.error({ err }, 'sandbox.files_failed')
  return { code: 'start_failed', message: 'its files could not be made; the node has logged why', by: 'agent', at }
}

const round = (ms: number) => Math.max(0, Math.round(ms * 100) / 100)
