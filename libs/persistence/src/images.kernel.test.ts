import {
  type AttemptId,
  Failure,
  GiB,
  type HeldImage,
  MiB,
  type NodeId,
  QuotaExceeded,
  type TenantId,
} from '@berth/contracts'
import { baseImage, type ImageWanted, PUBLIC_OWNER } from '@berth/domain'
import { describe, expect, test } from '@jest/globals'
import { clock, db, postgres } from './database.fixture.js'
import { debian, finished, givenNode, givenTenant, query, sandboxSpec, spec, standing } from './postgres.fixture.js'
import type { ImageScope } from './repositories.js'

let made = 0
const digest = (): string => `sha256:${(++made).toString(16).padStart(64, '0')}`
const layer = (bytes: number, diffId = digest()) => ({
  ...{
    diffId,
    digest: diffId,
    mediaType: 'application/vnd.oci.image.layer.v1.tar',
    sizeBytes: 1,
    unpackedBytes: bytes,
  },
})
const image = (layers: HeldImage['layers'], labels: Record<string, string> = {}): HeldImage => ({
  digest: digest(),
  manifestDigest: digest(),
  platform: 'linux/amd64',
  createdAt: '2025-01-01T00:00:00Z',
  layers,
  history: [],
  settings: {
    ...{ env: [], entrypoint: [], command: [], workingDir: null, user: null, stopSignal: null },
    ...{ labels, exposedPorts: [], volumes: [] },
  },
})
const named = (reference: string): ImageWanted => ({ text: reference, reference, digest: null, base: null })
const byDigest = (one: string): ImageWanted => ({ text: one, reference: null, digest: one, base: null })
const scope = (owner: string, base: ImageScope['base'] = []): ImageScope => ({ owner, base })
const app = 'docker.io/team/app:latest'

const add = (owner: string, nodeId: NodeId, held: HeldImage, ...references: string[]) =>
  db.images.add({ owner, nodeId, by: 'key', images: [{ image: held, references }] })
const listed = async (owner: string, filter = {}) =>
  (await db.images.list(scope(owner), filter, { limit: 100 })).items.map((one) => one.digest)
const code = (work: Promise<unknown>) =>
  work.then(
    () => 'done',
    (error: unknown) => (error instanceof Failure ? error.code : error),
  )

async function given() {
  const [tenant, other, node] = [await givenTenant(db), await givenTenant(db), await givenNode(db)]
  return { tenant, other, node }
}

