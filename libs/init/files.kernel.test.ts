// berth-files against a real kernel, as a plain process: as root, and as a user that owns nothing (NOBODY). That the
// same holds in a sandbox, where links lead to the sandbox's files, is the agent's test (apps/agent/src/files).
import { createHash, randomBytes } from 'node:crypto'
import { once } from 'node:events'
import {
  appendFileSync,
  chmodSync,
  chownSync,
  existsSync,
  linkSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  renameSync,
  rmdirSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  unlinkSync,
  utimesSync,
  writeFileSync,
} from 'node:fs'
import { createServer } from 'node:net'
import { constants } from 'node:os'
import { run } from '@berth/host'
import { afterEach, beforeEach, describe, expect, test } from '@jest/globals'
import { exitOf, holdOnly, Sandbox } from './test/agent.js'
import { entries, files, finish, NOBODY, ok, program, Scratch, start, stat, Watch } from './test/files.js'

const { ENOENT, EACCES, EEXIST, ENOTDIR, EISDIR, EINVAL, EBUSY, ELOOP, ENOTEMPTY, ENAMETOOLONG, EPERM, EFBIG } =
  constants.errno
const GiB = 1024 ** 3

holdOnly(BigInt(`0x${/CapEff:\s*(\w+)/.exec(readFileSync('/proc/self/status', 'utf8'))?.[1] ?? '0'}`))

let dir: Scratch
beforeEach(() => {
  dir = new Scratch()
})
afterEach(() => dir[Symbol.dispose]())

const at = (...parts: string[]) => dir.at(...parts)
const write = (path: string, bytes: Buffer | string, options: readonly string[] = []) => {
  const [mode = '-', uid = '-', gid = '-', parents = '-', exists = 'replace'] = options
  return files(['write', path, mode, uid, gid, parents, exists], { stdin: bytes })
}
const failed = async (args: readonly string[], how = {}) => {
  const { code, failure } = await files(args, how)
  expect(code).toBe(1)
  return failure
}
const mkfifo = async (path: string) => expect((await run(['mkfifo', path])).exitCode).toBe(0)
const visible = (path: string) => readdirSync(path).sort()

describe('stat', () => {
  test('tells what lstat(2) tells, and of a link where it leads', async () => {
    writeFileSync(at('file'), 'abc', { mode: 0o640 })
    chownSync(at('file'), 12, 34)
    utimesSync(at('file'), 0, 1_700_000_000.25)
    symlinkSync('file', at('link'))
    expect(await stat(at('file'))).toMatchObject({ kind: 'f', size: 3, mode: '640', uid: 12, gid: 34, links: 1 })
    expect((await stat(at('file'))).mtime).toBe('1700000000.250000000')
    expect(await stat(at('link'))).toMatchObject({ kind: 'l', target: Buffer.from('file') })
    expect(await stat(at('link'), true)).toMatchObject({ kind: 'f', size: 3 })
  })

  test.each(['/', '/.', '/..', '//', '/tmp/', '/tmp/.', '/tmp/..'])('%s is a directory', async (path) => {
    expect((await stat(path)).kind).toBe('d')
  })

  test('every kind of thing has its letter', async () => {
    await mkfifo(at('fifo'))
    const server = createServer().listen(at('socket'))
    await once(server, 'listening')
    expect((await stat(at('fifo'))).kind).toBe('p')
    expect((await stat(at('socket'))).kind).toBe('s')
    expect((await stat('/dev/null')).kind).toBe('c')
    server.close()
  })

  test('what stands in the way is named by errno and path', async () => {
    writeFileSync(at('file'), '')
    symlinkSync('two', at('one'))
    symlinkSync('one', at('two'))
    mkdirSync(at('shut'), { mode: 0o700 })
    expect(await failed(['stat', at('no'), 'nofollow'])).toBe(`path ${ENOENT} ${at('no')}`)
    expect(await failed(['stat', at('file', 'x'), 'nofollow'])).toBe(`path ${ENOTDIR} ${at('file', 'x')}`)
    expect(await failed(['stat', at('one'), 'follow'])).toBe(`path ${ELOOP} ${at('one')}`)
    expect(await failed(['stat', at('one', 'x'), 'nofollow'])).toBe(`path ${ELOOP} ${at('one', 'x')}`)
    expect(await failed(['stat', at('shut', 'x'), 'nofollow'], { uid: NOBODY })).toBe(
      `path ${EACCES} ${at('shut', 'x')}`,
    )
    const long = `/${'x'.repeat(99)}`.repeat(50)
    expect(await failed(['stat', long, 'nofollow'])).toMatch(`path ${ENAMETOOLONG} `)
  })

  test('a path in a failure is one line of visible ASCII', async () => {
    expect(await failed(['stat', at('a b\n%é'), 'nofollow'])).toBe(`path ${ENOENT} ${at('a%20b%0A%25%C3%A9')}`)
  })

  test('anything but an operation with its arguments is misuse', async () => {
    for (const args of [[], ['no'], ['stat'], ['stat', '/', 'x'], ['read', '/', '-1', '-'], ['write', '/', '9']])
      expect(await files(args)).toMatchObject({ code: 1, failure: expect.stringMatching(/^usage 0 /) })
  })
})

