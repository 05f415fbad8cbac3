// berth-layer against a real kernel: what overlayfs needs is there, what a layer must not bring is not, and nothing leads
// out of its directory.
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import {
  closeSync,
  existsSync,
  ftruncateSync,
  lstatSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  utimesSync,
  writeSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { run } from '@berth/host'
import { afterEach, beforeEach, describe, expect, test } from '@jest/globals'
import { build } from './test/agent.js'
import { type Member, sparseKinds, sparseTar, tar } from './test/tar.js'

// On a disk: a tmpfs before Linux 6.6 knows no attributes of users.
const scratch = existsSync('/var/tmp') ? '/var/tmp' : tmpdir()
let dir: string
beforeEach(() => {
  dir = mkdtempSync(join(scratch, 'berth-layer-'))
})
afterEach(() => rmSync(dir, { recursive: true, force: true }))
const at = (...parts: string[]) => join(dir, ...parts)

interface Limits {
  readonly bytes?: number
  readonly withHoles?: number
  readonly entries?: number
}

async function unpack(
  input: Buffer | readonly Member[],
  { bytes = 1 << 20, withHoles = 1 << 30, entries = 1000 }: Limits = {},
) {
  const limits = [bytes, withHoles, entries].map(String)
  const child = spawn(join(build, 'berth-layer'), [dir, ...limits])
  const said = { out: '', err: '' }
  child.stdout.on('data', (chunk: Buffer) => {
    said.out += chunk.toString()
  })
  child.stderr.on('data', (chunk: Buffer) => {
    said.err += chunk.toString()
  })
  child.stdin.on('error', () => undefined)
  child.stdin.end(Buffer.isBuffer(input) ? input : tar(input))
  const [code] = await once(child, 'close')
  return { code, ...said }
}

const file = (name: string, content = 'x', more: Partial<Member> = {}): Member => ({ name, content, ...more })
const folder = (name: string, more: Partial<Member> = {}): Member => ({ name, type: '5', mode: 0o755, ...more })
const attribute = async (name: string, path: string) => {
  const { stdout, exitCode } = await run(['getfattr', '-h', '--absolute-names', '--only-values', '-n', name, path])
  return exitCode === 0 ? stdout : undefined
}
const isWhiteout = (path: string) => lstatSync(path).isCharacterDevice() && lstatSync(path).rdev === 0

describe('a layer', () => {
  test('is unpacked with owners, modes, times, links and pipes', async () => {
    const outcome = await unpack([
      folder('./'),
      folder('./d', { uid: 7, gid: 8, mode: 0o1750, mtime: 1000 }),
      file('/d/f', 'hello', { uid: 1000, gid: 100_000, mode: 0o4755, mtime: 2000 }),
      { name: 'd/hard', type: '1', link: './d/f' },
      { name: 'd/soft', type: '2', link: '/etc/../../x', uid: 5 },
      { name: 'p', type: '6', mode: 0o600 },
      file('not/named/before', ''),
    ])
    expect(outcome).toEqual({ code: 0, out: '7 5\n', err: '' })
    expect(lstatSync(at('d'))).toMatchObject({ uid: 7, gid: 8, mode: 0o041750, mtimeMs: 1_000_000 })
    expect(lstatSync(at('d/f'))).toMatchObject({
      uid: 1000,
      gid: 100_000,
      mode: 0o104755,
      mtimeMs: 2_000_000,
      nlink: 2,
    })
    expect(readFileSync(at('d/hard'), 'utf8')).toBe('hello')
    expect(readlinkSync(at('d/soft'))).toBe('/etc/../../x')
    expect(lstatSync(at('p')).isFIFO()).toBe(true)
    // What no entry named is the same whenever it is unpacked.
    expect(lstatSync(at('not/named'))).toMatchObject({ uid: 0, mode: 0o040755, mtimeMs: 0 })
    expect(lstatSync(dir)).toMatchObject({ mtimeMs: 0 })
  })

  test('hides by whiteouts, whichever of the two comes first', async () => {
    const { code } = await unpack([
      file('.wh.gone', ''),
      file('etc/.wh.motd', ''),
      file('a/.wh..wh..opq', ''),
      file('.wh.b', ''),
      file('b/new'),
      folder('c'),
      file('c/new'),
      file('.wh.c', ''),
      file('f'),
      file('.wh.f', ''),
      file('.wh.g', ''),
      file('g'),
      file('.wh..wh.plnk/x'),
    ])
    expect(code).toBe(0)
    expect([isWhiteout(at('gone')), isWhiteout(at('etc/motd'))]).toEqual([true, true])
    expect(lstatSync(at('gone')).mtimeMs).toBe(0)
    // A directory in the place of a hidden one shows nothing of it.
    for (const name of ['a', 'b', 'c']) expect(await attribute('trusted.overlay.opaque', at(name))).toBe('y')
    expect([readdirSync(at('b')), readdirSync(at('c'))]).toEqual([['new'], ['new']])
    expect([lstatSync(at('f')).isFile(), lstatSync(at('g')).isFile()]).toEqual([true, true])
    expect(await attribute('trusted.overlay.opaque', at('etc'))).toBeUndefined()
  })

  test('keeps attributes that mean the same everywhere, and no others', async () => {
    const capability = `${'\u0001\0\0\u0002\0\u0004\0\0'}${'\0'.repeat(12)}`
    const { code } = await unpack([
      file('f', 'x', {
        uid: 3,
        pax: {
          'SCHILY.xattr.user.note': 'a=b',
          'SCHILY.xattr.security.capability': capability,
          'SCHILY.xattr.user.overlay.opaque': 'y',
          'SCHILY.xattr.trusted.overlay.opaque': 'y',
          'SCHILY.xattr.trusted.overlay.redirect': '/etc',
          'SCHILY.xattr.security.selinux': 'x',
        },
      }),
      file('g'),
    ])
    expect(code).toBe(0)
    expect(await attribute('user.note', at('f'))).toBe('a=b')
    const { stdout } = await run(['getfattr', '--absolute-names', '-m', '-', at('f')])
    expect(
      stdout
        .split('\n')
        .filter((line) => /^\w/.test(line))
        .sort(),
    ).toEqual(['security.capability', 'user.note'])
    expect((await run(['getfattr', '--absolute-names', '-m', '-', at('g')])).stdout).toBe('')
  })

  test('may name an entry twice: the later counts', async () => {
    const { code } = await unpack([
      file('a', 'first'),
      file('a', 'second'),
      folder('d'),
      file('d/e/f'),
      file('d', 'now a file'),
      { name: 'l', type: '2', link: '/etc' },
      folder('l'),
      file('l/x'),
      folder('t', { mtime: 1 }),
      folder('t', { mtime: 2 }),
    ])
    expect(code).toBe(0)
    expect([readFileSync(at('a'), 'utf8'), readFileSync(at('d'), 'utf8')]).toEqual(['second', 'now a file'])
    expect(readdirSync(at('l'))).toEqual(['x'])
    expect(lstatSync(at('t')).mtimeMs).toBe(2000)
  })

  test('leaves out devices of /dev, and may end without its marker', async () => {
    const bytes = tar([{ name: 'dev/null', type: '3' }, file('x')])
    expect(await unpack(bytes.subarray(0, 3 * 512))).toEqual({ code: 0, out: '2 1\n', err: '' })
    expect(readdirSync(dir)).toEqual(['x'])
  })
})

/** One of pax; a map that is in its content is filled up to whole blocks. */
const sparse = (records: Readonly<Record<string, string>>, content = ''): Member => ({
  name: 's',
  content: records.major === '1' ? content.padEnd(Math.ceil(content.length / 512) * 512, '\0') : content,
  pax: Object.fromEntries(Object.entries(records).map(([key, value]) => [`GNU.sparse.${key}`, value])),
})

/** So many pieces of five bytes, each alone in 64 KiB; a hole at the end if it is `open`. @returns its bytes */
function makeSparse(path: string, pieces: number, open: boolean): Buffer {
  const fd = openSync(path, 'w')
  for (let i = 0; i < pieces; i++) writeSync(fd, `p${i}`.padEnd(5, '.'), (i + 1) * 65_536 - 5)
  if (open) ftruncateSync(fd, (pieces + 1) * 65_536)
  closeSync(fd)
  utimesSync(path, 1000, 1000)
  return readFileSync(path)
}

describe.each(sparseKinds)('a layer with files with holes, as GNU tar has them: %s', (kind) => {
  let from: string
  beforeEach(() => {
    from = mkdtempSync(join(scratch, 'berth-sparse-'))
  })
  afterEach(() => rmSync(from, { recursive: true, force: true }))

  test('has them under their names, whole, and with their holes', async () => {
    const long = 'l'.repeat(180)
    const contents = {
      few: makeSparse(join(from, 'few'), 3, false),
      many: makeSparse(join(from, 'many'), 60, true),
      nothing: makeSparse(join(from, 'nothing'), 0, true),
      [long]: makeSparse(join(from, long), 4, true),
    }
    const archive = sparseTar(kind, from, Object.keys(contents))
    // A piece takes its block of 4 KiB: that is what counts.
    expect(await unpack(archive)).toEqual({ code: 0, out: `4 ${67 * 4096}\n`, err: '' })
    expect(readdirSync(dir).sort()).toEqual(Object.keys(contents).sort())
    for (const [name, bytes] of Object.entries(contents)) expect(readFileSync(at(name)).equals(bytes)).toBe(true)
    expect(lstatSync(at('many')).blocks * 512).toBeLessThan(1 << 20)
    expect(lstatSync(at('many')).mtimeMs).toBe(1_000_000)
  })

  test('is bounded by what they take, and by how large they are', async () => {
    makeSparse(join(from, 'f'), 10, true)
    const archive = sparseTar(kind, from, ['f'])
    const large = { code: 5, err: 'f: the layer is too large\n' }
    expect(await unpack(archive, { bytes: 10 * 4096 - 1 })).toMatchObject(large)
    const holes = { code: 3, err: 'f: the files are too large with their holes\n' }
    expect(await unpack(archive, { withHoles: 11 * 65_536 - 1 })).toMatchObject(holes)
    expect(await unpack(archive, { bytes: 10 * 4096, withHoles: 11 * 65_536 })).toMatchObject({ code: 0 })
  })
})

test('a file of all that numbers can say, which is nothing but a hole, is refused', async () => {
  const bomb = (size: string) => unpack([sparse({ size, map: '0,0' })], { bytes: 1 << 20, withHoles: 2 ** 36 })
  expect(await bomb('9223372036854775800')).toMatchObject({ code: 3 })
  expect(await bomb('922337203685477579')).toMatchObject({ code: 3, err: expect.stringMatching(/with their holes/) })
  // Nor are many, each of which may be.
  const many = [sparse({ size: String(2 ** 35), map: '0,0' }), sparse({ size: String(2 ** 35 + 1), map: '0,0' })]
  expect(await unpack(many, { withHoles: 2 ** 36 })).toMatchObject({ code: 3 })
})

const outside = `/tmp/berth-layer-${process.pid}`
test.each<[string, readonly Member[], RegExp]>([
  ['a name with ..', [file('../x')], /a name with \.\./],
  ['a way through a link', [{ name: 'l', type: '2', link: '/tmp' }, file('l/x')], /no directory/],
  ['a way through a hard link', [file('f'), file('f/x')], /no directory/],
  ['a hard link out', [{ name: 'h', type: '1', link: '../../etc/shadow' }], /a name with \.\./],
  [
    'a hard link through a link',
    [
      { name: 'l', type: '2', link: '/etc' },
      { name: 'h', type: '1', link: 'l/shadow' },
    ],
    /not in/,
  ],
  ['a hard link to another layer', [{ name: 'h', type: '1', link: 'etc/shadow' }], /not in this layer/],
  ['a hard link to a whiteout', [file('.wh.w', ''), { name: 'h', type: '1', link: 'w' }], /no file/],
  ['a hard link to a directory', [folder('d'), { name: 'h', type: '1', link: 'd' }], /no file/],
  ['a device', [{ name: 'sda', type: '4' }], /a device node/],
  ['a device called dev', [{ name: 'dev', type: '3' }], /a device node/],
  ['a whiteout of nothing', [file('.wh.', '')], /hides nothing/],
  ['a whiteout of what is above', [file('a/.wh...', '')], /hides nothing/],
  ['a name of 300 letters', [file(`d/${'x'.repeat(300)}`, 'x', { pax: { path: 'x'.repeat(300) } })], /too long/],
  ['a depth of 600', [file('x', 'x', { pax: { path: `${'a/'.repeat(600)}x` } })], /too many parts/],
  ['a sparse file of another tar', [{ name: 's', type: 'S' }], /sparse file of an unknown kind/],
  ['a sparse file of no known version', [sparse({ major: '2', realsize: '9' })], /sparse file of an unknown kind/],
  ['a sparse file with something new', [sparse({ size: '9', colour: 'red' })], /sparse file of an unknown kind/],
  ['a sparse file without a size', [sparse({ map: '0,1' }, 'x')], /without its size/],
  ['pieces over each other', [sparse({ size: '9', map: '0,4,3,4' }, 'xxxxxxxx')], /over each other/],
  ['pieces in no order', [sparse({ size: '9', map: '4,1,0,1' }, 'xx')], /over each other/],
  ['a piece beyond the end', [sparse({ size: '9', map: '8,2' }, 'xx')], /beyond its end/],
  ['a piece that begins beyond the end', [sparse({ size: '9', map: '10,0' })], /beyond its end/],
  ['a piece that ends where numbers do', [sparse({ size: '9', map: '9,9223372036854775800' })], /wrong number|beyond/],
  ['less than a map says', [sparse({ size: '9', map: '0,3' }, 'xx')], /more, or less/],
  ['more than a map says', [sparse({ size: '9', map: '0,1' }, 'xx')], /more, or less/],
  ['half a pair', [sparse({ size: '9', map: '0,1,2' }, 'x')], /unknown kind/],
  ['a length without its offset', [sparse({ size: '9', numbytes: '1' }, 'x')], /map is damaged/],
  ['another number of pieces', [sparse({ size: '9', map: '0,1', numblocks: '2' }, 'x')], /map is damaged/],
  ['a map that is no map', [sparse({ major: '1', realsize: '9' }, 'x'.repeat(512))], /map is damaged/],
  ['a map without an end', [sparse({ major: '1', realsize: '9' }, '0'.repeat(4096))], /map is damaged/],
  ['a map of too many pieces', [sparse({ major: '1', realsize: '9' }, '65537\n0\n0\n')], /too many pieces/],
  ['a map that is cut', [sparse({ major: '1', realsize: '9' }, '3\n0\n')], /map is damaged/],
  ['a sparse directory', [{ ...sparse({ size: '9', map: '0,0' }), type: '5' }], /no file/],
  ['sparse files all over', [{ name: 'g', type: 'g', pax: { 'GNU.sparse.size': '9' } }], /global header/],
  ['a capability that is none', [file('f', 'x', { pax: { 'SCHILY.xattr.security.capability': 'x' } })], /cannot be/],
  ['an owner beyond all ids', [file('f', 'x', { pax: { uid: '4294967295' } })], /beyond all ids/],
])('%s is refused', async (_what, members, why) => {
  const { code, out, err } = await unpack(members)
  expect({ code, out }).toEqual({ code: 3, out: '' })
  expect(err).toMatch(why)
  expect(existsSync(outside)).toBe(false)
})

test('a layer is bounded in bytes and in entries', async () => {
  expect(await unpack([file('a', 'x'.repeat(600)), file('b', 'x'.repeat(600))], { bytes: 1000 })).toMatchObject({
    code: 5,
    err: 'b: the layer is too large\n',
  })
  rmSync(at('a'))
  expect(await unpack([file('a'), file('b'), file('c')], { entries: 2 })).toMatchObject({ code: 3 })
  // What is not in a file counts as well: directories that no entry names, attributes.
  expect(await unpack([file('1/2/3/4/x')], { entries: 3 })).toMatchObject({
    code: 3,
    err: expect.stringMatching(/too many directories/),
  })
  const noted = file('n', '', { pax: { 'SCHILY.xattr.user.note': 'x'.repeat(600) } })
  expect(await unpack([noted], { bytes: 500 })).toMatchObject({ code: 5 })
  expect(await unpack([noted], { bytes: 600 })).toMatchObject({ code: 0, out: '1 600\n' })
})

test('more attributes than a file can have are not taken for a full disk', async () => {
  const { code } = await unpack([file('f', '', { pax: { 'SCHILY.xattr.user.large': 'x'.repeat(60_000) } })])
  // Some file systems take them.
  expect([0, 3]).toContain(code)
})

test('a disk that is full is told apart from a layer that is wrong', async () => {
  const script = 'mount -t tmpfs -o size=64k none "$1" && exec "$2" "$1" 1000000 1000000 1000'
  const child = spawn('unshare', ['--mount', 'sh', '-c', script, 'sh', dir, join(build, 'berth-layer')])
  let err = ''
  child.stderr.on('data', (chunk: Buffer) => {
    err += chunk.toString()
  })
  child.stdin.on('error', () => undefined)
  child.stdin.end(tar([file('a', 'x'.repeat(200_000))]))
  const [code] = await once(child, 'close')
  expect({ code, err }).toEqual({ code: 4, err: 'a: No space left on device\n' })
})