describe('what is whose', () => {
  test("a tenant's image is none to another, by name and by both digests, and not listed", async () => {
    const { tenant, other, node } = await given()
    const held = image([layer(10)])
    await add(tenant, node, held, app)
    for (const wanted of [named(app), byDigest(held.digest), byDigest(held.manifestDigest)]) {
      expect((await db.images.get(scope(tenant), wanted)).image).toMatchObject({
        digest: held.digest,
        references: [app],
      })
      expect(await code(db.images.get(scope(other), wanted))).toBe('image_not_found')
      expect(await code(db.images.remove(scope(other), wanted, true))).toBe('image_not_found')
      expect(await code(db.images.untag(scope(other), wanted, app))).toBe('image_not_found')
      expect(await code(db.admission.admitJob(other, spec(), 'key', wanted))).toBe('image_not_found')
      expect(await code(db.admission.admitBatch(other, undefined, [spec()], 'key', [wanted]))).toBe('image_not_found')
      const asked = { tenantId: other, spec: sandboxSpec(), start: true, by: 'key', image: wanted }
      expect(await code(db.sandboxes.create(asked))).toBe('image_not_found')
    }
    expect([await listed(tenant), await listed(other), await listed(PUBLIC_OWNER)]).toEqual([[held.digest], [], []])
  })

  test('where a layer of an image may be as well, by what its owner has and nobody else', async () => {
    const { tenant, other, node } = await given()
    const [shared, base] = [layer(5), image([layer(9)])]
    const [one, two, open] = [image([shared, layer(1)]), image([shared]), image([shared])]
    const from = (held: HeldImage, repository: string) => `r.example/${repository}@${held.manifestDigest}`
    const pulled = async (owner: string, held: HeldImage, repository: string, ...references: string[]) =>
      db.images.add({
        ...{ owner, nodeId: node, by: 'key' },
        images: [{ image: held, references, origin: from(held, repository) }],
      })
    await pulled(tenant, one, 'team/one', 'r.example/team/one:1', 'r.example.org/team/one:1', 'r.example/team/copy:2')
    await pulled(tenant, two, 'team/two', 'docker.io/team/two:1')
    await pulled(tenant, base, 'team/base')
    await pulled(other, one, 'secret/one', 'r.example/secret/name:1')
    await pulled(PUBLIC_OWNER, open, 'operator/open')
    const own = ['r.example/team/copy:2', 'r.example/team/one:1']
    expect(await db.images.relatives(tenant, one.digest, 'r.example')).toEqual([
      ...[from(one, 'team/one'), ...own, from(two, 'team/two')],
    ])
    expect(await db.images.relatives(tenant, two.digest, 'r.example')).toEqual([
      ...[from(two, 'team/two'), from(one, 'team/one'), ...own],
    ])
    // A public image is pushed from where the tenant has something of it.
    expect(await db.images.relatives(tenant, open.digest, 'r.example')).toHaveLength(4)
    expect(await db.images.relatives(tenant, two.digest, 'docker.io')).toEqual(['docker.io/team/two:1'])
    expect(await db.images.relatives(tenant, one.digest, 'r.exampl_')).toEqual([])
    expect(await db.images.relatives(PUBLIC_OWNER, open.digest, 'r.example')).toEqual([from(open, 'operator/open')])
  })

  test('an own name hides a public one, that one a base image', async () => {
    const { tenant, other, node } = await given()
    const [own, open] = [image([layer(1)]), image([layer(2)])]
    const python = 'docker.io/library/python:latest'
    const base = [{ digest: digest(), references: [python], sizeBytes: 7 }]
    const found = async (owner: string) => (await db.images.get(scope(owner, base), named(python))).image.digest
    expect(await found(tenant)).toBe(base[0]?.digest)
    await add(PUBLIC_OWNER, node, open, python)
    expect(await found(tenant)).toBe(open.digest)
    await add(tenant, node, own, python)
    expect([await found(tenant), await found(other)]).toEqual([own.digest, open.digest])
    const { items } = await db.images.list(scope(tenant, base), {}, { limit: 9 })
    expect(items.map((one) => [one.digest, one.visibility, one.base, one.references])).toEqual(
      expect.arrayContaining([
        [own.digest, 'tenant', false, [python]],
        [open.digest, 'public', false, []],
        [base[0]?.digest, 'public', true, []],
      ]),
    )
    const wanted = { ...named(python), base: { key: 'python:latest', digest: null } }
    const runs = async (tenantId: TenantId) =>
      (await db.admission.admitJob(tenantId, spec(), 'key', wanted)).placed?.command.image
    expect([await runs(tenant), await runs(other)]).toEqual([own.digest, open.digest])
  })

  test('pages go through all, newest first, base images last', async () => {
    const { tenant, node } = await given()
    const all: string[] = []
    for (let i = 0; i < 5; i++) {
      const held = image([layer(1)])
      await add(tenant, node, held)
      all.unshift(held.digest)
      clock.advance(i % 2)
    }
    const base = [{ digest: digest(), references: [app], sizeBytes: 7 }]
    const seen: string[] = []
    for (let after: string | null | undefined; after !== null; ) {
      const page = await db.images.list(scope(tenant, base), {}, { limit: 2, ...(after !== undefined && { after }) })
      seen.push(...page.items.map((one) => one.digest))
      after = page.next
    }
    expect(seen).toHaveLength(6)
    expect(new Set(seen)).toEqual(new Set([...all, base[0]?.digest]))
    expect(seen.at(-1)).toBe(base[0]?.digest)
  })

  test('filters by name, beginning of a name, label and want of a name', async () => {
    const { tenant, node } = await given()
    const [a, b] = [image([layer(1)], { stage: 'test' }), image([layer(1)])]
    await add(tenant, node, a, app, 'docker.io/team/app:1')
    await add(tenant, node, b)
    expect(await listed(tenant, { reference: app })).toEqual([a.digest])
    expect(await listed(tenant, { prefix: 'docker.io/team/' })).toEqual([a.digest])
    expect(await listed(tenant, { prefix: 'docker.io/team/%' })).toEqual([])
    expect(await listed(tenant, { label: ['stage=test'] })).toEqual([a.digest])
    expect(await listed(tenant, { dangling: true })).toEqual([b.digest])
    expect(await listed(tenant, { dangling: false })).toEqual([a.digest])
  })
})

