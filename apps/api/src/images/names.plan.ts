// names.plan.ts: what callers write for an image, and what is looked for then.
import { InvalidRequest, registryAt } from '@berth/contracts'
import type { ImageWanted } from '@berth/domain'
import { familiar, parseReference, type Reference } from '@berth/oci'
import type { BaseImage, ImageFilter, ImageScope } from '@berth/persistence'

/** An id of an image in full, with or without what it begins with. */
const wholeId = /^(?:sha256:)?([0-9a-f]{64})$/
/** What may be the beginning of one; three digits and fewer are of too many images, and of too many words. */
const beginningOfId = /^(?:sha256:)?([0-9a-f]{4,63})$/

/** A name in full: `docker.io/library/python:latest`. A digest decides, as Docker has it: a tag before it is left out. */
export function inFull({ registry, repository, tag, digest }: Reference): string {
  const name = `${registry}/${repository}`
  return digest === undefined ? `${name}:${tag ?? 'latest'}` : `${name}@${digest}`
}

/** As users see a name in full. */
export const shortName = (full: string): string => familiar(parseReference(full))

/** A name as it is looked for. @throws InvalidRequest */
export const nameOf = (text: string): string => inFull(parseReference(text))

/**
 * A name that an image is given, in full: without a digest, which nobody can give.
 * @param field that it was given in
 * @throws InvalidRequest
 */
export function nameToGive(text: string, field: string): string {
  const reference = parseReference(text, field)
  if (reference.digest === undefined) return inFull(reference)
  throw new InvalidRequest([{ field, message: `${text}: a name with a digest cannot be given` }])
}

/** The names that an archive may give, of those in it; an archive may hold anything. */
export const namesOf = (texts: readonly string[]): readonly string[] =>
  texts.flatMap((text) => {
    try {
      return [nameToGive(text, 'image')]
    } catch {
      return [] // which then leads nowhere: the image is known by its digest
    }
  })

/**
 * What counts of the names that nodes say they have: those that are written as agents write them. Else a node could have a
 * name that others have by writing it in another way.
 */
export const wellNamed = (base: readonly BaseImage[]): readonly BaseImage[] =>
  base.filter(({ reference }) => namesOf([reference]).some((full) => shortName(full) === reference))

/** Base images by digest, with their names in full. @param base of those that share a name the first one has it */
export function baseScope(base: readonly BaseImage[]): ImageScope['base'] {
  const digests = [...new Set(base.map(({ digest }) => digest))]
  const has = new Map([...base].reverse().map(({ reference, digest }) => [reference, digest]))
  return digests.map((digest) => {
    const same = base.filter((one) => one.digest === digest)
    return {
      digest,
      references: namesOf(same.map(({ reference }) => reference).filter((name) => has.get(name) === digest)),
      sizeBytes: Math.max(...same.map(({ sizeBytes }) => sizeBytes)),
    }
  })
}

/**
 * What a name or a digest means, before Postgres is asked. A digest decides, whatever name is with it.
 * @param base what nodes have of their own; none of a ready one: no such node is known. A name may then be one of theirs, and what
 * asks for it waits for a node; a digest may be anybody's, and is none
 * @throws InvalidRequest for what is no reference
 */
export function wantedOf(text: string, base: readonly BaseImage[]): ImageWanted {
  const id = wholeId.exec(text)?.[1]
  const digest = id === undefined ? parseReference(text).digest : `sha256:${id}`
  if (digest !== undefined) {
    const found = base.find((one) => one.digest === digest)
    return { text, reference: null, digest, base: found ? { key: found.reference, digest } : null }
  }
  const full = nameOf(text)
  const ready = base.filter((one) => one.ready)
  const key = ready.find((one) => namesOf([one.reference]).includes(full))?.reference
  const unknown = ready.length === 0 ? shortName(full) : undefined
  const name = key ?? unknown
  return { text, reference: full, digest: null, base: name === undefined ? null : { key: name, digest: null } }
}

/** How a digest begins, where a text may be the beginning of an id; else undefined. */
export function idBeginning(text: string): string | undefined {
  const digits = beginningOfId.exec(text)?.[1]
  return digits === undefined ? undefined : `sha256:${digits}`
}

/**
 * The one image that the beginning of an id means.
 * @param digests of the images that begin so, more than one perhaps twice
 * @returns undefined where there is none: then it is a name
 * @throws InvalidRequest where there are several
 */
export function onlyOne(text: string, digests: readonly string[]): string | undefined {
  const [digest, ...others] = new Set(digests)
  if (others.length === 0) return digest
  throw new InvalidRequest([{ field: 'image', message: `${text}: ids of several images begin so; write more of it` }])
}

/**
 * What a list is filtered by: a name without a tag stands for all tags, one that ends with `*` for all that begin so, a
 * digest for its image, whatever name is before it.
 * @throws InvalidRequest
 */
export function nameFilter(text: string | undefined): Pick<ImageFilter, 'reference' | 'prefix' | 'digest'> {
  if (text === undefined) return {}
  if (text.endsWith('*')) return { prefix: beginningInFull(text.slice(0, -1)) }
  const id = wholeId.exec(text)?.[1]
  if (id !== undefined) return { digest: `sha256:${id}` }
  const { registry, repository, tag, digest } = parseReference(text, 'reference')
  if (digest !== undefined) return { digest }
  const isTagged = text.lastIndexOf(':') > text.lastIndexOf('/')
  const name = `${registry}/${repository}`
  return isTagged && tag !== undefined ? { reference: `${name}:${tag}` } : { prefix: `${name}:` }
}

/** What names are made of. */
const beginning = /^[\w./:@[\]-]*$/

function beginningInFull(text: string): string {
  if (!beginning.test(text))
    throw new InvalidRequest([{ field: 'reference', message: `${JSON.stringify(text)}: no name begins so` }])
  const [first = '', ...more] = text.split('/')
  if (more.length === 0) return text === '' ? '' : `docker.io/library/${text}`
  const host = first.toLowerCase()
  if (!/[.:]/.test(host) && host !== 'localhost') return `docker.io/${text}`
  return [registryAt(host), ...more].join('/')
}
