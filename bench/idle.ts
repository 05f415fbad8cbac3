// idle.ts: what sandboxes cost that do nothing, beyond what runs in them. The node must take that many:
// `BERTH_MAX_SANDBOXES=400 ./berth up`; where it does not, there are as many as it takes.
import { readdirSync, readFileSync } from 'node:fs'
import { setTimeout as pause } from 'node:timers/promises'
import { getSandbox, getSandboxStats, MiB, type Sandbox } from '@berth/contracts'
import type { Client } from '@berth/sdk'
import { type Container, openFloor } from './floor.js'
import type { Installation, Memory } from './installation.js'
import { eachOf, timed } from './load.js'
import { create, openTenant, remove } from './sandbox.js'
import { one, type Section, say, table } from './section.js'

const MOST = 300
const BARE = 50
const AT_ONCE = 8
/** Until what was made or ended has settled: garbage, write-back, what the kernel frees later. */
const SETTLE_MS = 10_000

const limits = { memoryBytes: 32 * MiB, cpus: 0.02, diskBytes: 16 * MiB } as const

export const idle: Section = {
  name: 'idle',
  title: 'Idle sandboxes',
  async measure(at) {
    await using client = await openTenant(at)
    // What is made once, by the first of all, is no part of it.
    await remove(client, await running(client))
    const count = Math.min(MOST, (await at.room()).sandboxes)
    const before = await settled(at)
    const made: Sandbox[] = []
    const createMs = await timed(() =>
      eachOf(Array(count).keys(), AT_ONCE, async () => made.push(await running(client))),
    )
    say(`${count} created in ${one(createMs / 1000)} s`)
    const during = await settled(at)
    const inside = await ownMiB(client, made)
    const deleteMs = await timed(() => eachOf(made, AT_ONCE, (sandbox) => remove(client, sandbox)))
    say(`and deleted in ${one(deleteMs / 1000)} s`)
    const after = await settled(at)
    const bare = await ofBare(at)
    const seconds = [createMs, deleteMs].map((ms) => one(ms / 1000))
    return `${count} sandboxes without a main process, each with its init and nothing else; ${AT_ONCE} requests in flight made them in
${seconds[0]} s and deleted them in ${seconds[1]} s. Before each look at memory nothing happens for ${SETTLE_MS / 1000} s.

${table(
  ['resident memory, MiB', 'before', `with ${count}`, 'after'],
  (['api', 'agent'] as const).map((who) => [who, before[who], during[who], after[who]]),
)}

For each of them, KiB. "All" is what the machine's \`MemAvailable\` lost: API, agent, database, Redis, kernel (namespaces,
mounts, control groups, sockets) and what is in the sandboxes. "Inside" is charged to the sandboxes' own control groups
(\`memoryBytes\` of their stats), "outside" is the rest. Bare is \`crun run --detach\` of \`sleep\`, ${BARE} of them.

${table(
  ['', 'all', 'inside', 'outside', 'processes'],
  [
    ['Berth', ...perOne(before, during, count, inside)],
    ['bare', ...perOne(bare.before, bare.during, BARE, bare.inside)],
  ],
)}`
  },
}

interface State extends Memory {
  /** MiB that a new process could have. */
  readonly available: number
  readonly processes: number
}

async function settled(at: Installation): Promise<State> {
  await pause(SETTLE_MS)
  const kib = Number(/^MemAvailable:\s+(\d+)/m.exec(readFileSync('/proc/meminfo', 'utf8'))?.[1])
  const processes = readdirSync('/proc').filter((name) => /^\d+$/.test(name)).length
  return { ...at.memory(), available: kib / 1024, processes }
}

/** @param inside MiB of all of them */
function perOne(before: State, during: State, count: number, inside: number): string[] {
  const all = before.available - during.available
  const kib = [all, inside, all - inside].map((mib) => String(Math.round((mib * 1024) / count)))
  return [...kib, one((during.processes - before.processes) / count)]
}

async function running(client: Client): Promise<Sandbox> {
  const { id } = await create(client, limits)
  const sandbox = await client.call(getSandbox, {
    params: { sandbox: id },
    query: { wait: 'running', timeoutMs: '60s' },
  })
  if (sandbox.state !== 'running') throw new Error(`${id} is ${sandbox.state}`)
  return sandbox
}

async function ownMiB(client: Client, sandboxes: readonly Sandbox[]): Promise<number> {
  let sum = 0
  await eachOf(sandboxes, AT_ONCE, async ({ id }) => {
    sum += (await client.call(getSandboxStats, { params: { sandbox: id } })).memoryBytes
  })
  return sum / MiB
}

async function ofBare(at: Installation) {
  const floor = await openFloor(at.imagesDir, 'debian:latest', at.seccompBpf(), limits)
  const containers: Container[] = []
  const before = await settled(at)
  await eachOf(Array(BARE).keys(), AT_ONCE, async () => containers.push(await floor.start()))
  const during = await settled(at)
  const inside = containers.reduce((sum, container) => sum + container.memoryBytes(), 0) / MiB
  for (const container of containers) await container.close()
  await floor.close()
  return { before, during, inside }
}
