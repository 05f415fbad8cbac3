import type { Logger } from '../tokens.js'

/**
 * Runs `work` every `everyMs` and whenever it is triggered, one run at a time; triggers during a run become one more
 * run. A run that fails is logged and tried again at the next turn.
 */
export class Loop {
  private timer: NodeJS.Timeout | undefined
  private running: Promise<void> | undefined
  private again = false
  private stopped = false
  private failures = 0

  constructor(
    private readonly name: string,
    private readonly everyMs: number,
    private readonly work: () => Promise<void>,
    private readonly log: Logger,
  ) {}

  start(): void {
    this.timer = setInterval(() => this.trigger(), this.everyMs)
    this.trigger()
  }

  trigger(): void {
    if (this.stopped) return
    this.again = true
    this.running ??= this.run().finally(() => {
      this.running = undefined
    })
  }

  /** Settles when the run in progress has ended; there will be none after it. */
  async stop(): Promise<void> {
    this.stopped = true
    clearInterval(this.timer)
    await this.running
  }

  private async run(): Promise<void> {
    while (this.again && !this.stopped) {
      this.again = false
      try {
        await this.work()
        if (this.failures > 0) this.log.info({ failures: this.failures }, `${this.name}.recovered`)
        this.failures = 0
      } catch (err) {
        // The first of a row says what is wrong; an outage must not fill the log with the same line.
        if (this.failures++ === 0) this.log.warn({ err }, `${this.name}.failed`)
        return
      }
    }
  }
}
