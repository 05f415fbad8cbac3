// text.ts: bytes of a stream as JSON can hold them: text where they are UTF-8 (RFC 3629), else base64. A part of a stream
// may begin or end in the middle of a character; that alone must not make all of it base64.
import { isUtf8 } from 'node:buffer'
import type { InlineStream } from '@berth/contracts'

/** A part of a stream that has `bytes` so far. */
export interface Part {
  readonly data: Buffer
  /** Offset of its first byte. Default: 0 */
  readonly from?: number
  readonly bytes: number
}

/** A stream as JSON holds it. Characters that are cut in half at an end of the part are left out. */
export function inlineStream({ data, from = 0, bytes }: Part): InlineStream {
  const begun = from > 0 ? data.subarray(cutAtStart(data)) : data
  const part = from + data.length < bytes ? begun.subarray(0, begun.length - cutAtEnd(begun)) : begun
  return { ...encoded(part), bytes, truncated: part.length < bytes }
}

/** Bytes whole, as text if they are. */
export function encoded(bytes: Buffer): Pick<InlineStream, 'data' | 'encoding'> {
  const encoding = isUtf8(bytes) ? 'utf8' : 'base64'
  return { data: bytes.toString(encoding), encoding }
}

/**
 * How many bytes at the end are the beginning of a character, where they are all that keeps the rest from being UTF-8.
 * @returns 0 to 3
 */
export function cutAtEnd(data: Buffer): number {
  for (let back = 1; back <= Math.min(3, data.length); back++) {
    const byte = data[data.length - back] ?? 0
    if ((byte & 0xc0) === 0x80) continue
    const length = byte >= 0xf0 ? 4 : byte >= 0xe0 ? 3 : byte >= 0xc0 ? 2 : 1
    if (length <= back) return 0
    return isUtf8(data.subarray(0, data.length - back)) ? back : 0
  }
  return 0
}

/** How many bytes at the start are the end of a character, where the rest (up to one cut at its end) is UTF-8. */
function cutAtStart(data: Buffer): number {
  let front = 0
  while (front < Math.min(3, data.length) && ((data[front] ?? 0) & 0xc0) === 0x80) front++
  const rest = data.subarray(front)
  return isUtf8(rest.subarray(0, rest.length - cutAtEnd(rest))) ? front : 0
}
