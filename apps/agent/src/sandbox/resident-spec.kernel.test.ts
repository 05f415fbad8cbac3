// What a sandbox's spec says, as the kernel sees it from inside.
import { afterAll, afterEach, beforeAll, describe, expect, test } from '@jest/globals'
import { abilitiesOf } from './abilities.js'
import { applySandbox, newTenant, nothing, type SandboxInput, type TestNode } from './node.fixture.js'
import { loop, ResidentNode, sh } from './residents.fixture.js'

let on: ResidentNode
let node: TestNode
beforeAll(async () => {
  on = await ResidentNode.open()
  node = on.node
})
afterEach(() => on.clear())
afterAll(async () => {
  expect(await on.destroy()).toEqual(nothing)
})

const MiB = 1024 ** 2
const ask = async (spec: SandboxInput, script: string) => on.once(applySandbox({ ...sh(script), ...spec }))
const limits = { memoryBytes: 64 * MiB, pids: 32, diskBytes: 16 * MiB, shmBytes: 8 * MiB }

describe('file systems', () => {
  test('memory file systems have their size and mode, and belong to root of the sandbox', async () => {
    const tmpfs = [
      { path: '/scratch/deep', sizeBytes: '1m', mode: 0o700 },
      { path: '/scratch', sizeBytes: '2m' },
      { path: '/tmp', sizeBytes: '1m' },
    ]
    const script =
      'ls -ldn /scratch /scratch/deep | tr -s " " | cut -d" " -f1,3; df -k /scratch /scratch/deep | tail -n +2 | tr -s " " | cut -d" " -f2;' +
      'dd if=/dev/zero of=/scratch/x bs=1k count=4000 2>/dev/null || echo full; touch /scratch/deep/y && echo written;' +
      'grep -E " /(scratch|tmp)" /proc/mounts | cut -d" " -f2-4 | grep -vc nosuid,nodev'
    const { stdout } = await ask({ tmpfs }, script)
    expect(stdout.split('\n')).toEqual([
      ...['drwxrwxrwt 0', 'drwx------ 0', '2048', '1024', 'full', 'written', '0', ''],
    ])
  })

  test('an ordinary user has a memory file system of mode 1777 to write to', async () => {
    const { stdout } = await ask(
      { tmpfs: [{ path: '/run/app' }], user: 'app' },
      'echo x > /run/app/x && ls -ln /run/app/x | cut -c1-10',
    )
    expect(stdout).toBe('-rw-r--r--\n')
  })

  test('a read-only root cannot be written to, and is otherwise whole', async () => {
    const script =
      'touch /x 2>&1; echo a > /etc/hosts; cat /etc/hostname; grep -c localhost /etc/hosts; echo y > /tmp/y && cat /tmp/y;' +
      'echo z > /dev/shm/z && cat /dev/shm/z; echo > /dev/null && echo fine'
    const spec = { readOnlyRootfs: true, hostname: 'here', tmpfs: [{ path: '/tmp' }] }
    const { stdout } = await ask(spec, script)
    expect(stdout.split('\n')).toEqual(['touch: /x: Read-only file system', 'here', '2', 'y', 'z', 'fine', ''])
  })

  test('/dev/shm and the writable layer have their sizes', async () => {
    const script =
      'dd if=/dev/zero of=/dev/shm/x bs=1M count=20 2>/dev/null; wc -c < /dev/shm/x;' +
      'dd if=/dev/zero of=/x bs=1M count=64 2>/dev/null && sync || echo full'
    const { stdout } = await ask({ limits }, script)
    expect(stdout).toBe(`${limits.shmBytes}\nfull\n`)
  })
})

