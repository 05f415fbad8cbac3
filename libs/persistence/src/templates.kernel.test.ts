import { Failure, type HeldImage, QuotaExceeded, TemplateSpec, type TenantId } from '@berth/contracts'
import { baseImage, type ImageWanted, PUBLIC_OWNER } from '@berth/domain'
import { beforeEach, expect, test } from '@jest/globals'
import { db, postgres } from './database.fixture.js'
import { givenNode, givenTenant, query } from './postgres.fixture.js'

let mine: TenantId
let other: TenantId
beforeEach(async () => {
  ;[mine, other] = [await givenTenant(db), await givenTenant(db)]
})

const app = 'docker.io/team/app:latest'
const named: ImageWanted = { text: 'team/app', reference: app, digest: null, base: null }
const make = (owner: string, name = 'web', more: { image?: ImageWanted; spec?: object } = {}) => ({
  ...{ owner, name, description: 'for tests', image: more.image ?? baseImage('debian'), by: 'key' },
  spec: TemplateSpec.parse({ image: 'debian', ...more.spec }),
})
const code = (work: Promise<unknown>) =>
  work.then(
    () => 'done',
    (error: unknown) => (error instanceof Failure ? error.code : error),
  )
let images = 0
async function givenImage(owner: string, reference = app): Promise<HeldImage> {
  const digest = `sha256:${(++images).toString(16).padStart(64, '0')}`
  const settings = { env: [], entrypoint: [], command: [], workingDir: null, user: null, stopSignal: null }
  const image: HeldImage = {
    ...{ digest, manifestDigest: digest, platform: 'linux/amd64', createdAt: null, layers: [], history: [] },
    settings: { ...settings, labels: {}, exposedPorts: [], volumes: [] },
  }
  await db.images.add({ owner, nodeId: await givenNode(db), by: 'key', images: [{ image, references: [reference] }] })
  return image
}

test('each change makes a version that stays; the name alone means the newest', async () => {
  const first = await db.templates.create(make(mine, 'web', { spec: { env: { A: '1' } } }))
  expect(first).toMatchObject({ name: 'web', version: 1, latest: true, visibility: 'tenant', imageDigest: null })
  expect(first).toMatchObject({ description: 'for tests', spec: { env: { A: '1' } }, createdBy: 'key' })
  expect(await code(db.templates.create(make(mine)))).toBe('name_taken')
  await db.templates.change(make(mine, 'web', { spec: { env: { A: '2' } } }))
  await db.templates.change(make(mine, 'web', { spec: { env: { A: '3' } } }))
  expect(await db.templates.get(mine, 'web', 1)).toEqual({ ...first, latest: false })
  expect(await db.templates.get(mine, 'web', null)).toMatchObject({ version: 3, spec: { env: { A: '3' } } })
  const page = await db.templates.versions(mine, 'web', { limit: 2 })
  expect([page.items.map(({ version }) => version), page.next]).toEqual([[3, 2], '2'])
  const rest = await db.templates.versions(mine, 'web', { limit: 2, after: '2' })
  expect([rest.items.map(({ version }) => version), rest.next]).toEqual([[1], null])

  await db.templates.remove(mine, 'web', 3)
  expect(await db.templates.get(mine, 'web', null)).toMatchObject({ version: 2, latest: true })
  expect((await db.templates.change(make(mine))).version).toBe(4)
  expect(await code(db.templates.get(mine, 'web', 3))).toBe('template_not_found')
  expect(await code(db.templates.remove(mine, 'web', 3))).toBe('template_not_found')
  for (const version of [1, 2, 4]) await db.templates.remove(mine, 'web', version)
  expect(await code(db.templates.versions(mine, 'web', { limit: 2 }))).toBe('template_not_found')
  expect((await db.templates.create(make(mine))).version).toBe(1)
  await db.templates.remove(mine, 'web', null)
  expect((await db.templates.list(mine, { limit: 5 })).items).toEqual([])
})

test('changes at the same moment each make a version of their own', async () => {
  await db.templates.create(make(mine))
  const made = await Promise.all(Array.from({ length: 8 }, () => db.templates.change(make(mine))))
  expect(made.map(({ version }) => version).sort((a, b) => a - b)).toEqual([2, 3, 4, 5, 6, 7, 8, 9])
})

