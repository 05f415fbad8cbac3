// scan.thread.ts: the thread of scan-aside.ts. It is ended from outside where its caller goes.
import { type MessagePort, parentPort, workerData } from 'node:worker_threads'
import { type ScanLayer, scan } from './scan.js'
import type { FromScan } from './scan-aside.js'

async function work(port: MessagePort, layers: readonly ScanLayer[]): Promise<void> {
  const say = (message: FromScan) => port.postMessage(message)
  try {
    say({ kind: 'done', contents: await scan(layers, new AbortController().signal) })
  } catch (error) {
    say({ kind: 'failed', message: error instanceof Error ? error.message : String(error) })
  }
}

if (parentPort && workerData) void work(parentPort, workerData.layers)
