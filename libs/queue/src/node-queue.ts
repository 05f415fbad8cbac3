// node-queue.ts: the API's end of the queues, one a node.
//
// Redis holds nothing that Postgres does not know: what is unfinished and not acknowledged is sent again by the
// reconciler. So `send` may fail, and does so soon rather than wait for Redis; and it may be repeated, because a
// command has one id as long as it is in the queue. A command that was carried out leaves the queue together with its
// id, so that a later repeat is delivered again (agents are idempotent, and a repeat asks for the report again).
import { createHash } from 'node:crypto'
import { commandSubject, Fault, type NodeCommand, type NodeId } from '@berth/contracts'
import { Queue } from 'bullmq'
import { Redis } from 'ioredis'
import { keyPrefix, parseRedisUrl, QUEUE, type QueueLog, queueKey, reconnectDelayMs } from './redis.js'

/** Longest that a call waits for Redis, in milliseconds. */
const PATIENCE_MS = 2000

const WAKE_CHANNEL = 'berth:wake'
/** Most ids that one message may name. */
const MAX_WOKEN = 100_000

/**
 * What a worker runs: its connection's set-up, and every command that BullMQ's scripts for workers call. Not among them: KEYS, SCAN, CONFIG,
 * FLUSHALL, SCRIPT, ACL, pub/sub, and INFO (it tells of others). Redis checks the key pattern inside scripts as well.
 * A node can still hold up Redis with an endless script of its own; see `busy-reply-threshold` and SCRIPT KILL.
 */
const workerCommands = [
  ...['hello', 'auth', 'select', 'ping', 'quit', 'client|setname', 'multi', 'exec'],
  ...['eval', 'evalsha', 'bzpopmin'],
  ...['get', 'set', 'del', 'exists', 'incr', 'pexpire', 'pttl'],
  ...['hget', 'hset', 'hmget', 'hmset', 'hgetall', 'hdel', 'hexists', 'hincrby'],
  ...['lpush', 'rpush', 'lpop', 'llen', 'lrange', 'lrem', 'lindex', 'ltrim', 'rpoplpush'],
  ...['sadd', 'srem', 'scard', 'smembers'],
  ...['zadd', 'zrem', 'zcard', 'zscore', 'zrange', 'zrevrange', 'zrangebyscore', 'zrevrangebyscore', 'zpopmin'],
  ...['zremrangebyscore', 'zremrangebyrank', 'xadd', 'xtrim'],
]

export interface NodeQueues {
  /** Queues a command for its node. At least once. @throws Fault within about 2 s when Redis does not take it */
  send(command: NodeCommand): Promise<void>
  /**
   * Lets a node use its own queue and nothing else, with this password from now on. Repeats are harmless. Redis keeps
   * users in memory only: they are set again here whenever the connection comes back.
   * @throws Fault when Redis does not answer; the user will then be set when it is back
   */
  ensureNodeUser(nodeId: NodeId, password: string): Promise<void>
  /** Ends the node's access and drops what is queued for it. @throws Fault */
  removeNode(nodeId: NodeId): Promise<void>
  /** Tells all replicas, this one included, that something about what has these ids has changed. @throws Fault */
  publishWake(ids: readonly string[]): Promise<void>
  /** Calls `listener` for what any replica publishes. Messages are lost while Redis is away: a hint, never the truth. */
  subscribeWake(listener: (ids: readonly string[]) => void): void
  /** @throws Fault when Redis does not answer within about 2 s */
  ping(): Promise<void>
  close(): Promise<void>
}

/** Connects to Redis in the background; never throws because Redis is away. @throws Fault on a bad URL */
export function openNodeQueues({ redisUrl, log }: { readonly redisUrl: string; readonly log: QueueLog }): NodeQueues {
  return new RedisNodeQueues(redisUrl, log)
}

class RedisNodeQueues implements NodeQueues {
  private readonly redis: Redis
  private readonly queues = new Map<NodeId, Queue<NodeCommand>>()
  /** SHA-256 of the password of each node that this replica has let in. */
  private readonly users = new Map<NodeId, string>()
  private subscriber: Redis | undefined
  private connecting: Promise<void> | undefined

  constructor(
    redisUrl: string,
    private readonly log: QueueLog,
  ) {
    // No offline queue: during a long outage it would grow with every repeat of the reconciler.
    this.redis = new Redis({
      ...parseRedisUrl(redisUrl),
      enableOfflineQueue: false,
      maxRetriesPerRequest: 0,
      commandTimeout: PATIENCE_MS,
      connectTimeout: PATIENCE_MS,
      socketTimeout: PATIENCE_MS,
      retryStrategy: reconnectDelayMs,
    })
    logOutages(this.redis, log)
    this.redis.on('ready', () => void this.restoreUsers())
  }

  send(command: NodeCommand): Promise<void> {
    return this.attempt(`queueing ${command.kind} of ${commandSubject(command)}`, async () => {
      const jobId = `${command.kind}-${commandSubject(command)}-${command.generation}`
      // A cancel goes ahead of the runs that wait: it may spare one of them.
      await this.queueOf(command.nodeId).add(command.kind, command, { jobId, lifo: command.kind === 'cancel' })
    })
  }