describe('list', () => {
  test('names of any bytes, and where links lead', async () => {
    const names = [Buffer.from('plain'), Buffer.from('new\nline'), Buffer.from([0xff, 0xfe, 0x80]), Buffer.from('é ')]
    for (const name of names) writeFileSync(Buffer.concat([Buffer.from(`${dir.path}/`), name]), '')
    symlinkSync(Buffer.from([0x2f, 0xff]), at('link'))
    const found = entries(await ok(['list', dir.path]))
    expect(found.map(({ name }) => name.toString('latin1')).sort()).toEqual(
      [...names, Buffer.from('link')].map((name) => name.toString('latin1')).sort(),
    )
    expect(found.find(({ kind }) => kind === 'l')?.target).toEqual(Buffer.from([0x2f, 0xff]))
  })

  test('follows a link to a directory, and lists nothing else', async () => {
    mkdirSync(at('d'))
    writeFileSync(at('d', 'f'), '')
    symlinkSync('d', at('link'))
    await mkfifo(at('fifo'))
    expect(entries(await ok(['list', at('link')]))).toHaveLength(1)
    expect(await failed(['list', at('d', 'f')])).toBe(`path ${ENOTDIR} ${at('d', 'f')}`)
    expect(await failed(['list', at('fifo')])).toBe(`path ${ENOTDIR} ${at('fifo')}`)
    expect(await failed(['list', '/root'], { uid: NOBODY })).toBe(`path ${EACCES} /root`)
  })

  test('20,000 entries', async () => {
    for (let i = 0; i < 20_000; i++) writeFileSync(at(`f${i}`), '')
    expect(new Set(entries(await ok(['list', dir.path])).map(({ name }) => String(name))).size).toBe(20_000)
  })
})

