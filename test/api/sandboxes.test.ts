// What the API promises about sandboxes, whatever nodes do: against a node that says what each test wants said.
import { type SandboxState, sandboxStates } from '@berth/contracts'
import { type SandboxRequestKind, sandboxLifecycle, sandboxRequests } from '@berth/domain'
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals'
import { type Answer, client, type TestTenant, tenant, until } from '../support/berth.js'
import { asWanted, FakeNode } from '../support/fake-node.js'

let node: FakeNode
let t: TestTenant
beforeAll(async () => {
  node = await FakeNode.start()
  t = await tenant({ sandboxes: 500, cpus: 500, memoryBytes: 2 ** 44, diskBytes: 2 ** 44 })
})
afterAll(async () => {
  await node?.[Symbol.asyncDispose]()
})

const small = { limits: { memoryBytes: '16m', diskBytes: '16m', cpus: 0.1 } }
const create = (fields: object = {}, query = '', api = t) =>
  api.post(`/v1/sandboxes${query}`, { image: node.image, ...small, ...fields })

/** Creates one that is expected to be made. */
async function made(fields: object = {}, query = '?wait=running', api = t): Promise<Answer['body']> {
  const answer = await create(fields, query, api)
  if (answer.status !== 201) throw new Error(`create: ${JSON.stringify(answer.body)}`)
  return answer.body
}

const path = (id: string, rest = '') => `/v1/sandboxes/${id}${rest}`

async function inState(state: SandboxState): Promise<string> {
  if (state === 'creating') {
    const { obeys } = node
    node.obeys = () => undefined
    const { id } = await made({}, '')
    await node.told(id)
    node.obeys = obeys
    return id
  }
  const { id } = await made()
  if (state === 'paused') await t.post(path(id, '/pause?wait=paused'))
  if (state === 'stopped') await t.post(path(id, '/stop?wait=stopped'))
  if (state === 'failed') await node.say(id, { state: 'failed', phase: 'stopped' })
  if (state === 'lost') await node.say(id, { state: 'deleted', phase: 'removed' })
  if (state === 'deleted') await t.delete(path(id, '?force=true'))
  expect((await t.get(path(id, `?wait=${state}`))).body.state).toBe(state)
  return id
}

const asks: Readonly<Record<SandboxRequestKind, (id: string) => Promise<Answer>>> = {
  start: (id) => t.post(path(id, '/start')),
  stop: (id) => t.post(path(id, '/stop')),
  kill: (id) => t.post(path(id, '/kill')),
  signal: (id) => t.post(path(id, '/kill'), { signal: 'HUP' }),
  restart: (id) => t.post(path(id, '/restart')),
  pause: (id) => t.post(path(id, '/pause')),
  resume: (id) => t.post(path(id, '/resume')),
  resize: (id) => t.patch(path(id), { limits: { cpus: 0.2 } }),
  edit: (id) => t.patch(path(id), { labels: { new: 'label' } }),
  delete: (id) => t.delete(path(id)),
  force_delete: (id) => t.delete(path(id, '?force=true')),
}

describe('every request in every state', () => {
  test.each(sandboxStates)(
    '%s',
    async (state) => {
      for (const request of sandboxRequests) {
        const id = await inState(state)
        const { status, body } = await asks[request](id)
        if (!sandboxLifecycle.allowed(state, request)) {
          expect({ request, status, body }).toMatchObject({
            request,
            status: 409,
            body: { code: 'wrong_state', state },
          })
          expect(body.allowedFrom).toEqual(sandboxLifecycle.allowedFrom(request))
        } else if (request === 'signal') {
          // There is nobody at the other end of this node's streams.
          expect({ request, status }).toEqual({ request, status: 502 })
        } else {
          const after = sandboxLifecycle.next(state, request)
          expect({ request, status, state: body.state }).toEqual({
            request,
            status: request === 'resize' || request === 'edit' ? 200 : 202,
            state: after,
          })
        }
      }
    },
    120_000,
  )
})

