// container-run.ts: one container of a sandbox that stays, from the first step up to the release of all that it held. It
// knows how, not when: resident.ts decides, and is told the end once, however it came about.
//
// Order of a start: steps up → companions attach → `onSpawn` (on disk: from here on it may have run) → main process.

import { Fault, type IdRange, ignore, type SandboxId, type SandboxSpec, type TenantId } from '@berth/contracts'
import type { CgroupUsage } from '@berth/host'
import type { Logger } from '@berth/telemetry'
import { identify, readAccounts, UserNotFound } from '../runtime/identity.js'
import { InitClient } from '../runtime/init-client.js'
import { type SpawnRequest, spawnFlags } from '../runtime/init-wire.js'
import { discard, MAIN, Processes, type SandboxProcess } from '../runtime/processes.js'
import type { Ending, NotRun } from './ending.plan.js'
import type { Companion, LiveSandbox } from './live.js'
import { mainCommand, mainRequest } from './main.plan.js'
import type { RunnableImage, Surroundings } from './sandbox.js'
import { impossible, sandboxShape } from './shape.plan.js'
import { ignoresSignal } from './signals.js'
import { type Named, releaseAll, runSteps, sandboxGroup } from './steps.js'
import type { Turns } from './turns.js'

export interface RunOptions {
  readonly around: Pick<Surroundings, 'shop' | 'starts'>
  readonly log: Logger
  readonly companions: readonly Companion[]
  readonly live: LiveSandbox
  readonly named: Named & { readonly id: SandboxId; readonly tenantId: TenantId }
  readonly ids: IdRange
  readonly spec: SandboxSpec
  readonly image: RunnableImage
  readonly hostname: string
  readonly upper: string
  /** Only for leases: no main process, no companions, and only so many of them at once. */
  readonly hidden: boolean
  readonly hiddenPlaces: Turns
  /** Says that it is frozen, and cannot answer. */
  readonly frozen: () => boolean
  /** Called right before the main process, if there is one, may begin to run. */
  readonly onSpawn: () => void
}

export interface Up {
  /** Milliseconds from the first step until the container was there, and until the main process ran. */
  readonly startMs: number
}

const CONNECT_TIMEOUT_MS = 10_000
/** A berth-init that was to kill everything and has not by then is killed with it. */
const OVERDUE_MS = 2_000
/** Ends of other processes follow that of the main one within a moment. */
const DRAIN_MS = 1_000

const SIGHUP = 1
const SIGKILL = 9
const SIGCONT = 18

export class ContainerRun {
  readonly #options: RunOptions
  readonly #abort = new AbortController()
  #processes: Processes | undefined
  #main: SandboxProcess | undefined
  #end: (ending: Ending) => void = () => undefined
  #overdue: NodeJS.Timeout | undefined
  #abandoned = false
  #placed = false
  #over = false
  #startedAt: number | undefined
  /** Resolves once: it ended, never came up, or was withdrawn. Never once it was abandoned. */
  readonly ended: Promise<Ending>

  constructor(options: RunOptions) {
    this.#options = options
    this.ended = new Promise((resolve) => {
      this.#end = (ending) => {
        if (this.#abandoned) return
        this.#over = true
        resolve(ending)
      }
    })
  }

  get hidden(): boolean {
    return this.#options.hidden
  }

  get processes(): Processes | undefined {
    return this.#processes
  }

  get main(): SandboxProcess | undefined {
    return this.#main
  }

  /** When it came up, in Unix milliseconds; undefined while it has not. */
  get startedAt(): number | undefined {
    return this.#startedAt
  }

