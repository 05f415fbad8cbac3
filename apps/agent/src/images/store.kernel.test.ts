// The store through everything that can happen to it: killed at random moments, full, damaged.
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import {
  appendFileSync,
  chmodSync,
  mkdirSync,
  mkdtempSync,
  renameSync,
  rmSync,
  statSync,
  utimesSync,
  writeFileSync,
} from 'node:fs'
import { join, resolve } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { expectSuccess, run } from '@berth/host'
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, jest, test } from '@jest/globals'
import { describeFindings, fsck } from './fsck.js'
import { Images } from './images.js'
import {
  accessTo,
  digestOf,
  imageOf,
  noise,
  publish,
  startRegistry,
  type TestImage,
  type TestRegistry,
  tarOf,
} from './registry.fixture.js'
import { noRoom } from './room.js'
import { berthLayer, forever, TestStore } from './store.fixture.js'

let registry: TestRegistry
let image: TestImage
let store: TestStore

beforeAll(async () => {
  registry = await startRegistry()
  const files = Object.fromEntries(Array.from({ length: 300 }, (_, i) => [`usr/lib/f${i}`, noise(i * 20)]))
  image = imageOf([
    await tarOf({ ...files, 'bin/sh': noise(2_000_000) }),
    await tarOf({ 'usr/lib/.wh.f1': '', big: noise(1_500_000) }),
  ])
  await publish(registry, 'team/app', '1', image)
})
afterAll(() => registry.close())
beforeEach(async () => {
  store = await TestStore.open()
})
afterEach(() => TestStore.removeAll())

const pull = (at = store) => at.pull(`${registry.host}/team/app:1`, accessTo(registry))
const hex = (bytes: Buffer) => digestOf(bytes).slice(7)

test('killed at any moment, the store is whole after the next start, and the next pull works', async () => {
  const program = resolve(import.meta.dirname, '../../dist/images')
  const script = `
    const { once } = await import('node:events')
    const { Images } = await import(${JSON.stringify(join(program, 'images.js'))})
    const { pull } = await import(${JSON.stringify(join(program, 'pull.js'))})
    const { Progress } = await import(${JSON.stringify(join(program, 'progress.js'))})
    process.stdout.write('ready')
    await once(process.stdin, 'data')
    const images = await Images.open(${JSON.stringify(store.directory)}, '/nowhere', ${JSON.stringify(berthLayer)})
    const request = ${JSON.stringify({ reference: `${registry.host}/team/app:1`, access: accessTo(registry), maxBytes: 1e12 })}
    for (;;) {
      const { digest } = await pull(images, request, new AbortController().signal, new Progress())
      await images.drop(digest)
      await images.collect(new Set(), new Date(Date.now() + 7_200_000))
    }`
  const start = () =>
    spawn(process.execPath, ['--input-type=module', '-e', script], { stdio: ['pipe', 'pipe', 'inherit'] })
  let next = start()
  for (let round = 0; round < 30; round++) {
    const child = next
    // It gets ready while this one works, and waits for its turn.
    next = start()
    const ended = once(child, 'close')
    await once(child.stdout, 'data')
    child.stdin.end('go')
    // Anywhere within it, by round.
    await delay((round * 149) % 400)
    child.kill('SIGKILL')
    await ended
    await store.reopen()
    expect(await store.problems()).toEqual([])
  }
  next.kill('SIGKILL')
  await once(next, 'close')
  expect((await pull()).image.digest).toBe(digestOf(image.config))
  expect(await store.problems()).toEqual([])
}, 60_000)