describe('bytes', () => {
  test('layers count once, and are unique or shared', async () => {
    const { tenant, node } = await given()
    const shared = layer(100)
    const [a, b] = [image([shared, layer(10)]), image([shared, layer(1)])]
    await add(tenant, node, a)
    await add(tenant, node, b)
    await add(tenant, node, b, app)
    const { image: seen } = await db.images.get(scope(tenant), byDigest(a.digest))
    expect(seen).toMatchObject({ sizeBytes: 110, uniqueBytes: 10, sharedBytes: 100 })
    expect((await db.images.use(tenant)).used).toBe(111)
    expect((await db.usage.get(tenant, clock.now(), clock.now())).now.imageBytes).toBe(111)
    expect(await db.images.remove(scope(tenant), byDigest(a.digest), false)).toMatchObject({ freedBytes: 10 })
    expect((await db.images.use(tenant)).used).toBe(101)
  })

  test('50 that end at once never overshoot the quota, and leave nothing of those refused', async () => {
    const node = await givenNode(db)
    const tenant = await givenTenant(db, { imageBytes: 7 * MiB })
    const shared = layer(MiB)
    const ends = await Promise.all(
      Array.from({ length: 50 }, () => code(add(tenant, node, image([shared, layer(MiB)]), app))),
    )
    expect(ends.filter((end) => end === 'done')).toHaveLength(6)
    expect(ends.filter((end) => end === 'quota_exceeded')).toHaveLength(44)
    expect((await db.images.use(tenant)).used).toBe(7 * MiB)
    expect(await listed(tenant)).toHaveLength(6)
  })

  test('a lowered quota refuses more, and what is there stays usable', async () => {
    const { tenant, node } = await given()
    const held = image([layer(GiB)])
    await add(tenant, node, held)
    await db.tenants.update(tenant, { quota: { imageBytes: 1 } })
    await add(tenant, node, held, app)
    await expect(add(tenant, node, image([layer(5)]))).rejects.toEqual(new QuotaExceeded('imageBytes', 1, GiB, 5))
  })

  test('one tenant does not pay for what another has, nor for what is public', async () => {
    const { tenant, other, node } = await given()
    const held = image([layer(50)])
    await add(tenant, node, held)
    await add(PUBLIC_OWNER, node, held)
    expect((await db.images.use(other)).used).toBe(0)
    await add(other, node, held)
    expect((await db.images.use(other)).used).toBe(50)
  })
})

describe('a name with a digest', () => {
  // Of an index, which is neither the configuration's nor the manifest's.
  const pulledBy = digest()
  const pinned = `docker.io/team/app@${pulledBy}`

  test('leads to what it was pulled as, for everything, and for its owner only', async () => {
    const { tenant, other, node } = await given()
    const held = image([layer(1)])
    await add(tenant, node, held, pinned)
    const wanted = byDigest(pulledBy)
    expect((await db.images.get(scope(tenant), wanted)).image.digest).toBe(held.digest)
    expect(await listed(tenant, { digest: pulledBy })).toEqual([held.digest])
    expect((await db.admission.admitJob(tenant, spec(), 'key', wanted)).placed?.command.image).toBe(held.digest)
    expect(await db.admission.imageOf(tenant, wanted)).toBe(held.digest)
    expect(await db.builds.resolve(tenant, node, [wanted])).toMatchObject([{ digest: held.digest }])
    expect(await code(db.images.get(scope(other), wanted))).toBe('image_not_found')
    expect(await code(db.images.remove(scope(other), wanted, true, pinned))).toBe('image_not_found')
    expect(await code(db.admission.admitJob(other, spec(), 'key', wanted))).toBe('image_not_found')
    expect(await db.admission.imageOf(other, wanted)).toBeNull()
    expect(await listed(other, { digest: pulledBy })).toEqual([])
  })

  test('goes alone while there are others, and without one the digest takes all', async () => {
    const { tenant, node } = await given()
    const held = image([layer(1)])
    await add(tenant, node, held, app, pinned)
    expect(await db.images.remove(scope(tenant), byDigest(pulledBy), false, pinned)).toMatchObject({
      ...{ untagged: [pinned], deleted: null },
    })
    await add(tenant, node, held, pinned)
    const removed = await db.images.remove(scope(tenant), byDigest(pulledBy), false)
    expect(removed).toMatchObject({ untagged: [app, pinned], deleted: held.digest })
  })
})