describe('a life', () => {
  test('goes from state to state as it is asked, and is told by events', async () => {
    const box = await made({ name: 'life', labels: { a: 'b' } })
    expect(box).toMatchObject({ state: 'running', desired: 'running', run: 1, name: 'life', nodeId: node.id })
    const step = async (action: string, state: string) =>
      expect((await t.post(path('life', `/${action}?wait=${state}`))).body).toMatchObject({ state })
    await step('pause', 'paused')
    await step('resume', 'running')
    await step('restart', 'running')
    await step('stop', 'stopped')
    await step('start', 'running')
    expect((await t.post(path('life', '/kill'))).status).toBe(202)
    await t.get(path('life', '?wait=stopped'))
    const gone = await t.delete(path('life'))
    expect([gone.status, gone.body.state]).toEqual([202, 'deleted'])
    expect((await t.get(path('life'))).status).toBe(404)
    await until('the node has removed it', async () =>
      (await t.get(path(box.id))).body.phase === 'removed' ? true : undefined,
    )
    const { body } = await t.get(`/v1/events?subject=${box.id}&limit=1000`)
    expect(body.items.map((event: { type: string }) => event.type)).toEqual([
      ...['sandbox.created', 'sandbox.running', 'sandbox.paused', 'sandbox.running', 'sandbox.creating'],
      ...['sandbox.running', 'sandbox.stopped', 'sandbox.creating', 'sandbox.running', 'sandbox.stopped'],
      'sandbox.deleted',
    ])
  })

  test('a process that ends is an end, with its record, and the sandbox stays stopped', async () => {
    const { id } = await made({ command: ['false'] })
    const at = new Date().toISOString()
    const reason = { code: 'exit_nonzero' as const, message: 'exit code 1', at, by: 'sandbox' }
    const end = { run: 1, restart: 0, reason, exitCode: 1, signal: null, oomKilled: false, startedAt: at, endedAt: at }
    await node.say(id, { state: 'stopped', phase: 'stopped', reason, endedAt: at, ends: [{ ...end, usage: null }] })
    const { body } = await t.get(path(id, '?wait=running&timeoutMs=60s'))
    expect(body).toMatchObject({
      state: 'stopped',
      desired: 'stopped',
      lastEnd: { exitCode: 1 },
      reason: { code: 'exit_nonzero' },
    })
    expect((await t.get(path(id, '/ends'))).body.items).toEqual([expect.objectContaining({ run: 1, exitCode: 1 })])
    expect(await node.told(id, 2)).toMatchObject({ desired: 'stopped' })
  })

  test('without a start it is made, stopped, and started later', async () => {
    const box = await made({}, '?start=false&wait=stopped')
    expect(box).toMatchObject({ state: 'stopped', run: 0, startedAt: null })
    expect((await t.post(path(box.id, '/start?wait=running'))).body).toMatchObject({ state: 'running', run: 1 })
  })

  test('deleteAfterMs deletes what has ended', async () => {
    const { id } = await made({ clocks: { deleteAfterMs: '1s' } })
    const stopped = await t.post(path(id, '/stop?wait=stopped'))
    expect(stopped.body.endsAt.clock).toBe('deleteAfterMs')
    expect((await t.get(path(id, '?wait=deleted&timeoutMs=60s'))).body).toMatchObject({
      state: 'deleted',
      reason: { code: 'retention_over', by: 'api' },
    })
  })
})

describe('waiting', () => {
  test('answers when the state is there, whoever brings it about', async () => {
    const { id } = await made()
    const waits = Array.from({ length: 50 }, () => t.get(path(id, '?wait=stopped&timeoutMs=5m')))
    await t.post(path(id, '/stop'))
    for (const { body } of await Promise.all(waits)) expect(body.state).toBe('stopped')
  })

  test('ends when the state cannot come any more, and when its time is over', async () => {
    const { id } = await made()
    const paused = t.get(path(id, '?wait=failed&timeoutMs=5m'))
    await t.delete(path(id, '?force=true'))
    expect((await paused).body.state).toBe('deleted')
    const other = await made()
    expect((await t.get(path(other.id, '?wait=paused&timeoutMs=5m'))).body.state).toBe('running')
    expect((await t.get(path(other.id, '?wait=stopped&timeoutMs=200ms'))).body.state).toBe('running')
  })

  test('of a restart means the new run', async () => {
    const { id } = await made()
    const { obeys } = node
    node.obeys = () => undefined
    const restarted = t.post(path(id, '/restart?wait=running&timeoutMs=5m'))
    await node.told(id, 2)
    await node.say(id, { run: 1, state: 'stopped', phase: 'stopped' })
    expect((await t.get(path(id))).body).toMatchObject({ state: 'creating', run: 2 })
    node.obeys = obeys
    await node.say(id)
    expect((await restarted).body).toMatchObject({ state: 'running', run: 2 })
  })

  test('ends with its key', async () => {
    const { id } = await made()
    const key = (await t.post('/v1/keys', { name: 'short' })).body
    const waiting = client(key.secret).get(path(id, '?wait=stopped&timeoutMs=10m'))
    await t.delete(`/v1/keys/${key.id}`)
    expect((await waiting).body.code).toBe('key_revoked')
  })
})

