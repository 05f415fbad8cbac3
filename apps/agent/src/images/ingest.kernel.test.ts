// Layers that are made on the node: packed from a writable layer, taken in, and made an image of.
import { spawnSync } from 'node:child_process'
import { chmodSync, chownSync, lstatSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { PassThrough, Readable } from 'node:stream'
import type { ImageLayer } from '@berth/contracts'
import { afterAll, afterEach, beforeEach, expect, test } from '@jest/globals'
import { pack as tarPack } from 'tar-stream'
import { nodePlatform } from './images.js'
import { addLayer } from './ingest.js'
import { layerLimits } from './layers.js'
import { packUpper } from './pack.js'
import { parseSave, save } from './save.js'
import { berthLayer, forever, TestStore } from './store.fixture.js'

const ids = { base: 2_000_000, count: 65_536 }
let store: TestStore
let upper: string
beforeEach(async () => {
  store = await TestStore.open()
  upper = mkdtempSync('/var/tmp/berth-upper-')
})
afterEach(() => rmSync(upper, { recursive: true, force: true }))
afterAll(() => TestStore.removeAll())

const file = (name: string, content: string | Buffer) => {
  mkdirSync(join(upper, name, '..'), { recursive: true })
  writeFileSync(join(upper, name), content)
  chownSync(join(upper, name), ids.base + 5, ids.base)
  chmodSync(join(upper, name), 0o750)
}
const packed = (more = {}) => packUpper({ program: berthLayer, upper, ids, signal: forever, ...more })
const made = (more = {}) => addLayer(store.images, packed().tar, { signal: forever, ...more })
const imageOf = (layers: readonly ImageLayer[]) => {
  const [architecture, os] = [nodePlatform.split('/')[1], 'linux']
  const rootfs = { type: 'layers', diff_ids: layers.map(({ diffId }) => diffId) }
  return store.images.assemble(Buffer.from(JSON.stringify({ architecture, os, rootfs, config: {} })), layers, forever)
}

test('layers made here are an image like one that was pulled, and are there once', async () => {
  file('a', 'one')
  const first = await made()
  file('b', Buffer.alloc(3_000_000, 'two'))
  const second = await made()
  expect(await made()).toEqual(second)
  expect(await store.images.layers.built(second.diffId)).toEqual(second)
  const fs = store.images.layers.path(second.diffId)
  expect(lstatSync(join(fs, 'a'))).toMatchObject({ uid: 5, gid: 0, mode: 0o100750 })
  expect(readFileSync(join(fs, 'b'), 'latin1')).toBe(readFileSync(join(upper, 'b'), 'latin1'))
  // Nothing but the layers until there is an image of them.
  expect(store.inventory()).toMatchObject({ blobs: [], images: [], layers: [expect.any(String), expect.any(String)] })
  const image = await imageOf([first, second])
  expect(image.layers).toEqual([first, second])
  expect(await store.problems()).toEqual([])
  const archive = await save(store.images, parseSave(new URLSearchParams({ image: image.digest })), forever)
  let bytes = 0
  for await (const chunk of archive) bytes += chunk.length
  expect(bytes).toBeGreaterThan(second.sizeBytes)
  const both = [fs, store.images.layers.path(first.diffId)]
  expect(store.images.layerPaths([first.diffId, second.diffId])).toEqual(both)
  expect(store.images.layerPaths([second.diffId, second.diffId, first.diffId, second.diffId])).toEqual(both)
})

test('a crash of the machine takes what no image has; a crash of the agent takes nothing', async () => {
  file('a', 'one')
  const kept = await made()
  await imageOf([kept])
  file('a', 'two')
  const unsynced = await made()
  await store.reopen()
  expect(await store.images.layers.list()).toHaveLength(2)
  const record = join(store.images.layers.path(unsynced.diffId), '../layer.json')
  writeFileSync(record, JSON.stringify({ ...JSON.parse(readFileSync(record, 'utf8')), unsynced: 'another boot' }))
  await store.reopen()
  expect(await store.images.layers.list()).toEqual([kept.diffId])
  // As a file may be that was being written.
  await made()
  writeFileSync(record, '')
  await store.reopen()
  expect(await store.images.layers.list()).toEqual([kept.diffId])
  expect(await store.problems()).toEqual([])
})

test('a layer that lost its record is whole again when it is made again', async () => {
  file('a', 'one')
  const { diffId } = await made()
  for (const lost of ['../layer.json', '../packed.json']) rmSync(join(store.images.layers.path(diffId), lost))
  expect(await store.problems()).toEqual([`layer ${diffId}: its record is missing; a pull makes it anew`])
  const again = await made()
  expect(await store.images.layers.built(diffId)).toEqual(again)
  await imageOf([again])
  expect(await store.problems()).toEqual([])
})

test('a layer of a build that a pull comes across is settled: an image may name it from then on', async () => {
  file('a', 'one')
  const layer = await made()
  await store.images.drop((await imageOf([layer])).digest)
  expect(await store.images.collect(new Set(), new Date(Date.now() + 1_200_000))).toEqual({ layers: 1, blobs: 0 })
  await made()
  const record = join(store.images.layers.path(layer.diffId), '../layer.json')
  expect(JSON.parse(readFileSync(record, 'utf8'))).toHaveProperty('unsynced')
  await store.images.layers.ensure({ ...layer, compression: 'gzip' }, layerLimits, forever)
  expect(JSON.parse(readFileSync(record, 'utf8'))).toEqual({ bytes: layer.unpackedBytes })
})

test('what keepers name stays, with its blob, and what nobody names goes', async () => {
  file('a', 'one')
  const [cached, image] = [await made(), { digest: '' }]
  image.digest = (await imageOf([cached])).digest
  file('a', 'two')
  const other = await made()
  await store.images.drop(image.digest)
  const late = new Date(Date.now() + 7_200_000)
  expect(await store.images.collect(new Set())).toMatchObject({ layers: 0 })
  store.images.keepers.add(() => [cached.digest, cached.diffId])
  expect(await store.images.collect(new Set(), late)).toEqual({ layers: 1, blobs: 2 })
  expect(await store.images.layers.list()).toEqual([cached.diffId])
  expect(await store.images.layers.built(other.diffId)).toBeUndefined()
  expect((await imageOf([cached])).digest).toBe(image.digest)
  expect(await store.problems()).toEqual([])
})

test('nothing is left of a layer that is too large, refused, cut or given up', async () => {
  file('a', Buffer.alloc(100_000))
  await expect(made({ maxBytes: 99_999 })).rejects.toMatchObject({ code: 'quota_exceeded' })
  const outside = tarPack()
  outside.entry({ name: '../x' }, 'x')
  outside.finalize()
  const add = (tar: Readable, signal = forever) => addLayer(store.images, tar, { signal })
  await expect(add(Readable.from(outside))).rejects.toMatchObject({ code: 'image_invalid' })
  const tarOfMany = () => {
    const { stdout } = spawnSync('tar', ['-c', '-C', upper, '.'])
    return stdout
  }
  const cut = Readable.from(
    (async function* () {
      yield tarOfMany().subarray(0, 700)
      throw new Error('the source broke')
    })(),
  )
  await expect(add(cut)).rejects.toThrow('the source broke')
  const given = new AbortController()
  const endless = Readable.from(
    (async function* () {
      for (let i = 0; ; i++) {
        if (i === 100) given.abort(new Error('given up'))
        yield Buffer.alloc(65_536)
      }
    })(),
  )
  await expect(add(endless, given.signal)).rejects.toThrow('given up')
  chownSync(join(upper, 'a'), 0, 0)
  const { tar, ended } = packed()
  await expect(add(tar)).rejects.toMatchObject({ code: 'image_invalid', message: expect.stringMatching(/not of the/) })
  await expect(ended).rejects.toMatchObject({ code: 'image_invalid' })
  expect(store.inventory()).toEqual({ blobs: [], layers: [], partial: [], images: [], incoming: [] })
})

test('a tar that breaks off before it is read is that, and nothing else', async () => {
  const broken = new PassThrough()
  const adding = addLayer(store.images, broken, { signal: forever })
  broken.destroy(new Error('early'))
  await expect(adding).rejects.toThrow('early')
})

test('a packing that nobody reads ends', async () => {
  file('a', Buffer.alloc(8_000_000))
  const { tar, ended } = packed()
  tar.once('readable', () => tar.destroy())
  await expect(ended).rejects.toThrow('pack a layer')
})
