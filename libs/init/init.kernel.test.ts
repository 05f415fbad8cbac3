// berth-init against a real kernel: each file-level group shares one sandbox, which also shows that nothing of a
// process stays behind to disturb the next. Tests that end the sandbox or its MAIN make their own.
import { spawnSync } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
import { readFileSync, writeFileSync } from 'node:fs'
import { constants } from 'node:os'
import { join } from 'node:path'
import { afterAll, beforeAll, describe, expect, test } from '@jest/globals'
import {
  type Agent,
  ALL_CAPS,
  build,
  errorOf,
  failureOf,
  frame,
  holdOnly,
  MAIN,
  NO_NEW_PRIVS,
  Sandbox,
  type Spawn,
  STDERR_TO_STDOUT,
  STDIN,
  spawnPayload,
  TTY,
  u32,
  u64,
} from './test/agent.js'

const { errno, signals } = constants
const KiB = 1024
const sh = (script: string) => ['/bin/sh', '-c', script]
const heldCaps = BigInt(`0x${/CapEff:\s*(\w+)/.exec(readFileSync('/proc/self/status', 'utf8'))?.[1] ?? '0'}`)
holdOnly(heldCaps)

let shared: Sandbox
let agent: Agent
let last = 0
const next = () => ++last

beforeAll(async () => {
  shared = await Sandbox.start()
  agent = await shared.connect()
})
afterAll(async () => {
  await shared[Symbol.asyncDispose]()
})

/** Runs to the end in the shared sandbox; the process is forgotten afterwards. */
async function run(s: Spawn) {
  const proc = next()
  const exit = await agent.run(proc, s)
  const result = { ...exit, out: agent.text(proc), err: agent.text(proc, 2) }
  agent.send(8, proc)
  return result
}
async function failure(s: Spawn) {
  const proc = next()
  agent.spawn(proc, s)
  const f = failureOf(await agent.frame(68, proc))
  agent.send(8, proc)
  return f
}

describe('start and end', () => {
  test('every exit code from 0 to 255, all at once', async () => {
    const procs = Array.from({ length: 256 }, (_, code) => ({ code, proc: next() }))
    for (const { code, proc } of procs) agent.spawn(proc, { argv: sh(`exit ${code}`), ringBytes: 4 * KiB })
    for (const { code, proc } of procs) expect(await agent.exit(proc)).toMatchObject({ kind: 'exited', code, cause: 0 })
    for (const { proc } of procs) agent.send(8, proc)
  })

  test('the 257th process is refused until one is forgotten', async () => {
    await using sandbox = await Sandbox.start()
    const a = await sandbox.connect()
    for (let i = 1; i <= 256; i++) a.spawn(i, { argv: ['/bin/true'], ringBytes: 1 })
    a.spawn(257, { argv: ['/bin/true'] })
    expect(failureOf(await a.frame(68, 257))).toEqual({ stage: 1, errno: 23 })
    await a.exit(9)
    a.send(8, 9)
    expect(await a.run(258, { argv: ['/bin/true'] })).toMatchObject({ code: 0 })
  })

  test.each(['SIGTERM', 'SIGKILL', 'SIGSEGV', 'SIGHUP', 'SIGPIPE', 'SIGUSR1'] as const)('ended by %s', async (name) => {
    expect(await run({ argv: sh(`kill -${name.slice(3)} $$; read x`), rlimits: [[4, 0n, 0n]] })).toMatchObject({
      kind: 'signaled',
      code: signals[name],
      cause: 0,
    })
  })

  test('CPU time, peak memory and wall time are the process’ own', async () => {
    const script = 'const b = Buffer.alloc(64 << 20, 1); while (process.cpuUsage().user < 200_000); b.length'
    const r = await run({ argv: [process.execPath, '-e', script] })
    expect(r.userUs).toBeGreaterThan(150_000n)
    expect(r.maxRssBytes).toBeGreaterThan(64n << 20n)
    expect(r.wallNs).toBeGreaterThan(100_000_000n)
  })

  const missing: [string, Spawn, { stage: number; errno: number }][] = [
    ['a file that does not exist', { argv: ['/no/such'] }, { stage: 4, errno: errno.ENOENT }],
    ['a name not in PATH', { argv: ['no-such-program'] }, { stage: 4, errno: errno.ENOENT }],
    ['an empty name', { argv: [''] }, { stage: 4, errno: errno.ENOENT }],
    ['a file that is not executable', { argv: ['/etc/passwd'] }, { stage: 4, errno: errno.EACCES }],
    ['a directory', { argv: ['/etc'] }, { stage: 4, errno: errno.EACCES }],
    [
      'a name found but not executable',
      { argv: ['passwd'], env: ['PATH=/no:/etc'] },
      { stage: 4, errno: errno.EACCES },
    ],
    ['a cwd that does not exist', { argv: ['/bin/true'], cwd: '/no' }, { stage: 3, errno: errno.ENOENT }],
    [
      'a cwd of somebody else',
      { argv: ['/bin/true'], cwd: '/root', uid: 1234, effective: 0n },
      { stage: 3, errno: errno.EACCES },
    ],
    ['capabilities nobody gave', { argv: ['/bin/true'], effective: 0n, ambient: 1n }, { stage: 2, errno: errno.EPERM }],
    ['a limit above the hard one', { argv: ['/bin/true'], rlimits: [[8, 2n, 1n]] }, { stage: 5, errno: errno.EINVAL }],
    [
      'an argument beyond the kernel’s',
      { argv: ['/bin/true', 'x'.repeat(128 * KiB)] },
      { stage: 4, errno: errno.E2BIG },
    ],
  ]
  test.each(missing)('says why it never ran: %s', async (_, spec, expected) => {
    expect(await failure(spec)).toEqual(expected)
  })

  test('1.5 MB of argv and env arrive whole', async () => {
    const big = 'é'.repeat(50_000)
    const argv = [...sh('printf %s "$@" "$V" | sha256sum'), 'sh', ...Array<string>(14).fill(big)]
    const r = await run({ argv, env: ['PATH=/usr/bin:/bin', `V=${big}`] })
    expect(r.out.slice(0, 64)).toBe(createHash('sha256').update(big.repeat(15)).digest('hex'))
  })

  test('newlines, spaces, empty and non-UTF-8 arguments are passed as they are', async () => {
    const argv = ['/usr/bin/printf', '[%s]', '', 'a\nb', ' ; rm -rf $HOME ', Buffer.from([0xff, 0xfe])]
    const proc = next()
    await agent.run(proc, { argv })
    expect(agent.output(proc).toString('latin1')).toBe('[][a\nb][ ; rm -rf $HOME ][\xff\xfe]')
  })

  test('PATH of the given env is searched, and a default without one', async () => {
    expect((await run({ argv: ['sh', '-c', 'exit 7'], env: [] })).code).toBe(7)
    expect(await failure({ argv: ['sh'], env: ['PATH=/etc'] })).toEqual({ stage: 4, errno: errno.ENOENT })
    expect((await run({ argv: ['sh', '-c', 'exit 8'], env: ['PATH='], cwd: '/bin' })).code).toBe(8)
  })

  test('a SPAWN that is repeated runs once and is told again', async () => {
    const proc = next()
    for (let i = 0; i < 3; i++) agent.spawn(proc, { argv: sh('echo once') })
    await agent.exit(proc)
    agent.spawn(proc, { argv: sh('echo twice') })
    await agent.until('told again', () => agent.frames.filter((f) => f.type === 71 && f.proc === proc).length >= 2)
    expect(agent.text(proc)).toBe('once\n')
    agent.send(8, proc)
  })
})

