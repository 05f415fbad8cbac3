import { type ApplySandbox, DAY, MINUTE, MiB, type NodeId, type SandboxReport, type TenantId } from '@berth/contracts'
import type { SandboxRequest } from '@berth/domain'
import { describe, expect, test } from '@jest/globals'
import { clock, db, postgres } from './database.fixture.js'
import {
  bookkeepingErrors,
  givenNode,
  givenTenant,
  query,
  reportOf,
  sandboxSpec,
  spec,
  standing,
} from './postgres.fixture.js'
import type { ChangedSandbox, Database } from './repositories.js'

const by = 'key_test'
const create = (tenantId: TenantId, fields: Parameters<typeof sandboxSpec>[0] = {}, start = true) =>
  db.sandboxes.create({ tenantId, spec: sandboxSpec(fields), start, by })

function commandOf({ command }: ChangedSandbox): ApplySandbox {
  if (!command) throw new Error('there is no command')
  return command.command
}

/** A sandbox with what its node was last told and has last said. */
class Scene {
  sequence = 0
  constructor(
    readonly tenantId: TenantId,
    readonly nodeId: NodeId,
    public command: ApplySandbox,
  ) {}

  get id() {
    return this.command.sandboxId
  }
  async ask(asked: SandboxRequest) {
    const changed = await db.sandboxes.request({ tenantId: this.tenantId }, this.id, asked, { by })
    if (changed.command) this.command = changed.command.command
    return changed
  }
  async report(change: Partial<SandboxReport> = {}) {
    const changed = await db.sandboxes.recordReport(this.nodeId, reportOf(this.command, ++this.sequence, change))
    if (changed?.command) this.command = changed.command.command
    return changed
  }
  get() {
    return db.sandboxes.get({ tenantId: this.tenantId }, this.id)
  }
  use() {
    return db.usage.get(this.tenantId, clock.now(), clock.now()).then(({ now }) => now)
  }
  async events() {
    return (await db.events.list(this.tenantId, 0, {}, 1000)).map(({ type }) => type)
  }
}

async function scene(fields: Parameters<typeof sandboxSpec>[0] = {}, start = true): Promise<Scene> {
  const tenantId = await givenTenant(db)
  const nodeId = await givenNode(db)
  return new Scene(tenantId, nodeId, commandOf(await create(tenantId, fields, start)))
}

async function running(fields: Parameters<typeof sandboxSpec>[0] = {}): Promise<Scene> {
  const made = await scene(fields)
  await made.report()
  return made
}

