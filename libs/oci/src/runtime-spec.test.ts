import { expect, test } from '@jest/globals'
import {
  capabilitiesOf,
  capabilityMask,
  defaultCapabilities,
  defaultCapabilityMask,
  type SeccompProfile,
  seccomp,
} from './profile.js'
import { groupLimits, INIT_PATH, type RuntimeInput, runtimeSpec } from './runtime-spec.js'

const input: RuntimeInput = {
  cgroupPath: '/berth/ten_a/att_b',
  cgroupVersion: 'v1',
  architecture: 'x64',
  rootfs: '/data/attempts/att_b/rootfs',
  programs: '/opt/berth',
  hostname: 'job-1',
  ids: { base: 1_065_536, count: 65_536 },
  limits: { memoryBytes: 256 * 1024 ** 2, cpus: 0.5, pids: 64, shmBytes: 65_536 },
}

test('root inside is the first id of the tenant outside, and every namespace is private', () => {
  const { linux, process } = runtimeSpec(input)
  expect(linux.uidMappings).toEqual([{ containerID: 0, hostID: 1_065_536, size: 65_536 }])
  expect(linux.gidMappings).toEqual(linux.uidMappings)
  expect(linux.namespaces.map((n) => n.type).sort()).toEqual([
    'cgroup',
    'ipc',
    'mount',
    'network',
    'pid',
    'user',
    'uts',
  ])
  expect(process).toMatchObject({ args: [INIT_PATH], noNewPrivileges: true, user: { uid: 0, gid: 0 } })
})

test('limits become resources: no swap, one process for init, quota per 100 ms', () => {
  expect(runtimeSpec(input).linux.resources).toMatchObject({
    memory: { limit: 268_435_456, swap: 268_435_456 },
    cpu: { period: 100_000, quota: 50_000, shares: 512 },
    pids: { limit: 65 },
    devices: [{ allow: false, access: 'rwm' }],
  })
  expect(runtimeSpec({ ...input, limits: { ...input.limits, cpus: 0.01 } }).linux.resources).toMatchObject({
    cpu: { quota: 1000, shares: 10 },
  })
})

test('what a sandbox may set besides becomes resources; what it does not set is the kernel’s', () => {
  const limits = {
    ...input.limits,
    memoryReservationBytes: 1024,
    swapBytes: 4096,
    cpuShares: 2000,
    cpuset: '0-1',
    cpuPeriodUs: 20_000,
    ioWeight: 300,
  }
  expect(runtimeSpec({ ...input, limits }).linux.resources).toEqual({
    devices: [{ allow: false, access: 'rwm' }],
    memory: { limit: 268_435_456, swap: 268_439_552, reservation: 1024 },
    cpu: { period: 20_000, quota: 10_000, shares: 2000, cpus: '0-1' },
    pids: { limit: 65 },
    blockIO: { weight: 300 },
  })
  expect(Object.keys(runtimeSpec(input).linux.resources)).not.toContain('blockIO')
})

test('limits of a group while it runs are those that it was started with', () => {
  expect(groupLimits(input.limits)).toEqual({
    memoryBytes: 268_435_456,
    swapBytes: 0,
    memoryReservationBytes: 'max',
    cpuMillis: 500,
    cpuPeriodUs: 100_000,
    cpuShares: 512,
    cpuset: 'all',
    pids: 65,
    ioWeight: 'default',
  })
  expect(groupLimits({ ...input.limits, cpuset: '1', ioWeight: 10 })).toMatchObject({ cpuset: '1', ioWeight: 10 })
})

test('memory file systems, outer ones first, with size and mode; they hold no devices and no set-user-id programs', () => {
  const tmpfs = [
    { path: '/a/b', sizeBytes: 4096, mode: 0o700 },
    { path: '/a', sizeBytes: 8192, mode: 0o1777 },
  ]
  expect(runtimeSpec({ ...input, tmpfs }).mounts.slice(-3, -1)).toEqual([
    { destination: '/a', type: 'tmpfs', source: 'tmpfs', options: ['nosuid', 'nodev', 'mode=1777', 'size=8192'] },
    { destination: '/a/b', type: 'tmpfs', source: 'tmpfs', options: ['nosuid', 'nodev', 'mode=0700', 'size=4096'] },
  ])
})

