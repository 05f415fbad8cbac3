import { type JobSpec, MiB, QuotaExceeded, type RunAttempt, type TenantId } from '@berth/contracts'
import { describe, expect, test } from '@jest/globals'
import { clock, db, postgres } from './database.fixture.js'
import { failed, finished, givenNode, givenTenant, query, spec, unique } from './postgres.fixture.js'

const report = (command: RunAttempt, change = {}) =>
  db.jobs.recordFinished(command.nodeId, finished(command, clock.now(), change))

const commandOf = (placed: { readonly command: RunAttempt } | undefined): RunAttempt => {
  if (!placed) throw new Error('the job was not placed')
  return placed.command
}

describe('admitting one job', () => {
  test('places it at once where a node has room, with a command that is complete', async () => {
    const tenantId = await givenTenant(db, { memoryBytes: 64 * MiB, cpus: 2, pids: 99 })
    const nodeId = await givenNode(db)
    const given = spec({ stdin: Buffer.from('in').toString('base64'), env: { B: '1', A: '2' } })
    const { job, placed } = await db.admission.admitJob(tenantId, given)
    expect(placed?.nodeId).toBe(nodeId)
    expect(placed?.command).toEqual({
      kind: 'run',
      nodeId,
      attemptId: job.attempts[0]?.id,
      generation: 1,
      jobId: job.id,
      tenantId,
      ids: { base: 1_000_000, count: 65_536 },
      tenantLimits: { memoryBytes: 64 * MiB, cpus: 2, pids: 99 },
      spec: given,
      placedAt: clock.now().toISOString(),
    })
  })

  test('answers the job as it is read afterwards', async () => {
    const tenantId = await givenTenant(db)
    await givenNode(db)
    const { job } = await db.admission.admitJob(tenantId, spec({ name: 'a', labels: { x: 'y' }, stdin: 'aGk=' }))
    expect(job).toEqual(await db.jobs.get({ tenantId }, job.id))
    expect([job.state, job.spec.stdinBytes, 'stdin' in job.spec]).toEqual(['placed', 2, false])
  })

  test.each([
    ['concurrentJobs', { concurrentJobs: 0 }, { limit: 0, used: 0, asked: 1 }],
    ['cpus', { cpus: 0.5 }, { limit: 0.5, used: 0, asked: 1 }],
    ['memoryBytes', { memoryBytes: MiB }, { limit: MiB, used: 0, asked: 16 * MiB }],
    ['diskBytes', { diskBytes: MiB }, { limit: MiB, used: 0, asked: 16 * MiB }],
    ['unfinishedJobs', { unfinishedJobs: 0 }, { limit: 0, used: 0, asked: 1 }],
  ])('refuses what is larger than the quota %s, and says so', async (name, quota, data) => {
    const tenantId = await givenTenant(db, quota)
    await givenNode(db)
    await expect(db.admission.admitJob(tenantId, spec())).rejects.toMatchObject({
      code: 'quota_exceeded',
      data: { quota: name, ...data },
    })
    await expect(db.admission.admitBatch(tenantId, undefined, [spec()])).rejects.toThrow(QuotaExceeded)
  })

  test('refuses a suspended tenant, and one that does not exist', async () => {
    const tenantId = await givenTenant(db)
    await db.tenants.update(tenantId, { state: 'suspended' })
    await expect(db.admission.admitJob(tenantId, spec())).rejects.toMatchObject({ code: 'tenant_suspended' })
    await query(postgres.url, 'DELETE FROM tenants')
    await expect(db.admission.admitJob(tenantId, spec())).rejects.toMatchObject({ code: 'tenant_not_found' })
  })

  test('refuses text that Postgres cannot hold as the caller’s fault', async () => {
    const tenantId = await givenTenant(db)
    const bad = { ...spec(), labels: { half: '\ud800' } }
    await expect(db.admission.admitJob(tenantId, bad)).rejects.toMatchObject({ code: 'invalid_request' })
    await expect(db.admission.admitBatch(tenantId, undefined, [bad])).rejects.toMatchObject({ code: 'invalid_request' })
  })

  test.each<[string, (tenant: TenantId) => Promise<unknown>]>([
    [
      'its tenant has jobs queued ahead',
      (tenant) => query(postgres.url, `UPDATE tenants SET quota_concurrent_jobs = 2 WHERE id = $1`, [tenant]),
    ],
    [
      'another tenant waits for a node',
      async () => {
        const other = await givenTenant(db)
        await query(postgres.url, 'UPDATE nodes SET capacity_sandboxes = 0')
        expect((await db.admission.admitJob(other, spec())).placed).toBeUndefined()
        await query(postgres.url, 'UPDATE nodes SET capacity_sandboxes = 10')
      },
    ],
  ])('does not overtake: it stays queued when %s', async (name, arrange) => {
    const tenantId = await givenTenant(db, { concurrentJobs: 1 })
    await givenNode(db)
    if (name.startsWith('its')) {
      await db.admission.admitJob(tenantId, spec())
      await db.admission.admitJob(tenantId, spec())
    }
    await arrange(tenantId)
    const { job, placed } = await db.admission.admitJob(tenantId, spec())
    expect([job.state, placed]).toEqual(['queued', undefined])
  })

  test('jobs of another tenant that wait for their own quota, or for no node that there is, do not hold it up', async () => {
    await givenNode(db, { cpus: 8 })
    const narrow = await givenTenant(db, { concurrentJobs: 1 })
    for (let i = 0; i < 3; i++) await db.admission.admitJob(narrow, spec())
    const large = await givenTenant(db)
    await db.admission.admitJob(large, spec({ limits: { cpus: 16 } }))
    const { placed } = await db.admission.admitJob(await givenTenant(db), spec())
    expect(placed).toBeDefined()
  })
})

