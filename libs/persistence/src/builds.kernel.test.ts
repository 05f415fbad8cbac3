import {
  type BuildId,
  type BuildOptions,
  Failure,
  GiB,
  type HeldImage,
  MiB,
  type NodeId,
  type TenantId,
} from '@berth/contracts'
import { type ImageWanted, PUBLIC_OWNER } from '@berth/domain'
import { describe, expect, test } from '@jest/globals'
import type { AdmittedBuild, BuildEnd, NewBuild } from './build-repository.js'
import { clock, db, postgres } from './database.fixture.js'
import { debian, givenNode, givenTenant, query, spec, standing } from './postgres.fixture.js'

const limits = { cpus: 1, memoryBytes: GiB, diskBytes: GiB, pids: 100 }
const options: BuildOptions = {
  ...{ dockerfile: 'Dockerfile', target: null, args: {}, labels: {}, noCache: false, pull: false },
  network: 'default',
  platform: null,
}
const app = 'docker.io/library/app:latest'
const asked = (tenantId: TenantId, change: Partial<NewBuild> = {}): NewBuild => ({
  ...{ tenantId, by: 'key', names: [app], options, limits, parallel: 2 },
  ...change,
})
/** A build that finds room at once. */
async function admitted(build: NewBuild): Promise<AdmittedBuild> {
  const found = await db.builds.admit(build)
  if ('refusal' in found) throw found.refusal
  return found
}
const end = (change: Partial<BuildEnd> = {}): BuildEnd => ({
  ...{ event: 'fail', code: 'build_failed', message: 'exit code 1', line: 3, instruction: 'RUN false', by: 'agent' },
  ...change,
})

let made = 0
const digest = (): string => `sha256:${(++made).toString(16).padStart(64, '0')}`
const image = (bytes = 10): HeldImage => {
  const diffId = digest()
  const settings = { env: [], entrypoint: [], command: [], workingDir: null, user: null, stopSignal: null }
  return {
    ...{ digest: digest(), manifestDigest: digest(), platform: 'linux/amd64', createdAt: null, history: [] },
    layers: [{ diffId, digest: diffId, mediaType: 'tar', sizeBytes: 1, unpackedBytes: bytes }],
    settings: { ...settings, labels: {}, exposedPorts: [], volumes: [] },
  }
}
const code = (work: Promise<unknown>) =>
  work.then(
    () => 'done',
    (error: unknown) => (error instanceof Failure ? error.code : error),
  )
const now = async (tenantId: TenantId) => (await db.usage.get(tenantId, clock.now(), clock.now())).now
const told = async (tenantId: TenantId) =>
  (await db.events.list(tenantId, 0, {}, 100)).map(({ type, by }) => `${type} ${by}`)

