// sandbox.ts: the life of one attempt, from its command to its stored result; the supervisor reports and releases.
//
//   climb (steps.ts, journalled one by one) → spawn → follow the command → conclude: usage, outcome, result.json
//
// After a crash of the agent the same life is entered half-way (`Entry`): `adopt` follows on, `lose` and `withdraw`
// only conclude, `ended` has its result already. Whatever happens in between, `live` ends with a result: nothing here throws past it.

import { type AttemptId, Failure, type RunAttempt, type SandboxId, type TenantId } from '@berth/contracts'
import type { Logger } from '@berth/telemetry'
import {
  type AcceptedAttempt,
  type AttemptPaths,
  type AttemptResult,
  type Cancel,
  type Journal,
  keepUntil,
} from '../journal.js'
import { OutputFile } from '../logs/store.js'
import { identify, readAccounts, UserNotFound } from '../runtime/identity.js'
import type { SpawnRequest, StreamName } from '../runtime/init-wire.js'
import { MAIN, Processes, type SandboxProcess } from '../runtime/processes.js'
import { decideOutcome, type Ending, type NotRun } from './outcome.plan.js'
import { hostnameOf, type ImageConfig, spawnRequest } from './process.plan.js'
import { jobShape } from './shape.plan.js'
import { type Named, type SandboxImage, sandboxGroup, steps, type Workshop } from './steps.js'
import type { Turns } from './turns.js'

export interface RunnableImage extends SandboxImage {
  /** As the node knows it. */
  readonly reference: string
  readonly digest: string
  readonly config: ImageConfig
}

export interface WantedImage {
  /** As the user wrote it. */
  readonly reference: string
  /** What the API resolved it to; undefined: a base image by its name. */
  readonly digest: string | undefined
  /** For whom it is brought where the node lacks it. */
  readonly need: { readonly for: AttemptId | SandboxId; readonly owner: TenantId }
  readonly signal: AbortSignal
}

/**
 * Finds an image, and brings one that is known by its digest.
 * @returns undefined when the node has no such image
 * @throws Failure image_unavailable; the signal's reason
 */
export type ResolveImage = (wanted: WantedImage) => Promise<RunnableImage | undefined>

/** What every sandbox of an agent shares. */
export interface Surroundings {
  readonly shop: Workshop
  readonly resolveImage: ResolveImage
  /** How many containers may be starting at once. */
  readonly starts: Turns
  readonly log: Logger
}

export interface AttemptSurroundings extends Surroundings {
  readonly journal: Journal
}

/** Where a life begins: with nothing, or where a crashed agent left it. */
export type Entry = 'begin' | 'adopt' | 'lose' | 'withdraw' | 'ended'

export interface Life {
  readonly accepted: AcceptedAttempt
  readonly entry: Entry
  readonly cancel: Cancel | undefined
  /** From the journal of a former agent. */
  readonly spawned: { readonly imageMs: number; readonly rootfsMs: number; readonly startingAt: number } | undefined
  /** Of an attempt that has `ended`. */
  readonly result: AttemptResult | undefined
  readonly onStarted: (at: Date) => void
}

/** What an attempt needs of its image. */
interface Prepared {
  readonly image: RunnableImage
  readonly spawn: SpawnRequest
}

type Outputs = Readonly<Record<StreamName, OutputFile>>

/** The agent ends what its berth-init should have ended this much earlier. */
const OVERDUE_MS = 5_000
const CONNECT_TIMEOUT_MS = 10_000
const INPUT_BYTES = 64 * 1024
const SIGTERM = 15
const SIGKILL = 9

export class Sandbox implements Named {
  readonly #around: AttemptSurroundings
  readonly #life: Life
  readonly #log: Logger
  readonly #abort = new AbortController()
  /** Ends the way of an image here: nothing is waited for that may take minutes. */
  readonly #left = new AbortController()
  readonly #outputs = deferred<Outputs | undefined>()
  #timers: NodeJS.Timeout[] = []
  #cancel: Cancel | undefined
  #processes: Processes | undefined
  #main: SandboxProcess | undefined
  #imageMs: number | undefined
  #rootfsMs: number | undefined
  #startingAt: number | undefined
  #startedAt: Date | undefined
  #overdue = false
  #abandoned = false
  #concluded = false
  readonly paths: AttemptPaths
  /** Directories of the layers that it is on, once its image was found. */
  layers: readonly string[] = []

