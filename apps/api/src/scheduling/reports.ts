// reports.ts: what nodes say became of attempts → rows. A node repeats its reports until they are stored, so each one
// may come more than once and late; persistence applies it once, and drops what is not about an attempt placed on the
// node that speaks.
import { Fault, type NodeId, type NodeReport, reportSubject } from '@berth/contracts'
import type { JobChange } from '@berth/persistence'
import { Inject, Injectable } from '@nestjs/common'
import { DATABASE, type Database, LOG, type Logger } from '../tokens.js'
import { Changes } from './changes.js'

@Injectable()
export class Reports {
  constructor(
    @Inject(DATABASE) private readonly database: Database,
    private readonly changes: Changes,
    @Inject(LOG) private readonly log: Logger,
  ) {}

  /**
   * Stores all of them, those of one attempt in their order.
   * @returns how many changed something
   * @throws Fault when one could not be stored; the node sends all of them again
   */
  async store(nodeId: NodeId, reports: readonly NodeReport[]): Promise<number> {
    const results = await Promise.allSettled(
      [...bySubject(reports).values()].map((ofOne) => this.storeInOrder(nodeId, ofOne)),
    )
    const changes = results.flatMap((result) => (result.status === 'fulfilled' ? result.value : []))
    this.changes.announce(changes)
    if (reports.some(({ kind }) => kind === 'finished')) this.changes.roomMade()
    const failed = results.find((result) => result.status === 'rejected')
    if (failed) throw failed.reason
    return changes.length
  }

  private async storeInOrder(nodeId: NodeId, reports: readonly NodeReport[]): Promise<JobChange[]> {
    const changes: JobChange[] = []
    for (const report of reports) {
      const change = await this.storeOne(nodeId, report)
      if (change) changes.push(change)
      else this.log.debug({ node: nodeId, subject: reportSubject(report), kind: report.kind }, 'report.stale')
    }
    return changes
  }

  private storeOne(nodeId: NodeId, report: NodeReport): Promise<JobChange | undefined> {
    switch (report.kind) {
      case 'started':
        return this.database.jobs.recordStarted(nodeId, report)
      case 'finished':
        return this.database.jobs.recordFinished(nodeId, report)
      case 'sandbox':
        throw new Fault('store the report of a sandbox', { cause: 'there are none' })
    }
  }
}

function bySubject(reports: readonly NodeReport[]): Map<string, NodeReport[]> {
  const groups = new Map<string, NodeReport[]>()
  for (const report of reports) {
    const subject = reportSubject(report)
    const group = groups.get(subject)
    if (group) group.push(report)
    else groups.set(subject, [report])
  }
  return groups
}
