// sandboxes.ts: from the request for a sandbox to the answer of the first command in it.
import {
  ApiError,
  getSandbox,
  pauseSandbox,
  resumeSandbox,
  type Sandbox,
  type SandboxState,
  startSandbox,
  stopSandbox,
} from '@berth/contracts'
import type { Client } from '@berth/sdk'
import { type Container, type Floor, type FloorLimits, limits, openFloor } from './floor.js'
import type { Installation } from './installation.js'
import { measure, percentiles, timed } from './load.js'
import { phasesTable, type Sample } from './phases.js'
import { create, openTenant, remove, runTrue } from './sandbox.js'
import { one, type Section, say, table } from './section.js'

/** How requests come in; without a gap each waits for the end of the one before. */
const arrivals = [
  { name: '100, one after the other', count: 100, gapMs: undefined },
  { name: '50, 200 ms apart', count: 50, gapMs: 200 },
  { name: '50 at once', count: 50, gapMs: 0 },
] as const
type Arrivals = (typeof arrivals)[number]

export const sandboxes: Section = {
  name: 'sandboxes',
  title: 'Sandboxes: request to first command',
  async measure(at) {
    await using client = await openTenant(at)
    const samples: Sample[] = []
    const rows: (string | number)[][] = []
    for (const arrival of arrivals) rows.push(await compare(at, client, arrival, samples))
    return `${explained}

${table(['requests', 'CPUs each', 'answered', 'p50', 'p95', 'p99', ...peerHead], rows)}

Where the time goes, one after the other (medians of ${samples.length}; the phases are those of the sandbox,
everything else is HTTP, database, queue and the command itself):

${phasesTable(samples)}

${await warm(at, client)}`
  },
}

const explained = `\`POST /v1/sandboxes\`, at once followed by \`POST …/execs?wait=ended&output=true\` of \`true\`: milliseconds
from the first request to the answer of the second, cold: no sandbox is kept ready. Beside it, in the same process and
run and with the same root file system, \`config.json\` and seccomp filter ready-made, the bare OCI runtime: \`crun run\` of
\`true\`, which leaves nothing to run a second command in, and \`crun run --detach\` followed by \`crun exec\`. Sandboxes and
containers of a row that come apart or at once are all there until the last has answered.`

const peerHead = ['`run` p50', 'p95', '`run -d`, `exec` p50', 'p95', '÷ `run`', '÷ `run -d`, `exec`'] as const

/** Something that was begun and answered. */
interface Begun {
  readonly ms: number
  end(): Promise<void>
}

async function compare(at: Installation, client: Client, arrival: Arrivals, samples: Sample[]) {
  const limited = arrival.gapMs === undefined ? limits : await fitting(at, arrival.count)
  const floor = await openFloor(at.imagesDir, 'debian:latest', at.seccompBpf(), limited)
  try {
    const ours = await tried(arrival, async () => {
      const begun = await begin(client, limited)
      if (arrival.gapMs === undefined) samples.push(begun.sample)
      return begun
    })
    const alone = await tried(arrival, async () => ({ ms: await floor.run(['true'], ''), end: async () => undefined }))
    const detached = await tried(arrival, () => beginBare(floor))
    const [p50, ...high] = [ours.p50, ours.p95, ours.p99]
    const peers = [alone.p50, alone.p95, detached.p50, detached.p95]
    const ratios = [p50 / alone.p50, p50 / detached.p50].map((ratio) => `${one(ratio)}x`)
    const row = [arrival.name, limited.cpus, ours.answered, ...[p50, ...high, ...peers].map(one), ...ratios]
    say(row.join(' | '))
    return row
  } finally {
    await floor.close()
  }
}

/** As little CPU as it takes for so many to fit on the node at once. */
async function fitting(at: Installation, count: number): Promise<FloorLimits> {
  const { cpus } = await at.room()
  return { ...limits, cpus: Math.min(limits.cpus, Math.floor((cpus / count) * 100) / 100) }
}

