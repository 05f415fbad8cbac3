import { z } from 'zod'
import { given, wholeUnlessTemplated } from './given.js'
import { NodeId, SandboxId } from './ids.js'
import { Warnings } from './image-scan.js'
import { ImageReference, Limits } from './job.js'
import {
  AbsolutePath,
  Argument,
  argumentsProblem,
  Environment,
  Group,
  Hostname,
  Signal,
  TerminalSize,
  User,
} from './process.js'
import { Flag, Labels, Name, Page, pageOf, route, TemplateRef, Time } from './route.js'
import { Bytes, DAY, DurationMs, GiB, HOUR, KiB, MiB, SECOND } from './units.js'

/** Limits per process that a sandbox may set, as docker's `--ulimit` names them. */
export const ulimitNames = [
  ...(['cpu', 'fsize', 'data', 'stack', 'core', 'rss', 'nproc', 'nofile', 'memlock', 'locks'] as const),
  ...(['sigpending', 'msgqueue', 'nice', 'rtprio', 'rttime'] as const),
] as const
export type UlimitName = (typeof ulimitNames)[number]

const Ulimit = z
  .strictObject({ soft: z.number().int().min(0), hard: z.number().int().min(0) })
  .refine(({ soft, hard }) => soft <= hard, 'soft must not be above hard')

/**
 * Hard limits of one sandbox, each enforced by the kernel. What is counted against quota and node: `memoryBytes`,
 * `cpus`, `diskBytes`.
 */
export const SandboxLimits = Limits.omit({ outputBytes: true, openFiles: true }).extend({
  memoryReservationBytes: Bytes(0, 1024 * GiB)
    .optional()
    .describe('Soft limit that the kernel steers towards under memory pressure; at most memoryBytes'),
  swapBytes: Bytes(0, 1024 * GiB)
    .prefault(0)
    .describe('Swap beside the memory. Default: none'),
  cpuShares: z.number().int().min(2).max(262_144).optional().describe('Weight under contention. Default: 1024 a CPU'),
  cpuset: z
    .string()
    .max(256)
    .regex(/^\d{1,4}(-\d{1,4})?(,\d{1,4}(-\d{1,4})?)*$/, 'must be a list of CPUs such as "0-3,6"')
    .optional()
    .describe('CPUs that it may run on'),
  cpuPeriodUs: z.number().int().min(1_000).max(1_000_000).optional().describe('Period of the CPU limit'),
  ioWeight: z.number().int().min(10).max(1000).optional().describe('Weight of disk access under contention'),
  ulimits: z
    .partialRecord(z.enum(ulimitNames), Ulimit)
    .default({})
    .describe('Per process, by name. Default: 1024 open files, no core files'),
})
export type SandboxLimits = z.infer<typeof SandboxLimits>

const { memoryBytes, cpus, pids, diskBytes, shmBytes, swapBytes, ulimits, ...unsettable } = SandboxLimits.shape
const unsets = '`null` unsets it'
/**
 * Some of the limits; `null` unsets one that a sandbox need not have. Without the defaults, which would otherwise be
 * taken for what is not given.
 */
export const SandboxLimitsChange = z
  .strictObject({
    memoryReservationBytes: unsettable.memoryReservationBytes.nullable().describe(`Soft limit; ${unsets}`),
    cpuShares: unsettable.cpuShares.nullable().describe(`Weight under contention; ${unsets}: 1024 a CPU`),
    cpuset: unsettable.cpuset.nullable().describe(`CPUs that it may run on; ${unsets}: all of its node`),
    cpuPeriodUs: unsettable.cpuPeriodUs.nullable().describe(`Period of the CPU limit; ${unsets}: 100 ms`),
    ioWeight: unsettable.ioWeight.nullable().describe(`Weight of disk access; ${unsets}: the kernel's default`),
    memoryBytes: memoryBytes.unwrap(),
    cpus: cpus.unwrap(),
    pids: pids.unwrap(),
    diskBytes: diskBytes.unwrap(),
    shmBytes: shmBytes.unwrap(),
    swapBytes: swapBytes.unwrap(),
    ulimits: ulimits.unwrap(),
  })
  .partial()
