// follow.ts: an attempt's output, from wherever it is: from Postgres when the attempt has ended and all of it is there,
// else from its node.
//
// A node's stream is read only as fast as the client takes it. If the node goes away in the middle (its agent is
// restarted; sandboxes survive that), reading goes on at the offset it had reached once the node is back, and the
// client notices nothing. It ends early when the client goes, the key is revoked or the process shuts down; the client
// then sees a broken answer, not a finished one, and can go on with `since`.
import { Readable } from 'node:stream'
import { Failure, type JobId, type JobOutput, type OutputStream, type TenantId } from '@berth/contracts'
import { inlineStream } from '@berth/domain'
import type { AttemptOutput } from '@berth/persistence'
import { Inject, Injectable } from '@nestjs/common'
import type { TenantPrincipal } from '../http/auth.js'
import { isFinal } from '../jobs/jobs.service.js'
import { type Kept, keptInline } from '../jobs/output.js'
import { pause, Waiters } from '../jobs/waiters.js'
import { Drain } from '../operations/drain.js'
import { DATABASE, type Database } from '../tokens.js'
import { NodeOutput } from './node-output.js'
import { Watch } from './watch.js'

/** Most of each stream in the JSON answer. */
const JSON_BYTES = 1024 * 1024
/** How long a node may be away in the middle of a stream: longer than an agent's restart, and tries in between. */
const AWAY_MS = 20_000
const RETRY_MS = 300

export interface Wanted {
  readonly jobId: JobId
  readonly stream: OutputStream
  readonly since: number
  readonly follow: boolean
  readonly attempt?: number | undefined
}

/** Bytes at hand, or a stream of them from the node, from the offset that was asked for. */
type Source = { readonly bytes: Buffer } | { readonly live: Readable }

@Injectable()
export class Follow {
  constructor(
    @Inject(DATABASE) private readonly database: Database,
    private readonly nodes: NodeOutput,
    private readonly waiters: Waiters,
    private readonly watch: Watch,
    private readonly drain: Drain,
  ) {}

  /**
   * One stream as raw bytes. With `follow` this waits until the attempt has started.
   * @throws job_not_found, output_gone, node_unreachable: known before the answer begins
   */
  async open(principal: TenantPrincipal, wanted: Wanted, client: AbortSignal): Promise<Readable> {
    const watch = this.watch.begin(principal, client)
    try {
      const first = await this.source(principal.tenantId, wanted, watch.signal)
      const output = Readable.from(this.goOn(principal.tenantId, wanted, first, watch.signal), { objectMode: false })
      output.once('close', () => watch.stop())
      return output
    } catch (error) {
      watch.stop()
      throw error
    }
  }

  /** Both streams of the last attempt as JSON, as they are now. @throws as `open` */
  async both({ tenantId }: TenantPrincipal, jobId: JobId, signal: AbortSignal): Promise<JobOutput> {
    const attempt = await this.database.jobs.output({ tenantId }, jobId)
    const [stdout, stderr] = await Promise.all([
      this.beginning(attempt, 'stdout', signal),
      this.beginning(attempt, 'stderr', signal),
    ])
    return { stdout: inlineStream(stdout), stderr: inlineStream(stderr) }
  }

  private async beginning(
    attempt: AttemptOutput | undefined,
    stream: OutputStream,
    signal: AbortSignal,
  ): Promise<Pick<Kept, 'data' | 'bytes'>> {
    if (!attempt) return { data: Buffer.alloc(0), bytes: 0 }
    const kept = keptInline(attempt, stream)
    if (kept?.whole) return kept
    const live = await this.nodes
      .open(attempt, { stream, since: 0, follow: false }, signal)
      .catch(unlessNotStarted(attempt))
    const data = live ? await readUpTo(live, JSON_BYTES + 1) : Buffer.alloc(0)
    const shown = data.subarray(0, JSON_BYTES)
    return { data: shown, bytes: Math.max(kept?.bytes ?? 0, data.length) }
  }

