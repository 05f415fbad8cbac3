// scan-thread.ts: a thread that answers questions about images, with one state of the operator's database or without any.
// What it takes to read one, seconds of CPU and hundreds of MiB, and what it takes to answer, which is up to whoever made
// the image, holds up no request, is bounded, and goes whole when the next state is there.
import { Worker } from 'node:worker_threads'
import { Fault } from '@berth/contracts'
import type { Answers, Kind, Questions } from './questions.js'

/** Most that a thread may hold, in MiB. Of all that OSV has of the ecosystems that are looked at it is about a third. */
const HEAP_MIB = { database: 2048, none: 512 } as const

export interface DatabaseFacts {
  readonly version: string
  readonly records: number
  readonly skipped: number
  /** Of the first ones that were skipped: file, line, and why. */
  readonly problems: readonly string[]
}

/** A thread that is there. */
export interface ScanThread {
  /** Of its database; null where it has none. */
  readonly facts: DatabaseFacts | null
  /** Whether it has ended by itself: it cannot be asked any more. */
  readonly ended: boolean
  /** @throws Fault where it ends before it has answered, or cannot */
  ask<K extends Kind>(kind: K, question: Questions[K]): Promise<Answers[K]>
  /** Ends it when it has answered what it was asked. */
  close(): void
}

export type FromThread =
  | { readonly kind: 'ready'; readonly facts: DatabaseFacts | null }
  | { readonly kind: 'failed'; readonly message: string }
  | { readonly kind: 'answer'; readonly call: number; readonly answer: Answers[Kind] }
  | { readonly kind: 'unanswered'; readonly call: number; readonly message: string }

interface Call {
  // Which answer belongs to which question only `ask` knows.
  readonly done: (answer: never) => void
  readonly failed: (error: Error) => void
}

/**
 * Starts a thread.
 * @param path of a database that it reads first; null: it has none
 * @param signal ends the reading, not what was read
 * @throws Fault saying why the database cannot be used
 */
export function startScanThread(path: string | null, signal: AbortSignal): Promise<ScanThread> {
  const worker = new Worker(new URL('./scan.thread.js', import.meta.url), {
    name: 'scan',
    workerData: { path },
    resourceLimits: { maxOldGenerationSizeMb: path === null ? HEAP_MIB.none : HEAP_MIB.database },
  })
  // It must not keep a process alive that has nothing else to do.
  worker.unref()
  const calls = new Map<number, Call>()
  const attempted = path === null ? 'look into images' : `read vulnerabilities of ${path}`
  let cause: unknown = 'its thread ended'
  let [last, ended, closing] = [0, false, false]
  // What was asked before it was closed is answered.
  const endIdle = () => void (closing && calls.size === 0 && worker.terminate())
  const take = (call: number): Call | undefined => {
    const found = calls.get(call)
    calls.delete(call)
    return found
  }
  const thread = (facts: DatabaseFacts | null): ScanThread => ({
    facts,
    get ended() {
      return ended
    },
    ask: (kind, question) =>
      new Promise((done, failed) => {
        if (ended) return failed(new Fault(attempted, { cause }))
        calls.set(++last, { done, failed })
        worker.postMessage({ ...question, kind, call: last })
      }),
    close: () => {
      closing = true
      endIdle()
    },
  })
  return new Promise((opened, failed) => {
    const stop = () => void worker.terminate()
    signal.addEventListener('abort', stop, { once: true })
    if (signal.aborted) stop()
    worker.on('error', (error) => {
      cause = error
    })
    worker.on('exit', () => {
      signal.removeEventListener('abort', stop)
      ended = true
      const fault = new Fault(attempted, { cause })
      failed(fault)
      for (const call of calls.values()) call.failed(fault)
      calls.clear()
    })
    worker.on('message', (message: FromThread) => {
      if (message.kind === 'failed') cause = message.message
      if (message.kind === 'ready') {
        signal.removeEventListener('abort', stop)
        opened(thread(message.facts))
      }
      if (message.kind === 'answer') take(message.call)?.done(message.answer as never)
      if (message.kind === 'unanswered') take(message.call)?.failed(new Fault(attempted, { cause: message.message }))
      endIdle()
    })
  })
}
