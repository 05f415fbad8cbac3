// `./berth images` and what goes with it, as on a terminal: one image from a registry and back, through a file, and away.
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { text } from 'node:stream/consumers'
import { afterAll, beforeAll, expect, test } from '@jest/globals'
import { tarOf } from '../../apps/agent/src/images/registry.fixture.js'
import { type Api, stack, tenant, until } from '../support/berth.js'
import { publish, startRegistry, type TestRegistry } from '../support/registry.js'

const directory = mkdtempSync(join(tmpdir(), 'berth-images-cli-'))
let registry: TestRegistry
let locked: TestRegistry
beforeAll(async () => {
  const { registries } = stack()
  registry = await startRegistry(registries.open)
  locked = await startRegistry(registries.locked, { username: 'me', password: 'correct horse' })
})
afterAll(async () => {
  await registry.stop()
  await locked.stop()
  rmSync(directory, { recursive: true })
})

/** Runs `berth` for a tenant. */
const berthOf =
  ({ key }: Api) =>
  async (args: readonly string[], input?: Buffer | string) => {
    const env = { ...process.env, BERTH_URL: stack().url, BERTH_API_KEY: key }
    const child = spawn(resolve('berth'), args, { env, cwd: directory, stdio: ['pipe', 'pipe', 'pipe'] })
    // It may end before it has read all.
    child.stdin.on('error', () => undefined).end(input ?? '')
    const [out, error, code] = await Promise.all([
      text(child.stdout),
      text(child.stderr),
      new Promise((done) => child.once('close', done)),
    ])
    return { code, out: out.trimEnd(), error: error.trimEnd() }
  }

const root = () => tarOf({ 'etc/name': 'cli', 'bin/sh': '#!' })

test('an image is pulled, named, listed, told of, pushed, and removed', async () => {
  const berth = berthOf(await tenant())
  const made = await publish(registry, 'team/cli', '1', [await root()])
  const name = `${registry.host}/team/cli:1`
  const id = made.digest.slice('sha256:'.length, 19)
  expect(await berth(['pull', name])).toMatchObject({ code: 0, out: made.digest, error: expect.stringContaining(name) })
  expect(await berth(['images', 'pull', '-q', name])).toEqual({ code: 0, out: made.digest, error: '' })
  expect(await berth(['images', 'tag', id, 'named:1'])).toMatchObject({ code: 0, out: '' })
  const listed = await berth(['images', 'ls', 'named'])
  expect(listed.out.split('\n').map((line) => line.split('\t').slice(0, 2))).toEqual([
    [name, id],
    ['named:1', id],
  ])
  expect((await berth(['images', 'ls', '-q', 'named:*'])).out).toBe(id)
  expect((await berth(['images', 'ls', '--label', 'made=otherwise'])).out).toBe('')
  const [line = ''] = (await berth(['images', '--json', '--label', 'made=by the test'])).out.split('\n')
  expect(JSON.parse(line)).toMatchObject({ digest: made.digest, references: [name, 'named:1'] })
  const inspected = await berth(['images', 'inspect', 'named:1', 'none', id])
  expect(inspected).toMatchObject({ code: 1, error: 'berth: there is no image none' })
  expect(JSON.parse(inspected.out)).toMatchObject([made, made])
  expect((await berth(['images', 'history', 'named:1'])).out).toMatch(/^[0-9a-f]{12}\t\S+\t5 B\tCOPY root \/$/)

  const to = `${registry.host}/team/pushed:2`
  expect(await berth(['push', '--to', to, 'named:1'])).toMatchObject({ code: 0, out: made.digest })
  const tags = await fetch(`${registry.url}/v2/team/pushed/tags/list`)
  expect(await tags.json()).toMatchObject({ tags: ['2'] })
  expect(await berth(['push', id])).toMatchObject({ code: 125, error: expect.stringContaining('say where to') })

  const removed = await berth(['images', 'rm', 'none', name, 'named:1'])
  expect(removed).toMatchObject({ code: 1, error: 'berth: there is no image none' })
  expect(removed.out).toBe(`Untagged: ${name}\nUntagged: named:1\nDeleted: ${made.digest}`)
})

