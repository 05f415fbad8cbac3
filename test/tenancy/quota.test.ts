import { readFileSync } from 'node:fs'
import { cgroupLayout, openCgroups } from '@berth/host'
import { expect, test } from '@jest/globals'
import { finished, operator, run, sh, stack, submit, tenant, until } from '../support/berth.js'

test('200 requests at the limit take exactly what is left, and none hangs', async () => {
  const t = await tenant({ unfinishedJobs: 37, concurrentJobs: 1, requestsPerMinute: 100_000 })
  const answers = await Promise.all(Array.from({ length: 200 }, () => t.post('/v1/jobs', sh('sleep 60'))))
  expect(answers.filter((a) => a.status === 201)).toHaveLength(37)
  const refused = answers.filter((a) => a.status !== 201)
  for (const a of refused)
    expect(a).toMatchObject({
      status: 403,
      body: { code: 'quota_exceeded', quota: 'unfinishedJobs', limit: 37, used: 37 },
    })
  expect((await t.get('/v1/usage')).body.now.unfinishedJobs).toBe(37)
  const { items } = (await t.get('/v1/jobs?limit=200')).body
  await Promise.all(items.map((job: { id: string }) => t.post(`/v1/jobs/${job.id}/cancel`)))
  const empty = async () => ((await t.get('/v1/usage')).body.now.unfinishedJobs === 0 ? true : undefined)
  await until('all are canceled', empty)
})

test('a batch over the limit is refused whole', async () => {
  const t = await tenant({ unfinishedJobs: 5 })
  const answer = await t.post('/v1/batches', { jobs: Array.from({ length: 6 }, () => sh('true')) })
  expect(answer).toMatchObject({ status: 403, body: { code: 'quota_exceeded', quota: 'unfinishedJobs', asked: 6 } })
  expect((await t.get('/v1/jobs')).body.items).toEqual([])
})

test('one job larger than the quota is refused, not left waiting for ever', async () => {
  const t = await tenant({ memoryBytes: '256m' as unknown as number, cpus: 1 })
  expect(await t.post('/v1/jobs', { ...sh('true'), limits: { memoryBytes: '512m' } })).toMatchObject({
    status: 403,
    body: { code: 'quota_exceeded', quota: 'memoryBytes' },
  })
  expect(await t.post('/v1/jobs', { ...sh('true'), limits: { memoryBytes: '64m', cpus: 2 } })).toMatchObject({
    status: 403,
    body: { quota: 'cpus' },
  })
})

test('jobs over the concurrency quota wait, and never more run at once', async () => {
  const t = await tenant({ concurrentJobs: 2 })
  const ids = await Promise.all(Array.from({ length: 8 }, () => submit(t, sh('sleep 0.3'))))
  let most = 0
  let open = true
  const watch = (async () => {
    while (open) most = Math.max(most, (await t.get('/v1/usage')).body.now.runningJobs)
  })()
  const jobs = await Promise.all(ids.map((id) => finished(t, id)))
  open = false
  await watch
  expect(jobs.map((job) => job.state)).toEqual(Array(8).fill('succeeded'))
  expect(most).toBeLessThanOrEqual(2)
  expect(most).toBeGreaterThan(0)
})

test('one tenant’s long queue does not starve another’s single job', async () => {
  const greedy = await tenant({ concurrentJobs: 100, requestsPerMinute: 100_000 })
  const modest = await tenant()
  const batches = await Promise.all(
    Array.from({ length: 4 }, () =>
      greedy.post('/v1/batches', { jobs: Array.from({ length: 1000 }, () => sh('sleep 0.2')) }),
    ),
  )
  expect(batches.map((b) => b.status)).toEqual([201, 201, 201, 201])
  const job = await run(modest, sh('echo mine'))
  expect(job.state).toBe('succeeded')
  const left = (await greedy.get('/v1/usage')).body.now.unfinishedJobs
  expect(left).toBeGreaterThan(3000)
  for (const batch of batches) await greedy.post(`/v1/batches/${batch.body.id}/cancel`)
  await until(
    'the queue is empty',
    async () => ((await greedy.get('/v1/usage')).body.now.unfinishedJobs === 0 ? true : undefined),
    30_000,
  )
})

test('a lowered quota reaches the node of a sandbox without any request of the tenant', async () => {
  const t = await tenant({ cpus: 4, memoryBytes: 2 ** 30, pids: 600 })
  const limits = { memoryBytes: '64m', diskBytes: '64m', cpus: 0.5 }
  const made = await t.post('/v1/sandboxes?wait=running&timeoutMs=60s', { limits })
  expect(made.body).toMatchObject({ state: 'running' })
  const cgroups = openCgroups(cgroupLayout())
  const v2 = cgroupLayout().kind === 'v2'
  const held = () => {
    const paths = cgroups.paths(`${stack().cgroupParent}/${t.id}`)
    const read = (controller: string, file: string) => readFileSync(`${paths.get(controller)}/${file}`, 'utf8').trim()
    const cpu = v2 ? read('cpu', 'cpu.max').split(' ')[0] : read('cpu', 'cpu.cfs_quota_us')
    return [read('memory', v2 ? 'memory.max' : 'memory.limit_in_bytes'), cpu, read('pids', 'pids.max')].map(Number)
  }
  expect(held()).toEqual([2 ** 30, 400_000, 600])
  const change = async (quota: object) =>
    expect((await operator().patch(`/v1/tenants/${t.id}`, { quota })).status).toBe(200)
  const comes = (wanted: readonly number[]) =>
    until('the node holds the tenant to it', async () => {
      if (held().join() === wanted.join()) return true
      throw new Error(held().join())
    })
  await change({ cpus: 1.5, memoryBytes: 2 ** 28, pids: 300 })
  await comes([2 ** 28, 150_000, 300])
  await change({ cpus: 2, memoryBytes: 2 ** 29 })
  await comes([2 ** 29, 200_000, 300])
})

test('a raised quota is in force at once', async () => {
  const t = await tenant({ concurrentJobs: 1 })
  const blocker = await submit(t, sh('sleep 60'))
  const id = await submit(t, sh('true'))
  expect((await t.get(`/v1/jobs/${id}`)).body.state).toBe('queued')
  await operator().patch(`/v1/tenants/${t.id}`, { quota: { concurrentJobs: 2 } })
  expect((await finished(t, id)).state).toBe('succeeded')
  await t.post(`/v1/jobs/${blocker}/cancel`)
  await finished(t, blocker)
})