describe('privileges', () => {
  const status = 'grep -E "CapEff|CapBnd|NoNewPrivs|Seccomp:" /proc/self/status | cut -f2'

  test('root has the default capabilities, and can gain none', async () => {
    expect((await ask({}, status)).stdout.split('\n')).toEqual([
      ...['00000000800405fb', '00000000800405fb', '1', '2', ''],
    ])
  })

  test('capabilities are added and dropped', async () => {
    const { stdout } = await ask(
      { capAdd: ['NET_RAW'], capDrop: ['CHOWN', 'CAP_SETUID'] },
      `${status}; touch /f; chown 5 /f || echo no`,
    )
    const expected = (0x800405fbn | (1n << 13n)) & ~(1n << 0n) & ~(1n << 7n)
    expect(stdout.split('\n').slice(0, 2)).toEqual(Array(2).fill(expected.toString(16).padStart(16, '0')))
    expect(stdout).toContain('no\n')
    expect((await ask({ capDrop: ['ALL'] }, status)).stdout).toMatch(/^0{16}\n0{16}\n/)
  })

  test('without no-new-privileges a set-user-id program works, with it none does', async () => {
    const who = async (noNewPrivileges: boolean) => {
      const { sandboxId: id } = await node.up({ noNewPrivileges })
      await node.inside(id, 'cp /bin/busybox /su; chmod 4755 /su; echo root::0:0:root:/:/bin/sh > /etc/passwd')
      return (await node.inside(id, 'exec /su -c "id -u"', 1000)).out
    }
    expect(await who(false)).toBe('0\n')
    expect(await who(true)).toMatch(/must be suid/)
  })

  test('the strict profile lets build tools work, and refuses what they rarely need', async () => {
    const script =
      'for i in 1 2 3; do echo $i; done | sort -r | head -1; mkfifo /f && echo fifo; chroot / true || echo no chroot'
    expect((await ask({}, script.replace('mkfifo /f', 'true'))).stdout).toBe('3\nfifo\n')
    const strict = await ask({ seccompProfile: 'strict' }, script.replace('mkfifo /f', 'true'))
    expect(strict.stdout).toBe('3\nfifo\nno chroot\n')
  })

  test('sysctls are set in the namespaces of the sandbox, and only there', async () => {
    const sysctls = { 'net.ipv4.ip_unprivileged_port_start': '80', 'kernel.msgmax': '12345' }
    const { stdout } = await ask(
      { sysctls },
      'cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/msgmax',
    )
    expect(stdout).toBe('80\n12345\n')
    expect((await ask({}, 'cat /proc/sys/net/ipv4/ip_unprivileged_port_start')).stdout).toBe('1024\n')
  })

  test('a sysctl that is not one of a namespace fails the start', async () => {
    const command = applySandbox({ sysctls: { 'kernel.panic': '5' } })
    await node.residents.apply(command)
    await node.reported(command.sandboxId, ({ state }) => state === 'failed')
    expect((await on.end(command.sandboxId)).reason.code).toBe('start_failed')
  })
})

describe('limits of a process', () => {
  test('are those of the spec, with 1,024 files and no core as a default', async () => {
    expect((await ask({}, 'ulimit -Sn; ulimit -Hn; ulimit -c')).stdout).toBe('1024\n1024\n0\n')
    const ulimits = {
      nofile: { soft: 100, hard: 200 },
      stack: { soft: 1024 * 1024, hard: 2 * 1024 * 1024 },
      fsize: { soft: 4096, hard: 8192 },
    }
    const { stdout } = await ask(
      { limits: { ulimits } },
      'ulimit -Sn; ulimit -Hn; ulimit -Ss; head -c 10000 /dev/zero > /big; wc -c < /big',
    )
    expect(stdout).toBe('100\n200\n1024\n4096\n')
  })

  test('above those of the agent: given where it may, else a clear failure', async () => {
    const { hardLimits, raisesLimits } = abilitiesOf(false)
    const hard = (hardLimits.nofile ?? 1024) + 1
    const command = applySandbox({
      ...sh('ulimit -Hn; ulimit -Sn'),
      limits: { ulimits: { nofile: { soft: 50, hard } } },
    })
    await node.residents.apply(command)
    const { reason } = await on.end(command.sandboxId)
    if (raisesLimits) expect((await node.taped(command.sandboxId)).stdout).toBe(`${hard}\n50\n`)
    else
      expect(reason).toMatchObject({
        code: 'start_failed',
        message: expect.stringContaining(`nofile limit of ${hard}`),
      })
  })

  test('a score for the killer of processes can be raised', async () => {
    expect((await ask({ oomScoreAdj: 321 }, 'cat /proc/self/oom_score_adj')).stdout).toBe('321\n')
  })
})

