import { z } from 'zod'
import { given, wholeUnlessTemplated } from './given.js'
import { AttemptId, BatchId, JobId, NodeId } from './ids.js'
import { Warnings } from './image-scan.js'
import { AbsolutePath, Argument, argumentsProblem, Environment, Hostname, User } from './process.js'
import { Flag, Labels, Name, Page, pageOf, route, TemplateRef, Time } from './route.js'
import { bodyLimits } from './tenant.js'
import { Bytes, DAY, DurationMs, GiB, HOUR, MINUTE, MiB, SECOND } from './units.js'

/** Largest standard input of a job. */
export const MAX_STDIN_BYTES = 4 * MiB

/** Image reference as users write it; resolved by name, tag or digest on the node. */
export const ImageReference = z
  .string()
  .min(1)
  .max(512)
  .regex(/^[a-zA-Z0-9[][a-zA-Z0-9._\-/:@[\]]*$/, 'must be an image reference such as "python" or "python:latest"')

/** Hard limits of one sandbox. Every one is enforced by the kernel, except `outputBytes`, which the agent enforces. */
export const Limits = z.strictObject({
  memoryBytes: Bytes(6 * MiB, 1024 * GiB)
    .prefault('512m')
    .describe('Memory, no swap; the process that goes over it is killed'),
  cpus: z.number().min(0.01).max(1024).default(1).describe('CPU time per wall time, as docker --cpus'),
  pids: z.number().int().min(2).max(65_536).default(256).describe('Processes and threads'),
  diskBytes: Bytes(1 * MiB, 1024 * GiB)
    .prefault('1g')
    .describe('Writable layer'),
  shmBytes: Bytes(0, 64 * GiB)
    .prefault('64m')
    .describe('/dev/shm; counts as memory when written'),
  openFiles: z.number().int().min(16).max(1_048_576).default(1024).describe('Open files of a process (RLIMIT_NOFILE)'),
  outputBytes: Bytes(0, 1 * GiB)
    .prefault('16m')
    .describe('Kept bytes of stdout and of stderr, each; the rest is counted and dropped'),
})
export type Limits = z.infer<typeof Limits>

/** Ends that a retry may answer. `error` is any non-zero exit or signal that is not an out-of-memory kill. */
export const RetryOn = z.enum(['error', 'oom', 'timeout', 'lost'])

export const RetryPolicy = z.strictObject({
  maxAttempts: z.number().int().min(1).max(20).default(1),
  backoffMs: DurationMs(0, HOUR).prefault('1s').describe('Wait before the second attempt'),
  factor: z.number().min(1).max(10).default(2).describe('Each further wait is this many times longer'),
  maxBackoffMs: DurationMs(0, DAY).prefault('5m'),
  on: z.array(RetryOn).min(1).max(4).default(['error', 'oom', 'timeout', 'lost']),
})
export type RetryPolicy = z.infer<typeof RetryPolicy>

const jobFields = z.strictObject({
  name: Name.optional(),
  template: TemplateRef.optional().describe(
    'Gives image, command, environment, user, directory, host name, labels and limits that are not given here. Answered ' +
      'with the version that was used',
  ),
  labels: Labels.default({}),
  image: ImageReference.default('debian'),
  command: z.array(Argument).min(1).max(4096).describe('Program and arguments; nothing is passed through a shell'),
  env: Environment.default({}),
  workingDir: AbsolutePath.optional().describe("Default: the image's, else `/`"),
  user: User.optional().describe(
    "Name or number, with an optional group. Default: the image's, else root of the sandbox",
  ),
  hostname: Hostname.optional(),
  stdin: z.base64().optional().describe('Standard input, base64; closed after it. Default: /dev/null'),
  limits: Limits.prefault({}),
  timeoutMs: DurationMs(1, 7 * DAY)
    .prefault('10m')
    .describe('Of one attempt, from its start; SIGTERM, then SIGKILL after `graceMs`'),
  graceMs: DurationMs(0, 5 * MINUTE).prefault('2s'),
  deadline: Time.optional().describe('When this passes, the job ends as `timed_out`, queued or running'),
  priority: z.number().int().min(0).max(9).default(4).describe('Within the tenant; higher goes first'),
  retry: RetryPolicy.prefault({}),
  retentionMs: DurationMs(SECOND, 90 * DAY)
    .prefault('7d')
    .describe('How long the ended job and its output are kept'),
})

export const JobSpec = jobFields.superRefine((spec, context) => {
  const problem = argumentsProblem(spec.command, spec.env)
  if (problem) context.addIssue({ code: 'custom', path: [problem.field], message: problem.message })
  if (spec.stdin && (spec.stdin.length * 3) / 4 > MAX_STDIN_BYTES + 2)
    context.addIssue({ code: 'custom', path: ['stdin'], message: `must be at most ${MAX_STDIN_BYTES} bytes decoded` })
})
export type JobSpec = z.infer<typeof JobSpec>

/** What a caller gives of a job: `command` may be left out where the template has one. */
export const GivenJob = given(jobFields.shape).superRefine(wholeUnlessTemplated(JobSpec))
export type GivenJob = z.infer<typeof GivenJob>

export const jobStates = ['queued', 'placed', 'running', 'succeeded', 'failed', 'timed_out', 'canceled'] as const
export const JobState = z.enum(jobStates)
export type JobState = z.infer<typeof JobState>
export const finalJobStates = [
  'succeeded',
  'failed',
  'timed_out',
  'canceled',
] as const satisfies readonly (typeof jobStates)[number][]

/** One run of a job on a node. `lost`: the node or its sandbox vanished, and what became of it is not known. */
export const attemptStates = ['placed', 'running', 'succeeded', 'failed', 'timed_out', 'canceled', 'lost'] as const
export const AttemptState = z.enum(attemptStates)
export type AttemptState = z.infer<typeof AttemptState>

/** Why something ended; stable. docs/jobs.md explains each. */
export const reasonCodes = [
  'completed',
  'exit_nonzero',
  'signaled',
  'oom_killed',
  'timeout',
  'deadline_exceeded',
  'canceled',
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
export const ReasonCode = z.enum(reasonCodes)
export type ReasonCode = z.infer<typeof ReasonCode>

export const Reason = z.object({
  code: ReasonCode,
  message: z.string(),
  at: Time,
  by: z.string().describe('`sandbox`, `agent`, `api`, or the id of the key that asked'),
})
export type Reason = z.infer<typeof Reason>

/** Milliseconds spent in each phase of an attempt; null until it is over. */
export const Phases = z.object({
  queueMs: z.number().nullable().describe('From creation, or the end of the back-off, to placement'),
  placeMs: z.number().nullable().describe('From placement to the arrival of the command at the node'),
  imageMs: z.number().nullable().describe('Until its image was there: brought from elsewhere where the node lacked it'),
  rootfsMs: z.number().nullable().describe('Writable layer, bundle'),
  startMs: z.number().nullable().describe('OCI runtime and init, until the command runs'),
  runMs: z.number().nullable().describe('The command itself'),
  finishMs: z.number().nullable().describe('Output drained and result stored on the node'),
})
export type Phases = z.infer<typeof Phases>

export const StreamUsage = z.object({
  bytes: z.number().int().describe('Bytes written by the command'),
  keptBytes: z.number().int(),
  truncated: z.boolean(),
})

export const ResourceUsage = z.object({
  wallMs: z.number(),
  cpuMs: z.number(),
  peakMemoryBytes: z.number().int(),
  stdout: StreamUsage,
  stderr: StreamUsage,
})
export type ResourceUsage = z.infer<typeof ResourceUsage>

export const Attempt = z.object({
  id: AttemptId,
  number: z.number().int().min(1),
  state: AttemptState,
  nodeId: NodeId,
  exitCode: z.number().int().nullable(),
  signal: z.string().nullable().describe('`SIGKILL`, … where the command was killed by a signal'),
  oomKilled: z.boolean(),
  reason: Reason.nullable(),
  usage: ResourceUsage.nullable(),
  phases: Phases,
  placedAt: Time,
  startedAt: Time.nullable(),
  finishedAt: Time.nullable(),
})
export type Attempt = z.infer<typeof Attempt>

/** A whole output stream, where it was asked for with the job and is small enough to be kept with it. */
export const InlineStream = z.object({
  data: z.string(),
  encoding: z.enum(['utf8', 'base64']).describe('base64 where the bytes are not valid UTF-8'),
  bytes: z.number().int().describe('Bytes written by the command'),
  truncated: z.boolean().describe('True where `data` is not all of it'),
})
export type InlineStream = z.infer<typeof InlineStream>

export const JobOutput = z.object({ stdout: InlineStream, stderr: InlineStream })
export type JobOutput = z.infer<typeof JobOutput>

export const Job = z.object({
  id: JobId,
  batchId: BatchId.nullable(),
  state: JobState,
  spec: jobFields.omit({ stdin: true }).extend({ stdinBytes: z.number().int() }),
  exitCode: z.number().int().nullable(),
  signal: z.string().nullable(),
  oomKilled: z.boolean(),
  reason: Reason.nullable(),
  usage: ResourceUsage.nullable(),
  attempts: z.array(Attempt),
  createdAt: Time,
  notBefore: Time.nullable().describe('A queued job that waits out a back-off starts no earlier'),
  startedAt: Time.nullable(),
  finishedAt: Time.nullable(),
  expiresAt: Time.nullable().describe('When the ended job is deleted'),
  output: JobOutput.optional().describe('With `output=true`, once the job has ended'),
})
export type Job = z.infer<typeof Job>

const waiting = {
  wait: z.enum(['running', 'finished']).optional().describe('Answer when the job is in this state or past it'),
  timeoutMs: DurationMs(0, 60_000)
    .prefault('30s')
    .describe('With `wait`: answer after this long in any case; ask again to go on'),
  output: Flag.default(false).describe('Include the output of an ended job, up to 64 KiB of each stream'),
} as const

const jobParams = z.object({ jobId: JobId })

/** A job as the answer that creates it has it. */
export const CreatedJob = Job.extend({ warnings: Warnings })
export type CreatedJob = z.infer<typeof CreatedJob>

export const createJob = route({
  id: 'createJob',
  method: 'POST',
  path: '/v1/jobs',
  scope: 'jobs:write',
  rate: 'write',
  tag: 'jobs',
  summary: 'Run a command in a sandbox of its own',
  description: 'With `wait=finished&output=true` one call runs the command and answers with its output.',
  query: z.strictObject(waiting),
  body: GivenJob,
  bodyLimit: bodyLimits.job,
  reply: { 201: CreatedJob },
  errors: [
    ...(['invalid_json', 'body_too_large', 'quota_exceeded', 'tenant_suspended'] as const),
    ...(['image_not_found', 'template_not_found'] as const),
    ...(['policy_forbidden', 'scan_unavailable', 'no_capacity'] as const),
  ],
})

export const jobFilter = {
  state: z.union([JobState.transform((state) => [state]), z.array(JobState)]).optional(),
  batchId: BatchId.optional(),
  label: z
    .union([z.string().transform((label) => [label]), z.array(z.string())])
    .optional()
    .describe('`key` or `key=value`; several must all match'),
} as const

export const listJobs = route({
  id: 'listJobs',
  method: 'GET',
  path: '/v1/jobs',
  scope: 'jobs:read',
  rate: 'read',
  tag: 'jobs',
  summary: 'List jobs, newest first',
  query: z.strictObject({ ...Page.query, ...jobFilter }),
  reply: { 200: pageOf(Job) },
  errors: [],
})
export const getJob = route({
  id: 'getJob',
  method: 'GET',
  path: '/v1/jobs/:jobId',
  scope: 'jobs:read',
  rate: 'read',
  tag: 'jobs',
  summary: 'Get a job, or wait for it',
  params: jobParams,
  query: z.strictObject(waiting),
  reply: { 200: Job },
  errors: ['job_not_found'],
})
export const cancelJob = route({
  id: 'cancelJob',
  method: 'POST',
  path: '/v1/jobs/:jobId/cancel',
  scope: 'jobs:write',
  rate: 'write',
  tag: 'jobs',
  summary: 'Cancel a job',
  description:
    'A queued job ends at once. A running one gets SIGTERM, then SIGKILL after its grace, and ends as `canceled`. ' +
    'An ended job is answered as it is.',
  params: jobParams,
  reply: { 202: Job },
  errors: ['job_not_found'],
})
export const deleteJob = route({
  id: 'deleteJob',
  method: 'DELETE',
  path: '/v1/jobs/:jobId',
  scope: 'jobs:write',
  rate: 'write',
  tag: 'jobs',
  summary: 'Delete an ended job and its output',
  params: jobParams,
  reply: { 204: 'empty' },
  errors: ['job_not_found', 'wrong_state'],
})

export const OutputStream = z.enum(['stdout', 'stderr'])
export type OutputStream = z.infer<typeof OutputStream>

export const getJobOutput = route({
  id: 'getJobOutput',
  method: 'GET',
  path: '/v1/jobs/:jobId/output',
  scope: 'jobs:read',
  rate: 'read',
  tag: 'jobs',
  summary: 'Get both output streams as JSON',
  description: 'Of the last attempt. Each stream is cut at 1 MiB here; take the raw stream for more.',
  params: jobParams,
  reply: { 200: JobOutput },
  errors: ['job_not_found', 'output_gone', 'node_unreachable'],
})
export const streamJobOutput = route({
  id: 'streamJobOutput',
  method: 'GET',
  path: '/v1/jobs/:jobId/output/:stream',
  scope: 'jobs:read',
  rate: 'read',
  tag: 'jobs',
  summary: 'Get one output stream as raw bytes, live with `follow=true`',
  description:
    'Of the last attempt, or of `attempt`. With `follow=true` the answer begins when the attempt starts and ends when ' +
    'the stream does. A reader that lost its connection goes on with `since=` the number of bytes it has.',
  params: jobParams.extend({ stream: OutputStream }),
  query: z.strictObject({
    since: z.coerce.number().int().min(0).default(0).describe('Offset of the first byte wanted'),
    follow: Flag.default(false),
    attempt: z.coerce.number().int().min(1).optional(),
  }),
  reply: { 200: 'bytes' },
  errors: ['job_not_found', 'output_gone', 'node_unreachable'],
})

export const Batch = z.object({
  id: BatchId,
  name: Name.nullable(),
  createdAt: Time,
  finishedAt: Time.nullable(),
  counts: z.record(JobState, z.number().int()).describe('Jobs by state'),
  total: z.number().int(),
})
export type Batch = z.infer<typeof Batch>

export const CreatedBatch = Batch.extend({ jobIds: z.array(JobId), warnings: Warnings })
export type CreatedBatch = z.infer<typeof CreatedBatch>

export const createBatch = route({
  id: 'createBatch',
  method: 'POST',
  path: '/v1/batches',
  scope: 'jobs:write',
  rate: 'write',
  tag: 'batches',
  summary: 'Create up to 1,000 jobs in one call',
  description: 'All of them or none; `invalid_request` names the job by its index.',
  body: z.strictObject({
    name: Name.optional(),
    jobs: z.array(GivenJob).min(1).max(1000),
  }),
  bodyLimit: bodyLimits.job,
  reply: { 201: CreatedBatch },
  errors: [
    ...(['invalid_json', 'body_too_large', 'quota_exceeded', 'tenant_suspended'] as const),
    ...(['image_not_found', 'template_not_found'] as const),
    ...(['policy_forbidden', 'scan_unavailable', 'no_capacity'] as const),
  ],
})
const batchParams = z.object({ batchId: BatchId })
export const getBatch = route({
  id: 'getBatch',
  method: 'GET',
  path: '/v1/batches/:batchId',
  scope: 'jobs:read',
  rate: 'read',
  tag: 'batches',
  summary: 'Get a batch: its jobs counted by state, or wait for its end',
  params: batchParams,
  query: z.strictObject({
    wait: z.enum(['finished']).optional(),
    timeoutMs: waiting.timeoutMs,
  }),
  reply: { 200: Batch },
  errors: ['batch_not_found'],
})
export const cancelBatch = route({
  id: 'cancelBatch',
  method: 'POST',
  path: '/v1/batches/:batchId/cancel',
  scope: 'jobs:write',
  rate: 'write',
  tag: 'batches',
  summary: 'Cancel every unfinished job of a batch',
  params: batchParams,
  reply: { 202: Batch },
  errors: ['batch_not_found'],
})
