// reconciler.ts: every second, on one replica: what Postgres says is unfinished and no node has acknowledged is sent
// again; deadlines and silent nodes are acted on. Whatever was lost on the way (Redis whole, a message, this process
// between a commit and its send) is made good here.
import { Inject, Injectable } from '@nestjs/common'
import { CLOCK, type Clock, DATABASE, type Database, LOG, type Logger } from '../tokens.js'
import { Changes } from './changes.js'
import { Dispatcher } from './dispatcher.js'
import { Loop } from './loop.js'

const EVERY_MS = 1000

@Injectable()
export class Reconciler {
  private readonly loop: Loop

  constructor(
    @Inject(DATABASE) private readonly database: Database,
    private readonly dispatcher: Dispatcher,
    private readonly changes: Changes,
    @Inject(CLOCK) private readonly clock: Clock,
    @Inject(LOG) private readonly log: Logger,
  ) {
    this.loop = new Loop('reconciler', EVERY_MS, () => this.turn(), log)
  }

  start(): void {
    this.loop.start()
  }

  stop(): Promise<void> {
    return this.loop.stop()
  }

  private async turn(): Promise<void> {
    const found = await this.database.exclusively('reconcile', () => this.database.jobs.reconcile(this.clock.now()))
    if (!found) return
    const { resend, cancels, changed, lost, timedOut } = found
    this.changes.announce(changed)
    if (changed.length > 0) this.changes.roomMade()
    if (resend.length + cancels.length + lost + timedOut > 0)
      this.log.info({ resent: resend.length, cancels: cancels.length, lost, timedOut }, 'reconciled')
    await this.dispatcher.deliver([...cancels, ...resend])
  }
}