test('a read-only root, new privileges, sysctls, more capabilities and raised limits, each where it was asked for', () => {
  const plain = runtimeSpec(input)
  expect([plain.root.readonly, plain.process.noNewPrivileges, plain.linux.sysctl]).toEqual([false, true, undefined])
  expect(plain.process.rlimits).toEqual([{ type: 'RLIMIT_CORE', hard: 0, soft: 0 }])
  const spec = runtimeSpec({
    ...input,
    readOnlyRootfs: true,
    noNewPrivileges: false,
    sysctls: { 'net.ipv4.ip_forward': '1' },
    capabilities: ['CAP_NET_RAW', 'CAP_CHOWN'],
    raisedLimits: [
      { type: 'RLIMIT_NOFILE', hard: 2_000_000 },
      { type: 'RLIMIT_CORE', hard: 7 },
    ],
  })
  expect([spec.root.readonly, spec.process.noNewPrivileges]).toEqual([true, false])
  expect(spec.linux.sysctl).toEqual({ 'net.ipv4.ip_forward': '1' })
  expect(spec.process.capabilities.bounding).toEqual([...defaultCapabilities, 'CAP_NET_RAW'])
  expect(spec.process.rlimits).toEqual([
    { type: 'RLIMIT_CORE', hard: 7, soft: 7 },
    { type: 'RLIMIT_NOFILE', hard: 2_000_000, soft: 2_000_000 },
  ])
})

test('strict is default less some: nothing in it is new, no 32-bit programs, no ptrace, no System V', () => {
  const names = (profile: SeccompProfile) => seccomp(profile, 'x64').syscalls.flatMap((rule) => rule.names)
  const [strict, usual] = [names('strict'), names('default')]
  for (const name of strict) expect(usual).toContain(name)
  for (const name of ['ptrace', 'shmget', 'semop', 'msgget', 'mq_open', 'io_submit', 'chroot', 'vmsplice', 'ipc'])
    expect(strict).not.toContain(name)
  for (const name of ['execve', 'clone', 'socket', 'mmap', 'futex', 'mknod', 'inotify_init1', 'copy_file_range'])
    expect(strict).toContain(name)
  expect(seccomp('strict', 'x64').architectures).toEqual(['SCMP_ARCH_X86_64'])
  expect(runtimeSpec({ ...input, seccomp: seccomp('strict', 'x64') }).linux.seccomp).toEqual(seccomp('strict', 'x64'))
  expect(usual.length - strict.length).toBeGreaterThan(35)
})

test('init keeps what it needs to start processes, whatever they are left with', () => {
  const held = (capabilities: readonly string[]) =>
    runtimeSpec({ ...input, capabilities }).process.capabilities.bounding ?? []
  expect(held([])).toEqual(defaultCapabilities)
  expect(held(['CAP_CHOWN', 'CAP_SYS_PTRACE'])).toEqual([...defaultCapabilities, 'CAP_SYS_PTRACE'])
})

test('nothing of the host is mounted but what was given, and init over it whatever it is; sysfs is read-only', () => {
  const binds = [
    { source: '/data/stage/mounts/1', path: '/cache/deep', readOnly: false },
    { source: '/data/stage/mounts/0', path: '/dev', readOnly: true },
  ]
  const { mounts } = runtimeSpec({ ...input, binds })
  expect(mounts.filter((m) => m.type === 'bind')).toEqual([
    { source: '/data/stage/mounts/0', destination: '/dev', type: 'bind', options: ['bind', 'ro', 'nosuid', 'nodev'] },
    {
      source: '/data/stage/mounts/1',
      destination: '/cache/deep',
      type: 'bind',
      options: ['bind', 'rw', 'nosuid', 'nodev'],
    },
    { source: '/opt/berth', destination: '/dev/.berth', type: 'bind', options: ['bind', 'ro', 'nosuid', 'nodev'] },
  ])
  expect(mounts.find((m) => m.destination === '/sys')?.options).toContain('ro')
  expect(mounts.find((m) => m.destination === '/dev/shm')?.options).toContain('size=65536')
})