describe('read', () => {
  const read = async (path: string, first: string, last: string) => {
    const out = await ok(['read', path, first, last])
    const end = out.indexOf(10)
    return { head: out.toString('latin1', 0, end), bytes: out.subarray(end + 1) }
  }

  test.each([
    ['-', '-', 'read 10 0 10', '0123456789'],
    ['2', '4', 'read 10 2 3', '234'],
    ['7', '-', 'read 10 7 3', '789'],
    ['7', '99', 'read 10 7 3', '789'],
    ['-', '3', 'read 10 7 3', '789'],
    ['-', '99', 'read 10 0 10', '0123456789'],
    ['0', '0', 'read 10 0 1', '0'],
  ])('%s to %s of ten bytes', async (first, last, head, text) => {
    writeFileSync(at('f'), '0123456789')
    expect(await read(at('f'), first, last)).toEqual({ head, bytes: Buffer.from(text) })
  })

  test('a range beyond the end is refused with the size', async () => {
    writeFileSync(at('f'), '0123456789')
    writeFileSync(at('empty'), '')
    expect(await failed(['read', at('f'), '10', '-'])).toBe(`range 10 ${at('f')}`)
    expect(await failed(['read', at('f'), '-', '0'])).toBe(`range 10 ${at('f')}`)
    expect(await failed(['read', at('empty'), '0', '5'])).toBe(`range 0 ${at('empty')}`)
    expect(await failed(['read', at('empty'), '-', '5'])).toBe(`range 0 ${at('empty')}`)
    expect((await read(at('empty'), '-', '-')).head).toBe('read 0 0 0')
  })

  test('only regular files: a FIFO is not opened, nor does it hang', async () => {
    await mkfifo(at('fifo'))
    symlinkSync('fifo', at('link'))
    expect(await failed(['read', at('fifo'), '-', '-'])).toBe(`kind 0 ${at('fifo')}`)
    expect(await failed(['read', at('link'), '-', '-'])).toBe(`kind 0 ${at('link')}`)
    expect(await failed(['read', '/dev/zero', '-', '-'])).toBe('kind 0 /dev/zero')
    expect(await failed(['read', dir.path, '-', '-'])).toBe(`path ${EISDIR} ${dir.path}`)
  })

  test('files of /proc and /sys are read whole, though their sizes say nothing', async () => {
    expect(await read('/proc/sys/kernel/ostype', '-', '-')).toEqual({
      head: 'read -1 0 -1',
      bytes: Buffer.from('Linux\n'),
    })
    const page = await read('/sys/kernel/mm/transparent_hugepage/enabled', '-', '-')
    expect(page.bytes.toString()).toMatch(/^.*never.*\n$/)
  })

  test('a link to what its user may not read is refused by the kernel', async () => {
    symlinkSync('/etc/shadow', at('link'))
    expect(await failed(['read', at('link'), '-', '-'], { uid: NOBODY })).toBe(`path ${EACCES} ${at('link')}`)
  })

  test('a file that becomes shorter meanwhile is a failure, one that grows is not', async () => {
    truncateSync(writeEmpty('f'), 64 << 20)
    const child = start(['read', at('f'), '-', '-'])
    await once(child.stdout, 'readable')
    truncateSync(at('f'), 1000)
    expect(await finish(child)).toMatchObject({ code: 1, failure: `short 0 ${at('f')}` })
    truncateSync(at('f'), 8 << 20)
    const grows = start(['read', at('f'), '-', '-'])
    await once(grows.stdout, 'readable')
    appendFileSync(at('f'), 'more')
    const { out, code } = await finish(grows)
    expect([code, out.length - out.indexOf(10) - 1]).toEqual([0, 8 << 20])
  })

  test('5 GiB in memory of 2 MiB', async () => {
    truncateSync(writeEmpty('big'), 5 * GiB)
    await using sandbox = await Sandbox.start()
    const agent = await sandbox.connect()
    const script = `${program} read ${at('big')} - - | wc -c`
    agent.spawn(1, { argv: ['/bin/sh', '-c', script] })
    const { maxRssBytes } = exitOf(await agent.until('the end', () => agent.of(71, 1), 150_000))
    expect(Number(agent.text(1))).toBe(5 * GiB + `read ${5 * GiB} 0 ${5 * GiB}\n`.length)
    expect(Number(maxRssBytes)).toBeLessThan(4 << 20)
  }, 180_000)
})

const writeEmpty = (name: string) => {
  writeFileSync(at(name), '')
  return at(name)
}

