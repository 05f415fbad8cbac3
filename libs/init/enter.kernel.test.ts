// berth-enter and berth-init as the agent uses them: an overlay of idmapped layers in a private mount namespace, a
// container of the OCI runtime in a user namespace on top, and the socket between. Both builds of berth-enter run:
// the kernel at hand may take either way of naming an overlay's lowers, older ones only the second.
import { execFileSync, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import {
  chmodSync,
  copyFileSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import { createConnection } from 'node:net'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals'
import { Agent, build, MAIN, TTY, u32 } from './test/agent.js'

const SHIFT = 1_700_000
const IDS = 65_536
const caps = ['CHOWN', 'DAC_OVERRIDE', 'FOWNER', 'SETUID', 'SETGID', 'SETPCAP', 'KILL'].map((c) => `CAP_${c}`)
const CAP_MASK = (1n << 0n) | (1n << 1n) | (1n << 3n) | (1n << 5n) | (1n << 6n) | (1n << 7n) | (1n << 8n)
const hybrid = /^\S+ \/sys\/fs\/cgroup\/unified cgroup2 /m.test(readFileSync('/proc/self/mounts', 'utf8'))
const hideCgroup2 = hybrid ? ['--umount', '/sys/fs/cgroup/unified'] : []

let root: string
beforeAll(() => {
  root = mkdtempSync(join(tmpdir(), 'berth-enter-'))
  chmodSync(root, 0o755)
})
afterAll(() => rmSync(root, { recursive: true }))

function directory(...path: string[]): string {
  const dir = join(root, ...path)
  mkdirSync(dir, { recursive: true })
  return dir
}

/** A layer with these programs of the host and the libraries they need. */
function programs(dir: string, names: readonly string[]): void {
  for (const name of ['bin', 'lib', 'lib64']) {
    mkdirSync(join(dir, 'usr', name), { recursive: true })
    symlinkSync(`usr/${name}`, join(dir, name))
  }
  const found = execFileSync('which', names, { encoding: 'utf8' }).trim().split('\n')
  const libraries = execFileSync('ldd', found, { encoding: 'utf8' }).match(/\/[^\s:]+\.so[^\s:]*/g) ?? []
  for (const file of new Set([...found, ...libraries])) {
    mkdirSync(join(dir, dirname(file)), { recursive: true })
    copyFileSync(file, join(dir, file))
  }
  for (const d of ['proc', 'dev', 'tmp', 'etc', 'sys']) mkdirSync(join(dir, d), { recursive: true })
}

const enter = (binary: string, ...args: string[]) =>
  spawnSync(join(build, binary), args, { encoding: 'utf8', env: { PATH: '/usr/sbin:/usr/bin:/sbin:/bin' } })

function specOf(rootfs: string, cgroup: string) {
  const mapping = [{ containerID: 0, hostID: SHIFT, size: IDS }]
  return {
    ociVersion: '1.0.2',
    root: { path: rootfs, readonly: false },
    process: {
      terminal: false,
      user: { uid: 0, gid: 0 },
      args: ['/dev/.berth/init'],
      env: [],
      cwd: '/',
      noNewPrivileges: false,
      capabilities: { bounding: caps, effective: caps, permitted: caps },
    },
    mounts: [
      { destination: '/proc', type: 'proc', source: 'proc' },
      { destination: '/dev', type: 'tmpfs', source: 'tmpfs', options: ['nosuid', 'mode=755', 'size=65536k'] },
      {
        destination: '/dev/pts',
        type: 'devpts',
        source: 'devpts',
        options: ['nosuid', 'noexec', 'newinstance', 'ptmxmode=0666', 'mode=0620', 'gid=5'],
      },
      { destination: '/dev/.berth/init', type: 'bind', source: join(build, 'berth-init'), options: ['bind', 'ro'] },
    ],
    linux: {
      uidMappings: mapping,
      gidMappings: mapping,
      cgroupsPath: cgroup,
      namespaces: ['pid', 'mount', 'ipc', 'uts', 'network', 'cgroup', 'user'].map((type) => ({ type })),
    },
  }
}

async function connect(path: string, after?: Agent): Promise<Agent> {
  const socket = createConnection(path)
  await once(socket, 'connect')
  const agent = new Agent(socket, after)
  agent.send(1, 0, u32(1))
  await agent.frame(65)
  return agent
}

describe.each(['berth-enter', 'berth-enter-by-string'])('a container by %s', (binary) => {
  const id = `berth-test-${process.pid}-${binary}`
  let base: string
  let top: string
  let upper: string
  let socket: string
  let agent: Agent
  const crun = (...args: string[]) =>
    enter(binary, ...hideCgroup2, '--', 'crun', '--root', directory(binary, 'state'), ...args)

  beforeAll(async () => {
    base = directory(binary, 'layers', 'base: a,b\\c')
    top = directory(binary, 'layers', 'top')
    programs(base, ['sh', 'id', 'cat', 'stat', 'ls', 'rm', 'sleep', 'chown', 'mknod'])
    writeFileSync(join(base, 'etc/both'), 'base')
    writeFileSync(join(base, 'etc/hidden'), 'base')
    mkdirSync(join(top, 'etc'))
    writeFileSync(join(top, 'etc/both'), 'top')
    execFileSync('mknod', [join(top, 'etc/hidden'), 'c', '0', '0'])
    execFileSync('mknod', [join(top, 'etc/disk'), 'c', '1', '3'])
    chmodSync(join(top, 'etc/disk'), 0o666)
    copyFileSync(join(base, execFileSync('which', ['id'], { encoding: 'utf8' }).trim()), join(top, 'etc/id-of-root'))
    chmodSync(join(top, 'etc/id-of-root'), 0o4755)
    upper = directory(binary, 'upper')
    const work = directory(binary, 'work')
    execFileSync('chown', [`${SHIFT}:${SHIFT}`, upper, work])
    const rootfs = directory(binary, 'rootfs')
    const bundle = directory(binary, 'bundle')
    writeFileSync(join(bundle, 'config.json'), JSON.stringify(specOf(rootfs, `/${id}`)))
    socket = join(directory(binary, 'x'.repeat(120)), 'init.sock')
    writeFileSync(socket, 'stale')
    // prettier-ignore
    const options = [
      ...hideCgroup2,
      '--idmap',
      `0:${SHIFT}:${IDS}`,
      '--lower',
      top,
      directory(binary, 'lower', '1'),
      '--lower',
      base,
      directory(binary, 'lower', '2:,\\'),
      '--overlay',
      rootfs,
      upper,
      work,
      '--listen',
      socket,
      '--chdir',
      bundle,
    ]
    const runtime = ['crun', '--root', directory(binary, 'state'), 'run', '--detach', '--preserve-fds=1', id]
    const run = spawnSync(join(build, binary), [...options, '--', ...runtime], {
      stdio: ['ignore', 'inherit', 'inherit'],
    })
    expect(run.status).toBe(0)
    process.chdir(dirname(socket)) // sun_path again
    agent = await connect('init.sock')
  })
  afterAll(() => {
    process.chdir('/')
    crun('delete', '--force', id)
  })

  let last = 0
  const run = async (script: string, more = {}) => {
    const proc = ++last
    const spec = { argv: ['/bin/sh', '-c', script], bounding: CAP_MASK, effective: CAP_MASK, ...more }
    const exit = await agent.run(proc, spec)
    return { code: exit.code, out: agent.text(proc), err: agent.text(proc, 2) }
  }

  test('layers show in order, whiteouts hide, all as root’s', async () => {
    const r = await run('cat /etc/both; ls /etc; stat -c %u:%g / /bin/sh /etc/both')
    expect(r).toMatchObject({ code: 0, out: 'topboth\ndisk\nid-of-root\n0:0\n0:0\n0:0\n' })
  })

  test('a set-uid program of a layer works, a device of a layer does not', async () => {
    const r = await run('/etc/id-of-root -u; cat /etc/disk', { uid: 1000, gid: 1000, effective: 0n })
    expect(r.out).toBe('0\n')
    expect(r.err).toContain('Permission denied')
  })

  test('writes go to the upper under shifted ids, layers stay as they are', async () => {
    const r = await run('echo changed >/etc/both; echo new >/new; chown 7:8 /new; rm /etc/id-of-root; stat -c %u /new')
    expect(r).toMatchObject({ code: 0, out: '7\n' })
    expect(readFileSync(join(top, 'etc/both'), 'utf8')).toBe('top')
    expect(statSync(join(top, 'etc/both')).uid).toBe(0)
    const { uid, gid } = statSync(join(upper, 'new'))
    expect([uid, gid]).toEqual([SHIFT + 7, SHIFT + 8])
    expect(statSync(join(upper, 'etc/both')).uid).toBe(SHIFT)
  })

  test('the host sees none of these mounts while the container runs', () => {
    expect(readFileSync('/proc/self/mounts', 'utf8')).not.toContain(root)
  })

  test('root of the user namespace is what it was given, and cannot look into PID 1', async () => {
    const r = await run('cat /proc/self/uid_map; cat /proc/1/environ; cat /proc/1/maps; kill -9 1; kill -9 -1')
    expect(r.out.trim().split(/\s+/).map(Number)).toEqual([0, SHIFT, IDS])
    expect(r.err.match(/Permission denied/g)?.length).toBe(2)
  })

  test('oom_score_adj, credentials and a terminal inside a user namespace', async () => {
    expect(
      (
        await run('cat /proc/self/oom_score_adj; id -u; id -G', {
          oomScoreAdj: 333,
          uid: 5,
          gid: 6,
          groups: [9],
          effective: 0n,
        })
      ).out,
    ).toBe('333\n5\n6 9\n')
    expect(
      (
        await run('id -u; test -t 0 && test -t 1 && echo tty; stat -c %u $(echo /dev/pts/0)', {
          flags: TTY,
          uid: 5,
          effective: 0n,
        })
      ).out,
    ).toBe('5\r\ntty\r\n5\r\n')
    expect(
      (await run('true', { uid: IDS + 1 }).then(
        () => 'ran',
        () => 'unmapped',
      )) satisfies string,
    ).toBe('unmapped')
  }, 30_000)

  test('an agent that comes back finds its process; MAIN’s end, SHUTDOWN, and nothing is left', async () => {
    const proc = ++last
    agent.spawn(proc, {
      argv: ['/bin/sh', '-c', 'echo up; sleep 0.1; echo down; exit 5'],
      flags: MAIN,
      bounding: CAP_MASK,
      effective: CAP_MASK,
    })
    await agent.until('up', () => agent.text(proc).startsWith('up'))
    agent.drop()
    agent = await connect('init.sock', agent)
    expect((await agent.exit(proc)).code).toBe(5)
    expect(agent.text(proc)).toBe('up\ndown\n')
    agent.send(9, 0, u32(1000))
    await agent.gone()
    const stopped = () => JSON.parse(crun('state', id).stdout).status === 'stopped'
    while (!stopped()) await new Promise((r) => setTimeout(r, 5))
    expect(crun('delete', id).status).toBe(0)
    expect(readFileSync('/proc/self/mounts', 'utf8')).not.toContain(root)
    expect(execFileSync('find', ['/sys/fs/cgroup', '-maxdepth', '3', '-name', id], { encoding: 'utf8' })).toBe('')
  })
})

describe('without a container', () => {
  const cat = (path: string) => ['--', 'sh', '-c', `cat ${path}/file; echo x >${path}/new`]

  test.each(['berth-enter', 'berth-enter-by-string'])('%s: read-only, of one layer and of two', (binary) => {
    for (const name of ['one', 'two'])
      writeFileSync(join(directory('ro', name), name === 'one' ? 'file' : 'other'), name)
    const at = directory('ro', 'target')
    const lower = (name: string) => ['--lower', join(root, 'ro', name), directory('ro', `lower-${name}`)]
    for (const lowers of [lower('one'), [...lower('two'), ...lower('one')]]) {
      const r = enter(binary, ...lowers, '--overlay-ro', at, ...cat(at))
      expect([r.status, r.stdout]).toEqual([2, 'one'])
      expect(r.stderr).toContain('Read-only file system')
    }
  })

  test('200 lowers', () => {
    const lowers = Array.from({ length: 200 }, (_, i) => [
      '--lower',
      directory('many', `l${i}`),
      directory('many', `d${i}`),
    ])
    writeFileSync(join(root, 'many', 'l199', 'file'), 'deepest')
    const at = directory('many', 'target')
    expect(enter('berth-enter', ...lowers.flat(), '--overlay-ro', at, ...cat(at)).stdout).toBe('deepest')
    const long = enter('berth-enter-by-string', ...lowers.flat(), '--overlay-ro', at, ...cat(at))
    expect([long.status, long.stderr]).toEqual([120, expect.stringContaining('paths longer than this kernel takes')])
  })

  test('a volume is written to by shifted ids, and keeps natural ones', () => {
    const [volume, at] = [directory('volume', 'kept'), directory('volume', 'at')]
    const touch = `touch ${at}/new; stat -c %u:%g ${at} ${at}/new`
    const shifted = ['--idmap', `0:${SHIFT}:${IDS}`, '--volume', volume, at]
    const user = String(SHIFT)
    const who = ['setpriv', '--reuid', user, '--regid', user, '--clear-groups', 'sh', '-c', touch]
    const r = enter('berth-enter', ...shifted, '--', ...who)
    expect([r.stderr, r.stdout]).toEqual(['', `${SHIFT}:${SHIFT}\n${SHIFT}:${SHIFT}\n`])
    const { uid, gid } = statSync(join(volume, 'new'))
    expect([uid, gid]).toEqual([0, 0])
  })

  test('files in memory hold what came by stdin, for their owner alone, and are nowhere but there', () => {
    const [one, two] = [directory('files', 'one'), directory('files', 'two')]
    const options = ['--file', one, '1000', '7', '440', '4', '--file', two, '0', '0', '555', '5']
    const look = `cat ${one}/content ${two}/content; stat -c ' %u:%g %a' ${one}/content; cat; (: > ${two}/content) 2>&1`
    const r = spawnSync(join(build, 'berth-enter'), [...options, '--', 'sh', '-c', look], {
      input: 'hushquiet',
      encoding: 'utf8',
      env: { PATH: '/usr/sbin:/usr/bin:/sbin:/bin' },
    })
    expect(r.stdout).toMatch(/^hushquiet 1000:7 440\n.*Read-only file system\n$/)
    expect(readdirSync(one)).toEqual([])
    const short = enter('berth-enter', '--file', one, '0', '0', '400', '1', '--', 'true')
    expect([short.status, short.stderr]).toEqual([120, `berth-enter: file: ${one}/content: No data available\n`])
  })

  const wrong: [string[], string][] = [
    [[], 'usage: berth-enter [option ...] -- PROGRAM ARG ...: Invalid argument'],
    [['--'], 'usage: berth-enter [option ...] -- PROGRAM ARG ...: Invalid argument'],
    [['--nonsense', '--', 'true'], 'unknown option: --nonsense: Invalid argument'],
    [['--overlay', 'a'], 'option without its arguments: --overlay: Invalid argument'],
    [['--umount', '/etc', '--', 'true'], 'umount: /etc: Invalid argument'],
    [['--lower', '/no', '/tmp', '--', 'true'], 'lower: /no: No such file or directory'],
    [['--lower', '/tmp', '/no', '--', 'true'], 'lower: /no: No such file or directory'],
    [['--idmap', '0:1', '--', 'true'], 'idmap: not INSIDE:OUTSIDE:COUNT: 0:1: Invalid argument'],
    [['--idmap', '0:1:2:3', '--', 'true'], 'idmap: not INSIDE:OUTSIDE:COUNT: 0:1:2:3: Invalid argument'],
    [
      ['--idmap', '0:1:9', '--lower', '/proc', '/mnt', '--', 'true'],
      'idmap: /proc: Invalid argument (this kernel or filesystem has no idmapped mounts)',
    ],
    [['--volume', '/no', '/mnt', '--', 'true'], 'volume: /no: No such file or directory'],
    [['--file', '/mnt', '0', '-1', '400', 'x', '--', 'true'], 'not a number: -1: Invalid argument'],
    [['--overlay-ro', '/mnt', '--', 'true'], 'overlay: no --lower before: /mnt: Invalid argument'],
    [['--listen', '/no/such/sock', '--', 'true'], 'listen: /no/such/sock: No such file or directory'],
    [['--chdir', '/no', '--', 'true'], 'chdir: /no: No such file or directory'],
    [['--', '/no/program'], 'exec: /no/program: No such file or directory'],
  ]
  test.each(wrong)('%j says what and why', (args, message) => {
    const r = enter('berth-enter', ...args)
    expect([r.status, r.stderr]).toEqual([120, `berth-enter: ${message}\n`])
  })

  test('a sealed program is a copy in memory that nobody can write to, and holds no descriptor of it', () => {
    const look = 'readlink /proc/$$/exe; ls -l /proc/$$/fd | grep -c memfd; (: > /proc/$$/exe) 2>&1; echo "$0 $1"'
    const r = enter('berth-enter', '--seal', '--', 'dash', '-c', look, 'zero', 'one')
    const [exe, held, refused, words] = r.stdout.split('\n')
    expect([exe, held, words]).toEqual(['/memfd:dash (deleted)', '0', 'zero one'])
    expect(refused).toMatch(/Text file busy|Operation not permitted/)
  })

  test('a script, which no copy can be made of, is executed as it is; what is not there is told', () => {
    const script = join(directory('seal'), 'script')
    writeFileSync(script, '#!/bin/sh\necho "by $0"', { mode: 0o755 })
    expect(enter('berth-enter', '--seal', '--', script).stdout).toBe(`by ${script}\n`)
    const missing = enter('berth-enter', '--seal', '--', 'no-such-program')
    expect([missing.status, missing.stderr]).toEqual([
      120,
      'berth-enter: exec: no-such-program: No such file or directory\n',
    ])
  })

  test('the socket is the owner’s alone, and fd 3', () => {
    const path = join(directory('listen'), 'sock')
    const r = enter('berth-enter', '--listen', path, '--', 'sh', '-c', 'readlink /proc/self/fd/3; umask')
    expect(r.stdout).toMatch(/^socket:\[\d+\]\n0022\n$/)
    expect(statSync(path).mode & 0o777).toBe(0o600)
  })
})
