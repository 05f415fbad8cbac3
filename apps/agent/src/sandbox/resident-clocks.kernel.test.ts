// The clocks of a sandbox, kept by its node, and the hidden container of one that is stopped.
import type { SandboxId } from '@berth/contracts'
import { afterAll, afterEach, beforeAll, describe, expect, test } from '@jest/globals'
import { applySandbox, nothing, type TestNode } from './node.fixture.js'
import { holdings } from './recovery.js'
import { loop, ResidentNode, sh } from './residents.fixture.js'

let on: ResidentNode
let node: TestNode
beforeAll(async () => {
  on = await ResidentNode.open()
  node = on.node
})
afterEach(() => on.clear())
afterAll(async () => {
  expect(await on.destroy()).toEqual(nothing)
})

const warnings = (id: SandboxId) =>
  node.reports.flatMap(({ sandboxId, notes }) =>
    sandboxId === id ? notes.flatMap(({ about }) => (about.kind === 'warning' ? [about.clock] : [])) : [],
  )

describe('a clock', () => {
  test('lifetime: stops the sandbox, after a warning, also while the API is away', async () => {
    node.apiAway = true
    on.tape.attached.length = 0
    const command = await node.up({ ...sh(loop), clocks: { maxLifetimeMs: 1500 }, restart: { policy: 'always' } })
    const id = command.sandboxId
    expect(node.told(id)?.endsAt).toMatchObject({ clock: 'maxLifetimeMs' })
    const report = await on.stopped(id)
    expect(report).toMatchObject({ reason: { code: 'lifetime_over', by: 'agent' }, restarts: 0, endsAt: null })
    expect(warnings(id)).toContain('maxLifetimeMs')
    expect(on.tape.attached).toContain('warn maxLifetimeMs')
    expect(await on.end(id)).toMatchObject({ reason: { code: 'lifetime_over' } })
    await node.become(command, 'running', { run: 2 })
  })

  test('idle: counts from the last activity, and stands still while there is any', async () => {
    const command = await node.up({ ...sh(loop), clocks: { idleTimeoutMs: 2000 } })
    const live = node.residents.get(command.sandboxId)
    const leave = live?.occupy()
    await new Promise((resolve) => setTimeout(resolve, 2500))
    expect(live?.state).toBe('running')
    leave?.()
    leave?.()
    const left = Date.now()
    const { endedAt } = await on.stopped(command.sandboxId)
    expect(Date.parse(endedAt ?? '')).toBeGreaterThanOrEqual(left + 2000)
    expect((await on.end(command.sandboxId)).reason.code).toBe('idle')
  })

  test('idle: a touch begins it anew, and is told', async () => {
    const { sandboxId: id } = await node.up({ ...sh(loop), clocks: { idleTimeoutMs: 60_000 } })
    const before = Date.parse(node.residents.report(id)?.endsAt?.at ?? '')
    await new Promise((resolve) => setTimeout(resolve, 20))
    node.residents.get(id)?.touch()
    expect(Date.parse(node.residents.report(id)?.endsAt?.at ?? '')).toBeGreaterThan(before)
    await node.reported(id, ({ lastActivityAt }) => lastActivityAt !== null)
  })

  test('pause: stops what is paused for too long; the idle clock stands still meanwhile', async () => {
    const clocks = { pausedForMs: 1500, idleTimeoutMs: 1000 }
    const command = await node.up({ ...sh(loop), clocks }, { desired: 'running' })
    const paused = await node.become(command, 'paused')
    expect(node.told(command.sandboxId)?.endsAt?.clock).toBe('pausedForMs')
    await on.stopped(command.sandboxId)
    expect((await on.end(command.sandboxId)).reason.code).toBe('paused_too_long')
    expect(paused.run).toBe(1)
  })

  test('that is set anew counts from then; one that is taken away ends nothing', async () => {
    const command = await node.up({ ...sh(loop), clocks: { maxLifetimeMs: 2000 } })
    const clocksFrom = new Date(Date.now() + 600_000).toISOString()
    const extended = await node.want(command, { clocksFrom })
    await on.until(
      'extended',
      () => Date.parse(node.residents.report(command.sandboxId)?.endsAt?.at ?? '') > Date.now() + 500_000,
    )
    const spec = { ...command.spec, clocks: { ...command.spec.clocks, maxLifetimeMs: null } }
    await node.want(extended, { spec })
    await on.until('taken away', () => node.residents.report(command.sandboxId)?.endsAt === null)
  })
})