describe('write', () => {
  test('a new file is the user’s, 0644; nothing but it is there', async () => {
    const { out } = await write(at('f'), 'hello')
    expect(entries(out)[0]).toMatchObject({ kind: 'f', size: 5, mode: '644', uid: 0 })
    expect(readFileSync(at('f'), 'utf8')).toBe('hello')
    expect(visible(dir.path)).toEqual(['f'])
  })

  test('an empty one, and one of 64 MiB', async () => {
    await write(at('empty'), '')
    expect(statSync(at('empty')).size).toBe(0)
    const bytes = randomBytes(64 << 20)
    await write(at('large'), bytes)
    const hash = (b: Buffer) => createHash('sha256').update(b).digest('hex')
    expect(hash(readFileSync(at('large')))).toBe(hash(bytes))
  })

  test('mode and owner are those asked for, else those of the file it replaces', async () => {
    writeFileSync(at('f'), 'old')
    chmodSync(at('f'), 0o4750)
    chownSync(at('f'), 5, 6)
    chmodSync(at('f'), 0o4750)
    await write(at('f'), 'new')
    expect(await stat(at('f'))).toMatchObject({ mode: '4750', uid: 5, gid: 6, size: 3 })
    await write(at('f'), 'newer', ['0600', '7', '8'])
    expect(await stat(at('f'))).toMatchObject({ mode: '600', uid: 7, gid: 8, size: 5 })
  })

  test('who may not give a file away keeps it; who asks for it is refused', async () => {
    mkdirSync(at('open'), { mode: 0o777 })
    chmodSync(at('open'), 0o777)
    writeFileSync(at('open', 'f'), 'root’s', { mode: 0o604 })
    const how = { stdin: 'mine', uid: NOBODY }
    await ok(['write', at('open', 'f'), '-', '-', '-', '-', 'replace'], how)
    expect(await stat(at('open', 'f'))).toMatchObject({ uid: NOBODY, mode: '604', size: 4 })
    expect(await failed(['write', at('open', 'g'), '-', '0', '0', '-', 'replace'], how)).toBe(
      `path ${EPERM} ${at('open', 'g')}`,
    )
    expect(visible(at('open'))).toEqual(['f'])
  })

  test('goes to what a link leads to, also where there is nothing yet', async () => {
    mkdirSync(at('d'))
    writeFileSync(at('d', 'real'), 'old')
    symlinkSync('d/real', at('link'))
    symlinkSync(at('link'), at('again'))
    symlinkSync('d/fresh', at('dangling'))
    await write(at('again'), 'new')
    await write(at('dangling'), 'made')
    expect(readFileSync(at('d', 'real'), 'utf8')).toBe('new')
    expect(readFileSync(at('d', 'fresh'), 'utf8')).toBe('made')
    expect(readlinkSync(at('again'))).toBe(at('link'))
    symlinkSync('loop', at('loop'))
    expect((await write(at('loop'), 'x')).failure).toBe(`path ${ELOOP} ${at('loop')}`)
  })

  test('an old reader goes on with the old file', async () => {
    writeFileSync(at('f'), 'old')
    linkSync(at('f'), at('other'))
    await write(at('f'), 'new')
    expect(readFileSync(at('other'), 'utf8')).toBe('old')
  })

  test('fail: what is there stays, links that lead nowhere included', async () => {
    writeFileSync(at('f'), 'old')
    symlinkSync('nowhere', at('link'))
    for (const name of ['f', 'link'])
      expect((await write(at(name), 'x', ['-', '-', '-', '-', 'fail'])).failure).toBe(`path ${EEXIST} ${at(name)}`)
    expect(readFileSync(at('f'), 'utf8')).toBe('old')
    expect((await write(at('g'), 'x', ['-', '-', '-', '-', 'fail'])).code).toBe(0)
  })

  test('fail: of twenty at once one wins', async () => {
    const all = await Promise.all(
      Array.from({ length: 20 }, (_, i) => write(at('f'), `${i}`, ['-', '-', '-', '-', 'fail'])),
    )
    expect(all.filter(({ code }) => code === 0)).toHaveLength(1)
    expect(visible(dir.path)).toEqual(['f'])
  })

  test('parents are made, with the owner that was asked for', async () => {
    expect((await write(at('a/b/f'), 'x')).failure).toBe(`path ${ENOENT} ${at('a/b/f')}`)
    await write(at('a/b/f'), 'x', ['600', '9', '9', 'parents'])
    expect(await stat(at('a'))).toMatchObject({ kind: 'd', mode: '755', uid: 9 })
    expect(readFileSync(at('a/b/f'), 'utf8')).toBe('x')
    symlinkSync('gone', at('dangling'))
    expect((await write(at('dangling/f'), 'x', ['-', '-', '-', 'parents'])).failure).toBe(
      `path ${ENOENT} ${at('dangling/f')}`,
    )
  })

  test('a directory, a FIFO, a device or a path through a file are refused before input is taken', async () => {
    await mkfifo(at('fifo'))
    writeFileSync(at('f'), '')
    expect((await write(dir.path, 'x')).failure).toBe(`path ${EISDIR} ${dir.path}`)
    expect((await write(at('new/'), 'x')).failure).toBe(`path ${EISDIR} ${at('new/')}`)
    expect((await write(at('..'), 'x')).failure).toBe(`path ${EISDIR} ${at('..')}`)
    expect((await write(at('fifo'), 'x')).failure).toBe(`kind 0 ${at('fifo')}`)
    expect((await write('/dev/null', 'x')).failure).toBe('kind 0 /dev/null')
    expect((await write(at('f/g'), 'x')).failure).toBe(`path ${ENOTDIR} ${at('f/g')}`)
    expect(await failed(['write', '/etc/new', '-', '-', '-', '-', 'replace'], { uid: NOBODY })).toBe(
      `path ${EACCES} /etc/new`,
    )
  })

  test.each(['SIGKILL', 'SIGTERM'] as const)('%s in the middle leaves nothing, and the old file', async (signal) => {
    writeFileSync(at('f'), 'old')
    const child = start(['write', at('f'), '-', '-', '-', 'parents', 'replace'])
    child.stdin.on('error', () => undefined)
    child.stdin.write(Buffer.alloc(1 << 20))
    await expect(writtenBy(child.pid ?? 0)).resolves.toBeGreaterThan(0)
    child.kill(signal)
    await finish(child)
    expect(visible(dir.path)).toEqual(['f'])
    expect(readFileSync(at('f'), 'utf8')).toBe('old')
  })

  test('a full disk leaves the old file and nothing else', async () => {
    writeFileSync(at('f'), 'old')
    const script = `ulimit -f 100; exec ${program} write ${at('f')} - - - - replace`
    const result = await run(['/bin/sh', '-c', script], { stdin: 'x'.repeat(1 << 20) })
    expect(result.exitCode).toBe(1)
    expect(result.stderr).toBe(`path ${EFBIG} ${at('f')} \n`)
    expect(visible(dir.path)).toEqual(['f'])
  })

  test('readers of a file that is written over and over see whole ones only', async () => {
    await write(at('f'), 'a'.repeat(100_000))
    const seen = new Set<string>()
    let done = false
    const writers = (async () => {
      for (let i = 0; i < 20; i++) await write(at('f'), String.fromCharCode(97 + (i % 3)).repeat(100_000))
      done = true
    })()
    while (!done) {
      const text = readFileSync(at('f'), 'latin1')
      seen.add(`${text.length} ${new Set(text).size}`)
      await new Promise((resolve) => setImmediate(resolve))
    }
    await writers
    expect([...seen]).toEqual(['100000 1'])
  })
})