export type SandboxLimitsChange = z.infer<typeof SandboxLimitsChange>

export const RestartPolicy = z.strictObject({
  policy: z.enum(['no', 'on-failure', 'always', 'unless-stopped']).default('no'),
  maxRetries: z
    .number()
    .int()
    .min(0)
    .max(1_000_000)
    .optional()
    .describe('Of `on-failure`: restarts in a row before it is given up. Default: no end'),
})
export type RestartPolicy = z.infer<typeof RestartPolicy>

/**
 * The four clocks. Each ends something when it runs out, none is reset by anything but what its description says, and
 * a warning comes before (an event, and a notice in open terminals).
 */
export const Clocks = z.strictObject({
  maxLifetimeMs: DurationMs(SECOND, 365 * DAY)
    .nullable()
    .prefault(null)
    .describe('From a start by request: then it is stopped'),
  idleTimeoutMs: DurationMs(SECOND, 365 * DAY)
    .nullable()
    .prefault(null)
    .describe(
      'Without activity: then it is stopped. Activity is a running exec, input or output of a terminal, a file operation',
    ),
  pausedForMs: DurationMs(SECOND, 365 * DAY)
    .nullable()
    .prefault(null)
    .describe('In pause: then it is stopped'),
  deleteAfterMs: DurationMs(0, 365 * DAY)
    .nullable()
    .prefault(null)
    .describe('After its end: then it is deleted'),
})
export type Clocks = z.infer<typeof Clocks>

/** Some of the clocks, as `SandboxLimitsChange`. */
export const ClocksChange = z
  .strictObject({
    maxLifetimeMs: Clocks.shape.maxLifetimeMs.unwrap(),
    idleTimeoutMs: Clocks.shape.idleTimeoutMs.unwrap(),
    pausedForMs: Clocks.shape.pausedForMs.unwrap(),
    deleteAfterMs: Clocks.shape.deleteAfterMs.unwrap(),
  })
  .partial()
export type ClocksChange = z.infer<typeof ClocksChange>

const Tmpfs = z.strictObject({
  path: AbsolutePath.refine((path) => !/^\/(proc|sys|dev)?(\/|$)/.test(path) || path.startsWith('/dev/shm/'), {
    message: 'must not be /, /proc, /sys or /dev, or below these',
  }).refine((path) => !path.split('/').includes('..'), 'must not contain ".."'),
  sizeBytes: Bytes(4 * KiB, 64 * GiB)
    .prefault('64m')
    .describe('Counts as memory when written'),
  mode: z.number().int().min(0).max(0o7777).default(0o1777),
})

const capability = z
  .string()
  .max(40)
  .transform((name) => name.toUpperCase().replace(/^(CAP_)?/, 'CAP_'))
  .pipe(z.string().regex(/^CAP_[A-Z_]{2,32}$/, 'must be a capability such as "CAP_NET_RAW" or "ALL"'))

/** A name that cannot be taken for an id. */
const SandboxName = Name.refine((name) => !SandboxId.safeParse(name).success, 'must not look like an id')

