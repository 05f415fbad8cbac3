// membership.ts: the node's place in the installation. It joins, takes commands, and says every few seconds that it
// lives and what it has. Whatever goes wrong (API restarted, Redis restarted, credentials replaced) is answered by
// joining again; sandboxes run on meanwhile.

import { setTimeout as delay } from 'node:timers/promises'
import type { AttemptId, NodeCommand, SandboxId, TenantId, TenantLimits } from '@berth/contracts'
import { consumeNodeQueue, type QueueConsumer } from '@berth/queue'
import type { Logger } from '@berth/telemetry'
import type { ApiClient, HeartbeatBody, JoinBody, Joined } from './api-client.js'

export interface MembershipOptions {
  readonly api: ApiClient
  /** What the node offers and has, now. */
  readonly standing: () => HeartbeatBody
  readonly introduction: Pick<JoinBody, 'runtime' | 'platform' | 'streams'>
  readonly handle: (command: NodeCommand) => Promise<void>
  /** The API wants to know nothing more of this attempt. */
  readonly discard: (id: AttemptId) => Promise<void>
  /** Nor of this sandbox. */
  readonly discardSandbox: (id: SandboxId) => void
  /** Nobody has a name or a use for these any more. */
  readonly dropImages: (digests: readonly string[]) => Promise<void>
  /** What a tenant may have on the node is not what the node holds it to. */
  readonly limitTenant: (id: TenantId, limits: TenantLimits) => void
  /** How many commands may be in hand at once; each only until it is written down. */
  readonly concurrency: number
  readonly log: Logger
}

type Answer = Pick<Joined, 'unwanted' | 'unwantedSandboxes' | 'tenantLimits' | 'unwantedImages'>

const RETRY_MS = { first: 200, most: 5_000 } as const

export class Membership {
  readonly #options: MembershipOptions
  readonly #closing = new AbortController()
  #joined: Joined | undefined
  #consumer: QueueConsumer | undefined
  #rejoin = false
  #loop: Promise<void> | undefined

  constructor(options: MembershipOptions) {
    this.#options = options
  }

  /** What the last join answered. */
  get joined(): Joined | undefined {
    return this.#joined
  }

  /** Resolves after the first join; keeps trying until then, and goes on by itself afterwards. */
  async start(): Promise<void> {
    await this.#join()
    this.#loop = this.#beat()
  }

  /** Takes no more commands and falls silent. */
  async close(): Promise<void> {
    this.#closing.abort()
    await this.#consumer?.close()
    await this.#loop
  }

  async #beat(): Promise<void> {
    const { signal } = this.#closing
    while (!signal.aborted) {
      await this.#pause(this.#joined?.heartbeatMs ?? RETRY_MS.most)
      if (signal.aborted) return
      if (this.#rejoin) await this.#join()
      else await this.#sayAlive()
    }
  }

  async #sayAlive(): Promise<void> {
    const { api, standing, log } = this.#options
    try {
      await this.#obey(await api.heartbeat(standing()))
    } catch (err) {
      // The API may have taken the node for lost, or been replaced by another: introduce the node again.
      log.warn({ err }, 'heartbeat.failed')
      this.#rejoin = true
    }
  }

  async #join(): Promise<void> {
    const { api, standing, introduction, log } = this.#options
    for (
      let pauseMs: number = RETRY_MS.first;
      !this.#closing.signal.aborted;
      pauseMs = Math.min(pauseMs * 2, RETRY_MS.most)
    ) {
      try {
        const joined = await api.join({ ...standing(), ...introduction })
        log.info({ node: joined.nodeId }, 'node.joined')
        this.#rejoin = false
        await this.#takeWork(joined)
        await this.#obey(joined)
        return
      } catch (err) {
        log.warn({ err }, 'join.failed')
        await this.#pause(pauseMs * (0.5 + Math.random()))
      }
    }
  }

  /** Listens to the queue that the API named, unless that is the one already listened to. */
  async #takeWork(joined: Joined): Promise<void> {
    const { handle, concurrency, log } = this.#options
    const same = JSON.stringify(this.#joined?.queue) === JSON.stringify(joined.queue)
    this.#joined = joined
    if (same && this.#consumer) return
    await this.#consumer?.close()
    this.#consumer = consumeNodeQueue({
      ...joined.queue,
      nodeId: joined.nodeId,
      concurrency,
      handle,
      log,
      signal: this.#closing.signal,
      onRefused: () => {
        this.#rejoin = true
      },
    })
  }

  /** Does what the API answers to what the node has. */
  async #obey({ unwanted, unwantedSandboxes, unwantedImages, tenantLimits }: Answer): Promise<void> {
    for (const { tenantId, limits } of tenantLimits) this.#options.limitTenant(tenantId, limits)
    for (const id of unwantedSandboxes) this.#options.discardSandbox(id)
    await this.#options.dropImages(unwantedImages)
    await Promise.all(unwanted.map((id) => this.#options.discard(id)))
  }

  async #pause(ms: number): Promise<void> {
    try {
      await delay(ms, undefined, { signal: this.#closing.signal })
    } catch (error) {
      if (!this.#closing.signal.aborted) throw error
    }
  }
}
