// Agent and API are killed while they pull, build, commit and fork: at a line of what they tell, or at any moment. What they
// were at ends, nothing of it is left, the store is whole, and the same thing asked again is done.
//
// BERTH_KILL_ROUNDS says how many times, BERTH_KILL_SEED which: the same seed picks the same.
import { execFile, execFileSync } from 'node:child_process'
import { copyFileSync, mkdirSync, mkdtempSync, readdirSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { createInterface } from 'node:readline/promises'
import { Readable } from 'node:stream'
import { setTimeout as delay } from 'node:timers/promises'
import { promisify } from 'node:util'
import { cgroupLayout, openCgroups, takeInventory } from '@berth/host'
import { afterAll, beforeAll, beforeEach, expect, test } from '@jest/globals'
import { operator, run, stack, stdout, type TestTenant, tenant, until } from '../support/berth.js'
import { crash, type Part, restored } from '../support/crash.js'
import { publish, startRegistry, type TestRegistry } from '../support/registry.js'

const parts = ['api', 'agent'] as const satisfies readonly Part[]
const operations = ['pull', 'build', 'commit', 'fork'] as const
type Operation = (typeof operations)[number]

interface Round {
  readonly number: number
  readonly operation: Operation
  readonly part: (typeof parts)[number]
  /** After so many lines of what is told, or after that part of the time that it took before. */
  readonly moment: { readonly lines: number } | { readonly fraction: number }
}

const ORDINARY = 4
const ROUNDS = Number(process.env.BERTH_KILL_ROUNDS ?? ORDINARY)
/** One whose ordinary rounds have each operation once, and each part twice. */
const ORDINARY_SEED = 86
const SEED = Number(process.env.BERTH_KILL_SEED ?? ORDINARY_SEED)

/** mulberry32: numbers below 1, the same for the same seed. */
function randomOf(seed: number): () => number {
  let state = seed
  return () => {
    state = (state + 0x6d2b79f5) | 0
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state)
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32
  }
}

/** Everything is killed in everything before something comes again. */
function planOf(seed: number, rounds: number): readonly Round[] {
  const random = randomOf(seed)
  const pairs = parts.flatMap((part) => operations.map((operation) => ({ part, operation })))
  const picked: Round[] = []
  for (let left: typeof pairs = []; picked.length < rounds; ) {
    if (left.length === 0) left = [...pairs]
    const [pair] = left.splice(Math.floor(random() * left.length), 1)
    const byLine = random() < 0.5 && pair?.operation !== 'fork'
    const moment = byLine ? { lines: 1 + Math.floor(random() * 24) } : { fraction: random() * 1.1 }
    if (pair) picked.push({ number: picked.length, ...pair, moment })
  }
  return picked
}

const titleOf = ({ operation, part, moment }: Round) =>
  `${part} in ${operation} ${'lines' in moment ? `at line ${moment.lines}` : `at ${moment.fraction.toFixed(3)}`}`

const directory = mkdtempSync(join(tmpdir(), 'berth-killed-'))
/** What each takes, in milliseconds: as it was last. */
const took: Record<Operation, number> = { pull: 1000, build: 3000, commit: 500, fork: 100 }
const tenants: TestTenant[] = []
let registry: TestRegistry
let nodeBefore: Readonly<Record<string, number>>
let base: Buffer

beforeAll(async () => {
  process.stderr.write(`images-killed: ${ROUNDS} rounds of seed ${SEED}\n`)
  await restored()
  registry = await startRegistry(stack().registries.open)
  const root = join(directory, 'root')
  mkdirSync(join(root, 'bin'), { recursive: true })
  copyFileSync('/bin/busybox', join(root, 'bin/busybox'))
  for (const applet of ['sh', 'cat']) symlinkSync('busybox', join(root, 'bin', applet))
  base = tarOf(root)
  nodeBefore = await until(
    'what ran before is over',
    async () => {
      const used = await usedOfNode()
      return Object.values(used).some((value) => value > 0) ? undefined : used
    },
    60_000,
  )
}, 120_000)
// Also before each try of a test whose last one failed in the middle.
beforeEach(async () => {
  await restored()
  await answering()
}, 120_000)
afterAll(async () => {
  await restored()
  await registry?.stop()
  rmSync(directory, { recursive: true })
}, 120_000)