describe('creating', () => {
  test('reserves, places, and makes a command that is complete', async () => {
    const tenantId = await givenTenant(db, { memoryBytes: 64 * MiB, cpus: 2, pids: 99, terminals: 7 })
    const nodeId = await givenNode(db)
    const given = sandboxSpec({ name: 'box', labels: { a: 'b' }, env: { B: '1', A: '2' } })
    const made = await db.sandboxes.create({ tenantId, spec: given, start: true, by })
    expect(made.sandbox).toMatchObject({
      state: 'creating',
      desired: 'running',
      phase: 'placing',
      version: 1,
      nodeId,
      run: 1,
    })
    expect(made.sandbox.placedBecause).toBe('1 of 1 ready nodes have image debian and room')
    expect(made.command).toEqual({
      nodeId,
      command: {
        kind: 'sandbox',
        nodeId,
        sandboxId: made.sandbox.id,
        generation: 1,
        known: false,
        tenantId,
        ids: { base: 1_000_000, count: 65_536 },
        tenantLimits: { memoryBytes: 64 * MiB, cpus: 2, pids: 99 },
        tenantTerminals: 7,
        spec: given,
        desired: 'running',
        run: 1,
        stop: { graceMs: null, signal: null, reason: { code: 'requested', message: 'asked for', by } },
        requestedAt: clock.now().toISOString(),
        clocksFrom: clock.now().toISOString(),
      },
    })
    expect(await db.sandboxes.get({ tenantId }, 'box')).toEqual(made.sandbox)
  })

  test('without a start it takes disk only, and a node that could run it', async () => {
    const made = await scene({}, false)
    expect(await made.use()).toMatchObject({ sandboxes: 1, cpus: 0, memoryBytes: 0, diskBytes: 16 * MiB })
    await made.report({ state: 'stopped', phase: 'stopped' })
    expect(await made.get()).toMatchObject({ state: 'stopped', desired: 'stopped', run: 0 })
    await made.ask({ kind: 'start' })
    expect(await made.use()).toMatchObject({ sandboxes: 1, cpus: 0.1, memoryBytes: 16 * MiB, diskBytes: 16 * MiB })
  })

  test.each([
    ['sandboxes', { sandboxes: 0 }, { limit: 0, used: 0, asked: 1 }],
    ['cpus', { cpus: 0.05 }, { limit: 0.05, used: 0, asked: 0.1 }],
    ['memoryBytes', { memoryBytes: MiB }, { limit: MiB, used: 0, asked: 16 * MiB }],
    ['diskBytes', { diskBytes: MiB }, { limit: MiB, used: 0, asked: 16 * MiB }],
  ])('is refused over the quota %s, which it names', async (quota, limits, data) => {
    const tenantId = await givenTenant(db, limits)
    await givenNode(db)
    await expect(create(tenantId)).rejects.toMatchObject({ code: 'quota_exceeded', data: { quota, ...data } })
  })

  test('is refused where no node has room, or the image', async () => {
    const tenantId = await givenTenant(db)
    await expect(create(tenantId)).rejects.toMatchObject({ code: 'no_capacity' })
    await givenNode(db, { memoryBytes: 15 * MiB })
    await expect(create(tenantId)).rejects.toMatchObject({ code: 'no_capacity', data: { asked: { cpus: 0.1 } } })
    await givenNode(db)
    await expect(create(tenantId, { image: 'other' })).rejects.toMatchObject({ code: 'no_capacity' })
  })

  test('is refused for a name that is taken, until that one is deleted', async () => {
    const tenantId = await givenTenant(db)
    await givenNode(db)
    const first = await create(tenantId, { name: 'one' })
    await expect(create(tenantId, { name: 'one' })).rejects.toMatchObject({ code: 'name_taken' })
    const many = await Promise.allSettled(Array.from({ length: 20 }, () => create(tenantId, { name: 'two' })))
    expect(many.filter((one) => one.status === 'fulfilled')).toHaveLength(1)
    await db.sandboxes.request({ tenantId }, first.sandbox.id, { kind: 'delete', force: true }, { by })
    await create(tenantId, { name: 'one' })
    await create(await givenTenant(db), { name: 'one' })
  })

  test('refuses a suspended tenant, one that does not exist, and text that cannot be stored', async () => {
    const tenantId = await givenTenant(db)
    await givenNode(db)
    await expect(create(tenantId, { labels: { half: '\ud800' } })).rejects.toMatchObject({ code: 'invalid_request' })
    await db.tenants.update(tenantId, { state: 'suspended' })
    await expect(create(tenantId)).rejects.toMatchObject({ code: 'tenant_suspended' })
    await query(postgres.url, 'DELETE FROM tenants')
    await expect(create(tenantId)).rejects.toMatchObject({ code: 'tenant_not_found' })
  })

  test('spreads a tenant over nodes, and says so', async () => {
    const tenantId = await givenTenant(db)
    await givenNode(db)
    await givenNode(db)
    const made = [await create(tenantId), await create(tenantId), await create(tenantId)]
    expect(new Set(made.slice(0, 2).map(({ sandbox }) => sandbox.nodeId)).size).toBe(2)
    expect(made[1]?.sandbox.placedBecause).toBe(
      '2 of 2 ready nodes have image debian and room; this one has fewest of the tenant (0)',
    )
  })
})