  constructor(around: AttemptSurroundings, life: Life) {
    this.#around = around
    this.#life = life
    this.#cancel = life.cancel
    this.#imageMs = life.spawned?.imageMs
    this.#rootfsMs = life.spawned?.rootfsMs
    this.#startingAt = life.spawned?.startingAt
    this.paths = around.journal.paths(this.id)
    this.#log = around.log.child({ attempt: this.id })
  }

  get command(): RunAttempt {
    return this.#life.accepted.command
  }

  get id(): RunAttempt['attemptId'] {
    return this.command.attemptId
  }

  get tenantId(): RunAttempt['tenantId'] {
    return this.command.tenantId
  }

  /** The newest generation seen. */
  get generation(): number {
    return Math.max(this.command.generation, this.#cancel?.generation ?? 0)
  }

  get startedAt(): Date | undefined {
    return this.#startedAt
  }

  /** Lives the attempt to its end. @returns its result, which is on disk; undefined once abandoned */
  async live(): Promise<AttemptResult | undefined> {
    if (this.#life.result) return this.#stored(this.#life.result)
    const ending = await this.#reachEnding()
    if (this.#abandoned) {
      await this.#endOutputs()
      return undefined
    }
    const endedAt = new Date()
    this.#log.debug({ ending: ending.kind }, 'attempt.ended')
    return this.#conclude(ending, endedAt)
  }

  #stored(result: AttemptResult): AttemptResult {
    this.#concluded = true
    this.#outputs.resolve(undefined)
    return result
  }

  /** SIGTERM, then SIGKILL to all after the grace; before the command runs it never will. Repeats change nothing. */
  cancel(cancel: Cancel): void {
    if (this.#concluded || this.#cancel) return
    this.#cancel = cancel
    this.#around.journal.append(this.id, { event: 'cancel', cancel })
    this.#abort.abort()
    this.#terminate()
  }

  /** Ends everything in it now; `live` then ends too. */
  async kill(): Promise<void> {
    this.#abort.abort()
    await this.#around.shop.cgroups.kill(this.#group)
  }

  /** Leaves the sandbox to another agent process. */
  abandon(): void {
    this.#abandoned = true
    this.#left.abort()
    for (const timer of this.#timers) clearTimeout(timer)
    this.#processes?.close()
  }

  /** A stream while it is written; resolves once the sandbox has started, to undefined if it never does. */
  async output(stream: StreamName): Promise<OutputFile | undefined> {
    return (await this.#outputs.promise)?.[stream]
  }

  get #group(): string {
    return sandboxGroup(this.#around.shop, this)
  }

  async #reachEnding(): Promise<Ending> {
    switch (this.#life.entry) {
      case 'begin':
        return this.#begin()
      case 'adopt':
        return this.#adopt()
      case 'ended':
      case 'lose':
        return { kind: 'gone', error: new Error('it ended while the agent was away') }
      case 'withdraw':
        return { kind: 'withdrawn' }
    }
  }

  async #begin(): Promise<Ending> {
    try {
      const prepared = await this.#prepare()
      if ('kind' in prepared) return prepared
      const spawn = await this.#around.starts.run(() => this.#climb(prepared))
      return 'kind' in spawn ? spawn : await this.#follow(spawn)
    } catch (err) {
      if (this.#cancel || this.#abort.signal.aborted || this.#abandoned) return { kind: 'withdrawn' }
      this.#log.error({ err }, 'attempt.start_failed')
      return {
        kind: 'notRun',
        code: 'start_failed',
        message: 'the sandbox could not be started; the node has logged why',
      }
    }
  }

  async #adopt(): Promise<Ending> {
    try {
      const prepared = await this.#prepare()
      return 'kind' in prepared ? prepared : await this.#follow(prepared.spawn)
    } catch (error) {
      return { kind: 'gone', error: error instanceof Error ? error : new Error(String(error)) }
    }
  }

  /** Image and user: what can be wrong with the spec on this node. */
  async #prepare(): Promise<Prepared | NotRun> {
    const { spec, ids } = this.command
    const began = performance.now()
    const image = await this.#findImage()
    if (image && 'kind' in image) return image
    this.layers = image?.layers ?? []
    this.#imageMs ??= performance.now() - began
    if (!image) return { kind: 'notRun', code: 'image_not_found', message: `the node has no image ${spec.image}` }
    try {
      const who = identify(spec.user ?? image.config.user, readAccounts(image.layers), ids.count)
      return { image, spawn: spawnRequest(spec, image.config, who, hostnameOf(spec, this.id)) }
    } catch (error) {
      if (!(error instanceof UserNotFound)) throw error
      return { kind: 'notRun', code: 'user_not_found', message: error.message }
    }
  }

  async #findImage(): Promise<RunnableImage | undefined | NotRun> {
    const { spec, image: digest } = this.command
    const signal = AbortSignal.any([this.#abort.signal, this.#left.signal])
    const need = { for: this.id, owner: this.tenantId }
    try {
      return await this.#around.resolveImage({ reference: spec.image, digest, need, signal })
    } catch (error) {
      if (!(error instanceof Failure) || error.code !== 'image_unavailable') throw error
      return { kind: 'notRun', code: error.code, message: error.message }
    }
  }

  async #climb({ image, spawn }: Prepared): Promise<SpawnRequest | Ending> {
    const { shop, journal } = this.#around
    const began = performance.now()
    const { ids, spec } = this.command
    const wanted = { ...this.#named(), ids, shape: jobShape(spec), image, hostname: hostnameOf(spec, this.id) }
    for (const step of steps) {
      if (this.#abort.signal.aborted) return { kind: 'withdrawn' }
      if (step.name === 'container') this.#startingAt = Date.now()
      if (step.name === 'container') this.#rootfsMs = performance.now() - began
      journal.append(this.id, { event: 'acquire', step: step.name })
      this.#log.debug({ step: step.name }, 'step.acquire')
      await step.acquire(shop, { ...wanted, signal: this.#abort.signal })
      this.#log.debug({ step: step.name }, 'step.acquired')
    }
    if (this.#abort.signal.aborted || this.#abandoned) return { kind: 'withdrawn' }
    const [imageMs, rootfsMs, startingAt] = [this.#imageMs ?? 0, this.#rootfsMs ?? 0, this.#startingAt ?? 0]
    journal.append(this.id, { event: 'spawn', imageMs, rootfsMs, startingAt })
    this.#log.debug({}, 'attempt.spawn')
    return spawn
  }

  #named(): Named {
    return { id: this.id, tenantId: this.tenantId, paths: this.paths }
  }

  async #follow(spawn: SpawnRequest): Promise<Ending> {
    const { spec } = this.command
    const sinks = await this.#openOutputs()
    // Abandoned meanwhile: what the next agent does must not be disturbed from here.
    if (this.#abandoned) return { kind: 'gone', error: new Error('abandoned') }
    const processes = Processes.open({ socket: this.paths.socket, log: this.#log, timeoutMs: CONNECT_TIMEOUT_MS })
    const main = processes.run(MAIN, spawn, sinks)
    processes.endOthers()
    this.#processes = processes
    this.#main = main
    this.#watch(spec.timeoutMs + spec.graceMs + OVERDUE_MS)
    if (this.#cancel) this.#terminate()
    void main.started.then((start) => start.kind === 'started' && this.#started(start.sinceMs))
    if (spec.stdin !== undefined) void this.#feed(main, Buffer.from(spec.stdin, 'base64'))
    const end = await main.ended
    processes.close()
    return end
  }

  /** Writes the whole input, from the beginning also after a restart: what the command has is dropped as a repeat. */
  async #feed(main: SandboxProcess, stdin: Buffer): Promise<void> {
    try {
      for (let at = 0; at < stdin.length; at += INPUT_BYTES) await main.write(at, stdin.subarray(at, at + INPUT_BYTES))
      await main.endInput(stdin.length)
    } catch (error) {
      // The command ended without reading all of it, which its exit code has to tell.
      if (!(error instanceof Failure)) throw error
    }
  }

  async #openOutputs(): Promise<Outputs> {
    const { outputBytes } = this.command.spec.limits
    const [stdout, stderr] = await Promise.all([
      OutputFile.open(this.paths.stdout, outputBytes),
      OutputFile.open(this.paths.stderr, outputBytes),
    ])
    const outputs = { stdout, stderr }
    this.#outputs.resolve(outputs)
    return outputs
  }

  #started(sinceMs: number): void {
    if (this.#startedAt) return
    this.#startedAt = new Date(Date.now() - sinceMs)
    this.#log.debug({}, 'attempt.started')
    // A cancel that came while there was no process to signal yet.
    if (this.#cancel) this.#main?.signal(SIGTERM, 'group')
    this.#life.onStarted(this.#startedAt)
  }

  /** berth-init keeps the timeout; this is for a berth-init that does not. */
  #watch(ms: number): void {
    this.#later(ms, () => {
      this.#overdue = true
      return this.#around.shop.cgroups.kill(this.#group)
    })
  }

  #terminate(): void {
    if (!this.#main) return
    const { graceMs } = this.command.spec
    this.#main.signal(SIGTERM, 'group')
    this.#later(graceMs, () => this.#main?.signal(SIGKILL, 'sandbox'))
    this.#later(graceMs + OVERDUE_MS, () => this.#around.shop.cgroups.kill(this.#group))
  }

  #later(ms: number, act: () => Promise<void> | void): void {
    const guarded = async () => {
      try {
        await act()
      } catch (err) {
        this.#log.error({ err }, 'attempt.kill_failed')
      }
    }
    this.#timers.push(setTimeout(() => void guarded(), ms))
  }

  async #conclude(ending: Ending, endedAt: Date): Promise<AttemptResult> {
    this.#concluded = true
    for (const timer of this.#timers) clearTimeout(timer)
    const outputs = await this.#endOutputs()
    const result = this.#resultOf(ending, endedAt, outputs)
    this.#around.journal.finish(result)
    this.#log.debug({}, 'attempt.result')
    return result
  }

  /** Of a sandbox that never came so far there are none, and followers are told. */
  async #endOutputs(): Promise<Outputs | undefined> {
    this.#outputs.resolve(undefined)
    const outputs = await this.#outputs.promise
    await Promise.all([outputs?.stdout.end(), outputs?.stderr.end()])
    return outputs
  }

  #resultOf(ending: Ending, endedAt: Date, outputs: Outputs | undefined): AttemptResult {
    const { spec, placedAt } = this.command
    const usage = this.#around.shop.cgroups.usage(this.#group)
    const about = {
      cancel: this.#cancel,
      oomKills: usage?.oomKills ?? 0,
      overdue: this.#overdue,
      limits: { memoryBytes: spec.limits.memoryBytes, timeoutMs: spec.timeoutMs },
    }
    const wallMs = this.#wallMs(ending, endedAt)
    const startedAt = this.#startedAt
    const since = (from: number | undefined, to: number) => (from === undefined ? null : Math.max(0, round(to - from)))
    return {
      kind: 'finished',
      attemptId: this.id,
      generation: this.generation,
      ...decideOutcome(ending, about),
      usage:
        wallMs === null
          ? null
          : {
              wallMs,
              cpuMs: round((usage?.cpuUsageUs ?? 0) / 1000),
              peakMemoryBytes: usage?.memoryPeakBytes ?? 0,
              stdout: streamUsage(outputs?.stdout),
              stderr: streamUsage(outputs?.stderr),
            },
      phases: {
        placeMs: since(Date.parse(placedAt), Date.parse(this.#life.accepted.acceptedAt)),
        imageMs: this.#imageMs === undefined ? null : round(this.#imageMs),
        rootfsMs: this.#rootfsMs === undefined ? null : round(this.#rootfsMs),
        startMs: startedAt ? since(this.#startingAt, startedAt.getTime()) : null,
        runMs: wallMs,
        finishMs: since(endedAt.getTime(), Date.now()),
      },
      startedAt: startedAt?.toISOString() ?? null,
      finishedAt: endedAt.toISOString(),
      keepUntil: keepUntil(endedAt, spec.retentionMs),
    }
  }

  /** How long the command ran; null if it never did. */
  #wallMs(ending: Ending, endedAt: Date): number | null {
    if (ending.kind === 'exited') return round(ending.exit.wallMs)
    return this.#startedAt ? Math.max(0, endedAt.getTime() - this.#startedAt.getTime()) : null
  }
}

function deferred<T>() {
  let resolve: (value: T) => void = () => undefined
  const promise = new Promise<T>((settle) => {
    resolve = settle
  })
  return { promise, resolve }
}

const round = (ms: number) => Math.round(ms * 100) / 100

const streamUsage = (output: OutputFile | undefined) => ({
  bytes: output?.total ?? 0,
  keptBytes: output?.kept ?? 0,
  truncated: output?.truncated ?? false,
})