/** Bytes that a process has written, once there are any (proc(5), wchar). */
async function writtenBy(pid: number): Promise<number> {
  for (;;) {
    const written = Number(/wchar: (\d+)/.exec(readFileSync(`/proc/${pid}/io`, 'utf8'))?.[1])
    if (written > 0) return written
    await new Promise((resolve) => setTimeout(resolve, 2))
  }
}

describe('mkdir', () => {
  test('with its mode, whatever the umask', async () => {
    await ok(['mkdir', at('d'), '3777', '-'])
    await ok(['mkdir', at('e'), '-', '-'])
    expect((await stat(at('d'))).mode).toBe('3777')
    expect((await stat(at('e'))).mode).toBe('755')
  })

  test('parents, and one that is there is fine', async () => {
    expect(await failed(['mkdir', at('a/b/c'), '-', '-'])).toBe(`path ${ENOENT} ${at('a/b/c')}`)
    await ok(['mkdir', at('a/b/c'), '700', 'parents'])
    await ok(['mkdir', at('a/b/c'), '755', 'parents'])
    expect((await stat(at('a/b/c'))).mode).toBe('700')
    await ok(['mkdir', '/', '-', 'parents'])
  })

  test('what is there is named', async () => {
    writeFileSync(at('f'), '')
    mkdirSync(at('d'))
    symlinkSync('d', at('link'))
    for (const name of ['f', 'd', 'link'])
      expect(await failed(['mkdir', at(name), '-', '-'])).toBe(`path ${EEXIST} ${at(name)}`)
    expect(await failed(['mkdir', at('f'), '-', 'parents'])).toBe(`path ${EEXIST} ${at('f')}`)
    expect(await failed(['mkdir', at('f/d'), '-', 'parents'])).toBe(`path ${ENOTDIR} ${at('f/d')}`)
    expect(await failed(['mkdir', '/usr/x', '-', '-'], { uid: NOBODY })).toBe(`path ${EACCES} /usr/x`)
    await ok(['mkdir', at('link'), '-', 'parents'])
  })
})

