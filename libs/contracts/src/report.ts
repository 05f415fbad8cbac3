import { z } from 'zod'
import { AttemptId } from './ids.js'
import { ReasonCode, ResourceUsage } from './job.js'

const about = { attemptId: AttemptId, generation: z.number().int().min(1) }

/** Timings that only the node knows, in milliseconds. */
export const NodePhases = z.object({
  placeMs: z.number().nullable(),
  rootfsMs: z.number().nullable(),
  startMs: z.number().nullable(),
  runMs: z.number().nullable(),
  finishMs: z.number().nullable(),
})
export type NodePhases = z.infer<typeof NodePhases>

/** How much of each stream travels in the report and is stored with the attempt. */
export const INLINE_OUTPUT_BYTES = 64 * 1024

/** The command runs. Repeats are harmless. */
export const AttemptStarted = z.object({ kind: z.literal('started'), ...about, at: z.iso.datetime() })
export type AttemptStarted = z.infer<typeof AttemptStarted>

/** The attempt has ended on the node and holds nothing there any more but its output. Repeats are harmless. */
export const AttemptFinished = z.object({
  kind: z.literal('finished'),
  ...about,
  outcome: z.enum(['succeeded', 'failed', 'timed_out', 'canceled', 'lost']),
  exitCode: z.number().int().min(0).max(255).nullable(),
  signal: z.string().max(16).nullable(),
  oomKilled: z.boolean(),
  reason: z.object({ code: ReasonCode, message: z.string().max(2000), by: z.string().max(64) }),
  usage: ResourceUsage.nullable(),
  phases: NodePhases,
  startedAt: z.iso.datetime().nullable(),
  finishedAt: z.iso.datetime(),
  stdout: z.base64().describe('First 64 KiB'),
  stderr: z.base64(),
})
export type AttemptFinished = z.infer<typeof AttemptFinished>

/** Everything a node may report, closed. A node can report only on attempts placed on it. */
export const NodeReport = z.discriminatedUnion('kind', [AttemptStarted, AttemptFinished])
export type NodeReport = z.infer<typeof NodeReport>
