// Contexts as clients send them, and as they should not: what is wrong is refused, and nothing of it stays on the node.
import { execFileSync } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
import { mkdirSync, mkdtempSync, readdirSync, rmSync, symlinkSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { buffer } from 'node:stream/consumers'
import { gzipSync } from 'node:zlib'
import { MiB } from '@berth/contracts'
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals'
import { type Header, pack } from 'tar-stream'
import { Content, never } from '../images/content.js'
import { Context, ContextMemory } from './context.js'
import { readSmall } from './tree.js'

let root: string
let content: Content
beforeAll(async () => {
  root = mkdtempSync('/var/tmp/berth-context-')
  content = await Content.open(join(root, 'store'), join(root, 'layout'))
})
afterAll(() => rmSync(root, { recursive: true, force: true }))

type Entry = Partial<Header> & { readonly name: string; readonly text?: string | Buffer }
async function tarOf(entries: readonly Entry[]): Promise<Buffer> {
  const archive = pack()
  for (const { text = '', ...header } of entries)
    if (header.type && header.type !== 'file') archive.entry({ mtime: new Date(0), ...header })
    else archive.entry({ mtime: new Date(0), ...header }, text)
  archive.finalize()
  return buffer(Readable.from(archive))
}

const receive = (tar: Buffer, maxBytes = 64 * MiB, piece = 60_000) =>
  Context.receive(content, Readable.from(pieces(tar, piece)), { maxBytes, signal: never })
function* pieces(bytes: Buffer, piece: number) {
  for (let at = 0; at < bytes.length; at += piece) yield bytes.subarray(at, at + piece)
}
const textOf = async (context: Context, path: string) => (await buffer(context.read(path))).toString()
const left = () => readdirSync(join(root, 'store/incoming'))

describe('a context', () => {
  test('as tar and its packers write it', async () => {
    const tree = join(root, 'tree')
    mkdirSync(join(tree, 'src/deep'), { recursive: true, mode: 0o750 })
    const large = randomBytes(MiB + 100_000)
    writeFileSync(join(tree, 'src/large'), large)
    writeFileSync(join(tree, `src/deep/${'ä'.repeat(100)}`), 'long', { mode: 0o600 })
    writeFileSync(join(tree, 'empty'), '', { mode: 0o755 })
    symlinkSync('/etc/passwd', join(tree, 'link'))
    execFileSync('ln', [join(tree, 'empty'), join(tree, 'zero')])
    for (const how of ['', '--gzip', '--zstd', '--xz', '--bzip2', '--format=pax', '--format=ustar']) {
      if (how === '--format=ustar') rmSync(join(tree, `src/deep/${'ä'.repeat(100)}`))
      const argv = ['--create', ...(how === '' ? [] : [how]), '--owner=1000', '--directory', tree, '.']
      await using context = await receive(execFileSync('tar', argv, { maxBuffer: 16 * MiB }))
      expect(await context.list('')).toEqual(['empty', 'link', 'src', 'zero'])
      expect(await context.lstat('empty')).toMatchObject({ type: 'file', mode: 0o755, uid: 0, gid: 0, size: 0 })
      expect(await context.lstat('link')).toMatchObject({ type: 'symlink', target: '/etc/passwd' })
      expect((await context.lstat('zero'))?.inode).toBe((await context.lstat('empty'))?.inode)
      const { digest, size, mtimeMs } = (await context.lstat('src/large')) ?? {}
      expect([digest, size]).toEqual([createHash('sha256').update(large).digest('hex'), large.length])
      expect(mtimeMs).toBeGreaterThan(1e12)
      expect(large.equals(await buffer(context.read('src/large')))).toBe(true)
      if (how !== '--format=ustar') expect(await textOf(context, `src/deep/${'ä'.repeat(100)}`)).toBe('long')
    }
    expect(left()).toEqual([])
  })

  test('has the last of equal names, and whatever way a name is written', async () => {
    await using context = await receive(
      await tarOf([
        { name: './a/b', text: 'first' },
        { name: '/a//b', text: 'second' },
        { name: 'hard', type: 'link', linkname: './a/b' },
        { name: 'a/b', text: 'third' },
        { name: 'x', text: 'a file' },
        { name: 'x', type: 'directory', mode: 0o700 },
        { name: 'x/y', text: 'below it' },
        { name: 'z/y/x', text: 'gone' },
        { name: 'z/y', type: 'symlink', linkname: '../x' },
        { name: 'a', type: 'directory', mode: 0o711 },
      ]),
      MiB,
      3,
    )
    expect(await textOf(context, 'a/b')).toBe('third')
    expect(await textOf(context, 'hard')).toBe('second')
    expect(await context.lstat('a')).toMatchObject({ type: 'directory', mode: 0o711 })
    expect(await context.list('x')).toEqual(['y'])
    expect(await context.lstat('z/y/x')).toBeUndefined()
    expect((await readSmall(context, 'z/y/y', 100))?.toString()).toBe('below it')
  })

  test('is without what is ignored', async () => {
    await using context = await receive(
      await tarOf(['a/1', 'a/2', 'b/1', 'c/d/1', 'c/d/2'].map((name) => ({ name, text: name }))),
    )
    const ignored = ['a', 'a/1', 'a/2', 'c', 'c/d', 'c/d/1']
    await context.leaveOut((path) => ignored.includes(path))
    expect(await context.list('')).toEqual(['b', 'c'])
    expect(await context.list('c/d')).toEqual(['2'])
  })

  const file = { name: 'a', text: 'x'.repeat(600) }
  test.each<[string, readonly Entry[], RegExp]>([
    ['a way up', [{ name: 'a/../../b' }], /"\.\."/],
    ['a device', [{ name: 'a', type: 'block-device' }], /devices/],
    ['a terminal', [{ name: 'a', type: 'character-device' }], /devices/],
    ['a named pipe', [{ name: 'a', type: 'fifo' }], /pipes/],
    ['a hard link to nothing', [{ name: 'a', type: 'link', linkname: 'b' }, { name: 'b' }], /no file before/],
    [
      'a hard link to a directory',
      [
        { name: 'b', type: 'directory' },
        { name: 'a', type: 'link', linkname: 'b' },
      ],
      /no file/,
    ],
    ['a hard link out', [{ name: 'a', type: 'link', linkname: '../../etc/passwd' }], /"\.\."/],
    ['a file on the way', [file, { name: 'a/b' }], /no directory/],
    ['a link on the way', [{ name: 'l', type: 'symlink', linkname: '/etc' }, { name: 'l/passwd' }], /no directory/],
    ['a root that is a file', [{ name: './', type: 'symlink', linkname: 'x' }], /root/],
    ['a name that is too long', [{ name: 'x'.repeat(256) }], /too long/],
    ['too many directories', [{ name: 'x/'.repeat(600) }], /deep/],
    ['more bytes than it may', [{ name: 'a', text: Buffer.alloc(1 * MiB) }], /more than/],
    ['more bytes than it may, of nothing', Array(2100).fill({ name: 'a', type: 'directory' }), /more than/],
  ])('with %s is refused', async (_, entries, why) => {
    const tar = await tarOf(entries)
    await expect(receive(tar, MiB)).rejects.toMatchObject({
      code: 'context_invalid',
      message: expect.stringMatching(why),
    })
    expect(left()).toEqual([])
  })

  test('that is no tar, or not all of it, is refused', async () => {
    const tar = await tarOf([file, { name: 'b', text: 'y' }])
    const cut = [0, 1, 300, 512, 700, 1024, 1536, 2048].map((length) => tar.subarray(0, length))
    const packed = gzipSync(tar)
    const wrong = [...cut, packed.subarray(0, packed.length - 9), Buffer.from('FROM scratch\n'), randomBytes(4096)]
    for (const bytes of wrong) await expect(receive(bytes)).rejects.toMatchObject({ code: 'context_invalid' })
    expect(left()).toEqual([])
  })

  test('that unpacks to far more than it is, is refused before it is unpacked', async () => {
    const bombs = [Buffer.alloc(400 * MiB), Buffer.concat([await tarOf([file]), Buffer.alloc(100 * MiB)])]
    for (const bomb of bombs.map((bytes) => gzipSync(bytes, { level: 1 })))
      await expect(receive(bomb, 32 * MiB)).rejects.toMatchObject({ code: 'context_invalid' })
  })

  test('may have sparse files, as large as they are with their holes', async () => {
    writeFileSync(join(root, 'sparse'), 'begin')
    for (const format of ['gnu', 'pax']) {
      const argv = ['--create', '--sparse', `--format=${format}`, '--directory', root, 'sparse']
      truncateSync(join(root, 'sparse'), 2 * MiB)
      await using context = await receive(execFileSync('tar', argv))
      expect(await context.lstat('sparse')).toMatchObject({ type: 'file', size: 2 * MiB })
      expect(await textOf(context, 'sparse')).toBe(`begin${'\0'.repeat(2 * MiB - 5)}`)
      truncateSync(join(root, 'sparse'), 2 ** 40)
      const error = { code: 'context_invalid', message: expect.stringContaining(`more than ${64 * MiB} bytes`) }
      await expect(receive(execFileSync('tar', argv))).rejects.toMatchObject(error)
    }
  })

  test('whose sender goes away leaves nothing', async () => {
    const tar = await tarOf([{ name: 'a', text: Buffer.alloc(8 * MiB) }])
    const leaving = new AbortController()
    const source = Readable.from(
      (async function* () {
        yield tar.subarray(0, 2 * MiB)
        leaving.abort(new Error('gone'))
        await new Promise(() => undefined)
      })(),
    )
    const received = Context.receive(content, source, { maxBytes: 64 * MiB, signal: leaving.signal })
    await expect(received).rejects.toThrow('gone')
    expect(left()).toEqual([])
  })

  test('of many small files is taken in, in whatever order they are read', async () => {
    const archive = pack()
    const bytes = buffer(Readable.from(archive))
    for (let n = 0; n < 20_000; n++)
      await new Promise((done) => archive.entry({ name: `d${n % 300}/file${n}`, mtime: new Date(0) }, `${n}`, done))
    archive.finalize()
    await using context = await receive(await bytes)
    expect(await context.list('')).toHaveLength(300)
    for (const n of [99, 399, 19_899, 100, 101, 102, 103, 10, 19_999])
      expect(await textOf(context, `d${n % 300}/file${n}`)).toBe(`${n}`)
  })
})

test('all contexts of a node, and of a tenant, have so many entries, which those that end give back', async () => {
  const whole = new ContextMemory(7)
  const memory = new ContextMemory(5, whole)
  const receiveIn = async (memory: ContextMemory, names: readonly string[]) =>
    Context.receive(content, Readable.from([await tarOf(names.map((name) => ({ name })))]), {
      ...{ maxBytes: MiB, memory, signal: never },
    })
  const of = (...names: readonly string[]) => receiveIn(memory, names)
  const first = await of('a', 'd/b')
  await expect(of('a', 'b', 'c')).rejects.toMatchObject({ code: 'no_capacity' })
  await using _second = await of('a', 'b')
  await first.close()
  await using _third = await of('a', 'b', 'c')
  await using _ofAnother = await receiveIn(new ContextMemory(5, whole), ['a', 'b'])
  await expect(receiveIn(new ContextMemory(5, whole), ['a'])).rejects.toMatchObject({ code: 'no_capacity' })
  expect(left()).toEqual([])
})
