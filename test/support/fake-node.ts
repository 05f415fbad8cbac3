// fake-node.ts: a node that speaks the node protocol and runs nothing: it says of a sandbox what the test wants said.
// It holds an image that no other node has, so that what a test asks for comes here.
import { randomBytes } from 'node:crypto'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { ApplySandbox, NodeCommand, Output, SandboxId, SandboxReport } from '@berth/contracts'
import { joinNode, NodeId } from '@berth/contracts'
import {
  type NodeHandler,
  nodeCertificate,
  type RestCall,
  type StreamServerHandle,
  serveStreams,
} from '@berth/node-rpc'
import { consumeNodeQueue, type QueueConsumer } from '@berth/queue'
import { type Api, client, operator, until } from './berth.js'

const log = { info: () => undefined, warn: () => undefined, error: () => undefined }
const BEAT_MS = 500

/** What a node says of a sandbox that is as its command wants it. */
export const asWanted = (command: ApplySandbox): Partial<SandboxReport> => ({
  state: command.desired,
  phase: command.desired === 'deleted' ? 'removed' : command.desired,
})

export class FakeNode implements AsyncDisposable {
  readonly image = `fake-${randomBytes(6).toString('hex')}`
  /** Newest command of each sandbox. */
  readonly commands = new Map<string, ApplySandbox>()
  /** What is said at once about a command; nothing where it answers undefined. */
  obeys: (command: ApplySandbox) => Partial<SandboxReport> | undefined = asWanted
  private readonly sequences = new Map<string, number>()
  private timer: NodeJS.Timeout | undefined
  private queue: QueueConsumer | undefined
  private streams: StreamServerHandle | undefined
  private grantKey: string | undefined
  /** What it does when it is asked about images; nothing at first. */
  images: NodeHandler['request'] = async (call: RestCall) =>
    call.answer(404, { code: 'image_not_found', detail: 'none' })
  /** What it does when it is asked about builds; nothing at first. */
  builds: NodeHandler['request'] = async (call: RestCall) =>
    call.answer(404, { code: 'build_not_found', detail: 'none' })
  /** Images of tenants that it says it has. */
  readonly held = new Set<string>()

  private constructor(
    readonly id: NodeId,
    private readonly api: Api,
    private readonly capacity: object,
    private readonly serves: boolean,
  ) {}

  /** @param options `serves`: it can be asked about images and builds; else nobody is at the other end of its streams */
  static async start(capacity: object = {}, { serves = false } = {}): Promise<FakeNode> {
    const made = await operator().post('/v1/nodes', { name: `fake-${randomBytes(6).toString('hex')}` })
    if (made.status !== 201) throw new Error(`node: ${JSON.stringify(made.body)}`)
    const whole = { cpus: 1000, memoryBytes: 2 ** 44, diskBytes: 2 ** 44, sandboxes: 1000, ...capacity }
    const node = new FakeNode(NodeId.parse(made.body.id), client(made.body.token), whole, serves)
    await node.join()
    node.timer = setInterval(() => void node.beat().catch(() => undefined), BEAT_MS)
    return node
  }

  private standing() {
    return {
      capacity: this.capacity,
      images: [
        { reference: `${this.image}:latest`, digest: `sha256:${'f'.repeat(64)}`, sizeBytes: 1 },
        ...[...this.held].map((digest) => ({ digest, sizeBytes: 1 })),
      ],
      attempts: [],
      sandboxes: [...this.commands.values()].map(({ sandboxId, generation }) => ({ id: sandboxId, generation })),
    }
  }

  private async join(): Promise<void> {
    const directory = await mkdtemp(join(tmpdir(), 'berth-fake-node-'))
    const { certificate, key } = await nodeCertificate(directory)
    await rm(directory, { recursive: true })
    if (this.serves) this.streams = await this.serve(certificate, key)
    const streams = { url: this.streams?.url ?? 'https://127.0.0.1:1', certificate }
    const answer = await this.api.post('/v1/node/join', { ...this.standing(), runtime: 'none', streams })
    if (answer.status !== 200) throw new Error(`join: ${JSON.stringify(answer.body)}`)
    const { queue, grantKey }: Output<typeof joinNode> = answer.body
    this.grantKey = grantKey
    this.queue = consumeNodeQueue({ ...queue, nodeId: this.id, concurrency: 4, handle: (one) => this.handle(one), log })
  }

  private answers() {
    return {
      images: { request: (call: RestCall) => this.images(call) },
      builds: { request: (call: RestCall) => this.builds(call) },
    }
  }

  private serve(certificate: string, key: string): Promise<StreamServerHandle> {
    return serveStreams({
      ...{ host: '127.0.0.1', port: 0, certificate, key, nodeId: this.id, log },
      ...{ grantKey: () => this.grantKey, sandbox: {}, node: this.answers() },
      output: async (call) => call.answer(404, { code: 'output_gone', detail: 'none' }),
    })
  }

  /** Says that it lives; forgets what it is to delete. */
  async beat(): Promise<void> {
    const { body } = await this.api.post('/v1/node/heartbeat', this.standing())
    for (const id of body.unwantedSandboxes ?? []) this.commands.delete(id)
  }

  private async handle(command: NodeCommand): Promise<void> {
    if (command.kind !== 'sandbox') return
    const known = this.commands.get(command.sandboxId)
    if (!known || command.generation >= known.generation) this.commands.set(command.sandboxId, command)
    const said = this.obeys(command)
    if (said) await this.say(command.sandboxId, said)
  }

  /** The newest command, once there is one of at least this generation. */
  told(id: string, generation = 1): Promise<ApplySandbox> {
    return until(`node is told generation ${generation} of ${id}`, async () => {
      const command = this.commands.get(id)
      return command && command.generation >= generation ? command : undefined
    })
  }

  /** Reports of a sandbox that it was told of; what is not given is as the last command wants it. */
  async say(id: string, change: Partial<SandboxReport> = {}): Promise<void> {
    const command = await this.told(id)
    const sequence = (this.sequences.get(id) ?? 0) + 1
    this.sequences.set(id, sequence)
    const report = { ...reportOf(command, sequence), ...asWanted(command), ...change }
    const answer = await this.api.post('/v1/node/reports', { reports: [report] })
    if (answer.status !== 200) throw new Error(`report: ${JSON.stringify(answer.body)}`)
    if (report.phase === 'removed') this.commands.delete(id)
  }

  /** Takes no more commands. Its account at the queue goes with the node, and who is without one tries again for ever. */
  async leaveQueue(): Promise<void> {
    await this.queue?.close()
    this.queue = undefined
  }

  /** Falls silent. */
  async stop(): Promise<void> {
    clearInterval(this.timer)
    await this.leaveQueue()
    await this.streams?.close()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop()
    await operator().delete(`/v1/nodes/${this.id}`)
  }
}

const reportOf = (command: ApplySandbox, sequence: number) => ({
  kind: 'sandbox' as const,
  sandboxId: command.sandboxId satisfies SandboxId,
  generation: command.generation,
  sequence,
  reason: null,
  run: command.run,
  restarts: 0,
  phases: { placeMs: 1, imageMs: 1, rootfsMs: 1, networkMs: 1, startMs: 1, readyMs: 5 },
  startedAt: command.run === 0 ? null : new Date().toISOString(),
  endedAt: command.desired === 'stopped' && command.run > 0 ? new Date().toISOString() : null,
  lastActivityAt: null,
  endsAt: null,
  ends: [],
  notes: [],
})