describe('a build', () => {
  test('holds quota and room of its node until it has ended, which it does once', async () => {
    const [tenantId, nodeId] = [await givenTenant(db), await givenNode(db)]
    const { build, ids } = await admitted(asked(tenantId))
    expect(build).toMatchObject({ state: 'running', nodeId, parallel: 2, names: [app], options, limits, endedAt: null })
    expect(ids.base).toBeGreaterThanOrEqual(1_000_000)
    const held = { unfinishedJobs: 1, runningJobs: 1, cpus: 2, memoryBytes: 2 * GiB, diskBytes: 3 * GiB }
    expect(await now(tenantId)).toMatchObject(held)
    expect((await db.nodes.get(nodeId)).used).toMatchObject({ cpus: 2, sandboxes: 2, diskBytes: 3 * GiB })
    const ends = await Promise.all([1, 2, 3].map(() => db.builds.end('operator', build.id, end())))
    expect(ends.filter((one) => one !== undefined)).toHaveLength(1)
    expect(await now(tenantId)).toMatchObject({ unfinishedJobs: 0, runningJobs: 0, cpus: 0, memoryBytes: 0 })
    expect(await db.builds.get({ tenantId }, build.id)).toMatchObject({
      ...{ state: 'failed', image: null, steps: [] },
      reason: { code: 'build_failed', line: 3, instruction: 'RUN false', by: 'agent' },
    })
    expect(await told(tenantId)).toEqual(['build.started key', 'build.failed agent'])
  })

  test('that waits for nothing does not keep a queued job from running', async () => {
    const [tenantId] = [await givenTenant(db, { concurrentJobs: 1 }), await givenNode(db)]
    const { build } = await admitted(asked(tenantId))
    const { placed } = await db.admission.admitJob(tenantId, spec())
    expect(placed).toBeUndefined()
    expect(await code(admitted(asked(tenantId)))).toBe('quota_exceeded')
    await db.builds.end({ tenantId }, build.id, end({ event: 'cancel' }))
    expect(await db.admission.placeQueued(10)).toHaveLength(1)
  })

  test('is one of many at the same moment that together stay within quota and node', async () => {
    const tenantId = await givenTenant(db, { memoryBytes: 5 * GiB })
    await givenNode(db, { memoryBytes: 4 * GiB })
    const all = await Promise.allSettled(Array.from({ length: 8 }, () => admitted(asked(tenantId))))
    const parallel = all.flatMap((one) => (one.status === 'fulfilled' ? [one.value.build.parallel] : []))
    expect(parallel.reduce((sum, one) => sum + one, 0)).toBe(4)
    const refused = await Promise.all(
      all.flatMap((one) => (one.status === 'rejected' ? [code(Promise.reject(one.reason))] : [])),
    )
    expect(new Set(refused)).toEqual(new Set(['no_capacity']))
    expect((await now(tenantId)).memoryBytes).toBe(4 * GiB)
  })

  test('that finds no room now may find it later; one that never would is refused', async () => {
    const tenantId = await givenTenant(db, { concurrentJobs: 1, memoryBytes: 8 * GiB })
    await givenNode(db, { memoryBytes: 4 * GiB })
    const { build } = await admitted(asked(tenantId))
    expect(await db.builds.admit(asked(tenantId))).toMatchObject({
      refusal: { code: 'quota_exceeded', data: { used: 1 } },
      keep: null,
    })
    expect(await code(db.builds.check(asked(tenantId)))).toBe('done')
    await db.builds.end('operator', build.id, end())
    expect(await db.builds.admit(asked(tenantId))).toMatchObject({ build: { state: 'running' } })
    for (const [memoryBytes, refused] of [
      [9 * GiB, 'quota_exceeded'],
      [5 * GiB, 'no_capacity'],
    ] as const) {
      const large = asked(await givenTenant(db, { memoryBytes: 8 * GiB }), { limits: { ...limits, memoryBytes } })
      for (const work of [db.builds.admit, db.builds.check])
        await expect(work(large)).rejects.toMatchObject({ code: refused })
    }
  })

  test('that finds no room tells the node that could be kept for it, where others then find none', async () => {
    const [tenantId, other] = [await givenTenant(db), await givenTenant(db)]
    const nodeId = await givenNode(db, { memoryBytes: 4 * GiB })
    await admitted(asked(other))
    const large = { limits: { ...limits, memoryBytes: 4 * GiB }, parallel: 1 }
    expect(await db.builds.admit(asked(tenantId, large))).toMatchObject({
      ...{ refusal: { code: 'no_capacity' }, keep: nodeId },
    })
    const kept = new Set([nodeId])
    expect(await db.builds.admit(asked(other), kept)).toMatchObject({ refusal: { code: 'no_capacity' }, keep: null })
    expect(await db.builds.running([tenantId, other])).toEqual(new Map([[other, 1]]))
    expect((await admitted(asked(other))).build.nodeId).toBe(nodeId)
    expect(await db.builds.running([other])).toEqual(new Map([[other, 2]]))
  })

  test('is one of a node’s builds, of which one tenant may not have all', async () => {
    const [tenantId, other] = [await givenTenant(db, { concurrentJobs: 100 }), await givenTenant(db)]
    await givenNode(db, { cpus: 100, memoryBytes: 100 * GiB, sandboxes: 100 })
    const small = { limits: { cpus: 0.1, memoryBytes: MiB, diskBytes: MiB, pids: 1 }, parallel: 1 }
    for (let i = 0; i < 16; i++) await admitted(asked(tenantId, small))
    const refused = { refusal: { code: 'no_capacity' }, keep: null }
    expect(await db.builds.admit(asked(tenantId, small))).toMatchObject(refused)
    const { build } = await admitted(asked(other, small))
    expect(await db.builds.admit(asked(tenantId, small))).toMatchObject(refused)
    await db.builds.end('operator', build.id, end())
  })

  test('goes to a node of its platform, and is refused where there is none', async () => {
    const [tenantId] = [await givenTenant(db), await givenNode(db, {}, 'linux/amd64')]
    const arm = await givenNode(db, {}, 'linux/arm64')
    const of = (platform: string) => asked(tenantId, { options: { ...options, platform } })
    expect((await admitted(of('linux/arm64/v8'))).build.nodeId).toBe(arm)
    expect(await code(admitted(of('linux/riscv64')))).toBe('platform_unsupported')
  })

  test('goes where the last one was', async () => {
    const tenantId = await givenTenant(db)
    const nodes = [await givenNode(db), await givenNode(db)]
    const { build } = await admitted(asked(tenantId))
    await db.builds.renew(build.id, { steps: [], startedAt: clock.now(), log: null })
    const other = nodes.find((id) => id !== build.nodeId) as NodeId
    // The other one is now what placement would prefer.
    await db.nodes.update(build.nodeId, { state: 'draining' })
    expect((await admitted(asked(tenantId))).build.nodeId).toBe(other)
    await db.nodes.update(build.nodeId, { state: 'ready' })
    expect((await admitted(asked(tenantId))).build.nodeId).toBe(build.nodeId)
  })

  test('of another tenant is none', async () => {
    const [tenantId, other] = [await givenTenant(db), await givenTenant(db)]
    await givenNode(db)
    const { build } = await admitted(asked(tenantId))
    expect(await code(db.builds.get({ tenantId: other }, build.id))).toBe('build_not_found')
    expect(await code(db.builds.log({ tenantId: other }, build.id))).toBe('build_not_found')
    expect(await db.builds.end({ tenantId: other }, build.id, end())).toBeUndefined()
    expect((await db.builds.list({ tenantId: other }, {}, { limit: 10 })).items).toEqual([])
    expect((await db.builds.list({ tenantId }, { state: ['failed'] }, { limit: 10 })).items).toEqual([])
    expect((await db.builds.list({ tenantId }, { state: ['running'] }, { limit: 10 })).items).toHaveLength(1)
  })

  test('lists its pages newest first', async () => {
    const [tenantId] = [await givenTenant(db), await givenNode(db)]
    const ids: BuildId[] = []
    for (let i = 0; i < 3; i++) ids.push((await admitted(asked(tenantId, { parallel: 1 }))).build.id)
    const first = await db.builds.list({ tenantId }, {}, { limit: 2 })
    const second = await db.builds.list({ tenantId }, {}, { limit: 2, after: first.next ?? '' })
    expect([...first.items, ...second.items].map(({ id }) => id)).toEqual(ids.reverse())
    expect(second.next).toBeNull()
  })
})

