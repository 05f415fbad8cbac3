// oci-driver.ts: execs by `<runtime> exec`, for sandboxes whose berth-init cannot be given a socket. Slower by two
// processes on the node an exec, and less is known: an end by signal n is exit code 128 + n, there is no usage, with
// runc the end comes only when nobody holds the output any more, and processes end with the agent that started them:
// those that survived it are killed when the next one comes.

import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import type { Readable } from 'node:stream'
import { setTimeout as pause } from 'node:timers/promises'
import { errnoOf, Failure, invariant } from '@berth/contracts'
import { type ProcessEnd, type StreamedProcess, sendSignal, stream, streamOnTerminal } from '@berth/host'
import type { Logger } from '@berth/telemetry'
import { type ExitCause, type SpawnRequest, type signalScopes, spawnFlags } from '../runtime/init-wire.js'
import { InputQueue } from '../runtime/input-queue.js'
import type { OciRuntime } from '../runtime/oci-runtime.js'
import type { MainEnd, OutputSink, OutputSinks, SandboxProcess, Started } from '../runtime/processes.js'
import type { ExecDriver } from './exec-driver.js'
import { ociProcess, startFailure } from './oci-process.plan.js'

export interface OciContainer {
  readonly runtime: Pick<OciRuntime, 'command'>
  /** As the runtime knows it. */
  readonly id: string
  /** Its control group; what is not in it is none of its processes. */
  readonly group: string
  /** For what is known of each process while it runs; the driver's own. */
  readonly directory: string
  readonly log: Logger
}

const EIO = 5
const SIGTERM = 15
const SIGKILL = 9
/** Output that may be taken and not stored. */
const AHEAD_BYTES = 256 * 1024
/** What a runtime says before it is known whether the process runs. */
const SAID_BYTES = 64 * 1024
/** How often it is looked whether the process runs. */
const LOOK_MS = 5
/** After the end: what is in the pipes has come by then, or somebody else holds them. */
const DRAIN_MS = 100

export class OciDriver implements ExecDriver {
  readonly name = 'oci'
  readonly #container: OciContainer
  #last = 0

  private constructor(container: OciContainer) {
    this.#container = container
  }

  /** Ends what an agent before this one left running. */
  static open(container: OciContainer): OciDriver {
    mkdirSync(container.directory, { recursive: true, mode: 0o700 })
    for (const name of readdirSync(container.directory)) {
      const path = join(container.directory, name)
      const pid = name.endsWith('.pid') ? readPid(path) : undefined
      if (pid !== undefined && isInGroup(pid, container.group)) sendSignal(pid, SIGKILL, true)
      rmSync(path, { force: true })
    }
    return new OciDriver(container)
  }

  ready(): Promise<void> {
    return Promise.resolve()
  }

  allocate(): number {
    this.#last += 1
    return this.#last
  }

  start(number: number, spawn: SpawnRequest, sinks: OutputSinks): SandboxProcess {
    return new OciProcess(number, this.#container, spawn, sinks)
  }

  resume(): undefined {
    return undefined
  }
}

class OciProcess implements SandboxProcess {
  readonly started: Promise<Started | MainEnd>
  readonly ended: Promise<MainEnd>
  readonly outputEnded: Promise<void>
  readonly #container: OciContainer
  readonly #spawn: SpawnRequest
  readonly #sinks: OutputSinks
  readonly #input = new InputQueue()
  readonly #pidPath: string
  readonly #timers: NodeJS.Timeout[] = []
  readonly #startedAt = performance.now()
  #child: StreamedProcess | undefined
  /** On the node. */
  #pid: number | undefined
  #over = false
  #cause: ExitCause = 'itself'
  #unsent: (() => void)[] = []
  #tellStarted: (started: Started | MainEnd) => void = () => undefined
  #tellOutputEnded: () => void = () => undefined

  constructor(
    readonly proc: number,
    container: OciContainer,
    spawn: SpawnRequest,
    sinks: OutputSinks,
  ) {
    this.#container = container
    this.#spawn = spawn
    this.#sinks = sinks
    this.#pidPath = join(container.directory, `${proc}.pid`)
    this.started = new Promise((resolve) => {
      this.#tellStarted = resolve
    })
    this.outputEnded = new Promise((resolve) => {
      this.#tellOutputEnded = resolve
    })
    this.ended = this.#live()
    this.#input.reconnect(0, true)
  }

  get stdinAccepted(): number {
    return this.#input.accepted
  }

  async write(offset: number | undefined, bytes: Uint8Array): Promise<void> {
    this.#mustTakeInput()
    const accepted = this.#input.take(offset ?? this.#input.end, bytes)
    this.#pump()
    await accepted
  }

