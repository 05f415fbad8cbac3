// line.ts: builds that wait for quota and room, in this process. One loop tries them, in the order of line.plan.ts, whenever
// there may be room: something ended anywhere, or a build has come; and every few seconds, for what nobody tells.
//
// Who comes stands in line first and is tried then, also one that waits for nothing: none goes past those that wait. Who
// goes (its caller, its time) leaves at once, unless it is being tried: then what came of that decides.
import { Failure, Fault, type NodeId, type TenantId } from '@berth/contracts'
import type { AdmittedBuild, Builds, NewBuild, NotYet } from '@berth/persistence'
import type { Waiters } from '../jobs/waiters.js'
import { ROOM } from '../scheduling/wakes.js'
import type { Clock } from '../tokens.js'
import { type InLine, isKeptFor, nextInLine } from './line.plan.js'

/** Least time between two rounds, in milliseconds. */
const PACE_MS = 100
/** Of one tenant, in this process: each is memory, and an open request. */
const MAX_WAITING = 32

interface Waiting extends InLine {
  readonly asked: NewBuild
  /** What it was told last; undefined: not tried yet. */
  refusal: Failure | undefined
  /** Since when it finds no room, in Unix milliseconds; undefined: it is kept by its tenant's quota, or not tried yet. */
  shortSince: number | undefined
  isTried: boolean
  /** It waits no longer than for the next answer: its time is over. */
  isDue: boolean
  /** Why it has left. */
  left: { readonly reason: unknown } | undefined
  readonly admitted: (build: AdmittedBuild) => void
  readonly refused: (reason: unknown) => void
}

type Admitting = Pick<Builds, 'admit' | 'check' | 'running'>

const forever = new AbortController().signal

export class BuildLine {
  /** In the order in which they came. */
  private readonly line = new Set<Waiting>()
  private serial = 0
  private isWorking = false

  constructor(
    private readonly builds: Admitting,
    private readonly waiters: Waiters,
    private readonly clock: Clock,
  ) {}

  /**
   * Waits for quota and room as long as it may.
   * @throws quota_exceeded, no_capacity; rate_limited where too many of the tenant wait; as `Builds.check`; the reason of `signal`
   */
  async admit(
    asked: NewBuild,
    { queueMs, signal }: { readonly queueMs: number; readonly signal: AbortSignal },
  ): Promise<AdmittedBuild> {
    signal.throwIfAborted()
    const { tenantId } = asked
    const before = [...this.line].filter((one) => one.tenantId === tenantId).length
    if (before >= MAX_WAITING)
      throw new Failure('rate_limited', `${before} builds of the tenant wait for room already, which is the most`)
    let leave: () => void = () => undefined
    let timer: NodeJS.Timeout | undefined
    try {
      return await new Promise((admitted, refused) => {
        const one: Waiting = {
          ...{ tenantId, asked, number: ++this.serial, isTried: false, isDue: queueMs === 0 },
          ...{ refusal: undefined, shortSince: undefined, left: undefined, admitted, refused },
        }
        leave = () => this.leave(one, signal.reason)
        timer = setTimeout(() => this.due(one), queueMs)
        signal.addEventListener('abort', leave, { once: true })
        this.line.add(one)
        // Behind others of its tenant it would find out only when it is first that it can never have room.
        // A Fault has found out nothing: it is tried when its turn comes.
        if (before > 0)
          this.builds.check(asked).catch((error: unknown) => error instanceof Fault || this.leave(one, error))
        this.work()
      })
    } finally {
      clearTimeout(timer)
      signal.removeEventListener('abort', leave)
    }
  }

  private leave(one: Waiting, reason: unknown): void {
    one.left ??= { reason }
    this.settle(one)
  }

  private due(one: Waiting): void {
    one.isDue = true
    this.settle(one)
  }

  /** Has it go, if it is to go and nothing is under way for it. */
  private settle(one: Waiting): void {
    if (one.isTried) return
    if (one.left) this.refuse(one, one.left.reason)
    else if (one.isDue && one.refusal) this.refuse(one, one.refusal)
  }

  private refuse(one: Waiting, reason: unknown): void {
    this.line.delete(one)
    one.refused(reason)
  }

  private work(): void {
    if (this.isWorking) this.waiters.wake([ROOM])
    else void this.tryAll()
  }

  /** Until nobody waits. */
  private async tryAll(): Promise<void> {
    this.isWorking = true
    let isEmpty = false
    const seen = () => {
      isEmpty = this.line.size === 0
      return isEmpty
    }
    await this.waiters.until(ROOM, () => this.rounds(), seen, {
      ...{ timeoutMs: Number.POSITIVE_INFINITY, signal: forever, paceMs: PACE_MS },
    })
    this.isWorking = false
    if (isEmpty) {
      if (this.line.size > 0) this.work()
      return
    }
    // This process shuts down.
    for (const one of [...this.line]) this.refuse(one, one.left?.reason ?? one.refusal ?? shuttingDown())
  }

  /** A round; another one at once for who came meanwhile, where all others have got what they wanted. */
  private async rounds(): Promise<void> {
    do {
      const line = [...this.line]
      try {
        await this.round(line)
      } catch (error) {
        for (const one of line)
          if (this.line.has(one) && (!one.refusal || !(error instanceof Fault))) this.refuse(one, error)
      }
    } while (this.line.size > 0 && [...this.line].every(({ refusal }) => refusal === undefined))
  }

  /** @throws Fault where nothing could be tried */
  private async round(line: readonly Waiting[]): Promise<void> {
    const running = new Map(await this.builds.running([...new Set(line.map(({ tenantId }) => tenantId))]))
    const done = new Set<TenantId>()
    const kept = new Set<NodeId>()
    for (;;) {
      const there = line.filter((one) => this.line.has(one))
      const next = nextInLine(there, running, done)
      if (!next) return
      const { tenantId } = next
      const answer = await this.try(next, kept)
      if (answer === 'admitted') running.set(tenantId, (running.get(tenantId) ?? 0) + 1)
      if (answer === 'admitted' || answer === 'gone') continue
      done.add(tenantId)
      if (answer.keep !== null && isKeptFor(this.shortMs(next))) kept.add(answer.keep)
      // Those behind it wait for what it waits for.
      for (const one of there) {
        if (one.tenantId !== tenantId) continue
        one.refusal = answer.refusal
        this.settle(one)
      }
    }
  }

  private shortMs({ shortSince }: Waiting): number {
    return shortSince === undefined ? 0 : this.clock.now().getTime() - shortSince
  }

  private async try(one: Waiting, kept: ReadonlySet<NodeId>): Promise<'admitted' | 'gone' | NotYet> {
    one.isTried = true
    try {
      const answer = await this.builds.admit(one.asked, kept)
      if ('refusal' in answer) {
        one.shortSince = answer.keep === null ? undefined : (one.shortSince ?? this.clock.now().getTime())
        return answer
      }
      this.line.delete(one)
      // Its caller may have left: who gets the build ends it then.
      one.admitted(answer)
      return 'admitted'
    } catch (error) {
      // Once it has been refused, this is only a moment without Postgres.
      if (one.refusal && error instanceof Fault) return { refusal: one.refusal, keep: null }
      this.refuse(one, error)
      return 'gone'
    } finally {
      one.isTried = false
    }
  }
}

const shuttingDown = () => new Failure('unavailable', 'this process is shutting down; ask again')
