/**
 * What every sandbox is held to unless its spec says otherwise: capabilities, system calls, hidden and read-only paths.
 * Only data and pure functions. The rule for each list: never more than Docker's default gives (moby/profiles
 * `seccomp/default.json` of 2026, and the OCI defaults of moby's `oci/defaults.go`); what is stricter is said beside it.
 */

/**
 * Docker's default capabilities less NET_RAW (raw sockets), MKNOD (useless in a user namespace) and AUDIT_WRITE.
 * They hold in the sandbox's user namespace only: none of them means anything outside it.
 */
export const defaultCapabilities = [
  'CAP_CHOWN',
  'CAP_DAC_OVERRIDE',
  'CAP_FOWNER',
  'CAP_FSETID',
  'CAP_KILL',
  'CAP_NET_BIND_SERVICE',
  'CAP_SETFCAP',
  'CAP_SETGID',
  'CAP_SETPCAP',
  'CAP_SETUID',
  'CAP_SYS_CHROOT',
] as const

/** Every capability in the order of its bit, from linux/capability.h (Linux 5.9 and newer). */
export const capabilityNames = (
  'CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE ' +
  'NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN ' +
  'SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE ' +
  'MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE'
)
  .split(' ')
  .map((name) => `CAP_${name}`)

/** Capabilities as the 64-bit mask that berth-init's SPAWN frame takes; unknown ones are none. */
export const capabilityMask = (names: readonly string[]): bigint =>
  names.reduce((mask, name) => {
    const bit = capabilityNames.indexOf(name)
    return bit < 0 ? mask : mask | (1n << BigInt(bit))
  }, 0n)

/** Inverse of `capabilityMask`, in the order of the bits. */
export const capabilitiesOf = (mask: bigint): readonly string[] =>
  capabilityNames.filter((_, bit) => (mask & (1n << BigInt(bit))) !== 0n)

export const defaultCapabilityMask: bigint = capabilityMask(defaultCapabilities)

/** Hidden behind an empty file or directory. */
export const maskedPaths = [
  '/proc/acpi',
  '/proc/asound',
  '/proc/interrupts',
  '/proc/kcore',
  '/proc/keys',
  '/proc/latency_stats',
  '/proc/sched_debug',
  '/proc/scsi',
  '/proc/timer_list',
  '/proc/timer_stats',
  '/sys/devices/virtual/powercap',
  '/sys/firmware',
  '/sys/fs/bpf',
  '/sys/kernel/debug',
  '/sys/kernel/tracing',
] as const

export const readonlyPaths = ['/proc/bus', '/proc/fs', '/proc/irq', '/proc/sys', '/proc/sysrq-trigger'] as const

/** System calls that are allowed with any arguments. Not here though Docker allows them: memfd_secret (memory that no
 * dump shows), name_to_handle_at, statmount and listmount (they name host mounts), process_vm_readv and _writev. */
