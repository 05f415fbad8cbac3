// berth-layer pack against a real kernel: what a sandbox left in its writable layer comes out of a layer again as it was,
// and nothing that a layer could not say, or that leads out, goes into one.
import { spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import {
  chmodSync,
  chownSync,
  existsSync,
  lchownSync,
  linkSync,
  lstatSync,
  lutimesSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  symlinkSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from 'node:fs'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, describe, expect, test } from '@jest/globals'
import { build } from './test/agent.js'

// On a disk: a tmpfs before Linux 6.6 knows no attributes of users.
const scratch = existsSync('/var/tmp') ? '/var/tmp' : tmpdir()
const BASE = 1_000_000
let dir: string
let upper: string
beforeEach(() => {
  dir = mkdtempSync(join(scratch, 'berth-upper-'))
  upper = join(dir, 'upper')
  mkdirSync(upper)
})
// Some of the paths are too long for rmSync.
afterEach(() => must('rm', '-rf', dir))
const at = (...parts: string[]) => join(upper, ...parts)

function pack(options: readonly string[] = [], { bytes = 1 << 24, entries = 10_000 } = {}) {
  const limits = [String(BASE), '65536', String(bytes), String(entries)]
  const { status, stdout, stderr } = spawnSync(join(build, 'berth-layer'), ['pack', upper, ...limits, ...options], {
    maxBuffer: 1 << 26,
  })
  return { code: status, tar: stdout, err: stderr.toString() }
}

function unpack(tar: Buffer, into: string) {
  mkdirSync(into)
  const { status, stderr } = spawnSync(join(build, 'berth-layer'), [into, '100000000', '100000000', '10000'], {
    input: tar,
  })
  expect({ status, err: stderr.toString() }).toEqual({ status: 0, err: '' })
  return into
}

const must = (...[program = '', ...argv]: readonly string[]) => {
  const { status, stderr } = spawnSync(program, argv)
  expect({ status, err: stderr.toString() }).toEqual({ status: 0, err: '' })
}
const setAttribute = (path: string, name: string, value: string) =>
  must('setfattr', '-h', '-n', name, '-v', value, path)
const file = (name: string, content: string | Buffer = 'x', { uid = 0, gid = 0, mode = 0o644, mtime = 1000 } = {}) => {
  writeFileSync(at(name), content)
  chownSync(at(name), BASE + uid, BASE + gid)
  chmodSync(at(name), mode)
  utimesSync(at(name), 0, mtime)
}
const folder = (name: string, { uid = 0, mode = 0o755 } = {}) => {
  mkdirSync(at(name))
  chownSync(at(name), BASE + uid, BASE + uid)
  chmodSync(at(name), mode)
}
const whiteout = (name: string) => must('mknod', at(name), 'c', '0', '0')

/** All that is to survive, a line an entry; owners less `base`. Markers have neither owner nor time. */
function describeTree(root: string, base: number, path = ''): readonly string[] {
  const names = readdirSync(Buffer.from(join(root, path)), { encoding: 'latin1' }).sort()
  return names.flatMap((name) => {
    const whole = Buffer.from(join(root, path, name), 'latin1')
    const st = lstatSync(whole)
    if (st.isCharacterDevice()) return [`${path}/${name} hidden ${st.rdev}`]
    const content = st.isFile()
      ? createHash('sha256').update(readFileSync(whole)).digest('hex')
      : st.isSymbolicLink()
        ? readlinkSync(whole)
        : ''
    const kept = spawnSync('getfattr', ['-h', '--absolute-names', '-d', '-m', '^(user|security|trusted)', '--', name], {
      cwd: join(root, path),
      encoding: 'latin1',
    })
    const attributes = kept.stdout
      .split('\n')
      .filter((l) => /^\w/.test(l) && !l.includes('.origin='))
      .sort()
      .join(' ')
    const facts = [st.mode.toString(8), st.uid - base, st.gid - base, Math.floor(st.mtimeMs / 1000), attributes]
    const line = [`${path}/${name}`, ...facts, ...(st.isDirectory() ? [] : [st.nlink, content])].join(' ')
    return st.isDirectory() ? [line, ...describeTree(root, base, join(path, name))] : [line]
  })
}

describe('a writable layer', () => {
  test('is the same once it was packed and unpacked', () => {
    folder('etc', { uid: 7, mode: 0o1750 })
    file('etc/passwd', 'root', { uid: 65_535, gid: 3, mode: 0o4755, mtime: 0 })
    setAttribute(at('etc/passwd'), 'user.note', 'a=b')
    file('big', Buffer.alloc(700_001, 'berth'))
    linkSync(at('big'), at('etc/big'))
    for (const [target, name] of [
      ['/etc/../x', 'link'],
      ['l'.repeat(300), 'long'],
    ] as const) {
      symlinkSync(target, at(name))
      lchownSync(at(name), BASE + 1, BASE + 2)
      lutimesSync(at(name), 5, 5)
    }
    linkSync(at('link'), at('link-again'))
    must('mkfifo', '-m', '600', at('pipe'))
    chownSync(at('pipe'), BASE, BASE)
    folder('x'.repeat(255))
    file(`${'x'.repeat(255)}/${'y'.repeat(255)}`)
    // Names that are no text of any kind.
    must('sh', '-c', `cd '${upper}' && printf x >"$(printf '\\377 \\n%%')" && chown -h ${BASE}:${BASE} -- *`)
    file('-n')
    file('old', '', { mtime: 1_000_000_000_000 })
    file('before', '')
    must('touch', '-d', '@-3', at('before'))
    whiteout('gone')
    whiteout(`etc/${'z'.repeat(255)}`)
    folder('opaque')
    setAttribute(at('opaque'), 'trusted.overlay.opaque', 'y')
    file('opaque/new')
    // Of a capability that is the sandbox's root's, as the kernel writes it, the layer's is anybody's root's.
    const permitted = '0004000000000000000000000000000000'
    setAttribute(at('old'), 'security.capability', `0x01000003${permitted.slice(0, 32)}${littleEndian(BASE)}`)
    setAttribute(at('etc'), 'trusted.overlay.origin', 'x')
    const { code, tar, err } = pack()
    expect({ code, err }).toEqual({ code: 0, err: '' })
    const again = unpack(tar, join(dir, 'again'))
    const wanted = describeTree(upper, BASE).map((line) =>
      line.replace(/security\.capability=\S+/, 'security.capability=0sAQAAAgAEAAAAAAAAAAAAAAAAAAA='),
    )
    expect(describeTree(again, 0)).toEqual(wanted)
    expect(wanted.some((line) => line.includes('trusted.overlay.opaque="y"'))).toBe(true)
    expect(wanted.some((line) => line.includes('0sAQAAAgAE'))).toBe(true)
  })

  test('is the same archive whatever order it was made in', () => {
    const names = ['b', 'a-', 'a', 'c']
    for (const name of names) folder(name)
    file('a/f')
    const first = pack(['--newest', '2000'])
    rmSync(upper, { recursive: true })
    mkdirSync(upper)
    for (const name of [...names].reverse()) folder(name)
    file('a/f')
    expect(pack(['--newest', '2000']).tar.equals(first.tar)).toBe(true)
    const times = readdirSync(unpack(first.tar, join(dir, 'again'))).map((name) => lstatSync(join(dir, 'again', name)))
    expect(times.map(({ mtimeMs }) => mtimeMs)).toEqual([2_000_000, 2_000_000, 2_000_000, 2_000_000])
  })

  test('is packed without what is not of the sandbox, and without sockets', async () => {
    folder('etc')
    file('etc/hosts')
    file('etc/motd')
    folder('run')
    folder('run/secrets')
    file('run/secrets/one', '')
    folder('var')
    folder('var/cache')
    file('var/kept')
    const server = createServer().listen(at('socket'))
    const stubs = ['run', '/run/secrets', 'run/secrets/one', 'var', 'var/cache', 'etc/motd']
    const { tar } = pack(['--without', '/etc/hosts', ...stubs.flatMap((path) => ['--stub', path])])
    server.close()
    expect(paths(tar)).toEqual(['etc', 'etc/motd', 'var', 'var/kept'])
  })

  test('with the layers below it is the root that is seen', () => {
    const lower = (name: string, files: Readonly<Record<string, string>>) => {
      for (const [path, content] of Object.entries(files)) {
        mkdirSync(join(dir, name, path, '..'), { recursive: true })
        writeFileSync(join(dir, name, path), content)
      }
      return ['--lower', join(dir, name)]
    }
    const bottom = lower('bottom', { 'a/1': '1', 'a/2': '2', 'b/1': '1', c: 'c', 'd/x/y': 'y', 'f/1': '1' })
    const middle = lower('middle', { 'a/2': 'two', 'b/2': '2', 'd/x/.wh.z': 'z' })
    setAttribute(join(dir, 'middle/b'), 'trusted.overlay.opaque', 'y')
    folder('a')
    file('a/3', '3', { uid: 4 })
    whiteout('a/1')
    whiteout('c')
    folder('f')
    setAttribute(at('f'), 'trusted.overlay.opaque', 'y')
    symlinkSync('/etc', at('l'))
    lchownSync(at('l'), BASE, BASE)
    const { code, tar, err } = pack([...middle, ...bottom])
    expect({ code, err }).toEqual({ code: 0, err: '' })
    expect(paths(tar)).toEqual(['a', 'a/2', 'a/3', 'b', 'b/2', 'd', 'd/x', 'd/x/.wh.z', 'd/x/y', 'f', 'l'])
  })
})

describe('what a layer cannot say is refused', () => {
  test.each<[string, () => void, RegExp]>([
    ['a moved directory', () => setAttribute(upper0('d'), 'trusted.overlay.redirect', '/etc'), /^d: .*another place/],
    ['a file without its content', () => setAttribute(upper0('f'), 'trusted.overlay.metacopy', ''), /another place/],
    ['an unknown way to hide', () => setAttribute(upper0('d'), 'trusted.overlay.opaque', 'x'), /not known/],
    ['a name that hides', () => file('.wh.f'), /^\.wh\.f: .*remove/],
    ['a device', () => must('mknod', at('null'), 'c', '1', '3'), /a device node/],
    ["an owner that is the host's", () => chownSync(upper0('f'), 0, BASE), /not of the sandbox/],
    ["an owner that is a neighbour's", () => chownSync(upper0('f'), BASE, BASE + 65_536), /not of the sandbox/],
    [
      "a neighbour's capability",
      () => setAttribute(upper0('f'), 'security.capability', capability(BASE - 1)),
      /not of/,
    ],
    ['an attribute that a tar cannot name', () => setAttribute(upper0('f'), 'user.a=b', 'x'), /holds =/],
    ['a path of 5,000 letters', () => deep(20, 'x'.repeat(250)), /too long/],
    ['a depth of 600', () => deep(600, 'x'), /too many directories/],
  ])('%s', (_what, make, why) => {
    folder('d')
    file('f')
    make()
    const { code, err } = pack()
    expect({ code, err }).toEqual({ code: 3, err: expect.stringMatching(why) })
  })

  test('nothing is packed outside of the control group that it is to be packed in', () => {
    file('f')
    const { status, stdout, stderr } = spawnSync(join(build, 'berth-layer'), [
      ...['--group', join(dir, 'no-group'), 'pack', upper, String(BASE), '65536', '1000', '10'],
    ])
    expect({ status, bytes: stdout.length }).toEqual({ status: 1, bytes: 0 })
    expect(stderr.toString()).toContain('no-group')
  })

  test('a file of holes is so many zeros, and no more than there may be', () => {
    file('holes', '')
    truncateSync(at('holes'), 3_000_000)
    const { code, tar } = pack()
    expect(code).toBe(0)
    expect(readFileSync(join(unpack(tar, join(dir, 'again')), 'holes')).equals(Buffer.alloc(3_000_000))).toBe(true)
    truncateSync(at('holes'), 2 ** 43)
    expect(pack()).toMatchObject({ code: 5, err: 'holes: the layer is too large\n' })
    for (const name of ['a', 'b', 'c']) file(name)
    expect(pack([], { entries: 3 })).toMatchObject({ code: 3 })
  })
})

const upper0 = (name: string) => at(name)
const littleEndian = (n: number) => {
  const bytes = Buffer.alloc(4)
  bytes.writeUInt32LE(n)
  return bytes.toString('hex')
}
const capability = (root: number) => `0x01000003${'00'.repeat(16)}${littleEndian(root)}`
/** Directories below each other, deeper than a path may be long. */
const deep = (levels: number, name: string) =>
  must(
    'sh',
    '-c',
    `cd '${upper}' && for i in $(seq ${levels}); do mkdir ${name} && chown ${BASE}:${BASE} ${name} && cd -P ${name} || exit; done`,
  )

/** Paths of the entries, without slashes at the end. */
function paths(tar: Buffer): readonly string[] {
  const { stdout } = spawnSync('tar', ['-t'], { input: tar, encoding: 'utf8' })
  return stdout
    .trim()
    .split('\n')
    .map((line) => line.replace(/\/$/, ''))
}
