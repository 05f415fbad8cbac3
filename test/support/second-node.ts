// second-node.ts: one more agent beside that of the stack, on the same machine: with a directory, a pool, control groups
// and a port of its own, and without base images.
import { execFileSync } from 'node:child_process'
import { mkdirSync, readFileSync, rmSync } from 'node:fs'
import { join } from 'node:path'
import { takeInventory } from '@berth/host'
import { ensureDaemon, logPath, readDaemon } from '../../apps/cli/src/up/daemon.js'
import { operator, stack, until } from './berth.js'
import { alive, recordOf } from './crash.js'

const NAME = 'second'

export class SecondNode implements AsyncDisposable {
  private constructor(
    readonly id: string,
    readonly token: string,
    private readonly directory: string,
    private readonly env: Readonly<Record<string, string>>,
    private readonly argv: readonly string[],
  ) {}

  static async start(): Promise<SecondNode> {
    const made = await operator().post('/v1/nodes', { name: `${NAME}-${process.pid}-${Date.now()}` })
    if (made.status !== 201) throw new Error(`node: ${JSON.stringify(made.body)}`)
    const { argv, env } = await recordOf('agent')
    const directory = join(stack().dataDir, NAME)
    mkdirSync(join(directory, 'images'), { recursive: true, mode: 0o711 })
    const own = {
      BERTH_NODE_TOKEN: made.body.token,
      BERTH_AGENT_DATA: join(directory, 'agent'),
      BERTH_IMAGES_DIR: join(directory, 'images'),
      BERTH_CGROUP_PARENT: `${stack().cgroupParent}-2`,
      BERTH_CAPACITY_DISK: '8g',
    }
    const node = new SecondNode(made.body.id, made.body.token, directory, { ...env, ...own }, argv)
    await node.run()
    return node
  }

  private get places() {
    return { runDir: join(this.directory, 'run'), logDir: join(this.directory, 'logs') }
  }

  /** Starts its agent, unless it runs, and waits until it takes work. */
  async run(): Promise<void> {
    const [program = '', ...args] = this.argv
    await ensureDaemon(this.places, {
      ...{ name: NAME, argv: [program, ...args], env: this.env },
      ...{ dependsOn: [], stopSignal: 'SIGTERM', stopWithinMs: 20_000 },
    })
    await until('the second node is ready', async () => {
      const { body } = await operator().get(`/v1/nodes/${this.id}`)
      return body.state === 'ready' || body.state === 'draining' ? true : undefined
    })
  }

  /** kill -9 */
  async crash(): Promise<void> {
    process.kill(await this.pid(), 'SIGKILL')
    await until('the second agent is dead', async () => this.pid().then((pid) => (alive(pid) ? undefined : true)))
  }

  /** How often its agent has said that. */
  said(event: string): number {
    return readFileSync(logPath(this.places, NAME), 'utf8').split(`"${event}"`).length - 1
  }

  private async pid(): Promise<number> {
    const record = await readDaemon(this.places, NAME)
    if (!record) throw new Error('the second agent was never started')
    return record.pid
  }

  /** Ends all that it has. @throws Error where something is left */
  async [Symbol.asyncDispose](): Promise<void> {
    const pid = await this.pid()
    if (alive(pid)) process.kill(pid, 'SIGTERM')
    await until('the second agent has ended', async () => (alive(pid) ? undefined : true))
    const [program = '', ...args] = this.argv
    execFileSync(program, [...args, '--clean'], { env: { ...this.env, PATH: process.env.PATH ?? '' } })
    const { BERTH_CGROUP_PARENT: cgroupParent = '', BERTH_AGENT_DATA: dataDir = '' } = this.env
    const left = Object.entries(await takeInventory({ cgroupParent, dataDir })).filter(([, found]) => found.length > 0)
    if (left.length > 0) throw new Error(`left of the second node: ${JSON.stringify(Object.fromEntries(left))}`)
    await operator().delete(`/v1/nodes/${this.id}`)
    rmSync(this.directory, { recursive: true, force: true })
  }
}