  async ensureNodeUser(nodeId: NodeId, password: string): Promise<void> {
    const hash = createHash('sha256').update(password).digest('hex')
    this.users.set(nodeId, hash)
    await this.attempt(`letting node ${nodeId} use its queue`, () => this.setUser(nodeId, hash))
  }

  async removeNode(nodeId: NodeId): Promise<void> {
    this.users.delete(nodeId)
    await this.attempt(`removing the queue of node ${nodeId}`, async () => {
      await this.redis.acl('DELUSER', nodeId)
      await this.queueOf(nodeId).obliterate({ force: true })
      await this.redis.del(queueKey(nodeId, 'stalled-check'))
      this.queues.delete(nodeId)
    })
  }

  publishWake(ids: readonly string[]): Promise<void> {
    return this.attempt('waking other replicas', async () => {
      await this.redis.publish(WAKE_CHANNEL, JSON.stringify(ids))
    })
  }

  subscribeWake(listener: (ids: readonly string[]) => void): void {
    this.subscriber ??= this.openSubscriber()
    this.subscriber.on('message', (_channel: string, message: string) => {
      const ids = jsonOf(message)
      if (areIds(ids)) listener(ids)
      else this.log.warn({ bytes: message.length }, 'queue.wake.invalid')
    })
  }

  ping(): Promise<void> {
    return this.attempt('asking Redis', async () => {
      await this.redis.ping()
    })
  }

  async close(): Promise<void> {
    for (const connection of [this.subscriber, this.redis]) connection?.disconnect()
  }

  // The subscriber waits for Redis as long as it takes: ioredis subscribes again by itself after each reconnection.
  private openSubscriber(): Redis {
    const subscriber = this.redis.duplicate({
      enableOfflineQueue: true,
      maxRetriesPerRequest: null,
      commandTimeout: undefined,
      socketTimeout: undefined,
    })
    logOutages(subscriber, this.log)
    const failed = (err: unknown) => this.log.warn({ err }, 'queue.wake.unsubscribed')
    subscriber.subscribe(WAKE_CHANNEL).catch(failed)
    return subscriber
  }

  private queueOf(nodeId: NodeId): Queue<NodeCommand> {
    const known = this.queues.get(nodeId)
    if (known) return known
    const queue = new Queue<NodeCommand>(QUEUE, {
      connection: this.redis,
      prefix: keyPrefix(nodeId),
      skipVersionCheck: true,
      skipWaitingForReady: true,
      // Nobody reads BullMQ's own events; the stream is kept as short as it can be.
      streams: { events: { maxLen: 1 } },
      defaultJobOptions: {
        removeOnComplete: true,
        removeOnFail: true,
        attempts: 5,
        backoff: { type: 'exponential', delay: 200 },
      },
    })
    // Every queue repeats the errors of the one connection, which are logged where it is opened.
    queue.on('error', () => undefined)
    this.queues.set(nodeId, queue)
    return queue
  }

  private async setUser(nodeId: NodeId, passwordHash: string): Promise<void> {
    const keys = `~${keyPrefix(nodeId)}:*`
    const commands = workerCommands.map((command) => `+${command}`)
    await this.redis.acl('SETUSER', nodeId, 'reset', 'on', `#${passwordHash}`, keys, ...commands)
  }

  private async restoreUsers(): Promise<void> {
    const failed = (err: unknown) => this.log.warn({ err }, 'queue.users.failed')
    const set = [...this.users].map(([nodeId, hash]) => this.setUser(nodeId, hash))
    await Promise.all(set).catch(failed)
  }

  private async attempt(what: string, operation: () => Promise<void>): Promise<void> {
    try {
      await this.ready()
      await operation()
    } catch (cause) {
      throw new Fault(what, { cause })
    }
  }

  /** Waits for the connection, with all other callers, at most PATIENCE_MS. */
  private async ready(): Promise<void> {
    if (this.redis.status === 'ready') return
    this.connecting ??= becomesReady(this.redis).finally(() => {
      this.connecting = undefined
    })
    await this.connecting
  }
}

function becomesReady(redis: Redis): Promise<void> {
  return new Promise((resolve, reject) => {
    const done = () => {
      clearTimeout(timer)
      redis.off('ready', onReady)
      redis.off('end', onEnd)
    }
    const onReady = () => {
      done()
      resolve()
    }
    const onEnd = () => {
      done()
      reject(new Error('Redis: the connection is closed'))
    }
    const timer = setTimeout(() => {
      done()
      reject(new Error(`Redis: no connection within ${PATIENCE_MS} ms`))
    }, PATIENCE_MS)
    redis.on('ready', onReady)
    redis.on('end', onEnd)
    if (redis.status === 'end') onEnd()
  })
}

// ioredis reports every failed try; one line when Redis goes and one when it is back say as much.
function logOutages(redis: Redis, log: QueueLog): void {
  let away = false
  redis.on('error', (err: unknown) => {
    if (!away) log.warn({ err }, 'queue.redis.away')
    away = true
  })
  redis.on('ready', () => {
    if (away) log.info({}, 'queue.redis.back')
    away = false
  })
}

/** Ids of jobs, sandboxes, tenants: of whatever anyone waits for. */
const areIds = (value: unknown): value is readonly string[] =>
  Array.isArray(value) && value.length <= MAX_WOKEN && value.every((id) => typeof id === 'string')

function jsonOf(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return undefined
  }
}
