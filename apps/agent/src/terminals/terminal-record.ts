// terminal-record.ts: what is on disk about a terminal, so that another agent process can go on with it. Written before it
// is started, when its size changes, and again when it has ended. The environment is left out: it may be secret.

import { Terminal, TerminalId } from '@berth/contracts'
import { z } from 'zod'

export const TerminalRecord = z.object({
  id: TerminalId,
  /** Of the process, for berth-init; null where there was none to start. */
  number: z.number().int().min(1).nullable(),
  /** Of its output, below the directory of terminals. */
  directory: z.string().regex(/^[0-9a-f]{16}$/),
  /** Of the request, where its caller chose the id. */
  digest: z.string().nullable(),
  spec: Terminal.shape.spec,
  rows: z.number().int(),
  columns: z.number().int(),
  createdAt: z.iso.datetime(),
  end: Terminal.pick({ exitCode: true, signal: true, message: true, bytes: true })
    .extend({ title: z.string(), endedAt: z.iso.datetime() })
    .nullable(),
})
export type TerminalRecord = z.infer<typeof TerminalRecord>