describe('what the program sees', () => {
  test('credentials, capabilities, limits, cwd and no_new_privs as asked', async () => {
    const script =
      'id -u; id -g; id -G; pwd; ulimit -n; grep -E "^(CapInh|CapPrm|CapEff|CapBnd|CapAmb|NoNewPrivs)" /proc/self/status'
    const r = await run({
      argv: sh(script),
      flags: NO_NEW_PRIVS,
      uid: 1234,
      gid: 2345,
      groups: [7, 8],
      cwd: '/usr',
      bounding: 0x400n,
      effective: 0x400n,
      inheritable: 0x400n,
      ambient: 0x400n,
      rlimits: [[7, 99n, 100n]],
    })
    const caps = ['Inh', 'Prm', 'Eff', 'Bnd', 'Amb'].map((c) => `Cap${c}:\t0000000000000400`)
    expect(r.out.trim().split('\n')).toEqual(['1234', '2345', '2345 7 8', '/usr', '99', ...caps, 'NoNewPrivs:\t1'])
  })

  test('root without capabilities gets none back by exec', async () => {
    const r = await run({ argv: sh('grep CapEff /proc/self/status'), bounding: 0n, effective: 0n })
    expect(r.out).toBe('CapEff:\t0000000000000000\n')
  })

  test('no signal is blocked or ignored, and only stdio is open', async () => {
    const r = await run({ argv: ['/bin/sh', '-c', 'grep -E "^Sig(Blk|Ign)" /proc/self/status; ls /proc/self/fd'] })
    expect(r.out.trim().split(/\s+/)).toEqual([
      'SigBlk:',
      '0000000000000000',
      'SigIgn:',
      '0000000000000000',
      '0',
      '1',
      '2',
      '3',
    ])
  })

  test('its oom_score_adj is raised, its group its own, its stdin /dev/null', async () => {
    const script = 'cat /proc/self/oom_score_adj; readlink /proc/self/fd/0; test $(ps -o pgid= $$) = $$ && echo leader'
    expect((await run({ argv: sh(script), oomScoreAdj: 700 })).out).toBe('700\n/dev/null\nleader\n')
  })

  test('it can open /dev/stdout as another user', async () => {
    expect((await run({ argv: sh('echo a >/dev/stdout; echo b >/dev/stderr'), uid: 1234, effective: 0n })).err).toBe(
      'b\n',
    )
  })

  test('PID 1 cannot be read, stopped or killed by the root of a sandbox', async () => {
    // Since Linux 6.14 the host's (not a user namespace's) CAP_PERFMON and CAP_SYS_ADMIN may read a memory map too.
    const [ptrace, admin, perfmon] = [1n << 19n, 1n << 21n, 1n << 38n]
    const caps = ALL_CAPS & ~ptrace & ~admin & ~perfmon & heldCaps
    const script =
      'readlink -v /proc/1/fd/3; wc -c </proc/1/environ; head -c1 /proc/1/mem; cat /proc/1/maps; kill -STOP 1; kill -KILL 1; echo done'
    const r = await run({ argv: sh(script), bounding: caps, effective: caps })
    expect(r.err.match(/Permission denied/g)?.length).toBe(4)
    expect(r.out).toBe('done\n')
  })
})

