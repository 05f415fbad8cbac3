// snapshot.ts: what is made of a sandbox's files: an image (commit), more sandboxes (fork), a tar (export); and what the API
// asks a node for that. Requests to a node, below the sandbox that they are about:
//
//     POST   snapshot/commit          NodeCommit → ImageSteps
//     GET    snapshot/export          → a tar
//     POST   snapshot/hold            HoldSnapshot → HeldFiles   keeps its files as they are, for so many sandboxes to begin with
//     DELETE snapshot/hold/<id>       → 204                      nobody begins with them
import { z } from 'zod'
import { SnapshotId } from './ids.js'
import { imageProgress, Reference } from './image.js'
import { ImageDigest } from './image-node.js'
import { AbsolutePath, Argument, Environment, Signal, User } from './process.js'
import { Labels, Name, route } from './route.js'
import { ClocksChange, RestartPolicy, Sandbox, SandboxLimitsChange, sandboxParams } from './sandbox.js'
import { MiB } from './units.js'

/** What an image is to run with besides what the one that the sandbox is on says. */
export const ImageChanges = z.strictObject({
  env: Environment.optional().describe('Set besides those that the image has'),
  entrypoint: z.array(Argument).max(4096).optional().describe('Without `command` it unsets that, as in a Dockerfile'),
  command: z.array(Argument).max(4096).optional(),
  workingDir: AbsolutePath.optional(),
  user: User.optional(),
  labels: Labels.optional().describe('Set besides those that the image has'),
  exposedPorts: z
    .array(z.string().regex(/^\d{1,5}(\/(tcp|udp|sctp))?$/, 'must be like 80 or 53/udp'))
    .max(256)
    .optional()
    .describe('Besides those that the image has'),
  volumes: z.array(AbsolutePath).max(64).optional().describe('Besides those that the image has'),
  stopSignal: Signal.optional(),
})
export type ImageChanges = z.output<typeof ImageChanges>

const Text = z.string().max(4096)

/** How a node makes an image of a sandbox. */
export const NodeCommit = z.object({
  pause: z.boolean(),
  comment: Text,
  author: Text,
  changes: ImageChanges.extend({ stopSignal: z.number().int().optional() }),
  maxBytes: z.number().int().min(0).describe('Most bytes that its layer may have, for the quota of the tenant'),
})
export type NodeCommit = z.infer<typeof NodeCommit>

/** Most sandboxes of one fork. */
export const MAX_FORKS = 100

export const HoldSnapshot = z.object({
  id: SnapshotId,
  pause: z.boolean(),
  clones: z.number().int().min(1).max(MAX_FORKS).describe('How many sandboxes will begin with it'),
})
export type HoldSnapshot = z.infer<typeof HoldSnapshot>

/** What is kept. */
export const HeldFiles = z.object({ image: ImageDigest.describe('What the files are on') })
export type HeldFiles = z.infer<typeof HeldFiles>

const Pause = z.boolean().default(true).describe('Whether nothing runs in it for the moment that its files are copied')

const about = { params: sandboxParams, tag: 'sandboxes' } as const

export const commitSandbox = route({
  ...about,
  id: 'commitSandbox',
  method: 'POST',
  path: '/v1/sandboxes/:sandbox/commit',
  rate: 'write',
  scope: 'images:write',
  idempotency: 'none',
  summary: "Make an image of a sandbox's files",
  description:
    'The image that it is on with one more layer: what the sandbox has changed. One that runs is paused for some ' +
    'milliseconds, whatever its size. Volumes, tmpfs, and /etc/hosts, /etc/hostname and /etc/resolv.conf, which the ' +
    'node writes, are not in it; nor are the environment and the command of the sandbox. Takes the scope `sandboxes:read` ' +
    'too. Streams as a pull does.',
  query: z.strictObject(imageProgress.wait),
  body: z
    .strictObject({
      reference: Reference.optional().describe('Its name. Default: none, it is known by its digest'),
      comment: Text.default(''),
      author: Text.default(''),
      pause: Pause,
      changes: ImageChanges.prefault({}),
    })
    .prefault({}),
  reply: imageProgress.reply,
  errors: ['sandbox_not_found', 'wrong_state', 'image_not_found', ...imageProgress.taking],
})

export const forkSandbox = route({
  ...about,
  id: 'forkSandbox',
  method: 'POST',
  path: '/v1/sandboxes/:sandbox/fork',
  rate: 'write',
  scope: 'sandboxes:write',
  summary: "Create sandboxes that begin with a sandbox's files",
  description:
    'All of them on its node, with its files as they are at one moment, which takes as long whatever their size; what they ' +
    'change is their own. One that runs is paused for some milliseconds. All are created or none: quota and room of the ' +
    'node are for all, and its image is judged as that of a new sandbox. What runs in it is not copied.',
  body: z
    .strictObject({
      count: z.number().int().min(1).max(MAX_FORKS).default(1),
      name: Name.max(58).optional().describe('They are called so with -1, -2, …; one alone is called so'),
      start: z.boolean().default(true),
      pause: Pause,
      labels: Labels.optional().describe("Instead of the sandbox's"),
      env: Environment.optional().describe("Besides the sandbox's"),
      limits: SandboxLimitsChange.optional().describe("Over the sandbox's; its disk cannot be smaller"),
      restart: RestartPolicy.optional(),
      clocks: ClocksChange.optional().describe("Over the sandbox's"),
    })
    .prefault({}),
  bodyLimit: 4 * MiB,
  reply: { 201: z.object({ items: z.array(Sandbox) }) },
  errors: [
    ...(['sandbox_not_found', 'wrong_state', 'name_taken', 'quota_exceeded', 'policy_forbidden'] as const),
    ...(['no_capacity', 'node_unreachable', 'tenant_suspended'] as const),
    'scan_unavailable',
  ],
})

export const exportSandbox = route({
  ...about,
  id: 'exportSandbox',
  method: 'GET',
  path: '/v1/sandboxes/:sandbox/export',
  rate: 'read',
  scope: 'sandboxes:read',
  summary: 'All files of a sandbox as a tar',
  description:
    'Its root file system with the owners that the sandbox sees; no volumes, no tmpfs, nothing of /proc, /sys and /dev. ' +
    'One that runs is not paused: files that change meanwhile may be in it in part. An archive that is not whole is cut.',
  reply: { 200: 'bytes' },
  errors: ['sandbox_not_found', 'wrong_state', 'node_unreachable', 'rate_limited'],
})
