// Two nodes of one installation: an image that one has runs on the other. Nodes that are drained take nothing, and give.
import { execFileSync } from 'node:child_process'
import { copyFileSync, mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, expect, test } from '@jest/globals'
import { client, operator, run, stack, stdout, type TestTenant, tenant, until } from '../support/berth.js'
import { crash, recordOf, restart, restored } from '../support/crash.js'
import { startRegistry } from '../support/registry.js'
import { SecondNode } from '../support/second-node.js'

const directory = mkdtempSync(join(tmpdir(), 'berth-two-nodes-'))
let second: SecondNode
let first: string
let mine: TestTenant

beforeAll(async () => {
  const { items } = (await operator().get('/v1/nodes')).body
  first = items.find(({ state }: { state: string }) => state === 'ready').id
  second = await SecondNode.start()
  mine = await tenant()
}, 60_000)
afterAll(async () => {
  await only(first)
  const { items = [] } = (await mine.get('/v1/sandboxes?limit=200')).body
  for (const { id } of items) await mine.delete(`/v1/sandboxes/${id}?force=true`)
  await second[Symbol.asyncDispose]()
  await restored()
  rmSync(directory, { recursive: true })
}, 120_000)

/** Has one of the nodes take all work, while the other still gives images. */
async function only(nodeId: string): Promise<void> {
  for (const id of [first, second.id])
    await operator().patch(`/v1/nodes/${id}`, { state: id === nodeId ? 'ready' : 'draining' })
}

let made = 0
/** Makes an image on a node. @returns its name and its digest */
async function given(nodeId: string): Promise<{ readonly name: string; readonly digest: string }> {
  const name = `two-nodes/${++made}`
  const root = join(directory, String(made))
  mkdirSync(join(root, 'bin'), { recursive: true })
  copyFileSync('/bin/busybox', join(root, 'bin', 'busybox'))
  for (const applet of ['sh', 'cat']) symlinkSync('busybox', join(root, 'bin', applet))
  writeFileSync(join(root, 'name'), name)
  const body = new Uint8Array(execFileSync('tar', ['-C', root, '-c', '.'], { maxBuffer: 2 ** 26 }))
  await only(nodeId)
  const answer = await mine.raw('POST', `/v1/images/import?wait=done&reference=${name}`, { body })
  const { images } = JSON.parse(await answer.text())
  return { name, digest: images[0].digest }
}

const sandbox = (image: string, wait = '?wait=running') => mine.post(`/v1/sandboxes${wait}`, { image })
const running = (id: string) =>
  until(`${id} runs`, async () => {
    const { body } = await mine.get(`/v1/sandboxes/${id}?wait=running&timeoutMs=5s`)
    if (body.state === 'running') return body
    throw new Error(JSON.stringify([body.state, body.reason]))
  })
/** Stops the first agent in whatever it does: who wants something of it waits. */
const signalFirst = async (signal: NodeJS.Signals) => process.kill((await recordOf('agent')).pid, signal)

test('an image that only the other node has is brought, once for all who want it, and runs', async () => {
  const { name, digest } = await given(first)
  await only(second.id)
  const made = await Promise.all([sandbox(name), sandbox(name), sandbox(digest)])
  expect(made.map(({ status }) => status)).toEqual([201, 201, 201])
  for (const { body } of made) {
    expect(body).toMatchObject({ state: 'running', nodeId: second.id })
    expect(body.placedBecause).toContain('none of these has image')
    expect(body.phases.imageMs).toBeGreaterThan(0)
  }
  expect(second.said('image.brought')).toBe(1)
  const job = await run(mine, { image: name, command: ['cat', '/name'] })
  expect([job.attempts[0]?.nodeId, stdout(job)]).toEqual([second.id, name])
  expect(job.attempts[0]?.phases.imageMs).toEqual(expect.any(Number))
}, 60_000)

