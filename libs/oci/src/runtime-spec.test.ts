import { expect, test } from '@jest/globals'
import {
  capabilitiesOf,
  capabilityMask,
  defaultCapabilities,
  defaultCapabilityMask,
  defaultSeccomp,
} from './profile.js'
import { INIT_PATH, type RuntimeInput, runtimeSpec } from './runtime-spec.js'

const input: RuntimeInput = {
  cgroupPath: '/berth/ten_a/att_b',
  cgroupVersion: 'v1',
  architecture: 'x64',
  rootfs: '/data/attempts/att_b/rootfs',
  init: '/opt/berth-init',
  files: { '/etc/hosts': '/data/attempts/att_b/hosts' },
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

test('a sandbox may set more: swap, reservation, shares, period, CPUs, weight of disk access', () => {
  const limits = {
    ...input.limits,
    swapBytes: 1024 ** 2,
    memoryReservationBytes: 64 * 1024 ** 2,
    cpuShares: 2048,
    cpuPeriodUs: 50_000,
    cpuset: '0-1',
    ioWeight: 300,
  }
  expect(runtimeSpec({ ...input, limits }).linux.resources).toMatchObject({
    memory: { limit: 268_435_456, swap: 269_484_032, reservation: 67_108_864 },
    cpu: { period: 50_000, quota: 25_000, shares: 2048, cpus: '0-1' },
    blockIO: { weight: 300 },
  })
})

test('init keeps what it needs to start processes, whatever they are left with', () => {
  const held = (capabilities: readonly string[]) =>
    runtimeSpec({ ...input, capabilities }).process.capabilities.bounding ?? []
  expect(held([])).toEqual(defaultCapabilities)
  expect(held(['CAP_CHOWN', 'CAP_SYS_PTRACE'])).toEqual([...defaultCapabilities, 'CAP_SYS_PTRACE'])
})

test('a read-only root, tmpfs, sysctls and new privileges are what the sandbox asks for', () => {
  const spec = runtimeSpec({
    ...input,
    readOnlyRootfs: true,
    noNewPrivileges: false,
    tmpfs: [{ path: '/work', sizeBytes: 65_536, mode: 0o1777 }],
    sysctls: { 'net.ipv4.ip_unprivileged_port_start': '0' },
  })
  expect(spec.root.readonly).toBe(true)
  expect(spec.process.noNewPrivileges).toBe(false)
  expect(spec.mounts.at(-1)).toEqual({
    destination: '/work',
    type: 'tmpfs',
    source: 'tmpfs',
    options: ['nosuid', 'nodev', 'mode=1777', 'size=65536'],
  })
  expect(spec.linux.sysctl).toEqual({ 'net.ipv4.ip_unprivileged_port_start': '0' })
  expect(runtimeSpec(input).linux).not.toHaveProperty('sysctl')
})

test('nothing of the host is mounted but init and the given files, and sysfs is read-only', () => {
  const { mounts } = runtimeSpec(input)
  expect(mounts.filter((m) => m.type === 'bind').map((m) => [m.source, m.destination])).toEqual([
    ['/opt/berth-init', '/dev/.berth/init'],
    ['/data/attempts/att_b/hosts', '/etc/hosts'],
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
  const rules = defaultSeccomp('x64').syscalls.filter((r) => r.names.includes(name) && r.action === 'SCMP_ACT_ALLOW')
  expect(rules).toEqual([])
})

test('sockets of no family but unix, inet, inet6 and netlink; clone makes no namespace; clone3 falls back', () => {
  const { syscalls, defaultAction } = defaultSeccomp('x64')
  const of = (name: string) => syscalls.filter((r) => r.names.includes(name))
  expect(defaultAction).toBe('SCMP_ACT_ERRNO')
  expect(of('socket').map((r) => r.args?.[0]?.value)).toEqual([1, 2, 10, 16])
  expect(of('clone')).toEqual([
    expect.objectContaining({ args: [{ index: 0, value: 0x7e020000, valueTwo: 0, op: 'SCMP_CMP_MASKED_EQ' }] }),
  ])
  expect(of('clone3')).toEqual([expect.objectContaining({ action: 'SCMP_ACT_ERRNO', errnoRet: 38 })])
})

test('no system call is listed twice', () => {
  const names = defaultSeccomp('arm64')
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
