// consumer.ts: a node's end of its queue. Commands come at least once: `handle` must be idempotent, and should return
// as soon as it has made the command its own (written it down), because a command counts as delivered from then on.
import { setTimeout as delay } from 'node:timers/promises'
import { NodeCommand, type NodeId } from '@berth/contracts'
import { type Job, Worker } from 'bullmq'
import { Redis, type RedisOptions } from 'ioredis'
import { keyPrefix, parseRedisUrl, QUEUE, type QueueLog, queueKey, reconnectDelayMs, replyCode } from './redis.js'

/** Pause after Redis refused a command, in milliseconds: BullMQ would ask again at once, for ever. */
const REFUSED_PAUSE_MS = 500

/** `close` waits so long for Redis to answer; then the connections are cut. What is in hand is always waited for. */
const CLOSE_PATIENCE_MS = 2000

/** Shortest time between two calls of `onRefused`, in milliseconds. */
const REFUSED_NOTICE_MS = 5000

export interface ConsumeOptions {
  /** Where Redis is; credentials in it are replaced by the two below. */
  readonly redisUrl: string
  readonly username: string
  readonly password: string
  readonly nodeId: NodeId
  /** How many commands are handled at once. */
  readonly concurrency: number
  /** When it throws, the command is delivered again, up to five times with growing pauses. */
  readonly handle: (command: NodeCommand) => Promise<void>
  readonly log: QueueLog
  /** Stops taking commands when it aborts, as `close` does. */
  readonly signal?: AbortSignal
  /** Redis refuses the node's credentials (Redis was restarted, or the node removed): time to join again. */
  readonly onRefused?: () => void
}

export interface QueueConsumer {
  /** Takes no more commands; resolves when those in hand are handled. */
  close(): Promise<void>
}

/**
 * Takes commands from the node's own queue until it is closed. Survives restarts of Redis, cut connections and
 * FLUSHALL. What a killed predecessor had in hand is delivered again at once: a node has one consumer, so that nothing
 * can be in other hands when it starts.
 * @throws Fault on a bad URL; never because Redis is away
 */
export function consumeNodeQueue(options: ConsumeOptions): QueueConsumer {
  const consumer = new NodeConsumer(options)
  const { signal } = options
  const abort = () => void consumer.close()
  if (signal?.aborted) abort()
  else signal?.addEventListener('abort', abort, { once: true })
  return consumer
}

/** A Worker that pauses when fetching failed; its base class would hammer a Redis that is loading or out of memory. */
class PacedWorker extends Worker<unknown, void> {
  protected override async moveToActive(token: string, name?: string) {
    try {
      return await super.moveToActive(token, name)
    } catch (error) {
      await delay(REFUSED_PAUSE_MS)
      throw error
    }
  }
}

/** Remembers the connections that are made after its model: BullMQ makes one that waits, and keeps it to itself. */
class TrackedRedis extends Redis {
  private readonly copies: Redis[] = []

  override duplicate(override?: Partial<RedisOptions>): Redis {
    const copy = super.duplicate(override)
    this.copies.push(copy)
    return copy
  }

  disconnectAll(): void {
    for (const connection of [this, ...this.copies]) connection.disconnect()
  }
}

class NodeConsumer implements QueueConsumer {
  private readonly redis: TrackedRedis
  private readonly inHand = new Set<Promise<void>>()
  private readonly closing = new AbortController()
  private readonly started: Promise<Worker<unknown, void> | undefined>
  private closed: Promise<void> | undefined
  private healthy = true
  private noticedAt = Number.NEGATIVE_INFINITY

  constructor(private readonly options: ConsumeOptions) {
    this.redis = new TrackedRedis({
      ...parseRedisUrl(options.redisUrl),
      username: options.username,
      password: options.password,
      maxRetriesPerRequest: null,
      // INFO, which the check needs, is not for nodes. A Redis that still loads says so: then try again later.
      enableReadyCheck: false,
      disableClientInfo: true,
      reconnectOnError: (error) => (replyCode(error) === 'LOADING' ? 2 : false),
      connectTimeout: 5000,
      // Above the 10 s that a fetch may block; finds connections whose other end vanished without a word.
      socketTimeout: 20_000,
      retryStrategy: reconnectDelayMs,
    })
    this.redis.on('error', (error: unknown) => this.failed(error))
    this.redis.on('ready', () => this.recovered())
    this.started = this.start()
  }

