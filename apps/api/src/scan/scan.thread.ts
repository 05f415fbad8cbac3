// scan.thread.ts: the thread of scan-thread.ts.
import { createHash, type Hash } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { type MessagePort, parentPort, workerData } from 'node:worker_threads'
import { Fault, MiB } from '@berth/contracts'
import { JsonValues, keptOf, OsvRecord, Vulnerabilities } from '@berth/scan'
import { Answering } from './answering.js'
import { filesOf } from './database-files.js'
import type { Question } from './questions.js'
import type { FromThread } from './scan-thread.js'

/** Characters of one record; the largest of OSV's have some. */
const MAX_RECORD = 16 * MiB

export interface Loaded {
  readonly vulnerabilities: Vulnerabilities
  /** The same for the same bytes. */
  readonly version: string
  /** What is no record, or too large to be one. */
  readonly skipped: number
}

/**
 * Reads all records that are of use.
 * @throws Fault where there is nothing, or nothing that can be used
 */
export async function loadDatabase(path: string): Promise<Loaded> {
  const reading = { vulnerabilities: new Vulnerabilities(), hash: createHash('sha256'), skipped: 0 }
  for (const file of await filesOf(path)) await readFile(file, reading)
  const { vulnerabilities, hash, skipped } = reading
  if (vulnerabilities.records === 0)
    throw new Fault(`read vulnerabilities of ${path}`, { cause: `no record of use is in it; ${skipped} are none` })
  return { vulnerabilities, version: hash.digest('hex').slice(0, 16), skipped }
}

async function readFile(
  path: string,
  reading: { vulnerabilities: Vulnerabilities; hash: Hash; skipped: number },
): Promise<void> {
  const values = new JsonValues(MAX_RECORD)
  const pieces = createReadStream(path, { encoding: 'utf8', highWaterMark: 1 * MiB })
  for await (const piece of pieces) {
    reading.hash.update(piece)
    for (const text of values.push(piece)) {
      const record = OsvRecord.safeParse(jsonOf(text))
      if (record.success) reading.vulnerabilities.add(keptOf(record.data))
      else reading.skipped++
    }
  }
  reading.skipped += values.dropped
}

function jsonOf(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return undefined // which no schema takes
  }
}

async function serve(port: MessagePort, path: string | null): Promise<void> {
  const say = (message: FromThread) => port.postMessage(message)
  try {
    const loaded = path === null ? null : await loadDatabase(path)
    const answering = new Answering(loaded?.vulnerabilities)
    port.on('message', ({ call, ...question }: Question & { readonly call: number }) => {
      try {
        say({ kind: 'answer', call, answer: answering.answer(question) })
      } catch (error) {
        say({ kind: 'unanswered', call, message: reasonOf(error) })
      }
    })
    const facts = loaded && {
      version: loaded.version,
      records: loaded.vulnerabilities.records,
      skipped: loaded.skipped,
    }
    say({ kind: 'ready', facts })
  } catch (error) {
    say({ kind: 'failed', message: reasonOf(error instanceof Fault ? error.cause : error) })
  }
}

const reasonOf = (error: unknown): string => (error instanceof Error ? error.message : String(error))

if (parentPort && workerData) void serve(parentPort, workerData.path)
