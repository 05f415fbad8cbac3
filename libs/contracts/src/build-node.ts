// build-node.ts: what the API asks a node about builds, and what the node answers. A node parses, runs and caches; names,
// and who may use which image, are the API's. A build lives on one node as long as its caller's requests: it ends when one of
// them is closed, and a minute after the last one where no next one comes.
//
// Paths are those of `nodePath` of libs/node-rpc: /v1/nodes/<id>/builds/…
//
//     PUT    builds/<build id>                NodeBuild → 204         secrets are in it: it is held in memory only
//     POST   builds/<build id>/context        a tar, plain or gzip → BuildReferences
//     POST   builds/<build id>/solve          SolveBuild → steps      the last one is `done` or `failed`
//     DELETE builds/<build id>                → 204                   ends it at once; one that is not known is none
//     GET    builds/cache?tenantId=…          → BuildCache
//     POST   builds/cache/prune               PruneBuildCache → BuildCachePruned
//
// What goes wrong with the context or the Dockerfile is a problem of the second request: `context_invalid`,
// `dockerfile_invalid` (with `line` and `instruction`).
import { z } from 'zod'
import { IdRange, TenantLimits } from './command.js'
import { problems } from './errors.js'
import { TenantId } from './ids.js'
import { HeldImage, ImageDigest, Platform } from './image-node.js'
import { Time } from './route.js'
import { DAY, GiB, KiB, MiB } from './units.js'

/** Most of a text that names something in a build: a stage, an instruction, an argument's name. */
const Word = z.string().min(1).max(256)

/** Largest secret of a build, in bytes. */
export const MAX_BUILD_SECRET_BYTES = 64 * KiB
/** Largest Dockerfile, in bytes. */
export const MAX_DOCKERFILE_BYTES = 1 * MiB
/** Most stages of a build whose commands run at the same time. */
export const MAX_BUILD_PARALLEL = 4

/** At most so many members. */
const few = (most: number) => (record: object) => Object.keys(record).length <= most

/** Secrets by the id that `RUN --mount=type=secret` names. */
export const BuildSecrets = z
  .record(
    z.string().regex(/^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$/, 'must be letters, digits, ".", "_" or "-"'),
    z
      .base64()
      .max(Math.ceil(MAX_BUILD_SECRET_BYTES / 3) * 4)
      .describe(`At most ${MAX_BUILD_SECRET_BYTES} bytes, base64`),
  )
  .refine(few(64), 'must be at most 64')
export type BuildSecrets = z.infer<typeof BuildSecrets>

/** Build arguments and labels: text by name. */
const Texts = (names: z.ZodString) => z.record(names, z.string().max(64 * KiB)).refine(few(512), 'must be at most 512')

export const BuildArguments = Texts(
  z.string().regex(/^[A-Za-z_][A-Za-z0-9_.-]{0,255}$/, 'must be the name of a build argument'),
)
export type BuildArguments = z.infer<typeof BuildArguments>

export const BuildLabels = Texts(Word)
export type BuildLabels = z.infer<typeof BuildLabels>

/** A file of the context, as `docker build --file` names it. */
export const DockerfilePath = z
  .string()
  .min(1)
  .max(4095)
  .regex(/^[^\0]*$/, 'must not contain NUL bytes')
  .refine((path) => path.split('/').every((part) => part !== '..'), 'must not contain ".."')

/** Hard limits of each command that a build runs; the kernel enforces them. */
export const BuildLimits = z.object({
  cpus: z.number().min(0.01).max(1024),
  memoryBytes: z
    .number()
    .int()
    .min(6 * MiB)
    .max(1024 * GiB),
  pids: z.number().int().min(2).max(65_536),
  diskBytes: z
    .number()
    .int()
    .min(1 * MiB)
    .max(1024 * GiB)
    .describe('What one command may write into its layer'),
})
export type BuildLimits = z.infer<typeof BuildLimits>

export const NodeBuild = z.object({
  tenantId: TenantId,
  ids: IdRange,
  tenantLimits: TenantLimits,
  dockerfile: DockerfilePath.default('Dockerfile'),
  dockerfileText: z
    .string()
    .max(MAX_DOCKERFILE_BYTES)
    .nullable()
    .default(null)
    .describe('Instead of a file of the context'),
  target: Word.nullable().default(null).describe('A stage by name or number. Default: the last one'),
  args: BuildArguments.default({}),
  labels: BuildLabels.default({}).describe('Added to those of the Dockerfile'),
  secrets: BuildSecrets.default({}),
  noCache: z.boolean().default(false).describe('Use nothing of the cache; what is made goes into it'),
  network: z
    .enum(['default', 'none'])
    .default('default')
    .describe('Commands have loopback only, by either: a node gives sandboxes no other network yet'),
  platform: Platform.optional().describe("Default: the node's own; any other is refused"),
  limits: BuildLimits,
  newPrivileges: z.boolean().default(false).describe('Whether set-user-id programs work in its commands'),
  runTimeoutMs: z
    .number()
    .int()
    .min(1)
    .max(7 * DAY)
    .describe('Of one command'),
  parallel: z.number().int().min(1).max(MAX_BUILD_PARALLEL).describe('Most commands that run at the same time'),
  maxBytes: z
    .number()
    .int()
    .min(0)
    .describe(
      'Most bytes that the layers of the image may have which are not of its base, for the quota of the tenant',
    ),
  maxContextBytes: z.number().int().min(0).describe('Most bytes of the context unpacked'),
  cacheBytes: z.number().int().min(0).describe('Most bytes of cache that the tenant keeps on this node'),
})
export type NodeBuild = z.infer<typeof NodeBuild>

