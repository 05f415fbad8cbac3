import { readFileSync } from 'node:fs'
import { afterEach, beforeAll, expect, test } from '@jest/globals'
import { finished, python, run, type Spec, sh, stdout, submit, type TestTenant, tenant } from '../support/berth.js'

// Every test here runs hostile code in a real container, beside a victim of another tenant that must come out right.
let attacker: TestTenant
let victim: TestTenant
let victimJob: string | undefined
beforeAll(async () => {
  attacker = await tenant({ pids: 400, memoryBytes: 2 * 1024 ** 3 })
  victim = await tenant()
})

/** Runs hostile code with a victim beside it, and checks the victim. */
async function attack(spec: Spec) {
  victimJob = await submit(
    victim,
    python('import hashlib\nh=b"x"\nfor i in range(60000): h=hashlib.sha256(h).digest()\nprint(h.hex()[:16])'),
  )
  const job = await run(attacker, spec)
  const spared = await finished(victim, victimJob)
  expect([spared.state, stdout(spared)]).toEqual(['succeeded', VICTIM])
  return job
}
let VICTIM = ''
beforeAll(async () => {
  VICTIM = stdout(
    await run(
      victim,
      python('import hashlib\nh=b"x"\nfor i in range(60000): h=hashlib.sha256(h).digest()\nprint(h.hex()[:16])'),
    ),
  )
})
afterEach(async () => {
  if (victimJob) await finished(victim, victimJob)
})

test('a gibibyte of output is counted and cut, and holds up nothing', async () => {
  const job = await attack({ ...sh('head -c 1073741824 /dev/zero'), limits: { outputBytes: '1m' }, timeoutMs: '2m' })
  expect(job).toMatchObject({
    state: 'succeeded',
    usage: { stdout: { bytes: 1_073_741_824, keptBytes: 1_048_576, truncated: true } },
  })
}, 180_000)

test('a fork bomb is held to its process limit', async () => {
  const job = await attack({
    ...sh('b() { b | b & }; b; sleep 1; echo alive'),
    limits: { pids: 64 },
    timeoutMs: '5s',
    graceMs: 100,
  })
  expect(['succeeded', 'failed', 'timed_out']).toContain(job.state)
})

test('a thread flood is held to its process limit', async () => {
  const job = await attack({
    ...python(
      'import threading,time\nn=0\ntry:\n  while n<5000:\n    threading.Thread(target=time.sleep,args=(30,),daemon=True).start(); n+=1\nexcept RuntimeError: pass\nprint(n, flush=True)\nimport os; os._exit(0)',
    ),
    limits: { pids: 100 },
  })
  expect(Number(stdout(job))).toBeLessThan(100)
  expect(Number(stdout(job))).toBeGreaterThan(10)
})

test('a memory hog is killed, and that is told apart from other ends', async () => {
  const job = await attack({
    ...python('x=[]\nwhile True: x.append(bytearray(1<<20))'),
    limits: { memoryBytes: '64m' },
  })
  expect(job).toMatchObject({ state: 'failed', oomKilled: true, reason: { code: 'oom_killed' } })
  expect(job.usage?.peakMemoryBytes).toBeLessThanOrEqual(64 * 1024 ** 2)
})

test('memory in /dev/shm and in tmpfs counts', async () => {
  const job = await attack({
    ...sh('head -c 200000000 /dev/zero > /dev/shm/x; echo $?'),
    limits: { memoryBytes: '64m', shmBytes: '1g' },
  })
  expect(job.state === 'failed' || stdout(job).trim() !== '0').toBe(true)
})

test('a disk filler meets its limit, and the node keeps its space', async () => {
  const job = await attack({
    ...sh('head -c 500000000 /dev/urandom > /big; echo $?; du -sm /big | cut -f1'),
    limits: { diskBytes: '32m' },
    timeoutMs: '1m',
  })
  const [code, megabytes] = stdout(job).trim().split('\n').map(Number)
  expect(code).not.toBe(0)
  expect(megabytes).toBeLessThanOrEqual(33)
})

test('millions of small files meet the limit too', async () => {
  const job = await attack({
    ...python(
      'import os\nn=0\ntry:\n  os.mkdir("/d")\n  while n<2000000:\n    open(f"/d/{n}","w").write("x"*1000); n+=1\nexcept OSError as e: print(n, e.errno)',
    ),
    limits: { diskBytes: '16m' },
    timeoutMs: '2m',
  })
  const [count, errno] = stdout(job).trim().split(' ').map(Number)
  expect(count).toBeLessThan(100_000)
  expect([28, 122]).toContain(errno)
}, 180_000)

test('a CPU hog gets what it asked for', async () => {
  const job = await attack({
    ...python('import time\ne=time.time()+2\nwhile time.time()<e: pass'),
    limits: { cpus: 0.2 },
  })
  const { cpuMs, wallMs } = job.usage ?? { cpuMs: 0, wallMs: 1 }
  expect(cpuMs / wallMs).toBeLessThan(0.35)
})