describe('output', () => {
  test('EOF totals and EXIT follow the last byte', async () => {
    const proc = next()
    await agent.run(proc, { argv: sh('head -c 100000 /dev/zero; head -c 70000 /dev/zero >&2') })
    expect([agent.received(proc), agent.received(proc, 2)]).toEqual([100_000n, 70_000n])
    const eof = (stream: number) => agent.of(70, proc, stream)?.payload.readBigUInt64LE(0)
    await agent.until('both ends', () => eof(1) !== undefined && eof(2) !== undefined)
    expect([eof(1), eof(2)]).toEqual([100_000n, 70_000n])
    agent.send(8, proc)
  })

  test('stderr can be put in order with stdout', async () => {
    const r = await run({ argv: sh('echo 1; echo 2 >&2; echo 3'), flags: STDERR_TO_STDOUT })
    expect([r.out, r.err]).toEqual(['1\n2\n3\n', ''])
  })

  test('100 MB through one ring to a reader that stops every so often, byte for byte', async () => {
    await using sandbox = await Sandbox.start()
    const a = await sandbox.connect()
    const bytes = 100_000_000
    const seen = createHash('sha256')
    a.countOnly(1, 1)
    a.onData = (data) => seen.update(data)
    let chunks = 0
    a.socket.on('data', () => {
      if (++chunks % 50 !== 0) return
      a.socket.pause()
      setImmediate(() => a.socket.resume())
    })
    const script = `const b = Buffer.from('0123456789abcde\\n'.repeat(6250))
      for (let i = 0; i < 1000; i++) require('fs').writeSync(1, b)`
    expect((await a.run(1, { argv: [process.execPath, '-e', script] })).code).toBe(0)
    expect(a.received(1)).toBe(BigInt(bytes))
    const sent = createHash('sha256').update(Buffer.alloc(bytes, '0123456789abcde\n'))
    expect(seen.digest('hex')).toBe(sent.digest('hex'))
  })

  test('an unread ring holds its writer up, and nobody else', async () => {
    await using sandbox = await Sandbox.start()
    const a = await sandbox.connect()
    a.acknowledges = false
    a.spawn(1, { argv: sh('head -c 1000000 /dev/zero'), ringBytes: 8 * KiB })
    a.spawn(2, { argv: sh('echo quick') })
    expect((await a.exit(2)).code).toBe(0)
    await a.until('ring full', () => a.received(1) === 8192n)
    const b = await sandbox.connect()
    const state = (await b.until('state', () => b.of(66, 1))).payload
    expect([state.readUInt8(0), state.readBigUInt64LE(5), state.readBigUInt64LE(13)]).toEqual([1, 0n, 8192n])
    expect((await b.exit(1)).code).toBe(0)
    expect(b.received(1)).toBe(1_000_000n)
  })

  test('connections cut at any point lose no byte and repeat none', async () => {
    await using sandbox = await Sandbox.start()
    const a = await sandbox.connect()
    const script = 'i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done; exit 9'
    a.spawn(1, { argv: sh(script), ringBytes: 4 * KiB })
    let now = a
    for (const cut of [1, 3_000, 4_096, 50_000, 50_001, 120_000]) {
      await now.until(`${cut} bytes`, () => now.received(1) >= cut)
      now.drop()
      now = await sandbox.connect({ after: now })
    }
    expect(await now.exit(1)).toMatchObject({ code: 9 })
    expect(now.text(1)).toBe(Array.from({ length: 20_000 }, (_, i) => `line ${i}\n`).join(''))
  })

  test('EXIT waits for what was readable, not for a child that keeps the pipe', async () => {
    const proc = next()
    const script = '(read x </tmp; while ! test -e "$F"; do :; done; echo late; rm "$F") & head -c 50000 /dev/zero'
    const file = `/tmp/berth-late-${process.pid}`
    const exit = await agent.run(proc, { argv: sh(script), env: ['PATH=/bin:/usr/bin', `F=${file}`] })
    expect(exit.code).toBe(0)
    expect(agent.of(70, proc, 1)).toBeUndefined()
    expect(agent.received(proc)).toBe(50_000n)
    writeFileSync(file, '')
    await agent.frame(70, proc, 1)
    expect(agent.text(proc).slice(50_000)).toBe('late\n')
    agent.send(8, proc)
  })

  test('a child that never stops writing does not hold EXIT back; FORGET ends it', async () => {
    const proc = next()
    const exit = await agent.run(proc, { argv: sh('yes >&1 & echo $!; exit 4') })
    expect(exit.code).toBe(4)
    const pid = Number(/^\d+$/m.exec(agent.text(proc))?.[0])
    agent.send(8, proc)
    const gone = await run({ argv: sh(`while kill -0 ${pid} 2>/dev/null; do :; done; echo gone`) })
    expect(gone.out).toBe('gone\n')
  })
})

