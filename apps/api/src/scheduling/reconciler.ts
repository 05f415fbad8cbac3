// reconciler.ts: every second, on one replica: what Postgres says is unfinished and no node has acknowledged is sent
// again; deadlines, clocks and silent nodes are acted on. Whatever was lost on the way (Redis whole, a message, this process
// between a commit and its send) is made good here.
import type { BuildRecord, Reconciled, SandboxesReconciled } from '@berth/persistence'
import { Inject, Injectable } from '@nestjs/common'
import { BuildNodes } from '../builds/build-nodes.js'
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
    private readonly builds: BuildNodes,
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
    const found = await this.database.exclusively('reconcile', async () => {
      const now = this.clock.now()
      return {
        jobs: await this.database.jobs.reconcile(now),
        sandboxes: await this.database.sandboxes.reconcile(now),
        builds: await this.database.builds.reconcile(now),
      }
    })
    if (!found) return
    const { jobs, sandboxes, builds } = found
    this.changes.announce(jobs.changed)
    this.changes.announceSandboxes(sandboxes.changed)
    if (jobs.changed.length > 0 || sandboxes.freed) this.changes.roomMade()
    for (const build of builds) this.giveUp(build)
    this.tell(jobs, sandboxes)
    await this.dispatcher.deliver([...jobs.cancels, ...jobs.resend, ...sandboxes.commands, ...sandboxes.resend])
  }

  /** Nobody carries the build out any more; its node may still be at it. */
  private giveUp(build: BuildRecord): void {
    this.log.warn({ build: build.id, node: build.nodeId, code: build.reason?.code }, 'build.lost')
    this.changes.announceBuild(build)
    void this.builds.end(build.nodeId, build.id)
  }

  private tell({ resend, cancels, lost, timedOut }: Reconciled, sandboxes: SandboxesReconciled): void {
    const resent = resend.length + sandboxes.resend.length
    const changed = sandboxes.changed.length
    if (resent + cancels.length + lost + timedOut + changed > 0)
      this.log.info({ resent, cancels: cancels.length, lost, timedOut, sandboxes: changed }, 'reconciled')
  }
}