/** Refusals are counted; anything else that goes wrong is thrown. */
async function tried({ count, gapMs }: Arrivals, work: () => Promise<Begun>) {
  const times: number[] = []
  const attempt = async (): Promise<Begun | undefined> => {
    try {
      const begun = await work()
      times.push(begun.ms)
      return begun
    } catch (error) {
      if (!(error instanceof ApiError)) throw error
      say(error.message)
      return undefined
    }
  }
  if (gapMs === undefined) for (let i = 0; i < count; i++) await (await attempt())?.end()
  else {
    const apart = Array.from({ length: count }, (_, i) => pause(i * gapMs).then(attempt))
    const begun = await Promise.all(apart)
    for (const each of begun) await each?.end()
  }
  return { ...percentiles(times), answered: `${times.length} of ${count}` }
}

async function begin(client: Client, limited: FloorLimits): Promise<Begun & { readonly sample: Sample }> {
  const started = performance.now()
  const sandbox = await create(client, limited)
  await runTrue(client, sandbox)
  const ms = performance.now() - started
  // Its node's report may be on its way yet.
  const query = { wait: 'running' } as const
  const { state, phases } = await client.call(getSandbox, { params: { sandbox: sandbox.id }, query })
  if (state !== 'running') throw new Error(`${sandbox.id} is ${state}`)
  const { readyMs: _, ...parts } = phases
  return { ms, sample: { totalMs: ms, phases: parts }, end: () => remove(client, sandbox) }
}

async function beginBare(floor: Floor): Promise<Begun> {
  const container = await floor.start()
  const ms = container.startMs + (await container.exec(['true'], ''))
  return { ms, end: () => container.close() }
}

/** One sandbox and one container, again and again. */
async function warm(at: Installation, client: Client): Promise<string> {
  const floor = await openFloor(at.imagesDir, 'debian:latest', at.seccompBpf())
  const container = await floor.start()
  const sandbox = await create(client, limits)
  await runTrue(client, sandbox)
  try {
    const started = await measure(50, 1, () => again(client, sandbox, 'stopped', stopSandbox, startSandbox))
    const bareStarted = await measure(50, 1, async () => {
      const { ms, end } = await beginBare(floor)
      await end()
      return ms
    })
    const resumed = await measure(50, 1, () => again(client, sandbox, 'paused', pauseSandbox, resumeSandbox))
    const bareResumed = await measure(50, 1, () => againBare(container))
    const rows = [
      ['`start` of a stopped one', started, bareStarted, '`run -d`, `exec`'] as const,
      ['`resume` of a paused one', resumed, bareResumed, '`resume`, `exec`'] as const,
    ].map(([name, ours, peer, of]) => {
      const numbers = [ours.p50, ours.p95, ours.p99, peer.p50].map(one)
      return [name, ...numbers, of, `${one(ours.p50 / peer.p50)}x`]
    })
    return `Warm: of a sandbox that is there, from the request, with \`wait=running\`, to the answer of the first command
after it (50 each).

${table(['request', 'p50', 'p95', 'p99', 'bare p50', 'bare is', '÷ bare'], rows)}`
  } finally {
    await remove(client, sandbox)
    await container.close()
    await floor.close()
  }
}

async function again(
  client: Client,
  { id }: Sandbox,
  rest: SandboxState,
  away: typeof stopSandbox | typeof pauseSandbox,
  back: typeof startSandbox | typeof resumeSandbox,
): Promise<number> {
  const params = { sandbox: id }
  const { state } = await client.call(away, { params, query: { wait: rest } })
  if (state !== rest) throw new Error(`${id} is ${state}, not ${rest}`)
  return await timed(async () => {
    await client.call(back, { params, query: { wait: 'running' } })
    await runTrue(client, { id })
  })
}

async function againBare(container: Container): Promise<number> {
  await container.freeze('pause')
  return (await container.freeze('resume')) + (await container.exec(['true'], ''))
}

const pause = (ms: number) => new Promise<void>((resolve) => setTimeout(resolve, ms))