test('the cgroup file system is seen, read-only, where it is one mount', () => {
  const seen = (cgroupVersion: 'v1' | 'v2') =>
    runtimeSpec({ ...input, cgroupVersion }).mounts.find((m) => m.destination === '/sys/fs/cgroup')?.options
  expect(seen('v1')).toBeUndefined()
  expect(seen('v2')).toContain('ro')
})

test('equal input gives equal bytes', () => {
  expect(JSON.stringify(runtimeSpec(input))).toBe(JSON.stringify(runtimeSpec(structuredClone(input))))
})

test.each([
  'bpf',
  'keyctl',
  'add_key',
  'request_key',
  'io_uring_setup',
  'io_uring_enter',
  'userfaultfd',
  'mount',
  'umount2',
  'move_mount',
  'open_tree',
  'fsopen',
  'pivot_root',
  'unshare',
  'setns',
  'init_module',
  'finit_module',
  'delete_module',
  'kexec_load',
  'clock_settime',
  'settimeofday',
  'sethostname',
  'setdomainname',
  'perf_event_open',
  'quotactl',
  'swapon',
  'reboot',
  'syslog',
  'acct',
  'open_by_handle_at',
  'name_to_handle_at',
  'process_vm_writev',
  'kcmp',
  'iopl',
  'modify_ldt',
  'memfd_secret',
])('%s is not allowed', (name) => {
  const rules = seccomp('default', 'x64').syscalls.filter(
    (r) => r.names.includes(name) && r.action === 'SCMP_ACT_ALLOW',
  )
  expect(rules).toEqual([])
})

test('sockets of no family but unix, inet, inet6 and netlink; clone makes no namespace; clone3 falls back', () => {
  const { syscalls, defaultAction } = seccomp('default', 'x64')
  const of = (name: string) => syscalls.filter((r) => r.names.includes(name))
  expect(defaultAction).toBe('SCMP_ACT_ERRNO')
  expect(of('socket').map((r) => r.args?.[0]?.value)).toEqual([1, 2, 10, 16])
  expect(of('clone')).toEqual([
    expect.objectContaining({ args: [{ index: 0, value: 0x7e020000, valueTwo: 0, op: 'SCMP_CMP_MASKED_EQ' }] }),
  ])
  expect(of('clone3')).toEqual([expect.objectContaining({ action: 'SCMP_ACT_ERRNO', errnoRet: 38 })])
})

test('no system call is listed twice', () => {
  const names = seccomp('default', 'arm64')
    .syscalls.filter((r) => !r.args)
    .flatMap((r) => r.names)
  expect(names.length).toBe(new Set(names).size)
})

test('capabilities are within Docker’s default, and the mask says the same', () => {
  const docker =
    'CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP NET_BIND_SERVICE SYS_CHROOT KILL AUDIT_WRITE'
  for (const name of defaultCapabilities) expect(docker.split(' ')).toContain(name.slice(4))
  expect(defaultCapabilityMask.toString(16)).toBe('800405fb')
})

test('capabilities and their mask are each other’s inverse, with the kernel’s bits', () => {
  expect(capabilityMask(['CAP_SYS_ADMIN', 'CAP_CHECKPOINT_RESTORE', 'CAP_NONE'])).toBe((1n << 21n) | (1n << 40n))
  expect(capabilitiesOf(defaultCapabilityMask).toSorted()).toEqual([...defaultCapabilities].toSorted())
  expect(capabilityMask(capabilitiesOf((1n << 41n) - 1n))).toBe((1n << 41n) - 1n)
})
