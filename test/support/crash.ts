import { execFileSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { ignore } from '@berth/contracts'
import { cgroupLayout, openCgroups, takeInventory } from '@berth/host'
import { ensureDaemon, readDaemon, systemUser } from '../../apps/cli/src/up/daemon.js'
import { awaitRelease } from '../../apps/cli/src/up/postgres.js'
import { operator, stack, until } from './berth.js'

export type Part = 'api' | 'agent' | 'postgres' | 'redis'

const users: Readonly<Partial<Record<Part, string>>> = { postgres: 'postgres', redis: 'redis' }

const places = () => ({ runDir: join(stack().dataDir, 'run'), logDir: join(stack().dataDir, 'logs') })

export async function recordOf(part: Part) {
  const record = await readDaemon(places(), part)
  if (!record) throw new Error(`${part} was never started`)
  return record
}

export const alive = (pid: number): boolean => {
  try {
    process.kill(pid, 0)
    return !/^State:\s+Z/m.test(statusOf(pid))
  } catch {
    return false
  }
}

/** kill -9, and nothing else. Resolves when the process is gone. */
export async function crash(part: Part): Promise<void> {
  const { pid } = await recordOf(part)
  process.kill(pid, 'SIGKILL')
  await until(`${part} is dead`, async () => (alive(pid) ? undefined : true))
}

/** Starts a dead part again, exactly as it was started before; a living one is left alone. */
export async function restart(part: Part): Promise<void> {
  const record = await recordOf(part)
  if (alive(record.pid)) return
  if (part === 'postgres') await awaitRelease(join(stack().dataDir, 'postgres', 'cluster'))
  const name = users[part]
  const [program = '', ...args] = record.argv
  await ensureDaemon(places(), {
    name: part,
    argv: [program, ...args],
    env: record.env,
    dependsOn: [`after ${record.pid}`],
    stopSignal: record.stopSignal,
    stopWithinMs: record.stopWithinMs,
    ...(name ? { user: systemUser(name, name) } : {}),
  })
}

/** Starts whatever a test left dead, and waits until the next one finds a whole Berth. */
export async function restored(): Promise<void> {
  for (const part of ['postgres', 'redis', 'api', 'agent'] as const) await restart(part)
  await until(
    'the API is back, and its node',
    async () => {
      const { items } = (await operator().get('/v1/nodes')).body
      return items.some(({ state }: { state: string }) => state === 'ready') ? true : undefined
    },
    60_000,
  )
}

export interface NodeInventory {
  readonly sandboxes: readonly { readonly group: string; readonly inits: readonly number[] }[]
  readonly mounts: readonly string[]
  readonly uppers: readonly string[]
}

/** What the node holds now. The pool's own mount is no leak. */
export async function inventory(): Promise<NodeInventory> {
  const { cgroupParent, dataDir } = stack()
  const found = await takeInventory({ cgroupParent, dataDir, trees: ['agent/pool'] })
  const sandboxes = found.cgroups.filter((group) => /\/att_[0-9a-z]+$/.test(group))
  return {
    sandboxes: [...new Set(sandboxes)].map((group) => ({ group, inits: initsOf(group) })),
    mounts: found.mounts.filter((mount) => !mount.startsWith(`${dataDir}/agent/pool (`)),
    uppers: found.trees.filter((entry) => /\/att_/.test(entry) && !/\/\./.test(entry)),
  }
}

/** PID 1 of the sandbox, as the host numbers it. */
const initsOf = (group: string): readonly number[] =>
  openCgroups(cgroupLayout())
    .processes(group)
    .filter((pid) => /^NSpid:\s+\d+\s+1$/m.test(statusOf(pid)))

function statusOf(pid: number): string {
  try {
    return readFileSync(`/proc/${pid}/status`, 'utf8')
  } catch (error) {
    return ignore(error, 'ENOENT', 'ESRCH') ?? ''
  }
}

/** Resident memory of API and agent, in MiB. */
export async function memoryOf(): Promise<Record<'api' | 'agent', number>> {
  const rss = async (part: Part) => {
    const status = readFileSync(`/proc/${(await recordOf(part)).pid}/status`, 'utf8')
    return Math.round(Number(/^VmRSS:\s+(\d+)/m.exec(status)?.[1]) / 1024)
  }
  return { api: await rss('api'), agent: await rss('agent') }
}

/** Runs one command on the private Redis as its administrator. */
export async function redisCli(...command: readonly string[]): Promise<void> {
  const { env } = await recordOf('api')
  const url = new URL(env.REDIS_URL ?? '')
  const socket = decodeURIComponent(url.pathname)
  const password = decodeURIComponent(url.password || (url.searchParams.get('password') ?? ''))
  execFileSync('redis-cli', ['-s', socket, '--no-auth-warning', ...command], {
    env: { ...process.env, REDISCLI_AUTH: password },
  })
}
