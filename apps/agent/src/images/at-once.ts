// at-once.ts: some pieces of work at once.

/** Works on items, some at once; the first that fails stops the others, which have ended when this rejects. */
export async function atOnce<T, R>(
  most: number,
  items: readonly T[],
  signal: AbortSignal,
  work: (item: T, signal: AbortSignal) => Promise<R>,
): Promise<readonly R[]> {
  const failing = new AbortController()
  const either = AbortSignal.any([signal, failing.signal])
  const results: R[] = []
  let next = 0
  const worker = async () => {
    while (next < items.length) {
      either.throwIfAborted()
      const index = next++
      const item = items[index]
      if (item !== undefined) results[index] = await work(item, either)
    }
  }
  const workers = Array.from({ length: Math.min(most, items.length) }, () =>
    worker().catch((error: unknown) => {
      if (!failing.signal.aborted) failing.abort(error)
      throw error
    }),
  )
  await Promise.allSettled(workers)
  if (signal.aborted) throw signal.reason
  if (failing.signal.aborted) throw failing.signal.reason
  return results
}