  close(): Promise<void> {
    this.closed ??= this.end()
    return this.closed
  }

  private async end(): Promise<void> {
    this.closing.abort()
    const worker = await this.started
    const over = new AbortController()
    try {
      await Promise.race([worker?.close(), this.cut(over.signal)])
    } finally {
      over.abort()
      this.redis.disconnectAll()
    }
  }

  // BullMQ's close waits for its connections to be ready, which those with refused credentials never are, and for a
  // dead Redis to hear that a command is done. Once the connections are cut it ends, but for one that it was about to
  // make: then it is not waited for. The command may come again.
  private async cut(signal: AbortSignal): Promise<void> {
    await delay(CLOSE_PATIENCE_MS, undefined, { signal })
    await Promise.allSettled(this.inHand)
    this.redis.disconnectAll()
    await delay(CLOSE_PATIENCE_MS, undefined, { signal })
  }

  private async start(): Promise<Worker<unknown, void> | undefined> {
    while (!this.closing.signal.aborted) {
      try {
        await this.reclaim()
        return this.work()
      } catch (error) {
        this.failed(error)
        await delay(REFUSED_PAUSE_MS)
      }
    }
    return undefined
  }

  // BullMQ finds out that a worker died when its locks expire. Here it is known: unlock, and mark as stalled, so that
  // the check with which a worker begins puts these commands back at the head of the queue.
  private async reclaim(): Promise<void> {
    const key = (name: string) => queueKey(this.options.nodeId, name)
    const inHand = await this.whileOpen(this.redis.lrange(key('active'), 0, -1))
    if (inHand.length === 0) return
    const locks = inHand.map((id) => key(`${id}:lock`))
    await this.redis
      .multi()
      .del(...locks, key('stalled-check'))
      .sadd(key('stalled'), ...inHand)
      .exec()
    this.options.log.info({ commands: inHand.length }, 'queue.reclaimed')
  }

  /** Waits for Redis, but not once this consumer is being closed. */
  private whileOpen<T>(answer: Promise<T>): Promise<T> {
    const { signal } = this.closing
    return new Promise((resolve, reject) => {
      const abort = () => reject(signal.reason)
      signal.throwIfAborted()
      signal.addEventListener('abort', abort, { once: true })
      answer.then(resolve, reject).finally(() => signal.removeEventListener('abort', abort))
    })
  }

  private work(): Worker<unknown, void> {
    const { nodeId, concurrency, log } = this.options
    const worker = new PacedWorker(QUEUE, (job) => this.deliver(job), {
      connection: this.redis,
      prefix: keyPrefix(nodeId),
      concurrency,
      skipVersionCheck: true,
      lockDuration: 10_000,
      stalledInterval: 5000,
      maxStalledCount: 10,
      runRetryDelay: REFUSED_PAUSE_MS,
      removeOnComplete: { count: 0 },
      removeOnFail: { count: 0 },
    })
    worker.on('error', (error) => this.failed(error))
    worker.on('failed', (job, err) => log.warn({ command: job?.id, tries: job?.attemptsMade, err }, 'command.failed'))
    return worker
  }

  // A command that is not one is dropped: delivering it again would not make it better.
  private async deliver(job: Job<unknown, void>): Promise<void> {
    const { nodeId, handle, log } = this.options
    const command = NodeCommand.safeParse(job.data)
    if (!command.success) return log.error({ command: job.id, issues: command.error.issues }, 'command.invalid')
    if (command.data.nodeId !== nodeId)
      return log.error({ command: job.id, node: command.data.nodeId }, 'command.misdirected')
    const handled = handle(command.data)
    this.inHand.add(handled)
    try {
      await handled
    } finally {
      this.inHand.delete(handled)
    }
  }

  private failed(err: unknown): void {
    if (this.closing.signal.aborted) return
    if (this.healthy) this.options.log.warn({ err }, 'queue.failed')
    this.healthy = false
    const code = replyCode(err)
    if (code !== undefined && ['WRONGPASS', 'NOAUTH', 'NOPERM'].includes(code)) this.refused()
  }

  private refused(): void {
    const now = performance.now()
    if (now - this.noticedAt < REFUSED_NOTICE_MS) return
    this.noticedAt = now
    this.options.onRefused?.()
  }

  private recovered(): void {
    if (!this.healthy) this.options.log.info({}, 'queue.recovered')
    this.healthy = true
  }
}
