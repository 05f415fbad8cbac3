// names.plan.ts: what callers write for an image, and what is looked for then.
import { InvalidRequest } from '@berth/contracts'
import type { ImageWanted } from '@berth/domain'
import { familiar, parseReference, type Reference } from '@berth/oci'
import type { BaseImage, ImageFilter, ImageScope } from '@berth/persistence'

const bareDigest = /^sha256:[0-9a-f]{64}$/

/** A name in full: `docker.io/library/python:latest`. */
export function inFull({ registry, repository, tag, digest }: Reference): string {
  const name = `${registry.toLowerCase()}/${repository}`
  return tag === undefined ? `${name}@${digest ?? ''}` : `${name}:${tag}`
}

/** As users see a name in full. */
export const shortName = (full: string): string => familiar(parseReference(full))

/**
 * A name that leads to an image once it is there: in full, without a digest where there is a tag.
 * @throws InvalidRequest
 */
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

/** The names of an archive that are some; an archive may hold anything. */
export const namesOf = (texts: readonly string[]): readonly string[] =>
  texts.flatMap((text) => {
    try {
      return [nameOf(text)]
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
  const reference = bareDigest.test(text) ? undefined : parseReference(text)
  const digest = reference ? reference.digest : text
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

/**
 * What a list is filtered by: a name without a tag stands for all tags, one that ends with `*` for all that begin so.
 * @throws InvalidRequest
 */
export function nameFilter(text: string | undefined): Pick<ImageFilter, 'reference' | 'prefix'> {
  if (text === undefined) return {}
  if (text.endsWith('*')) return { prefix: beginningInFull(text.slice(0, -1)) }
  const { registry, repository, tag } = parseReference(text)
  const isTagged = text.lastIndexOf(':') > text.lastIndexOf('/')
  const name = `${registry.toLowerCase()}/${repository}`
  return isTagged && tag !== undefined ? { reference: `${name}:${tag}` } : { prefix: `${name}:` }
}

/** What names are made of. */
const beginning = /^[\w./:@-]*$/

function beginningInFull(text: string): string {
  if (!beginning.test(text))
    throw new InvalidRequest([{ field: 'reference', message: `${JSON.stringify(text)}: no name begins so` }])
  const [first = '', ...more] = text.split('/')
  if (more.length === 0) return text === '' ? '' : `docker.io/library/${text}`
  return /[.:]/.test(first) || first === 'localhost' ? text : `docker.io/${text}`
}
