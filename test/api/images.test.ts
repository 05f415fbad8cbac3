// Images of real nodes: a real registry on loopback, with and without a login, archives, and what runs from them.
import { execFileSync } from 'node:child_process'
import { copyFileSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { ImageProgress } from '@berth/contracts'
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals'
import { type Api, run, stack, stdout, tenant, until } from '../support/berth.js'
import { publish, startRegistry, type TestRegistry } from '../support/registry.js'

const directory = mkdtempSync(join(tmpdir(), 'berth-images-'))
let open: TestRegistry
let locked: TestRegistry

/** A tar of a root with a shell and a file that says which one it is. */
function rootOf(name: string): Buffer {
  const root = join(directory, name)
  mkdirSync(join(root, 'bin'), { recursive: true })
  copyFileSync('/bin/busybox', join(root, 'bin', 'busybox'))
  for (const applet of ['sh', 'cat', 'echo', 'true']) symlinkSync('busybox', join(root, 'bin', applet))
  mkdirSync(join(root, 'etc'))
  execFileSync('sh', ['-c', `printf '%s' "$1" > "$2/etc/name"`, 'sh', name, root])
  return execFileSync('tar', ['-C', root, '--owner=0', '--group=0', '-c', '.'], { maxBuffer: 64 * 1024 * 1024 })
}

beforeAll(async () => {
  const { registries } = stack()
  open = await startRegistry(registries.open)
  locked = await startRegistry(registries.locked, { username: 'me', password: 'correct horse' })
})
afterAll(async () => {
  await open.stop()
  await locked.stop()
  rmSync(directory, { recursive: true })
})

const of = (name: string) => `/v1/images/${encodeURIComponent(name)}`
const pull = (api: Api, reference: string) => api.post('/v1/images/pull?wait=done', { reference })
const nameIn = (image: string) => ({ image, command: ['/bin/sh', '-c', 'cat /etc/name; echo " $FROM_IMAGE"'] })

/** Output of a job of the image, once a node is known to have it. */
async function says(api: Api, image: string): Promise<string> {
  const job = await run(api, nameIn(image))
  if (job.state !== 'succeeded') throw new Error(JSON.stringify(job.reason))
  return stdout(job).trim()
}

describe('a registry', () => {
  test('is pulled from, layer by layer, and what came runs as job and as sandbox', async () => {
    const mine = await tenant()
    const made = await publish(open, 'team/app', '1', [rootOf('app')])
    const name = `${open.host}/team/app:1`
    const response = await mine.raw('POST', '/v1/images/pull', {
      ...{ body: JSON.stringify({ reference: name }), headers: { 'content-type': 'application/json' } },
    })
    const lines = (await response.text()).trim().split('\n')
    const steps = lines.map((line) => ImageProgress.parse(JSON.parse(line)))
    expect(steps.some((step) => step.step === 'layer' && step.bytes > 0)).toBe(true)
    expect(steps.at(-1)).toMatchObject({ step: 'done', images: [{ digest: made.digest, references: [name] }] })
    expect((await mine.get(of(name))).body).toMatchObject({
      ...made,
      labels: { made: 'by the test' },
      platform: 'linux/amd64',
    })
    expect((await mine.get(`${of(name)}/history`)).body.items).toMatchObject([{ createdBy: 'COPY root /' }])
    expect(await says(mine, name)).toBe('app yes')
    expect(await says(mine, made.digest)).toBe('app yes')
    const sandbox = await until('a sandbox of it is made', async () => {
      const answer = await mine.post('/v1/sandboxes?wait=running', { image: name })
      return answer.status === 201 ? answer.body : undefined
    })
    const exec = await mine.post(`/v1/sandboxes/${sandbox.id}/execs?wait=ended&output=true`, {
      command: ['cat', '/etc/name'],
    })
    expect(exec.body.output.stdout.data).toBe('app')
    expect(await mine.delete(of(name))).toMatchObject({
      status: 409,
      body: { code: 'image_in_use', sandboxes: [sandbox.id] },
    })
  }, 60_000)

  test('by digest, and what it has not', async () => {
    const mine = await tenant()
    const made = await publish(open, 'team/digest', '1', [rootOf('digest')])
    const name = `${open.host}/team/digest@${made.manifestDigest}`
    expect((await pull(mine, name)).body.images).toMatchObject([{ digest: made.digest, references: [name] }])
    expect(await says(mine, name)).toBe('digest yes')
    expect(await pull(mine, `${open.host}/team/none`)).toMatchObject({ status: 502, body: { code: 'registry_denied' } })
  }, 60_000)

  test('that wants a login gets it from whoever has one, and only from those', async () => {
    const [mine, other] = [await tenant(), await tenant()]
    await publish(locked, 'secret/app', 'latest', [rootOf('locked')])
    const name = `${locked.host}/secret/app`
    const login = (password: string) =>
      mine.raw('PUT', `/v1/registries/${encodeURIComponent(locked.host)}`, {
        body: JSON.stringify({ username: 'me', password }),
        headers: { 'content-type': 'application/json' },
      })
    expect(await pull(mine, name)).toMatchObject({ status: 502, body: { code: 'registry_denied' } })
    expect((await login('wrong')).status).toBe(200)
    expect(await pull(mine, name)).toMatchObject({ status: 502, body: { code: 'registry_denied' } })
    await login('correct horse')
    expect(await pull(mine, name)).toMatchObject({ status: 201 })
    expect(await says(mine, name)).toBe('locked yes')
    expect(await pull(other, name)).toMatchObject({ status: 502, body: { code: 'registry_denied' } })
    expect((await other.post('/v1/jobs', nameIn(name))).body.code).toBe('image_not_found')
  }, 60_000)

  test('is pushed to, and what was pushed is the same image', async () => {
    const mine = await tenant()
    const made = await publish(open, 'team/push', '1', [rootOf('push')])
    await pull(mine, `${open.host}/team/push:1`)
    const target = `${open.host}/other/name:2`
    const push = await mine.post(`${of(`${open.host}/team/push:1`)}/push?wait=done`, { reference: target })
    expect(push).toMatchObject({ status: 201 })
    const other = await tenant()
    expect((await pull(other, target)).body.images).toMatchObject([{ digest: made.digest }])
  }, 60_000)
})

describe('archives', () => {
  test.each(['docker', 'oci'])(
    'saved as %s, several images load again with their names, and run',
    async (format) => {
      const [mine, other] = [await tenant(), await tenant()]
      for (const name of ['one', 'two']) {
        const answer = await mine.raw('POST', `/v1/images/import?wait=done&reference=saved/${name}`, {
          body: new Uint8Array(rootOf(`${format}-${name}`)),
        })
        expect(answer.status).toBe(201)
      }
      const path = `/v1/images/archive?image=saved/one&image=saved/two&format=${format}`
      const tar = await until('the node says that it has them', async () => {
        const saved = await mine.raw('GET', path)
        return saved.status === 200 ? new Uint8Array(await saved.arrayBuffer()) : undefined
      })
      const loaded = await other.raw('POST', '/v1/images/load?wait=done', { body: tar })
      const { images } = JSON.parse(await loaded.text())
      expect([loaded.status, images.flatMap((one: { references: string[] }) => one.references).sort()]).toEqual([
        ...[201, ['saved/one:latest', 'saved/two:latest']],
      ])
      expect(await says(other, 'saved/two')).toBe(`${format}-two`)
    },
    60_000,
  )

  test('that are none are refused, and list nothing', async () => {
    const mine = await tenant()
    const whole = rootOf('cut')
    for (const body of ['no archive at all', new Uint8Array(whole.subarray(0, 5000)), '']) {
      const answer = await mine.raw('POST', '/v1/images/load?wait=done', { body })
      expect(answer.status).toBe(422)
    }
    expect((await mine.get('/v1/images')).body.items.filter((one: { base: boolean }) => !one.base)).toEqual([])
  })

  test('a root with settings becomes an image that starts with them; its bytes count, and are freed', async () => {
    const mine = await tenant()
    const config = JSON.stringify({ env: ['PATH=/bin', 'FROM_IMAGE=set'], labels: { a: 'b' }, workingDir: '/etc' })
    const query = new URLSearchParams({ wait: 'done', reference: 'root', config })
    const tar = new Uint8Array(rootOf('root'))
    expect((await mine.raw('POST', `/v1/images/import?${query}`, { body: tar })).status).toBe(201)
    expect(await says(mine, 'root')).toBe('root set')
    expect((await mine.get('/v1/images?label=a=b')).body.items).toHaveLength(1)
    const { sizeBytes } = (await mine.get(of('root'))).body
    expect(sizeBytes).toBeGreaterThan(readFileSync('/bin/busybox').length)
    expect((await mine.get('/v1/usage')).body.now.imageBytes).toBe(sizeBytes)
    expect((await mine.delete(of('root'))).body).toMatchObject({ freedBytes: sizeBytes })
    expect((await mine.get('/v1/usage')).body.now.imageBytes).toBe(0)
  }, 60_000)

  test('a base image is inspected, named, and saved like any other', async () => {
    const mine = await tenant()
    const base = (await mine.get(of('debian'))).body
    expect(base).toMatchObject({ base: true, visibility: 'public' })
    expect(base.references).toContain('debian:latest')
    expect(base.layers.length).toBeGreaterThan(0)
    const named = await mine.raw('PUT', `${of('debian')}/tags/own`)
    expect(await named.json()).toMatchObject({ digest: base.digest, visibility: 'tenant' })
    const job = await run(mine, { image: 'own', command: ['cat', '/etc/debian_version'] })
    expect(job.state).toBe('succeeded')
    expect((await mine.delete(of('debian'))).status).toBe(403)
  }, 60_000)
})
