// placer.ts: queued → placed, in fair order, whenever a slot may have come free: a job ended, was queued or canceled, a
// node joined; and every second for what is due by the clock (back-offs).
import { Inject, Injectable } from '@nestjs/common'
import { DATABASE, type Database, LOG, type Logger } from '../tokens.js'
import { Dispatcher } from './dispatcher.js'
import { Loop } from './loop.js'
import { Wakes } from './wakes.js'

/** Jobs placed in one transaction: enough to fill a node, short enough to hold its rows. */
const AT_ONCE = 64

@Injectable()
export class Placer {
  private readonly loop: Loop

  constructor(
    @Inject(DATABASE) private readonly database: Database,
    private readonly dispatcher: Dispatcher,
    private readonly wakes: Wakes,
    @Inject(LOG) log: Logger,
  ) {
    this.loop = new Loop('placer', 1000, () => this.placeAll(), log)
  }

  start(): void {
    this.loop.start()
  }

  /** Something may fit now. Many calls become one run. */
  trigger(): void {
    this.loop.trigger()
  }

  stop(): Promise<void> {
    return this.loop.stop()
  }

  private async placeAll(): Promise<void> {
    for (;;) {
      const placed = await this.database.admission.placeQueued(AT_ONCE)
      this.dispatcher.dispatch(placed)
      this.wakes.wake(placed.map(({ command }) => command.tenantId))
      if (placed.length < AT_ONCE) return
    }
  }
}
