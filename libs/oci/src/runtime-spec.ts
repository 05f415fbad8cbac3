import type { IdRange, Limits, SandboxLimits, SandboxSpec } from '@berth/contracts'
import {
  type Architecture,
  defaultCapabilities,
  defaultSeccomp,
  maskedPaths,
  readonlyPaths,
  type Seccomp,
} from './profile.js'

/** Limits of a whole sandbox: those that every kind has, and those that a sandbox which stays may have besides. */
export type GroupLimitsInput = Pick<Limits, 'memoryBytes' | 'cpus' | 'pids'> &
  Partial<
    Pick<SandboxLimits, 'memoryReservationBytes' | 'swapBytes' | 'cpuShares' | 'cpuset' | 'cpuPeriodUs' | 'ioWeight'>
  >

/** A limit per process that is above what a runtime's children inherit. */
export interface RaisedLimit {
  /** `RLIMIT_NOFILE`, … */
  readonly type: string
  readonly hard: number
}

/** Something of the host that a sandbox sees. Never of a tenant's choosing: the host's paths are the agent's own. */
export interface Bind {
  /** Absolute, of the host; no part of it may be a link. */
  readonly source: string
  /** Absolute, in the sandbox; links on the way there are followed within its root. */
  readonly path: string
  readonly readOnly: boolean
}

/** Everything a sandbox's `config.json` depends on. All paths are the host's and absolute. */
export interface RuntimeInput {
  /** Group of the sandbox from the root of each hierarchy: `/<parent>/<tenant>/<attempt>`. */
  readonly cgroupPath: string
  readonly cgroupVersion: 'v1' | 'v2'
  readonly architecture: Architecture
  /** Root file system, mounted before the runtime starts. */
  readonly rootfs: string
  /** Directory of `init` (berth-init) and `files` (berth-files), static binaries; readable by everybody. */
  readonly programs: string
  /** Default: none. */
  readonly binds?: readonly Bind[]
  readonly hostname: string
  readonly ids: IdRange
  readonly limits: GroupLimitsInput & Pick<Limits, 'shmBytes'>
  readonly tmpfs?: SandboxSpec['tmpfs']
  readonly readOnlyRootfs?: boolean
  /** What any process of it may get besides the default capabilities; berth-init hands out, and withholds, the rest. */
  readonly capabilities?: readonly string[]
  /** Default: true */
  readonly noNewPrivileges?: boolean
  /** Namespaced ones only; whether they are allowed is the caller's matter. */
  readonly sysctls?: Readonly<Record<string, string>>
  readonly raisedLimits?: readonly RaisedLimit[]
  /** Default: the default profile. */
  readonly seccomp?: Seccomp
  /**
   * The same profile as BPF, base64, where the runtime takes it ready-made (crun's annotation
   * `run.oci.seccomp_bpf_data`). Compiling it was half of a start: `crun run` 22 ms with, 11 ms without.
   */
  readonly seccompBpf?: string
}

export interface OciMount {
  readonly destination: string
  readonly type: string
  readonly source: string
  readonly options: readonly string[]
}

/** The part of the OCI runtime specification (config.md, config-linux.md, 1.0.2) that Berth writes. */
export interface RuntimeSpec {
  readonly ociVersion: '1.0.2'
  readonly root: { readonly path: string; readonly readonly: boolean }
  readonly hostname: string
  readonly annotations: Readonly<Record<string, string>>
  readonly process: {
    readonly terminal: false
    readonly user: { readonly uid: number; readonly gid: number }
    readonly args: readonly string[]
    readonly env: readonly string[]
    readonly cwd: string
    readonly noNewPrivileges: boolean
    readonly capabilities: Readonly<Record<string, readonly string[]>>
    readonly rlimits: readonly { readonly type: string; readonly hard: number; readonly soft: number }[]
  }
  readonly mounts: readonly OciMount[]
  readonly linux: {
    readonly cgroupsPath: string
    readonly namespaces: readonly { readonly type: string }[]
    readonly uidMappings: readonly IdMapping[]
    readonly gidMappings: readonly IdMapping[]
    readonly sysctl?: Readonly<Record<string, string>>
    readonly resources: Readonly<Record<string, unknown>>
    readonly seccomp: Seccomp
    readonly maskedPaths: readonly string[]
    readonly readonlyPaths: readonly string[]
  }
}

