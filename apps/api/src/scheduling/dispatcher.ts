// dispatcher.ts: committed decisions → nodes. Nothing depends on it: what does not arrive is found and sent again by the
// reconciler. So sending never holds up a request, and a failure is only logged.
import { type CancelAttempt, commandSubject, type ForgetAttempt, type NodeCommand } from '@berth/contracts'
import type { Addressed } from '@berth/persistence'
import { Inject, Injectable } from '@nestjs/common'
import { LOG, type Logger, type NodeQueues, QUEUES } from '../tokens.js'

export type Dispatchable = Addressed<NodeCommand> | Addressed<CancelAttempt> | Addressed<ForgetAttempt>

@Injectable()
export class Dispatcher {
  /** Commands that Redis has not taken yet: while it is away, repeats must not pile up. */
  private readonly underWay = new Set<string>()
  private failed = 0

  constructor(
    @Inject(QUEUES) private readonly queues: NodeQueues,
    @Inject(LOG) private readonly log: Logger,
  ) {}

  /** Sends in the background. */
  dispatch(commands: readonly Dispatchable[]): void {
    for (const { command } of commands) void this.send(command)
  }

  /** Settles when Redis has taken the commands or has failed to; never rejects. */
  async deliver(commands: readonly Dispatchable[]): Promise<void> {
    await Promise.all(commands.map(({ command }) => this.send(command)))
  }

  private async send(command: NodeCommand): Promise<void> {
    const name = `${command.kind} ${commandSubject(command)} ${command.generation}`
    if (this.underWay.has(name)) return
    this.underWay.add(name)
    try {
      await this.queues.send(command)
      this.failed = 0
    } catch (err) {
      // One line at the beginning of an outage, not one per command and second.
      if (this.failed++ === 0)
        this.log.warn({ err, node: command.nodeId, subject: commandSubject(command) }, 'dispatch.failed')
    } finally {
      this.underWay.delete(name)
    }
  }
}
