// What is made of real sandboxes' files: images, more sandboxes, tars.
import { execFileSync } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterAll, describe, expect, test } from '@jest/globals'
import { run, stack, stdout, type TestTenant, tenant } from '../support/berth.js'

async function make(api: TestTenant, fields: object = {}): Promise<string> {
  const made = await api.post('/v1/sandboxes?wait=running&timeoutMs=60s', { image: 'debian', ...fields })
  if (made.status !== 201) throw new Error(`sandbox: ${JSON.stringify(made.body)}`)
  return made.body.id
}

/** Runs a script in a sandbox. @returns what it wrote */
async function inside(api: TestTenant, id: string, script: string): Promise<string> {
  const done = await api.post(`/v1/sandboxes/${id}/execs?wait=ended&output=true`, { command: ['sh', '-c', script] })
  if (done.body.exitCode !== 0) throw new Error(`${script}: ${JSON.stringify(done.body)}`)
  return done.body.output.stdout.data
}

const commit = (api: TestTenant, id: string, body: object) => api.post(`/v1/sandboxes/${id}/commit?wait=done`, body)

const directory = mkdtempSync(join(tmpdir(), 'berth-export-'))
afterAll(() => rmSync(directory, { recursive: true }))

/** Exports a sandbox with curl. @returns the tar's path, and owner and path of each entry */
function filesOf(api: TestTenant, id: string) {
  const path = join(directory, id)
  const argv = ['-sSf', '-o', path, '-w', '%{content_type}', '-H', `authorization: Bearer ${api.key}`]
  const type = execFileSync('curl', [...argv, `${stack().url}/v1/sandboxes/${id}/export`], { encoding: 'utf8' })
  const lines = execFileSync('tar', ['-tvf', path, '--numeric-owner'], { encoding: 'utf8', maxBuffer: 1 << 26 })
  const names = lines.split('\n').map((line) => {
    const [, owner = '', , , , name = ''] = line.split(/ +/)
    return `${owner} ${name}`
  })
  return { type, path, names }
}

describe('a commit', () => {
  test('is an image of what the sandbox has changed, and is run as any other', async () => {
    const api = await tenant()
    const id = await make(api, { env: { SECRET: 'of the sandbox' } })
    await inside(api, id, 'echo mine > /etc/mine; rm /etc/issue; mkdir -m 700 /d; chown 7:8 /d')
    const asked = {
      ...{ reference: 'team/app:2', comment: 'why', author: 'me' },
      changes: { env: { GREETING: 'hello' }, command: ['cat', '/etc/mine'], labels: { made: 'here' } },
    }
    const { status, body } = await commit(api, id, asked)
    expect({ status, body }).toMatchObject({
      status: 201,
      body: { images: [{ references: ['team/app:2'], labels: { made: 'here' } }] },
    })
    const image = await api.get(`/v1/images/${encodeURIComponent('team/app:2')}`)
    expect(image.body.settings).toMatchObject({ command: ['cat', '/etc/mine'] })
    expect(image.body.settings.env).toContain('GREETING=hello')
    expect(JSON.stringify(image.body)).not.toContain('of the sandbox')
    // Only what it changed is in the layer.
    expect(image.body.layers.at(-1).unpackedBytes).toBe('mine\n'.length)
    const job = await run(api, {
      image: 'team/app:2',
      command: ['sh', '-c', 'cat /etc/mine; echo $GREETING; stat -c %a:%u:%g /d; test ! -e /etc/issue && echo gone'],
    })
    expect(stdout(job)).toBe('mine\nhello\n700:7:8\ngone\n')
    // It goes on where it was, and a stopped one has the same files.
    expect((await api.get(`/v1/sandboxes/${id}`)).body.state).toBe('running')
    await api.post(`/v1/sandboxes/${id}/stop?wait=stopped`)
    const again = await commit(api, id, { pause: false })
    expect(again.body.images[0].references).toEqual([])
    const { body: other } = await api.get(`/v1/images/${again.body.images[0].digest}`)
    expect(other.layers.at(-1).diffId).toBe(image.body.layers.at(-1).diffId)
  })

  test('is refused by name, state, scope and quota', async () => {
    const [api, stranger] = [await tenant({ imageBytes: 1_000_000 }), await tenant()]
    const id = await make(api)
    const code = async (asked: Promise<{ readonly status: number; readonly body: { readonly code: string } }>) => {
      const { status, body } = await asked
      return `${status} ${body.code}`
    }
    expect(await code(commit(stranger, id, {}))).toBe('404 sandbox_not_found')
    expect(await code(commit(api, id, { reference: 'a@sha256:1' }))).toBe('400 invalid_request')
    expect(await code(commit(api, id, { changes: { exposedPorts: ['x'] } }))).toBe('400 invalid_request')
    expect(await code(commit(api, id, {}))).toBe('403 quota_exceeded')
    await inside(api, id, 'head -c 2000000 /dev/urandom > /big')
    expect(await code(commit(api, id, {}))).toBe('403 quota_exceeded')
    const key = await api.post('/v1/keys', { name: 'images', scopes: ['images:write'] })
    const headers = { authorization: `Bearer ${key.body.secret}`, 'content-type': 'application/json' }
    const narrow = await api.raw('POST', `/v1/sandboxes/${id}/commit`, { headers, body: '{}' })
    expect(narrow.status).toBe(403)
    const { body: created } = await api.post('/v1/sandboxes?start=false', { image: 'no-such:1' })
    expect(created.code).toBe('image_not_found')
    expect((await api.get('/v1/images?dangling=true')).body.items).toEqual([])
  })
})

