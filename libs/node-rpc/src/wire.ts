// wire.ts: the requests between API and agents, as both ends see them. A request concerns one subject on the node (a
// sandbox, an attempt of a job, or the node itself) and does one kind of thing to it, its action; together they are what a
// grant opens.
//
//     /v1/nodes/<id>/<action>[/…][?…]           action: the first word of the rest
//     /v1/sandboxes/<id>/<action>[/…][?…]       action: the first word of the rest
//     /v1/attempts/<id>/output/<stream>?since=…&follow=…
import { AttemptId, NodeId, OutputStream, SandboxId } from '@berth/contracts'

/** What may be done with a sandbox by a request to its node, closed. */
export const sandboxActions = ['execs', 'terminals', 'files', 'observation', 'signal', 'snapshot'] as const
export type SandboxAction = (typeof sandboxActions)[number]
/** What may be asked of a node itself, closed. */
export const nodeActions = ['images', 'builds'] as const
export type NodeAction = (typeof nodeActions)[number]
export type GrantAction = SandboxAction | NodeAction | 'output'

/** A request's path with its query, taken apart. */
export type Target = SandboxTarget | NodeTarget | OutputTarget
export interface SandboxTarget {
  readonly kind: 'sandbox'
  readonly subject: SandboxId
  readonly action: SandboxAction
  /** Words of the path after the sandbox; the first one is the action. */
  readonly rest: readonly string[]
  readonly query: URLSearchParams
}
export interface NodeTarget {
  readonly kind: 'node'
  readonly subject: NodeId
  readonly action: NodeAction
  /** Words of the path after the node; the first one is the action. */
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
  return written('sandboxes', id, checked(rest), parametersOf(query))
}

/**
 * The path of a request for a node itself: the one form in which it is written.
 * @param rest words as of `sandboxPath`, or digests: `sha256:…`
 * @throws RangeError as `sandboxPath`
 */
export function nodePath(id: NodeId, rest: readonly [NodeAction, ...string[]], query: Query = {}): string {
  return written('nodes', id, checked(rest), parametersOf(query))
}

function checked(rest: readonly string[]): readonly string[] {
  for (const word of rest)
    if (!wordForm.test(word)) throw new RangeError(`not a word of a path: ${JSON.stringify(word)}`)
  return rest
}

function parametersOf(query: Query): URLSearchParams {
  const pairs = Object.entries(query).flatMap(([name, value]) =>
    [value]
      .flat()
      .filter((one) => one !== undefined)
      .map((one): [string, string] => [name, String(one)]),
  )
  return new URLSearchParams(pairs)
}

function written(kind: 'sandboxes' | 'nodes', id: string, rest: readonly string[], query: URLSearchParams): string {
  const text = query.toString()
  return `/v1/${kind}/${id}/${rest.join('/')}${text === '' ? '' : `?${text}`}`
}

/** Longest path with its query: a file's path of 4 KiB, each byte of it escaped, and some more. */
const MAX_PATH = 24 * 1024
/** Neither `.` nor `..`, and nothing that has a meaning in a path or is escaped in one; or a digest. */
const wordForm = /^(?:[a-zA-Z0-9_-][a-zA-Z0-9._-]{0,127}|sha256:[0-9a-f]{64})$/
const outputForm = /^\/v1\/attempts\/([^/?]{1,64})\/output\/([a-z]{1,16})\?since=(\d{1,15})&follow=(true|false)$/
const subjectForm = /^\/v1\/(sandboxes|nodes)\/([^/?#]{1,64})\/([^?#]{1,1024})(?:\?([^#]+))?$/

/** Inverse of `outputPath`, `sandboxPath` and `nodePath`; undefined for everything that they do not write. */
export function parsePath(path: string): Target | undefined {
  if (path.length > MAX_PATH) return undefined
  return path.startsWith('/v1/attempts/') ? outputTarget(path) : subjectTarget(path)
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

function subjectTarget(path: string): SandboxTarget | NodeTarget | undefined {
  const [, kind, id = '', words = '', text = ''] = subjectForm.exec(path) ?? []
  const rest = words.split('/')
  const query = new URLSearchParams(text)
  if ((kind !== 'sandboxes' && kind !== 'nodes') || !rest.every((word) => wordForm.test(word))) return undefined
  if (written(kind, id, rest, query) !== path) return undefined
  return kind === 'sandboxes' ? sandboxTarget(id, rest, query) : nodeTarget(id, rest, query)
}

function sandboxTarget(id: string, rest: readonly string[], query: URLSearchParams): SandboxTarget | undefined {
  const subject = SandboxId.safeParse(id)
  const action = sandboxActions.find((one) => one === rest[0])
  return subject.success && action ? { kind: 'sandbox', subject: subject.data, action, rest, query } : undefined
}

function nodeTarget(id: string, rest: readonly string[], query: URLSearchParams): NodeTarget | undefined {
  const subject = NodeId.safeParse(id)
  const action = nodeActions.find((one) => one === rest[0])
  return subject.success && action ? { kind: 'node', subject: subject.data, action, rest, query } : undefined
}
