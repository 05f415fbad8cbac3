// build.ts: images made from a Dockerfile. The context is the body, as it comes; options are in the query; what is secret is
// in a header: URLs end up in logs. What happens is streamed, and the build lives as long as the connection.
import { z } from 'zod'
import {
  BuildArguments,
  BuildCache,
  BuildCachePruned,
  BuildLabels,
  BuildLimits,
  BuildStep,
  DockerfilePath,
  MAX_BUILD_PARALLEL,
} from './build-node.js'
import { BuildId, NodeId } from './ids.js'
import { Image } from './image.js'
import { ImageDigest, Platform } from './image-node.js'
import { Flag, Page, pageOf, route, Time } from './route.js'
import { Bytes, DAY, DurationMs, GiB, HOUR, MiB, SECOND } from './units.js'

/** `ID=BASE64` each; repeated, or several by commas. All headers of a request are at most 64 KiB. */
export const BUILD_SECRET_HEADER = 'berth-build-secret'
/** The text of a Dockerfile, base64. */
export const DOCKERFILE_HEADER = 'berth-dockerfile'

export const buildStates = ['running', 'succeeded', 'failed', 'canceled'] as const
export const BuildState = z.enum(buildStates)
export type BuildState = z.infer<typeof BuildState>

/** What was asked for, but for secrets, which are kept nowhere. */
export const BuildOptions = z.object({
  dockerfile: z.string().describe('Its path in the context; of a text of its own, too'),
  target: z.string().nullable(),
  args: z.record(z.string(), z.string()),
  labels: z.record(z.string(), z.string()),
  noCache: z.boolean(),
  pull: z.boolean(),
  network: z.enum(['default', 'none']),
  platform: z.string().nullable(),
})
export type BuildOptions = z.infer<typeof BuildOptions>

export const BuildReason = z.object({
  code: z.string().describe('As of problems'),
  message: z.string(),
  line: z.number().int().nullable().describe('Of the Dockerfile'),
  instruction: z.string().nullable(),
  at: Time,
  by: z.string().describe('`agent`, `api`, or the id of the key that asked'),
})
export type BuildReason = z.infer<typeof BuildReason>

export const Build = z.object({
  id: BuildId,
  state: BuildState,
  tags: z.array(z.string()).describe('Names that lead to the image once it has succeeded'),
  options: BuildOptions,
  limits: BuildLimits.describe('Of each command'),
  parallel: z.number().int().describe('Most commands at the same time: fewer than asked for where there was no room'),
  nodeId: NodeId,
  image: ImageDigest.nullable().describe('What it made'),
  reason: BuildReason.nullable().describe('Why it failed or was canceled'),
  createdAt: Time,
  startedAt: Time.nullable().describe('When context and base images were there'),
  endedAt: Time.nullable(),
})
export type Build = z.infer<typeof Build>

/** An instruction of a build, as far as it is. */
export const BuildStepSummary = z.object({
  vertex: z.number().int(),
  name: z.string().describe('E.g. `[builder 2/5] RUN npm ci`; long ones are cut'),
  stage: z.string().nullable(),
  state: z.enum(['running', 'cached', 'done', 'failed']),
  startedAt: Time,
  ms: z.number().int().nullable(),
  exitCode: z.number().int().nullable(),
  error: z.string().nullable(),
  layerBytes: z.number().int().nullable().describe('Of the layer that it made, unpacked'),
})
export type BuildStepSummary = z.infer<typeof BuildStepSummary>

export const BuildDetails = Build.extend({
  steps: z.array(BuildStepSummary).describe('The first 500; some seconds old while it is going on'),
})
export type BuildDetails = z.infer<typeof BuildDetails>

const [begin, cached, output, end, warning] = BuildStep.options

