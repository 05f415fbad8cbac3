// result.plan.ts: the configuration of an image that was built. Pure: equal steps give equal bytes, so a build that finds
// all of its steps made before comes to the same image.

import type { ImageLayer } from '@berth/contracts'
import type { ContainerConfig, ImageConfig } from '@berth/oci'

/** One line of an image's history; `created` is null where it made no layer, and so has no time of its own. */
export interface HistoryStep {
  readonly created: string | null
  readonly text: string
  readonly emptyLayer: boolean
}

export interface BuiltImage {
  /** Of the image that it begins with. */
  readonly base: Pick<ImageConfig, 'history' | 'created'> | undefined
  /** `linux/amd64`. */
  readonly platform: string
  readonly config: ContainerConfig
  readonly labels: Readonly<Record<string, string>>
  readonly author: string | null
  /** Lowest first, those of its base among them. */
  readonly layers: readonly ImageLayer[]
  /** Of the steps after its base. */
  readonly history: readonly HistoryStep[]
  /** SOURCE_DATE_EPOCH, in Unix milliseconds. */
  readonly epochMs: number | undefined
}

export function imageConfig(built: BuiltImage): Buffer {
  const { base, platform, config, labels, author, layers, epochMs } = built
  const [os, architecture, variant] = platform.split('/')
  const epoch = epochMs === undefined ? undefined : new Date(epochMs).toISOString()
  const made = built.history.map((step) => ({
    created: epoch ?? step.created,
    created_by: step.text,
    ...(step.emptyLayer ? { empty_layer: true } : {}),
  }))
  const history = timed([...(base?.history ?? []), ...made])
  const created = epoch ?? history.at(-1)?.created ?? base?.created
  const allLabels = { ...config.Labels, ...labels }
  const image = {
    ...(created ? { created } : {}),
    ...(author === null ? {} : { author }),
    architecture,
    ...(variant === undefined ? {} : { variant }),
    os,
    config: { ...config, ...(Object.keys(allLabels).length > 0 ? { Labels: allLabels } : {}) },
    rootfs: { type: 'layers', diff_ids: layers.map(({ diffId }) => diffId) },
    history,
  }
  return Buffer.from(JSON.stringify(image))
}

/**
 * Steps without a time get that of the one before them; before the first new layer they get its time, not that of the
 * base (as BuildKit does, exporter/containerimage/writer.go).
 */
function timed<T extends { readonly created?: string | null | undefined }>(history: readonly T[]): T[] {
  const firstWithout = history.findIndex(({ created }) => !created)
  if (firstWithout < 0) return [...history]
  const next = history.slice(firstWithout).find(({ created }) => created)
  const last = history.slice(0, firstWithout).findLast(({ created }) => created)
  let time = next?.created ?? last?.created
  return history.map((step, i) => {
    if (step.created && i > firstWithout) time = step.created
    return step.created || !time ? step : { ...step, created: time }
  })
}
