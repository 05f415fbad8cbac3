// database.ts: one state of the operator's database, in a thread of its own: what it takes to read one, seconds of CPU and
// hundreds of MiB, holds up no request, is bounded, and goes whole when the next state is there.
import { Worker } from 'node:worker_threads'
import { Fault, type ImageContents, type ImageVulnerability } from '@berth/contracts'

/** Most that a database may hold, in MiB. */
const HEAP_MIB = 2048

/** What is matched of an image. */
export type Matched = Pick<ImageContents, 'packages' | 'distribution'>

export interface DatabaseFacts {
  readonly version: string
  readonly records: number
  readonly skipped: number
}

/** A state of the database that is there. */
export interface OpenDatabase {
  readonly facts: DatabaseFacts
  /** @throws Fault where the thread ends before it has answered */
  match(image: Matched): Promise<readonly ImageVulnerability[]>
  /** Whether it has ended by itself: it cannot be asked any more. */
  readonly ended: boolean
  /** Ends it when it has answered what it was asked. */
  close(): void
}

export type Answer =
  | { readonly kind: 'loaded'; readonly facts: DatabaseFacts }
  | { readonly kind: 'failed'; readonly message: string }
  | { readonly kind: 'matched'; readonly call: number; readonly found: readonly ImageVulnerability[] }

interface Call {
  readonly done: (found: readonly ImageVulnerability[]) => void
  readonly failed: (error: Error) => void
}

/** Reads a database. @param signal ends the reading, not what was read. @throws Fault saying why it cannot be used */
export function openDatabase(path: string, signal: AbortSignal): Promise<OpenDatabase> {
  const worker = new Worker(new URL('./database.thread.js', import.meta.url), {
    name: 'vulnerabilities',
    workerData: path,
    resourceLimits: { maxOldGenerationSizeMb: HEAP_MIB },
  })
  // It must not keep a process alive that has nothing else to do.
  worker.unref()
  const calls = new Map<number, Call>()
  let [last, ended, closing] = [0, false, false]
  // What was asked before it was closed is answered.
  const endIdle = () => void (closing && calls.size === 0 && worker.terminate())
  return new Promise((opened, failed) => {
    const stop = () => void worker.terminate()
    signal.addEventListener('abort', stop, { once: true })
    let cause: unknown = 'its thread ended'
    worker.on('error', (error) => {
      cause = error
    })
    worker.on('exit', () => {
      signal.removeEventListener('abort', stop)
      ended = true
      const fault = new Fault(`read vulnerabilities of ${path}`, { cause })
      failed(fault)
      for (const call of calls.values()) call.failed(fault)
      calls.clear()
    })
    const open = (facts: DatabaseFacts): OpenDatabase => ({
      facts,
      match: ({ packages, distribution }) =>
        new Promise((done, refuse) => {
          if (ended) return refuse(new Fault(`look for vulnerabilities in ${path}`, { cause }))
          calls.set(++last, { done, failed: refuse })
          worker.postMessage({ call: last, packages, distribution })
        }),
      get ended() {
        return ended
      },
      close: () => {
        closing = true
        endIdle()
      },
    })
    worker.on('message', (answer: Answer) => {
      if (answer.kind === 'loaded') {
        signal.removeEventListener('abort', stop)
        opened(open(answer.facts))
        return
      }
      if (answer.kind === 'failed') {
        cause = answer.message
        return
      }
      calls.get(answer.call)?.done(answer.found)
      calls.delete(answer.call)
      endIdle()
    })
  })
}
