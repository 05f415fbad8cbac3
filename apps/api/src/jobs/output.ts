// output.ts: what is known of an attempt's output without asking its node, as values.
import { isUtf8 } from 'node:buffer'
import type { InlineStream, OutputStream } from '@berth/contracts'
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

/**
 * A stream as JSON holds it: text where the bytes are UTF-8, else base64. A character that was cut in half at the end
 * of a part is left out rather than making all of it base64.
 */
export function inlineStream({ data, bytes }: Pick<Kept, 'data' | 'bytes'>): InlineStream {
  const part = data.length < bytes ? withoutCutCharacter(data) : data
  const encoding = isUtf8(part) ? 'utf8' : 'base64'
  return { data: part.toString(encoding), encoding, bytes, truncated: part.length < bytes }
}

/** Drops an incomplete UTF-8 sequence (RFC 3629) at the end, where that is all that keeps the rest from being UTF-8. */
function withoutCutCharacter(data: Buffer): Buffer {
  for (let back = 1; back <= Math.min(3, data.length); back++) {
    const byte = data[data.length - back] ?? 0
    if ((byte & 0xc0) === 0x80) continue
    const length = byte >= 0xf0 ? 4 : byte >= 0xe0 ? 3 : byte >= 0xc0 ? 2 : 1
    if (length <= back) return data
    const shorter = data.subarray(0, data.length - back)
    return isUtf8(shorter) ? shorter : data
  }
  return data
}
