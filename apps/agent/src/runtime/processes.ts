// processes.ts: everything that runs in one sandbox, over one connection to its berth-init that is opened again whenever
// it breaks. The agent chooses the numbers of processes, and whoever started one writes its number down first: after a
// restart of the agent the same `run` with the same number goes on with it.
//
// A new connection tells everything again, and what it tells of a process that nobody has claimed would be lost. So
// while berth-init knows such processes nothing is read from it, until `endOthers` says that all claims are made.

import { Failure, Fault, invariant } from '@berth/contracts'
import type { Logger } from '@berth/telemetry'
import { InitClient, type ProcessInfo } from './init-client.js'
import { type InitEvent, type SpawnRequest, spawnFlags } from './init-wire.js'
import { discard, FollowedProcess, type OutputSinks, type SandboxProcess } from './sandbox-process.js'

export type { ProcessInfo } from './init-client.js'
export type { MainEnd, OutputSink, OutputSinks, SandboxProcess, Started } from './sandbox-process.js'
export { discard, UnknownProcess } from './sandbox-process.js'

export interface ProcessesOptions {
  /** Path of berth-init's socket, of any length. */
  readonly socket: string
  readonly log: Logger
  /** For connecting and greeting, each time. */
  readonly timeoutMs: number
  /** Says that the sandbox is frozen and cannot answer: then `timeoutMs` does not count. */
  readonly frozen?: (() => boolean) | undefined
}

/** The number of the main process; others are given out above it. */
export const MAIN = 1

/** Connections that end again and again without any event in between are those of a dead sandbox. */
const MAX_IDLE_CONNECTIONS = 3
const SIGKILL = 9

export class Processes {
  readonly #options: ProcessesOptions
  readonly #claimed = new Map<number, FollowedProcess>()
  readonly #first: Promise<void>
  #greeted: () => void = () => undefined
  #client: InitClient | undefined
  #known: readonly ProcessInfo[] = []
  #hasGreeted = false
  #begun = false
  /** Grace of a shutdown that was asked for; told again to each connection, since it may have been lost. */
  #shutdownMs: number | undefined
  readonly #closing = new AbortController()
  #allClaimed = false
  #last = MAIN
  #events = 0
  #ending: 'no' | 'closed' | 'gone' = 'no'
  /** Resolves when there is no connection and will be none: undefined after `close`, else why. */
  readonly closed: Promise<Error | undefined>