test('the beginning of an id finds own and public images, two at most, unless it is a name', async () => {
  const { tenant, other, node } = await given()
  const beginning = `sha256:${digest().slice(7, 27)}`
  const one = (end: string) => ({ ...image([layer(1)]), digest: `${beginning}${end.repeat(44)}` })
  const [own, open, others] = [one('a'), one('b'), one('c')]
  await add(tenant, node, own, app)
  await add(other, node, others, app)
  const find = (prefix: string, name = 'docker.io/library/cafe:latest') => db.images.beginning(tenant, name, prefix)
  expect(await find(beginning)).toEqual([own.digest])
  expect(await find(beginning, app)).toEqual([])
  expect(await find(`${beginning}c`)).toEqual([])
  await add(PUBLIC_OWNER, node, open)
  expect([...(await find(beginning))].sort()).toEqual([own.digest, open.digest])
  expect(await find(`${beginning}b`)).toEqual([open.digest])
  await add(tenant, node, one('d'))
  expect(await find(beginning)).toHaveLength(2)
})

describe('removal', () => {
  test('a name goes, with the last one the image', async () => {
    const { tenant, node } = await given()
    const held = image([layer(1)])
    await add(tenant, node, held, app, 'docker.io/team/app:1')
    expect(await db.images.remove(scope(tenant), named(app), false)).toEqual({
      ...{ untagged: [app], deleted: null, freedBytes: 0 },
    })
    expect(await db.images.remove(scope(tenant), named('docker.io/team/app:1'), false)).toMatchObject({
      deleted: held.digest,
    })
    expect(await listed(tenant)).toEqual([])
  })

  test('what a sandbox or an unfinished job uses is refused, naming them; force takes the names only', async () => {
    const { tenant, node } = await given()
    const held = image([layer(1)])
    await add(tenant, node, held, app)
    const { sandbox } = await db.sandboxes.create({
      ...{ tenantId: tenant, spec: sandboxSpec({ image: 'team/app' }), start: true, by: 'key', image: named(app) },
    })
    const { job, placed } = await db.admission.admitJob(tenant, spec(), 'key', named(app))
    const refused = db.images.remove(scope(tenant), named(app), false)
    await expect(refused).rejects.toMatchObject({
      ...{ code: 'image_in_use', data: { sandboxes: [sandbox.id], jobs: [job.id] } },
    })
    expect(await db.images.prune(tenant, { all: true, before: null, labels: [] })).toEqual({
      deleted: [],
      freedBytes: 0,
    })
    expect(await db.images.remove(scope(tenant), named(app), true)).toMatchObject({ untagged: [app], deleted: null })
    expect(await listed(tenant)).toEqual([held.digest])

    if (!placed) throw new Error('the job was not placed')
    await db.jobs.recordFinished(node, finished(placed.command, clock.now()))
    expect(await code(db.images.remove(scope(tenant), byDigest(held.digest), false))).toBe('image_in_use')
    await db.sandboxes.request({ tenantId: tenant }, sandbox.id, { kind: 'delete', force: true }, { by: 'key' })
    expect(await db.images.remove(scope(tenant), byDigest(held.digest), false)).toMatchObject({ deleted: held.digest })
  })

  test('prune removes what is unused, and says what that frees', async () => {
    const { tenant, node } = await given()
    const shared = layer(100)
    const [named1, dangling] = [image([shared, layer(10)]), image([shared, layer(1)])]
    await add(tenant, node, named1, app)
    await add(tenant, node, dangling)
    expect(await db.images.prune(tenant, { all: false, before: null, labels: [] })).toEqual({
      ...{ deleted: [dangling.digest], freedBytes: 1 },
    })
    expect(await db.images.prune(tenant, { all: true, before: clock.now(), labels: [] })).toMatchObject({ deleted: [] })
    expect(await db.images.prune(tenant, { all: true, before: null, labels: [] })).toEqual({
      ...{ deleted: [named1.digest], freedBytes: 110 },
    })
  })

  test('a public image is for operators to change', async () => {
    const { tenant, node } = await given()
    const held = image([layer(1)])
    await add(PUBLIC_OWNER, node, held, app)
    expect(await code(db.images.remove(scope(tenant), named(app), true))).toBe('policy_forbidden')
    expect(await code(db.images.untag(scope(tenant), byDigest(held.digest), app))).toBe('policy_forbidden')
    expect(await db.images.remove(scope(PUBLIC_OWNER), named(app), false)).toMatchObject({ deleted: held.digest })
    expect(await code(db.admission.admitJob(tenant, spec(), 'key', named(app)))).toBe('image_not_found')
  })

  test('nothing is ever admitted with an image that went meanwhile, own or public', async () => {
    const { tenant, node } = await given()
    for (let round = 0; round < 12; round++) {
      const owner = round % 2 === 0 ? tenant : PUBLIC_OWNER
      const held = image([layer(1)])
      await add(owner, node, held, app)
      const job = () => code(db.admission.admitJob(tenant, spec(), 'key', named(app)))
      const batch = () =>
        code(db.admission.admitBatch(tenant, undefined, [spec(), spec()], 'key', [named(app), named(app)]))
      const sandbox = () =>
        code(db.sandboxes.create({ tenantId: tenant, spec: sandboxSpec(), start: false, by: 'key', image: named(app) }))
      const remove = () => code(db.images.remove(scope(owner), named(app), false))
      const ends = await Promise.all([job(), remove(), sandbox(), batch(), remove(), job()])
      const users = await query<{ id: string }>(
        postgres.url,
        `SELECT id FROM jobs WHERE image_digest = $1 UNION SELECT id FROM sandboxes WHERE image_digest = $1`,
        [held.digest],
      )
      const there = (await listed(owner)).includes(held.digest)
      expect({ there, ends, users: users.length > 0 }).toMatchObject({ users: there })
      expect(ends.filter((end) => !['done', 'image_not_found', 'image_in_use'].includes(String(end)))).toEqual([])
      await query(postgres.url, 'UPDATE jobs SET image_digest = NULL')
      await query(postgres.url, 'UPDATE sandboxes SET image_digest = NULL')
      await db.images.prune(owner, { all: true, before: null, labels: [] })
    }
  }, 60_000)
})