  async endInput(total?: number): Promise<number> {
    this.#mustTakeInput()
    const end = total ?? this.#input.end
    if (this.#over) return end
    this.#input.finish(end)
    this.#pump()
    return end
  }

  signal(signal: number, scope: keyof typeof signalScopes): void {
    this.#whenRunning(() => {
      if (this.#pid !== undefined) sendSignal(this.#pid, signal, scope !== 'process')
    })
  }

  resize(rows: number, columns: number): void {
    this.#whenRunning(() => this.#child?.resize(rows, columns))
  }

  forget(): void {
    this.#child?.stdout.destroy()
    this.#child?.stderr?.destroy()
    this.#tellOutputEnded()
  }

  /** Never rejects: what goes wrong is how it ended. */
  async #live(): Promise<MainEnd> {
    try {
      const end = await this.#run()
      this.#tellStarted(end)
      return end
    } catch (error) {
      const end = { kind: 'failed', stage: 'setup', errno: EIO } as const
      this.#container.log.error({ proc: this.proc, err: error }, 'exec.runtime_failed')
      this.forget()
      this.#tellStarted(end)
      return end
    } finally {
      this.#over = true
      for (const timer of this.#timers) clearTimeout(timer)
      this.#input.close(() => new Failure('wrong_state', 'the process has ended'))
      rmSync(this.#pidPath, { force: true })
    }
  }

  async #run(): Promise<MainEnd> {
    const child = await this.#start()
    this.#child = child
    this.#pump()
    const outputs = [new Output(child.stdout, this.#sinks.stdout)]
    if (child.stderr) outputs.push(new Output(child.stderr, this.#sinks.stderr))
    const closed = Promise.all(outputs.map((output) => output.ended))
    void closed.then(() => this.#tellOutputEnded())
    let end: ProcessEnd | undefined
    void child.ended.then((how) => {
      end = how
    })
    while (!this.#isRunning() && end === undefined) await Promise.race([child.ended, pause(LOOK_MS)])
    // A command that ended at once may have been quicker than the look.
    if (!this.#isRunning()) return this.#neverRan(await child.ended, outputs)
    for (const output of outputs) output.keep()
    const how = await child.ended
    await Promise.race([closed, drained(outputs)])
    await Promise.all([this.#sinks.stdout.settled(), this.#sinks.stderr.settled()])
    return { kind: 'exited', exit: this.#exitOf(how) }
  }

  async #start(): Promise<StreamedProcess> {
    const { runtime, directory, id } = this.#container
    const path = join(directory, `${this.proc}.json`)
    writeFileSync(path, JSON.stringify(ociProcess(this.#spawn)), { mode: 0o600 })
    const argv = runtime.command('exec', '--process', path, '--pid-file', this.#pidPath, id)
    const { rows, columns, flags } = this.#spawn
    if ((flags & spawnFlags.tty) !== 0) return streamOnTerminal(argv, { rows, columns })
    return stream(argv, { stdin: (flags & spawnFlags.stdin) !== 0 })
  }

  /** Looks for the pid that the runtime writes once the process was executed. */
  #isRunning(): boolean {
    if (this.#pid !== undefined) return true
    this.#pid = readPid(this.#pidPath)
    if (this.#pid === undefined) return false
    // It holds the environment, and has been read.
    rmSync(join(this.#container.directory, `${this.proc}.json`), { force: true })
    this.#tellStarted({ kind: 'started', pid: pidInside(this.#pid), sinceMs: 0 })
    this.#watchTime()
    for (const send of this.#unsent.splice(0)) send()
    return true
  }

  async #neverRan(how: ProcessEnd, outputs: readonly Output[]): Promise<MainEnd> {
    await drained(outputs)
    const said = outputs.map((output) => output.drop()).join('\n')
    rmSync(join(this.#container.directory, `${this.proc}.json`), { force: true })
    this.#container.log.debug({ proc: this.proc, how, said }, 'exec.not_started')
    this.forget()
    return { kind: 'failed', ...startFailure(said) }
  }

  #exitOf({ exitCode, signal }: ProcessEnd) {
    const wallMs = performance.now() - this.#startedAt
    return { exitCode, signal, cause: this.#cause, cpuMs: 0, peakMemoryBytes: 0, wallMs }
  }

  #watchTime(): void {
    const { timeoutMs, graceMs } = this.#spawn
    if (timeoutMs === 0) return
    const end = () => {
      this.#cause = 'timeout'
      this.signal(SIGTERM, 'group')
      this.#timers.push(setTimeout(() => this.signal(SIGKILL, 'group'), graceMs))
    }
    this.#timers.push(setTimeout(end, timeoutMs))
  }

  #whenRunning(send: () => void): void {
    if (this.#over) return
    if (this.#pid !== undefined) send()
    else this.#unsent.push(send)
  }

  #mustTakeInput(): void {
    if ((this.#spawn.flags & (spawnFlags.stdin | spawnFlags.tty)) === 0)
      throw new Failure('wrong_state', 'the process has no input')
  }

  /** What it took is what the pipe or the terminal took. */
  #pump(): void {
    const stdin = this.#child?.stdin
    if (!stdin) return
    for (let step = this.#input.next(); step; step = this.#input.next()) {
      if (step.kind === 'end') this.#endStdin(stdin)
      else {
        const end = step.offset + step.bytes.length
        stdin.write(step.bytes, () => {
          this.#input.acknowledge(end)
          this.#pump()
        })
      }
    }
  }

  #endStdin(stdin: NonNullable<StreamedProcess['stdin']>): void {
    const onTerminal = (this.#spawn.flags & spawnFlags.tty) !== 0
    if (onTerminal) stdin.write(Buffer.of(END_OF_INPUT))
    else stdin.end()
  }
}

/** ^D, what a terminal in canonical mode takes for the end (termios(3), VEOF). */
const END_OF_INPUT = 4

/** One output stream on its way to its sink. What comes before the process runs is the runtime's, and is held back. */
class Output {
  /** Resolves when nobody holds it any more. */
  readonly ended: Promise<void>
  readonly #source: Readable
  readonly #sink: OutputSink
  #held: Buffer[] | undefined = []
  #heldBytes = 0
  #taken = 0
  #stored = 0
  lastAt = performance.now()
  over = false

  constructor(source: Readable, sink: OutputSink) {
    this.#source = source
    this.#sink = sink
    this.ended = new Promise((resolve) => {
      source.once('close', () => {
        this.over = true
        resolve()
      })
    })
    source.on('error', () => source.destroy()) // its end tells
    source.on('data', (bytes: Buffer) => this.#take(bytes))
  }

  keep(): void {
    const held = this.#held ?? []
    this.#held = undefined
    for (const bytes of held) this.#take(bytes)
    if (this.#source.isPaused()) this.#source.resume()
  }

  /** @returns what was held back, as text */
  drop(): string {
    const held = Buffer.concat(this.#held ?? [])
    this.#held = []
    return held.toString('utf8')
  }

  #take(bytes: Buffer): void {
    this.lastAt = performance.now()
    if (this.#held) {
      this.#held.push(bytes)
      this.#heldBytes += bytes.length
      if (this.#heldBytes > SAID_BYTES) this.#source.pause()
      return
    }
    const offset = this.#taken
    this.#taken += bytes.length
    this.#sink.append(offset, bytes, (stored) => {
      this.#stored = stored
      if (this.#source.isPaused() && this.#taken - stored <= AHEAD_BYTES / 2) this.#source.resume()
    })
    if (this.#taken - this.#stored > AHEAD_BYTES) this.#source.pause()
  }
}

/** Resolves when nothing has come for a while. */
async function drained(outputs: readonly Output[]): Promise<void> {
  const from = performance.now()
  for (;;) {
    const last = Math.max(from, ...outputs.map(({ lastAt }) => lastAt))
    if (outputs.every(({ over }) => over) || performance.now() - last >= DRAIN_MS) return
    await pause(LOOK_MS)
  }
}

function readPid(path: string): number | undefined {
  try {
    const pid = Number(readFileSync(path, 'utf8'))
    return Number.isSafeInteger(pid) && pid > 1 ? pid : undefined
  } catch (error) {
    invariant(errnoOf(error) === 'ENOENT', `${path} can be read`)
    return undefined
  }
}

/** The innermost of its numbers (proc(5), NSpid); 0 of one that has ended already. */
const pidInside = (pid: number): number => Number(/^NSpid:.*\s(\d+)$/m.exec(readProc(pid, 'status'))?.[1] ?? 0)

const isInGroup = (pid: number, group: string): boolean => readProc(pid, 'cgroup').includes(`/${group}`)

/** Empty of a process that is gone. */
function readProc(pid: number, name: string): string {
  try {
    return readFileSync(`/proc/${pid}/${name}`, 'utf8')
  } catch (error) {
    const code = errnoOf(error)
    if (code === 'ENOENT' || code === 'ESRCH') return ''
    throw error
  }
}