test('a base image by its digest is brought too', async () => {
  const { digest } = (await mine.get('/v1/images/debian')).body
  await only(second.id)
  const job = await run(mine, { image: digest, command: ['cat', '/etc/debian_version'] })
  expect(job).toMatchObject({ state: 'succeeded', reason: { code: 'completed' }, attempts: [{ nodeId: second.id }] })
}, 60_000)

test('images of two nodes are saved together', async () => {
  const names = [await given(first), await given(second.id)].map(({ name }) => name)
  for (const node of [first, second.id]) await operator().patch(`/v1/nodes/${node}`, { state: 'ready' })
  const saved = await mine.raw('GET', `/v1/images/archive?${names.map((name) => `image=${name}`).join('&')}`)
  expect(saved.status).toBe(200)
  const tar = Buffer.from(await saved.arrayBuffer())
  const manifest = JSON.parse(execFileSync('tar', ['-xO', 'manifest.json'], { input: tar }).toString())
  expect(manifest).toHaveLength(2)
}, 60_000)

test('a node may ask for what something on it starts from, and for nothing else', async () => {
  const [here, there] = [await given(first), await given(first)]
  const kept = (await sandbox(there.name)).body
  await only(second.id)
  const own = (await sandbox(here.name)).body
  const node = client(second.token)
  const ask = async (digest: string, need: string) => {
    const sources = await node.post(`/v1/node/images/${digest}/sources`, { for: need })
    const blob = await node.get(`/v1/node/images/${digest}/blobs/manifest?for=${encodeURIComponent(need)}`)
    return [sources.status, blob.status]
  }
  expect(await ask(here.digest, own.id)).toEqual([200, 200])
  expect(await ask(there.digest, own.id)).toEqual([404, 404])
  expect(await ask(there.digest, kept.id)).toEqual([404, 404])
  expect(await ask(there.digest, 'AAAA'.repeat(20))).toEqual([404, 404])
  const layer = (await mine.get(`/v1/images/${there.digest}`)).body.layers[0].digest
  const path = `/v1/node/images/${here.digest}/blobs/${layer}?for=${own.id}`
  expect((await node.get(path)).status).toBe(404)
  expect((await client(mine.key).post(`/v1/node/images/${here.digest}/sources`, { for: own.id })).status).toBe(403)
}, 60_000)

test('an agent that is killed while an image comes goes on with it, and so does one whose giver is killed', async () => {
  const { name } = await given(first)
  await only(second.id)
  await signalFirst('SIGSTOP')
  const { id } = (await sandbox(name, '')).body
  const told = async () => ((await mine.get(`/v1/sandboxes/${id}`)).body.phase === 'rootfs' ? true : undefined)
  await until('the second node is at it', told)
  await second.crash()
  await second.run()
  await crash('agent')
  await restart('agent')
  expect(await running(id)).toMatchObject({ nodeId: second.id })
}, 60_000)

test('where no node has it any more it comes from its registry; what came from none is unavailable', async () => {
  const registry = await startRegistry(stack().registries.open)
  try {
    const [pushed, loaded] = [await given(first), await given(first)]
    const target = `${registry.host}/two/nodes:1`
    await mine.post(`/v1/images/${encodeURIComponent(pushed.name)}/push?wait=done`, { reference: target })
    const other = await tenant()
    expect((await other.post('/v1/images/pull?wait=done', { reference: target })).status).toBe(201)
    await only(second.id)
    await crash('agent')
    const [pulled, lost] = await Promise.all([
      other.post('/v1/jobs?wait=finished', { image: target, command: ['cat', '/name'] }),
      mine.post('/v1/jobs?wait=finished', { image: loaded.name, command: ['cat', '/name'] }),
    ])
    expect(pulled.body).toMatchObject({ state: 'succeeded', attempts: [{ nodeId: second.id }] })
    expect(lost.body).toMatchObject({ state: 'failed', reason: { code: 'image_unavailable' } })
  } finally {
    await restart('agent')
    await registry.stop()
  }
}, 60_000)