describe('limits of the sandbox', () => {
  const control = (id: string, controller: string, file: string) => {
    const { group } = node.residents.get(id as never) ?? { group: '' }
    const directory = node.shop.cgroups.paths(group).get(controller)
    return on.node.shop.cgroupVersion === 'v1' ? `${directory}/${file}` : ''
  }
  const read = async (id: string, controller: string, file: string) => {
    const { readFileSync } = await import('node:fs')
    return readFileSync(control(id, controller, file), 'utf8').trim()
  }

  test('swap, reservation, period, shares and CPUs are the kernel’s', async () => {
    if (node.shop.cgroupVersion !== 'v1') return
    const fine = {
      swapBytes: '8m',
      memoryReservationBytes: '16m',
      cpus: 0.5,
      cpuPeriodUs: 20_000,
      cpuShares: 300,
      cpuset: '0',
    }
    const { sandboxId: id } = await node.up({ ...sh(loop), limits: { ...limits, ...fine } })
    expect(await read(id, 'memory', 'memory.memsw.limit_in_bytes')).toBe(String(72 * MiB))
    expect(await read(id, 'memory', 'memory.soft_limit_in_bytes')).toBe(String(16 * MiB))
    expect(await read(id, 'cpu', 'cpu.cfs_quota_us')).toBe('10000')
    expect(await read(id, 'cpu', 'cpu.cfs_period_us')).toBe('20000')
    expect(await read(id, 'cpu', 'cpu.shares')).toBe('300')
    expect(await read(id, 'cpuset', 'cpuset.cpus')).toBe('0')
    expect((await node.inside(id, 'grep Cpus_allowed_list /proc/self/status | cut -f2')).out).toBe('0\n')
  })

  test('a weight of disk access is given where the kernel has one, else a clear failure', async () => {
    const command = applySandbox({ ...sh('true'), limits: { ioWeight: 200 } })
    await node.residents.apply(command)
    const { reason } = await on.end(command.sandboxId)
    if (node.shop.abilities.weighsIo) expect(reason.code).toBe('completed')
    else expect(reason).toMatchObject({ code: 'start_failed', message: expect.stringContaining('weigh disk access') })
  })

  test('change while it runs: up, down, lifted again; and at the next start', async () => {
    const command = await node.up({ ...sh(loop), limits })
    const id = command.sandboxId
    const change = (more: object) => ({ spec: { ...command.spec, limits: { ...command.spec.limits, ...more } } })
    const larger = await node.want(
      command,
      change({ memoryBytes: 128 * MiB, pids: 64, cpus: 0.25, cpuShares: 2000, cpuset: '0', diskBytes: 64 * MiB }),
    )
    await on.until('more memory', async () => (await read(id, 'memory', 'memory.limit_in_bytes')) === String(128 * MiB))
    expect(await read(id, 'pids', 'pids.max')).toBe('65')
    expect(await read(id, 'cpu', 'cpu.shares')).toBe('2000')
    expect(await read(id, 'cpuset', 'cpuset.cpus')).toBe('0')
    expect((await node.inside(id, 'dd if=/dev/zero of=/x bs=1M count=40 && sync')).code).toBe(0)
    const smaller = await node.want(larger, change({}))
    await on.until('less memory', async () => (await read(id, 'memory', 'memory.limit_in_bytes')) === String(64 * MiB))
    expect(await read(id, 'cpuset', 'cpuset.cpus')).not.toBe('')
    const off = await node.become(smaller, 'stopped', { stop: { ...command.stop, graceMs: 0 } })
    const fuller = await node.want(off, change({ memoryBytes: 96 * MiB, diskBytes: 128 * MiB }))
    await node.become(fuller, 'running', { run: 2 })
    expect(await read(id, 'memory', 'memory.limit_in_bytes')).toBe(String(96 * MiB))
    expect((await node.inside(id, 'dd if=/dev/zero of=/y bs=1M count=60 && sync')).code).toBe(0)
  })

  test('a full disk keeps nobody from starting again and making room', async () => {
    const command = await node.up({ ...sh(loop), limits })
    const id = command.sandboxId
    await node.inside(
      id,
      'dd if=/dev/zero of=/x bs=1M count=64; for i in $(seq 2000); do echo x > /small$i || break; done; sync',
    )
    const off = await node.become(command, 'stopped', { stop: { ...command.stop, graceMs: 0 } })
    await node.become(off, 'running', { run: 2 })
    expect(await node.inside(id, 'rm /x && echo y > /y && cat /y')).toEqual({ code: 0, out: 'y\n' })
  })

  test('less memory than it holds is tried until it fits, and holds up nothing', async () => {
    if (node.shop.cgroupVersion !== 'v1') return
    const command = await node.up({
      ...sh(`dd if=/dev/zero of=/dev/shm/x bs=1M count=40; echo up; ${loop}`),
      limits: { ...limits, shmBytes: 64 * MiB },
    })
    await on.says(command.sandboxId, 'up')
    const less = await node.want(command, {
      spec: { ...command.spec, limits: { ...command.spec.limits, memoryBytes: 20 * MiB } },
    })
    await node.become(less, 'paused')
  })

  test('of the tenant hold at once for what runs', async () => {
    const tenantId = newTenant()
    const command = await node.up(sh(loop), { tenantId })
    await node.want(command, { tenantLimits: { memoryBytes: 1024 ** 3, cpus: 2, pids: 77 } })
    const directory = node.shop.cgroups.paths(node.shop.tenants.group(tenantId)).get('pids')
    const { readFileSync } = await import('node:fs')
    expect(readFileSync(`${directory}/pids.max`, 'utf8').trim()).toBe('77')
  })
})