  get group(): string {
    return sandboxGroup(this.#options.around.shop, this.#options.named)
  }

  /** @returns undefined where it did not come up: `ended` says why */
  async start(): Promise<Up | undefined> {
    try {
      if (this.hidden) await this.#takePlace()
      const began = performance.now()
      const notRun = await this.#options.around.starts.run(() => this.#climb())
      if (notRun) return this.#failed(notRun)
      return (await this.#begin(false)) ? { startMs: performance.now() - began } : undefined
    } catch (err) {
      if (this.#abort.signal.aborted) return this.#failed({ kind: 'withdrawn' })
      this.#options.log.error({ err }, 'sandbox.start_failed')
      const message = 'the sandbox could not be started; the node has logged why'
      return this.#failed({ kind: 'notRun', code: 'start_failed', message })
    }
  }

  /** Goes on with the container of an agent before this one; one that is frozen is not waited for. */
  async adopt(): Promise<void> {
    try {
      await this.#begin(true)
    } catch (error) {
      this.#end({ kind: 'gone', error: error instanceof Error ? error : new Error(String(error)) })
    }
  }

  /** Breaks a start off; one that is up ends with it. */
  withdraw(): void {
    this.#abort.abort()
    if (this.#processes) this.kill()
  }

  /** Tells it to end. Without a main process everything is told, with SIGTERM, whatever `signal` says. */
  stop(signal: number, graceMs: number): void {
    if (!this.#main) {
      this.#processes?.shutdown(graceMs)
      return
    }
    this.#main.signal(signal, 'group')
    if (this.#options.spec.tty) void this.#hangUp(this.#main, signal)
  }

  /** Kills everything in it. */
  kill(): void {
    if (this.#main) this.#main.signal(SIGKILL, 'sandbox')
    else this.#processes?.shutdown(0)
    this.#overdue ??= setTimeout(() => void this.#killGroup(), this.#main || this.#processes ? OVERDUE_MS : 0)
  }

  usage(): CgroupUsage | undefined {
    return this.#options.around.shop.cgroups.usage(this.group)
  }

  async #takePlace(): Promise<void> {
    await this.#options.hiddenPlaces.take(this.#abort.signal)
    this.#placed = true
  }

  /** Lets go of everything it held. Repeatable. @throws AggregateError of what could not be released */
  async release(): Promise<void> {
    const { around, named, log } = this.#options
    clearTimeout(this.#overdue)
    await within(this.#processes?.allEnded() ?? Promise.resolve(), DRAIN_MS)
    await this.#detach()
    this.#processes?.close()
    await releaseAll(around.shop, named, log, runSteps)
    if (this.#placed) this.#options.hiddenPlaces.release()
    this.#placed = false
  }

  /** Leaves it to another agent process. */
  abandon(): void {
    this.#abandoned = true
    // A start is let come to its end; a hidden one may be waiting for its place yet.
    if (this.hidden) this.#abort.abort()
    clearTimeout(this.#overdue)
    this.#processes?.close()
  }

  #failed(ending: Ending): undefined {
    this.#end(ending)
  }

  async #climb(): Promise<Ending | undefined> {
    const { around, named, ids, spec, image, hostname, log } = this.#options
    const { shop } = around
    const why = impossible(spec, shop.abilities)
    if (why !== undefined) return { kind: 'notRun', code: 'start_failed', message: why, final: true }
    const { signal } = this.#abort
    const wanted = { ...named, ids, shape: sandboxShape(spec, shop.abilities), image, hostname, signal }
    for (const step of runSteps) {
      if (signal.aborted || this.#abandoned) return { kind: 'withdrawn' }
      log.debug({ step: step.name }, 'step.acquire')
      await step.acquire(shop, wanted)
      log.debug({ step: step.name }, 'step.acquired')
    }
    return signal.aborted || this.#abandoned ? { kind: 'withdrawn' } : undefined
  }

  /** @returns false where it has ended already, which `ended` tells */
  async #begin(adopted: boolean): Promise<boolean> {
    const { named, log, live, hidden, frozen } = this.#options
    const processes = Processes.open({
      socket: named.paths.socket,
      log,
      timeoutMs: CONNECT_TIMEOUT_MS,
      frozen,
    })
    this.#processes = processes
    void processes.closed.then((error) => this.#gone(error))
    if (!frozen()) await processes.known()
    if (this.#abandoned) return false
    for (const companion of hidden ? [] : this.#options.companions) {
      try {
        await companion.attach(live, adopted)
      } catch (err) {
        // What it keeps cannot be used; everything else of the sandbox can.
        log.error({ companion: companion.name, err }, 'companion.attach_failed')
      }
    }
    const main = await this.#mainProcess(processes, adopted)
    processes.endOthers()
    if (!main) this.#startedAt = Date.now()
    if (main && !adopted) await main.started
    return !this.#over
  }

  /** Starts the main process, or goes on with it; undefined of a sandbox that has none. */
  async #mainProcess(processes: Processes, adopted: boolean): Promise<SandboxProcess | undefined> {
    const { spec, image, hidden, live, companions } = this.#options
    const command = hidden ? [] : mainCommand(spec, image.config)
    if (command.length === 0) {
      if (!adopted) this.#options.onSpawn()
      return undefined
    }
    const sinks = companions.map((companion) => companion.mainOutput?.(live)).find((found) => found !== undefined)
    const output = sinks ?? { stdout: discard, stderr: discard }
    const known = adopted && (this.#options.frozen() || (await processes.known()).some(({ proc }) => proc === MAIN))
    if (known) return this.#follow(processes.resume(MAIN, spec.tty ? spawnFlags.tty : 0, output))
    const request = this.#request(command)
    if ('kind' in request) {
      this.#end(request)
      this.kill()
      return undefined
    }
    this.#options.onSpawn()
    if (this.#abort.signal.aborted) {
      this.#end({ kind: 'withdrawn' })
      return undefined
    }
    return this.#follow(processes.run(MAIN, request, output))
  }

  #follow(main: SandboxProcess): SandboxProcess {
    this.#main = main
    void main.started.then((started) => {
      if (started.kind === 'started') this.#startedAt = Date.now() - started.sinceMs
    })
    void main.ended.then((end) => this.#end(end))
    return main
  }

  /** Users are looked up in what the sandbox sees, which in a later run may be its own. */
  #request(command: readonly string[]): SpawnRequest | NotRun {
    const { spec, image, hostname, upper, ids } = this.#options
    try {
      const accounts = readAccounts([upper, ...image.layers])
      const who = identify(spec.user ?? image.config.user, accounts, ids.count, spec.groups)
      return mainRequest(spec, image.config, command, who, hostname)
    } catch (error) {
      if (!(error instanceof UserNotFound)) throw error
      return { kind: 'notRun', code: 'user_not_found', message: error.message }
    }
  }

  /** berth-init is not there any more. With a main process that is its end, told by itself. */
  #gone(error: Error | undefined): void {
    if (this.#main) return
    this.#end({ kind: 'gone', error: error ?? new Error('the agent let go of the sandbox') })
  }

  /**
   * A shell on a terminal ignores SIGTERM, and would take its whole grace. The hang-up of its terminal it does not
   * ignore; a program that heeds the stop signal is left alone with it.
   */
  async #hangUp(main: SandboxProcess, signal: number): Promise<void> {
    const { around, log } = this.#options
    try {
      const started = await main.started
      const processes = around.shop.cgroups.processes(this.group)
      if (started.kind !== 'started' || !ignoresSignal(processes, started.pid, signal)) return
      main.signal(SIGHUP, 'group')
      main.signal(SIGCONT, 'group')
    } catch (err) {
      log.error({ err }, 'sandbox.hang_up_failed')
    }
  }

  async #killGroup(): Promise<void> {
    const { around, log } = this.#options
    try {
      await around.shop.cgroups.kill(this.group)
    } catch (err) {
      log.error({ err }, 'sandbox.kill_failed')
    }
  }

  async #detach(): Promise<void> {
    const { companions, live, hidden, log } = this.#options
    for (const companion of hidden ? [] : [...companions].reverse()) {
      try {
        await companion.detach(live)
      } catch (err) {
        log.error({ companion: companion.name, err }, 'companion.detach_failed')
      }
    }
  }
}

/** Any answer will do: a connection that is opened and dropped changes nothing in the sandbox. */
export async function answers(socket: string, timeoutMs: number): Promise<boolean> {
  try {
    const client = await InitClient.open(socket, { timeoutMs })
    client.close()
    return true
  } catch (error) {
    if (error instanceof Fault || ignore(error, 'ENOENT') === undefined) return false
    throw error
  }
}

async function within(work: Promise<unknown>, ms: number): Promise<void> {
  let timer: NodeJS.Timeout | undefined
  await Promise.race([work, new Promise((resolve) => (timer = setTimeout(resolve, ms)))])
  clearTimeout(timer)
}
