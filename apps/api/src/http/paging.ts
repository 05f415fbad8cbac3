// paging.ts: cursors. A list's position is the id of its last item, wrapped so that nobody builds on what is inside.
import { InvalidRequest } from '@berth/contracts'
import type { PageOf, PageRequest } from '@berth/persistence'
import type { z } from 'zod'

/**
 * @param id schema of the listed things' ids
 * @throws InvalidRequest for a cursor that no list of these things answered
 */
export function pageRequest(
  query: { readonly cursor?: string | undefined; readonly limit: number },
  id: z.ZodType<string>,
): PageRequest {
  if (query.cursor === undefined) return { limit: query.limit }
  const after = id.safeParse(Buffer.from(query.cursor, 'base64url').toString('latin1'))
  if (after.success && cursorOf(after.data) === query.cursor) return { limit: query.limit, after: after.data }
  throw new InvalidRequest([{ field: 'cursor', message: 'must be the nextCursor of an earlier answer' }])
}

const cursorOf = (id: string): string => Buffer.from(id, 'latin1').toString('base64url')

/** A page as the API answers it. */
export function pageAnswer<T>(page: PageOf<T>): { items: T[]; nextCursor: string | null } {
  return { items: [...page.items], nextCursor: page.next === null ? null : cursorOf(page.next) }
}