const sandboxFields = z.strictObject({
  name: SandboxName.optional().describe('Unique in the tenant among sandboxes that exist'),
  template: TemplateRef.optional().describe('Gives what is not given here. Answered with the version that was used'),
  labels: Labels.default({}),
  image: ImageReference.default('debian'),
  entrypoint: z.array(Argument).max(4096).optional(),
  command: z.array(Argument).max(4096).optional(),
  runImage: z
    .boolean()
    .default(false)
    .describe(
      "Run the image's own entrypoint and command. Without this, `entrypoint` and `command` the sandbox has no main " +
        'process and runs until it is stopped',
    ),
  env: Environment.default({}),
  workingDir: AbsolutePath.optional().describe("Default: the image's, else `/`"),
  user: User.optional().describe("Default: the image's, else root of the sandbox"),
  groups: z.array(Group).max(64).default([]).describe('Groups besides those of the user'),
  hostname: Hostname.optional(),
  tty: TerminalSize.nullable().default(null).describe('Gives the main process a terminal of this size'),
  limits: SandboxLimits.prefault({}),
  tmpfs: z.array(Tmpfs).max(32).default([]),
  readOnlyRootfs: z.boolean().default(false),
  capAdd: z.array(capability).max(64).default([]).describe("Only capabilities of the operator's list may be added"),
  capDrop: z.array(capability).max(64).default([]).describe('`ALL` drops all'),
  noNewPrivileges: z.boolean().default(true),
  privileged: z.boolean().default(false).describe('Always refused'),
  seccompProfile: z
    .string()
    .regex(/^[a-z0-9][a-z0-9-]{0,31}$/, 'must be the name of a profile')
    .default('default'),
  init: z.boolean().default(true).describe('berth-init is always PID 1: it reaps and forwards signals'),
  stopSignal: Signal.optional().describe("Default: the image's, else SIGTERM"),
  stopGraceMs: DurationMs(0, HOUR).prefault('10s').describe('From the stop signal to SIGKILL'),
  sysctls: z
    .record(z.string().regex(/^[a-z0-9_]+(\.[a-z0-9_-]+)+$/, 'must be a sysctl name'), z.string().max(256))
    .default({})
    .describe('Only namespaced ones of the safe list'),
  oomScoreAdj: z.number().int().min(0).max(1000).default(0),
  restart: RestartPolicy.prefault({}),
  clocks: Clocks.prefault({}),
  logs: z
    .strictObject({
      maxBytes: Bytes(64 * KiB, 1 * GiB)
        .prefault('10m')
        .describe('Of one file'),
      maxFiles: z.number().int().min(1).max(20).default(3).describe('The oldest goes when another is begun'),
    })
    .prefault({}),
})

export const SandboxSpec = sandboxFields.superRefine((spec, context) => {
  const problem = argumentsProblem([...(spec.entrypoint ?? []), ...(spec.command ?? [])], spec.env)
  if (problem) context.addIssue({ code: 'custom', path: [problem.field], message: problem.message })
  if (spec.runImage && spec.entrypoint?.length === 0)
    context.addIssue({ code: 'custom', path: ['entrypoint'], message: 'is empty, and runImage asks for one' })
  const { memoryReservationBytes = 0, memoryBytes } = spec.limits
  if (memoryReservationBytes > memoryBytes)
    context.addIssue({
      code: 'custom',
      path: ['limits', 'memoryReservationBytes'],
      message: 'must not be above memoryBytes',
    })
  if (!spec.init) context.addIssue({ code: 'custom', path: ['init'], message: 'must be true: a sandbox has an init' })
})
export type SandboxSpec = z.infer<typeof SandboxSpec>

export const givenSandboxFields = given(sandboxFields.shape)
/** What a caller gives of a sandbox. */
export const GivenSandbox = givenSandboxFields.superRefine(wholeUnlessTemplated(SandboxSpec))
export type GivenSandbox = z.infer<typeof GivenSandbox>

/**
 * What a sandbox is, as seen by its tenant. `failed`: it could not be started, or its restarts were given up. `lost`:
 * its node is silent. `deleted`: gone, only the record is left.
 */
export const sandboxStates = ['creating', 'running', 'paused', 'stopped', 'failed', 'lost', 'deleted'] as const
export const SandboxState = z.enum(sandboxStates)
export type SandboxState = z.infer<typeof SandboxState>

/** What is wanted of a sandbox. */
export const SandboxDesired = z.enum(['running', 'paused', 'stopped', 'deleted'])
export type SandboxDesired = z.infer<typeof SandboxDesired>

/** What its node is doing about it, for operators. */
export const sandboxPhases = [
  'placing',
  'rootfs',
  'starting',
  'running',
  'backing_off',
  'pausing',
  'paused',
  'stopping',
  'stopped',
  'removing',
  'removed',
] as const
export const SandboxPhase = z.enum(sandboxPhases)
export type SandboxPhase = z.infer<typeof SandboxPhase>

