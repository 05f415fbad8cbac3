// A node for tests: real pool, cgroups, runtime and berth-init in a directory and a cgroup of its own; images made of
// busybox; and reports that are kept instead of sent, for jobs and for sandboxes that stay.

import type { ChildProcess } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { chmodSync, copyFileSync, existsSync, mkdirSync, mkdtempSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import {
  ApplySandbox,
  type AttemptId,
  type AttemptStarted,
  JobSpec,
  mintId,
  RunAttempt,
  SandboxId,
  SandboxReport,
  SandboxSpec,
  TenantId,
} from '@berth/contracts'
import { expectSuccess, removeTree, run, takeInventory } from '@berth/host'
import { createLogger, type Logger } from '@berth/telemetry'
import { cacheMountNames } from '../build/cache.js'
import { type AttemptResult, Journal } from '../journal.js'
import { OutputFile, readHead } from '../logs/store.js'
import type { StreamName } from '../runtime/init-wire.js'
import type { OutputSink, OutputSinks } from '../runtime/processes.js'
import type { NodeClock } from './clocks.plan.js'
import { Copies } from './copies.js'
import { HeldSnapshots } from './held-snapshots.js'
import type { Companion, Lease, LiveSandbox } from './live.js'
import { processRequest, sandboxConfinement } from './process.plan.js'
import { clean, recover } from './recovery.js'
import { ResidentRecords } from './resident-record.js'
import { Residents } from './residents.js'
import type { RunnableImage } from './sandbox.js'
import { Supervisor } from './supervisor.js'
import { Turns } from './turns.js'
import { type OpenWorkshop, openWorkshop } from './workshop.js'

const mint = (kind: 'attempt' | 'job' | 'tenant' | 'node' | 'sandbox') => mintId(kind, Date.now(), randomBytes(10))
export const newTenant = () => TenantId.parse(mint('tenant'))

export interface NodeOptions {
  /** Made by `newNodeDirectory`. */
  readonly directory: string
  readonly cgroupParent: string
  readonly log?: Logger
  readonly maxSandboxes?: number
  readonly companions?: readonly Companion[]
  /** What writable layers and copies of them may come to. Default: more than tests want */
  readonly filesBytes?: number
}

/** A directory that sandboxes can pass, and a name for cgroups. */
export function newNodeDirectory(): { readonly directory: string; readonly cgroupParent: string } {
  const directory = mkdtempSync(join(tmpdir(), 'berth-node-'))
  chmodSync(directory, 0o711)
  makeBusyboxLayer(join(directory, 'image'))
  return { directory, cgroupParent: `berth-t${randomBytes(4).toString('hex')}` }
}

/** Kills an agent that may have ended, and waits until it has: it would go on in a directory that was cleaned up. */
export async function killed(agent: ChildProcess | undefined): Promise<void> {
  if (!agent || agent.exitCode !== null || agent.signalCode !== null) return
  const gone = once(agent, 'exit')
  agent.kill('SIGKILL')
  await gone
}

/**
 * What a node that is gone has left on the machine; looked for until it is nothing, or seconds have passed. What was
 * killed is seen for a moment longer, and whoever makes a container of another node has our mounts in it for a moment.
 */
export async function leftOf({ directory: dataDir, cgroupParent }: ReturnType<typeof newNodeDirectory>) {
  for (let tries = 0; ; tries++) {
    const { processes, mounts, cgroups, loops } = await takeInventory({ dataDir, cgroupParent })
    const left = { processes, mounts, cgroups, loops }
    if (tries === 100 || Object.values(left).every((found) => found.length === 0)) return left
    await delay(50)
  }
}

/** As `leftOf` should find it. */
export const nothing = { processes: [], mounts: [], cgroups: [], loops: [] } as const

export class TestNode {
  /** Every report of sandboxes, in order; only while `apiAway` is false they count as stored. */
  readonly reports: SandboxReport[] = []
  apiAway = false
  readonly started: AttemptStarted[] = []
  readonly results = new Map<AttemptId, AttemptResult>()
  readonly #waiting = new Map<AttemptId, ((result: AttemptResult) => void)[]>()

  private constructor(
    readonly options: NodeOptions,
    readonly shop: OpenWorkshop,
    readonly journal: Journal,
  ) {}

  supervisor!: Supervisor
  residents!: Residents
  held!: HeldSnapshots
  copies!: Copies

  static async open(options: NodeOptions): Promise<TestNode> {
    const log = options.log ?? createLogger({ name: 'agent', level: 'silent' })
    const dataDirectory = join(options.directory, 'agent')
    const shop = await openWorkshop({
      dataDirectory,
      cgroupParent: options.cgroupParent,
      runtime: 'auto',
      initDirectory: join(import.meta.dirname, '../../../../libs/init/build'),
      poolBytes: 2 * 1024 ** 3,
      ready: { count: 2, limitBytes: 1024 ** 3 },
      log,
    })
    const journal = new Journal(dataDirectory)
    const node = new TestNode(options, shop, journal)
    const around = { shop, log, resolveImage: images(join(options.directory, 'image')), starts: new Turns(4) }
    node.supervisor = new Supervisor({
      ...around,
      journal,
      maxSandboxes: options.maxSandboxes ?? 64,
      reports: { started: (report) => void node.started.push(report), finished: (id) => node.#finished(id) },
    })
    const records = new ResidentRecords(dataDirectory)
    node.copies = new Copies(shop.pool, options.filesBytes ?? 1024 ** 4)
    const held = await HeldSnapshots.open(dataDirectory, shop.pool, node.copies)
    node.held = held
    node.residents = new Residents({
      ...around,
      records,
      held,
      companions: options.companions ?? [new Tape()],
      reports: { sandbox: (id) => setImmediate(() => node.#told(id)) },
    })
    const kept = [...(await cacheMountNames(dataDirectory)), ...held.layers()]
    await recover({ shop, journal, supervisor: node.supervisor, records, residents: node.residents, kept, log })
    return node
  }

  /** Runs a command to its end. */
  async run(
    spec: Partial<JobSpec>,
    tenantId = newTenant(),
  ): Promise<AttemptResult & { stdout: string; stderr: string }> {
    const command = runCommand(spec, tenantId)
    await this.supervisor.run(command)
    const result = await this.result(command.attemptId)
    return { ...result, ...(await this.output(command.attemptId)) }
  }

  async output(id: AttemptId): Promise<{ stdout: string; stderr: string }> {
    const paths = this.journal.locate(id)
    const [stdout, stderr] = await Promise.all([paths?.stdout, paths?.stderr].map((path) => readHead(path ?? '', 1e7)))
    return { stdout: String(stdout), stderr: String(stderr) }
  }

  /** Resolves when the end of the attempt is reported. */
  result(id: AttemptId): Promise<AttemptResult> {
    const known = this.results.get(id)
    if (known) return Promise.resolve(known)
    return new Promise((resolve) => this.#waiting.set(id, [...(this.#waiting.get(id) ?? []), resolve]))
  }

  /** Ends everything and removes every trace. */
  async destroy(): Promise<void> {
    await Promise.all([this.supervisor.close(), this.residents.close()])
    this.shop.tenants.close()
    await clean(this.shop)
    await this.shop.pool.close()
    await removeTree(this.options.directory)
  }

  /** The latest report of a sandbox. */
  told(id: SandboxId): SandboxReport | undefined {
    return this.reports.findLast((report) => report.sandboxId === id)
  }

  /** Waits for a report. */
  async reported(id: SandboxId, what: (report: SandboxReport) => boolean, since = 0): Promise<SandboxReport> {
    const found = () => this.reports.slice(since).find((report) => report.sandboxId === id && what(report))
    for (let i = 0; i < 6000 && !found(); i++) await delay(5)
    const report = found()
    if (!report) throw new Error(`never reported; last: ${JSON.stringify(this.told(id))}`)
    return report
  }

  /** Makes a sandbox and waits until it runs. */
  async up(spec: SandboxInput = {}, more: Partial<ApplySandbox> = {}): Promise<ApplySandbox> {
    const command = applySandbox(spec, more)
    await this.residents.apply(command)
    await this.reported(command.sandboxId, ({ state, run }) => state === 'running' && run === command.run)
    return command
  }

  /** Wants something else of a sandbox. @returns the command, to go on from */
  async want(before: ApplySandbox, change: Partial<ApplySandbox>): Promise<ApplySandbox> {
    const command = ApplySandbox.parse({ ...before, known: true, ...change, generation: before.generation + 1 })
    await this.residents.apply(command)
    return command
  }

  /** Wants another state, and waits for it. */
  async become(
    before: ApplySandbox,
    desired: ApplySandbox['desired'],
    change: Partial<ApplySandbox> = {},
  ): Promise<ApplySandbox> {
    const since = this.reports.length
    const command = await this.want(before, { desired, ...change })
    const { sandboxId, generation, run } = command
    const isIt = (report: SandboxReport) =>
      report.state === desired && report.generation >= generation && (desired === 'deleted' || report.run >= run)
    await this.reported(sandboxId, isIt, since)
    return command
  }

  /** What the main process of a run has written. */
  async taped(id: SandboxId, run = 1, restart = 0): Promise<{ stdout: string; stderr: string }> {
    const path = (stream: string) =>
      join(this.options.directory, 'agent/sandboxes', id, 'log', `${run}-${restart}.${stream}`)
    const [stdout, stderr] = await Promise.all(['stdout', 'stderr'].map((stream) => readHead(path(stream), 1e7)))
    return { stdout: String(stdout), stderr: String(stderr) }
  }

  /** Runs a command beside the main process, or in a stopped sandbox. @returns its exit code and output */
  async inside(id: SandboxId, script: string, uid = 0): Promise<{ code: number | undefined; out: string }> {
    const lease = await this.residents.lease(id)
    try {
      return await runIn(lease, script, uid)
    } finally {
      await lease[Symbol.asyncDispose]()
    }
  }

  #told(id: SandboxId): void {
    const report = this.residents.report(id)
    if (!report) return
    this.reports.push(SandboxReport.parse(report))
    if (!this.apiAway) this.residents.stored(report)
  }

  async #finished(id: AttemptId): Promise<boolean> {
    const result = await this.journal.result(id)
    if (!result) throw new Error(`no result of ${id}`)
    this.results.set(id, result)
    for (const resolve of this.#waiting.get(id) ?? []) resolve(result)
    this.#waiting.delete(id)
    return true
  }
}

async function runIn(
  { live, processes }: Lease,
  script: string,
  uid: number,
): Promise<{ code: number | undefined; out: string }> {
  const out: Buffer[] = []
  let length = 0
  const sink: OutputSink = {
    resume: () => undefined,
    append: (offset, bytes, stored) => {
      out.push(Buffer.from(bytes.subarray(Math.max(0, length - offset))))
      length = offset + bytes.length
      stored(length)
    },
    settled: () => Promise.resolve(),
  }
  const request = processRequest({
    command: ['/bin/sh', '-c', script],
    env: ['PATH=/bin'],
    workingDir: '/',
    who: { uid, gid: uid, groups: [], home: '/' },
    confinement: sandboxConfinement(live.spec),
    flags: 0,
    timeoutMs: 0,
    graceMs: 0,
  })
  await processes.known()
  const process = processes.run(processes.allocate(), request, { stdout: sink, stderr: sink })
  const end = await process.ended
  process.forget()
  if (end.kind !== 'exited') throw new Error(`${script}: ${JSON.stringify(end)}`)
  return { code: end.exit.exitCode, out: Buffer.concat(out).toString() }
}

/** Keeps what main processes write, a file each; goes on with it after a restart of the agent. */
export class Tape implements Companion {
  readonly name = 'tape'
  readonly attached: string[] = []
  readonly #open = new Map<SandboxId, Record<StreamName, OutputFile>>()

  async attach(live: LiveSandbox, adopted: boolean): Promise<void> {
    this.attached.push(`${adopted ? 'adopt' : 'attach'} ${live.run}.${live.restart}`)
    const directory = join(live.directory, 'log')
    mkdirSync(directory, { recursive: true })
    const path = (stream: string) => join(directory, `${live.run}-${live.restart}.${stream}`)
    const [stdout, stderr] = await Promise.all([
      OutputFile.open(path('stdout'), 1e8),
      OutputFile.open(path('stderr'), 1e8),
    ])
    this.#open.set(live.id, { stdout, stderr })
  }

  async detach(live: LiveSandbox): Promise<void> {
    this.attached.push(`detach ${live.run}.${live.restart}`)
    await this.#end(live.id)
  }

  async remove(id: SandboxId): Promise<void> {
    this.attached.push('remove')
    await this.#end(id)
  }

  mainOutput(live: LiveSandbox): OutputSinks | undefined {
    return this.#open.get(live.id)
  }

  warn(_live: LiveSandbox, clock: NodeClock): void {
    this.attached.push(`warn ${clock}`)
  }

  async #end(id: SandboxId): Promise<void> {
    const files = this.#open.get(id)
    this.#open.delete(id)
    await Promise.all([files?.stdout.end(), files?.stderr.end()])
  }
}

export type SandboxInput = Partial<typeof SandboxSpec._zod.input>

/** What the API wants of a new sandbox: that it runs. */
export function applySandbox(spec: SandboxInput = {}, more: Partial<ApplySandbox> = {}): ApplySandbox {
  const now = new Date().toISOString()
  return ApplySandbox.parse({
    kind: 'sandbox',
    nodeId: mint('node'),
    sandboxId: mint('sandbox'),
    generation: 1,
    tenantId: newTenant(),
    ids: { base: 1_000_000, count: 65_536 },
    tenantLimits: { memoryBytes: 4 * 1024 ** 3, cpus: 2, pids: 4096 },
    tenantTerminals: 10,
    spec: SandboxSpec.parse({ image: 'busybox', stopGraceMs: 5000, ...spec }),
    desired: 'running',
    known: false,
    run: 1,
    stop: { graceMs: null, signal: null, reason: { code: 'requested', message: 'asked for', by: 'key_1' } },
    requestedAt: now,
    clocksFrom: now,
    ...more,
  })
}

/** `busybox` is bare; `service` has all that an image may say. */
function images(layer: string) {
  const bare: RunnableImage = { reference: 'busybox', digest: 'sha256:0', layers: [layer], config: {} }
  const service: RunnableImage = {
    reference: 'service',
    digest: 'sha256:1',
    layers: [layer],
    config: {
      entrypoint: ['sh', '-c'],
      command: ['trap "echo quit; exit 0" QUIT; echo up; while :; do sleep 0.02; done'],
      env: ['FROM=image', 'PATH=/bin'],
      workingDir: '/tmp',
      user: 'app',
      stopSignal: 'SIGQUIT',
    },
  }
  return async ({ reference }: { readonly reference: string }) =>
    [bare, service].find((image) => image.reference === reference)
}

/** A command as the API sends it. */
export function runCommand(spec: Partial<JobSpec>, tenantId = newTenant()): RunAttempt {
  return RunAttempt.parse({
    kind: 'run',
    nodeId: mint('node'),
    attemptId: mint('attempt'),
    generation: 1,
    jobId: mint('job'),
    tenantId,
    ids: { base: 1_000_000, count: 65_536 },
    tenantLimits: { memoryBytes: 4 * 1024 ** 3, cpus: 2, pids: 4096 },
    spec: JobSpec.parse({ image: 'busybox', command: ['true'], ...spec }),
    placedAt: new Date().toISOString(),
  })
}

function makeBusyboxLayer(root: string): void {
  for (const name of ['bin', 'etc', 'tmp', 'root', 'proc', 'sys', 'dev'])
    mkdirSync(join(root, name), { recursive: true })
  chmodSync(join(root, 'tmp'), 0o1777)
  copyFileSync('/usr/bin/busybox', join(root, 'bin/busybox'))
  const applets =
    'sh mkfifo chroot sort ps stty cp cut true false cat echo sleep dd yes id ls env pwd head tail kill ps seq wc hostname touch mkdir rm mount'
  for (const name of `${applets} date chmod ln grep tr printf sync df test find nc setsid`.split(' '))
    if (!existsSync(join(root, 'bin', name))) symlinkSync('busybox', join(root, 'bin', name))
  writeFileSync(join(root, 'etc/passwd'), 'root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n')
  writeFileSync(join(root, 'etc/group'), 'root:x:0:\napp:x:1000:\nextra:x:2000:app\n')
  writeFileSync(join(root, 'bin/not-executable'), 'data', { mode: 0o644 })
}

/** Whether the machine has what these tests need. */
export async function requireTools(): Promise<void> {
  expectSuccess(await run(['/usr/bin/busybox', 'true']))
}
