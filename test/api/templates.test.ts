import { beforeEach, describe, expect, test } from '@jest/globals'
import { finished, operator, stdout, type TestTenant, tenant } from '../support/berth.js'

let mine: TestTenant
beforeEach(async () => {
  mine = await tenant()
})

const spec = {
  image: 'debian',
  entrypoint: ['sh', '-c'],
  command: ['echo "$A $B"'],
  env: { A: 'template', B: 'template' },
  labels: { team: 'web' },
  limits: { memoryBytes: 64 * 1024 ** 2, pids: 50 },
}
const given = async (name: string, of: object = spec) => {
  const made = await mine.post('/v1/templates', { name, description: 'made by a test', spec: of })
  if (made.status !== 201) throw new Error(JSON.stringify(made.body))
  return made.body
}

test('a template is made, changed, listed, got in each version, and deleted', async () => {
  expect(await given('life')).toMatchObject({ name: 'life', version: 1, latest: true, spec, imageDigest: null })
  expect((await mine.post('/v1/templates', { name: 'life', spec })).body.code).toBe('name_taken')
  const changed = await mine.post('/v1/templates/life/versions', { spec: { ...spec, env: {} } })
  expect(changed).toMatchObject({ status: 201, body: { version: 2, latest: true } })
  expect((await mine.get('/v1/templates/life')).body).toEqual(changed.body)
  expect((await mine.get('/v1/templates/life@1')).body).toMatchObject({ version: 1, latest: false, spec })
  expect((await mine.get('/v1/templates')).body.items).toEqual([changed.body])
  const versions = (await mine.get('/v1/templates/life/versions?limit=1')).body
  expect(versions.items).toEqual([changed.body])
  const more = await mine.get(`/v1/templates/life/versions?cursor=${versions.nextCursor}`)
  expect(more.body).toMatchObject({ items: [{ version: 1 }], nextCursor: null })
  expect((await mine.delete('/v1/templates/life@1')).status).toBe(204)
  expect((await mine.get('/v1/templates/life@1')).body.code).toBe('template_not_found')
  expect((await mine.delete('/v1/templates/life')).status).toBe(204)
  expect((await mine.get('/v1/templates')).body.items).toEqual([])
})

describe('what is made from a template', () => {
  test('a sandbox has what it says and what is given over it, and keeps both when the template goes', async () => {
    await given('base')
    await mine.post('/v1/templates/base/versions', { spec: { ...spec, labels: { team: 'other' } } })
    const asked = { template: 'base@1', env: { B: 'mine' }, labels: { mine: 'yes' }, limits: { pids: 20 } }
    const made = await mine.post('/v1/sandboxes?wait=stopped', asked)
    expect(made).toMatchObject({ status: 201, body: { labels: { team: 'web', mine: 'yes' } } })
    expect(made.body.spec).toMatchObject({
      ...{ template: 'base@1', image: 'debian', env: { A: 'template', B: 'mine' }, command: ['echo "$A $B"'] },
      limits: { memoryBytes: 64 * 1024 ** 2, pids: 20, cpus: 1 },
    })
    const newest = await mine.post('/v1/sandboxes?start=false', { template: 'base', name: 'newest' })
    expect(newest.body).toMatchObject({ labels: { team: 'other' }, spec: { template: 'base@2' } })
    await mine.delete('/v1/templates/base')
    const logs = await (await mine.raw('GET', `/v1/sandboxes/${made.body.id}/logs`)).text()
    expect(logs).toContain('template mine')
    expect((await mine.post('/v1/sandboxes', asked)).body.code).toBe('template_not_found')
  })

  test('jobs and batches run its command, or their own', async () => {
    await given('job')
    const own = { template: 'job', command: ['sh', '-c', 'echo "own $B"'] }
    const job = await mine.post('/v1/jobs?wait=finished&output=true', { template: 'job', env: { A: 'mine' } })
    expect(job.body).toMatchObject({ state: 'succeeded', spec: { template: 'job@1', image: 'debian' } })
    expect(stdout(job.body)).toBe('mine template\n')
    const batch = await mine.post('/v1/batches', { jobs: [{ template: 'job@1' }, own, { command: ['true'] }] })
    expect(batch.status).toBe(201)
    const ended = await Promise.all(batch.body.jobIds.map((id: string) => finished(mine, id)))
    expect(ended.map(({ state }) => state)).toEqual(['succeeded', 'succeeded', 'succeeded'])
    expect(ended.slice(0, 2).map(stdout)).toEqual(['template template\n', 'own template\n'])
    expect(ended[2].spec).not.toHaveProperty('template')
  })

  test('a repeat with the same idempotency key is answered though the template is gone', async () => {
    await given('once')
    const headers = { 'idempotency-key': 'templates-once' }
    const first = await mine.post('/v1/jobs', { template: 'once' }, headers)
    await mine.delete('/v1/templates/once')
    expect((await mine.post('/v1/jobs', { template: 'once' }, headers)).body.id).toBe(first.body.id)
  })
})