describe('names', () => {
  test('are unique among those that exist', async () => {
    await made({ name: 'only' })
    expect((await create({ name: 'only' })).body).toMatchObject({ code: 'name_taken', status: 409 })
    await t.delete(path('only', '?force=true'))
    await made({ name: 'only' })
  })

  test('with ifExists=get one is made by however many ask at once', async () => {
    const all = await Promise.all(
      Array.from({ length: 20 }, () => create({ name: 'shared' }, '?ifExists=get&wait=running')),
    )
    expect(all.map(({ status }) => status).sort()).toEqual([...Array(19).fill(200), 201])
    expect(new Set(all.map(({ body }) => body.id)).size).toBe(1)
    for (const { body } of all) expect(body.state).toBe('running')
  })
})

describe('changes', () => {
  test('with If-Match are made to the version that was seen, or not at all', async () => {
    const { id } = await made()
    const seen = await t.get(path(id))
    const etag = seen.headers.get('etag') ?? ''
    expect(etag).toBe(`"${seen.body.version}"`)
    const update = (body: object, match: string) =>
      t.raw('PATCH', path(id), {
        body: JSON.stringify(body),
        headers: { 'content-type': 'application/json', 'if-match': match },
      })
    const first = await update({ labels: { n: '1' } }, etag)
    expect([first.status, first.headers.get('etag')]).toEqual([200, `"${seen.body.version + 1}"`])
    const second = await update({ labels: { n: '2' } }, etag)
    expect(await second.json()).toMatchObject({ status: 412, code: 'version_mismatch' })
    expect((await update({ labels: { n: '3' } }, '*')).status).toBe(200)
    expect((await update({ labels: {} }, 'W/"1"')).status).toBe(400)
    expect((await t.get(path(id))).body.labels).toEqual({ n: '3' })
  })

  test('of limits leave the others as they are, and are told to the node', async () => {
    const { id } = await made()
    const { body } = await t.patch(path(id), { limits: { pids: 77 } })
    expect(body.spec.limits).toMatchObject({ pids: 77, memoryBytes: 16 * 2 ** 20, cpus: 0.1 })
    expect((await node.told(id, 2)).spec.limits.pids).toBe(77)
    expect((await t.patch(path(id), { clocks: { idleTimeoutMs: '5m' } })).body.spec.clocks).toEqual({
      ...{ maxLifetimeMs: null, idleTimeoutMs: 300_000, pausedForMs: null, deleteAfterMs: null },
    })
  })

  test('that go against a policy are refused', async () => {
    const { id } = await made()
    expect((await t.patch(path(id), { limits: { swapBytes: '1g' } })).body).toMatchObject({
      status: 403,
      code: 'policy_forbidden',
      policy: 'max.swapBytes',
    })
  })

  test('with an idempotency key are made once', async () => {
    const key = { 'idempotency-key': `k-${Date.now()}` }
    const answers = []
    for (let i = 0; i < 3; i++)
      answers.push(await t.post('/v1/sandboxes?wait=running', { image: node.image, ...small }, key))
    expect(new Set(answers.map(({ body }) => body.id)).size).toBe(1)
    expect(answers.map(({ status }) => status)).toEqual([201, 201, 201])
    const id = answers[0]?.body.id
    const again = { 'idempotency-key': `r-${Date.now()}` }
    for (let i = 0; i < 3; i++) await t.post(path(id, '/restart?wait=running'), {}, again)
    expect((await t.get(path(id))).body.run).toBe(2)
  })
})