test.each([
  ['write to /proc/sys', 'echo 1 > /proc/sys/kernel/panic'],
  ['write to a sysctl of the network', 'echo 1 > /proc/sys/net/ipv4/ip_forward'],
  ['sysrq', 'echo b > /proc/sysrq-trigger'],
  ['write to /sys', 'echo 1 > /sys/kernel/profiling'],
  ['remount /sys', 'mount -o remount,rw /sys'],
  ['a mount', 'mount -t tmpfs x /mnt'],
  ['a bind mount', 'mount --bind /etc /mnt'],
  ['a proc mount', 'mkdir /p && mount -t proc x /p'],
  ['a new user namespace', 'unshare -U true'],
  ['a new mount namespace', 'unshare -m true'],
  ['a new network namespace', 'unshare -n true'],
  ['a device node', 'mknod /tmp/sda b 8 0'],
  ['the host’s disks', 'cat /dev/vda'],
  ['kernel memory', 'head -c 1 /proc/kcore'],
  ['kernel log', 'dmesg'],
  ['the clock', 'date -s 2001-01-01'],
  ['the host name', 'hostname intruder'],
  ['a module', 'insmod /tmp/x.ko || modprobe dummy'],
  ['swap', 'dd if=/dev/zero of=/swap bs=4096 count=10 2>/dev/null; mkswap /swap >/dev/null; swapon /swap'],
  ['chroot escape', 'python3 -c "import os; os.chroot(b\'/tmp\'); os.setns(1,0)"'],
])('%s is refused', async (_, script) => {
  const job = await attack({ image: 'python', ...sh(`(${script}) && echo BROKEN-OUT || echo held`) })
  expect(stdout(job)).toContain('held')
  expect(stdout(job)).not.toContain('BROKEN-OUT')
})

// Called by number through ctypes: no tool in the image is needed to try them.
test.each<[string, string, readonly number[]]>([
  ['keyctl', 'syscall(250, 0, -3, 0, 0, 0)', [1]],
  ['add_key', 'syscall(248, b"user", b"x", b"y", 1, -2)', [1]],
  ['bpf', 'syscall(321, 0, 0, 0)', [1]],
  ['io_uring_setup', 'syscall(425, 8, ctypes.create_string_buffer(256))', [1]],
  ['userfaultfd', 'syscall(323, 0)', [1]],
  ['perf_event_open', 'syscall(298, ctypes.create_string_buffer(128), 0, -1, -1, 0)', [1]],
  ['raw socket', 'syscall(41, 2, 3, 1)', [1]],
  ['packet socket', 'syscall(41, 17, 3, 768)', [1]],
  ['vsock', 'syscall(41, 40, 1, 0)', [1]],
  ['AF_ALG socket', 'syscall(41, 38, 5, 0)', [1]],
  ['clone with CLONE_NEWUSER', 'syscall(56, 0x10000000 | 17, 0, 0, 0, 0)', [1]],
  ['clone3', 'syscall(435, ctypes.create_string_buffer(88), 88)', [38]],
  ['open_by_handle_at', 'syscall(304, -100, ctypes.create_string_buffer(64), 0)', [1]],
  ['init_module', 'syscall(175, b"x", 1, b"")', [1]],
  ['kexec_load', 'syscall(246, 0, 0, 0, 0)', [1]],
  ['ptrace of PID 1', 'syscall(101, 16, 1, 0, 0)', [1, 3]],
  ['process_vm_writev of PID 1', 'syscall(311, 1, 0, 0, 0, 0, 0)', [1]],
  ['pivot_root', 'syscall(155, b"/", b"/")', [1]],
  ['settimeofday', 'syscall(164, ctypes.create_string_buffer(16), 0)', [1]],
])('%s fails', async (_, call, errnos) => {
  const job = await run(
    attacker,
    python(
      `import ctypes\nl=ctypes.CDLL(None,use_errno=True)\nsyscall=l.syscall\nr=${call}\nprint(r, ctypes.get_errno())`,
    ),
  )
  const [result, errno] = stdout(job).trim().split(' ').map(Number)
  expect(result).toBe(-1)
  expect(errnos).toContain(errno)
})

test('kill -9 -1 ends the job’s own processes and nothing else', async () => {
  const job = await attack(sh('sleep 100 & kill -9 -1; echo still here'))
  expect(['succeeded', 'failed']).toContain(job.state)
  expect(await run(attacker, sh('echo next'))).toMatchObject({ state: 'succeeded' })
})

test('PID 1 cannot be killed, traced or read from inside', async () => {
  const job = await attack(
    sh(
      'kill -9 1; kill -STOP 1; cat /proc/1/environ; ls -l /proc/1/fd; cat /proc/1/mem; readlink /proc/1/exe; echo end',
    ),
  )
  expect(job.state).toBe('succeeded')
  expect(stdout(job).trim().split('\n').at(-1)).toBe('end')
  expect(stdout(job)).not.toContain('socket:')
})

test('no process of the node or of a neighbour is seen', async () => {
  const neighbour = await submit(victim, sh('exec -a secret-neighbour sleep 3'))
  const job = await attack(sh('cat /proc/[0-9]*/cmdline | tr "\\0" " "; echo; ls -d /proc/[0-9]* | wc -l'))
  expect(stdout(job)).not.toMatch(/secret-neighbour|postgres|redis|node /)
  expect(Number(stdout(job).trim().split('\n').at(-1))).toBeLessThan(8)
  await finished(victim, neighbour)
})