/** One value of the stream of a build. The first one is `created`, the last one `done` or `failed`. */
export const BuildProgress = z.discriminatedUnion('step', [
  z.object({ step: z.literal('created'), build: BuildId, nodeId: NodeId, parallel: z.number().int() }),
  z.object({
    step: z.literal('pull').describe('A base image is fetched; again and again while it is'),
    reference: z.string(),
    layer: ImageDigest,
    state: z.enum(['waiting', 'fetching', 'unpacking', 'pushing', 'present', 'done']),
    bytes: z.number().int(),
    totalBytes: z.number().int().nullable(),
  }),
  z.object({ step: z.literal('pulled').describe('It is on the node now'), reference: z.string(), digest: ImageDigest }),
  begin,
  cached,
  output,
  end,
  warning,
  z.object({ step: z.literal('done'), build: Build, image: Image }),
  z.object({
    step: z.literal('failed'),
    code: z.string().describe('As of problems'),
    message: z.string(),
    line: z.number().int().nullable(),
    instruction: z.string().nullable(),
  }),
])
export type BuildProgress = z.infer<typeof BuildProgress>

const several = (most: number) =>
  z
    .union([z.string(), z.array(z.string()).max(most)])
    .default([])
    .transform((one) => [one].flat())

/** `key=value`, repeated. Of several with one key the last counts, as with `docker build`. */
const pairs = (schema: typeof BuildArguments | typeof BuildLabels) =>
  several(512).transform((texts, context) => {
    const without = texts.find((text) => !text.includes('='))
    const entries = texts.map((text): [string, string] => {
      const at = text.indexOf('=')
      return [text.slice(0, at), text.slice(at + 1)]
    })
    const parsed = schema.safeParse(Object.fromEntries(entries))
    if (without === undefined && parsed.success) return parsed.data
    const [issue] = parsed.error?.issues ?? []
    const message = without === undefined ? `${issue?.path.join('.')}: ${issue?.message}` : 'must be key=value'
    context.addIssue({ code: 'custom', message })
    return z.NEVER
  })

/** Query of `createBuild`. */
export const BuildQuery = z.strictObject({
  wait: z
    .enum(['done'])
    .optional()
    .describe('Answer 201 with JSON when it is done, instead of a stream of what happens'),
  tag: several(32).describe('A name that leads to the image afterwards; repeat it for more. Default: none'),
  dockerfile: DockerfilePath.default('Dockerfile').describe('Its path in the context'),
  target: z.string().min(1).max(256).optional().describe('A stage, by name or number. Default: the last one'),
  arg: pairs(BuildArguments).describe('A build argument as `NAME=value`; repeat it for more'),
  label: pairs(BuildLabels).describe('A label as `key=value`; repeat it for more'),
  noCache: Flag.default(false).describe('Use nothing that earlier builds have left'),
  pull: Flag.default(false).describe('Fetch base images even where there are some of their names'),
  network: z.enum(['default', 'none']).default('default').describe('Of its commands'),
  platform: Platform.optional().describe('Of the node that builds. Default: whichever has room'),
  cpus: z.coerce.number().min(0.01).max(1024).default(1).describe('CPU time per wall time of each command'),
  memoryBytes: Bytes(6 * MiB, 1024 * GiB)
    .prefault('1g')
    .describe('Memory of each command'),
  diskBytes: Bytes(1 * MiB, 1024 * GiB)
    .prefault('4g')
    .describe('What each command may write. The context may be as large, 2 GiB at most'),
  pids: z.coerce.number().int().min(2).max(65_536).default(1024).describe('Processes and threads of each command'),
  parallel: z.coerce
    .number()
    .int()
    .min(1)
    .max(MAX_BUILD_PARALLEL)
    .default(2)
    .describe('Most commands at the same time; fewer where quota or room are less'),
  queueMs: DurationMs(0, HOUR).prefault('1m').describe('How long it may wait for quota and for room on a node'),
  timeoutMs: DurationMs(SECOND, DAY).prefault('30m').describe('Of the whole build, from then on'),
})
export type BuildQuery = z.infer<typeof BuildQuery>

const reading = { rate: 'read', scope: 'images:read', tag: 'builds' } as const
const writing = { rate: 'write', scope: 'images:write', tag: 'builds', idempotency: 'none' } as const
const buildParams = z.object({ build: BuildId })
const unreachable = z.array(NodeId).describe('Nodes that did not answer')

