// A node for tests: real pool, cgroups, runtime and berth-init in a directory and a cgroup of its own; an image made of
// busybox; and reports that are kept instead of sent.

import { randomBytes } from 'node:crypto'
import { chmodSync, copyFileSync, existsSync, mkdirSync, mkdtempSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type AttemptId, type AttemptStarted, JobSpec, mintId, RunAttempt, TenantId } from '@berth/contracts'
import { expectSuccess, removeTree, run } from '@berth/host'
import { createLogger, type Logger } from '@berth/telemetry'
import { type AttemptResult, Journal } from '../journal.js'
import { readHead } from '../logs/store.js'
import { clean, recover } from './recovery.js'
import type { RunnableImage } from './sandbox.js'
import { Supervisor } from './supervisor.js'
import { Turns } from './turns.js'
import { type OpenWorkshop, openWorkshop } from './workshop.js'

const mint = (kind: 'attempt' | 'job' | 'tenant' | 'node') => mintId(kind, Date.now(), randomBytes(10))
export const newTenant = () => TenantId.parse(mint('tenant'))

export interface NodeOptions {
  /** Made by `newNodeDirectory`. */
  readonly directory: string
  readonly cgroupParent: string
  readonly log?: Logger
  readonly maxSandboxes?: number
}

/** A directory that sandboxes can pass, and a name for cgroups. */
export function newNodeDirectory(): { readonly directory: string; readonly cgroupParent: string } {
  const directory = mkdtempSync(join(tmpdir(), 'berth-node-'))
  chmodSync(directory, 0o711)
  makeBusyboxLayer(join(directory, 'image'))
  return { directory, cgroupParent: `berth-t${randomBytes(4).toString('hex')}` }
}

export class TestNode {
  readonly started: AttemptStarted[] = []
  readonly results = new Map<AttemptId, AttemptResult>()
  readonly #waiting = new Map<AttemptId, ((result: AttemptResult) => void)[]>()

  private constructor(
    readonly options: NodeOptions,
    readonly shop: OpenWorkshop,
    readonly journal: Journal,
  ) {}

  supervisor!: Supervisor

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
    const image: RunnableImage = {
      reference: 'busybox',
      digest: 'sha256:0',
      layers: [join(options.directory, 'image')],
      config: {},
    }
    node.supervisor = new Supervisor({
      shop,
      journal,
      log,
      resolveImage: async (reference) => (reference === 'busybox' ? image : undefined),
      starts: new Turns(4),
      maxSandboxes: options.maxSandboxes ?? 64,
      reports: { started: (report) => void node.started.push(report), finished: (id) => node.#finished(id) },
    })
    await recover({ shop, journal, supervisor: node.supervisor, log })
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
    await this.supervisor.close()
    this.shop.tenants.close()
    await clean(this.shop)
    await this.shop.pool.close()
    await removeTree(this.options.directory)
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
    'sh true false cat echo sleep dd yes id ls env pwd head tail kill ps seq wc hostname touch mkdir rm mount'
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
