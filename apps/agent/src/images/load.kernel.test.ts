// What of an archive is spooled before it is known what is in it: no more than its sender may have at all.
import { once } from 'node:events'
import { Readable } from 'node:stream'
import { MiB } from '@berth/contracts'
import { afterEach, beforeEach, expect, test } from '@jest/globals'
import { pack } from 'tar-stream'
import { importRoot } from './import.js'
import { type LoadLimits, load } from './load.js'
import { digestOf, imageOf, tarOf } from './registry.fixture.js'
import { forever, TestStore } from './store.fixture.js'

let store: TestStore
beforeEach(async () => {
  store = await TestStore.open()
})
afterEach(() => TestStore.removeAll())

/** A tar of names that may be in it again and again. */
function tarWith(entries: readonly (readonly [string, string | Buffer])[]): Readable {
  const tar = pack()
  for (const [name, content] of entries) tar.entry({ name }, content)
  tar.finalize()
  return Readable.from(tar)
}

/** A tar of one file of 1 GiB. @returns it, and how much of the file was taken */
function flood() {
  const sent = { bytes: 0 }
  const header = pack()
  header.entry({ name: 'blobs/sha256/zeros', size: 1024 * MiB })
  const zeros = Buffer.alloc(MiB)
  async function* bytes() {
    await once(header, 'readable')
    yield header.read()
    for (; sent.bytes < 1024 * MiB; sent.bytes += MiB) yield zeros
  }
  return { source: Readable.from(bytes()), sent }
}

const into = (source: Readable, limits: LoadLimits = {}) => load(store.images, source, limits, forever)
const nothing = { blobs: [], incoming: [], partial: [], layers: [], images: [] }

test('of a name that is in it again the last one counts', async () => {
  const image = imageOf([await tarOf({ a: 'b' })])
  const index = JSON.stringify({
    schemaVersion: 2,
    manifests: [{ mediaType: image.mediaType, digest: digestOf(image.manifest), size: image.manifest.length }],
  })
  const blobs = [image.manifest, image.config, ...image.blobs].map(
    (blob) => [`blobs/sha256/${digestOf(blob).slice(7)}`, blob] as const,
  )
  const again = [...blobs, ...blobs, ['index.json', '{}'], ['index.json', 'no JSON'], ['index.json', index]] as const
  expect(await into(tarWith(again))).toMatchObject([{ image: { digest: digestOf(image.config) } }])
  expect(store.inventory().incoming).toEqual([])
})

test('more than the quota would let in is refused before it is here, and nothing of it is kept', async () => {
  const { source, sent } = flood()
  const refused = into(source, { maxBytes: 10 * MiB, quotaBytes: 10 * MiB })
  await expect(refused).rejects.toMatchObject({ code: 'quota_exceeded' })
  expect(sent.bytes).toBeLessThan(64 * MiB)
  expect(store.inventory()).toEqual(nothing)
})

test('what is there already may be more than is left of the quota', async () => {
  const image = imageOf([await tarOf({ a: Buffer.alloc(2 * MiB) })])
  const archive = async () =>
    Readable.from([
      await tarOf({
        ...Object.fromEntries(
          [image.manifest, image.config, ...image.blobs].map((blob) => [
            `blobs/sha256/${digestOf(blob).slice(7)}`,
            blob,
          ]),
        ),
        'index.json': JSON.stringify({
          schemaVersion: 2,
          manifests: [{ mediaType: image.mediaType, digest: digestOf(image.manifest), size: image.manifest.length }],
        }),
      }),
    ])
  await into(await archive(), { maxBytes: 3 * MiB, quotaBytes: 3 * MiB })
  expect(await into(await archive(), { maxBytes: MiB, quotaBytes: 3 * MiB })).toHaveLength(1)
})

test('nothing at all is no root of an image', async () => {
  const empty = importRoot(store.images, Readable.from([]), {}, undefined, forever)
  await expect(empty).rejects.toMatchObject({ code: 'archive_invalid', message: 'it is empty' })
  expect(store.inventory()).toEqual(nothing)
})