describe('limits that are hit', () => {
  const hits = (id: string) =>
    node.reports.flatMap(({ sandboxId, notes }) =>
      sandboxId === id ? notes.flatMap(({ about }) => (about.kind === 'limit_hit' ? [about.limit] : [])) : [],
    )

  test('memory is told as the end of the run, and noted', async () => {
    const command = applySandbox({ ...sh('a=x; while :; do a=$a$a; done'), limits })
    expect(await on.once(command)).toMatchObject({
      signal: 'SIGKILL',
      oomKilled: true,
      reason: { code: 'oom_killed' },
      usage: { oomKills: 1 },
    })
    expect(hits(command.sandboxId)).toContain('memory')
  })

  test('each is noted once in a run, while it runs', async () => {
    const forks =
      '(for i in $(seq 60); do sleep 1000 & done) 2>/dev/null; (for i in 1 2 3; do sleep 1000 & done) 2>/dev/null; exec sleep 1000'
    const many = await node.up({
      ...sh(`sh -c '${forks}' & exec sleep 1000`),
      limits: { ...limits, memoryBytes: 256 * MiB },
    })
    const full = await node.up({
      ...sh('dd if=/dev/zero of=/x bs=1M count=64 2>/dev/null; sync; exec sleep 1000'),
      limits,
    })
    await on.until('processes', () => hits(many.sandboxId).includes('pids'))
    await on.until('disk', () => hits(full.sandboxId).includes('disk'))
    await new Promise((resolve) => setTimeout(resolve, 6000))
    expect(hits(many.sandboxId)).toEqual(['pids'])
    expect(hits(full.sandboxId)).toEqual(['disk'])
  }, 120_000)
})
