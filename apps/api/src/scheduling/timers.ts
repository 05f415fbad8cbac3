// timers.ts: what is to happen at a set time whichever replica is there, as BullMQ job schedulers: one of the replicas
// takes each turn. A scheduler lives in Redis and is lost with it, so its existence is confirmed every half minute.
import { InjectQueue, OnWorkerEvent, Processor, WorkerHost } from '@nestjs/bullmq'
import { Inject, Injectable } from '@nestjs/common'
import type { Job, Queue } from 'bullmq'
import { DATABASE, type Database, LOG, type Logger } from '../tokens.js'
import { Dispatcher } from './dispatcher.js'
import { Loop } from './loop.js'

export const TIMERS = 'timers'
/** A hash tag, as for nodes: all keys in one slot of a Redis Cluster. */
export const TIMERS_PREFIX = '{berth:timers}'

const RETENTION = 'retention'
const RETENTION_EVERY_MS = 15_000
const CONFIRM_EVERY_MS = 30_000
/** Rows deleted in one transaction. */
const AT_ONCE = 200
const EVENTS_AT_ONCE = 10_000

/** Keeps the schedulers there. */
@Injectable()
export class Timers {
  private readonly loop: Loop
  private confirming: Promise<unknown> | undefined

  constructor(
    @InjectQueue(TIMERS) private readonly queue: Queue,
    @Inject(LOG) private readonly log: Logger,
  ) {
    this.loop = new Loop('timers', CONFIRM_EVERY_MS, async () => this.confirm(), log)
  }

  start(): void {
    let told = false
    this.queue.on('error', (err) => {
      if (!told) this.log.warn({ err }, 'timers.redis')
      told = true
    })
    this.loop.start()
  }

  stop(): Promise<void> {
    return this.loop.stop()
  }

  // While Redis is away BullMQ waits for it; one call waits, the others would only pile up behind it.
  private confirm(): void {
    this.confirming ??= this.queue
      .upsertJobScheduler(
        RETENTION,
        { every: RETENTION_EVERY_MS },
        { name: RETENTION, opts: { removeOnComplete: true, removeOnFail: true } },
      )
      .catch((err: unknown) => this.log.warn({ err }, 'timers.confirm.failed'))
      .finally(() => {
        this.confirming = undefined
      })
  }
}

/** Deletes what is over its time: jobs with their output, stored answers of idempotency keys, sessions, passes. */
@Processor(TIMERS, { concurrency: 1 })
export class TimersProcessor extends WorkerHost {
  private away = false

  constructor(
    @Inject(DATABASE) private readonly database: Database,
    private readonly dispatcher: Dispatcher,
    @Inject(LOG) private readonly log: Logger,
  ) {
    super()
  }

  override async process({ name }: Job): Promise<void> {
    if (name === RETENTION) await this.expire()
    else this.log.warn({ timer: name }, 'timers.unknown')
  }

  @OnWorkerEvent('error')
  onError(err: Error): void {
    if (!this.away) this.log.warn({ err }, 'timers.worker')
    this.away = true
  }

  @OnWorkerEvent('ready')
  onReady(): void {
    this.away = false
  }

  @OnWorkerEvent('failed')
  onFailed(_job: Job | undefined, err: Error): void {
    this.log.warn({ err }, 'timers.failed')
  }

  private async expire(): Promise<void> {
    let jobs = 0
    for (;;) {
      const expired = await this.database.jobs.expire(AT_ONCE)
      await this.dispatcher.deliver(expired.forgotten)
      jobs += expired.jobs
      if (expired.jobs < AT_ONCE) break
    }
    const keys = await this.database.idempotency.expire(AT_ONCE * 10)
    const sandboxes = await this.database.sandboxes.expire(AT_ONCE)
    const builds = await this.database.builds.expire(AT_ONCE)
    const events = await this.database.events.expire(EVENTS_AT_ONCE)
    const sessions = await this.database.sessions.expire(AT_ONCE * 10)
    const passes = await this.database.passes.expire(AT_ONCE * 10)
    const expired = { jobs, keys, sandboxes, builds, events, sessions, passes }
    if (Object.values(expired).some((count) => count > 0)) this.log.info(expired, 'expired')
  }
}