describe('success', () => {
  test('makes the image the tenant’s under the names, in one with the end', async () => {
    const [tenantId] = [await givenTenant(db), await givenNode(db)]
    const { build } = await admitted(asked(tenantId))
    const held = image()
    const done = await db.builds.succeed(build.id, held, 'key')
    expect(done?.build).toMatchObject({ state: 'succeeded', image: held.digest, reason: null })
    expect(done?.image).toMatchObject({ digest: held.digest, references: [app], visibility: 'tenant' })
    expect(await db.builds.succeed(build.id, held, 'key')).toBeUndefined()
  })

  test('of a build that was canceled meanwhile names nothing', async () => {
    const [tenantId] = [await givenTenant(db), await givenNode(db)]
    const { build } = await admitted(asked(tenantId))
    await db.builds.end({ tenantId }, build.id, end({ event: 'cancel', code: 'build_canceled' }))
    expect(await db.builds.succeed(build.id, image(), 'key')).toBeUndefined()
    expect((await db.images.list({ owner: tenantId, base: [] }, {}, { limit: 9 })).items).toEqual([])
  })

  test('that would exceed the quota leaves the build running and names nothing', async () => {
    const [tenantId] = [await givenTenant(db, { imageBytes: MiB }), await givenNode(db)]
    const { build } = await admitted(asked(tenantId))
    expect(await code(db.builds.succeed(build.id, image(MiB + 1), 'key'))).toBe('quota_exceeded')
    expect((await db.builds.get({ tenantId }, build.id)).state).toBe('running')
    expect((await db.images.list({ owner: tenantId, base: [] }, {}, { limit: 9 })).items).toEqual([])
  })
})