describe('input', () => {
  const feed = async (proc: number, bytes: Buffer) => {
    const step = 60 * KiB
    for (let at = 0; at < bytes.length; at += step) {
      const acked = () =>
        agent.frames
          .filter((f) => f.type === 72 && f.proc === proc)
          .at(-1)
          ?.payload.readBigUInt64LE(0)
      await agent.until('room', () => at === 0 || (acked() ?? 0n) >= BigInt(at))
      agent.stdin(proc, BigInt(at), bytes.subarray(at, at + step))
    }
    agent.send(4, proc, u64(BigInt(bytes.length)))
  }

  test('1 MB in, end of input, the same out', async () => {
    const proc = next()
    const bytes = randomBytes(1_000_000)
    agent.spawn(proc, { argv: ['/bin/cat'], flags: STDIN })
    await feed(proc, bytes)
    expect((await agent.exit(proc)).code).toBe(0)
    expect(agent.output(proc).equals(bytes)).toBe(true)
    agent.send(8, proc)
  })

  test('output goes on after the end of input', async () => {
    const proc = next()
    agent.spawn(proc, { argv: sh('cat >/dev/null; echo after; exit 5'), flags: STDIN })
    agent.send(4, proc, u64(0n))
    agent.send(4, proc, u64(0n))
    expect(await agent.exit(proc)).toMatchObject({ code: 5 })
    expect(agent.text(proc)).toBe('after\n')
    agent.send(8, proc)
  })

  test('a repeat is dropped, also in part; a gap, an excess and a wrong end are refused', async () => {
    const proc = next()
    agent.spawn(proc, { argv: ['/bin/cat'], flags: STDIN })
    agent.stdin(proc, 0n, 'abc')
    agent.stdin(proc, 0n, 'abc')
    agent.stdin(proc, 1n, 'bcd')
    agent.stdin(proc, 9n, 'gap')
    agent.send(4, proc, u64(3n))
    agent.send(4, proc, u64(4n))
    agent.stdin(proc, 4n, 'late')
    expect((await agent.exit(proc)).code).toBe(0)
    expect(agent.text(proc)).toBe('abcd')
    const errors = agent.frames.filter((f) => f.type === 73 && f.proc === proc).map((f) => errorOf(f).errno)
    expect(errors).toEqual([errno.EINVAL, errno.EINVAL, errno.EPIPE])
    agent.send(8, proc)
  })

  test('what goes beyond the window is refused whole', async () => {
    const proc = next()
    agent.spawn(proc, { argv: sh('kill -STOP $$; cat'), flags: STDIN })
    await agent.frame(67, proc)
    for (let i = 0; i < 4; i++) agent.stdin(proc, BigInt(i * 60 * KiB), Buffer.alloc(60 * KiB))
    expect(errorOf(await agent.frame(73, proc)).errno).toBe(errno.ENOBUFS)
    agent.signal(proc, signals.SIGKILL, 0)
    await agent.exit(proc)
    agent.send(8, proc)
  })

  test('input for a process that closed its stdin is taken and dropped', async () => {
    const proc = next()
    agent.spawn(proc, {
      argv: sh('exec 0<&-; echo closed; read x </dev/null; while ! test -e "$F"; do :; done; rm "$F"'),
      flags: STDIN,
      env: ['PATH=/bin:/usr/bin', `F=/tmp/berth-closed-${process.pid}`],
    })
    await agent.until('closed', () => agent.text(proc) === 'closed\n')
    await feed(proc, Buffer.alloc(300_000))
    const acked = () =>
      agent.frames.some((f) => f.type === 72 && f.proc === proc && f.payload.readBigUInt64LE(0) === 300_000n)
    await agent.until('all acknowledged', acked)
    writeFileSync(`/tmp/berth-closed-${process.pid}`, '')
    expect((await agent.exit(proc)).code).toBe(0)
    agent.send(8, proc)
  })

  test('a new connection learns where to go on', async () => {
    await using sandbox = await Sandbox.start()
    const a = await sandbox.connect()
    a.spawn(1, { argv: ['/bin/cat'], flags: STDIN })
    a.stdin(1, 0n, 'first ')
    await a.until('echo', () => a.text(1) === 'first ')
    a.drop()
    const b = await sandbox.connect({ after: a })
    const expected = (await b.frame(66, 1)).payload.readBigUInt64LE(37)
    expect(expected).toBe(6n)
    b.stdin(1, 0n, 'first second')
    b.send(4, 1, u64(12n))
    await b.exit(1)
    expect(b.text(1)).toBe('first second')
  })
})