describe('two hundred requests at once at the limit', () => {
  const flood = (tenantId: TenantId, of: JobSpec) =>
    Promise.allSettled(Array.from({ length: 200 }, () => db.admission.admitJob(tenantId, of)))

  test('are admitted up to the last unfinished job, and not one more', async () => {
    const tenantId = await givenTenant(db, { unfinishedJobs: 150 })
    await givenNode(db)
    const results = await flood(tenantId, spec())
    const refused = results.flatMap((one) => (one.status === 'rejected' ? [one.reason] : []))
    expect(refused).toHaveLength(50)
    for (const reason of refused) expect(reason).toMatchObject({ code: 'quota_exceeded', data: { used: 150 } })
  })

  test.each<[string, object, object, number]>([
    ['concurrent jobs', { concurrentJobs: 37, cpus: 1000 }, {}, 37],
    ['cpus', { concurrentJobs: 1000, cpus: 3.7 }, { limits: { cpus: 0.1, memoryBytes: '16m', diskBytes: '16m' } }, 37],
    ['memory', { concurrentJobs: 1000, cpus: 1000, memoryBytes: 37 * 16 * MiB + 1 }, {}, 37],
    ['disk', { concurrentJobs: 1000, cpus: 1000, memoryBytes: 2 ** 44, diskBytes: 37 * 16 * MiB }, {}, 37],
  ])('run up to the quota of %s, and the others wait', async (_, quota, fields, limit) => {
    const tenantId = await givenTenant(db, quota)
    await givenNode(db)
    const results = await flood(tenantId, spec(fields))
    expect(results.filter((one) => one.status === 'rejected')).toEqual([])
    const direct = results.filter((one) => one.status === 'fulfilled' && one.value.placed !== undefined).length
    // Two that read before either wrote may each see the other ahead and leave a place to the placer.
    const rest = await Promise.all(Array.from({ length: 5 }, () => db.admission.placeQueued(200)))
    expect(direct + rest.flat().length).toBe(limit)
    expect((await db.usage.get(tenantId, clock.now(), clock.now())).now).toMatchObject({
      unfinishedJobs: 200,
      runningJobs: limit,
    })
  })

  test('of ten tenants fill two nodes exactly', async () => {
    const nodes = [await givenNode(db, { sandboxes: 30 }), await givenNode(db, { memoryBytes: 20 * 16 * MiB })]
    const tenants = await Promise.all(Array.from({ length: 10 }, () => givenTenant(db)))
    const jobs = Array.from({ length: 200 }, (_, i) => db.admission.admitJob(tenantAt(tenants, i), spec()))
    const direct = (await Promise.all(jobs)).flatMap(({ placed }) => placed ?? [])
    const rest = (await Promise.all(Array.from({ length: 5 }, () => db.admission.placeQueued(100)))).flat()
    const placed = [...direct, ...rest, ...(await db.admission.placeQueued(100))]
    expect(placed.filter((one) => one.nodeId === nodes[0])).toHaveLength(30)
    expect(placed.filter((one) => one.nodeId === nodes[1])).toHaveLength(20)
    expect(new Set(placed.map((one) => one.command.jobId)).size).toBe(50)
  })
})

function tenantAt(tenants: readonly TenantId[], i: number): TenantId {
  const tenant = tenants[i % tenants.length]
  if (!tenant) throw new Error('no tenants')
  return tenant
}