test('another tenant’s are none; public ones are for all, and hidden by an own one', async () => {
  await db.templates.create(make(mine))
  await db.templates.create(make(PUBLIC_OWNER, 'shared', { spec: { env: { A: 'public' } } }))
  for (const work of [
    db.templates.get(other, 'web', null),
    db.templates.versions(other, 'web', { limit: 5 }),
    db.templates.change(make(other)),
    db.templates.remove(other, 'web', null),
    db.templates.change(make(mine, 'shared')),
    db.templates.remove(mine, 'shared', 1),
  ])
    expect(await code(work)).toBe('template_not_found')
  expect(await db.templates.get(other, 'shared', 1)).toMatchObject({ visibility: 'public' })
  await db.templates.create(make(mine, 'shared'))
  await db.templates.change(make(PUBLIC_OWNER, 'shared'))
  expect(await code(db.templates.get(mine, 'shared', 2))).toBe('template_not_found')
  const listed = await db.templates.list(mine, { limit: 1 })
  expect([listed.items.map(({ name, visibility }) => [name, visibility]), listed.next]).toEqual([
    ...[[['shared', 'tenant']], 'shared'],
  ])
  expect((await db.templates.list(mine, { limit: 5, after: 'shared' })).items.map(({ name }) => name)).toEqual(['web'])
  expect((await db.templates.list(other, { limit: 5 })).items).toMatchObject([{ name: 'shared', version: 2 }])
})

test('a version keeps the image that its name led to, which is used as long as the version is there', async () => {
  const image = await givenImage(mine)
  const { imageDigest } = await db.templates.create(make(mine, 'web', { image: named }))
  expect(imageDigest).toBe(image.digest)
  const later = await givenImage(mine)
  expect(await db.templates.change(make(mine, 'web', { image: named }))).toMatchObject({ imageDigest: later.digest })
  const scope = { owner: mine, base: [] }
  const wanted = { ...named, reference: null, digest: image.digest }
  const refused = await db.images.remove(scope, wanted, false).catch((error: unknown) => error)
  expect(refused).toMatchObject({ code: 'image_in_use', data: { sandboxes: [], jobs: [], templates: ['web@1'] } })
  expect(await db.images.prune(mine, { all: true, before: null, labels: [] })).toMatchObject({ deleted: [] })
  await db.templates.remove(mine, 'web', 1)
  expect(await db.images.remove(scope, wanted, false)).toMatchObject({ deleted: image.digest })
  expect(await code(db.templates.create(make(other, 'web', { image: named })))).toBe('image_not_found')
})

test('a public image is used by the templates of tenants', async () => {
  const image = await givenImage(PUBLIC_OWNER)
  await db.templates.create(make(mine, 'web', { image: named }))
  const wanted = { ...named, reference: null, digest: image.digest }
  expect(await code(db.images.remove({ owner: PUBLIC_OWNER, base: [] }, wanted, false))).toBe('image_in_use')
})

test('an image that is removed while a template of it is made: one of the two is refused', async () => {
  const scope = { owner: mine, base: [] }
  for (let round = 0; round < 10; round++) {
    const image = await givenImage(mine)
    const ends = await Promise.all([
      code(db.templates.create(make(mine, `web${round}`, { image: named }))),
      code(db.images.remove(scope, { ...named, reference: null, digest: image.digest }, false)),
    ])
    expect([
      ['done', 'image_in_use'],
      ['image_not_found', 'done'],
    ]).toContainEqual(ends)
    if (ends[0] === 'done') await db.templates.remove(mine, `web${round}`, null)
  }
})

test('there are so many templates, and versions, at most', async () => {
  const fill = (table: string, text: string) => query(postgres.url, `INSERT INTO ${table} ${text}`, [mine])
  await fill('templates', `SELECT $1, 'full' || i, 1 FROM generate_series(1, 100) i`)
  await expect(db.templates.create(make(mine))).rejects.toMatchObject({ quota: 'templates' })
  await db.templates.create(make(other))
  await fill('template_versions', `SELECT $1, 'full1', i, '', '{}', NULL, now(), 'key' FROM generate_series(2, 1001) i`)
  const refused = await db.templates.change(make(mine, 'full2')).catch((error: unknown) => error)
  expect(refused).toBeInstanceOf(QuotaExceeded)
  await db.templates.remove(mine, 'full1', 7)
  await db.templates.change(make(mine, 'full2'))
})