/** What `wait=done` is answered with. */
export const BuildDone = z.object({
  build: Build,
  image: Image,
  warnings: z.array(z.string()).describe('What the stream would have told of as `warning`'),
})
export type BuildDone = z.infer<typeof BuildDone>

export const createBuild = route({
  ...writing,
  id: 'createBuild',
  method: 'POST',
  path: '/v1/builds',
  summary: 'Build an image from a Dockerfile',
  description:
    'The body is the context: a tar, plain or gzip. Streams what happens until `done` or `failed`; what is refused before ' +
    'the build is created is a problem. Closing the connection ends the build, and what it made so far stays in the cache. ' +
    'While it is going on it counts as a running job with the limits of `parallel` commands, and with disk for the context. ' +
    'Base images that nobody has are pulled and are yours from then on.',
  headers: {
    'Berth-Build-Secret':
      '`ID=BASE64`, repeated or by commas: what `RUN --mount=type=secret,id=ID` shows. Never stored',
    'Berth-Dockerfile': 'The text of a Dockerfile, base64, instead of one of the context',
  },
  query: BuildQuery,
  body: 'bytes',
  reply: { 200: { kind: 'ndjson', item: BuildProgress }, 201: BuildDone },
  errors: [
    ...(['quota_exceeded', 'tenant_suspended', 'no_capacity', 'node_unreachable'] as const),
    ...(['context_invalid', 'dockerfile_invalid', 'build_failed', 'build_canceled', 'build_timed_out'] as const),
    ...(['image_not_found', 'image_unavailable', 'image_invalid', 'platform_unsupported'] as const),
    ...(['registry_denied', 'registry_unreachable', 'policy_forbidden', 'scan_unavailable'] as const),
  ],
})
export const listBuilds = route({
  ...reading,
  id: 'listBuilds',
  method: 'GET',
  path: '/v1/builds',
  summary: 'List builds, newest first',
  description: 'The last 1,000 of the last 30 days are kept.',
  query: z.strictObject({
    ...Page.query,
    state: z.union([BuildState.transform((state) => [state]), z.array(BuildState)]).optional(),
  }),
  reply: { 200: pageOf(Build) },
  errors: [],
})
export const getBuild = route({
  ...reading,
  id: 'getBuild',
  method: 'GET',
  path: '/v1/builds/:build',
  summary: 'Get a build with its steps',
  params: buildParams,
  reply: { 200: BuildDetails },
  errors: ['build_not_found'],
})
export const getBuildLog = route({
  ...reading,
  id: 'getBuildLog',
  method: 'GET',
  path: '/v1/builds/:build/log',
  summary: 'What a build has told, as text',
  description:
    'The last MiB of it; some seconds old while it is going on. Of the last 50 builds; `output_gone` of earlier ones.',
  params: buildParams,
  reply: { 200: 'bytes' },
  errors: ['build_not_found', 'output_gone'],
})
export const cancelBuild = route({
  ...writing,
  id: 'cancelBuild',
  method: 'POST',
  path: '/v1/builds/:build/cancel',
  summary: 'End a build',
  description: 'In effect at once, and quota is free with the answer. Of one that has ended nothing changes.',
  params: buildParams,
  reply: { 200: Build },
  errors: ['build_not_found'],
})
export const getBuildCache = route({
  ...reading,
  id: 'getBuildCache',
  method: 'GET',
  path: '/v1/builds/cache',
  summary: 'What your builds have left for the next ones, by node',
  reply: { 200: z.object({ items: z.array(BuildCache.extend({ nodeId: NodeId })), unreachable }) },
  errors: [],
})
export const pruneBuildCache = route({
  ...writing,
  id: 'pruneBuildCache',
  method: 'POST',
  path: '/v1/builds/cache/prune',
  summary: 'Remove what your builds have left for the next ones',
  description: 'What is in use stays.',
  body: z.strictObject({
    unusedFor: DurationMs(0, 3650 * DAY)
      .prefault(0)
      .describe('Only what was not used for this long'),
    keepBytes: Bytes(0, 2 ** 50)
      .prefault(0)
      .describe('Of each node, the last used of it'),
  }),
  reply: { 200: BuildCachePruned.extend({ unreachable }) },
  errors: ['invalid_json'],
})
