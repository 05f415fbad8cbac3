// resident.ts: one sandbox that stays: one loop over what happens to it. Each round asks resident.plan.ts for the one
// thing to do, does it, and writes down what is: before it acts, where a crash in between would otherwise leave something
// that nobody knows of, and after. Work that takes its time (a start, a freeze, a release) goes on beside the loop, which
// meanwhile listens on and is told the end of it.

import { type ApplySandbox, Failure, type SandboxId } from '@berth/contracts'
import type { Logger } from '@berth/telemetry'
import { Changes } from '../logs/changes.js'
import { Activity } from './activity.js'
import { clockReasons, type Deadline } from './clocks.plan.js'
import { conclude } from './conclusion.plan.js'
import { ContainerRun } from './container-run.js'
import type { Ending } from './ending.plan.js'
import { makeFiles, whyNoFiles } from './files-step.js'
import type { HeldSnapshots } from './held-snapshots.js'
import { Leases } from './leases.js'
import { type LayerFill, LimitKeeper } from './limit-keeper.js'
import type { Companion } from './live.js'
import { LiveView } from './live-view.js'
import { stopSignal } from './main.plan.js'
import { Operations } from './operations.js'
import { type Desire, nextStep, type Observed, type Step } from './resident.plan.js'
import { ResidentMemory } from './resident-memory.js'
import { type AcceptedSandbox, noPhases, type ResidentRecords, type ResidentState } from './resident-record.js'
import type { RunnableImage, Surroundings } from './sandbox.js'
import type { StopReason } from './sandbox-end.plan.js'
import { layerStep, type Named } from './steps.js'
import { Stillness } from './stillness.js'
import type { Turns } from './turns.js'

export interface ResidentContext {
  readonly around: Surroundings
  readonly records: ResidentRecords
  readonly companions: readonly Companion[]
  /** Files that sandboxes begin with. */
  readonly held: HeldSnapshots
  /** For containers that are only there for leases. */
  readonly hiddenPlaces: Turns
  /** There is something new to tell. @param urgent somebody may be waiting for it */
  readonly onChange: (resident: Resident, urgent: boolean) => void
}

/** What failed is tried again after so long. */
const RETRY_MS = 5_000
/** No timer is longer: clocks are, and setTimeout is not (2^31 ms). */
const LONGEST_SLEEP_MS = 3_600_000
/** Of activity alone the API is told this often. */
const ACTIVITY_TOLD_MS = 30_000

export class Resident {
  readonly live: LiveView
  readonly memory: ResidentMemory
  readonly leases: Leases
  readonly #context: ResidentContext
  readonly #activity: Activity
  readonly #log: Logger
  readonly #changes = new Changes()
  readonly #operations = new Operations<Partial<ResidentState>>(() => this.#changes.tell())
  readonly #limits: LimitKeeper
  readonly #stillness: Stillness
  #container: ContainerRun | undefined
  /** Of `preparing`. */
  #preparing: AbortController | undefined
  #runEnded = new AbortController()
  #ending: Ending | undefined
  #killed = false
  #activityToldAt = 0
  #unwanted = false
  #closed = false