interface IdMapping {
  readonly containerID: number
  readonly hostID: number
  readonly size: number
}

/** Where our programs are seen in a sandbox: on the private /dev, so that no image and no writable layer is touched. */
const PROGRAMS_PATH = '/dev/.berth'
export const INIT_PATH = `${PROGRAMS_PATH}/init`
/** The program of its file operations; of an agent that was renewed, also in sandboxes that run since before. */
export const FILES_PATH = `${PROGRAMS_PATH}/files`

/** Period of the CPU quota in microseconds: the kernel's and Docker's default. */
const CPU_PERIOD_US = 100_000

/** The kernel refuses quotas under 1 ms (sched/core.c, min_cfs_quota_period). */
const MIN_CPU_QUOTA_US = 1_000

/**
 * What the control group of a sandbox is to have, in the units of `Cgroups` of libs/host: what a container is started
 * with is what it is given when its limits change.
 */
export function groupLimits(limits: GroupLimitsInput) {
  return {
    memoryBytes: limits.memoryBytes,
    swapBytes: limits.swapBytes ?? 0,
    memoryReservationBytes: limits.memoryReservationBytes ?? ('max' as const),
    cpuMillis: Math.max(1, Math.round(limits.cpus * 1000)),
    cpuPeriodUs: limits.cpuPeriodUs ?? CPU_PERIOD_US,
    // Under contention CPU goes by what was asked for; 1024 is one CPU, 2 the kernel's least.
    cpuShares: limits.cpuShares ?? Math.min(262_144, Math.max(2, Math.round(limits.cpus * 1024))),
    cpuset: limits.cpuset ?? 'all',
    // One more than asked for: berth-init is ours, not the tenant's.
    pids: limits.pids + 1,
    ioWeight: limits.ioWeight ?? ('default' as const),
  }
}

const hardened = ['nosuid', 'noexec', 'nodev'] as const

const mounts = (input: RuntimeInput): OciMount[] => [
  { destination: '/proc', type: 'proc', source: 'proc', options: [...hardened] },
  {
    destination: '/dev',
    type: 'tmpfs',
    source: 'tmpfs',
    options: ['nosuid', 'strictatime', 'mode=755', 'size=64k', 'nr_inodes=256'],
  },
  {
    destination: '/dev/pts',
    type: 'devpts',
    source: 'devpts',
    options: ['nosuid', 'noexec', 'newinstance', 'ptmxmode=0666', 'mode=0620', 'gid=5', 'max=256'],
  },
  {
    destination: '/dev/shm',
    type: 'tmpfs',
    source: 'shm',
    options: [...hardened, 'mode=1777', `size=${input.limits.shmBytes}`],
  },
  { destination: '/dev/mqueue', type: 'mqueue', source: 'mqueue', options: [...hardened] },
  { destination: '/sys', type: 'sysfs', source: 'sysfs', options: [...hardened, 'ro'] },
  // On v1 this would be nine mounts a start for a view that few programs read; on v2 it is one.
  ...(input.cgroupVersion === 'v2'
    ? [{ destination: '/sys/fs/cgroup', type: 'cgroup', source: 'cgroup', options: [...hardened, 'ro'] }]
    : []),
]

/** Set-user-id programs and devices have no business in memory; whether a sandbox may execute what it wrote is its own. */
const tmpfsMount = ({ path, sizeBytes, mode }: SandboxSpec['tmpfs'][number]): OciMount => ({
  destination: path,
  type: 'tmpfs',
  source: 'tmpfs',
  options: ['nosuid', 'nodev', `mode=${mode.toString(8).padStart(4, '0')}`, `size=${sizeBytes}`],
})