const allowed = words(`
  accept accept4 access adjtimex alarm bind brk cachestat capget capset chdir chmod chown clock_adjtime
  clock_getres clock_gettime clock_nanosleep close close_range connect copy_file_range creat dup dup2 dup3
  epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2 epoll_wait epoll_wait_old eventfd
  eventfd2 execve execveat exit exit_group faccessat faccessat2 fadvise64 fallocate fanotify_mark fchdir fchmod
  fchmodat fchmodat2 fchown fchownat fcntl fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat
  fstatfs fsync ftruncate futex futex_requeue futex_wait futex_waitv futex_wake futimesat getcpu getcwd getdents
  getdents64 getegid geteuid getgid getgroups getitimer getpeername getpgid getpgrp getpid getppid getpriority
  getrandom getresgid getresuid getrlimit get_robust_list getrusage getsid getsockname getsockopt get_thread_area
  gettid gettimeofday getuid getxattr getxattrat inotify_add_watch inotify_init inotify_init1 inotify_rm_watch
  io_cancel ioctl io_destroy io_getevents io_pgetevents ioprio_get ioprio_set io_setup io_submit kill
  landlock_add_rule landlock_create_ruleset landlock_restrict_self lchown lgetxattr link linkat listen listxattr
  listxattrat llistxattr lremovexattr lseek lsetxattr lstat madvise map_shadow_stack membarrier memfd_create
  mincore mkdir mkdirat mknod mknodat mlock mlock2 mlockall mmap mprotect mq_getsetattr mq_notify mq_open
  mq_timedreceive mq_timedsend mq_unlink mremap mseal msgctl msgget msgrcv msgsnd msync munlock munlockall munmap
  nanosleep newfstatat open openat openat2 pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free
  pkey_mprotect poll ppoll prctl pread64 preadv preadv2 prlimit64 process_mrelease pselect6 ptrace pwrite64 pwritev
  pwritev2 read readahead readlink readlinkat readv recvfrom recvmmsg recvmsg remap_file_pages removexattr
  removexattrat rename renameat renameat2 restart_syscall rmdir rseq rt_sigaction rt_sigpending rt_sigprocmask
  rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_tgsigqueueinfo sched_getaffinity sched_getattr
  sched_getparam sched_get_priority_max sched_get_priority_min sched_getscheduler sched_rr_get_interval
  sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield seccomp select semctl semget semop
  semtimedop sendfile sendmmsg sendmsg sendto setfsgid setfsuid setgid setgroups setitimer setpgid setpriority
  setregid setresgid setresuid setreuid setrlimit set_robust_list setsid setsockopt set_thread_area set_tid_address
  setuid setxattr setxattrat shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4 socketpair splice
  stat statfs statx symlink symlinkat sync sync_file_range syncfs sysinfo tee tgkill time timer_create timer_delete
  timer_getoverrun timer_gettime timer_settime timerfd_create timerfd_gettime timerfd_settime times tkill truncate
  umask uname unlink unlinkat uretprobe utime utimensat utimes vfork vmsplice wait4 waitid write writev
`)

/** The names that 32-bit programs use for the same calls. */
const allowed32 = words(`
  chown32 clock_adjtime64 clock_getres_time64 clock_gettime64 clock_nanosleep_time64 fadvise64_64 fchown32 fcntl64
  fstat64 fstatat64 fstatfs64 ftruncate64 futex_time64 getegid32 geteuid32 getgid32 getgroups32 getresgid32
  getresuid32 getuid32 io_pgetevents_time64 ipc lchown32 _llseek lstat64 mmap2 mq_timedreceive_time64
  mq_timedsend_time64 _newselect ppoll_time64 pselect6_time64 recv recvmmsg_time64 rt_sigtimedwait_time64
  sched_rr_get_interval_time64 semtimedop_time64 send sendfile64 setfsgid32 setfsuid32 setgid32 setgroups32
  setregid32 setresgid32 setresuid32 setreuid32 setuid32 sigprocmask sigreturn stat64 statfs64 timer_gettime64
  timer_settime64 timerfd_gettime64 timerfd_settime64 truncate64 ugetrlimit utimensat_time64 waitpid
`)

function words(text: string): readonly string[] {
  return text.trim().split(/\s+/)
}

const EPERM = 1
const ENOSYS = 38

/**
 * CLONE_NEWNS | NEWCGROUP | NEWUTS | NEWIPC | NEWUSER | NEWPID | NEWNET (linux/sched.h): a clone with any of these bits
 * is refused. clone3 hides its flags behind a pointer, so it answers ENOSYS, on which every libc falls back to clone.
 */
const NAMESPACE_FLAGS = 0x7e02_0000

/** AF_UNIX, AF_INET, AF_INET6, AF_NETLINK. Docker allows some 25 families more; each was a kernel attack surface. */
const SOCKET_FAMILIES = [1, 2, 10, 16] as const

/** PER_LINUX, PER_LINUX32, ADDR_NO_RANDOMIZE with each, and the query. */
const QUERY_PERSONALITY = 0xffffffff
const PERSONALITIES = [0x0, 0x8, 0x20000, 0x20008, QUERY_PERSONALITY] as const

export interface SeccompArgument {
  readonly index: number
  readonly value: number
  readonly valueTwo?: number
  readonly op: 'SCMP_CMP_EQ' | 'SCMP_CMP_MASKED_EQ'
}

