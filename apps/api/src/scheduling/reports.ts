// reports.ts: what nodes say became of attempts and sandboxes → rows. A node repeats its reports until they are stored,
// so each one may come more than once and late; persistence applies it once, and drops what is not about something
// placed on the node that speaks.
import { type NodeId, type NodeReport, reportSubject } from '@berth/contracts'
import type { ChangedSandbox, JobChange } from '@berth/persistence'
import { Inject, Injectable } from '@nestjs/common'
import { DATABASE, type Database, LOG, type Logger } from '../tokens.js'
import { Changes } from './changes.js'

/** What a report has changed. */
interface Stored {
  readonly job?: JobChange
  readonly sandbox?: ChangedSandbox
}

type Started = Extract<NodeReport, { readonly kind: 'started' }>
type Later = Exclude<NodeReport, Started>

const isStarted = (report: NodeReport): report is Started => report.kind === 'started'
const isLater = (report: NodeReport): report is Later => !isStarted(report)

@Injectable()
export class Reports {
  constructor(
    @Inject(DATABASE) private readonly database: Database,
    private readonly changes: Changes,
    @Inject(LOG) private readonly log: Logger,
  ) {}

  /**
   * Stores all of them: starts first, then those of one attempt or sandbox in their order.
   * @returns how many changed something
   * @throws Fault when one could not be stored; the node sends all of them again
   */
  async store(nodeId: NodeId, reports: readonly NodeReport[]): Promise<number> {
    const started = await this.database.jobs.recordStarted(nodeId, reports.filter(isStarted))
    const results = await Promise.allSettled(
      [...bySubject(reports.filter(isLater)).values()].map((ofOne) => this.storeInOrder(nodeId, ofOne)),
    )
    const stored = results.flatMap((result) => (result.status === 'fulfilled' ? result.value : []))
    this.changes.announce([...started, ...stored.flatMap(({ job }) => job ?? [])])
    this.changes.follow(stored.flatMap(({ sandbox }) => sandbox ?? []))
    if (reports.some(({ kind }) => kind === 'finished')) this.changes.roomMade()
    const failed = results.find((result) => result.status === 'rejected')
    if (failed) throw failed.reason
    return started.length + stored.length
  }

  private async storeInOrder(nodeId: NodeId, reports: readonly Later[]): Promise<Stored[]> {
    const changes: Stored[] = []
    for (const report of reports) {
      const change = await this.storeOne(nodeId, report)
      if (change) changes.push(change)
      else this.log.debug({ node: nodeId, subject: reportSubject(report), kind: report.kind }, 'report.stale')
    }
    return changes
  }

  private async storeOne(nodeId: NodeId, report: Later): Promise<Stored | undefined> {
    switch (report.kind) {
      case 'finished': {
        const job = await this.database.jobs.recordFinished(nodeId, report)
        return job && { job }
      }
      case 'sandbox': {
        const sandbox = await this.database.sandboxes.recordReport(nodeId, report)
        return sandbox && { sandbox }
      }
    }
  }
}

function bySubject(reports: readonly Later[]): Map<string, Later[]> {
  const groups = new Map<string, Later[]>()
  for (const report of reports) {
    const subject = reportSubject(report)
    const group = groups.get(subject)
    if (group) group.push(report)
    else groups.set(subject, [report])
  }
  return groups
}
