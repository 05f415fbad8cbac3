import { z } from 'zod'
import { Flag, route, Time } from './route.js'
import { SandboxLimits, sandboxParams } from './sandbox.js'
import { DurationMs, MINUTE } from './units.js'

const reading = { method: 'GET', rate: 'read', scope: 'sandboxes:read', tag: 'sandboxes' } as const

/** One process of a sandbox. */
export const SandboxProcess = z.object({
  pid: z.number().int().describe('In the sandbox'),
  parentPid: z.number().int(),
  uid: z.number().int().describe('In the sandbox'),
  user: z.string().nullable(),
  state: z.string().max(1).describe('R, S, D, T, Z … as ps(1)'),
  threads: z.number().int(),
  cpuMs: z.number(),
  residentBytes: z.number().int(),
  startedAt: Time,
  command: z.array(z.string()),
})
export type SandboxProcess = z.infer<typeof SandboxProcess>

/** Use of resources at one moment. Counters grow from the start of the run. */
export const SandboxStats = z.object({
  at: Time,
  cpuMs: z.number(),
  cpuThrottledMs: z.number(),
  cpus: z.number().nullable().describe('CPU time per wall time since the sample before; null in the first one'),
  memoryBytes: z.number().int().describe('Without page cache that the kernel would give back first'),
  memoryPeakBytes: z.number().int().describe('With page cache'),
  memoryLimitBytes: z.number().int(),
  oomKills: z.number().int(),
  pids: z.number().int().describe('Processes and threads'),
  pidsLimit: z.number().int(),
  diskBytes: z.number().int().nullable().describe('Of the writable layer'),
  diskLimitBytes: z.number().int(),
  readBytes: z.number().int().describe('From disks, by its own requests; what the kernel caches is not read again'),
  writtenBytes: z.number().int().describe('To disks; on cgroup v1 without what the kernel writes back later'),
  receivedBytes: z.number().int(),
  sentBytes: z.number().int(),
})
export type SandboxStats = z.infer<typeof SandboxStats>

/** A path of the writable layer that differs from the image. */
export const SandboxChange = z.object({ path: z.string(), kind: z.enum(['added', 'changed', 'deleted']) })
export type SandboxChange = z.infer<typeof SandboxChange>

/** A part of the main process' output. A line may come in several parts. */
export const LogEntry = z.object({
  stream: z.enum(['stdout', 'stderr']),
  at: Time,
  offset: z.number().int().describe('Position in the log: pass it as `since` to go on after this entry'),
  text: z.string().describe('Bytes that are not UTF-8 show as U+FFFD; take …/logs/raw for the bytes'),
})
export type LogEntry = z.infer<typeof LogEntry>

export const getSandboxLogs = route({
  ...reading,
  id: 'getSandboxLogs',
  path: '/v1/sandboxes/:sandbox/logs',
  summary: 'Output of the main process, of all its runs',
  description:
    'As lines of JSON, each a `LogEntry`. Only the last `logs.maxFiles` times `logs.maxBytes` are kept; who asks for what is ' +
    'gone begins with what is there. Of a deleted sandbox nothing is kept.',
  params: sandboxParams,
  query: z.strictObject({
    stream: z.enum(['stdout', 'stderr']).optional(),
    follow: Flag.default(false).describe('Go on until the sandbox is deleted or the caller leaves'),
    tail: z.coerce
      .number()
      .int()
      .min(0)
      .max(1_000_000)
      .optional()
      .describe('Only so many last lines of what is asked for; with `follow`, then what comes'),
    since: z
      .union([z.coerce.number().int().min(0), Time])
      .optional()
      .describe('After this offset, or from this time on'),
    until: Time.optional().describe('Only what came before this time; also the end of `follow`'),
  }),
  reply: { 200: { kind: 'ndjson', item: LogEntry } },
  errors: ['sandbox_not_found', 'output_gone', 'node_unreachable'],
})
export const getSandboxLogBytes = route({
  ...reading,
  id: 'getSandboxLogBytes',
  path: '/v1/sandboxes/:sandbox/logs/raw',
  summary: 'Output of the main process as raw bytes',
  description: 'Without times, and both streams in order of arrival unless one is asked for.',
  params: sandboxParams,
  query: getSandboxLogs.query,
  reply: { 200: 'bytes' },
  errors: ['sandbox_not_found', 'output_gone', 'node_unreachable'],
})
export const getSandboxTop = route({
  ...reading,
  id: 'getSandboxTop',
  path: '/v1/sandboxes/:sandbox/top',
  summary: 'Processes of a running sandbox',
  params: sandboxParams,
  reply: { 200: z.object({ items: z.array(SandboxProcess) }) },
  errors: ['sandbox_not_found', 'wrong_state', 'node_unreachable'],
})
export const getSandboxStats = route({
  ...reading,
  id: 'getSandboxStats',
  path: '/v1/sandboxes/:sandbox/stats',
  summary: 'Use of resources now',
  params: sandboxParams,
  reply: { 200: SandboxStats },
  errors: ['sandbox_not_found', 'wrong_state', 'node_unreachable'],
})
export const streamSandboxStats = route({
  ...reading,
  id: 'streamSandboxStats',
  path: '/v1/sandboxes/:sandbox/stats/stream',
  summary: 'Use of resources, sample after sample',
  description: 'Ends when the sandbox stops.',
  params: sandboxParams,
  query: z.strictObject({ intervalMs: DurationMs(200, MINUTE).prefault('1s') }),
  reply: { 200: { kind: 'ndjson', item: SandboxStats } },
  errors: ['sandbox_not_found', 'wrong_state', 'node_unreachable'],
})
export const getSandboxDiff = route({
  ...reading,
  id: 'getSandboxDiff',
  path: '/v1/sandboxes/:sandbox/diff',
  summary: 'Paths that differ from the image, sorted',
  description:
    'Directories show where they are new, have other attributes, or hold a change. What is mounted (/proc, /sys, /dev, tmpfs) ' +
    'and /etc/hosts, /etc/hostname and /etc/resolv.conf are left out, as is what lies over 1,000 directories deep.',
  params: sandboxParams,
  reply: { 200: { kind: 'ndjson', item: SandboxChange } },
  errors: ['sandbox_not_found', 'output_gone', 'node_unreachable'],
})

/** What a sandbox really runs with, after defaults, image and policy. */
export const SandboxInspection = z.object({
  image: z.object({ reference: z.string(), digest: z.string() }),
  command: z.array(z.string()).describe('Empty where there is no main process'),
  env: z.array(z.string()),
  workingDir: z.string(),
  uid: z.number().int().nullable().describe('Null where the user is not known in the sandbox'),
  gid: z.number().int().nullable(),
  groups: z.array(z.number().int()),
  hostname: z.string(),
  stopSignal: z.string(),
  capabilities: z.array(z.string()),
  limits: SandboxLimits,
  runtime: z.string(),
  hostIds: z.object({ base: z.number().int(), count: z.number().int() }),
})
export type SandboxInspection = z.infer<typeof SandboxInspection>

export const inspectSandbox = route({
  ...reading,
  id: 'inspectSandbox',
  path: '/v1/sandboxes/:sandbox/inspect',
  summary: 'What a sandbox really runs with',
  params: sandboxParams,
  reply: { 200: SandboxInspection },
  errors: ['sandbox_not_found', 'wrong_state', 'output_gone', 'node_unreachable'],
})