const bindMount = ({ path, source, readOnly }: Bind): OciMount => ({
  destination: path,
  type: 'bind',
  source,
  options: ['bind', readOnly ? 'ro' : 'rw', 'nosuid', 'nodev'],
})

/** Those above before those below. */
const askedMounts = ({ tmpfs = [], binds = [] }: RuntimeInput): OciMount[] =>
  [...tmpfs.map(tmpfsMount), ...binds.map(bindMount)].sort(
    (a, b) => a.destination.split('/').length - b.destination.split('/').length,
  )

/** The last one: whatever was asked for, and wherever links have led it, what PID 1 is executed from is ours. */
const programsMount = ({ programs }: RuntimeInput): OciMount => ({
  destination: PROGRAMS_PATH,
  type: 'bind',
  source: programs,
  options: ['bind', 'ro', 'nosuid', 'nodev'],
})

function resources(input: RuntimeInput) {
  const limits = groupLimits(input.limits)
  const quota = Math.round((limits.cpuMillis * limits.cpuPeriodUs) / 1000)
  return {
    devices: [{ allow: false, access: 'rwm' }],
    memory: {
      limit: limits.memoryBytes,
      // Memory and swap together, so equal numbers mean no swap at all.
      swap: limits.memoryBytes + limits.swapBytes,
      ...(limits.memoryReservationBytes === 'max' ? {} : { reservation: limits.memoryReservationBytes }),
    },
    cpu: {
      period: limits.cpuPeriodUs,
      quota: Math.max(MIN_CPU_QUOTA_US, quota),
      shares: limits.cpuShares,
      ...(limits.cpuset === 'all' ? {} : { cpus: limits.cpuset }),
    },
    pids: { limit: limits.pids },
    ...(limits.ioWeight === 'default' ? {} : { blockIO: { weight: limits.ioWeight } }),
  }
}

/** Raised here because only the runtime may: berth-init gives each process its own, at most these. */
function initLimits({ raisedLimits = [] }: RuntimeInput) {
  const hard = new Map([['RLIMIT_CORE', 0], ...raisedLimits.map((limit) => [limit.type, limit.hard] as const)])
  return [...hard].map(([type, value]) => ({ type, hard: value, soft: value }))
}

/** berth-init needs the default ones for itself, whatever the processes that it starts get. */
function initCapabilities({ capabilities = [] }: RuntimeInput) {
  const held = [...new Set([...defaultCapabilities, ...capabilities])]
  return { bounding: held, effective: held, permitted: held, inheritable: [], ambient: [] }
}

/**
 * A sandbox as an OCI runtime's `config.json`. Every namespace is private, root inside is `ids.base` outside, and
 * nothing here depends on anything but the input: equal input gives equal bytes.
 */
export function runtimeSpec(input: RuntimeInput): RuntimeSpec {
  const mapping = [{ containerID: 0, hostID: input.ids.base, size: input.ids.count }]
  return {
    ociVersion: '1.0.2',
    root: { path: input.rootfs, readonly: input.readOnlyRootfs ?? false },
    hostname: input.hostname,
    annotations: input.seccompBpf ? { 'run.oci.seccomp_bpf_data': input.seccompBpf } : {},
    process: {
      terminal: false,
      user: { uid: 0, gid: 0 },
      args: [INIT_PATH],
      env: ['PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'],
      cwd: '/',
      noNewPrivileges: input.noNewPrivileges ?? true,
      capabilities: initCapabilities(input),
      rlimits: initLimits(input),
    },
    mounts: [...mounts(input), ...askedMounts(input), programsMount(input)],
    linux: {
      cgroupsPath: input.cgroupPath,
      namespaces: ['pid', 'mount', 'network', 'ipc', 'uts', 'cgroup', 'user'].map((type) => ({ type })),
      uidMappings: mapping,
      gidMappings: mapping,
      ...(input.sysctls && Object.keys(input.sysctls).length > 0 ? { sysctl: input.sysctls } : {}),
      resources: resources(input),
      seccomp: input.seccomp ?? defaultSeccomp(input.architecture),
      maskedPaths,
      readonlyPaths,
    },
  }
}