describe('rename', () => {
  const rename = (from: string, to: string, replace = true) =>
    files(['rename', at(from), at(to), replace ? 'replace' : 'fail'])

  test('moves files and directories, over files only if it may', async () => {
    writeFileSync(at('a'), 'a')
    writeFileSync(at('b'), 'b')
    mkdirSync(at('d'))
    expect((await rename('a', 'b', false)).failure).toBe(`path ${EEXIST} ${at('b')}`)
    expect(entries((await rename('a', 'b')).out)[0]).toMatchObject({ kind: 'f', size: 1 })
    expect((await rename('d', 'e', false)).code).toBe(0)
    expect((await rename('b', 'e/b')).code).toBe(0)
    expect(readFileSync(at('e/b'), 'utf8')).toBe('a')
  })

  test('a link is moved, not what it leads to', async () => {
    symlinkSync('nowhere', at('link'))
    expect((await rename('link', 'moved')).code).toBe(0)
    expect(readlinkSync(at('moved'))).toBe('nowhere')
  })

  test('the path that stands in the way is the one that is named', async () => {
    writeFileSync(at('f'), '')
    mkdirSync(at('d'))
    mkdirSync(at('full/x'), { recursive: true })
    expect((await rename('no', 'f')).failure).toBe(`path ${ENOENT} ${at('no')}`)
    expect((await rename('f', 'no/f')).failure).toBe(`path ${ENOENT} ${at('no/f')}`)
    expect((await rename('f', 'd')).failure).toBe(`path ${EISDIR} ${at('d')}`)
    expect((await rename('d', 'f')).failure).toBe(`path ${ENOTDIR} ${at('f')}`)
    expect((await rename('d', 'full')).failure).toBe(`path ${ENOTEMPTY} ${at('full')}`)
    expect((await rename('full', 'full/x/y')).failure).toBe(`path ${EINVAL} ${at('full')}`)
    expect((await files(['rename', '/', at('x'), 'replace'])).failure).toBe(`path ${EBUSY} /`)
  })
})