/** Why a sandbox is in its state, or why a run of it ended; stable. docs/sandboxes.md explains each. */
export const sandboxReasonCodes = [
  'requested',
  'completed',
  'exit_nonzero',
  'signaled',
  'oom_killed',
  'killed',
  'lifetime_over',
  'idle',
  'paused_too_long',
  'retention_over',
  'command_not_found',
  'command_not_executable',
  'working_dir_not_found',
  'user_not_found',
  'image_not_found',
  'image_unavailable',
  'start_failed',
  'sandbox_lost',
  'node_lost',
] as const
export const SandboxReasonCode = z.enum(sandboxReasonCodes)
export type SandboxReasonCode = z.infer<typeof SandboxReasonCode>

export const SandboxReason = z.object({
  code: SandboxReasonCode,
  message: z.string().max(2000),
  at: Time,
  by: z.string().max(64).describe('`sandbox`, `agent`, `api`, or the id of the key that asked'),
})
export type SandboxReason = z.infer<typeof SandboxReason>

/** The permanent record of how one run ended. A run is a start by request (`run`) or by policy (`restart` of it). */
export const SandboxEnd = z.object({
  run: z.number().int().min(1),
  restart: z.number().int().min(0),
  reason: SandboxReason,
  exitCode: z.number().int().min(0).max(255).nullable(),
  signal: z.string().max(16).nullable(),
  oomKilled: z.boolean(),
  startedAt: Time.nullable(),
  endedAt: Time,
  usage: z
    .object({
      wallMs: z.number(),
      cpuMs: z.number(),
      cpuThrottledMs: z.number(),
      peakMemoryBytes: z.number().int(),
      oomKills: z.number().int(),
      pidsRefused: z.number().int(),
    })
    .nullable(),
})
export type SandboxEnd = z.infer<typeof SandboxEnd>

/** Milliseconds spent in each phase of the latest start; null where it did not come so far. */
export const SandboxPhases = z.object({
  placeMs: z.number().nullable().describe('From the request to the arrival of the command at the node'),
  imageMs: z.number().nullable().describe('Until its image was there: brought from elsewhere where the node lacked it'),
  rootfsMs: z.number().nullable(),
  networkMs: z.number().nullable(),
  startMs: z.number().nullable().describe('OCI runtime and init'),
  readyMs: z.number().nullable().describe('From the request until commands can be run in it'),
})
export type SandboxPhases = z.infer<typeof SandboxPhases>

export const Sandbox = z.object({
  id: SandboxId,
  name: Name.nullable(),
  state: SandboxState,
  desired: SandboxDesired,
  phase: SandboxPhase,
  health: z.enum(['none', 'starting', 'healthy', 'unhealthy']),
  reason: SandboxReason.nullable(),
  version: z.number().int().describe('Grows with every change; the ETag'),
  labels: Labels,
  spec: sandboxFields.omit({ name: true, labels: true }),
  nodeId: NodeId.nullable(),
  placedBecause: z.string().describe('Why this node was chosen'),
  forkedFrom: SandboxId.nullable().describe('The sandbox whose files it began with'),
  run: z.number().int().describe('Starts by request so far'),
  restarts: z.number().int().describe('Starts by policy since the last one by request'),
  lastEnd: SandboxEnd.nullable(),
  phases: SandboxPhases,
  lastActivityAt: Time.nullable(),
  endsAt: z
    .object({ at: Time, clock: Clocks.keyof() })
    .nullable()
    .describe('The clock that runs out next, as far as is known now'),
  createdAt: Time,
  startedAt: Time.nullable(),
  endedAt: Time.nullable(),
  deletedAt: Time.nullable(),
})
export type Sandbox = z.infer<typeof Sandbox>

/** A sandbox by its id or by its name. */
export const SandboxRef = z
  .string()
  .max(80)
  .regex(/^[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}$/, 'must be the id or the name of a sandbox')
export const sandboxParams = z.object({ sandbox: SandboxRef })

/** Query of calls that may wait for a state. */
const waiting = {
  wait: SandboxState.optional().describe('Answer when it is in this state, or can no longer come to it'),
  timeoutMs: DurationMs(0, 7 * DAY)
    .prefault('30s')
    .describe('With `wait`: answer after this long in any case; ask again to go on'),
} as const