describe('nodes', () => {
  test('what runs from an image goes to a node that has it, and is told its digest', async () => {
    const tenant = await givenTenant(db)
    const nodes = [await givenNode(db), await givenNode(db), await givenNode(db)]
    const held = image([layer(1)])
    await add(tenant, nodes[1] as NodeId, held, app)
    const { placed } = await db.admission.admitJob(tenant, spec(), 'key', named(app))
    expect(placed).toMatchObject({ nodeId: nodes[1], command: { image: held.digest } })
    const asked = {
      tenantId: tenant,
      spec: sandboxSpec({ image: 'team/app' }),
      start: true,
      by: 'key',
      image: named(app),
    }
    const { command, sandbox } = await db.sandboxes.create(asked)
    expect(command).toMatchObject({ nodeId: nodes[1], command: { image: held.digest, spec: { image: 'team/app' } } })
    expect(sandbox.placedBecause).toContain('have image team/app')
    expect(await db.images.holder([held.digest])).toBe(nodes[1])
    expect(await db.images.taker(held.digest)).toBe(nodes[1])
    expect(await db.images.holder([held.digest, digest()])).toBeUndefined()
  })

  test('what runs from an image goes where it can be brought when the nodes that have it have no room', async () => {
    const tenant = await givenTenant(db)
    const [full, other] = [await givenNode(db, { sandboxes: 1 }), await givenNode(db)]
    const held = image([layer(1)])
    await add(tenant, full, held, app)
    const job = () => db.admission.admitJob(tenant, spec(), 'key', named(app))
    expect((await job()).placed?.nodeId).toBe(full)
    expect((await job()).placed?.nodeId).toBe(other)
    const asked = { tenantId: tenant, spec: sandboxSpec({ image: 'team/app' }), start: true, by: 'key' }
    const made = await db.sandboxes.create({ ...asked, image: named(app) })
    expect(made.command).toMatchObject({ nodeId: other, command: { image: held.digest } })
    expect(made.sandbox.placedBecause).toBe('1 of 2 ready nodes have room, and none of these has image team/app yet')
    // A draining node takes nothing and still gives.
    await db.nodes.update(full, { state: 'draining' })
    expect((await job()).placed?.nodeId).toBe(other)
  })

  test('an image is brought to no node of another platform', async () => {
    const tenant = await givenTenant(db)
    const full = await givenNode(db, { sandboxes: 1 })
    await givenNode(db, {}, 'linux/arm64')
    await add(tenant, full, image([layer(1)]), app)
    const job = () => db.admission.admitJob(tenant, spec(), 'key', named(app))
    expect((await job()).placed?.nodeId).toBe(full)
    expect((await job()).job.state).toBe('queued')
    expect(await db.admission.placeQueued(10)).toEqual([])
    const asked = { tenantId: tenant, spec: sandboxSpec(), start: true, by: 'key', image: named(app) }
    expect(await code(db.sandboxes.create(asked))).toBe('no_capacity')
    const alike = await givenNode(db, {}, 'linux/amd64')
    expect(await db.admission.placeQueued(10)).toMatchObject([{ nodeId: alike }])
  })

  test('an image that no living node has comes from where it was pulled, if it was', async () => {
    const { tenant, other, node } = await given()
    const [pulled, loaded] = [image([layer(1)]), image([layer(1)])]
    const origin = `r.example/team/app@${pulled.manifestDigest}`
    const images = [{ image: pulled, references: [app], origin }]
    await db.images.add({ owner: tenant, nodeId: node, by: 'key', images })
    await add(tenant, node, pulled, 'docker.io/team/again:latest')
    await add(tenant, node, loaded, 'docker.io/team/loaded:latest')
    await add(other, node, pulled)
    clock.advance(6000)
    await db.nodes.heartbeat(node, standing())
    expect((await db.admission.admitJob(tenant, spec(), 'key', named(app))).placed?.nodeId).toBe(node)
    const theirs = byDigest(pulled.digest)
    expect((await db.admission.admitJob(other, spec(), 'key', theirs)).job.state).toBe('queued')
    const asked = { tenantId: tenant, spec: sandboxSpec(), start: true, by: 'key' }
    await db.sandboxes.create({ ...asked, image: named(app) })
    const refused = db.sandboxes.create({ ...asked, image: named('docker.io/team/loaded:latest') })
    expect(await code(refused)).toBe('no_capacity')
    expect(await db.images.origin(tenant, pulled.digest)).toEqual({ owner: tenant, reference: origin })
    expect(await db.images.origin(tenant, loaded.digest)).toBeUndefined()
    expect(await db.images.origin(other, pulled.digest)).toBeUndefined()
  })

  test('a node needs an image as long as something that is placed on it starts from it, and no other', async () => {
    const { tenant, node } = await given()
    const elsewhere = await givenNode(db)
    const [held, another] = [image([layer(1)]), image([layer(1)])]
    await add(tenant, node, held, app)
    await add(tenant, elsewhere, another)
    const { placed } = await db.admission.admitJob(tenant, spec(), 'key', named(app))
    const asked = { tenantId: tenant, spec: sandboxSpec(), start: true, by: 'key', image: named(app) }
    const { id } = (await db.sandboxes.create(asked)).sandbox
    const attemptId = placed?.command.attemptId as AttemptId
    const needs = (on: NodeId, digest: string) =>
      Promise.all([attemptId, id].map((subject) => db.images.neededBy(on, subject, digest)))
    expect(await needs(node, held.digest)).toEqual([tenant, tenant])
    expect(await needs(elsewhere, held.digest)).toEqual([undefined, undefined])
    expect(await needs(node, another.digest)).toEqual([undefined, undefined])
    if (placed) await db.jobs.recordFinished(node, finished(placed.command, clock.now()))
    await db.sandboxes.request({ tenantId: tenant }, id, { kind: 'delete', force: true }, { by: 'key' })
    expect(await needs(node, held.digest)).toEqual([undefined, undefined])
    expect(await db.images.holders(held.digest, elsewhere)).toEqual([node])
    expect(await db.images.holders(held.digest, node)).toEqual([])
    clock.advance(20_000)
    expect(await db.images.holders(held.digest, elsewhere)).toEqual([])
  })

  test('a job whose image no living node has waits, and holds up nobody', async () => {
    const { tenant, other, node } = await given()
    const held = image([layer(1)])
    await add(tenant, node, held, app)
    // The node says that it has lost it.
    clock.advance(6000)
    await db.nodes.heartbeat(node, standing())
    const waiting = await db.admission.admitJob(tenant, spec(), 'key', named(app))
    expect(waiting.job.state).toBe('queued')
    expect((await db.admission.admitJob(other, spec(), 'key')).job.state).toBe('placed')
    expect(await db.admission.placeQueued(10)).toEqual([])
    await db.nodes.heartbeat(node, { ...standing(), images: [debian, { digest: held.digest, sizeBytes: 1 }] })
    const [placed] = await db.admission.placeQueued(10)
    expect(placed?.command).toMatchObject({ jobId: waiting.job.id, image: held.digest })
  })

  test('a heartbeat that was on its way when an image came takes nothing back, a later one does', async () => {
    const { tenant, node } = await given()
    const [a, b] = [image([layer(1)]), image([layer(1)])]
    await add(tenant, node, a)
    await add(tenant, node, b)
    await db.nodes.heartbeat(node, standing())
    expect(await db.images.holder([a.digest, b.digest])).toBe(node)
    clock.advance(6000)
    await db.nodes.heartbeat(node, standing())
    expect(await db.images.holder([a.digest])).toBeUndefined()
  })

  test('a node is told to drop what nobody has, once it has had it for a while', async () => {
    const { tenant, node } = await given()
    const held = image([layer(1)])
    await add(tenant, node, held)
    const now = clock.now().getTime()
    const since = (minutes: number) => new Date(now - minutes * 60_000).toISOString()
    const [old, young, mine] = [digest(), digest(), held.digest]
    const base = { reference: 'python:latest', digest: digest(), sizeBytes: 1 }
    const images = [
      debian,
      { digest: old, sizeBytes: 1, heldSince: since(16) },
      { digest: young, sizeBytes: 1, heldSince: since(14) },
      { digest: mine, sizeBytes: 1, heldSince: since(99) },
      { digest: digest(), sizeBytes: 1 },
      // What another node has as a base image was brought here, and is as good as there.
      { digest: base.digest, sizeBytes: 1, heldSince: since(99) },
    ]
    await db.nodes.heartbeat(await givenNode(db), { ...standing(), images: [base] })
    expect((await db.nodes.heartbeat(node, { ...standing(), images })).unwantedImages).toEqual([old])
    await db.images.remove(scope(tenant), byDigest(mine), false)
    expect((await db.nodes.heartbeat(node, { ...standing(), images })).unwantedImages).toEqual([old, mine])
  })

  test('a base image is run by its name, as before', async () => {
    const { tenant } = await given()
    const { placed } = await db.admission.admitJob(tenant, spec(), 'key', baseImage('debian:latest'))
    expect(placed?.command).not.toHaveProperty('image')
    expect(await db.images.base()).toEqual([{ ...debian, ready: true }])
  })

  test('of a base image that nodes differ on the oldest node’s is told first, drained or not', async () => {
    const [first, last] = [`sha256:${'f'.repeat(64)}`, `sha256:${'0'.repeat(64)}`]
    const holding = async (...digests: readonly string[]) => {
      clock.advance(1) // ids sort by the millisecond
      const node = await givenNode(db)
      const images = digests.map((one) => ({ reference: 'python:latest', digest: one, sizeBytes: 1 }))
      await db.nodes.heartbeat(node, { ...standing(), images })
      return node
    }
    const told = async () => (await db.images.base()).map(({ digest: one, ready }) => `${one.slice(7, 8)} ${ready}`)
    const oldest = await holding(first)
    await holding(last, first)
    expect(await told()).toEqual(['f true', '0 true'])
    await db.nodes.update(oldest, { state: 'draining' })
    expect(await told()).toEqual(['f true', '0 true'])
    await db.nodes.delete(oldest)
    expect(await told()).toEqual(['0 true', 'f true'])
  })

  test('a base image by its name runs where it is; by its digest it is brought, from a draining node too', async () => {
    const tenant = await givenTenant(db)
    const [full, without] = [await givenNode(db, { sandboxes: 1 }), await givenNode(db)]
    await db.nodes.heartbeat(without, { ...standing(), images: [] })
    const admit = async (image: ImageWanted) => (await db.admission.admitJob(tenant, spec(), 'key', image)).placed
    const byName = baseImage(debian.reference)
    const byDigest = { ...byName, digest: debian.digest, base: { key: debian.reference, digest: debian.digest } }
    const first = await admit(byName)
    expect(first?.nodeId).toBe(full)
    expect(await admit(byDigest)).toMatchObject({ nodeId: without, command: { image: debian.digest } })
    expect(await admit(byName)).toBeUndefined()
    expect(await db.admission.placeQueued(10)).toEqual([])
    if (first) await db.jobs.recordFinished(full, finished(first.command, clock.now()))
    expect(await db.admission.placeQueued(10)).toMatchObject([{ nodeId: full }])
    await db.nodes.update(full, { state: 'draining' })
    expect(await db.images.base()).toEqual([{ ...debian, ready: false }])
    expect((await admit(byDigest))?.nodeId).toBe(without)
  })
})