describe('two hundred creates at once at the limit', () => {
  const flood = (tenantId: TenantId) => Promise.allSettled(Array.from({ length: 200 }, () => create(tenantId)))

  test.each<[string, object]>([
    ['sandboxes', { sandboxes: 37 }],
    ['cpus', { sandboxes: 1000, cpus: 3.7 }],
    ['memoryBytes', { sandboxes: 1000, cpus: 1000, memoryBytes: 37 * 16 * MiB + 1 }],
    ['diskBytes', { sandboxes: 1000, cpus: 1000, memoryBytes: 2 ** 44, diskBytes: 37 * 16 * MiB }],
  ])('fill the quota of %s, and not one more', async (quota, limits) => {
    const tenantId = await givenTenant(db, limits)
    await givenNode(db)
    const results = await flood(tenantId)
    expect(results.filter((one) => one.status === 'fulfilled')).toHaveLength(37)
    for (const one of results)
      if (one.status === 'rejected') expect(one.reason).toMatchObject({ code: 'quota_exceeded', data: { quota } })
  })

  test('of ten tenants, beside jobs, fill two nodes exactly', async () => {
    await givenNode(db, { sandboxes: 30 })
    await givenNode(db, { memoryBytes: 20 * 16 * MiB })
    const tenants = await Promise.all(Array.from({ length: 10 }, () => givenTenant(db)))
    const results = await Promise.allSettled(
      Array.from({ length: 200 }, async (_, i) => {
        const tenantId = tenants[i % 10] ?? tenants[0]
        if (!tenantId) throw new Error('no tenants')
        if (i % 4 > 0) return create(tenantId)
        const { placed } = await db.admission.admitJob(tenantId, spec())
        if (!placed) throw new Error('queued')
        return placed
      }),
    )
    await db.admission.placeQueued(100)
    const [used] = await query<{ used: string }>(postgres.url, 'SELECT sum(used_sandboxes) AS used FROM nodes')
    expect(Number(used?.used)).toBe(50)
    for (const one of results)
      if (one.status === 'rejected') expect(String(one.reason)).toMatch(/no_capacity|ready nodes|queued|all room/)
  })
})

