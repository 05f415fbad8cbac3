// snapshots.ts: what is made of a sandbox's files, beside buildah: an image of a small change on a small
// and on a large image, and twenty sandboxes that begin with the files of one.
import { randomBytes } from 'node:crypto'
import { writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { commitSandbox, createExec, forkSandbox, MiB, type Sandbox, writeFile } from '@berth/contracts'
import type { Client } from '@berth/sdk'
import type { Installation } from './installation.js'
import { percentiles, timed } from './load.js'
import { openPeers, type Peers } from './peers.js'
import { create, openTenant, remove, runTrue } from './sandbox.js'
import { one, type Section, say, table } from './section.js'

const ROUNDS = 7
const LARGE_MIB = 1024
const CHANGED = 1 * MiB
const FORKS = 20
const FORK_ROUNDS = 5
/** What the one that is forked has changed. */
const FORKED_MIB = 100
const little = { memoryBytes: 64 * MiB, cpus: 0.1 }
const sizes = ['small', 'large'] as const

export const snapshots: Section = {
  name: 'snapshots',
  title: 'Snapshots: commit and fork',
  async measure(at) {
    await using client = await openTenant(at)
    const peers = await openPeers(at.dataDir)
    try {
      const commits = await compareCommits(client, at, peers)
      const forks = await compareForks(client, peers)
      return `A file of ${CHANGED / MiB} MiB, new each time, is written into a sandbox that runs, on the image \`debian\` and on one with
${LARGE_MIB} MiB more; \`POST …/commit?wait=done\` makes an image of it. Beside it, in turn, \`buildah commit\` of a working container of
the same images with the same file, overlay storage on the same disk. Milliseconds, median of ${ROUNDS}.

${table(['commit on', 'Berth p50', 'buildah p50', '÷ buildah'], commits)}

\`POST …/fork\` of ${FORKS} from a sandbox that has written ${FORKED_MIB} MiB, which are in all of them: until the answer, and until \`true\`
has run in the last. Beside it, in turn, ${FORKS} sandboxes that are created at once from the image, and \`buildah commit\` of a container
that has as much, with ${FORKS} \`buildah from\` of that at once, in which nothing runs. Milliseconds, median of ${FORK_ROUNDS}.

${table([`${FORKS} at once`, 'answered p50', 'all run p50'], forks)}`
    } finally {
      peers.close()
    }
  },
}

type Times = Record<(typeof sizes)[number], Record<'berth' | 'buildah', number[]>>

async function compareCommits(client: Client, at: Installation, peers: Peers): Promise<(string | number)[][]> {
  const ours = await sandboxesOn(client)
  const theirs = await containersOn(peers, at)
  const times: Times = { small: { berth: [], buildah: [] }, large: { berth: [], buildah: [] } }
  for (let round = 0; round < ROUNDS; round++) {
    for (const size of sizes) {
      const changed = randomBytes(CHANGED)
      await client.send(writeFile, { params: { sandbox: ours[size].id }, query: { path: '/changed' } }, changed)
      times[size].berth.push(await timed(() => commit(client, ours[size])))
      writeFileSync(join(peers.directory, 'changed'), changed)
      await peers.buildah('copy', '--quiet', theirs[size], join(peers.directory, 'changed'), '/changed')
      times[size].buildah.push(await timed(() => buildahCommit(peers, theirs[size])))
    }
    say(`commits: round ${round + 1} of ${ROUNDS}`)
  }
  await Promise.all(sizes.map((size) => remove(client, ours[size])))
  const median = (size: (typeof sizes)[number], who: 'berth' | 'buildah') => percentiles(times[size][who]).p50
  const rows = sizes.map((size) => {
    const [mine, other] = [median(size, 'berth'), median(size, 'buildah')]
    return [`the ${size} image`, one(mine), one(other), `${(mine / other).toFixed(2)}x`]
  })
  const ratio = (who: 'berth' | 'buildah') => `${(median('large', who) / median('small', who)).toFixed(2)}x`
  return [...rows, ['large ÷ small', ratio('berth'), ratio('buildah'), '']]
}

const buildahCommit = (peers: Peers, container: string) =>
  peers.buildah('commit', '--quiet', '--signature-policy', peers.policy, container, 'localhost/committed')

async function commit(client: Client, { id }: Sandbox, reference?: string): Promise<void> {
  const params = { sandbox: id }
  const done = await client.call(commitSandbox, { params, query: { wait: 'done' }, body: { reference } })
  if (!done || !('images' in done) || done.images.length !== 1)
    throw new Error(`commit of ${id}: ${JSON.stringify(done)}`)
}

async function sandboxesOn(client: Client): Promise<Record<(typeof sizes)[number], Sandbox>> {
  const limits = { ...little, cpus: 1, diskBytes: 2 * LARGE_MIB * MiB }
  const small = await create(client, limits)
  const filled = await create(client, limits)
  await exec(client, filled, `head -c ${LARGE_MIB}M /dev/urandom > /large`)
  await commit(client, filled, 'bench/large:1')
  await remove(client, filled)
  const large = await create(client, limits, 'bench/large:1')
  await Promise.all([runTrue(client, small), runTrue(client, large)])
  return { small, large }
}

async function containersOn(peers: Peers, at: Installation): Promise<Record<(typeof sizes)[number], string>> {
  await peers.buildah('pull', '--signature-policy', peers.policy, `oci:${at.imagesDir}:debian:latest`)
  const id = (await peers.buildah('images', '--quiet')).stdout.trim()
  await peers.buildah('tag', id, 'localhost/debian')
  const filled = await containerWith(peers, 'localhost/debian', LARGE_MIB)
  await peers.buildah('commit', '--quiet', '--signature-policy', peers.policy, filled, 'localhost/large')
  return { small: await from(peers, 'localhost/debian'), large: await from(peers, 'localhost/large') }
}

const from = async (peers: Peers, image: string) => (await peers.buildah('from', '--pull-never', image)).stdout.trim()

/** A container with a file of so many MiB. */
async function containerWith(peers: Peers, image: string, mib: number): Promise<string> {
  const container = await from(peers, image)
  writeFileSync(join(peers.directory, 'file'), randomBytes(mib * MiB))
  await peers.buildah('copy', '--quiet', container, join(peers.directory, 'file'), '/file')
  return container
}

async function exec(client: Client, { id }: Sandbox, script: string): Promise<void> {
  const body = { command: ['sh', '-c', script] }
  const { exitCode } = await client.call(createExec, {
    params: { sandbox: id },
    query: { wait: 'ended', timeoutMs: '10m' },
    body,
  })
  if (exitCode !== 0) throw new Error(`${script} in ${id}: exit code ${exitCode}`)
}

type Forked = Record<'answered' | 'all', number[]>

async function compareForks(client: Client, peers: Peers): Promise<(string | number)[][]> {
  const limits = { ...little, diskBytes: 2 * FORKED_MIB * MiB }
  const source = await create(client, limits)
  await exec(client, source, `head -c ${FORKED_MIB}M /dev/urandom > /file`)
  const params = { sandbox: source.id }
  const fork = async () => (await client.call(forkSandbox, { params, body: { count: FORKS } })).items
  const many = () => Promise.all(Array.from({ length: FORKS }, () => create(client, limits)))
  const whole = `test $(stat -c %s /file) = ${FORKED_MIB * MiB}`
  const container = await containerWith(peers, 'localhost/debian', FORKED_MIB)
  const [forked, created, copied]: [Forked, Forked, number[]] = [
    { answered: [], all: [] },
    { answered: [], all: [] },
    [],
  ]
  for (let round = 0; round < FORK_ROUNDS; round++) {
    await begun(client, forked, fork, (sandbox) => exec(client, sandbox, whole))
    await begun(client, created, many, async () => undefined)
    copied.push(await timed(() => buildahFork(peers, container)))
    say(`forks: round ${round + 1} of ${FORK_ROUNDS}`)
  }
  await remove(client, source)
  const median = (numbers: readonly number[]) => one(percentiles(numbers).p50)
  return [
    ['fork', median(forked.answered), median(forked.all)],
    ['create, from the image', median(created.answered), median(created.all)],
    ['`buildah commit`, `from`', median(copied), 'nothing runs'],
  ]
}

/** Begins sandboxes, runs `true` in each, looks at them and removes them. */
async function begun(
  client: Client,
  times: Forked,
  begin: () => Promise<readonly Sandbox[]>,
  look: (sandbox: Sandbox) => Promise<void>,
): Promise<void> {
  const began = performance.now()
  const made = await begin()
  times.answered.push(performance.now() - began)
  await Promise.all(made.map((sandbox) => runTrue(client, sandbox)))
  times.all.push(performance.now() - began)
  if (made.length !== FORKS) throw new Error(`${made.length} of ${FORKS}`)
  for (const sandbox of made) await look(sandbox)
  await Promise.all(made.map((sandbox) => remove(client, sandbox)))
}

async function buildahFork(peers: Peers, container: string): Promise<void> {
  await buildahCommit(peers, container)
  await Promise.all(Array.from({ length: FORKS }, () => peers.buildah('from', '--pull-never', 'localhost/committed')))
}
