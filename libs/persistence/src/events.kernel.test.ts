import type { RunAttempt, TenantId } from '@berth/contracts'
import { expect, test } from '@jest/globals'
import { clock, db } from './database.fixture.js'
import { failed, finished, givenNode, givenTenant, sandboxSpec, spec } from './postgres.fixture.js'

const commandOf = (placed: { readonly command: RunAttempt } | undefined): RunAttempt => {
  if (!placed) throw new Error('the job was not placed')
  return placed.command
}

const started = ({ nodeId, attemptId, generation }: RunAttempt) =>
  db.jobs.recordStarted(nodeId, [{ kind: 'started', attemptId, generation, at: clock.now().toISOString() }])

const finish = (command: RunAttempt, change = {}) =>
  db.jobs.recordFinished(command.nodeId, finished(command, clock.now(), change))

const types = async (tenantId: TenantId, subject?: string) =>
  (await db.events.list(tenantId, 0, { subject }, 1000)).map(({ type }) => type)

test('the life of a job is told state by state, repeats are not', async () => {
  const tenantId = await givenTenant(db)
  await givenNode(db)
  const retry = { maxAttempts: 2, backoffMs: 0 }
  const { job, placed } = await db.admission.admitJob(tenantId, spec({ retry }), 'key_1')
  const first = commandOf(placed)
  await started(first)
  await started(first)
  await finish(first, failed)
  await finish(first, failed)
  clock.advance(1)
  const [again] = await db.admission.placeQueued(10)
  await finish(commandOf(again))
  const events = await db.events.list(tenantId, 0, { subject: job.id }, 100)
  expect(events.map(({ id, type, by }) => [id, type, by])).toEqual([
    ['1', 'job.placed', 'key_1'],
    ['2', 'job.running', 'agent'],
    ['3', 'job.queued', 'sandbox'],
    ['4', 'job.placed', 'api'],
    ['5', 'job.succeeded', 'sandbox'],
  ])
  expect(events.map(({ data }) => data.attempt)).toEqual([1, 1, 1, 2, 2])
  expect(events[2]?.data).toMatchObject({ exitCode: 1, reason: { code: 'exit_nonzero', message: 'exit code 1' } })
})

test('what a node tells at once of many tenants is stored at once, each once, and what it may not tell is left out', async () => {
  const tenants = [await givenTenant(db), await givenTenant(db)]
  const nodeId = await givenNode(db)
  const commands: RunAttempt[] = []
  for (let i = 0; i < 6; i++)
    commands.push(commandOf((await db.admission.admitJob(tenants[i % 2] ?? raise(), spec())).placed))
  const report = (command: RunAttempt, generation = 1) =>
    ({ kind: 'started', attemptId: command.attemptId, generation, at: clock.now().toISOString() }) as const
  const reports = commands.map((command) => report(command))
  expect(await db.jobs.recordStarted(await givenNode(db), reports)).toEqual([])
  const [first = raise(), ...others] = reports
  const told = await db.jobs.recordStarted(nodeId, [first, first, ...others, { ...first, generation: 2 }])
  expect(told.map(({ jobId }) => jobId).sort()).toEqual(commands.map(({ jobId }) => jobId).sort())
  expect(await db.jobs.recordStarted(nodeId, reports)).toEqual([])
  for (const tenantId of tenants)
    expect((await types(tenantId)).filter((type) => type === 'job.running')).toHaveLength(3)
})

function raise(): never {
  throw new Error('there is none')
}

test('a batch is told job by job, and so is its cancellation', async () => {
  const tenantId = await givenTenant(db)
  const { batch, jobIds } = await db.admission.admitBatch(tenantId, undefined, [spec(), spec(), spec()], 'key_1')
  await db.batches.cancel({ tenantId }, batch.id, 'key_2')
  const events = await db.events.list(tenantId, 0, {}, 100)
  expect(events.map(({ type, by }) => [type, by])).toEqual([
    ...Array(3).fill(['job.queued', 'key_1']),
    ...Array(3).fill(['job.canceled', 'key_2']),
  ])
  expect(events.map(({ subject }) => subject)).toEqual([...jobIds, ...jobIds])
})

test('a reader who goes on after the last event that it saw misses none, whatever commits at the same time', async () => {
  const tenantId = await givenTenant(db, { sandboxes: 1000, concurrentJobs: 1000, cpus: 1000 })
  await givenNode(db)
  const seen: number[] = []
  let writing = true
  const read = async () => {
    for (let more = true; more; ) {
      more = writing
      const events = await db.events.list(tenantId, seen.at(-1) ?? 0, {}, 7)
      seen.push(...events.map(({ id }) => Number(id)))
      more ||= events.length > 0
    }
  }
  const reading = read()
  await Promise.all(
    Array.from({ length: 60 }, async (_, i) => {
      if (i % 2 > 0) return db.sandboxes.create({ tenantId, spec: sandboxSpec(), start: true, by: 'key_1' })
      const { placed } = await db.admission.admitJob(tenantId, spec())
      if (!placed) return undefined
      await started(placed.command)
      return finish(placed.command)
    }),
  )
  await db.admission.placeQueued(100)
  writing = false
  await reading
  expect(seen).toEqual(Array.from({ length: await db.events.last(tenantId) }, (_, i) => i + 1))
})

test('lists go by type and subject, from any number on', async () => {
  const tenantId = await givenTenant(db)
  await givenNode(db)
  const { sandbox } = await db.sandboxes.create({ tenantId, spec: sandboxSpec(), start: true, by: 'key_1' })
  const { job } = await db.admission.admitJob(tenantId, spec())
  await db.sandboxes.request({ tenantId }, sandbox.id, { kind: 'delete', force: true }, { by: 'key_1' })
  expect(await types(tenantId)).toEqual(['sandbox.created', 'job.placed', 'sandbox.deleted'])
  expect(await types(tenantId, sandbox.id)).toEqual(['sandbox.created', 'sandbox.deleted'])
  expect(await types(tenantId, job.id)).toEqual(['job.placed'])
  const filtered = await db.events.list(tenantId, 1, { type: ['sandbox.deleted', 'sandbox.created'] }, 10)
  expect(filtered.map(({ id }) => id)).toEqual(['3'])
  expect(await db.events.list(await givenTenant(db), 0, { subject: job.id }, 10)).toEqual([])
})

test('what is known against an image is told once a day, however many tell it at once', async () => {
  const [tenantId, other] = [await givenTenant(db), await givenTenant(db)]
  const digest = `sha256:${'1'.repeat(64)}`
  const warning = { image: 'app', severity: 'high', vulnerabilities: ['CVE-1'], complete: true }
  const tell = (more = {}, to = tenantId) => db.events.warned(to, digest, { ...warning, ...more })
  const told = await Promise.all([1, 2, 3, 4].map((name) => tell({ image: `app:${name}` })))
  expect(told.filter(Boolean)).toHaveLength(1)
  expect([await tell({}, other), await tell({ vulnerabilities: ['CVE-2'] }), await tell()]).toEqual([true, true, false])
  const events = await db.events.list(tenantId, 0, { subject: digest }, 10)
  expect(events).toMatchObject([
    {
      id: '1',
      type: 'image.warned',
      subject: digest,
      by: 'api',
      data: { severity: 'high', vulnerabilities: ['CVE-1'] },
    },
    { id: '2', data: { image: 'app', vulnerabilities: ['CVE-2'], complete: true } },
  ])
  clock.advance(24 * 3_600_000)
  expect([await tell(), await tell()]).toEqual([true, false])
  expect(await db.events.last(tenantId)).toBe(3)
})