test('links in the sandbox lead nowhere on the host', async () => {
  const secret = readFileSync('/etc/machine-id', 'utf8').trim()
  const job = await attack(
    sh(
      'ln -s /proc/1/root/etc/machine-id a; cat a; ln -s ../../../../../../../../etc/machine-id b; cat b; ' +
        'ls /proc/1/cwd/ >/dev/null; ln /etc/passwd /tmp/hard && cat /tmp/hard >/dev/null; ' +
        'for d in /proc/*/root /proc/*/cwd; do cat $d/etc/machine-id; done; cat /proc/self/mountinfo >/dev/null; echo end',
    ),
  )
  expect(job.state).toBe('succeeded')
  if (secret) expect(stdout(job) + JSON.stringify(job.output)).not.toContain(secret)
})

test('what one tenant writes, no other job sees', async () => {
  const mark = `mark-${Date.now()}`
  await run(
    victim,
    sh(
      `echo ${mark} > /root/secret; echo ${mark} > /tmp/secret; echo ${mark} > /dev/shm/secret; echo ${mark} >> /etc/passwd`,
    ),
  )
  const job = await attack(sh(`grep -rl ${mark} / --exclude-dir=proc --exclude-dir=sys 2>/dev/null; echo end`))
  expect(stdout(job)).toBe('end\n')
})

test('the image itself cannot be changed', async () => {
  await run(attacker, sh('rm -rf /usr/bin/* /etc /bin; echo poisoned > /etc-poison'))
  expect(stdout(await run(attacker, sh('ls /etc/passwd /usr/bin/env; ls /etc-poison 2>&1 | tail -c 28')))).toContain(
    '/usr/bin/env',
  )
})

test('a job that ignores SIGTERM is ended', async () => {
  const job = await attack({
    ...python(
      'import signal,time\nfor s in range(1,32):\n  try: signal.signal(s, signal.SIG_IGN)\n  except OSError: pass\nwhile True: time.sleep(1)',
    ),
    timeoutMs: 400,
    graceMs: 200,
  })
  expect(job).toMatchObject({ state: 'timed_out', signal: 'SIGKILL' })
})

test('a double fork that outlives the main process is ended with it', async () => {
  const job = await attack(
    sh('(setsid sh -c "trap \'\' TERM HUP; while :; do sleep 0.1; echo orphan; done" &) ; echo main; exit 0'),
  )
  expect(job).toMatchObject({ state: 'succeeded', exitCode: 0 })
  expect(job.usage?.wallMs).toBeLessThan(10_000)
})

test('there is no network, and no way to the control plane', async () => {
  const job = await attack(
    python(
      'import socket,os\nprint(sorted(os.listdir("/sys/class/net")))\nfor a in [("127.0.0.1",7433),("10.0.0.1",80),("169.254.169.254",80)]:\n  s=socket.socket(); s.settimeout(1)\n  try: s.connect(a); print("connected",a)\n  except OSError as e: print("no")',
    ),
  )
  expect(stdout(job)).toBe("['lo']\nno\nno\nno\n")
})

test('capabilities, privileges and the filter are as promised', async () => {
  const job = await attack(sh('grep -E "^(CapEff|CapBnd|CapAmb|NoNewPrivs|Seccomp):" /proc/self/status'))
  const status = Object.fromEntries(
    stdout(job)
      .trim()
      .split('\n')
      .map((line) => line.split(/:\s+/)),
  )
  expect(status).toEqual({
    CapEff: '00000000800405fb',
    CapBnd: '00000000800405fb',
    CapAmb: '0000000000000000',
    NoNewPrivs: '1',
    Seccomp: '2',
  })
  const user = await run(attacker, { ...sh('grep -E "^CapEff:" /proc/self/status'), user: '1000' })
  expect(stdout(user)).toContain('0000000000000000')
})

test('flooding both streams at once loses nothing within the limit', async () => {
  const job = await attack(
    python(
      'import sys,threading\ndef w(f,c):\n  for i in range(2000): f.write(c*1000)\na=threading.Thread(target=w,args=(sys.stdout,"o")); b=threading.Thread(target=w,args=(sys.stderr,"e")); a.start(); b.start(); a.join(); b.join()',
    ),
  )
  expect(job.usage).toMatchObject({
    stdout: { bytes: 2_000_000, truncated: false },
    stderr: { bytes: 2_000_000, truncated: false },
  })
  const err = await (await attacker.raw('GET', `/v1/jobs/${job.id}/output/stderr`)).text()
  expect(err).toBe('e'.repeat(2_000_000))
})

test('terminal escapes and control bytes in output stay data', async () => {
  const job = await attack(sh('printf \'\\033]0;owned\\007\\000\\r\\n{"code":"x"}\''))
  expect(stdout(job)).toBe('\u001b]0;owned\u0007\u0000\r\n{"code":"x"}')
})