describe('a build that nobody carries out any more', () => {
  const turns = async (ms: number) => {
    const ended = []
    for (let passed = 0; passed < ms; passed += 1000) {
      clock.advance(1000)
      ended.push(...(await db.builds.reconcile(clock.now())))
    }
    return ended
  }
  const beat = (id: NodeId) => db.nodes.heartbeat(id, standing())

  test('ends when its lease is over, and not before', async () => {
    const [tenantId, nodeId] = [await givenTenant(db), await givenNode(db)]
    const { build } = await admitted(asked(tenantId))
    for (let i = 0; i < 6; i++) {
      expect(await turns(5000)).toEqual([])
      expect(await db.builds.renew(build.id, { steps: [], startedAt: null, log: null })).toBe(true)
    }
    await beat(nodeId)
    expect(await turns(30_000)).toMatchObject([{ id: build.id, state: 'failed', reason: { code: 'unavailable' } }])
    expect(await db.builds.renew(build.id, { steps: [], startedAt: null, log: null })).toBe(false)
    expect(await told(tenantId)).toEqual(['build.started key', 'build.failed api'])
  })

  test('is left alone as long as nobody could have renewed its lease', async () => {
    const [tenantId] = [await givenTenant(db), await givenNode(db)]
    await turns(2000)
    const { build } = await admitted(asked(tenantId))
    clock.advance(60_000)
    expect(await turns(10_000)).toEqual([])
    expect(await turns(30_000)).toMatchObject([{ id: build.id }])
  })

  test('ends with its node', async () => {
    const [tenantId, nodeId] = [await givenTenant(db), await givenNode(db)]
    const { build } = await admitted(asked(tenantId))
    expect((await db.nodes.delete(nodeId)).builds).toMatchObject([{ id: build.id, state: 'failed' }])
    expect(await db.builds.get({ tenantId }, build.id)).toMatchObject({
      ...{ state: 'failed', reason: { code: 'node_unreachable' } },
    })
    expect(await code(db.nodes.get(nodeId))).toBe('node_not_found')
  })
})

test('a log is what was noted last, and text that no database can hold is stored without it', async () => {
  const [tenantId] = [await givenTenant(db), await givenNode(db)]
  const { build } = await admitted(asked(tenantId))
  const steps = [{ vertex: 0, name: 'a\u0000\ud800', stage: null, state: 'running' as const }].map((step) => ({
    ...step,
    ...{ startedAt: clock.now().toISOString(), ms: null, exitCode: null, error: null, layerBytes: null },
  }))
  for (let number = 0; number < 4; number++) {
    const data = Buffer.from(`${number}`)
    await db.builds.renew(build.id, { steps, startedAt: null, log: { number, data, keepFrom: number - 1 } })
  }
  const log = await db.builds.log({ tenantId }, build.id)
  expect(log.map(({ number, data }) => [number, Buffer.from(data).toString()])).toEqual([
    [2, '2'],
    [3, '3'],
  ])
  expect((await db.builds.get({ tenantId }, build.id)).steps).toMatchObject([{ vertex: 0, state: 'running' }])
  const ended = await db.builds.end('operator', build.id, end({ message: 'no\u0000 \ud800' }))
  expect(ended?.reason?.message).toBe('no\ufffd \ufffd')
})