describe('signals and time', () => {
  test('to the process, to its group, to everything', async () => {
    const proc = next()
    const script = '(trap "echo child; exit" USR1; echo up; while :; do :; done) & trap "wait; exit 6" USR1; wait'
    agent.spawn(proc, { argv: sh(script) })
    await agent.until('up', () => agent.text(proc) === 'up\n')
    agent.signal(proc, signals.SIGUSR1, 1)
    expect(await agent.exit(proc)).toMatchObject({ code: 6 })
    expect(agent.text(proc)).toBe('up\nchild\n')
    agent.signal(proc, signals.SIGUSR1, 0)
    expect(errorOf(await agent.frame(73, proc)).errno).toBe(errno.ESRCH)
    agent.send(8, proc)
    const all = [next(), next()]
    for (const p of all) agent.spawn(p, { argv: ['/bin/sleep', '100'] })
    agent.signal(0, signals.SIGKILL, 2)
    for (const p of all)
      expect(await agent.exit(p)).toMatchObject({ kind: 'signaled', code: signals.SIGKILL, cause: 0 })
    for (const p of all) agent.send(8, p)
  })

  test('a signal sent with the SPAWN reaches the program or its beginnings', async () => {
    for (const scope of [0, 1]) {
      const proc = next()
      agent.spawn(proc, { argv: ['/bin/sleep', '100'] })
      agent.signal(proc, signals.SIGTERM, scope)
      expect(await agent.exit(proc)).toMatchObject({ kind: 'signaled', code: signals.SIGTERM })
      agent.send(8, proc)
    }
  })

  test.each([
    ['ends on SIGTERM', 'sleep 100', { kind: 'signaled', code: 15, cause: 1 }],
    ['tidies up and exits', 'trap "exit 3" TERM; while :; do sleep 0.01; done', { kind: 'exited', code: 3, cause: 1 }],
    ['ignores SIGTERM', 'trap "" TERM; while :; do sleep 100; done', { kind: 'signaled', code: 9, cause: 1 }],
  ] as const)('at its timeout a process that %s', async (_, script, expected) => {
    const r = await run({ argv: sh(`exec 2>&-; ${script}`), timeoutMs: 1000, graceMs: 500 })
    expect(r).toMatchObject(expected)
    expect(Number(r.wallNs) / 1e6).toBeGreaterThanOrEqual(expected.code === 9 ? 1500 : 1000)
  })

  test('children that ignore SIGTERM do not outlive the timed-out leader', async () => {
    const r = await run({
      argv: sh('(trap "" TERM; echo $$; exec sleep 100) & sleep 100'),
      timeoutMs: 100,
      graceMs: 60_000,
    })
    expect(r).toMatchObject({ code: 15, cause: 1 })
    const left = await run({ argv: sh('while pgrep -x sleep >/dev/null; do :; done; echo none') })
    expect(left.out).toBe('none\n')
  })

  test('a timeout fires with no agent there', async () => {
    await using sandbox = await Sandbox.start()
    const a = await sandbox.connect()
    a.spawn(1, { argv: sh('trap "" TERM; echo up; while :; do :; done'), flags: MAIN, timeoutMs: 1000, graceMs: 50 })
    await a.until('up', () => a.text(1) === 'up\n')
    a.drop()
    const b = await sandbox.connect({ after: a })
    expect(await b.exit(1)).toMatchObject({ kind: 'signaled', code: 9, cause: 1 })
  })
})