const tarOf = (root: string) => execFileSync('tar', ['-C', root, '-c', '.'], { maxBuffer: 2 ** 26 })

/** Files that nobody else has, many small and one large, and one that says which they are. */
function filesOf(word: string): string {
  const root = mkdtempSync(join(directory, 'files-'))
  mkdirSync(join(root, 'lib'))
  writeFileSync(join(root, 'word'), word)
  for (let i = 0; i < 200; i++) writeFileSync(join(root, 'lib', `f${i}`), word.repeat(i))
  execFileSync('dd', ['if=/dev/urandom', `of=${join(root, 'noise')}`, 'bs=1M', 'count=4', 'status=none'])
  return root
}

const dockerfile = (word: string) => `FROM debian AS made
ARG WORD=${word}
WORKDIR /made
COPY . .
RUN --mount=type=cache,target=/cache --mount=type=secret,id=key,required=true \\
  test -s /run/secrets/key && echo $WORD | tee -a /cache/words && cp noise second
RUN for i in 1 2 3 4 5 6; do echo $i; sleep 0.05; done; rm lib/f1

FROM debian
RUN echo beside > /beside
COPY --from=made /made /made
RUN cp /made/word /word && test -s /made/second && test ! -e /made/lib/f1
`

/** One thing that is asked for, as often as wanted. */
interface Task {
  ask(): Promise<Response>
  /** That what came of it works. @param answered whether it was told that it is done */
  works(answered: boolean): Promise<void>
}

async function taskOf(operation: Operation, t: TestTenant, word: string): Promise<Task> {
  const json = { 'content-type': 'application/json' }
  const post = (path: string, body: object) => t.raw('POST', path, { headers: json, body: JSON.stringify(body) })
  const runs = async (image: string) => {
    const job = await run(t, { image, command: ['cat', '/word'] })
    if (job.state !== 'succeeded') throw new Error(JSON.stringify(job.reason))
    expect(stdout(job)).toBe(word)
  }
  // What was not told to be done may be done, or not.
  const worksIfDone = (image: string) => async (answered: boolean) => {
    if (answered) await runs(image)
  }
  if (operation === 'pull') {
    const files = filesOf(word)
    await publish(registry, `killed/${word}`, '1', [base, tarOf(files)])
    const reference = `${registry.host}/killed/${word}:1`
    return { ask: () => post('/v1/images/pull', { reference }), works: worksIfDone(reference) }
  }
  if (operation === 'build') {
    const files = filesOf(word)
    writeFileSync(join(files, 'Dockerfile'), dockerfile(word))
    const context = new Uint8Array(tarOf(files))
    const headers = { 'berth-build-secret': `key=${Buffer.from('correct horse').toString('base64')}` }
    return {
      ask: () => t.raw('POST', `/v1/builds?tag=${word}`, { headers, body: context }),
      works: worksIfDone(word),
    }
  }
  const limits = { cpus: 0.2, memoryBytes: '64m', diskBytes: '128m' }
  const made = await t.post('/v1/sandboxes?wait=running&timeoutMs=60s', { image: 'debian', limits })
  if (made.status !== 201) throw new Error(JSON.stringify(made.body))
  const source = `/v1/sandboxes/${made.body.id}`
  await inside(t, made.body.id, `printf ${word} > /word; head -c 4000000 /dev/urandom > /noise`)
  const goesOn = async () => {
    expect((await t.get(source)).body).toMatchObject({ state: 'running', restarts: 0 })
    expect(await inside(t, made.body.id, 'cat /word')).toBe(word)
  }
  if (operation === 'commit')
    return {
      ask: () => post(`${source}/commit`, { reference: word }),
      works: async (answered) => {
        await goesOn()
        if (answered) await runs(word)
      },
    }
  return {
    ask: () => post(`${source}/fork`, { count: 2, labels: { forked: word } }),
    works: async (answered) => {
      await goesOn()
      const { items } = (await t.get(`/v1/sandboxes?label=forked=${word}`)).body
      // All of a fork or none.
      expect(items.length % 2).toBe(0)
      expect(items.length).toBeGreaterThanOrEqual(answered ? 2 : 0)
      for (const { id } of items) {
        expect((await t.get(`/v1/sandboxes/${id}?wait=running&timeoutMs=60s`)).body).toMatchObject({ state: 'running' })
        expect(await inside(t, id, 'cat /word')).toBe(word)
        await removed(t, id)
      }
    },
  }
}