test('an export is the whole root with its own owners, of one that runs and of one that is stopped', async () => {
  const [api, stranger] = [await tenant(), await tenant()]
  const id = await make(api)
  await inside(api, id, 'echo mine > /etc/mine; chown 7:8 /etc/mine; rm /etc/issue; ln -s /etc/shadow /link')
  const { type, path, names } = filesOf(api, id)
  expect(type).toBe('application/x-tar')
  for (const name of ['7/8 etc/mine', '0/0 etc/passwd', '0/0 usr/bin/env', '0/0 link', '0/0 proc/'])
    expect(names).toContain(name)
  expect(names.filter((name) => / (etc\/issue$|proc\/.|sys\/.)/.test(name))).toEqual([])
  expect(execFileSync('tar', ['-xOf', path, 'etc/mine'], { encoding: 'utf8' })).toBe('mine\n')
  expect((await api.get(`/v1/sandboxes/${id}`)).body.state).toBe('running')
  expect((await stranger.get(`/v1/sandboxes/${id}/export`)).status).toBe(404)
  await api.post(`/v1/sandboxes/${id}/stop?wait=stopped`)
  expect(filesOf(api, id).names).toEqual(names)
})

describe('a fork', () => {
  const fork = (api: TestTenant, id: string, body: object) => api.post(`/v1/sandboxes/${id}/fork`, body)
  const running = (api: TestTenant, id: string) => api.get(`/v1/sandboxes/${id}?wait=running&timeoutMs=60s`)

  test("is sandboxes of their own that begin with a sandbox's files at one moment", async () => {
    const api = await tenant()
    const id = await make(api, {
      name: 'first',
      env: { A: '1' },
      labels: { of: 'first' },
      limits: { memoryBytes: '64m' },
    })
    await inside(api, id, 'echo before > /file')
    const { status, body } = await fork(api, id, { count: 3, name: 'copy', env: { B: '2' }, labels: { of: 'fork' } })
    expect(status).toBe(201)
    expect(body.items).toMatchObject(
      ['copy-1', 'copy-2', 'copy-3'].map((name) => ({
        ...{ name, forkedFrom: id, labels: { of: 'fork' } },
        spec: { env: { A: '1', B: '2' }, limits: { memoryBytes: 64 * 1024 ** 2 } },
      })),
    )
    await inside(api, id, 'echo after > /file')
    for (const { id: copy } of body.items) {
      expect((await running(api, copy)).body.state).toBe('running')
      await inside(api, copy, `echo ${copy} >> /file`)
      const [host, said] = [
        `${copy.slice(4)}`,
        await inside(api, copy, 'cat /file; echo $A $B; cat /etc/hostname; hostname'),
      ]
      const [file, own, variables, etc, name] = said.split('\n')
      expect([file, own, variables]).toEqual(['before', copy, '1 2'])
      expect({ etc, host }).toEqual({ etc: name, host })
    }
    // Of one that is stopped, not started; and what they began with may go.
    await api.post(`/v1/sandboxes/${id}/stop?wait=stopped`)
    const [one] = (await fork(api, id, { name: 'later', start: false })).body.items
    await api.delete(`/v1/sandboxes/${id}`)
    expect(one).toMatchObject({ name: 'later', desired: 'stopped' })
    expect((await api.get(`/v1/sandboxes/later?wait=stopped&timeoutMs=60s`)).body.state).toBe('stopped')
    await api.post('/v1/sandboxes/later/start?wait=running')
    expect(await inside(api, one.id, 'cat /file')).toBe('after\n')
  })

  test('is all of them or none', async () => {
    const [api, stranger] = [await tenant({ sandboxes: 4 }), await tenant()]
    const id = await make(api, { name: 'one', limits: { cpus: 0.1, memoryBytes: '64m', diskBytes: '128m' } })
    const refused = async (asked: object, of = api) => {
      const { status, body } = await fork(of, id, asked)
      return `${status} ${body.code}`
    }
    expect(await refused({ count: 4 })).toBe('403 quota_exceeded')
    expect(await refused({ count: 3, limits: { cpus: 1e5 } })).toMatch(/^40[03] /)
    expect(await refused({ count: 1, name: 'one' })).toBe('409 name_taken')
    expect(await refused({ count: 101 })).toBe('400 invalid_request')
    expect(await refused({ limits: { diskBytes: '64m' } })).toBe('400 invalid_request')
    expect(await refused({}, stranger)).toBe('404 sandbox_not_found')
    expect((await api.get('/v1/sandboxes')).body.items).toHaveLength(1)
    const repeated = () => api.post(`/v1/sandboxes/${id}/fork`, { count: 2 }, { 'idempotency-key': 'forked-once' })
    const [first, second] = [await repeated(), await repeated()]
    expect(second.body.items.map((item: { id: string }) => item.id)).toEqual(
      first.body.items.map((item: { id: string }) => item.id),
    )
    expect((await api.get('/v1/sandboxes')).body.items).toHaveLength(3)
  })
})