test('images are saved into a file that is whole or not there, and come back of a file or of standard input', async () => {
  const berth = berthOf(await tenant())
  writeFileSync(join(directory, 'root.tar'), await root())
  const config = JSON.stringify({ command: ['sh'], labels: { a: 'b' } })
  const imported = await berth(['images', 'import', 'root.tar', 'made:1', '--config', config])
  expect(imported).toMatchObject({ code: 0, error: 'made:1' })
  expect((await berth(['images', 'import', '-q', '-'], await root())).out).toMatch(/^sha256:[0-9a-f]{64}$/)
  expect(await berth(['images', 'import', 'root.tar', '--config', '{'])).toMatchObject({
    ...{ code: 125, error: 'berth: config: must be JSON' },
  })
  expect(await berth(['images', 'save', '-o', 'saved.tar', 'made:1'])).toEqual({ code: 0, out: '', error: '' })
  const archive = readFileSync(join(directory, 'saved.tar'))
  expect(await berth(['images', 'save', '-o', 'saved.tar', 'none'])).toMatchObject({ code: 125 })
  expect(readFileSync(join(directory, 'saved.tar')).equals(archive)).toBe(true)
  expect(existsSync(join(directory, 'saved.tar.partial'))).toBe(false)
  const failed = await berth(['images', 'save', '-o', 'none/saved.tar', 'made:1'])
  expect(failed).toMatchObject({ code: 125, error: expect.stringContaining('ENOENT') })

  const other = berthOf(await tenant())
  expect(await other(['images', 'load', '-i', 'saved.tar'])).toMatchObject({ code: 0, out: imported.out })
  expect(await other(['images', 'load', '--quiet'], archive)).toEqual({ code: 0, out: imported.out, error: '' })
  expect(await other(['images', 'load'], 'none')).toMatchObject({ code: 125, error: expect.stringMatching(/no tar/) })
  expect(await other(['images', 'load', '-i', '.'])).toMatchObject({
    code: 125,
    error: 'berth: read .: it is a directory',
  })
  expect(await other(['images', 'load', '-i', 'no.tar'])).toMatchObject({ code: 125 })
})

test('a save that is interrupted leaves nothing, and what was there before', async () => {
  const endless = createServer((_, answer) => void answer.writeHead(200).write('half of it'))
  endless.listen(0, '127.0.0.1')
  await once(endless, 'listening')
  try {
    const { port } = endless.address() as AddressInfo
    const env = { ...process.env, BERTH_URL: `http://127.0.0.1:${port}`, BERTH_API_KEY: (await tenant()).key }
    writeFileSync(join(directory, 'before.tar'), 'before')
    const child = spawn(resolve('berth'), ['images', 'save', '-o', 'before.tar', 'made:1'], { env, cwd: directory })
    const over = once(child, 'close')
    const partial = join(directory, 'before.tar.partial')
    await until('it has begun', async () => existsSync(partial) || undefined)
    child.kill('SIGINT')
    expect(await over).toEqual([130, null])
    expect([existsSync(partial), readFileSync(join(directory, 'before.tar'), 'utf8')]).toEqual([false, 'before'])
  } finally {
    endless.closeAllConnections()
    endless.close()
  }
})

test('a prune removes what it is told to', async () => {
  const berth = berthOf(await tenant())
  const config = JSON.stringify({ labels: { name: 'also' } })
  await berth(['images', 'import', '-', 'also', '--config', config], await tarOf({ name: 'also' }))
  for (const name of ['moved', 'kept']) await berth(['images', 'import', '-', 'kept'], await tarOf({ name }))
  const [dangling = ''] = (await berth(['images', 'ls', '--dangling', '-q'])).out.split('\n')
  expect(await berth(['images', 'prune', '--older-than', '1h'])).toEqual({ code: 0, out: '', error: '0 B freed' })
  expect(await berth(['images', 'prune'])).toMatchObject({
    ...{ code: 0, out: expect.stringContaining(dangling), error: '5 B freed' },
  })
  expect((await berth(['images', 'prune', '--all', '--label', 'name=also'])).out).toMatch(/^Deleted: sha256:/)
  expect((await berth(['images', 'ls', '--json', 'kept'])).out).toContain('kept:latest')
})

test('who reads only the beginning of a list is told nothing of the rest, and no 0', async () => {
  const { key } = await tenant()
  const env = { ...process.env, BERTH_URL: stack().url, BERTH_API_KEY: key }
  const child = spawn(resolve('berth'), ['images', 'ls'], { env, stdio: ['ignore', 'pipe', 'pipe'] })
  child.stdout.destroy()
  const over = new Promise((done) => child.once('close', done))
  expect([await text(child.stderr), await over]).toEqual(['', 141])
})

test('a login is set with a password that nobody sees, listed, used, and forgotten', async () => {
  const berth = berthOf(await tenant())
  await publish(locked, 'secret/app', '1', [await root()])
  const name = `${locked.host}/secret/app:1`
  expect((await berth(['pull', name])).code).toBe(125)
  expect(await berth(['login', '--username', 'me', locked.host])).toMatchObject({ code: 125 })
  expect(await berth(['login', locked.host], 'correct horse\n')).toMatchObject({
    ...{ code: 125, error: `berth: log in to ${locked.host}: say as whom, with --username` },
  })
  expect((await berth(['login', '--username', 'me', locked.host], 'correct horse\n')).code).toBe(0)
  expect(await berth(['login'])).toMatchObject({ code: 0, out: `${locked.host}\tme` })
  expect((await berth(['pull', name])).code).toBe(0)
  expect((await berth(['logout', locked.host])).code).toBe(0)
  expect((await berth(['login'])).out).toBe('')
  expect(await berth(['logout', locked.host])).toMatchObject({ code: 125 })
})
