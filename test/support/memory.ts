// memory.ts: what this process holds on to, for tests that say that it does not grow with what flows through.
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'

setFlagsFromString('--expose-gc')
const collect: () => void = runInNewContext('gc')

/**
 * Bytes of the heap and of buffers that are held now. How much more the process has is the collector's choice: in one that
 * has run many tests it lets hundreds of MiB of buffers wait.
 */
export function heldBytes(): number {
  // The first finds what nobody holds, the second waits until it is gone.
  collect()
  collect()
  const { heapUsed, external } = process.memoryUsage()
  return heapUsed + external
}
