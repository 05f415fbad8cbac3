// scan.thread.ts: the thread of scan-aside.ts. Any message to it means that its caller has gone.
import { type MessagePort, parentPort, workerData } from 'node:worker_threads'
import { type ScanLayer, scan } from './scan.js'
import type { FromScan } from './scan-aside.js'

export async function work(port: MessagePort, layers: readonly ScanLayer[]): Promise<void> {
  const say = (message: FromScan) => port.postMessage(message)
  const gone = new AbortController()
  port.once('message', () => gone.abort())
  port.unref() // The thread ends with its work, told or not.
  try {
    say({ kind: 'done', contents: await scan(layers, gone.signal) })
  } catch (error) {
    say({ kind: 'failed', message: error instanceof Error ? error.message : String(error) })
  }
}

if (parentPort && workerData) void work(parentPort, workerData.layers)