describe('a life', () => {
  test('is told by events in order, and its books are right throughout', async () => {
    const box = await scene()
    await box.report({ state: 'creating', phase: 'starting' })
    await box.report()
    await box.ask({ kind: 'pause' })
    await box.report()
    await box.ask({ kind: 'resume' })
    await box.report()
    await box.ask({ kind: 'stop' })
    expect(await box.use()).toMatchObject({ cpus: 0.1 })
    await box.report()
    expect(await box.use()).toMatchObject({ sandboxes: 1, cpus: 0, memoryBytes: 0, diskBytes: 16 * MiB })
    await box.ask({ kind: 'start' })
    await box.report()
    await box.ask({ kind: 'restart' })
    await box.report()
    await box.ask({ kind: 'delete', force: true })
    expect(await box.use()).toMatchObject({ sandboxes: 0, cpus: 0, memoryBytes: 0, diskBytes: 0 })
    expect(await bookkeepingErrors(postgres.url)).toEqual([])
    await box.report()
    expect(await box.events()).toEqual([
      ...['sandbox.created', 'sandbox.running', 'sandbox.paused', 'sandbox.running', 'sandbox.stopped'],
      ...['sandbox.creating', 'sandbox.running', 'sandbox.creating', 'sandbox.running', 'sandbox.deleted'],
    ])
    expect(await box.get()).toMatchObject({ state: 'deleted', phase: 'removed', run: 3 })
    const numbers = (await db.events.list(box.tenantId, 0, {}, 100)).map(({ id }) => Number(id))
    expect(numbers).toEqual(numbers.map((_, i) => i + 1))
    expect(await db.events.last(box.tenantId)).toBe(numbers.length)
  })

  test('that ends by itself frees cpu and memory once, and is then wanted stopped', async () => {
    const box = await running()
    const at = clock.now().toISOString()
    const reason = { code: 'exit_nonzero', message: 'exit code 3', at, by: 'sandbox' } as const
    const end = {
      run: 1,
      restart: 0,
      reason,
      exitCode: 3,
      signal: null,
      oomKilled: false,
      startedAt: at,
      endedAt: at,
      usage: null,
    }
    const over: Partial<SandboxReport> = { state: 'stopped', phase: 'stopped', reason, endedAt: at, ends: [end] }
    const first = await box.report(over)
    expect(first).toMatchObject({
      changed: true,
      freed: true,
      command: { command: { desired: 'stopped', generation: 2 } },
    })
    await box.report(over)
    expect(await box.get()).toMatchObject({
      state: 'stopped',
      desired: 'stopped',
      lastEnd: end,
      reason: { code: 'exit_nonzero' },
    })
    expect(await db.sandboxes.ends({ tenantId: box.tenantId }, box.id, 10)).toEqual([end])
    expect(await box.events()).toEqual(['sandbox.created', 'sandbox.running', 'sandbox.ended', 'sandbox.stopped'])
  })

  test('reports that were overtaken, repeated, or come from another node change nothing', async () => {
    const box = await running()
    const before = await box.get()
    const stale = reportOf(box.command, 1, { state: 'stopped', phase: 'stopped' })
    expect(await db.sandboxes.recordReport(box.nodeId, stale)).toBeUndefined()
    const foreign = reportOf(box.command, 9, { state: 'stopped', phase: 'stopped' })
    expect(await db.sandboxes.recordReport(await givenNode(db), foreign)).toBeUndefined()
    expect(await box.get()).toEqual(before)
  })

  test('the end of a run that a new one was asked for does not look like the end of the new one', async () => {
    const box = await running()
    const { command } = box
    await box.ask({ kind: 'restart' })
    await db.sandboxes.recordReport(box.nodeId, reportOf(command, 2, { state: 'stopped', phase: 'stopped' }))
    expect(await box.get()).toMatchObject({ state: 'creating', desired: 'running', phase: 'stopped' })
    expect(await box.use()).toMatchObject({ cpus: 0.1 })
  })

  test('limits change the reservation by their difference, within quota and node', async () => {
    const box = await running()
    await query(postgres.url, 'UPDATE nodes SET capacity_memory_bytes = $1', [64 * MiB])
    await box.ask({ kind: 'update', limits: { memoryBytes: 48 * MiB, cpus: 0.5 } })
    expect(await box.use()).toMatchObject({ cpus: 0.5, memoryBytes: 48 * MiB })
    const larger = { kind: 'update', limits: { memoryBytes: 65 * MiB } } as const
    await expect(box.ask(larger)).rejects.toMatchObject({ code: 'no_capacity' })
    await db.tenants.update(box.tenantId, { quota: { memoryBytes: 60 * MiB } })
    await expect(box.ask(larger)).rejects.toMatchObject({
      code: 'quota_exceeded',
      data: { used: 48 * MiB, asked: 17 * MiB },
    })
    await box.ask({ kind: 'update', limits: { memoryBytes: 8 * MiB } })
    expect(await box.get()).toMatchObject({ spec: { limits: { memoryBytes: 8 * MiB, cpus: 0.5 } } })
  })

  test('a start takes its room again, and is refused where others have it', async () => {
    const box = await running()
    await box.ask({ kind: 'stop' })
    await box.report()
    await query(postgres.url, 'UPDATE nodes SET capacity_sandboxes = 0')
    await expect(box.ask({ kind: 'start' })).rejects.toMatchObject({ code: 'no_capacity' })
    await query(postgres.url, 'UPDATE nodes SET capacity_sandboxes = 1')
    await db.tenants.update(box.tenantId, { quota: { cpus: 0.05 } })
    await expect(box.ask({ kind: 'start' })).rejects.toMatchObject({ code: 'quota_exceeded' })
    await db.tenants.update(box.tenantId, { quota: { cpus: 1 } })
    await Promise.allSettled(Array.from({ length: 30 }, () => box.ask({ kind: 'start' })))
    expect(await box.get()).toMatchObject({ state: 'creating', run: 2 })
  })

  test('an update of another version than the one meant changes nothing', async () => {
    const box = await running()
    const { version } = await box.get()
    const update = (label: string, ifVersion: number) =>
      db.sandboxes.request({ tenantId: box.tenantId }, box.id, { kind: 'update', labels: { label } }, { by, ifVersion })
    const results = await Promise.allSettled(Array.from({ length: 20 }, (_, i) => update(`${i}`, version)))
    expect(results.filter((one) => one.status === 'fulfilled')).toHaveLength(1)
    await expect(update('x', version)).rejects.toMatchObject({
      code: 'version_mismatch',
      data: { version: version + 1 },
    })
  })

  test('names change, and stay unique', async () => {
    const box = await running({ name: 'a' })
    await create(box.tenantId, { name: 'b' })
    await expect(box.ask({ kind: 'update', name: 'b' })).rejects.toMatchObject({ code: 'name_taken' })
    await box.ask({ kind: 'update', name: 'c' })
    expect((await db.sandboxes.get({ tenantId: box.tenantId }, 'c')).id).toBe(box.id)
    await expect(db.sandboxes.get({ tenantId: box.tenantId }, 'a')).rejects.toMatchObject({ code: 'sandbox_not_found' })
  })

  test('many requests and reports at once neither deadlock nor leave the books wrong', async () => {
    const tenantId = await givenTenant(db)
    const nodes = [await givenNode(db), await givenNode(db)]
    const made = await Promise.all(Array.from({ length: 8 }, () => create(tenantId)))
    const kinds = ['start', 'stop', 'restart', 'pause', 'resume', 'kill'] as const
    let sequence = 0
    const work = Array.from({ length: 200 }, async (_, i) => {
      const box = made[i % 8]
      if (!box) throw new Error('none')
      const access = { tenantId }
      if (i % 2 > 0) {
        const asked = { kind: kinds[i % 6] ?? 'stop' }
        return db.sandboxes.request(access, box.sandbox.id, asked, { by })
      }
      const { desired, run } = await db.sandboxes.get(access, box.sandbox.id)
      const told = reportOf(commandOf(box), ++sequence, {
        run,
        ...(desired !== 'deleted' && { state: desired, phase: desired }),
      })
      return db.sandboxes.recordReport(box.sandbox.nodeId ?? nodes[0] ?? raise(), told)
    })
    for (const one of await Promise.allSettled(work))
      if (one.status === 'rejected') expect(one.reason).toMatchObject({ code: 'wrong_state' })
  })
})