describe('what nobody names', () => {
  test('goes: layers at once, blobs after an hour; what another image has stays', async () => {
    const [shared = Buffer.alloc(0)] = image.tars
    const [blob = Buffer.alloc(0)] = image.blobs
    const other = imageOf([shared], { pack: () => blob, config: { created: '2026-01-01T00:00:00Z' } })
    await publish(registry, 'team/other', '1', other)
    await pull()
    await store.pull(`${registry.host}/team/other:1`, accessTo(registry))
    await store.images.dropAll([digestOf(image.config)])
    // It was taken in just now: somebody wants it.
    expect(store.inventory().images).toHaveLength(2)
    await store.images.drop(digestOf(image.config))
    expect(await store.images.collect(new Set())).toEqual({ layers: 1, blobs: 0 })
    expect(await store.images.collect(new Set(), new Date(Date.now() + 7_200_000))).toEqual({ layers: 0, blobs: 3 })
    const { blobs, layers } = store.inventory()
    expect(layers).toEqual([hex(shared)])
    expect(blobs).toEqual([other.manifest, other.config, blob].map(hex).sort())
    expect(await store.problems()).toEqual([])
  })

  test('goes soon when the disk is short: what is kept for another try is nobody’s', async () => {
    await pull()
    const { content } = store.images
    const parts = await Promise.all(['one', 'two'].map((host) => content.part(digestOf(image.config), host)))
    for (const part of parts) await part.append(Buffer.from('x'))
    await parts[0]?.close()
    await store.images.drop(digestOf(image.config))
    const soon = new Date(Date.now() + 180_000)
    expect(await store.images.collect(new Set(), soon)).toMatchObject({ blobs: 0 })
    const look = jest.spyOn(content.room, 'left').mockRejectedValue(noRoom())
    expect(await store.images.collect(new Set())).toMatchObject({ blobs: 0 })
    expect(store.inventory().partial).toHaveLength(2)
    expect(await store.images.collect(new Set(), soon)).toMatchObject({ blobs: 4 })
    // The other is being written.
    expect(store.inventory()).toMatchObject({ blobs: [], partial: [expect.any(String)] })
    await parts[1]?.close()
    look.mockRestore()
  })

  test('stays while a sandbox is on it, or on its way to it', async () => {
    const { image: got } = await pull()
    const layers = store.images.resolve('x', got.digest)?.layers ?? []
    await store.images.drop(got.digest)
    expect(await store.images.collect(new Set())).toEqual({ layers: 0, blobs: 0 })
    const later = new Date(Date.now() + 1_000_000)
    expect(await store.images.collect(new Set(layers), later)).toMatchObject({ layers: 0 })
    expect(await store.images.collect(new Set(), later)).toMatchObject({ layers: 2 })
  })
})