test('a login is its owner’s, replaced by the next one, and gone when deleted', async () => {
  const { tenant, other } = await given()
  const { logins } = db.images
  await logins.put(tenant, { registry: 'r.example', username: 'a', sealedPassword: 'x' }, 'key')
  await logins.put(tenant, { registry: 'r.example', username: 'b', sealedPassword: 'y' }, 'key')
  expect(await logins.get(tenant, 'r.example')).toMatchObject({ username: 'b', sealedPassword: 'y' })
  expect([await logins.get(other, 'r.example'), await logins.list(other)]).toEqual([undefined, []])
  expect(await code(logins.delete(other, 'r.example'))).toBe('registry_not_found')
  await logins.delete(tenant, 'r.example')
  expect(await logins.list(tenant)).toEqual([])
})

describe('what is installed in images', () => {
  const packed = Buffer.from('packed')

  test('is kept by digest and format, unless it is large', async () => {
    const { contents } = db.images
    const nodeId = await givenNode(db)
    const [one, large, told] = [digest(), digest(), { packed, nodeId }]
    await contents.put(one, 1, told)
    await contents.put(one, 1, told)
    await contents.put(large, 1, { packed: Buffer.alloc(512 * 1024 + 1), nodeId })
    expect(await contents.get(one, 1)).toEqual(told)
    expect([await contents.get(one, 2), await contents.get(large, 1)]).toEqual([undefined, undefined])
  })

  test('of the oldest images goes when there are many', async () => {
    const { contents } = db.images
    const [old, told] = [digest(), { packed, nodeId: await givenNode(db) }]
    await contents.put(old, 1, told)
    clock.advance(1000)
    await query(
      postgres.url,
      `INSERT INTO image_contents (digest, format, packed, read_at, node_id)
       SELECT 'sha256:e' || lpad(to_hex(n), 63, '0'), 1, 'x', $1, $2 FROM generate_series(1, 4095) n`,
      [clock.now(), told.nodeId],
    )
    expect(await contents.get(old, 1)).toEqual(told)
    await contents.put(digest(), 1, told)
    expect(await contents.get(old, 1)).toBeUndefined()
    expect(await query(postgres.url, 'SELECT count(*)::integer AS rows FROM image_contents')).toEqual([{ rows: 4096 }])
  })

  test('is forgotten with the node that told it, which then tells nothing more', async () => {
    const { contents } = db.images
    const [gone, stays] = [await givenNode(db), await givenNode(db)]
    const [one, other, again] = [digest(), digest(), digest()]
    await contents.put(one, 1, { packed, nodeId: gone })
    await contents.put(other, 1, { packed, nodeId: stays })
    // Read anew: who told it last is who told it.
    await contents.put(again, 1, { packed, nodeId: gone })
    await contents.put(again, 1, { packed, nodeId: stays })
    await db.nodes.delete(gone)
    expect([await db.nodes.exists(gone), await db.nodes.exists(stays)]).toEqual([false, true])
    await contents.put(one, 1, { packed, nodeId: gone })
    expect(await contents.get(one, 1)).toBeUndefined()
    expect(await contents.get(other, 1)).toEqual({ packed, nodeId: stays })
    expect(await contents.get(again, 1)).toEqual({ packed, nodeId: stays })
  })
})

