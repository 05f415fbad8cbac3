import { randomBytes } from 'node:crypto'
import { get } from 'node:http'
import { text } from 'node:stream/consumers'
import { routes } from '@berth/contracts'
import { beforeAll, expect, test } from '@jest/globals'
import { z } from 'zod'
import { type Api, operator, run, sh, stack, stdout, type TestTenant, tenant } from '../support/berth.js'
import { FakeNode } from '../support/fake-node.js'

let mine: TestTenant
let other: TestTenant
// Of what is inside a sandbox any id will do: the sandbox is not found.
const ids: Record<string, string> = { stream: 'stdout', exec: 'e1', terminal: 't1', share: `shr_${'0'.repeat(26)}` }

/** Query and body of each route that needs some to be understood at all. */
const valid: Readonly<Record<string, { readonly query?: string; readonly body?: object }>> = {
  createExec: { body: { command: ['true'] } },
  runExec: { body: { command: ['true'] } },
  signalExec: { body: { signal: 'TERM' } },
  resizeExec: { body: { rows: 24, columns: 80 } },
  readFile: { query: '?path=/etc/passwd' },
  writeFile: { query: '?path=/tmp/x' },
  removeFile: { query: '?path=/tmp/x' },
  statFile: { query: '?path=/etc/passwd' },
  listFiles: { query: '?path=/' },
  makeDirectory: { body: { path: '/tmp/x' } },
  renameFile: { body: { from: '/tmp/x', to: '/tmp/y' } },
  watchFiles: { query: '?path=/' },
  downloadTree: { query: '?path=/' },
  uploadTree: { query: '?path=/tmp' },
  resizeTerminal: { body: { rows: 24, columns: 80 } },
  signalTerminal: { body: { signal: 'TERM' } },
  createTemplateVersion: { body: { spec: { image: 'debian' } } },
  pushImage: { body: { reference: 'ghcr.io/team/app:1' } },
}

beforeAll(async () => {
  mine = await tenant()
  other = await tenant()
  const job = await run(mine, sh('echo mine'))
  const made = async (path: string, body: object) => {
    const answer = await mine.post(path, body)
    if (answer.status !== 201) throw new Error(`${path}: ${JSON.stringify(answer.body)}`)
    return answer
  }
  const batch = await made('/v1/batches', { jobs: [{ command: ['true'] }] })
  const key = await made('/v1/keys', { name: 'mine' })
  const sandbox = await made('/v1/sandboxes', { name: 'mine' })
  ids.build = await givenBuild(mine)
  ids.template = (await made('/v1/templates', { name: 'mine', spec: { image: 'debian' } })).body.name
  Object.assign(ids, { jobId: job.id, batchId: batch.body.id, keyId: key.body.id, sandbox: sandbox.body.id })
  Object.assign(ids, { image: await givenImage(mine), reference: 'mine', registry: 'registry.example' })
  await mine.raw('PUT', '/v1/registries/registry.example', {
    body: JSON.stringify({ username: 'mine', password: 'secret' }),
    headers: { 'content-type': 'application/json' },
  })
  Object.assign(ids, { terminal: 'none', share: 'shr_01jabcdefghjkmnpqrstvwxyz0', exec: 'none' })
})

/** An image of a tenant, by its digest. No node needs to have it: it is not found before one is asked. */
async function givenImage(api: Api): Promise<string> {
  const digest = `sha256:${randomBytes(32).toString('hex')}`
  const settings = { env: [], entrypoint: [], command: [], workingDir: null, user: null, stopSignal: null }
  const image = {
    ...{ digest, manifestDigest: digest, platform: 'linux/amd64', createdAt: null, layers: [], history: [] },
    settings: { ...settings, labels: {}, exposedPorts: [], volumes: [] },
  }
  await using node = await FakeNode.start({ diskBytes: 2 ** 46 }, { serves: true })
  node.images = (call) => call.lines([{ step: 'done', images: [{ image, references: [] }] }])
  const answer = await api.post('/v1/images/pull?wait=done', { reference: 'mine' })
  if (answer.status !== 201) throw new Error(`pull: ${JSON.stringify(answer.body)}`)
  return digest
}