describe('damage is found:', () => {
  const layer = (at: string) => join(store.directory, 'layers/sha256', hex(image.tars[0] ?? Buffer.alloc(0)), 'fs', at)
  const blob = () => join(store.directory, 'blobs/sha256', hex(image.blobs[1] ?? Buffer.alloc(0)))

  test.each<[string, () => unknown, RegExp]>([
    ['a byte in a blob', () => appendFileSync(blob(), 'x'), /blob sha256:\w+: its bytes are/],
    ['a blob that is gone', () => rmSync(blob()), /the blob is missing/],
    ['a file that was changed', () => appendFileSync(layer('usr/lib/f7'), 'x'), /\/usr\/lib\/f7 is not as in its blob/],
    ['a mode', () => chmodSync(layer('bin/sh'), 0o777), /\/bin\/sh is not/],
    ['a file too many', () => writeFileSync(layer('usr/new'), ''), /\/usr is not/],
    ['a file that is gone', () => rmSync(layer('usr/lib/f8')), /is not as in its blob/],
    ['an attribute', () => run(['setfattr', '-n', 'user.x', '-v', 'y', layer('bin/sh')]), /extended attributes/],
    ['a layer that is gone', () => renameSync(layer('..'), join(store.directory, 'aside')), /not unpacked/],
    ['a record that is gone', () => rmSync(layer('../layer.json')), /its record is missing/],
    ['a layer of nobody', () => utimesSync(layer('..'), 0, 0), /of no image/],
    ['something half-made', () => mkdirSync(join(store.directory, 'layers/sha256/.making-x')), /half-made/],
    ['an entry of an archive', () => mkdirSync(join(store.directory, 'incoming/x')), /half-made/],
  ])('%s', async (what, damage, told) => {
    const { image: got } = await pull()
    await damage()
    if (what === 'a layer of nobody') await store.images.drop(got.digest)
    const findings = await fsck(store.images, false, forever)
    expect(findings.problems.length).toBeGreaterThan(0)
    expect(describeFindings(findings)).toMatch(told)
  })

  test('beside an agent too, but for what it removes, and for copies that one which starts removes', async () => {
    const { image: got } = await pull()
    const look = async (damage: (view: Images) => unknown) => {
      const view = await Images.view(store.directory, '/nowhere', berthLayer)
      await damage(view)
      return (await fsck(view, true, forever)).problems
    }
    expect(await look(() => appendFileSync(layer('usr/lib/f7'), 'x'))).toHaveLength(1)
    await store.images.drop(got.digest)
    await store.images.collect(new Set(), new Date(Date.now() + 7_200_000))
    await pull()
    const gone = Object.assign(new Error('gone'), { code: 'ENOENT' })
    expect(await look((view) => jest.spyOn(view.layers, 'withCopy').mockRejectedValueOnce(gone))).toEqual([])
    expect(await look((view) => jest.spyOn(view.layers, 'withCopy').mockRejectedValue(gone))).toHaveLength(2)
    const removed = look(async () => {
      await store.images.drop(got.digest)
      await store.images.collect(new Set(), new Date(Date.now() + 7_200_000))
    })
    expect(await removed).toEqual([])
  })

  test('a layer that lost its record is made anew by the next pull, with the same files where those are right', async () => {
    await pull()
    const file = statSync(layer('bin/sh'))
    rmSync(layer('../layer.json'))
    await pull()
    expect(await store.problems()).toEqual([])
    // A sandbox may be on it.
    expect(statSync(layer('bin/sh')).ino).toBe(file.ino)
    for (const damage of [() => rmSync(layer('usr/lib/f8')), () => rmSync(layer(''), { recursive: true })]) {
      rmSync(layer('../layer.json'))
      damage()
      await pull()
      expect(await store.problems()).toEqual([])
    }
    expect(store.inventory().layers).toHaveLength(2)
  })

  test('and nothing where there is none', async () => {
    await pull()
    expect(describeFindings(await fsck(store.images, false, forever))).toBe(
      '1 images, 2 layers, 4 blobs: nothing is wrong\n',
    )
  })
})

test('a full disk is told as such, and the store is whole', async () => {
  // In a mount namespace of its own: nothing is mounted on this machine.
  const dir = mkdtempSync('/var/tmp/berth-full-')
  const program = resolve(import.meta.dirname, '../../dist/images')
  const script = `
    const { Images } = await import(${JSON.stringify(join(program, 'images.js'))})
    const { pull } = await import(${JSON.stringify(join(program, 'pull.js'))})
    const { fsck } = await import(${JSON.stringify(join(program, 'fsck.js'))})
    const { Progress } = await import(${JSON.stringify(join(program, 'progress.js'))})
    const open = () => Images.open(${JSON.stringify(dir)}, '/nowhere', ${JSON.stringify(berthLayer)})
    const { signal } = new AbortController()
    const images = await open()
    const request = ${JSON.stringify({ reference: `${registry.host}/team/app:1`, access: accessTo(registry), maxBytes: 1e12 })}
    const code = await pull(images, request, signal, new Progress()).then(() => 'pulled', (error) => error.code)
    await images.collect(new Set())
    console.log(JSON.stringify([code, (await fsck(images, false, signal)).problems, images.list()]))`
  const results: string[] = []
  try {
    for (const size of ['1m', '4m', '6m']) {
      const mounted = `mount -t tmpfs -o size=${size} none ${dir} && exec "$@"`
      const argv = [
        'unshare',
        '--mount',
        'sh',
        '-c',
        mounted,
        'sh',
        process.execPath,
        '--input-type=module',
        '-e',
        script,
      ] as const
      results.push(expectSuccess(await run(argv)).stdout.trim())
    }
  } finally {
    rmSync(dir, { recursive: true })
  }
  expect(results).toEqual(Array(3).fill('["no_capacity",[],[]]'))
})