describe('lists', () => {
  test('go by state and label, page by page', async () => {
    const own = await tenant()
    const ids: string[] = []
    for (let i = 0; i < 5; i++) ids.unshift((await made({ labels: { odd: `${i % 2}` } }, '?wait=running', own)).id)
    await own.post(path(ids[0] ?? '', '/stop?wait=stopped'))
    const list = async (query: string) =>
      (await own.get(`/v1/sandboxes${query}`)).body.items.map(({ id }: { id: string }) => ids.indexOf(id))
    expect(await list('')).toEqual([0, 1, 2, 3, 4])
    expect(await list('?state=stopped')).toEqual([0])
    expect(await list('?state=running&label=odd=0')).toEqual([2, 4])
    expect(await list('?state=stopped&state=running&label=odd')).toEqual([0, 1, 2, 3, 4])
    const { body } = await own.get('/v1/sandboxes?limit=2')
    expect(body.items).toHaveLength(2)
    expect(await list(`?limit=2&cursor=${body.nextCursor}`)).toEqual([2, 3])
    expect((await own.get('/v1/sandboxes?cursor=x')).status).toBe(400)
  })

  test('prune deletes what has ended, and says what that frees', async () => {
    const own = await tenant()
    const keep = await made({ labels: { job: 'a' } }, '?wait=running', own)
    const ended: string[] = []
    for (const job of ['a', 'b']) {
      const { id } = await made({ labels: { job } }, '?wait=running', own)
      await own.post(path(id, '/stop?wait=stopped'))
      ended.push(id)
    }
    expect((await own.post('/v1/sandboxes/prune', { endedBeforeMs: '1h' })).body).toEqual({
      deleted: [],
      freedBytes: 0,
    })
    const byLabel = await own.post('/v1/sandboxes/prune', { label: ['job=b'] })
    expect(byLabel.body).toEqual({ deleted: [ended[1]], freedBytes: 16 * 2 ** 20 })
    expect((await own.post('/v1/sandboxes/prune')).body.deleted).toEqual([ended[0]])
    expect((await own.get(path(keep.id))).body.state).toBe('running')
  })
})

describe('quota', () => {
  test('is reserved with the answer, free with a deletion, and less when stopped', async () => {
    const own = await tenant({ sandboxes: 3 })
    const now = async () => (await own.get('/v1/usage')).body.now
    const ids = []
    for (let i = 0; i < 3; i++) ids.push((await made({}, '?wait=running', own)).id)
    expect(await now()).toMatchObject({ sandboxes: 3, memoryBytes: 48 * 2 ** 20, diskBytes: 48 * 2 ** 20 })
    expect((await create({}, '', own)).body).toMatchObject({
      ...{ status: 403, code: 'quota_exceeded', quota: 'sandboxes', limit: 3, used: 3, asked: 1 },
    })
    await own.post(path(ids[0], '/stop?wait=stopped'))
    expect(await now()).toMatchObject({ sandboxes: 3, memoryBytes: 32 * 2 ** 20, diskBytes: 48 * 2 ** 20 })
    node.obeys = () => undefined
    await own.delete(path(ids[1], '?force=true'))
    node.obeys = asWanted
    expect(await now()).toMatchObject({ sandboxes: 2, memoryBytes: 16 * 2 ** 20 })
    await made({}, '', own)
  })

  test('two hundred at once fill it and not one more', async () => {
    const own = await tenant({ sandboxes: 20 })
    const all = await Promise.all(Array.from({ length: 200 }, () => create({}, '', own)))
    expect(all.filter(({ status }) => status === 201)).toHaveLength(20)
    expect(all.filter(({ body }) => body.code === 'quota_exceeded')).toHaveLength(180)
    expect((await own.get('/v1/usage')).body.now.sandboxes).toBe(20)
  })
})

