import { z } from 'zod'
import { LimitHit } from './event.js'
import { AttemptId, SandboxId } from './ids.js'
import { ReasonCode, ResourceUsage } from './job.js'
import { Clocks, SandboxEnd, SandboxPhase, SandboxPhases, SandboxReason, SandboxState } from './sandbox.js'

const about = { attemptId: AttemptId, generation: z.number().int().min(1) }

/** Timings that only the node knows, in milliseconds. */
export const NodePhases = z.object({
  placeMs: z.number().nullable(),
  imageMs: z.number().nullable().default(null),
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

/** Something worth an event that is no change of state; told once, by its number. */
export const SandboxNote = z.object({
  number: z.number().int().min(1).describe('Grows with every note of the sandbox'),
  at: z.iso.datetime(),
  about: z.discriminatedUnion('kind', [
    z.object({ kind: z.literal('limit_hit'), limit: LimitHit }),
    z.object({ kind: z.literal('warning'), clock: Clocks.keyof(), endsAt: z.iso.datetime() }),
  ]),
})
export type SandboxNote = z.infer<typeof SandboxNote>

/**
 * What a sandbox is now, whole: a report that is lost is made good by the next. `sequence` grows with every change on the
 * node, so that the API drops what was overtaken. Ends and notes are repeated until a report with them was stored, and
 * are recognised by their numbers.
 */
export const SandboxReport = z.object({
  kind: z.literal('sandbox'),
  sandboxId: SandboxId,
  generation: z.number().int().min(1).describe('The newest seen'),
  sequence: z.number().int().min(1),
  state: SandboxState.exclude(['lost']),
  phase: SandboxPhase,
  reason: SandboxReason.nullable(),
  run: z.number().int().min(0),
  restarts: z.number().int().min(0),
  phases: SandboxPhases,
  startedAt: z.iso.datetime().nullable(),
  endedAt: z.iso.datetime().nullable(),
  lastActivityAt: z.iso.datetime().nullable(),
  endsAt: z.object({ at: z.iso.datetime(), clock: Clocks.keyof() }).nullable(),
  ends: z.array(SandboxEnd).max(100),
  notes: z.array(SandboxNote).max(100),
})
export type SandboxReport = z.infer<typeof SandboxReport>

/** Everything a node may report, closed. A node can report only on what is placed on it. */
export const NodeReport = z.discriminatedUnion('kind', [AttemptStarted, AttemptFinished, SandboxReport])
export type NodeReport = z.infer<typeof NodeReport>

/** Id of the attempt or sandbox that a report is about. */
export const reportSubject = (report: NodeReport): AttemptId | SandboxId =>
  report.kind === 'sandbox' ? report.sandboxId : report.attemptId
