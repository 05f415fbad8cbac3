/** A stretch of a list, newest first: at most `limit` items older than the item with id `after`. */
export interface PageRequest {
  readonly after?: string | undefined
  readonly limit: number
}

/** `next` is the `after` of the following page; null on the last one. */
export interface PageOf<T> {
  readonly items: readonly T[]
  readonly next: string | null
}
