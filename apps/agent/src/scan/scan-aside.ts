// scan-aside.ts: images are read in a thread of their own, one that is there for as long: whatever is in one, it holds up
// nothing that the agent does, and takes no more memory than it may.
import { Worker } from 'node:worker_threads'
import { Failure, Fault, type ImageContents } from '@berth/contracts'
import type { ScanLayer } from './scan.js'

const HEAP_MIB = 512
/** A thread that is asked to stop ends the programs that it runs, which it would leave if it were just ended. */
const STOP_MS = 1000

export type FromScan =
  | { readonly kind: 'done'; readonly contents: ImageContents }
  | { readonly kind: 'failed'; readonly message: string }

/**
 * Reads what is installed in layers, as `scan` does.
 * @throws what `signal` is aborted with; scan_unavailable where it takes more memory than it may; Fault
 */
export function scanAside(layers: readonly ScanLayer[], signal: AbortSignal): Promise<ImageContents> {
  signal.throwIfAborted()
  const worker = new Worker(new URL('./scan.thread.js', import.meta.url), {
    name: 'scan',
    workerData: { layers },
    resourceLimits: { maxOldGenerationSizeMb: HEAP_MIB },
  })
  return new Promise((done, failed) => {
    let reason: Error = new Fault('read an image', { cause: 'its thread ended' })
    let grace: NodeJS.Timeout | undefined
    const stop = () => {
      worker.postMessage('stop')
      grace = setTimeout(() => void worker.terminate(), STOP_MS)
    }
    signal.addEventListener('abort', stop, { once: true })
    worker.on('message', (message: FromScan) => {
      if (message.kind === 'done') done(message.contents)
      else reason = new Fault('read an image', { cause: message.message })
    })
    worker.on('error', (error) => {
      reason = new Failure('scan_unavailable', `the image could not be read: ${error.message}`)
    })
    worker.on('exit', () => {
      signal.removeEventListener('abort', stop)
      clearTimeout(grace)
      // Nothing comes of this where it is done.
      failed(signal.aborted ? signal.reason : reason)
    })
  })
}