describe('remove', () => {
  const remove = (path: string, how = {}, recursive = true) =>
    files(['remove', path, recursive ? 'recursive' : '-'], how)

  test('files, links and empty directories; full ones only recursively', async () => {
    mkdirSync(at('d/e'), { recursive: true })
    writeFileSync(at('d/e/f'), '')
    writeFileSync(at('kept'), '')
    symlinkSync(at('kept'), at('link'))
    symlinkSync(at('d'), at('tree'))
    expect((await remove(at('d'), {}, false)).failure).toBe(`path ${ENOTEMPTY} ${at('d')}`)
    for (const name of ['link', 'tree', 'd/e/f', 'd/e']) expect((await remove(at(name), {}, false)).code).toBe(0)
    expect((await remove(at('no'))).failure).toBe(`path ${ENOENT} ${at('no')}`)
    expect(visible(dir.path)).toEqual(['d', 'kept'])
  })

  test('links in a tree are removed, what they lead to is not', async () => {
    mkdirSync(at('outside'))
    writeFileSync(at('outside/kept'), '')
    mkdirSync(at('tree/sub'), { recursive: true })
    symlinkSync(at('outside'), at('tree/sub/link'))
    symlinkSync('..', at('tree/sub/up'))
    expect((await remove(at('tree'))).code).toBe(0)
    expect(visible(dir.path)).toEqual(['outside'])
    expect(visible(at('outside'))).toEqual(['kept'])
  })

  test('the root, and a directory by a dot, are refused before anything is touched', async () => {
    mkdirSync(at('d/e'), { recursive: true })
    for (const path of ['/', '//', `${at('d')}/.`, `${at('d/e')}/..`])
      expect((await remove(path)).failure).toBe(`path ${EBUSY} ${path}`)
    expect(existsSync(at('d/e'))).toBe(true)
  })

  test('a tree deeper than any path, and than stack or descriptors', async () => {
    // Each step renames what there is below a new directory, so that no path ever grows long.
    const name = 'x'.repeat(200)
    mkdirSync(at('tree'))
    for (let i = 0; i < 3000; i++) {
      mkdirSync(at('next'))
      renameSync(at('tree'), at('next', name))
      renameSync(at('next'), at('tree'))
    }
    const script = `ulimit -n 128; ulimit -s 256; exec ${program} remove ${at('tree')} recursive`
    expect(await run(['/bin/bash', '-c', script], { timeoutMs: 60_000 })).toMatchObject({ exitCode: 0, stderr: '' })
    expect(visible(dir.path)).toEqual([])
  })

  test('a directory that others go on filling is left in the end, not looped over', async () => {
    mkdirSync(at('d'))
    const script = `i=0; while [ $i -lt 100000 ]; do i=$((i+1)); : > ${at('d')}/$i || exit; done`
    const filler = run(['/bin/sh', '-c', `${script} 2>/dev/null`])
    const { code, failure } = await remove(at('d'))
    rmSync(at('d'), { recursive: true, force: true })
    await filler
    if (code !== 0) expect(failure).toMatch(`path ${ENOTEMPTY} `)
  })

  test('stops where its user may not, naming the place', async () => {
    mkdirSync(at('open/shut/deep'), { recursive: true })
    chownSync(at('open'), NOBODY, NOBODY)
    expect((await remove(at('open'), { uid: NOBODY })).failure).toBe(`path ${EACCES} ${at('open/shut/deep')}`)
  })

  test('does not empty what is mounted there', async () => {
    mkdirSync(at('d/mounted'), { recursive: true })
    const script = `mount -t tmpfs none ${at('d/mounted')} && : > ${at('d/mounted/kept')} && ${program} remove ${at('d')} recursive; ls ${at('d/mounted')}`
    const result = await run(['unshare', '-m', '/bin/sh', '-c', script])
    expect(result.stdout).toBe('kept\n')
    expect(result.stderr).toBe(`path ${EBUSY} ${at('d/mounted')} \n`)
  })
})