/** Names of images as the Dockerfile writes them, after its arguments were filled in. */
const BuildReference = z.string().min(1).max(512)

/** Every image that the build begins with or copies from, and where each is named first. */
export const BuildReferences = z.object({
  references: z.array(BuildReference).max(1000),
  places: z.record(BuildReference, z.object({ line: z.int(), instruction: z.string().max(4096) })).default({}),
})
export type BuildReferences = z.infer<typeof BuildReferences>

export const SolveBuild = z.object({
  images: z
    .record(BuildReference, ImageDigest)
    .refine(few(1000), 'must be at most 1000')
    .describe('What each reference was resolved to, for this tenant; this node holds all of them'),
})
export type SolveBuild = z.infer<typeof SolveBuild>

/** A step of a build, by its number in it. */
const vertex = z.number().int().min(0).max(100_000)

export const BuildStep = z.discriminatedUnion('step', [
  z.object({
    step: z.literal('begin').describe('An instruction begins'),
    vertex,
    name: z.string().max(4096).describe('E.g. `[builder 2/5] RUN npm ci`'),
    stage: z.string().max(256).nullable(),
    at: Time,
  }),
  z.object({ step: z.literal('cached').describe('It was made before: nothing is to be done'), vertex }),
  z.object({
    step: z.literal('output'),
    vertex,
    stream: z.enum(['stdout', 'stderr']),
    data: z
      .string()
      .max(64 * KiB)
      .describe('UTF-8; what is none is replaced, and secrets are masked'),
    at: Time,
  }),
  z.object({
    step: z.literal('end'),
    vertex,
    at: Time,
    ms: z.number().int().min(0),
    exitCode: z.number().int().nullable().describe('Of its command, where it ran one to its end'),
    error: z.string().max(4096).nullable(),
    layer: z
      .object({ diffId: ImageDigest, bytes: z.number().int().min(0).describe('Unpacked') })
      .nullable()
      .describe('What it made; null where it made none'),
  }),
  z.object({
    step: z.literal('warning'),
    message: z.string().max(4096),
    line: z.number().int().min(1).nullable(),
  }),
  z.object({ step: z.literal('done'), image: HeldImage }),
  z.object({
    step: z.literal('failed'),
    code: z.enum(Object.keys(problems) as [keyof typeof problems]),
    message: z.string().max(16 * KiB),
    line: z.number().int().min(1).nullable().describe('Of the Dockerfile'),
    instruction: z.string().max(4096).nullable(),
  }),
])
export type BuildStep = z.infer<typeof BuildStep>

/** What a tenant's builds have left on a node for the next ones. */
export const BuildCache = z.object({
  bytes: z.number().int().min(0).describe('Of all, layers that several entries have once'),
  entries: z
    .array(
      z.object({
        id: z.string().max(128),
        kind: z.enum(['layer', 'mount']).describe('`mount`: what `RUN --mount=type=cache` keeps'),
        description: z.string().max(4096).describe('The instruction that made it, or the id of the mount'),
        bytes: z.number().int().min(0),
        createdAt: Time,
        lastUsedAt: Time,
        inUse: z.boolean().describe('By a build that is going on'),
      }),
    )
    .max(10_000)
    .describe('Last used first'),
})
export type BuildCache = z.infer<typeof BuildCache>

export const PruneBuildCache = z.object({
  tenantId: TenantId,
  unusedForMs: z
    .number()
    .int()
    .min(0)
    .max(3650 * DAY)
    .default(0)
    .describe('Only what was not used for this long'),
  keepBytes: z.number().int().min(0).default(0).describe('Stop when no more than this is left'),
})
export type PruneBuildCache = z.infer<typeof PruneBuildCache>

export const BuildCachePruned = z.object({
  removed: z.number().int().min(0).describe('Entries'),
  freedBytes: z.number().int().min(0),
})
export type BuildCachePruned = z.infer<typeof BuildCachePruned>