describe('MAIN and the sandbox', () => {
  test('MAIN’s end takes everything along: double forks, other sessions, execs', async () => {
    await using sandbox = await Sandbox.start()
    const a = await sandbox.connect()
    a.spawn(2, { argv: ['/bin/sleep', '100'] })
    await a.frame(67, 2)
    a.spawn(1, { argv: sh('(setsid sleep 100 &) ; (trap "" TERM HUP; sleep 100 &) ; echo bye; exit 2'), flags: MAIN })
    expect(await a.exit(1)).toMatchObject({ code: 2, cause: 0 })
    expect(a.text(1)).toBe('bye\n')
    expect(a.of(70, 1, 1)).toBeDefined()
    expect(await a.exit(2)).toMatchObject({ kind: 'signaled', code: 9, cause: 3 })
    // Refused until the last of them is reaped, which may be after MAIN's end is told.
    const proc = await a.spawnWhenCleared(3, { argv: sh('pgrep -c . || true') })
    expect((await a.exit(proc)).code).toBe(0)
    expect(Number(a.text(proc))).toBeLessThanOrEqual(3)
  })

  test('a second MAIN is refused, a next one is not', async () => {
    await using sandbox = await Sandbox.start()
    const a = await sandbox.connect()
    a.spawn(1, { argv: ['/bin/sleep', '100'], flags: MAIN })
    a.spawn(2, { argv: ['/bin/true'], flags: MAIN })
    expect(failureOf(await a.frame(68, 2))).toEqual({ stage: 2, errno: errno.EEXIST })
    a.signal(1, 9, 0)
    await a.exit(1)
    expect((await a.run(3, { argv: ['/bin/true'], flags: MAIN })).code).toBe(0)
  })

  test('kill -9 -1 inside ends the others, not init', async () => {
    await using sandbox = await Sandbox.start()
    const a = await sandbox.connect()
    a.spawn(2, { argv: ['/bin/sleep', '100'] })
    await a.frame(67, 2)
    a.spawn(1, { argv: sh('kill -9 -1; echo still here; kill -9 1; exit 3') })
    expect(await a.exit(2)).toMatchObject({ kind: 'signaled', code: 9, cause: 0 })
    expect(await a.exit(1)).toMatchObject({ code: 3 })
    expect(a.text(1)).toBe('still here\n')
  })

  test('5,000 orphans are reaped while others work', async () => {
    const script = 'i=0; while [ $i -lt 5000 ]; do (exit 0 &) ; i=$((i+1)); done'
    const proc = next()
    agent.spawn(proc, { argv: sh(script) })
    expect((await run({ argv: sh('echo beside') })).out).toBe('beside\n')
    expect((await agent.exit(proc)).code).toBe(0)
    agent.send(8, proc)
    const zombies = 'while grep -q "^State:.Z" /proc/[0-9]*/status 2>/dev/null; do :; done; echo none'
    expect((await run({ argv: sh(zombies) })).out).toBe('none\n')
  })

  test('SIGTERM to PID 1 goes to MAIN’s group', async () => {
    await using sandbox = await Sandbox.start()
    const a = await sandbox.connect()
    a.spawn(1, { argv: sh('trap "echo told; exit 8" TERM; echo up; while :; do :; done'), flags: MAIN })
    await a.until('up', () => a.text(1) === 'up\n')
    await a.run(2, { argv: sh('kill -TERM 1') })
    expect(await a.exit(1)).toMatchObject({ code: 8 })
    expect(a.text(1)).toBe('up\ntold\n')
  })

  test.each([
    ['in time', 'echo up; sleep 100', 10_000, 15],
    ['not', 'trap "" TERM; echo up; while :; do :; done', 100, 9],
  ] as const)('SHUTDOWN of processes that end %s', async (_, script, grace, signal) => {
    await using sandbox = await Sandbox.start()
    const a = await sandbox.connect()
    a.spawn(1, { argv: sh(script), flags: MAIN })
    a.spawn(2, { argv: sh(script) })
    await a.until('up', () => a.text(1) === 'up\n' && a.text(2) === 'up\n')
    a.send(9, 0, u32(grace))
    a.spawn(3, { argv: ['/bin/true'] })
    expect(await a.exit(1)).toMatchObject({ cause: 2, code: signal, kind: 'signaled' })
    const other = await a.exit(2)
    expect(other).toMatchObject({ cause: 2, kind: 'signaled' })
    // MAIN's end kills the others at once: that may overtake the SIGTERM that both were sent.
    expect([signal, 9]).toContain(other.code)
    expect(failureOf(await a.frame(68, 3))).toEqual({ stage: 1, errno: 108 })
    expect(await sandbox.exitCode()).toBe(0)
  })

  test('SHUTDOWN of an empty sandbox, and one whose agent is gone', async () => {
    await using empty = await Sandbox.start()
    const a = await empty.connect()
    a.send(9, 0, u32(60_000))
    expect(await empty.exitCode()).toBe(0)
    await using orphaned = await Sandbox.start()
    const b = await orphaned.connect()
    await b.run(1, { argv: ['/bin/true'] })
    b.socket.end(frame(9, 0, u32(0)))
    expect(await orphaned.exitCode()).toBe(0)
  })
})

