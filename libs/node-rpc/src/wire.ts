// wire.ts: the requests between API and agents, as both ends see them. A request concerns one subject on the node (a
// sandbox, or an attempt of a job) and does one kind of thing to it, its action; together they are what a grant opens.
//
//     /v1/sandboxes/<id>/<action>[/…][?…]       action: the first word of the rest
//     /v1/attempts/<id>/output/<stream>?since=…&follow=…
import { AttemptId, OutputStream, SandboxId } from '@berth/contracts'

/** What may be done with a sandbox by a request to its node, closed. */
export const sandboxActions = ['execs', 'terminals', 'files', 'observation', 'signal'] as const
export type SandboxAction = (typeof sandboxActions)[number]
export type GrantAction = SandboxAction | 'output'

/** A request's path with its query, taken apart. */
export type Target = SandboxTarget | OutputTarget
export interface SandboxTarget {
  readonly kind: 'sandbox'
  readonly subject: SandboxId
  readonly action: SandboxAction
  /** Words of the path after the sandbox; the first one is the action. */
  readonly rest: readonly string[]
  readonly query: URLSearchParams
}
export interface OutputTarget extends OutputRequest {
  readonly kind: 'attempt'
  readonly subject: AttemptId
  readonly action: 'output'
}

/** A stream of an attempt's output, from a byte offset on; `follow`: until the attempt has ended. */
export interface OutputRequest {
  readonly attemptId: AttemptId
  readonly stream: OutputStream
  readonly since: number
  readonly follow: boolean
}

/** The path of a request for output: the one form in which it is written. */
export function outputPath({ attemptId, stream, since, follow }: OutputRequest): string {
  return `/v1/attempts/${attemptId}/output/${stream}?since=${since}&follow=${follow}`
}

/** Values of a query: what is undefined is left out, lists are repeated. */
export type Query = Readonly<Record<string, QueryValue | readonly QueryValue[] | undefined>>
type QueryValue = string | number | boolean

/**
 * The path of a request for a sandbox: the one form in which it is written.
 * @param rest words of letters, digits, `.`, `_` and `-`; whatever is not a word goes into the query
 * @throws RangeError for a word that is none: a bug, since ids are checked at the edge
 */
export function sandboxPath(id: SandboxId, rest: readonly [SandboxAction, ...string[]], query: Query = {}): string {
  for (const word of rest)
    if (!wordForm.test(word)) throw new RangeError(`not a word of a path: ${JSON.stringify(word)}`)
  const pairs = Object.entries(query).flatMap(([name, value]) =>
    [value]
      .flat()
      .filter((one) => one !== undefined)
      .map((one): [string, string] => [name, String(one)]),
  )
  return written(id, rest, new URLSearchParams(pairs))
}

function written(id: SandboxId, rest: readonly string[], query: URLSearchParams): string {
  const text = query.toString()
  return `/v1/sandboxes/${id}/${rest.join('/')}${text === '' ? '' : `?${text}`}`
}

/** Longest path with its query: a file's path of 4 KiB, each byte of it escaped, and some more. */
const MAX_PATH = 24 * 1024
/** Neither `.` nor `..`, and nothing that has a meaning in a path or is escaped in one. */
const wordForm = /^[a-zA-Z0-9_-][a-zA-Z0-9._-]{0,127}$/
const outputForm = /^\/v1\/attempts\/([^/?]{1,64})\/output\/([a-z]{1,16})\?since=(\d{1,15})&follow=(true|false)$/
const sandboxForm = /^\/v1\/sandboxes\/([^/?#]{1,64})\/([^?#]{1,1024})(?:\?([^#]+))?$/

/** Inverse of `outputPath` and `sandboxPath`; undefined for everything that they do not write. */
export function parsePath(path: string): Target | undefined {
  if (path.length > MAX_PATH) return undefined
  return path.startsWith('/v1/attempts/') ? outputTarget(path) : sandboxTarget(path)
}

function outputTarget(path: string): OutputTarget | undefined {
  const [, id, name, since, follow] = outputForm.exec(path) ?? []
  const attemptId = AttemptId.safeParse(id)
  const stream = OutputStream.safeParse(name)
  if (!attemptId.success || !stream.success) return undefined
  const request = { attemptId: attemptId.data, stream: stream.data, since: Number(since), follow: follow === 'true' }
  if (outputPath(request) !== path) return undefined
  return { kind: 'attempt', subject: request.attemptId, action: 'output', ...request }
}

function sandboxTarget(path: string): SandboxTarget | undefined {
  const [, id, words = '', text = ''] = sandboxForm.exec(path) ?? []
  const subject = SandboxId.safeParse(id)
  const rest = words.split('/')
  const action = sandboxActions.find((one) => one === rest[0])
  if (!subject.success || !action || !rest.every((word) => wordForm.test(word))) return undefined
  const query = new URLSearchParams(text)
  if (written(subject.data, rest, query) !== path) return undefined
  return { kind: 'sandbox', subject: subject.data, action, rest, query }
}