  private constructor(options: ProcessesOptions) {
    this.#options = options
    this.#first = new Promise((resolve) => {
      this.#greeted = resolve
    })
    this.closed = this.#follow()
  }

  /** Begins to connect; `known` tells when that is done. */
  static open(options: ProcessesOptions): Processes {
    return new Processes(options)
  }

  /**
   * What berth-init knew when it was greeted last.
   * @throws Fault when it cannot be reached
   */
  async known(): Promise<readonly ProcessInfo[]> {
    const error = await Promise.race([this.#first.then(() => undefined), this.closed.then(unreached)])
    if (error) throw error
    return this.#known
  }

  /** A number that berth-init does not know and nobody was given. Only once `known` has resolved. */
  allocate(): number {
    invariant(this.#hasGreeted, 'a number can be given only where those in use are known')
    this.#last += 1
    return this.#last
  }

  /** Starts a process, or goes on with it where berth-init knows its number. */
  run(proc: number, spawn: SpawnRequest, sinks: OutputSinks): SandboxProcess {
    return this.#claim(proc, spawn, false, sinks)
  }

  /**
   * Goes on with a process that an agent before this one started, with the same flags as far as they are about input and
   * output. Where berth-init does not know it, it is gone with `UnknownProcess`.
   */
  resume(proc: number, flags: number, sinks: OutputSinks): SandboxProcess {
    return this.#claim(proc, { ...nothing, flags }, true, sinks)
  }

  /** All that is to go on was claimed: whatever else berth-init knows, now or later, is killed and forgotten. */
  endOthers(): void {
    this.#allClaimed = true
    this.#begin()
  }

  /** Resolves when all that was claimed until now has ended. */
  async allEnded(): Promise<void> {
    await Promise.all([...this.#claimed.values()].map((process) => process.ended))
  }

  /** Asks berth-init to end everything, itself last: SIGTERM, after the grace SIGKILL. */
  shutdown(graceMs: number): void {
    this.#shutdownMs = graceMs
    this.#client?.send({ type: 'shutdown', graceMs })
  }

  /** To everything in the sandbox but berth-init. @throws Failure `unavailable` while it does not answer */
  signalAll(signal: number): void {
    if (!this.#client) throw new Failure('unavailable', 'the sandbox does not answer')
    this.#client.send({ type: 'signal', proc: 0, signal, scope: 'sandbox' })
  }

  /** Ends the connection and leaves the processes alone; here they count as gone. */
  close(): void {
    this.#ending = 'closed'
    this.#closing.abort()
    this.#client?.close()
    this.#loseAll(new Error('the agent let go of the sandbox'))
  }

  #claim(proc: number, spawn: SpawnRequest, resumed: boolean, sinks: OutputSinks): SandboxProcess {
    invariant(!this.#claimed.has(proc), `process ${proc} is run once`)
    const process = new FollowedProcess(proc, {
      spawn,
      resumed,
      sinks,
      log: this.#options.log,
      onForget: (it) => this.#forget(it),
    })
    this.#last = Math.max(this.#last, proc)
    this.#claimed.set(proc, process)
    if (this.#ending !== 'no') process.lose(new Error('the sandbox has ended'))
    else if (this.#client && this.#begun) process.connect(this.#client, this.#infoOf(proc))
    else this.#begin()
    return process
  }

  async #follow(): Promise<Error | undefined> {
    let error: Error | undefined
    for (let idle = 0; !error && this.#ending === 'no'; ) {
      const before = this.#events
      error = await this.#connection()
      idle = this.#events > before ? 0 : idle + 1
      if (idle >= MAX_IDLE_CONNECTIONS) error ??= new Error('the connection to berth-init ended again and again')
    }
    if (this.#ending === 'closed') return undefined
    this.#ending = 'gone'
    this.#loseAll(error ?? new Error('the connection to berth-init ended'))
    return error
  }

  /** One connection from its greeting to its end. @returns why there was none */
  async #connection(): Promise<Error | undefined> {
    const { socket, timeoutMs, frozen } = this.#options
    let client: InitClient
    try {
      client = await InitClient.open(socket, { timeoutMs, frozen, signal: this.#closing.signal })
    } catch (error) {
      return error instanceof Error ? error : new Error(String(error))
    }
    if (this.#ending === 'no') this.#greet(client)
    else client.close()
    await client.closed
    this.#client = undefined
    this.#begun = false
    for (const process of this.#claimed.values()) process.disconnect()
    return undefined
  }

  #greet(client: InitClient): void {
    this.#client = client
    this.#known = client.processes
    for (const { proc } of this.#known) this.#last = Math.max(this.#last, proc)
    this.#hasGreeted = true
    this.#greeted()
    this.#begin()
  }

  /** Goes on with everything, unless there is something that may still be claimed. */
  #begin(): void {
    const client = this.#client
    if (!client || this.#begun) return
    const unclaimed = this.#known.filter(({ proc }) => !this.#claimed.has(proc))
    if (unclaimed.length > 0 && !this.#allClaimed) return
    this.#begun = true
    for (const process of [...this.#claimed.values()]) process.connect(client, this.#infoOf(process.proc))
    for (const info of unclaimed) this.#end(info, client)
    if (this.#shutdownMs !== undefined) client.send({ type: 'shutdown', graceMs: this.#shutdownMs })
    client.listen((event) => this.#receive(event))
  }

  #infoOf(proc: number): ProcessInfo | undefined {
    return this.#known.find((info) => info.proc === proc)
  }

  #receive(event: InitEvent): void {
    this.#events += 1
    if ('proc' in event) this.#claimed.get(event.proc)?.receive(event)
  }

  /** A process that nobody wants: its record was lost, or the request to forget it was. */
  #end(info: ProcessInfo, client: InitClient): void {
    const process = new FollowedProcess(info.proc, {
      spawn: nothing,
      sinks: { stdout: discard, stderr: discard },
      log: this.#options.log,
      onForget: (it) => this.#forget(it),
    })
    this.#claimed.set(info.proc, process)
    process.connect(client, info)
    if (info.state === 'starting' || info.state === 'running') process.signal(SIGKILL, 'group')
    void process.ended.then(() => process.forget())
  }

  #forget(process: FollowedProcess): void {
    if (this.#claimed.get(process.proc) !== process) return
    this.#claimed.delete(process.proc)
    // Where it gets lost, the next greeting finds a process that nobody claims.
    this.#client?.send({ type: 'forget', proc: process.proc })
    process.lose(new Error('forgotten'))
  }

  #loseAll(error: Error): void {
    for (const process of this.#claimed.values()) process.lose(error)
  }
}

const unreached = (error: Error | undefined) =>
  new Fault('reach berth-init', { cause: error ?? new Error('the agent let go of the sandbox') })

/** Never sent: berth-init knows the process already. */
const nothing: SpawnRequest = {
  flags: spawnFlags.stderrToStdout,
  uid: 0,
  gid: 0,
  groups: [],
  capabilities: { bounding: 0n, effective: 0n, inheritable: 0n, ambient: 0n },
  limits: [],
  timeoutMs: 0,
  graceMs: 0,
  oomScoreAdj: 0,
  rows: 0,
  columns: 0,
  ringBytes: 0,
  cwd: '/',
  argv: ['true'],
  env: [],
}
