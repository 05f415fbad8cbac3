// residents.fixture.ts: a node for a file of tests about sandboxes that stay, with what they ask and wait for. After each
// test every sandbox of it goes, and nothing may be left; after the last, nothing at all.

import { setTimeout as delay } from 'node:timers/promises'
import type { ApplySandbox, SandboxEnd, SandboxId, SandboxReport } from '@berth/contracts'
import { leftOf, newNodeDirectory, Tape, TestNode } from './node.fixture.js'
import { holdings } from './recovery.js'

export class ResidentNode {
  private constructor(
    readonly place: ReturnType<typeof newNodeDirectory>,
    readonly tape: Tape,
    readonly node: TestNode,
  ) {}

  static async open(): Promise<ResidentNode> {
    const [place, tape] = [newNodeDirectory(), new Tape()]
    return new ResidentNode(place, tape, await TestNode.open({ ...place, companions: [tape] }))
  }

  /** Ends every sandbox that is there, and waits until nothing of them is held. */
  async clear(): Promise<void> {
    const { node } = this
    for (const { id } of node.residents.standing()) node.residents.discard(id)
    await this.until('all sandboxes are gone', () => node.residents.standing().length === 0)
    await this.until('nothing is held', async () => {
      const { containers, layers, groups } = await holdings(node.shop)
      return containers.length + layers.length + groups.length === 0
    })
    node.apiAway = false
  }

  /** @returns what is left of the node when it is gone: nothing, it is to be hoped */
  async destroy(): ReturnType<typeof leftOf> {
    await this.node.destroy()
    return leftOf(this.place)
  }

  async until(what: string, condition: () => boolean | Promise<boolean>): Promise<void> {
    for (let i = 0; i < 6000; i++) {
      if (await condition()) return
      await delay(5)
    }
    const standing = this.node.residents.standing().map(({ id }) => this.node.residents.report(id))
    throw new Error(`never: ${what}; standing: ${JSON.stringify(standing)}`)
  }

  /** The record of the end of a run. */
  async end(id: SandboxId, run = 1, restart = 0): Promise<SandboxEnd> {
    const isIt = (end: SandboxEnd) => end.run === run && end.restart === restart
    const report = await this.node.reported(id, ({ ends }) => ends.some(isIt))
    const end = report.ends.find(isIt)
    if (!end) throw new Error(`no end ${run}.${restart} of ${id}`)
    return end
  }

  stopped(id: SandboxId, since = 0): Promise<SandboxReport> {
    return this.node.reported(id, ({ state, phase }) => state === 'stopped' && phase === 'stopped', since)
  }

  /** Waits for the main process to write something. */
  says(id: SandboxId, text: string, run = 1, restart = 0): Promise<void> {
    return this.until(`${id} says ${text}`, async () => (await this.node.taped(id, run, restart)).stdout.includes(text))
  }

  /** Runs the command in a sandbox of its own to its end. @returns what it wrote and how it ended */
  async once(command: ApplySandbox): Promise<SandboxEnd & { readonly stdout: string; readonly stderr: string }> {
    await this.node.residents.apply(command)
    const end = await this.end(command.sandboxId)
    return { ...end, ...(await this.node.taped(command.sandboxId)) }
  }
}

/** Goes on until it is told to end. */
export const loop = 'while :; do sleep 0.02; done'
export const sh = (script: string) => ({ command: ['sh', '-c', script] })
