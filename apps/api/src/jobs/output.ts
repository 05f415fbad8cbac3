// output.ts: what is known of an attempt's output without asking its node, as values.
import type { OutputStream } from '@berth/contracts'
import type { AttemptOutput } from '@berth/persistence'

/** Bytes of one stream at hand. */
export interface Kept {
  readonly data: Buffer
  /** Bytes written by the command, where that is known; else what is at hand. */
  readonly bytes: number
  /** Whether `data` is everything that is kept anywhere. */
  readonly whole: boolean
}

const ended = (attempt: AttemptOutput): boolean => attempt.state !== 'placed' && attempt.state !== 'running'

/** What is stored with an attempt; undefined while it has not ended. */
export function keptInline(attempt: AttemptOutput, stream: OutputStream): Kept | undefined {
  if (!ended(attempt)) return undefined
  const data = attempt[stream] ?? Buffer.alloc(0)
  const usage = attempt.usage?.[stream]
  return { data, bytes: usage?.bytes ?? data.length, whole: data.length >= (usage?.keptBytes ?? 0) }
}