function raise(): never {
  throw new Error('no node')
}

describe('lists', () => {
  test('go by state, label and age, page by page, and show deleted ones only when asked', async () => {
    const tenantId = await givenTenant(db)
    await givenNode(db)
    const made: ChangedSandbox[] = []
    for (let i = 0; i < 5; i++) made.push(await create(tenantId, { labels: { odd: String(i % 2), [`n${i}`]: '' } }))
    const ids = made.map(({ sandbox }) => sandbox.id)
    await db.sandboxes.request({ tenantId }, ids[0] ?? '', { kind: 'delete', force: true }, { by })
    const list = async (filter: Parameters<Database['sandboxes']['list']>[1], page = { limit: 50 }) =>
      (await db.sandboxes.list({ tenantId }, filter, page)).items.map(({ id }) => ids.indexOf(id))
    expect(await list({})).toEqual([4, 3, 2, 1])
    expect(await list({ state: ['deleted'] })).toEqual([0])
    expect(await list({ state: ['deleted', 'creating'] })).toEqual([4, 3, 2, 1, 0])
    expect(await list({ label: ['odd=1'] })).toEqual([3, 1])
    expect(await list({ label: ['odd=1', 'n3'] })).toEqual([3])
    const first = await db.sandboxes.list({ tenantId }, {}, { limit: 3 })
    expect(first.next).toBe(ids[2])
    expect((await db.sandboxes.list({ tenantId }, {}, { limit: 3, after: ids[2] })).items.map(({ id }) => id)).toEqual([
      ids[1],
    ])
  })

  test('and everything else show nothing of another tenant', async () => {
    const box = await running({ name: 'mine' })
    const other = { tenantId: await givenTenant(db) }
    expect((await db.sandboxes.list(other, {}, { limit: 10 })).items).toEqual([])
    for (const ref of [box.id, 'mine']) {
      await expect(db.sandboxes.get(other, ref)).rejects.toMatchObject({ code: 'sandbox_not_found' })
      await expect(db.sandboxes.locate(other, ref)).rejects.toMatchObject({ code: 'sandbox_not_found' })
      await expect(db.sandboxes.ends(other, ref, 1)).rejects.toMatchObject({ code: 'sandbox_not_found' })
      await expect(db.sandboxes.request(other, ref, { kind: 'stop' }, { by })).rejects.toMatchObject({
        code: 'sandbox_not_found',
      })
    }
    expect(await db.events.list(other.tenantId, 0, {}, 10)).toEqual([])
    expect((await db.sandboxes.locate('operator', box.id)).nodeId).toBe(box.nodeId)
  })
})