describe('terminal', () => {
  const terminal = { flags: TTY, env: ['PATH=/bin:/usr/bin', 'TERM=dumb'], size: [33, 111] } as const

  test('has the size asked for, and a new one with SIGWINCH', async () => {
    const proc = next()
    const script = 'stty size; trap "stty size; exit" WINCH; echo up; while :; do sleep 0.01; done'
    agent.spawn(proc, { ...terminal, argv: sh(script) })
    await agent.until('up', () => agent.text(proc).includes('up'))
    agent.send(6, proc, Buffer.from([50, 0, 200, 0]))
    expect((await agent.exit(proc)).code).toBe(0)
    expect(agent.text(proc)).toBe('33 111\r\nup\r\n50 200\r\n')
    agent.send(8, proc)
  })

  test('controls its process: ^C, end of input, job control', async () => {
    const proc = next()
    agent.spawn(proc, { ...terminal, argv: sh('trap "echo caught" INT; tty; cat; cat; echo rest') })
    await agent.until('tty', () => agent.text(proc).includes('/dev/pts/'))
    agent.stdin(proc, 0n, 'one\n')
    await agent.until('echo and copy', () => agent.text(proc).split('one').length === 3)
    agent.stdin(proc, 4n, '\x03')
    await agent.until('caught', () => agent.text(proc).includes('caught'))
    agent.send(4, proc, u64(5n))
    expect((await agent.exit(proc)).code).toBe(0)
    expect(agent.text(proc)).toContain('rest\r\n')
    expect(agent.of(70, proc, 1)).toBeDefined()
    agent.send(8, proc)
  })

  test('a flood on it arrives whole before EXIT', async () => {
    const proc = next()
    const r = await agent.run(proc, {
      ...terminal,
      argv: sh('stty -opost; head -c 3000000 /dev/zero | tr "\\0" x; echo end'),
    })
    expect(r.code).toBe(0)
    const text = agent.text(proc)
    expect([text.length, text.slice(-5)]).toEqual([3_000_004, 'xend\n'])
    agent.send(8, proc)
  })

  test('belongs to its user', async () => {
    const r = await run({ ...terminal, argv: sh('stat -c %u $(tty); echo x >$(tty)'), uid: 1234, effective: 0n })
    expect(r.out).toBe('1234\r\nx\r\n')
  })

  test('RESIZE without one is refused', async () => {
    const proc = next()
    agent.spawn(proc, { argv: ['/bin/sleep', '100'] })
    agent.send(6, proc, Buffer.alloc(4))
    expect(errorOf(await agent.frame(73, proc)).errno).toBe(errno.ENOTTY)
    agent.signal(proc, 9, 0)
    await agent.exit(proc)
    agent.send(8, proc)
  })
})