export interface SeccompRule {
  readonly names: readonly string[]
  readonly action: 'SCMP_ACT_ALLOW' | 'SCMP_ACT_ERRNO'
  readonly errnoRet?: number
  readonly args?: readonly SeccompArgument[]
}

export interface Seccomp {
  readonly defaultAction: 'SCMP_ACT_ERRNO'
  readonly defaultErrnoRet: number
  readonly architectures: readonly string[]
  readonly syscalls: readonly SeccompRule[]
}

const architectures = {
  x64: { seccomp: ['SCMP_ARCH_X86_64', 'SCMP_ARCH_X86'], extra: ['arch_prctl'] },
  arm64: { seccomp: ['SCMP_ARCH_AARCH64', 'SCMP_ARCH_ARM'], extra: ['cacheflush', 'set_tls', 'sync_file_range2'] },
} as const

export type Architecture = keyof typeof architectures

/**
 * What `strict` refuses besides: system calls that tools which edit, fetch, compile and test rarely need, and that have
 * had more than their share of kernel bugs. It breaks debuggers (ptrace, personality), System V and POSIX message
 * queues, semaphores and shared memory (Postgres and fakeroot need them), kernel AIO, chroot, and 32-bit programs.
 */
const notInStrict: ReadonlySet<string> = new Set(
  words(`
  adjtimex chroot clock_adjtime clock_adjtime64 fanotify_mark io_cancel io_destroy io_getevents io_pgetevents
  io_pgetevents_time64 ioprio_set io_setup io_submit ipc map_shadow_stack mq_getsetattr mq_notify mq_open
  mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink msgctl msgget msgrcv msgsnd
  pidfd_send_signal pkey_alloc pkey_free pkey_mprotect process_mrelease ptrace remap_file_pages sched_setattr
  sched_setparam sched_setscheduler semctl semget semop semtimedop semtimedop_time64 shmat shmctl shmdt shmget tee
  vmsplice
`),
)

export const seccompProfiles = ['default', 'strict'] as const
export type SeccompProfile = (typeof seccompProfiles)[number]
export const isSeccompProfile = (name: string): name is SeccompProfile =>
  seccompProfiles.some((profile) => profile === name)

/**
 * A filter as OCI `linux.seccomp`. Everything that is not listed fails with EPERM: among others bpf, keyctl,
 * io_uring_*, userfaultfd, mount and its successors, unshare, setns, ptrace's relatives, module loading, clock_settime,
 * sethostname, kexec, perf_event_open, quotactl, swapon, reboot, syslog, modify_ldt. x32 is left out on purpose.
 */
export function seccomp(profile: SeccompProfile, architecture: Architecture): Seccomp {
  const { seccomp: names, extra } = architectures[architecture]
  const strict = profile === 'strict'
  const when = (name: string, index: number, value: number): SeccompRule => ({
    names: [name],
    action: 'SCMP_ACT_ALLOW',
    args: [{ index, value, op: 'SCMP_CMP_EQ' }],
  })
  // chroot is harmless with CAP_SYS_CHROOT in a user namespace, and package tools use it.
  const plain = [...allowed, ...allowed32, ...extra, 'chroot']
  return {
    defaultAction: 'SCMP_ACT_ERRNO',
    defaultErrnoRet: EPERM,
    architectures: strict ? names.slice(0, 1) : names,
    syscalls: [
      { names: strict ? plain.filter((name) => !notInStrict.has(name)) : plain, action: 'SCMP_ACT_ALLOW' },
      ...SOCKET_FAMILIES.map((family) => when('socket', 0, family)),
      ...PERSONALITIES.filter((persona) => !strict || persona === 0 || persona === QUERY_PERSONALITY).map((persona) =>
        when('personality', 0, persona),
      ),
      {
        names: ['clone'],
        action: 'SCMP_ACT_ALLOW',
        args: [{ index: 0, value: NAMESPACE_FLAGS, valueTwo: 0, op: 'SCMP_CMP_MASKED_EQ' }],
      },
      { names: ['clone3'], action: 'SCMP_ACT_ERRNO', errnoRet: ENOSYS },
    ],
  }
}

export const defaultSeccomp = (architecture: Architecture): Seccomp => seccomp('default', architecture)