test('prune deletes what has ended, by label and age, and nothing that runs', async () => {
  const box = await running({ labels: { job: 'a' } })
  const stopped = new Scene(box.tenantId, box.nodeId, commandOf(await create(box.tenantId, { labels: { job: 'a' } })))
  await stopped.ask({ kind: 'stop' })
  await stopped.report()
  const prune = (filter: object) => db.sandboxes.prune(box.tenantId, filter, by)
  expect(await prune({ label: ['job=b'] })).toEqual([])
  expect(await prune({ endedBefore: new Date(clock.now().getTime() - 1) })).toEqual([])
  const done = await prune({ label: ['job'], endedBefore: clock.now() })
  expect(done.map(({ sandbox }) => sandbox.id)).toEqual([stopped.id])
  expect(done[0]?.command?.command).toMatchObject({ desired: 'deleted' })
  expect((await box.get()).state).toBe('running')
})

describe('what is overdue', () => {
  const beat = (box: Scene, listed: boolean) =>
    db.nodes.heartbeat(box.nodeId, standing({}, [], listed ? [box.command] : []))

  test('an unacknowledged command is sent again, until a heartbeat or a report shows that it has arrived', async () => {
    const box = await scene()
    clock.advance(1999)
    expect((await db.sandboxes.reconcile(clock.now())).resend).toEqual([])
    clock.advance(1)
    expect((await db.sandboxes.reconcile(clock.now())).resend).toEqual([{ nodeId: box.nodeId, command: box.command }])
    expect((await db.sandboxes.reconcile(clock.now())).resend).toEqual([])
    await beat(box, true)
    clock.advance(5000)
    expect((await db.sandboxes.reconcile(clock.now())).resend).toEqual([])
  })

  test('one that its node no longer lists is lost, and frees what it held; its end is told once', async () => {
    const box = await running()
    await beat(box, false)
    clock.advance(5999)
    await db.sandboxes.reconcile(clock.now())
    expect((await box.get()).state).toBe('running')
    clock.advance(1)
    const { changed } = await db.sandboxes.reconcile(clock.now())
    expect(changed).toEqual([{ sandboxId: box.id, tenantId: box.tenantId, told: true }])
    expect(await box.get()).toMatchObject({ state: 'lost', desired: 'stopped', reason: { code: 'sandbox_lost' } })
    expect(await box.use()).toMatchObject({ sandboxes: 1, cpus: 0, memoryBytes: 0 })
    clock.advance(10_000)
    expect((await db.sandboxes.reconcile(clock.now())).changed).toEqual([])
  })

  test('of a silent node all are lost for as long as it is silent', async () => {
    const box = await running()
    const stopped = new Scene(box.tenantId, box.nodeId, commandOf(await create(box.tenantId, {}, false)))
    await stopped.report()
    await query(postgres.url, `UPDATE nodes SET state = 'lost'`)
    await db.sandboxes.reconcile(clock.now())
    expect([(await box.get()).state, (await stopped.get()).state]).toEqual(['lost', 'lost'])
    expect(await box.use()).toMatchObject({ cpus: 0.1 })
    const { changed } = await db.nodes.heartbeat(box.nodeId, standing({}, [], [box.command, stopped.command]))
    expect(changed).toHaveLength(2)
    expect([(await box.get()).state, (await stopped.get()).state]).toEqual(['running', 'stopped'])
    expect(await box.events()).toContain('sandbox.lost')
  })

  test('of a removed node all are lost for good, and hold nothing there', async () => {
    const box = await running()
    await db.nodes.delete(box.nodeId)
    expect(await box.get()).toMatchObject({ state: 'lost', nodeId: null, reason: { code: 'node_lost' } })
    expect(await box.use()).toMatchObject({ sandboxes: 1, cpus: 0 })
    await box.ask({ kind: 'delete', force: false })
    expect(await box.get()).toMatchObject({ state: 'deleted', phase: 'removed' })
  })

  test('what a node lists and is not to have it must delete', async () => {
    const box = await running()
    const { id } = (await create(await givenTenant(db))).sandbox
    await query(postgres.url, `UPDATE sandboxes SET node_id = 'nod_other' WHERE id = $1`, [id])
    const said = standing({}, [], [box.command, { ...box.command, sandboxId: id }])
    expect((await db.nodes.heartbeat(box.nodeId, said)).unwantedSandboxes).toEqual([id])
    await query(postgres.url, 'UPDATE sandboxes SET node_id = $1 WHERE id = $2', [box.nodeId, id])
  })

  test('a start that does not get on is given up, and frees what it holds when the node has cleaned up', async () => {
    const box = await scene()
    await box.report({ state: 'creating', phase: 'rootfs' })
    clock.advance(5 * MINUTE)
    const { commands } = await db.sandboxes.reconcile(clock.now())
    expect(commands[0]?.command).toMatchObject({ desired: 'stopped', stop: { graceMs: 0 } })
    expect(await box.get()).toMatchObject({ state: 'failed', reason: { code: 'start_failed' } })
    expect(await box.use()).toMatchObject({ cpus: 0.1 })
    await box.report({ generation: 2, state: 'stopped', phase: 'stopped' })
    expect(await box.get()).toMatchObject({ state: 'failed', reason: { code: 'start_failed' } })
    expect(await box.use()).toMatchObject({ cpus: 0 })
  })

  test('a stop that takes too long is repeated without grace', async () => {
    const box = await running({ stopGraceMs: 10_000 })
    await box.ask({ kind: 'stop' })
    await beat(box, true)
    clock.advance(70_000)
    const { commands } = await db.sandboxes.reconcile(clock.now())
    expect(commands[0]?.command).toMatchObject({
      generation: 3,
      stop: { graceMs: 0, reason: { code: 'requested', by } },
    })
  })

  test('deleteAfterMs warns, then deletes', async () => {
    const box = await running({ clocks: { deleteAfterMs: '10m' } })
    await box.ask({ kind: 'stop' })
    await box.report({ endedAt: clock.now().toISOString() })
    expect((await box.get()).endsAt?.clock).toBe('deleteAfterMs')
    clock.advance(9 * MINUTE)
    for (let i = 0; i < 3; i++) await db.sandboxes.reconcile(clock.now())
    expect((await box.events()).filter((type) => type === 'sandbox.warning')).toHaveLength(1)
    clock.advance(MINUTE)
    await db.sandboxes.reconcile(clock.now())
    expect(await box.get()).toMatchObject({ state: 'deleted', reason: { code: 'retention_over', by: 'api' } })
  })

  test('a node that does not remove what was deleted is told again and again', async () => {
    const box = await running()
    await box.ask({ kind: 'delete', force: true })
    await beat(box, true)
    clock.advance(30_000)
    expect((await db.sandboxes.reconcile(clock.now())).resend).toHaveLength(1)
    await box.report({ state: 'deleted', phase: 'removed' })
    clock.advance(60_000)
    expect((await db.sandboxes.reconcile(clock.now())).resend).toEqual([])
  })

  test('records of deleted ones and events go after 30 days; ends stay', async () => {
    const box = await running()
    await box.ask({ kind: 'delete', force: true })
    clock.advance(30 * DAY)
    expect(await db.sandboxes.expire(10)).toBe(0)
    await box.report()
    expect(await db.sandboxes.expire(10)).toBe(1)
    await expect(box.get()).rejects.toMatchObject({ code: 'sandbox_not_found' })
    const last = await db.events.last(box.tenantId)
    expect(await db.events.expire(2)).toBe(2)
    expect(await db.events.expire(10)).toBe(last - 2)
    await query(postgres.url, 'UPDATE tenant_usage SET event_number = 0')
  })
})
