// exec.fixture.ts: a driver whose processes do what a test tells them to, over any number of agents.

import { Failure } from '@berth/contracts'
import type { ProcessExit, SpawnRequest, StreamName, signalScopes } from '../runtime/init-wire.js'
import {
  type MainEnd,
  type OutputSinks,
  type SandboxProcess,
  type Started,
  UnknownProcess,
} from '../runtime/processes.js'
import type { ExecDriver } from './exec-driver.js'

/** What goes on whatever becomes of the agent: output that was not acknowledged, and the end. */
export class ScriptedProcess {
  readonly output: Record<StreamName, { bytes: Buffer; acknowledged: number }> = {
    stdout: { bytes: Buffer.alloc(0), acknowledged: 0 },
    stderr: { bytes: Buffer.alloc(0), acknowledged: 0 },
  }
  readonly signals: string[] = []
  readonly sizes: string[] = []
  input = Buffer.alloc(0)
  inputEnd: number | undefined
  started = true
  end: MainEnd | undefined
  /** Somebody holds its output. */
  held = false
  forgotten = false
  #followers: Followed[] = []

  constructor(
    readonly number: number,
    readonly spawn: SpawnRequest | undefined,
  ) {}

  follow(sinks: OutputSinks): SandboxProcess {
    const followed = new Followed(this, sinks)
    this.#followers = [followed]
    followed.catchUp()
    return followed
  }

  /** The agent that followed it is no more. */
  desert(): void {
    for (const followed of this.#followers.splice(0)) followed.lose()
  }

  start(): void {
    this.started = true
    for (const followed of this.#followers) followed.catchUp()
  }

  write(stream: StreamName, text: string | Buffer): void {
    this.output[stream].bytes = Buffer.concat([this.output[stream].bytes, Buffer.from(text)])
    for (const followed of this.#followers) followed.catchUp()
  }

  exit(exit: Partial<ProcessExit> = {}): void {
    const itself = { exitCode: 0, signal: undefined, cause: 'itself', cpuMs: 1, peakMemoryBytes: 2, wallMs: 3 } as const
    this.finish({ kind: 'exited', exit: { ...itself, ...exit } })
  }

  finish(end: MainEnd): void {
    this.end = end
    for (const followed of this.#followers) followed.catchUp()
  }

  release(): void {
    this.held = false
    for (const followed of this.#followers) followed.catchUp()
  }
}

class Followed implements SandboxProcess {
  readonly started: Promise<Started | MainEnd>
  readonly ended: Promise<MainEnd>
  readonly outputEnded: Promise<void>
  #tellStarted: (started: Started | MainEnd) => void = () => undefined
  #tellEnded: (end: MainEnd) => void = () => undefined
  #tellOutputEnded: () => void = () => undefined
  readonly #process: ScriptedProcess
  readonly #sinks: OutputSinks
  readonly #sent: Record<StreamName, number>

  constructor(process: ScriptedProcess, sinks: OutputSinks) {
    this.#process = process
    this.#sinks = sinks
    const { stdout, stderr } = process.output
    this.#sent = { stdout: stdout.acknowledged, stderr: stderr.acknowledged }
    sinks.stdout.resume(stdout.acknowledged)
    sinks.stderr.resume(stderr.acknowledged)
    this.started = new Promise((resolve) => {
      this.#tellStarted = resolve
    })
    this.ended = new Promise((resolve) => {
      this.#tellEnded = resolve
    })
    this.outputEnded = new Promise((resolve) => {
      this.#tellOutputEnded = resolve
    })
  }

  get proc(): number {
    return this.#process.number
  }

  get stdinAccepted(): number {
    return this.#process.input.length
  }

  catchUp(): void {
    const { output, started, end, held } = this.#process
    if (started) this.#tellStarted(end?.kind === 'failed' ? end : { kind: 'started', pid: 40, sinceMs: 0 })
    for (const stream of ['stdout', 'stderr'] as const) {
      const { bytes } = output[stream]
      const sent = this.#sent[stream]
      this.#sent[stream] = bytes.length
      if (sent < bytes.length)
        this.#sinks[stream].append(sent, bytes.subarray(sent), (offset) => {
          output[stream].acknowledged = Math.max(output[stream].acknowledged, offset)
        })
    }
    if (end) void this.#finish(end)
    if (end && !held) this.#tellOutputEnded()
  }

  lose(): void {
    this.#tellEnded({ kind: 'gone', error: new Error('the agent let go of the sandbox') })
    this.#tellOutputEnded()
  }

  async write(offset: number | undefined, bytes: Uint8Array): Promise<void> {
    const at = offset ?? this.#process.input.length
    if (this.#process.end) throw new Failure('wrong_state', 'the process has ended')
    if (at > this.#process.input.length) throw new Failure('input_gap', 'a gap')
    this.#process.input = Buffer.concat([this.#process.input.subarray(0, at), bytes])
  }

  async endInput(total?: number): Promise<number> {
    this.#process.inputEnd = total ?? this.#process.input.length
    return this.#process.inputEnd
  }

  signal(signal: number, scope: keyof typeof signalScopes): void {
    this.#process.signals.push(`${signal} ${scope}`)
    if (signal === 9 && !this.#process.end) this.#process.exit({ exitCode: undefined, signal: 9 })
  }

  resize(rows: number, columns: number): void {
    this.#process.sizes.push(`${rows}x${columns}`)
  }

  forget(): void {
    this.#process.forgotten = true
    this.#tellOutputEnded()
  }

  async #finish(end: MainEnd): Promise<void> {
    this.#tellStarted(end)
    await Promise.all([this.#sinks.stdout.settled(), this.#sinks.stderr.settled()])
    this.#tellEnded(end)
  }
}

/** berth-init as a test sees it. */
export class ScriptedDriver implements ExecDriver {
  readonly name = 'init'
  readonly processes = new Map<number, ScriptedProcess>()
  /** Processes start at once unless this says otherwise. */
  prompt = true
  onStart: (number: number) => void = () => undefined
  #last = 1

  get newest(): ScriptedProcess {
    const process = this.processes.get(this.#last)
    if (!process) throw new Error('nothing was started')
    return process
  }

  allocate(): number {
    this.#last += 1
    return this.#last
  }

  start(number: number, spawn: SpawnRequest, sinks: OutputSinks): SandboxProcess {
    this.onStart(number)
    const process = new ScriptedProcess(number, spawn)
    process.started = this.prompt
    this.processes.set(number, process)
    return process.follow(sinks)
  }

  ready(): Promise<void> {
    return Promise.resolve()
  }

  resume(number: number, _flags: number, sinks: OutputSinks): SandboxProcess {
    const process = this.processes.get(number) ?? new ScriptedProcess(number, undefined)
    if (!this.processes.has(number)) process.end = { kind: 'gone', error: new UnknownProcess(number) }
    return process.follow(sinks)
  }

  /** The agent is killed: nothing of it hears any more of any process. */
  desert(): void {
    for (const process of this.processes.values()) process.desert()
  }
}