test('builds and logs that are too old or too many go, those that go on do not', async () => {
  const [tenantId] = [await givenTenant(db, { concurrentJobs: 100 }), await givenNode(db)]
  const running = await admitted(asked(tenantId, { parallel: 1 }))
  await query(
    postgres.url,
    `INSERT INTO builds (id, tenant_id, node_id, state, names, options, limits, parallel, cpu_millis, memory_bytes,
       disk_bytes, lease_until, reason, created_by, created_at, ended_at)
     SELECT 'bld_z' || lpad(i::text, 25, '0'), $1, 'n', 'failed', '{}', '{}', '{}', 1, 1, 1, 1, $2, '{}', 'k', $2, $2
     FROM generate_series(1, 1010) AS i`,
    [tenantId, clock.now()],
  )
  await query(postgres.url, `INSERT INTO build_logs SELECT id, 0, '' FROM builds`)
  expect(await db.builds.expire(5)).toBe(5)
  expect(await db.builds.expire(100)).toBe(5)
  expect(await db.builds.expire(2000)).toBe(0)
  const [{ logs } = { logs: 0 }] = await query<{ logs: string }>(
    postgres.url,
    'SELECT count(*) AS logs FROM build_logs',
  )
  expect(Number(logs)).toBe(51)
  clock.advance(31 * 86_400_000)
  expect(await db.builds.expire(2000)).toBe(1000)
  expect((await db.builds.list({ tenantId }, {}, { limit: 5 })).items.map(({ id }) => id)).toEqual([running.build.id])
})

test('a name means the own image, a public one, or what the node has of that name', async () => {
  const [tenantId, other, nodeId] = [await givenTenant(db), await givenTenant(db), await givenNode(db)]
  const [mine, theirs] = [image(), image()]
  const add = (owner: string, held: HeldImage, reference: string) =>
    db.images.add({ owner, nodeId, by: 'key', images: [{ image: held, references: [reference] }] })
  await add(tenantId, mine, app)
  await add(other, theirs, 'docker.io/library/theirs:latest')
  const named = (reference: string, base: ImageWanted['base'] = null): ImageWanted => ({
    ...{ text: reference, reference, digest: null, base },
  })
  const wanted = [
    named(app),
    named('docker.io/library/theirs:latest'),
    { ...named(''), reference: null, digest: theirs.digest },
    named('docker.io/library/debian:latest', { key: debian.reference, digest: null }),
  ]
  expect(await db.builds.resolve(tenantId, nodeId, wanted)).toEqual([
    { digest: mine.digest, held: true, platform: 'linux/amd64' },
    { digest: null, held: false, platform: null },
    { digest: null, held: false, platform: null },
    { digest: debian.digest, held: true, platform: null },
  ])
  const elsewhere = await givenNode(db)
  expect((await db.builds.resolve(tenantId, elsewhere, wanted)).map(({ held }) => held)).toEqual([
    ...[false, false, false, true],
  ])
  await db.nodes.heartbeat(elsewhere, { ...standing(), images: [] })
  expect((await db.builds.resolve(tenantId, elsewhere, wanted))[3]).toMatchObject({
    ...{ digest: debian.digest, held: false },
  })
})

test('what a base image’s name means is not changed by a later node, but on that node itself', async () => {
  const tenantId = await givenTenant(db)
  // The later a node, the lower the digest that it has of the name.
  const digests = ['c', 'b', 'a'].map((letter) => `sha256:${letter.repeat(64)}`)
  const nodes: NodeId[] = []
  for (const one of [...digests, undefined]) {
    clock.advance(1) // ids sort by the millisecond
    const node = await givenNode(db)
    const images = one === undefined ? [] : [{ reference: 'python:latest', digest: one, sizeBytes: 1 }]
    await db.nodes.heartbeat(node, { ...standing(), images })
    nodes.push(node)
  }
  const [first, , third, without] = nodes as [NodeId, NodeId, NodeId, NodeId]
  const name = 'docker.io/library/python:latest'
  const wanted: ImageWanted = {
    text: 'python',
    reference: name,
    digest: null,
    base: { key: 'python:latest', digest: null },
  }
  const meaning = async (node: NodeId) => (await db.builds.resolve(tenantId, node, [wanted]))[0]?.digest
  expect([await meaning(without), await meaning(third)]).toEqual([digests[0], digests[2]])
  await db.nodes.update(first, { state: 'draining' })
  expect(await meaning(without)).toBe(digests[0])
  await query(postgres.url, `UPDATE nodes SET state = 'lost' WHERE id = $1`, [first])
  expect(await meaning(without)).toBe(digests[1])
  const held = image()
  await db.images.add({
    owner: PUBLIC_OWNER,
    nodeId: without,
    by: 'key',
    images: [{ image: held, references: [name] }],
  })
  expect(await meaning(third)).toBe(held.digest)
})