describe('what is not right is refused', () => {
  test.each<[string, object]>([
    ['name', { name: '-x' }],
    ['name', { name: `sbx_${'0'.repeat(26)}` }],
    ['limits.memoryBytes', { limits: { memoryBytes: '1kb' } }],
    ['limits.memoryBytes', { limits: { memoryBytes: '12 parsecs' } }],
    ['limits.memoryBytes', { limits: { memoryBytes: -1 } }],
    ['limits.cpus', { limits: { cpus: 0 } }],
    ['limits.cpus', { limits: { cpus: '2' } }],
    ['limits.diskBytes', { limits: { diskBytes: '99999t' } }],
    ['limits.memoryReservationBytes', { limits: { memoryReservationBytes: '2g' } }],
    ['limits.cpuset', { limits: { cpuset: '0-' } }],
    ['limits.ulimits.nofile', { limits: { ulimits: { nofile: { soft: 2, hard: 1 } } } }],
    ['limits.ulimits.nope', { limits: { ulimits: { nope: { soft: 1, hard: 1 } } } }],
    ['tmpfs[0].path', { tmpfs: [{ path: '/proc/x' }] }],
    ['tmpfs[0].path', { tmpfs: [{ path: '/a/../b' }] }],
    ['capAdd[0]', { capAdd: ['rm -rf'] }],
    ['sysctls', { sysctls: { 'a b': '1' } }],
    ['stopSignal', { stopSignal: 'SIGNOPE' }],
    ['stopGraceMs', { stopGraceMs: '2h' }],
    ['clocks.maxLifetimeMs', { clocks: { maxLifetimeMs: 1 } }],
    ['restart.policy', { restart: { policy: 'sometimes' } }],
    ['init', { init: false }],
    ['user', { user: 'a:b:c' }],
    ['hostname', { hostname: '-' }],
    ['command[0]', { command: ['a\0b'] }],
    ['env', { env: { '1X': '' } }],
    ['workingDir', { workingDir: 'relative' }],
    ['', { unknown: true }],
  ])('%s of %j', async (field, fields) => {
    const { status, body } = await create(fields)
    expect({ status, code: body.code }).toEqual({ status: 400, code: 'invalid_request' })
    const fieldsNamed = body.errors.map((error: { field: string }) => error.field)
    expect(fieldsNamed.some((named: string) => named.startsWith(field))).toBe(true)
  })

  test.each<[string, object]>([
    ['privileged', { privileged: true }],
    ['capAdd', { capAdd: ['SYS_ADMIN'] }],
    ['sysctls', { sysctls: { 'kernel.panic': '1' } }],
    ['seccompProfile', { seccompProfile: 'unconfined' }],
    ['noNewPrivileges', { noNewPrivileges: false }],
    ['max.swapBytes', { limits: { swapBytes: '1g' } }],
  ])('by policy: %s', async (policy, fields) =>
    expect((await create(fields)).body).toMatchObject({ status: 403, code: 'policy_forbidden', policy }),
  )

  test('an image that no node has, and room that no node has', async () => {
    expect((await create({ image: 'no-such-image' })).body).toMatchObject({ status: 404, code: 'image_not_found' })
    expect((await create({ limits: { cpus: 1001 } })).body.code).toMatch(/quota_exceeded|invalid_request/)
    const own = await tenant({ cpus: 5000 })
    expect((await create({ limits: { cpus: 1024 } }, '', own)).body).toMatchObject({ status: 503, code: 'no_capacity' })
  })

  test.each([
    ['GET', ''],
    ['PATCH', ''],
    ['DELETE', ''],
    ...['start', 'stop', 'kill', 'restart', 'pause', 'resume'].map((action) => ['POST', `/${action}`]),
    ['GET', '/ends'],
  ])('%s of one that does not exist %s', async (method, rest) => {
    for (const ref of [`sbx_${'0'.repeat(26)}`, 'no-such-name']) {
      const body = method === 'PATCH' ? { body: '{}', headers: { 'content-type': 'application/json' } } : {}
      const response = await t.raw(method, path(ref, rest), body)
      expect(await response.json()).toMatchObject({ status: 404, code: 'sandbox_not_found' })
    }
  })

  test.each(['?wait=ready', '?wait=running&timeoutMs=-1', '?timeoutMs=8d', '?x=1'])('query %s', async (query) => {
    const { id } = await made()
    expect((await t.get(path(id, query))).status).toBe(400)
  })
})