const common = { rate: 'write', scope: 'sandboxes:write', tag: 'sandboxes', params: sandboxParams } as const
const reading = { method: 'GET', rate: 'read', scope: 'sandboxes:read', tag: 'sandboxes' } as const

/** A sandbox as the answer that creates it has it. */
export const CreatedSandbox = Sandbox.extend({ warnings: Warnings })
export type CreatedSandbox = z.infer<typeof CreatedSandbox>

export const createSandbox = route({
  id: 'createSandbox',
  method: 'POST',
  path: '/v1/sandboxes',
  rate: 'write',
  scope: 'sandboxes:write',
  tag: 'sandboxes',
  summary: 'Create a sandbox, and start it',
  description:
    'With `ifExists=get` a sandbox of the same name is answered as it is (200) instead of refused. A sandbox gets a node ' +
    'at once or is refused with `no_capacity`.',
  query: z.strictObject({
    ...waiting,
    start: Flag.default(true),
    ifExists: z.enum(['fail', 'get']).default('fail'),
  }),
  body: GivenSandbox,
  bodyLimit: 4 * MiB,
  reply: { 201: CreatedSandbox, 200: CreatedSandbox },
  errors: [
    'invalid_json',
    'body_too_large',
    'name_taken',
    'quota_exceeded',
    'policy_forbidden',
    'image_not_found',
    'template_not_found',
    'no_capacity',
    'scan_unavailable',
    'tenant_suspended',
  ],
})
export const sandboxFilter = {
  state: z.union([SandboxState.transform((state) => [state]), z.array(SandboxState)]).optional(),
  label: z
    .union([z.string().transform((label) => [label]), z.array(z.string())])
    .optional()
    .describe('`key` or `key=value`; several must all match'),
} as const
export const listSandboxes = route({
  ...reading,
  id: 'listSandboxes',
  path: '/v1/sandboxes',
  summary: 'List sandboxes, newest first',
  description: 'Deleted ones only where `state=deleted` asks for them.',
  query: z.strictObject({ ...Page.query, ...sandboxFilter }),
  reply: { 200: pageOf(Sandbox) },
  errors: [],
})
export const getSandbox = route({
  ...reading,
  id: 'getSandbox',
  path: '/v1/sandboxes/:sandbox',
  summary: 'Get a sandbox, or wait for a state',
  params: sandboxParams,
  query: z.strictObject(waiting),
  reply: { 200: Sandbox },
  errors: ['sandbox_not_found'],
})
export const updateSandbox = route({
  ...common,
  id: 'updateSandbox',
  method: 'PATCH',
  path: '/v1/sandboxes/:sandbox',
  summary: 'Rename, relabel, change limits, restart policy or clocks',
  description:
    'Limits change while it runs; `null` unsets one that need not be there. A clock that is given begins anew. With `If-Match` only the version named by the ETag ' +
    'is changed.',
  headers: { 'If-Match': 'The ETag of the version to change' },
  body: z.strictObject({
    name: SandboxName.nullable().optional(),
    labels: Labels.optional(),
    limits: SandboxLimitsChange.optional(),
    restart: RestartPolicy.optional(),
    clocks: ClocksChange.optional(),
  }),
  reply: { 200: Sandbox },
  errors: [
    ...(['sandbox_not_found', 'name_taken', 'wrong_state', 'version_mismatch'] as const),
    ...(['quota_exceeded', 'no_capacity', 'policy_forbidden'] as const),
  ],
})
export const startSandbox = route({
  ...common,
  id: 'startSandbox',
  method: 'POST',
  path: '/v1/sandboxes/:sandbox/start',
  summary: 'Start a stopped or failed sandbox',
  description: 'Of a running one nothing changes. Its files are as they were.',
  query: z.strictObject(waiting),
  reply: { 202: Sandbox },
  errors: ['sandbox_not_found', 'wrong_state', 'quota_exceeded', 'no_capacity', 'tenant_suspended'],
})
export const stopSandbox = route({
  ...common,
  id: 'stopSandbox',
  method: 'POST',
  path: '/v1/sandboxes/:sandbox/stop',
  summary: 'Stop a sandbox',
  description: 'The stop signal to its processes, then SIGKILL after the grace. Of a stopped one nothing changes.',
  query: z.strictObject(waiting),
  body: z.strictObject({ graceMs: DurationMs(0, HOUR).optional(), signal: Signal.optional() }).prefault({}),
  reply: { 202: Sandbox },
  errors: ['sandbox_not_found', 'wrong_state'],
})
export const killSandbox = route({
  ...common,
  id: 'killSandbox',
  method: 'POST',
  path: '/v1/sandboxes/:sandbox/kill',
  summary: 'Send a signal to the main process',
  description: 'SIGKILL stops the sandbox: no restart policy answers it. Any other signal goes to the main process.',
  body: z.strictObject({ signal: Signal.prefault('SIGKILL') }).prefault({}),
  reply: { 202: Sandbox },
  errors: ['sandbox_not_found', 'wrong_state', 'node_unreachable'],
})
export const restartSandbox = route({
  ...common,
  id: 'restartSandbox',
  method: 'POST',
  path: '/v1/sandboxes/:sandbox/restart',
  summary: 'Stop a sandbox and start it again',
  query: z.strictObject(waiting),
  body: z.strictObject({ graceMs: DurationMs(0, HOUR).optional(), signal: Signal.optional() }).prefault({}),
  reply: { 202: Sandbox },
  errors: ['sandbox_not_found', 'wrong_state', 'quota_exceeded', 'no_capacity', 'tenant_suspended'],
})
export const pauseSandbox = route({
  ...common,
  id: 'pauseSandbox',
  method: 'POST',
  path: '/v1/sandboxes/:sandbox/pause',
  summary: 'Freeze every process of a sandbox',
  description: 'It keeps its memory and counts against quota as before.',
  query: z.strictObject(waiting),
  reply: { 202: Sandbox },
  errors: ['sandbox_not_found', 'wrong_state'],
})
export const resumeSandbox = route({
  ...common,
  id: 'resumeSandbox',
  method: 'POST',
  path: '/v1/sandboxes/:sandbox/resume',
  summary: 'Let a paused sandbox go on',
  query: z.strictObject(waiting),
  reply: { 202: Sandbox },
  errors: ['sandbox_not_found', 'wrong_state'],
})
export const deleteSandbox = route({
  ...common,
  id: 'deleteSandbox',
  method: 'DELETE',
  path: '/v1/sandboxes/:sandbox',
  summary: 'Delete a sandbox and its files',
  description:
    'One that runs is refused unless `force=true`. Its quota is free with the answer, whatever its node does; the record ' +
    'stays for 30 days.',
  query: z.strictObject({ force: Flag.default(false) }),
  reply: { 202: Sandbox },
  errors: ['sandbox_not_found', 'wrong_state'],
})
export const pruneSandboxes = route({
  id: 'pruneSandboxes',
  method: 'POST',
  path: '/v1/sandboxes/prune',
  rate: 'write',
  scope: 'sandboxes:write',
  tag: 'sandboxes',
  summary: 'Delete all stopped and failed sandboxes',
  body: z
    .strictObject({
      label: z.array(z.string().max(320)).max(32).default([]).describe('`key` or `key=value`; all must match'),
      endedBeforeMs: DurationMs(0, 365 * DAY)
        .prefault(0)
        .describe('Only those that ended at least this long ago'),
    })
    .prefault({}),
  reply: { 200: z.object({ deleted: z.array(SandboxId), freedBytes: z.number().int().describe('Of disk quota') }) },
  errors: [],
})
export const listSandboxEnds = route({
  ...reading,
  id: 'listSandboxEnds',
  path: '/v1/sandboxes/:sandbox/ends',
  summary: 'How every run of a sandbox ended, newest first',
  params: sandboxParams,
  query: z.strictObject({ limit: z.coerce.number().int().min(1).max(200).default(50) }),
  reply: { 200: z.object({ items: z.array(SandboxEnd) }) },
  errors: ['sandbox_not_found'],
})
