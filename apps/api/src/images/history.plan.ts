import type { HeldImage, ImageHistoryEntry } from '@berth/contracts'

/**
 * What made each layer, newest first. Layers that no entry tells of come with an empty command: a history may be missing,
 * or be shorter than it says.
 */
export function historyOf({ history, layers }: Pick<HeldImage, 'history' | 'layers'>, now: Date): ImageHistoryEntry[] {
  const left = [...layers]
  const told = history.map((entry) => {
    const layer = entry.emptyLayer ? undefined : left.shift()
    return { ...entry, digest: layer?.diffId ?? null, sizeBytes: layer?.unpackedBytes ?? 0 }
  })
  const untold = left.map(({ diffId, unpackedBytes }) => ({
    ...{ createdAt: null, createdBy: '', comment: '', emptyLayer: false, digest: diffId, sizeBytes: unpackedBytes },
  }))
  return [...told, ...untold].reverse().map((entry) => ({ ...entry, ageMs: ageOf(entry.createdAt, now) }))
}

/** Null for times that are none, or before there were any: reproducible builds say the epoch. */
function ageOf(createdAt: string | null, now: Date): number | null {
  const at = Date.parse(createdAt ?? '')
  return Number.isNaN(at) || at <= 0 ? null : Math.max(0, now.getTime() - at)
}
