// Archives: what is saved is read back with the same digests, what others write is read, and what is wrong is refused.
import { execFileSync } from 'node:child_process'
import {
  lstatSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { buffer } from 'node:stream/consumers'
import { fileURLToPath } from 'node:url'
import { gzipSync } from 'node:zlib'
import { mediaTypes, parseReference } from '@berth/oci'
import { afterEach, beforeEach, describe, expect, jest, test } from '@jest/globals'
import { extract, pack } from 'tar-stream'
import { importRoot } from './import.js'
import { load } from './load.js'
import { digestOf, imageOf, noise, type TestImage, tarOf } from './registry.fixture.js'
import { noRoom } from './room.js'
import { parseSave, save } from './save.js'
import { forever, TestStore } from './store.fixture.js'
import { zstdTool } from './zstd.fixture.js'

let store: TestStore
beforeEach(async () => {
  store = await TestStore.open()
})
afterEach(() => TestStore.removeAll())

const blobName = (bytes: Buffer) => `blobs/sha256/${digestOf(bytes).slice(7)}`
const into = (archive: Buffer, at = store, maxBytes?: number) =>
  load(at.images, Readable.from(chunks(archive)), { maxBytes }, forever)

/** Paths of what this process has open. */
const openFiles = (): string[] =>
  readdirSync('/proc/self/fd').flatMap((fd) => {
    try {
      return [readlinkSync(`/proc/self/fd/${fd}`)]
    } catch {
      return [] // It was that of the listing.
    }
  })

/** As they come over a connection. */
function* chunks(bytes: Buffer) {
  for (let at = 0; at < bytes.length; at += 65_536) yield bytes.subarray(at, at + 65_536)
}

/** A layout in a tar. */
const layoutOf = (images: readonly { readonly image: TestImage; readonly name?: string }[], without?: Buffer) => {
  const blobs = images
    .flatMap(({ image }) => [image.manifest, image.config, ...image.blobs])
    .filter((blob) => blob !== without)
  const manifests = images.map(({ image, name }) => ({
    ...{ mediaType: image.mediaType, digest: digestOf(image.manifest), size: image.manifest.length },
    ...(name === undefined ? {} : { annotations: { 'org.opencontainers.image.ref.name': name } }),
  }))
  return tarOf({
    'oci-layout': '{"imageLayoutVersion":"1.0.0"}',
    ...Object.fromEntries(blobs.map((blob) => [blobName(blob), blob])),
    // Last, as some write it.
    'index.json': JSON.stringify({ schemaVersion: 2, manifests }),
  })
}

async function entriesOf(archive: Buffer): Promise<ReadonlyMap<string, Buffer>> {
  const entries = new Map<string, Buffer>()
  const tar = extract()
  tar.end(archive)
  for await (const entry of tar) {
    expect(entry.header).toMatchObject({ uid: 0, gid: 0, mode: 0o644, mtime: new Date(0) })
    entries.set(entry.header.name, await buffer(Readable.from(entry)))
  }
  return entries
}

describe('an archive', () => {
  test('of several images that share a layer is loaded whole, whatever is around it', async () => {
    const shared = await tarOf({ 'bin/sh': noise(200_000) })
    const one = imageOf([shared])
    const two = imageOf([shared, await tarOf({ x: 'y' })])
    const archive = await layoutOf([
      { image: one, name: 'docker.io/library/one:1' },
      { image: two, name: 'two:latest' },
    ])
    for (const packed of [archive, gzipSync(archive), zstdTool(archive)]) {
      const loaded = await into(packed)
      expect(loaded.map(({ image, references }) => [image.digest, references])).toEqual([
        [digestOf(one.config), ['one:1']],
        [digestOf(two.config), ['two:latest']],
      ])
      expect(store.inventory()).toMatchObject({ incoming: [], partial: [] })
    }
    expect(store.inventory().layers).toHaveLength(2)
    expect(await store.problems()).toEqual([])
  })

  test('that is saved is loaded elsewhere with the same digests, and saved the same again', async () => {
    const image = imageOf([await tarOf({ a: noise(300_000) }), await tarOf({ '.wh.a': '' })])
    await into(await layoutOf([{ image }]))
    for (const format of ['docker', 'oci'] as const) {
      const request = { format, images: new Map([[digestOf(image.config), [parseReference('team/app:1')]]]) }
      const archive = await buffer(await save(store.images, request, forever))
      const entries = await entriesOf(archive)
      for (const blob of [image.manifest, image.config, ...image.blobs])
        expect(entries.get(blobName(blob))?.equals(blob)).toBe(true)
      expect(entries.has('manifest.json')).toBe(format === 'docker')
      const other = await TestStore.open()
      const [loaded] = await into(archive, other)
      expect(loaded).toMatchObject({ image: { manifestDigest: digestOf(image.manifest) }, references: ['team/app:1'] })
      expect((await buffer(await save(other.images, request, forever))).equals(archive)).toBe(true)
    }
  })

  test('may have a layer with a sparse file, itself in sparse files: only what it holds counts', async () => {
    const directory = mkdtempSync(join(store.directory, 'sparse-'))
    const at = (name: string) => join(directory, name)
    writeFileSync(at('large'), 'begin')
    truncateSync(at('large'), 40 * 1024 ** 3)
    const tarBy = (...argv: string[]) =>
      execFileSync('tar', ['--create', '--sparse', '--directory', directory, ...argv])
    const layer = Buffer.concat([tarBy('--format=pax', 'large'), Buffer.alloc(1 << 20)])
    const image = imageOf([layer], { pack: (tar) => tar, layerType: mediaTypes.layer })
    execFileSync('tar', ['--extract', '--sparse', '--directory', directory], { input: await layoutOf([{ image }]) })
    // A hole where the archive had zeros.
    execFileSync('fallocate', ['--dig-holes', at(blobName(layer))])
    const [loaded] = await into(tarBy('--format=gnu', 'oci-layout', 'index.json', 'blobs'), store, 100_000)
    expect(loaded?.image).toMatchObject({ digest: digestOf(image.config), layers: [{ unpackedBytes: 4096 }] })
    const file = join(store.images.layers.path(digestOf(layer)), 'large')
    expect(lstatSync(file)).toMatchObject({ size: 40 * 1024 ** 3, blocks: 8 })
  })

  test('that nobody reads to its end fails nothing else, and keeps no file open', async () => {
    const image = imageOf([await tarOf({ a: noise(4_000_000) })])
    await into(await layoutOf([{ image }]))
    const failures: unknown[] = []
    const failed = (error: unknown) => failures.push(error)
    process.on('unhandledRejection', failed)
    try {
      const request = parseSave(new URLSearchParams({ image: digestOf(image.config) }))
      const archive = await save(store.images, request, forever)
      let bytes = 0
      for await (const chunk of archive) {
        bytes += chunk.length
        if (bytes > 1_000_000) break
      }
      expect(bytes).toBeLessThan(2_000_000)
      while (openFiles().some((path) => path.startsWith(store.directory)))
        await new Promise((wake) => setTimeout(wake, 10))
      expect(failures).toEqual([])
    } finally {
      process.off('unhandledRejection', failed)
    }
  })

  test('of docker before 25 is loaded: layers as tars, some of them links', async () => {
    const tar = await tarOf({ 'bin/sh': noise(100_000) })
    const middle = await tarOf({ b: 'c' })
    const twice = imageOf([tar, middle, tar], { pack: (one) => one })
    const config = `${digestOf(twice.config).slice(7)}.json`
    const archive = pack()
    archive.entry({ name: 'a/layer.tar' }, tar)
    archive.entry({ name: 'b/layer.tar' }, middle)
    archive.entry({ name: 'c/layer.tar', type: 'symlink', linkname: '../a/layer.tar' })
    archive.entry({ name: config }, twice.config)
    const layers = ['a/layer.tar', 'b/layer.tar', 'c/layer.tar']
    archive.entry(
      { name: 'manifest.json' },
      JSON.stringify([{ Config: config, RepoTags: ['app:1', 'localhost:5000/app:2'], Layers: layers }]),
    )
    archive.entry({ name: 'repositories' }, '{}')
    archive.finalize()
    const [loaded] = await into(await buffer(archive))
    expect(loaded).toMatchObject({
      image: { digest: digestOf(twice.config), layers: [{ mediaType: mediaTypes.layer }, {}, {}] },
      references: ['app:1', 'localhost:5000/app:2'],
    })
    expect(store.inventory().layers).toHaveLength(2)
    expect(await store.problems()).toEqual([])
  })

  test('may hold only what is in it: what the node has besides is not taken', async () => {
    const image = imageOf([await tarOf({ secret: 'x' })])
    await into(await layoutOf([{ image }]))
    const thief = await layoutOf([{ image }], image.blobs[0])
    await expect(into(thief)).rejects.toMatchObject({ code: 'archive_invalid' })
  })

  test('with a wrong byte in it is refused, and nothing is kept', async () => {
    const image = imageOf([await tarOf({ a: noise(10_000) })])
    const archive = await layoutOf([{ image }])
    const at = archive.indexOf(image.blobs[0] ?? '')
    archive[at + 5000] = (archive[at + 5000] ?? 0) ^ 1
    await expect(into(archive)).rejects.toMatchObject({ code: 'archive_invalid' })
    await store.images.collect(new Set(), new Date(Date.now() + 7_200_000))
    expect(store.inventory()).toEqual({ blobs: [], layers: [], partial: [], images: [], incoming: [] })
  })

  test('that adds more than the quota allows is refused', async () => {
    const images = [await tarOf({ a: noise(3000) }), await tarOf({ b: noise(3000) })].map((tar) => ({
      image: imageOf([tar]),
    }))
    await expect(into(await layoutOf(images), store, 5000)).rejects.toMatchObject({ code: 'quota_exceeded' })
    expect(await into(await layoutOf(images), store, 6000)).toHaveLength(2)
  })

  test.each<[string, () => Promise<Buffer>, string]>([
    ['nothing', async () => Buffer.alloc(0), 'archive_invalid'],
    ['no tar', async () => Buffer.from('hello'.repeat(1000)), 'archive_invalid'],
    ['damaged gzip', async () => gzipSync(noise(5000)).subarray(0, 3000), 'archive_invalid'],
    ['a tar of something else', () => tarOf({ a: 'b' }), 'archive_invalid'],
    [
      'a manifest.json that names what is not there',
      () => tarOf({ 'manifest.json': '[{"Config":"c","Layers":["l"]}]' }),
      'archive_invalid',
    ],
    [
      'a cut tar',
      async () => (await layoutOf([{ image: imageOf([await tarOf({ a: noise(9000) })]) }])).subarray(0, 6000),
      'archive_invalid',
    ],
    [
      'another architecture',
      async () => layoutOf([{ image: imageOf([await tarOf({ a: 'b' })], { config: { architecture: 's390x' } }) }]),
      'platform_unsupported',
    ],
    ['a hostile layer', async () => layoutOf([{ image: imageOf([await tarOf({ '../x': 'y' })]) }]), 'image_invalid'],
  ])('of %s is refused', async (_what, make, code) => {
    await expect(into(await make())).rejects.toMatchObject({ code })
    expect(store.inventory()).toMatchObject({ images: [], incoming: [] })
    expect(await store.problems()).toEqual([])
  })
})

test('what there is left of a disk for others is not taken', async () => {
  const archive = await layoutOf([{ image: imageOf([await tarOf({ a: noise(10_000) })]) }])
  const look = jest.spyOn(store.images.content.room, 'left').mockRejectedValue(noRoom())
  await expect(into(archive)).rejects.toMatchObject({ code: 'no_capacity' })
  const tar = Readable.from(chunks(archive))
  await expect(importRoot(store.images, tar, {}, undefined, forever)).rejects.toMatchObject({ code: 'no_capacity' })
  look.mockResolvedValue({ bytes: 5000, inodes: 1000 })
  await expect(into(archive)).rejects.toMatchObject({ code: 'no_capacity' })
  look.mockRestore()
  expect(store.inventory()).toMatchObject({ layers: [], incoming: [] })
  expect(await into(archive)).toHaveLength(1)
})

describe('an import', () => {
  test('makes an image of a tar of a root, packed or not', async () => {
    const tar = await tarOf({ 'etc/': null, 'etc/motd': 'hello' })
    for (const packed of [tar, gzipSync(tar), zstdTool(tar)]) {
      const settings = { command: ['/bin/sh'], env: ['A=b'], comment: 'mine' }
      const image = await importRoot(store.images, Readable.from(chunks(packed)), settings, 1000, forever)
      expect(image).toMatchObject({
        layers: [{ diffId: digestOf(tar), digest: digestOf(packed), unpackedBytes: 5 }],
        history: [{ createdBy: 'import', comment: 'mine' }],
        settings: { command: ['/bin/sh'], env: ['A=b'] },
      })
      const [layer = ''] = store.images.resolve('x', image.digest)?.layers ?? []
      expect(readFileSync(join(layer, 'etc/motd'), 'utf8')).toBe('hello')
    }
    expect(store.inventory().layers).toHaveLength(1)
    expect(await store.problems()).toEqual([])
  })

  test('of a real root made by tar keeps owners, modes and links', async () => {
    const script = `set -e; d=$(mktemp -d); cd $d; mkdir -p usr/bin; echo x > usr/bin/su; chown 7:8 usr/bin/su; chmod 4755 usr/bin/su
      ln usr/bin/su usr/bin/hard; ln -s usr/bin bin; setfattr -n user.a -v b usr/bin/su; tar --xattrs -cf - .; rm -r $d`
    const tar = execFileSync('bash', ['-c', script], { maxBuffer: 1 << 26 })
    const image = await importRoot(store.images, Readable.from(chunks(tar)), {}, undefined, forever)
    const [layer = ''] = store.images.resolve('x', image.digest)?.layers ?? []
    expect(lstatSync(join(layer, 'usr/bin/su'))).toMatchObject({ uid: 7, gid: 8, mode: 0o104755, nlink: 2 })
    expect(await store.problems()).toEqual([])
  })

  test('that could not be within the quota is not taken to its end', async () => {
    let sent = 0
    async function* endless() {
      for (const zeros = Buffer.alloc(1 << 20); ; sent += zeros.length) yield zeros
    }
    const importing = importRoot(store.images, Readable.from(endless()), {}, 1000, forever)
    await expect(importing).rejects.toMatchObject({ code: 'quota_exceeded' })
    expect(sent).toBeLessThan(300 << 20)
    expect(store.inventory()).toMatchObject({ blobs: [], incoming: [] })
  })

  test('of what is no tar is refused', async () => {
    const bytes = Readable.from(chunks(Buffer.from('no tar at all'.repeat(100))))
    await expect(importRoot(store.images, bytes, {}, undefined, forever)).rejects.toMatchObject({
      code: 'image_invalid',
    })
    expect(store.inventory()).toMatchObject({ images: [], layers: [], incoming: [] })
  })
})

test.each([
  ['xz', [0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00]],
  ['bzip2', [0x42, 0x5a, 0x68, 0x39, 0x31, 0x41]],
  ['zstd', [0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x00]],
] as const)(
  'an archive is refused that is packed by %s, where the node has no such program',
  async (program, bytes) => {
    const entries = fileURLToPath(new URL('../../dist/images/entries.js', import.meta.url))
    const script = `
    import { Readable } from 'node:stream'
    import { eachEntry } from ${JSON.stringify(entries)}
    const source = Readable.from([Buffer.from(${JSON.stringify(bytes)})])
    await eachEntry(source, async (entry) => void entry.resume(), new AbortController().signal).catch(({ code, message }) =>
      process.stdout.write(JSON.stringify({ code, message })),
    )`
    // Programs are there no more but for this one.
    const hidden =
      'touch "$1/node" && mount --bind "$2" "$1/node" && mount -t tmpfs none /usr/bin && cd / && exec "$1/node" "$3" "$4"'
    const place = mkdtempSync(join(tmpdir(), 'berth-programs-'))
    const argv = [
      '--mount',
      'sh',
      '-c',
      hidden,
      'sh',
      place,
      process.execPath,
      '--input-type=module',
      `--eval=${script}`,
    ]
    try {
      const told = JSON.parse(execFileSync('unshare', argv, { encoding: 'utf8' }))
      const message = `it is packed by ${program}, and the node has no program for that`
      expect(told).toEqual({ code: 'archive_invalid', message })
    } finally {
      rmSync(place, { recursive: true })
    }
  },
)

test.each([
  ['', 'must be given'],
  ['image=x', 'must be a digest'],
  [`image=sha256:${'a'.repeat(64)}&name=sha256:${'b'.repeat(64)}=x`, 'must be of an image'],
  [`image=sha256:${'a'.repeat(64)}&name=sha256:${'a'.repeat(64)}=UPPER`, 'UPPER'],
  [`image=sha256:${'a'.repeat(64)}&format=zip`, 'docker or oci'],
])('the query %j of a save is refused', (query, why) =>
  expect(() => parseSave(new URLSearchParams(query))).toThrow(why),
)
