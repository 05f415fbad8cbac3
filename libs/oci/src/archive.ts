// archive.ts: images in a tar. Two forms are read: what `docker save` wrote before Docker 25 (`manifest.json` and a tar a
// layer), and an OCI layout (image-spec, image-layout.md). One form is written, which is both, as Docker does since.
import { Failure } from '@berth/contracts'
import { z } from 'zod'
import { type Descriptor, IMAGE_NAME, Index, mediaTypes, REF_NAME } from './manifest.js'
import { familiar, parseReference, type Reference } from './reference.js'

/** An image of `manifest.json`: names of entries of the archive. */
const DockerImage = z.object({
  Config: z.string().min(1).max(4096),
  RepoTags: z.array(z.string().max(1024)).max(1000).nullish(),
  Layers: z.array(z.string().min(1).max(4096)).min(1).max(500),
})
const DockerManifest = z.array(DockerImage).min(1).max(1000)

export interface DockerEntry {
  readonly config: string
  readonly layers: readonly string[]
  readonly references: readonly string[]
}
export interface LayoutEntry {
  readonly descriptor: Descriptor
  readonly references: readonly string[]
}

/** `./a//b` and `a/b` are one entry of a tar. */
export const entryName = (name: string): string =>
  name
    .split('/')
    .filter((part) => part !== '' && part !== '.')
    .join('/')

/** Where the symbolic link `name` leads within the archive; undefined where it leads out. */
export function linkedEntry(name: string, target: string): string | undefined {
  const way = target.startsWith('/') ? [] : entryName(name).split('/').slice(0, -1)
  for (const part of entryName(target).split('/'))
    if (part !== '..') way.push(part)
    else if (way.pop() === undefined) return undefined
  return way.join('/')
}

/** @throws Failure archive_invalid */
export function parseDockerManifest(bytes: Uint8Array): readonly DockerEntry[] {
  return parsed(DockerManifest, bytes, 'manifest.json').map(({ Config, RepoTags, Layers }) => ({
    config: entryName(Config),
    layers: Layers.map(entryName),
    references: (RepoTags ?? []).map((name) => written(name)),
  }))
}

/**
 * The images of a layout's index, entries with one digest as one.
 * @throws Failure archive_invalid
 */
export function parseLayoutIndex(bytes: Uint8Array): readonly LayoutEntry[] {
  const found = new Map<string, { descriptor: Descriptor; references: string[] }>()
  for (const descriptor of parsed(Index, bytes, 'index.json').manifests) {
    const entry = found.get(descriptor.digest) ?? { descriptor, references: [] }
    found.set(descriptor.digest, entry)
    for (const reference of namesOf(descriptor))
      if (!entry.references.includes(reference)) entry.references.push(reference)
  }
  if (found.size === 0) throw new Failure('archive_invalid', 'index.json names no image')
  return [...found.values()]
}

/** A bare word in `ref.name` is a tag of something that is not named; it names nothing then. */
function namesOf({ annotations = {} }: Descriptor): readonly string[] {
  const [full, short] = [annotations[IMAGE_NAME], annotations[REF_NAME]]
  if (full !== undefined) return [written(full)]
  return short !== undefined && /[:/]/.test(short) ? [written(short)] : []
}

function written(name: string): string {
  try {
    return familiar(parseReference(name))
  } catch (error) {
    if (error instanceof Failure) throw new Failure('archive_invalid', `it names an image ${JSON.stringify(name)}`)
    throw error
  }
}

function parsed<T>(schema: z.ZodType<T>, bytes: Uint8Array, what: string): T {
  try {
    return schema.parse(JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes)))
  } catch {
    throw new Failure('archive_invalid', `${what} is not as it must be`)
  }
}

/** An image to be written. */
export interface SavedImage {
  readonly manifest: Pick<Descriptor, 'mediaType' | 'digest' | 'size'>
  readonly platform: string
  readonly config: string
  readonly layers: readonly string[]
  readonly references: readonly Reference[]
}

export const blobEntry = (digest: string): string => `blobs/${digest.replace(':', '/')}`

/**
 * The documents of an archive, to be written beside the blobs. An image of many names is there once for each, as the
 * readers of either form expect.
 * @param format `docker`: with `manifest.json`, and tags as names; `oci`: names in full
 */
export function archiveDocuments(
  images: readonly SavedImage[],
  format: 'docker' | 'oci',
): readonly { readonly name: string; readonly content: Buffer }[] {
  const text = (value: unknown) => Buffer.from(JSON.stringify(value))
  const manifests = images.flatMap(({ manifest: { mediaType, digest, size }, platform, references }) => {
    const [os, architecture, variant] = platform.split('/')
    const entry = { mediaType, digest, size, platform: { architecture, os, ...(variant ? { variant } : {}) } }
    const named = references.map((reference) => ({ ...entry, annotations: annotationsOf(reference, format) }))
    return named.length > 0 ? named : [entry]
  })
  const docker = images.map(({ config, layers, references }) => ({
    Config: blobEntry(config),
    RepoTags: references.length > 0 ? references.map(familiar) : null,
    Layers: layers.map(blobEntry),
  }))
  return [
    { name: 'oci-layout', content: text({ imageLayoutVersion: '1.0.0' }) },
    { name: 'index.json', content: text({ schemaVersion: 2, mediaType: mediaTypes.index, manifests }) },
    ...(format === 'docker' ? [{ name: 'manifest.json', content: text(docker) }] : []),
  ]
}

const annotationsOf = (reference: Reference, format: 'docker' | 'oci') => ({
  [IMAGE_NAME]: `${reference.registry}/${reference.repository}:${reference.tag ?? 'latest'}`,
  [REF_NAME]: format === 'docker' ? (reference.tag ?? 'latest') : familiar(reference),
})