describe('a stopped sandbox', () => {
  const off = async () => {
    const command = await node.up(sh(`echo kept > /file; ${loop}`))
    return node.become(command, 'stopped', { stop: { ...command.stop, graceMs: 0 } })
  }

  test('lends processes on its files, and is told as stopped all the time', async () => {
    const { sandboxId: id } = await off()
    const since = node.reports.length
    expect(await node.inside(id, 'cat /file; grep -l sleep /proc/[0-9]*/comm | wc -l')).toEqual({
      code: 0,
      out: 'kept\n0\n',
    })
    expect(node.residents.get(id)).toMatchObject({ state: 'stopped', processes: undefined })
    expect(node.reports.slice(since).every(({ state }) => state === 'stopped')).toBe(true)
  })

  test('keeps the container for those that come together, and gives it back some seconds after the last', async () => {
    const { sandboxId: id } = await off()
    const leases = await Promise.all([1, 2, 3, 4].map(() => node.residents.lease(id)))
    expect(new Set(leases.map(({ processes }) => processes)).size).toBe(1)
    for (const lease of leases) await lease[Symbol.asyncDispose]()
    for (const lease of leases) await lease[Symbol.asyncDispose]()
    expect((await holdings(node.shop)).containers).toEqual([id])
    await on.until('given back', async () => (await holdings(node.shop)).containers.length === 0)
  })

  test('many lend at once no more than there are places for; the others wait for one', async () => {
    const commands = Array.from({ length: 40 }, () =>
      applySandbox({ limits: { memoryBytes: '16m' } }, { desired: 'stopped', run: 0 }),
    )
    await Promise.all(commands.map((command) => node.residents.apply(command)))
    let most = 0
    const looking = setInterval(() => {
      most = Math.max(most, node.shop.runtime.list().length)
    }, 5)
    const all = await Promise.all(commands.map(({ sandboxId }) => node.inside(sandboxId, 'echo here')))
    clearInterval(looking)
    expect(new Set(all.map(({ out }) => out))).toEqual(new Set(['here\n']))
    expect(most).toBeLessThanOrEqual(32)
  }, 120_000)

  test('can be started while it lends: who holds a lease loses its processes', async () => {
    const command = await off()
    const lease = await node.residents.lease(command.sandboxId)
    await node.become(command, 'running', { run: 2 })
    expect(await lease.processes.closed).not.toBe('pending')
    await lease[Symbol.asyncDispose]()
    expect((await node.inside(command.sandboxId, 'cat /file')).out).toBe('kept\n')
  })

  test('can be deleted while it lends', async () => {
    const command = await off()
    const lease = await node.residents.lease(command.sandboxId)
    await node.become(command, 'deleted')
    await lease[Symbol.asyncDispose]()
    await expect(node.residents.lease(command.sandboxId)).rejects.toMatchObject({ code: 'sandbox_not_found' })
  })

  test('that cannot be had says why', async () => {
    const spec = { ...sh(loop), limits: { cpuset: '900' } }
    const command = applySandbox(spec)
    await node.residents.apply(command)
    await node.reported(command.sandboxId, ({ state }) => state === 'failed')
    await expect(node.residents.lease(command.sandboxId)).rejects.toMatchObject({
      code: 'unavailable',
      message: expect.stringContaining('cpuset names 900'),
    })
    await expect(node.residents.lease('sbx_00000000000000000000000000' as SandboxId)).rejects.toMatchObject({
      code: 'sandbox_not_found',
    })
  })

  test('that is on its way up is waited for', async () => {
    const command = applySandbox(sh(loop))
    await node.residents.apply(command)
    expect((await node.inside(command.sandboxId, 'echo here')).out).toBe('here\n')
  })
})
