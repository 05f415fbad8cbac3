import {
  ApiError,
  getJob,
  type Job,
  type JobId,
  type OutputStream,
  streamJobOutput,
  Unreachable,
} from '@berth/contracts'
import { type CallOptions, type Client, isLost } from './client.js'

export interface FollowOptions extends CallOptions {
  /** Offset of the first byte wanted. Default 0. */
  readonly since?: number
  /** Which attempt. Default: the last one. */
  readonly attempt?: number
  /** How many lost connections in a row are mended. Default 20. */
  readonly reconnects?: number
}

/**
 * Follows one output stream of a job from a byte offset to its end, each byte once, over as many connections as it
 * takes. The reader's pace is the sender's.
 * @throws ApiError when the API refuses; Unreachable when the connection was lost too often without a byte between
 */
export async function* followOutput(
  client: Client,
  jobId: JobId,
  stream: OutputStream,
  options: FollowOptions = {},
): AsyncGenerator<Uint8Array, void, undefined> {
  let offset = options.since ?? 0
  let lost = 0
  for (;;) {
    const query = { since: offset, follow: 'true', attempt: options.attempt } as const
    try {
      const bytes = await client.open(streamJobOutput, { params: { jobId, stream }, query }, options)
      for await (const chunk of bytes) {
        if (!(chunk instanceof Uint8Array)) continue
        offset += chunk.length
        lost = 0
        yield chunk
      }
      return
    } catch (error) {
      if (!(error instanceof Unreachable || isLost(error) || isPassing(error))) throw error
      if (++lost > (options.reconnects ?? 20)) throw new Unreachable(`follow ${stream} of ${jobId}`, error)
      await new Promise((resolve) => setTimeout(resolve, Math.min(50 * 2 ** lost, 1000)))
    }
  }
}

/** The node may be restarting its agent. */
const isPassing = (error: unknown) => error instanceof ApiError && error.is('node_unreachable')

/** Waits for the end of a job, however long it takes. @throws what `client.call` throws */
export async function waitForJob(client: Client, jobId: JobId, options: CallOptions = {}): Promise<Job> {
  for (;;) {
    const job = await client.call(getJob, { params: { jobId }, query: { wait: 'finished', timeoutMs: '50s' } }, options)
    if (job.finishedAt !== null) return job
  }
}