  private async *goOn(tenantId: TenantId, wanted: Wanted, first: Source, signal: AbortSignal): AsyncGenerator<Buffer> {
    let since = wanted.since
    for (let source = first; ; source = await this.again(tenantId, { ...wanted, since }, signal)) {
      if ('bytes' in source) {
        if (source.bytes.length > 0) yield source.bytes
        return
      }
      try {
        for await (const chunk of source.live) {
          since += chunk.length
          yield chunk
        }
        return
      } catch (error) {
        signal.throwIfAborted()
        if (!isAway(error)) throw error
      }
    }
  }

  /** The rest from `since`, once the node is back. */
  private async again(tenantId: TenantId, wanted: Wanted, signal: AbortSignal): Promise<Source> {
    const end = Date.now() + AWAY_MS
    for (;;) {
      await pause(RETRY_MS, signal)
      signal.throwIfAborted()
      try {
        return await this.source(tenantId, wanted, signal)
      } catch (error) {
        if (!isAway(error) || Date.now() > end) throw error
      }
    }
  }

  private async source(tenantId: TenantId, wanted: Wanted, signal: AbortSignal): Promise<Source> {
    const { jobId, stream, since, follow } = wanted
    const attempt = await this.attemptOf(tenantId, wanted, signal)
    if (!attempt) return { bytes: Buffer.alloc(0) }
    const kept = keptInline(attempt, stream)
    if (kept?.whole) return { bytes: kept.data.subarray(since) }
    try {
      return { live: await this.nodes.open(attempt, { stream, since, follow }, signal) }
    } catch (error) {
      if (!isGone(error)) throw error
      // It may have ended, and its report been stored, since we looked; or it has not reached its node yet.
      const now = await this.database.jobs.output({ tenantId }, jobId, attempt.number)
      const stored = now && keptInline(now, stream)
      if (stored?.whole) return { bytes: stored.data.subarray(since) }
      if (stored || !now) throw error
      if (!follow) return { bytes: Buffer.alloc(0) }
      await pause(RETRY_MS, signal)
      signal.throwIfAborted()
      return this.source(tenantId, { ...wanted, attempt: attempt.number }, signal)
    }
  }

  /** The attempt that is meant; with `follow` once it has started or will never start. @throws output_gone */
  private async attemptOf(tenantId: TenantId, wanted: Wanted, signal: AbortSignal): Promise<AttemptOutput | undefined> {
    const { jobId, follow, attempt: number } = wanted
    const look = async () => {
      const attempt = await this.database.jobs.output({ tenantId }, jobId, number)
      if (attempt && attempt.state !== 'placed') return { attempt, over: true }
      const { state } = await this.database.jobs.get({ tenantId }, jobId)
      return { attempt, over: isFinal(state) }
    }
    const timeoutMs = follow ? Number.POSITIVE_INFINITY : 0
    const { attempt, over } = await this.waiters.until(jobId, look, (seen) => seen.over, { timeoutMs, signal })
    if (follow && !over) this.drain.signal.throwIfAborted()
    if (!attempt && number !== undefined)
      throw new Failure('output_gone', `job ${jobId} has no attempt ${number}${over ? '' : ' yet'}`)
    return attempt
  }
}

const isAway = (error: unknown): boolean => error instanceof Failure && error.code === 'node_unreachable'
const isGone = (error: unknown): boolean => error instanceof Failure && error.code === 'output_gone'

/** A node knows nothing yet of an attempt that has not reached it: no output so far. */
const unlessNotStarted =
  (attempt: AttemptOutput) =>
  (error: unknown): undefined => {
    if (isGone(error) && (attempt.state === 'placed' || attempt.state === 'running')) return undefined
    throw error
  }

async function readUpTo(stream: Readable, limit: number): Promise<Buffer> {
  const chunks: Buffer[] = []
  let length = 0
  for await (const chunk of stream) {
    chunks.push(chunk)
    length += chunk.length
    // Leaving the loop destroys the stream.
    if (length >= limit) break
  }
  return Buffer.concat(chunks).subarray(0, limit)
}
