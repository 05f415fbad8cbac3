// image.ts: what of images is decided: how many bytes are whose, and which ones a prune removes.

/** Who has an image: a tenant, by its id, or the operator, for all. */
export type ImageOwner = string
export const PUBLIC_OWNER: ImageOwner = 'public'

/**
 * An image as a caller names it.
 * `reference` is the name in full (`docker.io/library/python:latest`), or null where a digest says which one; `digest`
 * is then of the configuration, of the manifest, or of the index that it was pulled by. `base` says what nodes have for it of their own: see below.
 */
export interface ImageWanted {
  /** As written. */
  readonly text: string
  readonly reference: string | null
  readonly digest: string | null
  /**
   * The base image that it names, in case that the caller has none of this name and none is public: `key` is what
   * nodes say that they have, `digest` is set where a digest was asked for. Null: no node has one.
   */
  readonly base: { readonly key: string; readonly digest: string | null } | null
}

/** A base image by the name that nodes have for it. */
export const baseImage = (key: string): ImageWanted => ({
  text: key,
  reference: null,
  digest: null,
  base: { key, digest: null },
})

/** What a resolved image is placed by, and what the node is told to run; `digest` null: a base image, by name. */
export interface ResolvedImage {
  readonly key: string
  readonly digest: string | null
}

/**
 * What a wanted image is.
 * @param digest what Postgres found among the caller's own and public images
 * @returns undefined: the caller may use none such
 */
export function resolved({ base }: ImageWanted, digest: string | null): ResolvedImage | undefined {
  if (digest !== null) return { key: digest, digest }
  if (!base) return undefined
  return { key: base.digest ?? base.key, digest: base.digest }
}

export interface LayerUse {
  readonly diffId: string
  readonly bytes: number
  /** Images of the same owner that have it, this one among them. */
  readonly images: number
}

export interface ImageBytes {
  readonly sizeBytes: number
  /** Of layers that no other image of the owner has: what removing it frees. */
  readonly uniqueBytes: number
  readonly sharedBytes: number
}

/** Bytes of an image's layers; one that it has twice counts once. */
export function bytesOf(layers: readonly LayerUse[]): ImageBytes {
  const distinct = [...new Map(layers.map((layer) => [layer.diffId, layer])).values()]
  const sum = (some: readonly LayerUse[]) => some.reduce((bytes, layer) => bytes + layer.bytes, 0)
  const sizeBytes = sum(distinct)
  const uniqueBytes = sum(distinct.filter((layer) => layer.images <= 1))
  return { sizeBytes, uniqueBytes, sharedBytes: sizeBytes - uniqueBytes }
}

export interface PruneCandidate {
  readonly digest: string
  readonly references: readonly string[]
  readonly labels: Readonly<Record<string, string>>
  readonly addedAt: Date
  /** Whether something runs from it, or may again. */
  readonly used: boolean
  readonly layers: readonly { readonly diffId: string; readonly bytes: number }[]
}

export interface PruneFilter {
  /** Named ones too; without it only those that no name leads to. */
  readonly all: boolean
  /** Only those that were added before. */
  readonly before: Date | null
  /** `key` or `key=value`; all must match. */
  readonly labels: readonly string[]
}

export interface Pruned {
  readonly digests: readonly string[]
  /** Of layers that no image which stays has. */
  readonly freedBytes: number
}

const matches = (labels: PruneCandidate['labels'], wanted: string): boolean => {
  const at = wanted.indexOf('=')
  if (at < 0) return Object.hasOwn(labels, wanted)
  const key = wanted.slice(0, at)
  return Object.hasOwn(labels, key) && labels[key] === wanted.slice(at + 1)
}

/** Which of an owner's images (all of them) a prune removes: never one that is used. */
export function prunable(images: readonly PruneCandidate[], { all, before, labels }: PruneFilter): Pruned {
  const goes = (image: PruneCandidate) =>
    !image.used &&
    (all || image.references.length === 0) &&
    (before === null || image.addedAt < before) &&
    labels.every((label) => matches(image.labels, label))
  const [gone, kept] = [images.filter(goes), images.filter((image) => !goes(image))]
  return { digests: gone.map(({ digest }) => digest), freedBytes: bytesWithout(gone, kept) }
}

type Layered = Pick<PruneCandidate, 'layers'>

/** Bytes of the layers that only `gone` have. */
function bytesWithout(gone: readonly Layered[], kept: readonly Layered[]): number {
  const staying = new Set(kept.flatMap(({ layers }) => layers.map(({ diffId }) => diffId)))
  const going = new Map(gone.flatMap(({ layers }) => layers.map(({ diffId, bytes }) => [diffId, bytes])))
  return [...going].reduce((sum, [diffId, bytes]) => (staying.has(diffId) ? sum : sum + bytes), 0)
}
