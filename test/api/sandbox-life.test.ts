// Real sandboxes, from request to process: what the node does with what is asked.
import { readFileSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { cgroupLayout, openCgroups } from '@berth/host'
import { beforeAll, describe, expect, test } from '@jest/globals'
import { type Answer, stack, type TestTenant, tenant, until } from '../support/berth.js'

let t: TestTenant
beforeAll(async () => {
  t = await tenant({ sandboxes: 100, cpus: 100, memoryBytes: 2 ** 44 })
})

const small = { limits: { memoryBytes: '64m', diskBytes: '64m', cpus: 0.5 } }
const sh = (script: string) => ({ command: ['sh', '-c', script] })

async function made(fields: object = {}, query = '?wait=running&timeoutMs=60s'): Promise<Answer['body']> {
  const answer = await t.post(`/v1/sandboxes${query}`, { ...small, ...fields })
  if (answer.status !== 201) throw new Error(`create: ${JSON.stringify(answer.body)}`)
  return answer.body
}

const path = (id: string, rest = '') => `/v1/sandboxes/${id}${rest}`
const gone = (id: string) => t.delete(path(id, '?force=true'))
const ends = async (id: string) => (await t.get(path(id, '/ends'))).body.items
const reached = async (id: string, state: string) =>
  (await t.get(path(id, `?wait=${state}&timeoutMs=60s`))).body as Answer['body']

test('runs, pauses, goes on, restarts, stops, starts again and goes', async () => {
  const { id, state, phases } = await made()
  expect(state).toBe('running')
  expect(phases.readyMs).toBeGreaterThan(0)
  const step = async (action: string, to: string) =>
    expect((await t.post(path(id, `/${action}?wait=${to}&timeoutMs=60s`), {})).body).toMatchObject({ state: to })
  await step('pause', 'paused')
  await step('resume', 'running')
  await step('restart', 'running')
  await step('stop', 'stopped')
  expect((await t.get('/v1/usage')).body.now).toMatchObject({ sandboxes: 1, cpus: 0 })
  await step('start', 'running')
  expect((await t.get(path(id))).body).toMatchObject({ run: 3, restarts: 0 })
  expect((await ends(id)).map(({ reason }: Answer['body']) => reason.code)).toEqual(['requested', 'requested'])
  expect((await gone(id)).body.state).toBe('deleted')
  await until('its node has removed it', async () =>
    (await t.get(path(id))).body.phase === 'removed' ? true : undefined,
  )
})

describe('the main process', () => {
  test.each<[string, object, object, object]>([
    ['ends well', sh('exit 0'), { state: 'stopped', reason: { code: 'completed' } }, { exitCode: 0 }],
    ['ends badly', sh('exit 3'), { state: 'stopped', reason: { code: 'exit_nonzero' } }, { exitCode: 3 }],
    ['is not there', { command: ['no-such-program'] }, { reason: { code: 'command_not_found' } }, { exitCode: 127 }],
    [
      'takes too much memory',
      { image: 'python', command: ['python3', '-c', 'b = bytearray(10**9)'] },
      { reason: { code: 'oom_killed' } },
      { oomKilled: true },
    ],
  ])('%s', async (_, fields, sandbox, end) => {
    const { id } = await made(fields, '')
    await until('it has ended', async () =>
      ['stopped', 'failed'].includes((await t.get(path(id))).body.state) ? true : undefined,
    )
    const seen = (await t.get(path(id))).body
    expect(seen).toMatchObject({ ...sandbox, desired: 'stopped' })
    expect(seen.lastEnd).toMatchObject(end)
    expect(await ends(id)).toEqual([seen.lastEnd])
    await gone(id)
  })

  test('gets its stop signal, and SIGKILL after the grace', async () => {
    const polite = await made(sh('trap "exit 7" TERM; while :; do sleep 0.1; done'))
    await t.post(path(polite.id, '/stop?wait=stopped&timeoutMs=60s'))
    expect((await reached(polite.id, 'stopped')).lastEnd).toMatchObject({ exitCode: 7, reason: { code: 'requested' } })
    const deaf = await made(sh('trap "" TERM; while :; do sleep 0.1; done'))
    await t.post(path(deaf.id, '/stop?wait=stopped&timeoutMs=60s'), { graceMs: '200ms' })
    expect((await reached(deaf.id, 'stopped')).lastEnd).toMatchObject({ signal: 'SIGKILL' })
    for (const { id } of [polite, deaf]) await gone(id)
  })

  test('gets any other signal, and is killed by SIGKILL whatever its restart policy', async () => {
    const box = await made({ ...sh('trap "exit 9" USR1; while :; do sleep 0.1; done'), restart: { policy: 'always' } })
    expect((await t.post(path(box.id, '/kill'), { signal: 'USR1' })).status).toBe(202)
    await until('it was started again', async () => ((await t.get(path(box.id))).body.restarts > 0 ? true : undefined))
    expect((await ends(box.id)).at(-1)).toMatchObject({ run: 1, restart: 0, exitCode: 9 })
    await t.post(path(box.id, '/kill'))
    expect(await reached(box.id, 'stopped')).toMatchObject({ state: 'stopped', reason: { code: 'killed' } })
    await gone(box.id)
  })
})

test('on-failure starts again as often as it says, and then has failed', async () => {
  const { id } = await made({ ...sh('exit 4'), restart: { policy: 'on-failure', maxRetries: 2 } }, '')
  const box = await reached(id, 'failed')
  expect(box).toMatchObject({ state: 'failed', desired: 'stopped', restarts: 2 })
  expect((await ends(id)).map(({ restart, exitCode }: Answer['body']) => [restart, exitCode])).toEqual([
    ...[
      [2, 4],
      [1, 4],
      [0, 4],
    ],
  ])
  const events = (await t.get(`/v1/events?subject=${id}&type=sandbox.restarted`)).body.items
  expect(events).toHaveLength(2)
  await gone(id)
}, 120_000)

describe('clocks', () => {
  test.each<[string, object, string, string]>([
    ['maxLifetimeMs', { maxLifetimeMs: '2s' }, '', 'lifetime_over'],
    ['idleTimeoutMs', { idleTimeoutMs: '2s' }, '', 'idle'],
    ['pausedForMs', { pausedForMs: '2s' }, '/pause?wait=paused', 'paused_too_long'],
  ])('%s stops it, with a warning before', async (clock, clocks, action, code) => {
    const { id } = await made({ clocks })
    if (action) await t.post(path(id, action))
    expect(await reached(id, 'stopped')).toMatchObject({ state: 'stopped', reason: { code, by: 'agent' } })
    const warnings = (await t.get(`/v1/events?subject=${id}&type=sandbox.warning`)).body.items
    expect(warnings.map(({ data }: Answer['body']) => data.clock)).toEqual([clock])
    await gone(id)
  })
})

test('limits change while it runs', async () => {
  const { id } = await made()
  const { body } = await t.patch(path(id), { limits: { memoryBytes: '128m' } })
  expect(body.spec.limits).toMatchObject({ memoryBytes: 128 * 2 ** 20, cpus: 0.5 })
  expect((await t.get('/v1/usage')).body.now.memoryBytes).toBe(128 * 2 ** 20)
  await gone(id)
})

test('a limit is unset by null, and the kernel has its default again', async () => {
  const { id } = await made()
  const { id: plain } = await made()
  const cgroups = openCgroups(cgroupLayout())
  const v2 = cgroupLayout().kind === 'v2'
  const files = [
    ['cpu', v2 ? 'cpu.weight' : 'cpu.shares'],
    ['cpu', v2 ? 'cpu.max' : 'cpu.cfs_period_us'],
    ['memory', v2 ? 'memory.low' : 'memory.soft_limit_in_bytes'],
    // On a machine with one CPU there is no other set.
    ...(availableParallelism() > 1 ? [['cpuset', v2 ? 'cpuset.cpus.effective' : 'cpuset.cpus'] as const] : []),
  ] as const
  const kernel = (box: string) => {
    const paths = cgroups.paths(`${stack().cgroupParent}/${t.id}/${box}`)
    return files.map(([controller, file]) => readFileSync(`${paths.get(controller)}/${file}`, 'utf8').trim())
  }
  const cpus = async () =>
    (await t.post(path(id, '/execs?wait=ended&output=true'), { command: ['nproc'] })).body.output.stdout.data
  const [before, all] = [kernel(plain), await cpus()]
  const limits = { cpuShares: 77, cpuPeriodUs: 50_000, memoryReservationBytes: '16m', cpuset: '0' }
  expect((await t.patch(path(id), { limits })).body.spec.limits).toMatchObject({ cpuShares: 77, cpuset: '0' })
  await until('the kernel has them all', async () =>
    kernel(id).every((value, i) => value !== before[i]) ? true : undefined,
  )
  expect(await cpus()).toBe('1\n')
  const unset = Object.fromEntries(Object.keys(limits).map((name) => [name, null]))
  const { body } = await t.patch(path(id), { limits: unset })
  for (const name of Object.keys(limits)) expect(body.spec.limits).not.toHaveProperty(name)
  await until('the kernel has the defaults', async () => {
    const now = kernel(id)
    if (now.join() !== before.join()) throw new Error(now.join())
    return true
  })
  expect(await cpus()).toBe(all)
  const refused = await t.patch(path(id), { limits: { ...unset, memoryBytes: null } })
  expect(refused).toMatchObject({ status: 400, body: { code: 'invalid_request' } })
  expect(refused.body.errors).toEqual([{ field: 'limits.memoryBytes', message: 'must not be null' }])
  for (const box of [id, plain]) await gone(box)
})

test('twenty at once come to run, and go', async () => {
  const limits = { memoryBytes: '32m', diskBytes: '32m', cpus: 0.05 }
  const all = await Promise.all(Array.from({ length: 20 }, () => made({ limits })))
  for (const { state } of all) expect(state).toBe('running')
  await Promise.all(all.map(({ id }) => gone(id)))
  for (const { id } of all)
    await until(
      'its node has removed it',
      async () => ((await t.get(path(id))).body.phase === 'removed' ? true : undefined),
      60_000,
    )
  expect((await t.get('/v1/usage')).body.now).toMatchObject({ sandboxes: 0, memoryBytes: 0, diskBytes: 0 })
}, 180_000)
