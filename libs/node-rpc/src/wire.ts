// wire.ts: the requests between API and agents, as both ends see them.
import { AttemptId, OutputStream } from '@berth/contracts'

/** A stream of an attempt's output, from a byte offset on; `follow`: until the attempt has ended. */
export interface OutputRequest {
  readonly attemptId: AttemptId
  readonly stream: OutputStream
  readonly since: number
  readonly follow: boolean
}

/** The request's path with its query: the one form in which it is written. */
export function outputPath({ attemptId, stream, since, follow }: OutputRequest): string {
  return `/v1/attempts/${attemptId}/output/${stream}?since=${since}&follow=${follow}`
}

const outputForm = /^\/v1\/attempts\/([^/?]{1,64})\/output\/([a-z]{1,16})\?since=(\d{1,15})&follow=(true|false)$/

/** Inverse of `outputPath`; undefined for everything that it does not write. */
export function parseOutputPath(path: string): OutputRequest | undefined {
  const [, id, name, since, follow] = outputForm.exec(path) ?? []
  const attemptId = AttemptId.safeParse(id)
  const stream = OutputStream.safeParse(name)
  if (!attemptId.success || !stream.success) return undefined
  const request = { attemptId: attemptId.data, stream: stream.data, since: Number(since), follow: follow === 'true' }
  return outputPath(request) === path ? request : undefined
}