test('what would be admitted is what is admitted: own before public, and nothing of others', async () => {
  const { tenant, other, node } = await given()
  const [mine, common] = [image([layer(1)]), image([layer(1)])]
  await add(PUBLIC_OWNER, node, common, app)
  expect(await db.admission.imageOf(tenant, named(app))).toBe(common.digest)
  await add(tenant, node, mine, app)
  expect(await db.admission.imageOf(tenant, named(app))).toBe(mine.digest)
  expect(await db.admission.imageOf(other, named(app))).toBe(common.digest)
  expect(await db.admission.imageOf(other, byDigest(mine.digest))).toBeNull()
  expect(await db.admission.imageOf(tenant, baseImage('debian:latest'))).toBeNull()
  // What an operator has put up goes before what nodes have of that name, and is run by its digest.
  const name = 'docker.io/library/debian:latest'
  const ofNodes = { ...named(name), base: { key: debian.reference, digest: null } }
  const admitted = async () => (await db.admission.admitJob(tenant, spec(), 'key', ofNodes)).placed?.command
  expect(await admitted()).not.toHaveProperty('image')
  await add(PUBLIC_OWNER, node, common, name)
  expect(await admitted()).toMatchObject({ image: common.digest })
})

test('a tenant’s policy of images is kept as it is given, and unset by null', async () => {
  const { tenant } = await given()
  const policy = { mode: 'refuse', severity: 'high', fixableOnly: true, exempt: ['CVE-2025-1'] } as const
  expect(await db.tenants.imagePolicy(tenant)).toBeNull()
  expect(await db.tenants.update(tenant, { imagePolicy: { ...policy, exempt: [...policy.exempt] } })).toMatchObject({
    imagePolicy: policy,
  })
  expect(await db.tenants.imagePolicy(tenant)).toEqual(policy)
  expect((await db.tenants.update(tenant, { state: 'active' })).imagePolicy).toEqual(policy)
  await db.tenants.update(tenant, { imagePolicy: null })
  expect(await db.tenants.imagePolicy(tenant)).toBeNull()
})
