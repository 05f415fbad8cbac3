// etag.ts: versions of objects in headers (RFC 9110, 8.8.3 and 13.1.1).
import { InvalidRequest } from '@berth/contracts'

export const etagOf = (version: number): string => `"${version}"`

/**
 * The version that `If-Match` asks for; undefined where any will do.
 * @throws InvalidRequest for what no answer's ETag was
 */
export function ifMatch(header: string | undefined): number | undefined {
  if (header === undefined || header.trim() === '*') return undefined
  const [, version] = /^"(\d{1,10})"$/.exec(header.trim()) ?? []
  if (version !== undefined) return Number(version)
  throw new InvalidRequest([{ field: 'If-Match', message: 'must be the ETag of an earlier answer, or *' }])
}