describe('watch', () => {
  test('one directory: made, changed, renamed and removed things, and nothing of what is below', async () => {
    mkdirSync(at('sub'))
    await using watch = new Watch(dir.path, false)
    await watch.on('ready', '')
    writeFileSync(at('f'), 'x')
    chmodSync(at('f'), 0o600)
    renameSync(at('f'), at('new\nline'))
    writeFileSync(at('sub/below'), '')
    unlinkSync(at('new\nline'))
    mkdirSync(at('made'))
    expect(await watch.on('created', 'made')).toMatchObject({ directory: true })
    expect(watch.events.filter(({ path }) => path !== 'sub').map(({ type, path, from }) => [type, path, from])).toEqual(
      [
        ['ready', '', ''],
        ['created', 'f', ''],
        ['modified', 'f', ''],
        ['attributes', 'f', ''],
        ['renamed', 'new\nline', 'f'],
        ['removed', 'new\nline', ''],
        ['created', 'made', ''],
      ],
    )
  })

  test('a tree: what is made in new directories is never missed', async () => {
    mkdirSync(at('a/b'), { recursive: true })
    await using watch = new Watch(dir.path, true)
    await watch.on('ready', '')
    writeFileSync(at('a/b/f'), '')
    await watch.on('created', 'a/b/f')
    for (let i = 0; i < 50; i++) {
      mkdirSync(at(`t${i}/x/y`), { recursive: true })
      writeFileSync(at(`t${i}/x/y/f`), '')
    }
    for (let i = 0; i < 50; i++) await watch.on('created', `t${i}/x/y/f`)
    rmSync(at('t7'), { recursive: true })
    await watch.on('removed', 't7')
  })

  test('a directory that is moved within the tree keeps being watched, one that leaves is not', async () => {
    mkdirSync(at('in/a/deep'), { recursive: true })
    mkdirSync(at('out'))
    mkdirSync(at('in/c'))
    await using watch = new Watch(at('in'), true)
    await watch.on('ready', '')
    renameSync(at('in/a'), at('in/c/b'))
    expect(await watch.on('renamed', 'c/b')).toMatchObject({ from: 'a', directory: true })
    writeFileSync(at('in/c/b/deep/f'), '')
    await watch.on('created', 'c/b/deep/f')
    renameSync(at('in/c/b'), at('out/b'))
    await watch.on('removed', 'c/b')
    writeFileSync(at('out/b/deep/g'), '')
    renameSync(at('out/b'), at('in/back'))
    await watch.on('created', 'back')
    await watch.on('created', 'back/deep/g')
    expect(watch.events.filter(({ path }) => path.includes('c/b/deep/g'))).toEqual([])
  })

  test.each<[string, (path: string) => void]>([
    ['removed', (path) => rmdirSync(path)],
    ['renamed', (path) => renameSync(path, `${path}-away`)],
  ])('ends when the directory is %s, also while somebody is in it', async (_, act) => {
    mkdirSync(at('d'))
    const inside = run(['/bin/sleep', '60'], { cwd: at('d'), timeoutMs: 2_000 })
    await using watch = new Watch(at('d'), true)
    await watch.on('ready', '')
    act(at('d'))
    await watch.on('gone', '')
    expect(await watch.outcome).toMatchObject({ code: 0 })
    await inside
  })

  test('a reader that is too slow is told that it missed something, and watched on', async () => {
    mkdirSync(at('d'))
    await using watch = new Watch(dir.path, true)
    await watch.on('ready', '')
    watch.pause()
    const queued = Number(readFileSync('/proc/sys/fs/inotify/max_queued_events', 'utf8'))
    // More than pipes and queue hold; alternating, or the kernel would merge them.
    const burst = 2 * queued + 100_000
    const script = `i=0; while [ $i -lt ${burst} ]; do i=$((i+2)); : > ${at('d')}/a; : > ${at('d')}/b; done`
    expect((await run(['/bin/sh', '-c', script], { timeoutMs: 120_000 })).exitCode).toBe(0)
    mkdirSync(at('late'))
    watch.resume()
    await watch.on('overflow', '')
    writeFileSync(at('late/f'), '')
    await watch.on('created', 'late/f')
  }, 180_000)

  test('a removed directory, a file, and a directory of others cannot be watched', async () => {
    writeFileSync(at('f'), '')
    expect(await failed(['watch', at('no'), '-'])).toBe(`path ${ENOENT} ${at('no')}`)
    expect(await failed(['watch', at('f'), '-'])).toBe(`path ${ENOTDIR} ${at('f')}`)
    mkdirSync(at('shut'), { mode: 0o700 })
    expect(await failed(['watch', at('shut'), '-'], { uid: NOBODY })).toBe(`path ${EACCES} ${at('shut')}`)
  })

  test('a tree of too many directories is refused, and told when it becomes one', async () => {
    const make = (name: string, count: number) =>
      run(['/bin/bash', '-c', `mkdir -p ${at(name)}/{1..${count}}`], { timeoutMs: 60_000 })
    await make('many', 16_384)
    expect(await failed(['watch', at('many'), 'recursive'])).toMatch(/^watches 16384 /)
    rmdirSync(at('many/1'))
    rmdirSync(at('many/2'))
    await using watch = new Watch(at('many'), true)
    await watch.on('ready', '')
    mkdirSync(at('many/fits'))
    await watch.on('created', 'fits')
    mkdirSync(at('many/not'))
    await watch.on('overflow', 'not')
    rmdirSync(at('many/3'))
    await watch.on('removed', '3')
    mkdirSync(at('many/again'))
    writeFileSync(at('many/again/f'), '')
    await watch.on('created', 'again/f')
  }, 120_000)
})

test('lstat of every result is what node sees too', async () => {
  for (const path of ['/etc', '/etc/passwd', '/proc/self', '/dev/null']) {
    const seen = lstatSync(path)
    expect(await stat(path)).toMatchObject({ mode: (seen.mode & 0o7777).toString(8), uid: seen.uid, links: seen.nlink })
  }
})
