// sandbox-logs.ts: the log of every sandbox, as its companion: it takes the output of the main process of each run, and
// can be read for as long as the sandbox exists, whether it runs or not.
import { join } from 'node:path'
import type { SandboxId } from '@berth/contracts'
import type { Logger } from '@berth/telemetry'
import type { OutputSinks } from '../runtime/processes.js'
import type { Companion, LiveSandbox } from '../sandbox/live.js'
import { MainLog } from './main-log.js'

type Logged = Pick<LiveSandbox, 'id' | 'directory' | 'spec' | 'run' | 'restart'>

export class SandboxLogs implements Companion {
  readonly name = 'log'
  readonly #log: Logger
  readonly #opened = new Map<SandboxId, Promise<MainLog>>()
  readonly #sinks = new Map<SandboxId, OutputSinks>()

  constructor(log: Logger) {
    this.#log = log
  }

  /** @throws Fault when its directory cannot be read */
  of({ id, directory, spec }: Logged): Promise<MainLog> {
    const known = this.#opened.get(id)
    if (known) return known
    const { maxBytes, maxFiles } = spec.logs
    const log = this.#log.child({ sandbox: id })
    const opened = MainLog.open({ directory: join(directory, 'log'), keepBytes: maxBytes * maxFiles, log })
    this.#opened.set(id, opened)
    // What failed is tried again.
    opened.catch(() => this.#opened.delete(id))
    return opened
  }

  async attach(live: Logged): Promise<void> {
    const log = await this.of(live)
    this.#sinks.set(live.id, log.begin(live))
  }

  mainOutput({ id }: Pick<LiveSandbox, 'id'>): OutputSinks | undefined {
    return this.#sinks.get(id)
  }

  async detach({ id }: Pick<LiveSandbox, 'id'>): Promise<void> {
    this.#sinks.delete(id)
    await (await this.#opened.get(id))?.close()
  }

  async remove(id: SandboxId): Promise<void> {
    const opened = this.#opened.get(id)
    this.#opened.delete(id)
    this.#sinks.delete(id)
    await (await opened)?.remove()
  }

  /** Stores what was taken; readers are the streams' business. */
  async close(): Promise<void> {
    await Promise.all([...this.#opened.values()].map(async (opened) => (await opened).close()))
  }
}