describe('a broken or hostile agent', () => {
  let sandbox: Sandbox
  beforeAll(async () => {
    sandbox = await Sandbox.start()
    const a = await sandbox.connect()
    a.spawn(1, { argv: ['/bin/sleep', '1000'], flags: MAIN })
    await a.frame(67, 1)
    a.drop()
  })
  afterAll(async () => {
    await sandbox[Symbol.asyncDispose]()
  })

  const hello = frame(1, 0, u32(1))
  const long = Buffer.concat([u32(0xffffffff), Buffer.alloc(8)])
  const zeros = Buffer.from(frame(8, 5))
  zeros.writeUInt16LE(7, 6)
  const fatal: [string, Buffer][] = [
    ['another version', frame(1, 0, u32(2))],
    ['no HELLO', frame(8, 1)],
    ['HELLO twice', Buffer.concat([hello, hello])],
    ['text', Buffer.from('GET / HTTP/1.1\r\nHost: x\r\n\r\n')],
    ['noise', Buffer.alloc(70_000, 0xa5)],
    ['a length beyond the limit', Buffer.concat([hello, long])],
    ['reserved bytes', Buffer.concat([hello, zeros])],
    ['an unknown type', Buffer.concat([hello, frame(99, 1)])],
    ['a type of the other side', Buffer.concat([hello, frame(69, 1, u64(0n), 1)])],
    ['a stream where none belongs', Buffer.concat([hello, frame(8, 1, Buffer.alloc(0), 1)])],
    ['ACK of stream 0', Buffer.concat([hello, frame(7, 1, u64(0n))])],
    ['ACK of stream 3', Buffer.concat([hello, frame(7, 1, u64(0n), 3)])],
    ['a payload cut short', Buffer.concat([hello, frame(7, 1, u32(0), 1)])],
    ['a payload with a tail', Buffer.concat([hello, frame(6, 1, Buffer.alloc(5))])],
    ['signal 0', Buffer.concat([hello, frame(5, 1, Buffer.concat([u32(0), Buffer.from([0])]))])],
    ['signal 65', Buffer.concat([hello, frame(5, 1, Buffer.concat([u32(65), Buffer.from([0])]))])],
    ['an unknown scope', Buffer.concat([hello, frame(5, 1, Buffer.concat([u32(9), Buffer.from([3])]))])],
    ['SPAWN as 0', Buffer.concat([hello, frame(2, 0, spawnPayload({ argv: ['/bin/true'] }))])],
    ['too much input in a frame', Buffer.concat([hello, frame(3, 1, Buffer.alloc(8 + 65 * KiB))])],
  ]
  test.each(fatal)('%s ends the connection, not the process', async (_, bytes) => {
    const a = await sandbox.connect({ greet: false })
    a.socket.write(bytes)
    await a.gone()
    expect(a.frames.filter((f) => f.type === 73).map((f) => f.proc)).toEqual([0])
    const b = await sandbox.connect()
    expect((await b.frame(66, 1)).payload.readUInt8(0)).toBe(1)
    b.drop()
  })

  const good = spawnPayload({ argv: ['/bin/true'] })
  const refused: [string, Buffer][] = [
    ['nothing', Buffer.alloc(0)],
    ['every prefix', good.subarray(0, good.length - 1)],
    ['a tail', Buffer.concat([good, Buffer.alloc(1)])],
    ['no argv', spawnPayload({ argv: [] })],
    ['NUL in argv', spawnPayload({ argv: ['/bin/true', 'a\0b'] })],
    ['NUL in env', spawnPayload({ argv: ['/bin/true'], env: ['A=\0'] })],
    ['NUL in cwd', spawnPayload({ argv: ['/bin/true'], cwd: '/\0' })],
    ['uid -1, which would stay root', spawnPayload({ argv: ['/bin/true'], uid: -1 })],
    ['unknown flags', spawnPayload({ argv: ['/bin/true'], flags: 64 })],
    ['257 groups', spawnPayload({ argv: ['/bin/true'], groups: Array<number>(257).fill(1) })],
    ['17 limits', spawnPayload({ argv: ['/bin/true'], rlimits: Array(17).fill([0, 1n, 1n]) })],
    ['oom_score_adj 1001', spawnPayload({ argv: ['/bin/true'], oomScoreAdj: 1001 })],
  ]
  test.each(refused)('a SPAWN with %s is refused, the connection goes on', async (_, payload) => {
    const a = await sandbox.connect()
    const shorter = _ === 'every prefix' ? Array.from(payload, (__, i) => payload.subarray(0, i)) : [payload]
    for (const p of shorter) a.send(2, 7, p)
    await a.until('errors', () => a.frames.filter((f) => f.type === 73).length === shorter.length)
    expect(a.frames.filter((f) => f.type === 73).every((f) => errorOf(f).errno === errno.EINVAL && f.proc === 7)).toBe(
      true,
    )
    expect((await a.run(8, { argv: ['/bin/true'] })).code).toBe(0)
    a.send(8, 8)
    a.drop()
  })

  test.each([
    ['unknown proc', frame(7, 77, u64(0n), 1), errno.ESRCH],
    ['ACK beyond the output', frame(7, 1, u64(1n), 1), errno.EINVAL],
    ['FORGET of a running process', frame(8, 1), errno.EBUSY],
    ['STDIN without', frame(3, 1, u64(0n)), errno.EBADF],
    ['STDIN_EOF without', frame(4, 1, u64(0n)), errno.EBADF],
  ] as const)('%s is refused by itself', async (_, bytes, expected) => {
    const a = await sandbox.connect()
    a.socket.write(bytes)
    const error = await a.until('error', () => a.frames.find((f) => f.type === 73))
    expect(errorOf(error).errno).toBe(expected)
    a.send(8, 12345)
    expect((await a.run(9, { argv: ['/bin/true'] })).code).toBe(0)
    a.send(8, 9)
    a.drop()
  })

  test('a newer connection replaces one that hangs in the middle of a frame', async () => {
    const a = await sandbox.connect({ greet: false })
    a.socket.write(frame(2, 5, good).subarray(0, 40))
    const b = await sandbox.connect()
    await a.gone()
    expect((await b.run(10, { argv: ['/bin/true'] })).code).toBe(0)
    b.send(8, 10)
    b.drop()
  })

  test('frames that arrive byte by byte are put together', async () => {
    const a = await sandbox.connect({ greet: false })
    a.socket.setNoDelay(true)
    for (const byte of Buffer.concat([hello, frame(2, 11, good)])) {
      await new Promise((sent) => a.socket.write(Buffer.from([byte]), sent))
    }
    expect((await a.exit(11)).code).toBe(0)
    a.send(8, 11)
    a.drop()
  })

  test('one that sends and never reads costs a bounded buffer, and the next is served', async () => {
    const residentKiB = async (from: Agent, proc: number) => {
      await from.run(proc, { argv: sh('grep VmRSS /proc/1/status') })
      from.send(8, proc)
      return Number(/\d+/.exec(from.text(proc))?.[0])
    }
    const a = await sandbox.connect()
    const before = await residentKiB(a, 12)
    a.socket.pause()
    a.socket.write(Buffer.concat(Array<Buffer>(20_000).fill(frame(7, 77, u64(0n), 1))))
    const b = await sandbox.connect()
    expect((await residentKiB(b, 13)) - before).toBeLessThan(2_000)
  })
})

test('berth-init refuses to run as anything but PID 1', () => {
  const r = spawnSync(join(build, 'berth-init'), { encoding: 'utf8' })
  expect([r.status, r.stderr]).toEqual([1, 'berth-init: not PID 1: Invalid argument\n'])
})