  constructor(context: ResidentContext, accepted: AcceptedSandbox, state: ResidentState) {
    const { shop, log } = context.around
    this.#context = context
    this.#log = log.child({ sandbox: accepted.command.sandboxId })
    this.memory = new ResidentMemory(context.records, accepted, state)
    // Only of the idle clock's business: without one, each command would make it look twice for nothing.
    const onActivity = () => this.#command.spec.clocks.idleTimeoutMs !== null && this.#changes.tell()
    this.#activity = new Activity(state.lastActivityAt ?? undefined, onActivity, () => this.#saveActivity())
    this.live = new LiveView(shop, this.memory, this.#activity, () => ({
      container: this.#container,
      runEnded: this.#runEnded.signal,
    }))
    this.leases = new Leases(this.live, this.memory, this.#changes, () =>
      this.#state.phase === 'up' ? this.#container?.processes : undefined,
    )
    this.#limits = new LimitKeeper(shop, this.memory, this.live, this.#log)
    this.#stillness = new Stillness(shop.cgroups, this.#log)
    this.#runEnded.abort()
  }

  get id(): SandboxId {
    return this.#command.sandboxId
  }

  /** Nobody wants to know of it any more: it goes without a report. */
  get unwanted(): boolean {
    return this.#unwanted
  }

  get #command(): ApplySandbox {
    return this.memory.command
  }

  get #state(): ResidentState {
    return this.memory.state
  }

  get #named(): Named & { readonly id: SandboxId } {
    return { id: this.id, tenantId: this.#command.tenantId, paths: this.memory.paths }
  }

  /** Takes a newer command; an older one is dropped, and the same one tells anew what is. */
  apply(command: ApplySandbox): void {
    const { generation, desired, run } = command
    if (generation < this.#command.generation) {
      this.#log.debug({ generation, known: this.#command.generation }, 'sandbox.outdated_command')
      return
    }
    if (generation > this.#command.generation) {
      this.memory.accept(command)
      this.#log.info({ generation, desired, run }, 'sandbox.wanted')
    }
    this.#changes.tell()
    this.#context.onChange(this, false)
  }

  /** Ends and deletes it without a report. */
  discard(): void {
    this.#unwanted = true
    this.#changes.tell()
  }

  /** Sends a signal to the main process; where there is none, to everything. @throws Failure `wrong_state` */
  signal(signal: number): void {
    const processes = this.live.processes
    const runs = ['up', 'freezing', 'frozen', 'stopping'].includes(this.#state.phase)
    if (!processes || !runs) {
      const { state } = this.live
      throw new Failure('wrong_state', `sandbox ${this.id} is ${state}, and a signal needs one that runs`, { state })
    }
    if (this.live.main) this.live.main.signal(signal, 'process')
    else processes.signalAll(signal)
  }

  /**
   * Does `work` while nothing in it runs, unless `freeze` is false. The loop waits meanwhile, so it must be short. What is
   * frozen by a request stays so. An agent that is killed in between is followed by one that thaws what is not written
   * down as frozen (`recover`).
   * @throws Failure `unavailable` where something in it cannot be frozen; what `work` throws
   */
  still<T>(freeze: boolean, work: () => Promise<T>): Promise<T> {
    const runs = () => this.#state.phase === 'up' && !this.#state.hidden
    return this.#stillness.during(() => (freeze && runs() ? this.live.group : undefined), work)
  }

  report() {
    return this.memory.report(this.#deadline())
  }

  /** Looks at what its control group has counted: a limit that is hit for the first time in a run is told. */
  watch(fill: LayerFill | undefined): void {
    if (this.#state.phase !== 'up' || this.#state.hidden) return
    if (this.#limits.watch(this.#container?.usage(), fill)) this.#context.onChange(this, false)
  }

  /**
   * Takes over what an agent before this one left, in whatever phase that was killed; `run` goes on from there.
   * @param alive its container is frozen, or its init answers
   */
  async recover(alive: boolean): Promise<void> {
    const { phase, hidden, spawned } = this.#state
    const { shop } = this.#context.around
    this.#log.info({ phase, alive, hidden }, 'recovery.sandbox')
    if (phase === 'fresh' || phase === 'preparing') {
      await layerStep.release(shop, this.#named)
      this.memory.save({ phase: 'fresh' })
    } else if (phase === 'down' || phase === 'waiting') {
      // Whatever is there of a container is a leftover.
      await this.#newContainer(false).release()
    } else if (phase === 'clearing' || phase === 'removing') {
      this.memory.save({ retryAt: 0 })
    } else if (phase !== 'removed') {
      // It may have had more room for its mount than it is to have: its layer is given its limit again.
      if (phase === 'starting') this.memory.save({ diskBytes: 0 })
      const begun = phase !== 'starting' || spawned
      if (alive && begun && !hidden) await this.#adopt()
      else await this.#lose(begun)
    }
    this.#context.onChange(this, true)
  }

  /** Lives until it is removed, or this agent process ends. */
  async run(): Promise<'removed' | 'left'> {
    while (!this.#closed) {
      await this.#stillness.over()
      if (this.#closed) break
      const seen = this.#changes.version
      this.#take()
      const now = Date.now()
      const step = nextStep(this.#desire(), this.#observed(), now)
      if (step.do === 'end') return this.#end()
      if (step.do === 'wait') await this.#sleep(seen, step.until)
      else await this.#carryOut(step, now)
    }
    return 'left'
  }

  /** Leaves it to another agent process; what is under way is waited for. */
  async close(): Promise<void> {
    this.#closed = true
    // What is half-made is made anew by the next agent; an image may take minutes to come.
    this.#preparing?.abort()
    this.#activity.flush()
    this.#activity.end()
    this.#container?.abandon()
    this.#changes.tell()
    await this.#operations.settled()
  }

  #end(): 'removed' {
    this.#activity.end()
    return 'removed'
  }

  #desire(): Desire {
    const { desired, generation, run, stop, spec } = this.#command
    return {
      desired: this.#unwanted ? 'deleted' : desired,
      generation,
      run,
      graceMs: this.#unwanted ? 0 : (stop.graceMs ?? spec.stopGraceMs),
      leases: this.leases.count,
      hiddenUntil: this.leases.hiddenUntil,
    }
  }

  #observed(): Observed {
    const { phase, hidden, run, failedRun, next, retryAt, stop, warnedOf } = this.#state
    const underWay = (phase === 'clearing' || phase === 'removing') && this.#operations.underWay
    return {
      ...{ phase, hidden, run },
      aborted: phase === 'preparing' ? this.#preparing?.signal.aborted === true : phase === 'starting' && stop !== null,
      failedRun: failedRun ?? undefined,
      next: next ?? undefined,
      retryAt: underWay ? Number.POSITIVE_INFINITY : retryAt,
      killAt: stop?.killAt ?? 0,
      killed: this.#killed,
      stopGeneration: stop?.generation ?? 0,
      ...this.#limits.observed,
      deadline: this.#deadline(),
      warnedOf: warnedOf ?? undefined,
    }
  }

  #deadline(): Deadline | undefined {
    return this.memory.deadline(this.#activity.lastAt, this.#activity.now)
  }

  async #sleep(seen: number, until: number | undefined): Promise<void> {
    const alarm = new AbortController()
    const ms = Math.min(LONGEST_SLEEP_MS, Math.max(0, (until ?? Number.POSITIVE_INFINITY) - Date.now()))
    const timer = setTimeout(() => alarm.abort(), ms)
    await this.#changes.after(seen, alarm.signal)
    clearTimeout(timer)
  }

  async #carryOut(step: Exclude<Step, { do: 'wait' | 'end' }>, now: number): Promise<void> {
    this.#log.debug({ step: step.do }, 'sandbox.step')
    const { stop } = this.#command
    switch (step.do) {
      case 'prepare':
        return this.#prepare()
      case 'start':
        return this.#start(step.run, step.restart, step.hidden)
      case 'abort':
        if (this.#state.phase === 'preparing') {
          this.#preparing?.abort()
          return
        }
        this.memory.save({ stop: this.#stopOf(stop.reason, now) })
        return this.#container?.withdraw()
      case 'skip':
        return this.#settle({ run: this.#command.run, restart: 0, outcome: stoppedBy(stop.reason, now) })
      case 'rest':
        return this.#settle({ ...this.memory.to('rest'), next: null, outcome: stoppedBy(stop.reason, now) })
      case 'freeze':
        return this.#freeze()
      case 'thaw':
        return this.#thaw()
      case 'stop':
        return this.#stop(step.killAt, step.clock ? clockReasons[step.clock] : stop.reason, now)
      case 'kill':
        this.#killed = true
        return this.#container?.kill()
      case 'clear':
        return this.#clear()
      case 'remove':
        return this.#remove()
      case 'resize':
        return this.#limits.apply(now)
      case 'warn':
        return this.#warn(step.deadline)
    }
  }

  #prepare(): void {
    this.memory.save(this.memory.to('prepare'))
    this.#context.onChange(this, false)
    const preparing = new AbortController()
    this.#preparing = preparing
    const { command } = this.memory
    const { around, held } = this.#context
    this.#operations.begin(() =>
      makeFiles({ ...around, held }, this.live, command, this.#named, this.#log, preparing.signal),
    )
  }

  #start(run: number, restart: number, hidden: boolean): void {
    const requested = restart === 0
    const begun = {
      ...{ run, restart, next: null, outcome: null, hits: [], startedAt: null, endedAt: null, pausedAt: null },
      ...{ warnedOf: null, phases: this.#placed(requested), ...(requested ? { begunAt: null, inRow: 0 } : {}) },
    }
    this.#killed = false
    this.memory.save({ ...this.memory.to('start'), ...(hidden ? {} : begun), hidden, spawned: false, stop: null })
    const container = this.#newContainer(hidden)
    this.#follow(container)
    this.#limits.begin()
    if (!hidden) this.#context.onChange(this, false)
    this.#operations.begin(async () => {
      const up = await container.start()
      if (!up) return undefined
      if (hidden) return {}
      const now = Date.now()
      const startedAt = container.startedAt ?? now
      const readyMs = requested ? round(now - Date.parse(this.#command.requestedAt)) : null
      const phases = { ...this.#state.phases, startMs: round(up.startMs), readyMs }
      return { startedAt, begunAt: this.#state.begunAt ?? startedAt, phases }
    })
  }

  /** From the request to the arrival of the command; a restart by policy was not asked for. */
  #placed(requested: boolean): ResidentState['phases'] {
    if (!requested) return noPhases
    const waited = this.memory.acceptedAt.getTime() - Date.parse(this.#command.requestedAt)
    // What the files took counts for the start that they were made for.
    const made = this.#state.run === 0 ? this.#state.phases : noPhases
    return { ...made, placeMs: round(waited), startMs: null, readyMs: null }
  }

  #newContainer(hidden: boolean): ContainerRun {
    const { around, companions, hiddenPlaces } = this.#context
    const { spec, ids, hostname, upper, image } = this.live
    return new ContainerRun({
      ...{ around, companions, spec, ids, hostname, upper, hidden, hiddenPlaces },
      log: this.#log,
      live: this.live,
      named: this.#named,
      image: image ?? noImage,
      frozen: () => this.#state.phase === 'frozen' || this.#state.phase === 'freezing',
      onSpawn: () => {
        this.memory.save({ spawned: true })
        this.#log.debug({}, 'sandbox.spawn')
      },
    })
  }

  #follow(container: ContainerRun): void {
    this.#container = container
    if (!container.hidden) this.#runEnded = new AbortController()
    void container.ended.then((ending) => {
      if (container === this.#container) this.#ending = ending
      this.#changes.tell()
    })
  }

  async #adopt(): Promise<void> {
    const { cgroups } = this.#context.around.shop
    const frozen = this.#state.phase === 'frozen'
    // Killed in the middle of a freeze or a thaw: what is written down counts.
    if (!frozen) cgroups.thaw(this.live.group)
    const container = this.#newContainer(false)
    this.#follow(container)
    this.#limits.adopt()
    this.memory.save({ phase: frozen || this.#state.phase === 'stopping' ? this.#state.phase : 'up' })
    await container.adopt()
    const startedAt = this.#state.startedAt ?? container.startedAt ?? Date.now()
    this.memory.save({ startedAt, begunAt: this.#state.begunAt ?? startedAt, spawned: true })
    const { stop } = this.#state
    if (this.#state.phase === 'stopping' && stop) container.stop(stop.signal, Math.max(0, stop.killAt - Date.now()))
  }

  /** Its container is gone; what had not begun to run is released, and begun anew. */
  async #lose(begun: boolean): Promise<void> {
    const container = this.#newContainer(this.#state.hidden)
    this.#container = container
    if (!begun && !this.#state.hidden) {
      const { run, restart } = this.#state
      this.memory.save({ phase: 'clearing', next: { run, restart }, retryAt: 0 })
      return
    }
    this.#ending = { kind: 'gone', error: new Error('it ended while the agent was away') }
  }

  #freeze(): void {
    this.memory.save(this.memory.to('freeze'))
    this.#operations.begin(async () => {
      await this.#context.around.shop.cgroups.freeze(this.live.group)
      return { pausedAt: Date.now() }
    })
  }

  #thaw(): void {
    this.#activity.touch()
    this.memory.save({ ...this.memory.to('thaw'), pausedAt: null, lastActivityAt: this.#activity.lastAt ?? null })
    this.#context.around.shop.cgroups.thaw(this.live.group)
    this.#settle({})
  }

  #stop(killAt: number, reason: StopReason, now: number): void {
    const { phase, hidden } = this.#state
    const again = phase === 'stopping'
    const stop = this.#stopOf(again ? (this.#state.stop?.reason ?? reason) : reason, killAt)
    this.memory.save({ ...this.memory.to('stop'), stop })
    this.#log.debug({ reason: stop.reason.code, graceMs: killAt - now }, 'sandbox.stop')
    if (!hidden) this.#context.onChange(this, false)
    if (killAt > now && !again) this.#container?.stop(stop.signal, killAt - now)
    if (killAt <= now) {
      this.#killed = true
      this.#container?.kill()
    }
    // What is sent to a frozen sandbox waits for it in its socket.
    if (phase === 'frozen') this.#context.around.shop.cgroups.thaw(this.live.group)
  }

  #stopOf(reason: StopReason, killAt: number): NonNullable<ResidentState['stop']> {
    const { generation, stop, spec } = this.#command
    return { reason, signal: stopSignal(stop.signal, spec, this.live.image?.config), killAt, generation }
  }

  #ended(container: ContainerRun, ending: Ending): void {
    const usage = container.usage()
    if (container.hidden) {
      const failed = ending.kind === 'notRun'
      if (failed) this.leases.fail(ending.message)
      this.memory.save({ ...this.memory.to('ended'), retryAt: failed ? Date.now() + RETRY_MS : 0 })
      this.#clear()
      return
    }
    this.#limits.watch(usage)
    const startedAt = this.#state.startedAt ?? container.startedAt ?? null
    const { end, change } = conclude(this.#state, this.#command.spec, {
      ...{ ending, usage, startedAt, endedAt: Date.now() },
    })
    this.memory.save({ ...this.memory.to('ended'), ...change })
    const { run, restart, reason, exitCode } = end
    this.#log.info({ run, restart, reason: reason.code, exitCode, again: change.next !== null }, 'sandbox.ended')
    this.#runEnded.abort()
    this.#clear()
  }

  #clear(): void {
    const container = this.#container ?? this.#newContainer(this.#state.hidden)
    this.#operations.begin(async () => {
      await container.release()
      return { hidden: false, stop: null }
    })
  }

  #remove(): void {
    if (this.#state.phase !== 'removing') this.memory.save(this.memory.to('remove'))
    this.#context.onChange(this, false)
    const { around, companions, held } = this.#context
    const { snapshot } = this.#command
    this.#operations.begin(async () => {
      await this.#newContainer(false).release()
      for (const companion of companions) await companion.remove(this.id)
      this.#log.debug({ step: 'layer' }, 'step.release')
      await layerStep.release(around.shop, this.#named)
      if (snapshot) held.forgo(snapshot, this.live)
      return {}
    })
  }

  #warn({ clock, at }: Deadline): void {
    const endsAt = new Date(at)
    this.#log.info({ clock, endsAt }, 'sandbox.warning')
    this.memory.save({ warnedOf: at, ...this.memory.note({ kind: 'warning', clock, endsAt: endsAt.toISOString() }) })
    this.#context.onChange(this, false)
    for (const companion of this.#context.companions) companion.warn?.(this.live, clock, endsAt)
  }

  /** What has happened since the last round. */
  #take(): void {
    const [container, ending] = [this.#container, this.#ending]
    this.#ending = undefined
    if (container && ending) this.#ended(container, ending)
    const finished = this.#operations.take()
    if (finished?.ok === false) this.#failed(finished.err)
    else if (finished?.change !== undefined) this.#done(finished.change)
  }

  /** The operation that was under way has done its work. */
  #done(change: Partial<ResidentState>): void {
    const { phase, next } = this.#state
    if (phase === 'clearing') {
      this.#container = undefined
      this.#limits.end()
    }
    this.#settle({ ...this.memory.to(phase === 'clearing' && next ? 'wait' : 'done'), ...change })
    this.#log.debug({ phase: this.#state.phase }, 'sandbox.reached')
  }

  #failed(err: unknown): void {
    const { phase } = this.#state
    if (phase === 'preparing') {
      if (this.#preparing?.signal.aborted) {
        this.#settle(this.memory.to('failed'))
        return
      }
      // The sandbox has failed before it had files; another start tries again.
      const { run } = this.#command
      const outcome = { state: 'failed', reason: whyNoFiles(err, this.#log) } as const
      this.#settle({ ...this.memory.to('failed'), run, failedRun: run, outcome })
      return
    }
    this.#log.error({ phase, err }, 'sandbox.operation_failed')
    this.#settle({ ...this.memory.to('failed'), retryAt: Date.now() + RETRY_MS })
  }

  /** Changes what is, for everybody who looks. */
  #settle(change: Partial<ResidentState>): void {
    this.memory.save(change)
    this.#changes.tell()
    this.#context.onChange(this, true)
  }

  #saveActivity(): void {
    this.memory.save({ lastActivityAt: this.#activity.lastAt ?? null })
    if (Date.now() - this.#activityToldAt < ACTIVITY_TOLD_MS) return
    this.#activityToldAt = Date.now()
    this.#context.onChange(this, false)
  }
}

/** Of a sandbox that never had files: nothing is made from it. */
const noImage: RunnableImage = { reference: '', digest: '', layers: [], config: {} }

const stoppedBy = (reason: StopReason, now: number): ResidentState['outcome'] => ({
  state: 'stopped',
  reason: { ...reason, at: new Date(now).toISOString() },
})

const round = (ms: number) => Math.max(0, Math.round(ms * 100) / 100)