async function removed(t: TestTenant, id: string): Promise<void> {
  await t.delete(`/v1/sandboxes/${id}?force=true`)
  await until(`${id} is gone`, async () =>
    (await t.get(`/v1/sandboxes/${id}`)).body.state === 'deleted' ? true : undefined,
  )
}

/** Runs a script in a sandbox. @returns what it wrote */
async function inside(t: TestTenant, id: string, script: string): Promise<string> {
  const asked = { command: ['sh', '-c', script] }
  const { status, body } = await t.post(`/v1/sandboxes/${id}/execs?wait=ended&output=true&timeoutMs=30s`, asked)
  if (body.exitCode !== 0) throw new Error(`${script}: ${status} ${JSON.stringify(body)}`)
  return body.output.stdout.data
}

/** How it ended: `done`, the code that it failed with, or `broken` where the connection did. */
async function outcomeOf(asked: Promise<Response>, onLine: () => void = () => undefined): Promise<string> {
  let last = ''
  try {
    const response = await asked
    if (!response.body) throw new Error(`no answer: ${response.status}`)
    for await (const line of createInterface({ input: Readable.fromWeb(response.body) })) {
      last = line
      onLine()
    }
    if (response.status === 201) return 'done'
  } catch {
    return 'broken'
  }
  const { step, code } = JSON.parse(last)
  return step === 'done' ? step : (code ?? 'broken')
}

async function killed({ operation, part, moment }: Round, task: Task): Promise<string> {
  let reach: () => void = () => undefined
  const reached = new Promise<void>((resolve) => {
    reach = resolve
  })
  let lines = 0
  const outcome = outcomeOf(task.ask(), () => {
    lines++
    if ('lines' in moment && lines === moment.lines) reach()
  })
  await ('lines' in moment ? Promise.race([reached, outcome]) : delay(took[operation] * moment.fraction))
  await crash(part)
  return outcome
}

/** Its node takes what is asked of it: before the agent has joined again it answers nobody. */
const answering = () =>
  until('the node answers', async () => {
    const probe = (await tenants[0]?.post('/v1/jobs?wait=finished', { command: ['true'] }))?.body
    return !probe || probe.state === 'succeeded' || undefined
  })

test.each(planOf(SEED, ROUNDS).map((round) => [titleOf(round), round] as const))(
  'killed: %s',
  async (_, round) => {
    const word = `w${SEED}-${round.number}-${Date.now().toString(36)}`
    const t = await tenant()
    tenants.push(t)
    const task = await taskOf(round.operation, t, word)
    const before = await holdings()

    const outcome = await killed(round, task)
    if (ROUNDS > ORDINARY) process.stderr.write(`round ${round.number}, ${titleOf(round)}: ${outcome}\n`)
    // Whoever waits is told, unless nobody is there who could tell it.
    if (round.part === 'agent') expect(['done', 'node_unreachable']).toContain(outcome)
    await restored()
    await answering()
    await task.works(outcome === 'done')
    await nothingLeft(before)
    // That takes as long as all images of the node are large: the usual rounds have it in the end.
    if (ROUNDS > ORDINARY) await storeIsWhole()

    const since = performance.now()
    expect(await outcomeOf(task.ask())).toBe('done')
    took[round.operation] = performance.now() - since
    await task.works(true)
    await nothingLeft(before)
    // Images stay, to be checked in the end; the node has room for so many sandboxes.
    for (const { id } of (await t.get('/v1/sandboxes?limit=200')).body.items) await removed(t, id)
  },
  300_000,
)