/** A build of a tenant, by its id. It need not succeed. */
async function givenBuild(api: Api): Promise<string> {
  const lines = await (await api.raw('POST', '/v1/builds', { body: 'no tar' })).text()
  const { build } = JSON.parse(lines.split('\n')[0] ?? '')
  expect((await api.get(`/v1/builds/${build}`)).status).toBe(200)
  return build
}

/** Makes what is the caller's own, whatever others have. */
const making = ['putRegistry']
const tenantRoutes = routes.filter(
  (r) => r.path.includes(':') && !['operator', 'node', 'public'].includes(r.scope) && !making.includes(r.id),
)

test('there are routes to check', () => expect(tenantRoutes.length).toBeGreaterThan(6))

async function plain(api: Api, method: string, path: string, init: RequestInit) {
  const response = await api.raw(method, path, init)
  return { status: response.status, body: await response.json() }
}

/** What is answered to a WebSocket's handshake that is refused. */
function upgrade(api: Api, path: string): Promise<{ status: number | undefined; body: unknown }> {
  const headers = {
    ...{ authorization: `Bearer ${api.key}`, connection: 'Upgrade', upgrade: 'websocket' },
    ...{ 'sec-websocket-version': '13', 'sec-websocket-key': Buffer.alloc(16).toString('base64') },
  }
  return new Promise((resolve, reject) => {
    const request = get(stack().url + path, { headers }, (response) => {
      text(response).then((body) => resolve({ status: response.statusCode, body: JSON.parse(body) }), reject)
    })
    request.on('upgrade', (_response, socket) => {
      socket.destroy()
      reject(new Error('the handshake was not refused'))
    })
    request.on('error', reject)
  })
}

test.each(tenantRoutes.map((r) => [`${r.method} ${r.path}`, r] as const))(
  '%s of another tenant is not found',
  async (_, route) => {
    const path = route.path.replace(/:(\w+)/g, (_whole, name: string) => ids[name] ?? `missing-${name}`)
    expect(path).not.toContain('missing-')
    const { query = '', body = {} } = valid[route.id] ?? {}
    const json = { body: JSON.stringify(body), headers: { 'content-type': 'application/json' } }
    const init = route.body instanceof z.ZodType ? json : route.body === 'bytes' ? { body: 'bytes' } : {}
    const isSocket = Object.values(route.reply).includes('socket')
    const answer = isSocket ? await upgrade(other, path + query) : await plain(other, route.method, path + query, init)
    expect(answer).toMatchObject({ status: 404, body: { code: expect.stringMatching(/_not_found$/) } })
  },
)

test('lists show nothing of another tenant', async () => {
  expect((await other.get('/v1/jobs')).body.items).toEqual([])
  expect((await other.get(`/v1/jobs?batchId=${ids.batchId}`)).body.items).toEqual([])
  expect((await other.get('/v1/keys')).body.items.map((key: { name: string }) => key.name)).toEqual(['test'])
  expect((await other.get('/v1/usage')).body.period.jobs).toBe(0)
  expect((await other.get('/v1/sandboxes')).body.items).toEqual([])
  expect((await other.get('/v1/registries')).body.items).toEqual([])
  expect((await other.get('/v1/templates')).body.items).toEqual([])
  const images = (await other.get('/v1/images?limit=200')).body.items
  expect(images.map((image: { digest: string }) => image.digest)).not.toContain(ids.image)
  expect((await other.get('/v1/sandboxes/mine')).body.code).toBe('sandbox_not_found')
  expect((await other.get('/v1/events?limit=1000')).body.items).toEqual([])
  expect((await mine.get('/v1/events')).body.items.length).toBeGreaterThan(2)
})

test('two tenants never share a host id', async () => {
  const map = async (t: TestTenant) =>
    stdout(await run(t, { command: ['cat', '/proc/self/uid_map'] }))
      .trim()
      .split(/\s+/)
  const [a, b] = [await map(mine), await map(other)]
  expect(a[0]).toBe('0')
  expect(Math.abs(Number(a[1]) - Number(b[1]))).toBeGreaterThanOrEqual(65_536)
  expect(Number(a[1])).toBeGreaterThanOrEqual(1_000_000)
})

test('operators see every tenant', async () => {
  const answer = await operator().get(`/v1/tenants/${mine.id}`)
  expect(answer.body).toMatchObject({ id: mine.id, state: 'active' })
})
