// exec-record.ts: what is on disk about an exec, so that another agent process can go on with it. Written before it is
// started, again when it has ended, and once more where something it left behind held its output beyond that.
//
// The environment and a whole input are left out: they may be secret, and whoever is to run the command has them by then.

import { Exec, ExecId, InlineStream } from '@berth/contracts'
import { z } from 'zod'

/** A whole stream that is too small for a file. */
const Inline = InlineStream.pick({ data: true, encoding: true }).nullable()
export type Inline = z.infer<typeof Inline>

const StreamEnd = z.object({ bytes: z.number().int(), from: z.number().int() })

/** How it ended: what `Exec` tells of it. */
export const ExecEnd = Exec.pick({
  exitCode: true,
  signal: true,
  timedOut: true,
  oomKilled: true,
  message: true,
  usage: true,
}).extend({
  state: Exec.shape.state.exclude(['running']),
  endedAt: z.iso.datetime(),
  stdout: StreamEnd,
  stderr: StreamEnd,
  stdinBytes: z.number().int(),
  pid: z.number().int().nullable(),
  inline: z.object({ stdout: Inline, stderr: Inline }),
})
export type ExecEnd = z.infer<typeof ExecEnd>

export const ExecRecord = z.object({
  id: ExecId,
  /** Of the process, for its driver; null where there was none to start. */
  number: z.number().int().min(1).nullable(),
  driver: z.enum(['init', 'oci']),
  /** Of its output, below the directory of execs. */
  directory: z.string().regex(/^[0-9a-f]{16}$/),
  /** Of the request, where its caller chose the id. */
  digest: z.string().nullable(),
  spec: Exec.shape.spec,
  /** The whole input came with the request, and is in its directory. */
  hasInput: z.boolean(),
  /** Where the input ends, once that was said. */
  inputEnd: z.number().int().nullable(),
  createdAt: z.iso.datetime(),
  end: ExecEnd.nullable(),
  /** It has ended, and something that it left behind may still write to its output. */
  held: z.boolean(),
})
export type ExecRecord = z.infer<typeof ExecRecord>
