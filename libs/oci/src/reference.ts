import { InvalidRequest, registryAt } from '@berth/contracts'

/** A name of an image, in full, as Docker normalises it (distribution/reference, `normalize.go`). */
export interface Reference {
  /** In lower case; `docker.io` where none is written. */
  readonly registry: string
  /** `library/python`, `team/app`. */
  readonly repository: string
  /** `latest` where neither tag nor digest is written. */
  readonly tag: string | undefined
  /** `sha256:…` */
  readonly digest: string | undefined
}

const component = '[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*'
const repositoryForm = new RegExp(`^${component}(?:/${component})*$`)
const registryForm = /^(?:[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:]+\])(?::[0-9]{1,5})?$/
/** Ids of images, which no name may look like. */
const idForm = /^(?:sha256:)?[0-9a-f]{64}$/
const tagForm = /^\w[\w.-]{0,127}$/
const digestForm = /^sha256:[0-9a-f]{64}$/

/**
 * Parses what a user writes: `python`, `python:3`, `team/app@sha256:…`, `localhost:5000/app`, `[::1]:5000/app`.
 * @throws InvalidRequest on `image` saying which part is wrong
 */
export function parseReference(text: string, field = 'image'): Reference {
  const refuse = (message: string): never => {
    throw new InvalidRequest([{ field, message: `${JSON.stringify(text)}: ${message}` }])
  }
  if (idForm.test(text)) refuse('it is an id; a name is needed')
  const [named = '', digest, ...more] = text.split('@')
  if (more.length > 0) refuse('there is more than one "@"')
  if (digest !== undefined && !digestForm.test(digest)) refuse('the digest must be sha256: and 64 hex digits')
  const colon = named.lastIndexOf(':')
  const tagged = colon > named.lastIndexOf('/')
  const tag = tagged ? named.slice(colon + 1) : undefined
  if (tag !== undefined && !tagForm.test(tag)) refuse('the tag must be up to 128 letters, digits, ".", "_" or "-"')
  const { registry, repository } = splitRegistry(tagged ? named.slice(0, colon) : named)
  if (!registryForm.test(registry)) refuse('the registry must be a host name with an optional port')
  if (!repositoryForm.test(repository) || repository.length > 255) refuse('the name must be lower-case path components')
  return { registry, repository, tag: tag ?? (digest === undefined ? 'latest' : undefined), digest }
}

/**
 * The first component is a registry when it could be a host: it has a dot or a port, or is `localhost`. Docker takes one
 * with an upper-case letter for a host too: here it is a name that is wrong.
 */
function splitRegistry(name: string): { registry: string; repository: string } {
  const slash = name.indexOf('/')
  const first = name.slice(0, Math.max(0, slash)).toLowerCase()
  const isRegistry = /[.:]/.test(first) || first === 'localhost'
  const [registry, repository] = isRegistry ? [registryAt(first), name.slice(slash + 1)] : ['docker.io', name]
  const official = registry === 'docker.io' && !repository.includes('/')
  return { registry, repository: official ? `library/${repository}` : repository }
}

/** The short form that users see: `python:latest`, `team/app:1`, `localhost:5000/app@sha256:…`. */
export function familiar(reference: Reference): string {
  const { registry, repository, tag, digest } = reference
  const name = registry === 'docker.io' ? repository.replace(/^library\//, '') : `${registry}/${repository}`
  return `${name}${tag === undefined ? '' : `:${tag}`}${digest === undefined ? '' : `@${digest}`}`
}
