// build-runs.ts: a build as the process that carries it out keeps it: its row, with a lease that is renewed as long as it
// goes on, what it told so far, and its end, wherever that comes from.
import { type BuildProgress, BuildText, Failure, Fault, type HeldImage, isErrorCode } from '@berth/contracts'
import type { AdmittedBuild, BuildEnd, BuildRecord, NewBuild } from '@berth/persistence'
import { Inject, Injectable } from '@nestjs/common'
import { Waiters } from '../jobs/waiters.js'
import { Changes } from '../scheduling/changes.js'
import { CLOCK, type Clock, DATABASE, type Database, LOG, type Logger } from '../tokens.js'
import { BuildLine } from './line.js'
import { BuildLog } from './log.js'
import { BuildSummary } from './summary.js'

@Injectable()
export class BuildRuns {
  private readonly line: BuildLine

  constructor(
    @Inject(DATABASE) private readonly database: Database,
    @Inject(CLOCK) private readonly clock: Clock,
    @Inject(LOG) private readonly log: Logger,
    private readonly waiters: Waiters,
    private readonly changes: Changes,
  ) {
    this.line = new BuildLine(database.builds, waiters, clock)
  }

  /**
   * Admits a build, which waits for quota and room as long as it may. `close` it.
   * @throws as `BuildLine.admit`
   */
  async begin(asked: NewBuild, wait: { readonly queueMs: number; readonly signal: AbortSignal }): Promise<BuildRun> {
    const admitted = await this.line.admit(asked, wait)
    this.changes.announceBuild(admitted.build)
    return new BuildRun(admitted, this.database, this.clock, this.log, this.waiters, this.changes)
  }
}

export class BuildRun {
  readonly summary = new BuildSummary()
  readonly #log = new BuildLog()
  readonly #text = new BuildText()
  readonly #ended = new AbortController()
  readonly #closed = new AbortController()
  readonly #renewing: Promise<void>
  #startedAt: Date | null = null

  constructor(
    readonly admitted: AdmittedBuild,
    private readonly database: Database,
    private readonly clock: Clock,
    private readonly log: Logger,
    private readonly waiters: Waiters,
    private readonly changes: Changes,
  ) {
    this.#renewing = this.#renew()
  }

  /** Aborted when the build has ended otherwise: it was canceled, or given up as lost. */
  get signal(): AbortSignal {
    return this.#ended.signal
  }

  get id() {
    return this.admitted.build.id
  }

  /** Notes what happens. @returns the same */
  told<S extends BuildProgress>(step: S): S {
    this.summary.add(step)
    const text = this.#text.add(step)
    if (text !== '') this.#log.add(text)
    return step
  }

  /** Context and base images are there; noted at once. */
  started(): void {
    this.#startedAt = this.clock.now()
    this.waiters.wake([this.id])
  }

  /** @throws build_canceled where it has ended otherwise; as `images.add` */
  async succeed(image: HeldImage, by: string) {
    const done = await this.database.builds.succeed(this.id, image, by)
    if (!done) throw await this.#otherwise()
    this.changes.announceBuild(done.build)
    return done
  }

  /** Ends it, unless it has ended. */
  async end(end: BuildEnd): Promise<BuildRecord | undefined> {
    const ended = await this.database.builds.end('operator', this.id, end)
    if (ended) this.changes.announceBuild(ended)
    return ended
  }

  /**
   * What ends it, as its caller is told: with the build, and with what the instruction that failed wrote last. What is none
   * of the caller's business is logged.
   */
  failure(error: unknown): Failure {
    if (error instanceof Failure) {
      const output = error.code === 'build_failed' ? { output: this.summary.failedOutput } : {}
      return new Failure(error.code, error.message, { ...error.data, build: this.id, ...output })
    }
    this.log.error({ err: error, build: this.id }, 'build.trouble')
    const code = error instanceof Fault ? 'unavailable' : 'internal_error'
    return new Failure(code, 'the build could not be carried out', { build: this.id })
  }

  /** Nothing more happens; what was told is written down. Closing again changes nothing. */
  async close(): Promise<void> {
    if (this.#closed.signal.aborted) return
    this.#closed.abort()
    await this.#renewing
    await this.#note().catch((err: unknown) => this.log.warn({ err, build: this.id }, 'build.note.failed'))
  }

  /** Renews the lease, at least every five seconds, until the build has ended. */
  async #renew(): Promise<void> {
    const options = { timeoutMs: Number.POSITIVE_INFINITY, signal: this.#closed.signal, known: true }
    try {
      const alive = await this.waiters.until(
        this.id,
        () => this.#note(),
        (lives) => !lives,
        options,
      )
      if (!alive) this.#ended.abort(await this.#otherwise())
    } catch (err) {
      if (this.#closed.signal.aborted) return
      this.log.error({ err, build: this.id }, 'build.renew.failed')
      this.#ended.abort(err)
    }
  }

  /** What has ended it where this did not: somebody who asked for it, or that its node is no more. */
  async #otherwise(): Promise<Failure> {
    const { tenantId, id } = this.admitted.build
    const { reason } = await this.database.builds.get({ tenantId }, id)
    if (reason === null || reason.code === 'build_canceled' || !isErrorCode(reason.code))
      return new Failure('build_canceled', 'the build was canceled')
    return new Failure(reason.code, reason.message)
  }

  async #note(): Promise<boolean> {
    const { steps } = this.summary
    const piece = this.#log.take()
    try {
      return await this.database.builds.renew(this.id, { steps, startedAt: this.#startedAt, log: piece })
    } catch (error) {
      if (piece) this.#log.missed()
      throw error
    }
  }
}