test('an image is used while a version keeps it, and runs as it was then', async () => {
  await mine.raw('PUT', '/v1/images/debian/tags/team%2Fown')
  const { digest } = (await mine.get('/v1/images/debian')).body
  expect(await given('pinned', { image: 'team/own' })).toMatchObject({ imageDigest: digest })
  const removed = await mine.delete(`/v1/images/${digest}`)
  expect(removed).toMatchObject({ status: 409, body: { code: 'image_in_use', templates: ['pinned@1'] } })
  // The name may lead elsewhere meanwhile, or nowhere.
  await mine.delete('/v1/images/team%2Fown/tags/team%2Fown')
  const job = await mine.post('/v1/jobs?wait=finished', { template: 'pinned', command: ['true'] })
  expect(job.body).toMatchObject({ state: 'succeeded', spec: { image: 'team/own' } })
})

test.each([
  ['max.swapBytes', { limits: { swapBytes: 1024 ** 3 } }],
  ['capAdd', { capAdd: ['CAP_SYS_ADMIN'] }],
  ['sysctls', { sysctls: { 'kernel.panic': '1' } }],
])('what the policy lets no sandbox have is refused when it is made: %s', async (policy, fields) => {
  const refused = { status: 403, body: { code: 'policy_forbidden', policy } }
  expect(await mine.post('/v1/templates', { name: 'no', spec: { ...spec, ...fields } })).toMatchObject(refused)
  await given('changed')
  const changed = await mine.post('/v1/templates/changed/versions', { spec: { ...spec, ...fields } })
  expect(changed).toMatchObject(refused)
  expect((await mine.get('/v1/templates')).body.items).toMatchObject([{ name: 'changed', version: 1 }])
})

test('an operator’s is public, and changed by operators only', async () => {
  const name = `public-${process.pid}`
  const made = await operator().post('/v1/templates', { name, spec })
  expect(made).toMatchObject({ status: 201, body: { visibility: 'public' } })
  try {
    expect((await mine.get('/v1/templates')).body.items.map((one: { name: string }) => one.name)).toContain(name)
    expect((await mine.delete(`/v1/templates/${name}`)).body.code).toBe('template_not_found')
    expect((await mine.post('/v1/jobs', { template: name })).body.spec.template).toBe(`${name}@1`)
  } finally {
    await operator().delete(`/v1/templates/${name}`)
  }
})

test.each([
  ['no image', { name: 'a', spec: {} }, 'spec.image'],
  ['an unknown field', { name: 'a', spec: { image: 'debian', privileged: true } }, 'spec.privileged'],
  ['a wrong limit', { name: 'a', spec: { image: 'debian', limits: { pids: 1 } } }, 'spec.limits.pids'],
  [
    'limits that contradict',
    { name: 'a', spec: { image: 'debian', limits: { memoryReservationBytes: '1g' } } },
    'spec.limits.memoryReservationBytes',
  ],
  ['a wrong name', { name: 'a@1', spec }, 'name'],
])('a template with %s is refused, naming it', async (_, body, field) => {
  const answer = await mine.post('/v1/templates', body)
  expect([answer.status, answer.body.errors?.map((one: { field: string }) => one.field)]).toEqual([400, [field]])
})

test.each([
  ['/v1/jobs', { template: 'bare' }, 'command'],
  ['/v1/jobs', { template: 'not a name' }, 'template'],
  ['/v1/sandboxes', { template: 'bare', limits: { memoryReservationBytes: '1g' } }, 'limits.memoryReservationBytes'],
  ['/v1/batches', { jobs: [{ command: ['true'] }, { template: 'bare' }] }, 'jobs[1].command'],
] as const)('%s with %j is refused, naming the field', async (path, body, field) => {
  await mine.post('/v1/templates', { name: 'bare', spec: { image: 'debian' } })
  const answer = await mine.post(path, body)
  expect([answer.status, answer.body.errors?.map((one: { field: string }) => one.field)]).toEqual([400, [field]])
})

test('an image that nobody has is refused', async () => {
  expect((await mine.post('/v1/templates', { name: 'a', spec: { image: 'team/none' } })).body.code).toBe(
    'image_not_found',
  )
})