/** What is on the node but for what stays by design: layers made ahead, cache of builds, copies that forks begin with. */
async function holdings() {
  const { cgroupParent, dataDir } = stack()
  const stores = ['layers/sha256', 'blobs/sha256', 'images', 'incoming']
  const trees = ['pool', 'builds', 'runtime', 'sandboxes', ...stores].map((tree) => `agent/${tree}`)
  const found = await takeInventory({ cgroupParent, dataDir, trees })
  const cgroups = openCgroups(cgroupLayout())
  const held = readdirSync(join(dataDir, 'agent/snapshots'))
  const stays = (entry: string) =>
    /^agent\/pool\/(\.ready-\d+-\d+|cache_\w+)$/.test(entry) ||
    /^agent\/((layers|blobs)\/sha256|images)\/[0-9a-f]{64}(\.json)?$/.test(entry) ||
    held.some((id) => entry === `agent/pool/${id}`)
  return {
    ...found,
    // That of a tenant stays for a while after the last that was in it.
    cgroups: found.cgroups.filter((group) => !/^[^/]+\/ten_\w+$/.test(group)),
    processes: found.processes.map((process) => process.replace(/^\d+ /, '')).sort(),
    trees: found.trees.filter((entry) => !stays(entry)),
    frozen: found.cgroups.filter((group) => cgroups.frozen(group)),
  }
}

/** Nothing is there that was not before, and nothing that was is gone, but for what was only being made. */
async function nothingLeft({ trees, ...held }: Awaited<ReturnType<typeof holdings>>): Promise<void> {
  const before = { ...held, trees: trees.filter((entry) => !entry.includes('/.making-')) }
  await until(
    'the node holds what it did',
    async () => {
      expect(await holdings()).toEqual(before)
      return true
    },
    30_000,
  )
}

/** `./berth images fsck` of the node, beside its agent. */
async function storeIsWhole(): Promise<void> {
  const env = { ...process.env, BERTH_DATA: stack().dataDir, NODE_OPTIONS: '' }
  const { stdout: told } = await promisify(execFile)(resolve('berth'), ['images', 'fsck'], { env })
  expect(told).toContain('nothing is wrong')
}

const usedOfNode = async (): Promise<Record<string, number>> => {
  const { items } = (await operator().get('/v1/nodes')).body
  return items.find(({ state }: { state: string }) => state === 'ready').used
}

test('after all of it the store is whole, and everything is given back', async () => {
  await storeIsWhole()
  for (const t of tenants) {
    for (const { id } of (await t.get('/v1/sandboxes?limit=200')).body.items) await removed(t, id)
    for (const { digest, visibility } of (await t.get('/v1/images?limit=200')).body.items)
      if (visibility === 'tenant') expect((await t.delete(`/v1/images/${digest}?force=true`)).status).toBeLessThan(300)
    await until(
      'nothing is used',
      async () => {
        // What an API that was killed carried out ends with its lease.
        expect((await t.get('/v1/builds?state=running')).body.items).toEqual([])
        const used = Object.values((await t.get('/v1/usage')).body.now)
        expect(used.filter((value) => value !== 0)).toEqual([])
        return true
      },
      60_000,
    )
  }
  await until('the node has its room back', async () => {
    // What was still going when this began may be over.
    for (const [what, used] of Object.entries(await usedOfNode()))
      expect(used).toBeLessThanOrEqual(nodeBefore[what] ?? 0)
    return true
  })
}, 300_000)
