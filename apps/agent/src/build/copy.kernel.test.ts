// COPY, ADD and WORKDIR as layers of the store, put on one another as sandboxes mount them.
import { execFileSync } from 'node:child_process'
import { lstatSync, mkdtempSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { buffer } from 'node:stream/consumers'
import { gzipSync } from 'node:zlib'
import { MiB } from '@berth/contracts'
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals'
import { type Header, pack } from 'tar-stream'
import { addLayer } from '../images/ingest.js'
import { forever, TestStore } from '../images/store.fixture.js'
import { Context } from './context.js'
import { type CopyOptions, copyLayer, sourceLayer, workdirLayer } from './copy.js'
import { LayerTree } from './layer-tree.js'
import { treeOf } from './tree.fixture.js'
import { below, emptyTree, type Tree } from './tree.js'

const NOW = 1_700_000_000_000
const signal = forever
let store: TestStore
beforeAll(async () => {
  store = await TestStore.open()
})
afterAll(() => TestStore.removeAll())

const packedBy = (program: string, bytes: Buffer) => execFileSync(program, ['--stdout', '--quiet'], { input: bytes })

type Entry = Partial<Header> & { readonly name: string; readonly text?: string | Buffer }
async function tarOf(entries: readonly Entry[]): Promise<Buffer> {
  const archive = pack()
  for (const { text = '', ...header } of entries)
    if (header.type && header.type !== 'file') archive.entry({ mtime: new Date(NOW), ...header })
    else archive.entry({ mtime: new Date(NOW), ...header }, text)
  archive.finalize()
  return buffer(Readable.from(archive))
}
const contextOf = async (entries: readonly Entry[]) =>
  Context.receive(store.images.content, Readable.from([await tarOf(entries)]), { maxBytes: 200 * MiB, signal })

const plain = {
  ...{ sources: [] as string[], inline: [], destination: '/', chown: null, chmod: null },
  ...{ link: false, extract: false, exclude: [], parents: false },
}
const made = (from: Tree, onto: Tree, op: Partial<CopyOptions['op']>) =>
  copyLayer({ from, onto, op: { ...plain, ...op }, newestMs: NOW, signal })

/** DiffIDs, the lowest first → what is to be seen. */
const treeOn = (layers: readonly string[]) => LayerTree.open(store.images.layerPaths(layers), signal)
async function layerOf(tar: Readable): Promise<string> {
  return (await addLayer(store.images, tar, { signal })).diffId
}
async function seen(tree: Tree, path = ''): Promise<string[]> {
  const lines = []
  for (const name of await tree.list(path)) {
    const node = await tree.lstat(below(path, name))
    const text = node?.type === 'file' ? `=${(await buffer(tree.read(below(path, name)))).subarray(0, 20)}` : ''
    lines.push(
      `${node?.type} ${node?.mode.toString(8)} ${node?.uid}:${node?.gid} ${below(path, name)}${text}${node?.target ?? ''}`,
    )
    lines.push(...(await seen(tree, below(path, name))))
  }
  return lines
}

describe('COPY', () => {
  test('makes a layer that shows with those below it as it should', async () => {
    await using context = await contextOf([
      { name: 'app/run', text: 'run', mode: 0o4755 },
      // No permissions: tar-stream takes 0 for none given.
      { name: 'app/none', type: 'file', text: '', mode: 0o10000 },
      { name: 'app/twin', type: 'link', linkname: 'app/run' },
      { name: `app/${'long'.repeat(40)}`, text: 'long' },
      { name: 'app/ünïcode', type: 'symlink', linkname: `../${'way/'.repeat(40)}ü` },
      { name: 'etc/passwd', text: 'app:x:300000:7:::\n' },
      { name: 'tmp', type: 'directory', mode: 0o1777, mtime: new Date(1000) },
    ])
    const base = await layerOf(made(context, emptyTree, { sources: ['etc', 'tmp'], parents: true }).tar())
    const onto = await treeOn([base])
    const app = await layerOf(made(context, onto, { sources: ['app'], destination: '/tmp/app', chown: 'app' }).tar())
    const twin = lstatSync(join(store.images.layers.path(app), 'tmp/app/twin'))
    expect(twin.nlink).toBe(2)
    const tree = await treeOn([base, app])
    expect(await seen(tree, 'tmp')).toEqual([
      'directory 755 300000:7 tmp/app',
      `file 644 300000:7 tmp/app/${'long'.repeat(40)}=long`,
      'file 0 300000:7 tmp/app/none=',
      'file 4755 300000:7 tmp/app/run=run',
      'file 4755 300000:7 tmp/app/twin=run',
      `symlink 777 300000:7 tmp/app/ünïcode../${'way/'.repeat(40)}ü`,
    ])
    expect(await tree.lstat('tmp')).toMatchObject({ mode: 0o1777, mtimeMs: 1000 })
    // From a stage: what is of somebody stays so.
    const again = await layerOf(made(tree, emptyTree, { sources: ['tmp/app'], destination: '/x' }).tar())
    expect(await seen(await treeOn([again]), 'x/run')).toEqual([])
    expect(await (await treeOn([again])).lstat('x/run')).toMatchObject({ uid: 300000, gid: 7, mode: 0o4755 })
  })

  test('keeps attributes, whatever bytes they are', async () => {
    const directory = mkdtempSync(join(store.directory, 'stage-'))
    writeFileSync(join(directory, 'ping'), 'x', { mode: 0o755 })
    // cap_setuid and cap_net_raw: a byte of it is no text.
    execFileSync('setcap', ['cap_setuid,cap_net_raw+ep', join(directory, 'ping')])
    execFileSync('setfattr', ['-n', 'user.note', '-v', 'ä=b\n', join(directory, 'ping')])
    const from = await LayerTree.open([directory], signal)
    const layer = await layerOf(made(from, emptyTree, { sources: ['/'], destination: '/bin' }).tar())
    const file = join(store.images.layers.path(layer), 'bin/ping')
    expect(execFileSync('getcap', [file], { encoding: 'utf8' })).toContain('cap_setuid')
    const note = execFileSync('getfattr', ['--only-values', '--absolute-names', '-n', 'user.note', file])
    expect(note.toString()).toBe('ä=b\n')
  })

  test('has a key that is of what is copied, and of no times', async () => {
    const entries = [
      { name: 'd/a', text: 'x' },
      { name: 'd/b', text: 'y' },
    ]
    const keyOf = async (changed: readonly Entry[], op: Partial<CopyOptions['op']> = {}) => {
      await using context = await contextOf(changed)
      return made(context, emptyTree, { sources: ['d'], destination: '/x', ...op }).key
    }
    const key = await keyOf(entries)
    expect(key).toMatch(/^[0-9a-f]{64}$/)
    expect(await keyOf([...entries].reverse().map((entry) => ({ ...entry, mtime: new Date(5000) })))).toBe(key)
    const others = await Promise.all([
      keyOf([
        { name: 'd/a', text: 'x' },
        { name: 'd/b', text: 'z' },
      ]),
      keyOf([
        { name: 'd/a', text: 'x' },
        { name: 'd/b', text: 'y', mode: 0o600 },
      ]),
      keyOf([
        { name: 'd/a', text: 'x' },
        { name: 'd/c', text: 'y' },
      ]),
      keyOf([
        { name: 'd/a', text: 'x' },
        { name: 'd/b', type: 'symlink', linkname: 'y' },
      ]),
      keyOf([...entries, { name: 'd/e', type: 'directory' }]),
      keyOf(entries, { chown: '1' }),
      keyOf(entries, { chmod: '600' }),
      keyOf(entries, { exclude: ['b'] }),
    ])
    expect(new Set([key, ...others]).size).toBe(9)
    // The same of files that are in a layer, whose digests nobody knows.
    await using context = await contextOf(entries)
    const layer = await layerOf(made(context, emptyTree, { sources: ['d'], destination: '/d' }).tar())
    expect(await made(await treeOn([layer]), emptyTree, { sources: ['d'], destination: '/x' }).key).toBe(key)
  })

  test('is the same layer again, and whatever its files’ times beyond the newest', async () => {
    const tars: Buffer[] = []
    for (const mtime of [new Date(NOW + 5000), new Date(NOW + 9000), new Date(NOW + 9000)]) {
      await using context = await contextOf([{ name: 'd/a', text: 'x', mtime }])
      tars.push(await buffer(made(context, emptyTree, { sources: ['/'], destination: '/x' }).tar()))
    }
    expect(tars.every((tar) => tar.equals(tars[0] ?? Buffer.alloc(0)))).toBe(true)
  })

  test('ends when its reader leaves, and when it is told to', async () => {
    await using context = await contextOf([{ name: 'a', text: Buffer.alloc(20 * MiB) }])
    const tar = made(context, emptyTree, { sources: ['a'], destination: '/x' }).tar()
    for await (const _ of tar) break
    expect(tar.destroyed).toBe(true)
    const ending = new AbortController()
    const op = { ...plain, sources: ['a'], destination: '/x' }
    const ended = copyLayer({ from: context, onto: emptyTree, op, newestMs: NOW, signal: ending.signal }).tar()
    const read = (async () => {
      for await (const _ of ended) ending.abort(new Error('told to'))
    })()
    await expect(read).rejects.toThrow('told to')
    const failing = addLayer(store.images, made(context, emptyTree, { sources: ['b'] }).tar(), { signal })
    await expect(failing).rejects.toMatchObject({ code: 'build_failed', message: '"b": not found' })
  })
})

describe('ADD', () => {
  const add = async (archive: Buffer, onto: Tree = emptyTree, op: Partial<CopyOptions['op']> = {}) => {
    await using context = await contextOf([{ name: 'x', text: archive }])
    const layer = made(context, onto, { sources: ['x'], destination: '/d', extract: true, ...op })
    return { key: await layer.key, layer: await layerOf(layer.tar()) }
  }

  test('unpacks archives, and nothing else', async () => {
    const tar = await tarOf([
      { name: './', type: 'directory', mode: 0o700 },
      { name: 'e/f', text: 'file', mode: 0o640, uid: 5, gid: 6 },
      { name: 'e', type: 'directory', mode: 0o711 },
      { name: 'h', type: 'link', linkname: './e/f' },
      { name: 'l', type: 'symlink', linkname: '/etc' },
      { name: 'far', text: 'x', pax: { uid: '3000000', gid: '4000000000' } },
    ])
    const all = [
      'directory 755 0:0 d',
      'directory 711 0:0 d/e',
      'file 640 5:6 d/e/f=file',
      'file 644 3000000:4000000000 d/far=x',
      'file 640 5:6 d/h=file',
      'symlink 777 0:0 d/l/etc',
    ]
    const layers = []
    for (const packed of [tar, gzipSync(tar), ...['zstd', 'xz', 'bzip2'].map((program) => packedBy(program, tar))])
      layers.push((await add(packed)).layer)
    expect(new Set(layers).size).toBe(1)
    expect(await seen(await treeOn(layers.slice(0, 1)))).toEqual(all)
    const chowned = await treeOn([(await add(tar, emptyTree, { chown: '9:8' })).layer])
    expect(await chowned.lstat('d/e/f')).toMatchObject({ uid: 9, gid: 8, mode: 0o640 })
    const others = [
      Buffer.from('text'),
      Buffer.alloc(2048),
      gzipSync(Buffer.from('no tar')),
      Buffer.from('BZh no bzip2'),
    ]
    for (const other of others) {
      const tree = await treeOn([(await add(other)).layer])
      expect(await tree.lstat('d')).toMatchObject({ type: 'file', size: other.length })
    }
  })

  test('unpacks sparse files as GNU tar has them, with their names and their zeros', async () => {
    const directory = mkdtempSync(join(store.directory, 'sparse-'))
    writeFileSync(join(directory, 'f'), 'begin')
    truncateSync(join(directory, 'f'), 5 * MiB)
    const layers = []
    for (const how of ['gnu', 'pax']) {
      const argv = ['--create', '--sparse', `--format=${how}`, '--mtime=@1', '--directory', directory, 'f']
      const { layer } = await add(execFileSync('tar', argv))
      const tree = await treeOn([layer])
      expect(await tree.list('d')).toEqual(['f'])
      expect((await buffer(tree.read('d/f'))).equals(Buffer.alloc(5 * MiB).fill('begin', 0, 5))).toBe(true)
      layers.push(layer)
    }
    expect(layers[0]).toBe(layers[1])
  })

  test('unpacks within its directory, whatever links lead out of it', async () => {
    await using image = await contextOf([
      { name: 'd/out', type: 'symlink', linkname: '/etc' },
      { name: 'd/up', type: 'symlink', linkname: '../../etc' },
      { name: 'd/in', type: 'symlink', linkname: 'sub' },
      { name: 'd/sub', type: 'directory', mode: 0o750 },
      { name: 'd/file', text: 'old' },
      { name: 'etc/passwd', text: 'root' },
    ])
    const base = await layerOf(made(image, emptyTree, { sources: ['/'] }).tar())
    const tar = await tarOf([
      { name: 'out/passwd', text: 'evil' },
      { name: 'up/passwd', text: 'evil' },
      { name: 'own', type: 'symlink', linkname: '/../../etc' },
      { name: 'own/group', text: 'evil' },
      { name: 'in', type: 'directory', mode: 0o777 },
      { name: 'in/x', text: 'x' },
    ])
    const layer = (await add(tar, await treeOn([base]))).layer
    const tree = await treeOn([base, layer])
    expect(await seen(tree, 'etc')).toEqual(['file 644 0:0 etc/passwd=root'])
    expect(await seen(tree, 'd/etc')).toEqual(['file 644 0:0 d/etc/group=evil', 'file 644 0:0 d/etc/passwd=evil'])
    expect(await tree.lstat('d/in')).toMatchObject({ type: 'symlink' })
    expect(await tree.lstat('d/sub')).toMatchObject({ type: 'directory', mode: 0o777 })
    expect(await seen(tree, 'd/sub')).toEqual(['file 644 0:0 d/sub/x=x'])
  })

  test('has what comes last of one name, and what takes the place of another kind', async () => {
    await using image = await contextOf([
      { name: 'd/a/old', text: 'old' },
      { name: 'd/b', text: 'old' },
    ])
    const base = await layerOf(made(image, emptyTree, { sources: ['/'] }).tar())
    const tar = await tarOf([
      { name: 'a', text: 'a file now' },
      { name: 'c/x/y', text: '1' },
      { name: 'c', text: '2' },
      { name: 'c', type: 'directory' },
      { name: 'c/z', text: '3' },
    ])
    const tree = await treeOn([base, (await add(tar, await treeOn([base]))).layer])
    expect(await seen(tree, 'd')).toEqual([
      ...['file 644 0:0 d/a=a file now', 'file 644 0:0 d/b=old', 'directory 755 0:0 d/c', 'file 644 0:0 d/c/z=3'],
    ])
  })

  test.each<[string, readonly Entry[], RegExp]>([
    ['a way up', [{ name: 'a/../../b' }], /leads out/],
    ['a hard link out', [{ name: 'a', type: 'link', linkname: '../etc/passwd' }], /leads out/],
    ['a hard link to what it has not', [{ name: 'a', type: 'link', linkname: 'etc/passwd' }], /hard link/],
    ['a device', [{ name: 'a', type: 'block-device' }], /devices/],
    ['a file on the way', [{ name: 'a' }, { name: 'a/b' }], /no directory/],
    [
      'links round and round',
      [{ name: 'a', type: 'symlink', linkname: 'b' }, { name: 'b', type: 'symlink', linkname: 'a' }, { name: 'a/x' }],
      /too many links/,
    ],
    ['too many directories', [{ name: 'x/'.repeat(600) }], /deep/],
    ['a whiteout', [{ name: '.wh.etc' }], /\.wh\./],
  ])('of an archive with %s is refused', async (_, entries, why) => {
    await expect(add(await tarOf(entries))).rejects.toMatchObject({
      code: 'build_failed',
      message: expect.stringMatching(why),
    })
  })

  test('of an archive that is cut, or becomes far more than it may, is refused', async () => {
    const cut = gzipSync(
      await tarOf([
        { name: 'a', text: 'x' },
        { name: 'b', text: Buffer.alloc(MiB, 'y') },
      ]),
    )
    await expect(add(cut.subarray(0, -600))).rejects.toMatchObject({ code: 'build_failed' })
    await using context = await contextOf([
      { name: 'x', text: gzipSync(await tarOf([{ name: 'a', text: Buffer.alloc(100 * MiB) }])) },
    ])
    const bomb = made(context, emptyTree, { sources: ['x'], destination: '/', extract: true }).tar()
    await expect(addLayer(store.images, bomb, { maxBytes: MiB, signal })).rejects.toMatchObject({
      code: 'quota_exceeded',
    })
  })
})

describe('WORKDIR', () => {
  const make = async (onto: Tree, path: string, user = '') => {
    const layer = await workdirLayer(onto, path, user, { newestMs: NOW, signal })
    return layer && seen(await treeOn([await layerOf(layer.tar())]))
  }
  const onto = treeOf({
    'etc/passwd': 'app:x:5:6:::\n',
    opt: { directory: true, mode: 0o700, uid: 3 },
    link: { link: '/opt' },
    'opt/file': 'x',
  })

  test('makes what is missing, of the user', async () => {
    expect(await make(onto, '/link/a/b', 'app')).toEqual([
      ...['directory 700 3:0 opt', 'directory 755 5:6 opt/a', 'directory 755 5:6 opt/a/b'],
    ])
  })

  test('makes nothing where all is there, and says what is in the way', async () => {
    expect(await make(onto, '/link/.')).toBeUndefined()
    expect(await make(onto, '/')).toBeUndefined()
    await expect(make(onto, '/opt/file/x')).rejects.toThrow('/opt/file is there, and is no directory')
    await expect(make(onto, '/x', 'nobody')).rejects.toMatchObject({ code: 'build_failed' })
  })
})

test('what a RUN is shown of a tree is a layer of its own', async () => {
  const tree = treeOf({ 'a/*b/c': 'c', 'a/link': { link: '*b' }, 'a/*b/d': { text: 'd', uid: 7 } })
  const options = { newestMs: NOW, signal }
  const directory = await sourceLayer(tree, '/a/link', options)
  expect(directory.path).toBe('')
  expect(await seen(await treeOn([await layerOf(directory.tar())]))).toEqual(['file 644 0:0 c=c', 'file 644 7:0 d=d'])
  const file = await sourceLayer(tree, 'a/*b/d', options)
  expect(file.path).toBe('d')
  expect(await seen(await treeOn([await layerOf(file.tar())]))).toEqual(['file 644 7:0 d=d'])
  expect(await directory.key).not.toBe(await file.key)
  await expect(sourceLayer(tree, 'nothing', options)).rejects.toMatchObject({ code: 'build_failed' })
  // Nobody asks for its key: nothing is computed that could fail.
  const ended = new AbortController()
  await sourceLayer(tree, '/a', { ...options, signal: ended.signal })
  ended.abort(new Error('it was canceled'))
  await new Promise((resolve) => setImmediate(resolve))
})
