import { z } from 'zod'
import { AttemptId, JobId, NodeId, SandboxId, SnapshotId, TenantId } from './ids.js'
import { ImageDigest } from './image-node.js'
import { JobSpec } from './job.js'
import { SandboxDesired, SandboxReasonCode, SandboxSpec } from './sandbox.js'

/** Host ids of a tenant: 0 … count-1 inside a sandbox are base … base+count-1 outside. */
export const IdRange = z.object({ base: z.number().int().min(65_536), count: z.number().int().min(1) })
export type IdRange = z.infer<typeof IdRange>

/** What all sandboxes of one tenant on one node are held to by their parent cgroup. */
export const TenantLimits = z.object({
  memoryBytes: z.number().int().min(0),
  cpus: z.number().min(0),
  pids: z.number().int().min(0),
})
export type TenantLimits = z.infer<typeof TenantLimits>

const addressed = { nodeId: NodeId, attemptId: AttemptId, generation: z.number().int().min(1) }

/**
 * Run an attempt. Idempotent: an agent that knows the attempt, in whatever state, does nothing but report that state
 * again. `generation` grows with every change of what is wanted of the attempt; a lower one than seen is dropped.
 */
export const RunAttempt = z.object({
  kind: z.literal('run'),
  ...addressed,
  jobId: JobId,
  tenantId: TenantId,
  ids: IdRange,
  tenantLimits: TenantLimits,
  image: ImageDigest.optional().describe(
    'What the image of the spec was resolved to, for this tenant. Without it the node looks among its base images only',
  ),
  spec: JobSpec,
  placedAt: z.iso.datetime(),
})
export type RunAttempt = z.infer<typeof RunAttempt>

/** End an attempt: SIGTERM, then SIGKILL after its grace. Unknown attempts are remembered as not to be run. */
export const CancelAttempt = z.object({
  kind: z.literal('cancel'),
  ...addressed,
  cause: z.enum(['canceled', 'deadline_exceeded']),
  by: z.string(),
})
export type CancelAttempt = z.infer<typeof CancelAttempt>

/** Drop what the node keeps of an ended attempt (its output); it will not be asked for again. */
export const ForgetAttempt = z.object({ kind: z.literal('forget'), ...addressed })
export type ForgetAttempt = z.infer<typeof ForgetAttempt>

/**
 * What is wanted of a sandbox, whole: the agent compares it with what is and does what is missing, so any command may be
 * lost, repeated or overtaken. `generation` grows with every change of what is wanted; a lower one than seen is dropped.
 *
 * `run` counts starts by request: a higher one than the node has carried out, with `desired` running, is a start (after
 * a stop, where it still runs). With the same run and `desired` running, a sandbox that has ended stays ended: that its
 * process ended is reported, and the API then wants it stopped. One that is `known` and that the node does not know has
 * lost its files: the node does not make it, and its heartbeats leave it out, so that the API gives it up.
 */
export const ApplySandbox = z.object({
  kind: z.literal('sandbox'),
  nodeId: NodeId,
  sandboxId: SandboxId,
  generation: z.number().int().min(1),
  tenantId: TenantId,
  ids: IdRange,
  tenantLimits: TenantLimits,
  tenantTerminals: z.number().int().min(0).describe('How many terminals the tenant may have open on this node'),
  image: ImageDigest.optional().describe(
    'What the image of the spec was resolved to, for this tenant. Without it the node looks among its base images only',
  ),
  snapshot: SnapshotId.optional().describe(
    'Kept by the node: the files that it begins with, and the image that they are on',
  ),
  spec: SandboxSpec,
  desired: SandboxDesired,
  known: z
    .boolean()
    .describe('Whether the node has told of it before: one that it does not know then is lost, and not made anew'),
  run: z.number().int().min(0),
  stop: z
    .object({
      graceMs: z.number().int().min(0).nullable().describe("Null: the spec's"),
      signal: z.number().int().min(1).max(64).nullable().describe("Null: the spec's, else the image's"),
      reason: z.object({ code: SandboxReasonCode, message: z.string().max(2000), by: z.string().max(64) }),
    })
    .describe('How, and why, a run ends that this command ends'),
  requestedAt: z.iso.datetime().describe('When the caller asked for what is new in this generation'),
  clocksFrom: z.iso.datetime().describe('When a clock was last set: none counts from before'),
})
export type ApplySandbox = z.infer<typeof ApplySandbox>

/** Everything the API may ask of a node, closed: a new kind does not compile until the agent handles it. */
export const NodeCommand = z.discriminatedUnion('kind', [RunAttempt, CancelAttempt, ForgetAttempt, ApplySandbox])
export type NodeCommand = z.infer<typeof NodeCommand>

/** Id of the attempt or sandbox that a command is about. */
export const commandSubject = (command: NodeCommand): AttemptId | SandboxId =>
  command.kind === 'sandbox' ? command.sandboxId : command.attemptId
