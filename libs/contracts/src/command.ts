import { z } from 'zod'
import { AttemptId, JobId, NodeId, TenantId } from './ids.js'
import { JobSpec } from './job.js'

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

/** Everything the API may ask of a node, closed: a new kind does not compile until the agent handles it. */
export const NodeCommand = z.discriminatedUnion('kind', [RunAttempt, CancelAttempt, ForgetAttempt])
export type NodeCommand = z.infer<typeof NodeCommand>
