// berth-files' archives against a real kernel: what pack writes is read by GNU tar and by unpack, what others write is
// unpacked whole or refused, and what an archive holds never leads out of its directory.
import { once } from 'node:events'
import {
  chmodSync,
  chownSync,
  existsSync,
  linkSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  statSync,
  symlinkSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from 'node:fs'
import { createServer } from 'node:net'
import { constants } from 'node:os'
import { run } from '@berth/host'
import { afterEach, beforeEach, describe, expect, test } from '@jest/globals'
import { exitOf, holdOnly, Sandbox } from './test/agent.js'
import { files, finish, NOBODY, ok, program, Scratch, start } from './test/files.js'
import { type Member, sparseKinds, sparseTar, tar } from './test/tar.js'

const { ENOENT, EACCES, EEXIST, ENOTDIR, EISDIR, EPERM, EFBIG, ENAMETOOLONG } = constants.errno
const GiB = 1024 ** 3
holdOnly(BigInt(`0x${/CapEff:\s*(\w+)/.exec(readFileSync('/proc/self/status', 'utf8'))?.[1] ?? '0'}`))

let dir: Scratch
beforeEach(() => {
  dir = new Scratch()
})
afterEach(() => dir[Symbol.dispose]())
const at = (...parts: string[]) => dir.at(...parts)
const visible = (path: string) => readdirSync(path).sort()
const shell = async (script: string) => {
  const result = await run(['/bin/bash', '-c', `set -e -o pipefail; ${script}`], { timeoutMs: 120_000 })
  if (result.exitCode !== 0) throw new Error(`${script}: ${result.stderr}`)
  return result.stdout
}

/** Everything of a tree that an archive keeps, a line an entry. */
const inventory = (path: string, format = '%y %m %U:%G %T@ %n %s') =>
  shell(
    `cd ${path} && find . -mindepth 1 ! -type d -printf '${format} %p -> %l\\n' -o -mindepth 1 -type d -printf '%y %m %U:%G %TY%Tm%Td%TH%TM %p\\n' | sort`,
  )

/** A tree with one of everything that an archive can hold. */
async function makeTree(root: string): Promise<void> {
  mkdirSync(`${root}/d/e`, { recursive: true })
  mkdirSync(`${root}/empty`)
  writeFileSync(`${root}/d/f`, 'x'.repeat(1000))
  writeFileSync(`${root}/zero`, '')
  writeFileSync(`${root}/block`, Buffer.alloc(512, 1))
  writeFileSync(`${root}/large`, Buffer.alloc(3 << 20, 7))
  linkSync(`${root}/d/f`, `${root}/d/e/hard`)
  symlinkSync('../nowhere', `${root}/d/soft`)
  symlinkSync('t'.repeat(180), `${root}/far`)
  await shell(`mkfifo -m 640 ${root}/fifo`)
  writeFileSync(Buffer.concat([Buffer.from(`${root}/`), Buffer.from([0xff, 0xfe, 10, 0x80])]), 'bytes')
  writeFileSync(`${root}/new\nline é`, '')
  writeFileSync(`${root}/${'n'.repeat(255)}`, 'long name')
  mkdirSync(`${root}/${'deep/'.repeat(40)}`, { recursive: true })
  writeFileSync(`${root}/${'deep/'.repeat(40)}leaf`, 'leaf')
  writeFileSync(`${root}/owned`, '')
  chownSync(`${root}/owned`, 1234, 3_000_000_000)
  writeFileSync(`${root}/suid`, '')
  chmodSync(`${root}/suid`, 0o6755)
  writeFileSync(`${root}/whole`, '')
  for (const name of ['d/f', 'd/e/hard', 'large', 'owned', 'suid', 'whole'])
    utimesSync(`${root}/${name}`, 1, 1_700_000_000)
  await shell(
    `touch -h -d @1600000000 ${root}/d/soft ${root}/far; touch -d @1600000000 ${root}/fifo; touch -d @-86400 ${root}/zero; touch -d @15032385541 ${root}/block; touch -d @1600000000 ${root}/n* ${root}/$'\\xff\\xfe\\n\\x80' ${root}/${'deep/'.repeat(40)}leaf`,
  )
  chmodSync(`${root}/empty`, 0o500)
  chmodSync(`${root}/d/e`, 0o3770)
}

describe('pack', () => {
  test('GNU tar reads what it writes, and finds no difference', async () => {
    mkdirSync(at('tree'))
    await makeTree(at('tree'))
    expect(await shell(`${program} pack ${at('tree')} | tar -C ${at('tree')} -df - 2>&1`)).toBe('')
    mkdirSync(at('copy'))
    await shell(`${program} pack ${at('tree')} | tar -C ${at('copy')} -xpf -`)
    expect(await inventory(at('copy'))).toBe(await inventory(at('tree')))
  })

  test('a file alone is one entry, by its own name; a link at the end is followed', async () => {
    writeFileSync(at('f'), 'abc')
    symlinkSync('f', at('link'))
    expect(await shell(`${program} pack ${at('f')} | tar tf -`)).toBe('f\n')
    expect(await shell(`${program} pack ${at('link')} | tar xOf - link`)).toBe('abc')
    mkdirSync(at('d'))
    symlinkSync('d', at('way'))
    expect(await shell(`${program} pack ${at('way')} | tar tf -`)).toBe('./\n')
  })

  test('sockets, device nodes and what the kernel makes up are left out', async () => {
    const server = createServer().listen(at('socket'))
    await once(server, 'listening')
    writeFileSync(at('f'), '')
    await shell(`mknod ${at('null')} c 1 3`)
    const script = `mkdir ${at('proc')} && mount -t proc proc ${at('proc')} && ${program} pack ${dir.path} | tar tf - | sort`
    expect((await run(['unshare', '-mpf', '/bin/sh', '-c', script])).stdout).toBe('./\nf\nproc/\n')
    server.close()
  })

  test('what its user may not read is told before the first byte', async () => {
    mkdirSync(at('open/d'), { recursive: true })
    writeFileSync(at('open/a'), 'x'.repeat(1 << 20))
    writeFileSync(at('open/d/shut'), '', { mode: 0o600 })
    expect(await files(['pack', at('open')], { uid: NOBODY })).toMatchObject({
      code: 1,
      out: Buffer.alloc(0),
      failure: `path ${EACCES} ${at('open/d/shut')}`,
    })
    chmodSync(at('open/d'), 0o700)
    expect((await files(['pack', at('open')], { uid: NOBODY })).failure).toBe(`path ${EACCES} ${at('open/d')}`)
    expect((await files(['pack', at('no')])).failure).toBe(`path ${ENOENT} ${at('no')}`)
  })

  test('a file that becomes shorter is filled up, and the process fails after a whole archive', async () => {
    mkdirSync(at('d'))
    truncateSync(emptyFile('d/f'), 64 << 20)
    writeFileSync(at('d/small'), 'x')
    const child = start(['pack', at('d')])
    await once(child.stdout, 'readable')
    truncateSync(at('d/f'), 1000)
    const { code, failure, out } = await finish(child)
    expect([code, failure]).toEqual([1, expect.stringMatching(/^short 0 /)])
    writeFileSync(at('a.tar'), out)
    expect(await shell(`tar tf ${at('a.tar')} | sort`)).toBe('./\nf\nsmall\n')
  })

  test('10 GiB: the size is told in a pax header, and memory stays flat', async () => {
    mkdirSync(at('d'))
    truncateSync(emptyFile('d/big'), 10 * GiB)
    expect(
      await shell(
        `set +o pipefail; ${program} pack ${at('d')} 2>/dev/null | head -c 4096 | (tar tvf - 2>/dev/null || :)`,
      ),
    ).toContain(String(10 * GiB))
    truncateSync(at('d/big'), 1 * GiB)
    await using sandbox = await Sandbox.start()
    const agent = await sandbox.connect()
    agent.spawn(1, { argv: ['/bin/sh', '-c', `${program} pack ${at('d')} > /dev/null`] })
    const { maxRssBytes } = exitOf(await agent.until('the end', () => agent.of(71, 1), 120_000))
    expect(Number(maxRssBytes)).toBeLessThan(6 << 20)
  })

  test('a tree that is too deep for any path is refused, not walked for ever', async () => {
    mkdirSync(at('tree'))
    for (let i = 0; i < 2100; i++) {
      mkdirSync(at('next'))
      renameSync(at('tree'), at('next/d'))
      renameSync(at('next'), at('tree'))
    }
    const { code, failure } = await files(['pack', at('tree')])
    expect([code, failure]).toEqual([1, expect.stringMatching(`^path ${ENAMETOOLONG} `)])
    await ok(['remove', at('tree'), 'recursive'])
  })
})

const emptyFile = (name: string) => {
  writeFileSync(at(name), '')
  return at(name)
}

const unpack = async (archive: Buffer, options: readonly string[] = [], how = {}) => {
  const [owner = 'user', uid = '-', gid = '-'] = options
  mkdirSync(at('to'), { recursive: true })
  return files(['unpack', at('to'), owner, uid, gid], { stdin: archive, ...how })
}
const file = (name: string, content = 'x', more: Partial<Member> = {}): Member => ({ name, content, ...more })

describe('unpack', () => {
  test.each(['gnu', 'posix', 'ustar', 'v7'])('what GNU tar writes as %s, whole', async (format) => {
    mkdirSync(at('tree'))
    await makeTree(at('tree'))
    if (format === 'ustar' || format === 'v7')
      await shell(`cd ${at('tree')} && rm -rf deep n* far fifo zero block owned $'\\xff\\xfe\\n\\x80'`)
    mkdirSync(at('to'))
    const script = `tar -C ${at('tree')} --format=${format} -cf - . | ${program} unpack ${at('to')} archive - -`
    expect(await shell(script)).toMatch(/^unpacked \d+ \d+\n$/)
    expect(await inventory(at('to'))).toBe(await inventory(at('tree')))
  })

  test('what pack writes, twice over itself', async () => {
    mkdirSync(at('tree'))
    await makeTree(at('tree'))
    mkdirSync(at('to'))
    for (let i = 0; i < 2; i++) await shell(`${program} pack ${at('tree')} | ${program} unpack ${at('to')} archive - -`)
    expect(await inventory(at('to'))).toBe(await inventory(at('tree')))
  })

  test('counts entries and bytes of files', async () => {
    const archive = tar([{ name: 'd', type: '5' }, file('d/a', 'four'), { name: 'd/l', type: '2', link: 'a' }])
    expect((await unpack(archive)).out.toString()).toBe('unpacked 3 4\n')
  })

  test('files are the user’s, without set-id bits, unless the archive’s owners are asked for', async () => {
    const archive = tar([
      file('f', 'x', { mode: 0o6755, uid: 77, gid: 78 }),
      { name: 'l', type: '2', link: 'f', uid: 77 },
    ])
    await unpack(archive)
    expect(statSync(at('to/f'))).toMatchObject({ uid: 0, gid: 0, mode: 0o100755 })
    await unpack(archive, ['user', '5', '6'])
    expect(statSync(at('to/f'))).toMatchObject({ uid: 5, gid: 6 })
    await unpack(archive, ['archive'])
    expect(statSync(at('to/f'))).toMatchObject({ uid: 77, gid: 78, mode: 0o106755 })
    expect(lstatSync(at('to/l')).uid).toBe(77)
    mkdirSync(at('theirs'), { mode: 0o777 })
    chmodSync(at('theirs'), 0o777)
    const as = { stdin: archive, uid: NOBODY }
    expect((await files(['unpack', at('theirs'), 'archive', '-', '-'], as)).failure).toBe(
      `path ${EPERM} ${at('theirs/f')}`,
    )
    expect(visible(at('theirs'))).toEqual([])
    await ok(['unpack', at('theirs'), 'user', '-', '-'], as)
    expect(statSync(at('theirs/f')).uid).toBe(NOBODY)
  })

  test('directories that are there stay as they are; those the archive names late get their mode still', async () => {
    mkdirSync(at('to/kept'), { recursive: true, mode: 0o711 })
    chmodSync(at('to/kept'), 0o711)
    const archive = tar([
      { name: './', type: '5', mode: 0o700 },
      { name: 'kept', type: '5', mode: 0o777 },
      file('kept/a'),
      file('late/f'),
      { name: 'late', type: '5', mode: 0o500 },
      { name: 'shut', type: '5', mode: 0o500, mtime: 1_500_000_000 },
      file('shut/in'),
    ])
    await unpack(archive, [], {})
    expect((statSync(at('to/kept')).mode & 0o777).toString(8)).toBe('711')
    expect((statSync(at('to/late')).mode & 0o777).toString(8)).toBe('500')
    expect(statSync(at('to/shut'))).toMatchObject({ mode: 0o040500, mtimeMs: 1_500_000_000_000 })
  })

  test('what is there is replaced, a directory by nothing but a directory', async () => {
    mkdirSync(at('to/d'), { recursive: true })
    writeFileSync(at('to/f'), 'old')
    symlinkSync('nowhere', at('to/l'))
    expect((await unpack(tar([file('f', 'new'), file('l', 'file now')]))).code).toBe(0)
    expect([readFileSync(at('to/f'), 'utf8'), readFileSync(at('to/l'), 'utf8')]).toEqual(['new', 'file now'])
    for (const member of [
      file('d'),
      { name: 'd', type: '2', link: 'x' } as const,
      { name: 'd', type: '1', link: 'f' } as const,
    ])
      expect((await unpack(tar([member]))).failure).toBe(`path ${EISDIR} ${at('to/d')}`)
    expect((await unpack(tar([{ name: 'f', type: '5' }]))).failure).toBe(`path ${EEXIST} ${at('to/f')}`)
    expect((await unpack(tar([file('f/g')]))).failure).toBe(`path ${ENOTDIR} ${at('to/f/g')}`)
    expect(visible(at('to'))).toEqual(['d', 'f', 'l'])
  })

  const refused: [string, Buffer, RegExp][] = [
    ['an absolute name', tar([file('/etc/x')]), /an absolute name/],
    ['a name with ..', tar([file('a/../../x')]), /a name with \.\./],
    ['a hard link that leads out', tar([{ name: 'h', type: '1', link: '../x' }]), /a name with \.\./],
    ['an absolute hard link', tar([{ name: 'h', type: '1', link: '/etc/shadow' }]), /an absolute name/],
    ['a hard link to what is not there', tar([{ name: 'h', type: '1', link: 'no' }]), /not there/],
    ['a device node', tar([{ name: 'c', type: '3' }]), /a device node/],
    ['a block device', tar([{ name: 'b', type: '4' }]), /a device node/],
    ['an unknown kind', tar([{ name: 'k', type: 'Z' }]), /unknown kind/],
    ['a sparse file of another tar', tar([{ name: 's', type: 'S' }]), /a sparse file of an unknown kind/],
    [
      'a sparse file without a map',
      tar([file('s', 'x', { pax: { 'GNU.sparse.major': '1' } })]),
      /a sparse file without/,
    ],
    ['a global header with a path', tar([{ name: 'g', type: 'g', pax: { path: 'x' } }]), /a global header/],
    ['a pax path that leads out', tar([file('f', 'x', { pax: { path: '../f' } })]), /a name with \.\./],
    ['a pax path with NUL', tar([file('f', 'x', { pax: { path: 'a\0b' } })]), /a name with NUL/],
    ['a pax number that is none', tar([file('f', 'x', { pax: { size: '1e9' } })]), /a wrong number/],
    ['a pax size without end', tar([file('f', 'x', { pax: { size: '9'.repeat(30) } })]), /a wrong number/],
    ['513 directories above each other', tar([file(`${'d/'.repeat(512)}f`)]), /too many parts/],
    ['a name of 20,000 bytes', tar([file('n/'.repeat(10_000))]), /too long|too many/],
    ['nothing', Buffer.alloc(0), /without its end/],
    ['half a block', Buffer.alloc(100), /inside a header/],
    ['no tar', Buffer.alloc(10_240, 'no tar'), /no tar/],
    ['one that ends in a file', tar([file('f', 'x'.repeat(5000))]).subarray(0, 2048), /inside an entry/],
    ['one without its end marker', tar([file('f')]).subarray(0, 1024), /without its end/],
    ['one with something after its end', Buffer.concat([tar([file('f')]), tar([file('g')])]), /after its end/],
    ['one with 2 MiB after its end', Buffer.concat([tar([file('f')]), Buffer.alloc(2 << 20)]), /after its end/],
    [
      'nine headers about one entry',
      tar(Array.from({ length: 9 }, () => ({ name: 'v', type: 'V' }))),
      /too many extended/,
    ],
  ]
  test.each(refused)('refuses %s', async (_, archive, why) => {
    const outcome = await unpack(archive)
    expect(outcome).toMatchObject({
      code: 1,
      failure: expect.stringMatching(/^archive 0 /),
      why: expect.stringMatching(why),
    })
    expect(existsSync(at('x'))).toBe(false)
    expect(visible(at('to')).filter((name) => name.startsWith('.'))).toEqual([])
  })

  test('a link on the way is refused, whether the archive brought it or it was there', async () => {
    mkdirSync(at('outside'))
    mkdirSync(at('to/real'), { recursive: true })
    symlinkSync(at('outside'), at('to/was'))
    symlinkSync('real', at('to/near'))
    const out: Member[][] = [
      [{ name: 'evil', type: '2', link: at('outside') }, file('evil/f')],
      [{ name: 'evil', type: '2', link: '..' }, file('evil/outside/f')],
      [{ name: 'a', type: '5' }, file('a/1'), { name: 'a/l', type: '2', link: at('outside') }, file('a/l/f')],
      [file('was/f')],
      [file('near/f')],
      [{ name: 'was', type: '5' }],
      [{ name: 'h', type: '1', link: 'was/f' }],
    ]
    for (const members of out)
      expect(await unpack(tar(members))).toMatchObject({ code: 1, why: expect.stringMatching(/through a link/) })
    expect(visible(at('outside'))).toEqual([])
    expect(visible(at('to/real'))).toEqual([])
  })

  test('a directory that becomes a link while files are put into it leads nowhere', async () => {
    mkdirSync(at('outside'))
    mkdirSync(at('to/d'), { recursive: true })
    const child = start(['unpack', at('to'), 'user', '-', '-'])
    const whole = tar(Array.from({ length: 2000 }, (_, i) => file(`d/f${i}`)))
    child.stdin.write(whole.subarray(0, 512_000))
    while (visible(at('to/d')).length < 100) await new Promise((resolve) => setImmediate(resolve))
    renameSync(at('to/d'), at('to/moved'))
    symlinkSync(at('outside'), at('to/d'))
    child.stdin.on('error', () => undefined)
    child.stdin.end(whole.subarray(512_000))
    await finish(child)
    expect(visible(at('outside'))).toEqual([])
  })

  test.each(['SIGKILL', 'SIGTERM'] as const)(
    '%s in the middle leaves whole entries and no half one',
    async (signal) => {
      mkdirSync(at('to'))
      const child = start(['unpack', at('to'), 'user', '-', '-'])
      child.stdin.on('error', () => undefined)
      child.stdin.write(tar([file('whole', 'w'.repeat(10)), file('half', 'h'.repeat(5 << 20))]).subarray(0, 4 << 20))
      while (!existsSync(at('to/whole'))) await new Promise((resolve) => setImmediate(resolve))
      child.kill(signal)
      await finish(child)
      expect(visible(at('to'))).toEqual(['whole'])
      expect(readFileSync(at('to/whole'), 'utf8')).toBe('w'.repeat(10))
    },
  )

  test('a full disk is named, with nothing half-written', async () => {
    mkdirSync(at('to'))
    writeFileSync(at('a.tar'), tar([file('small'), file('large', 'x'.repeat(1 << 20))]))
    const script = `ulimit -f 100; exec ${program} unpack ${at('to')} user - - < ${at('a.tar')}`
    const { exitCode, stderr } = await run(['/bin/sh', '-c', script])
    expect([exitCode, stderr]).toEqual([1, `path ${EFBIG} ${at('to/large')} \n`])
    expect(visible(at('to'))).toEqual(['small'])
  })

  test.each(sparseKinds)('files with holes keep them, as GNU tar has them: %s', async (kind) => {
    mkdirSync(at('from'))
    await shell(`cd ${at('from')}; truncate -s 1M f; for i in {0..9}; do printf $i >> f; truncate -s +99999 f; done`)
    await unpack(sparseTar(kind, at('from'), ['f']))
    expect(readFileSync(at('to/f')).equals(readFileSync(at('from/f')))).toBe(true)
    expect(lstatSync(at('to/f')).blocks * 512).toBeLessThan(1 << 20)
    // The name of another program's file is not what it is called.
    expect(visible(at('to'))).toEqual(['f'])
  })

  test('one with a hole larger than a file may be leaves nothing', async () => {
    const pax = { 'GNU.sparse.size': '922337203685477579', 'GNU.sparse.map': '0,0' }
    mkdirSync(at('to'))
    writeFileSync(at('a.tar'), tar([file('small'), file('f', '', { pax })]))
    const script = `ulimit -f 100; exec ${program} unpack ${at('to')} user - - < ${at('a.tar')}`
    const { exitCode, stderr } = await run(['/bin/sh', '-c', script])
    expect([exitCode, stderr]).toEqual([1, `path ${EFBIG} ${at('to/f')} \n`])
    expect(visible(at('to'))).toEqual(['small'])
  })

  test('numbers in base 256, and times before 1970 and with fractions', async () => {
    const archive = tar([
      file('f', 'x', { uid: 3_000_000, base256: true, mtime: -5 }),
      file('g', 'x', { pax: { mtime: '1234567890.123456789', uid: '4000000' } }),
      file('h', 'x', { pax: { mtime: '-1.25' } }),
    ])
    await unpack(archive, ['archive'])
    expect(statSync(at('to/f'))).toMatchObject({ uid: 3_000_000, mtimeMs: -5000 })
    expect(statSync(at('to/g'), { bigint: true }).mtimeNs).toBe(1_234_567_890_123_456_789n)
    expect(statSync(at('to/g')).uid).toBe(4_000_000)
    expect(statSync(at('to/h')).mtimeMs).toBe(-1250)
  })

  test('into what is no directory, or nobody’s', async () => {
    writeFileSync(at('f'), '')
    const archive = { stdin: tar([file('f')]) }
    expect((await files(['unpack', at('no'), 'user', '-', '-'], archive)).failure).toBe(`path ${ENOENT} ${at('no')}`)
    expect((await files(['unpack', at('f'), 'user', '-', '-'], archive)).failure).toBe(`path ${ENOTDIR} ${at('f')}`)
    expect((await files(['unpack', '/usr', 'user', '-', '-'], { ...archive, uid: NOBODY })).failure).toBe(
      `path ${EACCES} /usr/f`,
    )
  })
})