describe('placing what is queued', () => {
  test('is fair: beside a flood, the one job of another tenant is among the first', async () => {
    const flooding = await givenTenant(db, { concurrentJobs: 1000 })
    const quiet = await givenTenant(db)
    await db.admission.admitBatch(
      flooding,
      unique('flood'),
      Array.from({ length: 500 }, () => spec()),
    )
    const { job } = await db.admission.admitJob(quiet, spec())
    await givenNode(db, { sandboxes: 3 })
    const placed = await db.admission.placeQueued(100)
    expect(placed).toHaveLength(3)
    expect(placed.map(({ command }) => command.jobId)).toContain(job.id)
  })

  test('a freed slot of a busy node goes to who waits, not to who comes', async () => {
    await givenNode(db, { sandboxes: 1 })
    const busy = await givenTenant(db)
    const first = commandOf((await db.admission.admitJob(busy, spec())).placed)
    const { job: waiting } = await db.admission.admitJob(await givenTenant(db), spec())
    clock.advance(1)
    await report(first)
    expect((await db.admission.admitJob(busy, spec())).placed).toBeUndefined()
    const placed = await db.admission.placeQueued(10)
    expect(placed.map(({ command }) => command.jobId)).toEqual([waiting.id])
  })

  test('goes by priority, then by age', async () => {
    const tenantId = await givenTenant(db)
    const { jobIds } = await db.admission.admitBatch(
      tenantId,
      undefined,
      [4, 4, 9, 0].map((priority) => spec({ priority })),
    )
    await givenNode(db, { sandboxes: 1 })
    const order: (string | undefined)[] = []
    for (
      let placed = await db.admission.placeQueued(1);
      placed.length > 0;
      placed = await db.admission.placeQueued(1)
    ) {
      order.push(placed[0]?.command.jobId)
      await report(commandOf(placed[0]))
    }
    expect(order).toEqual([jobIds[2], jobIds[0], jobIds[1], jobIds[3]])
  })

  test('leaves alone: suspended tenants, back-offs, passed deadlines, silent and draining nodes', async () => {
    const tenantId = await givenTenant(db)
    const nodeId = await givenNode(db)
    const retry = { maxAttempts: 2, backoffMs: 5000 }
    const command = commandOf((await db.admission.admitJob(tenantId, spec({ retry }))).placed)
    await report(command, failed)
    expect(await db.admission.placeQueued(10)).toEqual([])
    clock.advance(5000)
    await db.tenants.update(tenantId, { state: 'suspended' })
    expect(await db.admission.placeQueued(10)).toEqual([])
    await db.tenants.update(tenantId, { state: 'active' })
    await db.nodes.update(nodeId, { state: 'draining' })
    expect(await db.admission.placeQueued(10)).toEqual([])
    await db.nodes.update(nodeId, { state: 'ready' })
    clock.advance(10_001)
    expect(await db.admission.placeQueued(10)).toEqual([])
    await query(postgres.url, 'UPDATE nodes SET last_seen_at = $1', [clock.now()])
    await query(postgres.url, 'UPDATE jobs SET deadline = $1', [clock.now()])
    expect(await db.admission.placeQueued(10)).toEqual([])
    await query(postgres.url, 'UPDATE jobs SET deadline = NULL')
    const placed = await db.admission.placeQueued(10)
    expect(placed.map((one) => one.command.jobId)).toEqual([command.jobId])
    expect((await db.jobs.get('operator', command.jobId)).attempts.map((one) => one.number)).toEqual([1, 2])
  })

  test('jobs larger than every node hold up nobody', async () => {
    const tenantId = await givenTenant(db, { cpus: 100 })
    await givenNode(db, { cpus: 2 })
    const { jobIds } = await db.admission.admitBatch(tenantId, undefined, [spec({ limits: { cpus: 4 } }), spec()])
    const states = await Promise.all(jobIds.map(async (id) => (await db.jobs.get({ tenantId }, id)).state))
    expect(states).toEqual(['queued', 'placed'])
  })

  test('prefers the node that holds the image, by any of its names', async () => {
    const tenantId = await givenTenant(db)
    await givenNode(db)
    const nodeId = await givenNode(db)
    await query(postgres.url, `UPDATE nodes SET image_names = '{python,python:latest}' WHERE id = $1`, [nodeId])
    for (let i = 0; i < 3; i++)
      expect((await db.admission.admitJob(tenantId, spec({ image: 'python' }))).placed?.nodeId).toBe(nodeId)
  })

  test('a pass that would hold too much standard input leaves the rest to the next', async () => {
    const tenantId = await givenTenant(db)
    const stdin = Buffer.alloc(4 * MiB).toString('base64')
    await db.admission.admitBatch(
      tenantId,
      undefined,
      Array.from({ length: 10 }, () => spec({ stdin })),
    )
    await givenNode(db)
    const first = await db.admission.placeQueued(10)
    expect(first).toHaveLength(8)
    expect(first[0]?.command.spec.stdin).toBe(stdin)
    expect(await db.admission.placeQueued(10)).toHaveLength(2)
  })
})
