// scan.thread.ts: the thread of scan-thread.ts.
import { createHash } from 'node:crypto'
import { closeSync, openSync, readSync } from 'node:fs'
import { StringDecoder } from 'node:string_decoder'
import { type MessagePort, parentPort, workerData } from 'node:worker_threads'
import { Fault, MiB } from '@berth/contracts'
import { type JsonValue, JsonValues, keptOf, OsvRecord, Vulnerabilities } from '@berth/scan'
import { Answering } from './answering.js'
import { filesOf } from './database-files.js'
import type { Question } from './questions.js'
import type { FromThread } from './scan-thread.js'

/** Characters of one record; the largest of OSV's have some. */
const MAX_RECORD = 16 * MiB

/** How archives of zip and gzip begin, read as text. */
const packed = ['PK\u0003\u0004', '\u001f\ufffd']
/** Most that is told of what is no record. */
const MAX_PROBLEMS = 10

export interface Loaded {
  readonly vulnerabilities: Vulnerabilities
  /** The same for the same bytes. */
  readonly version: string
  /** What is no record, or too large to be one. */
  readonly skipped: number
  /** Of the first ones: file, line, and why. */
  readonly problems: readonly string[]
}

/**
 * Reads all records that are of use.
 * @throws Fault where there is nothing, nothing that can be used, or a file that ends within one of its records, as one that
 * is still being written does
 */
export async function loadDatabase(path: string): Promise<Loaded> {
  const reading = new Reading(path)
  for (const file of await filesOf(path)) reading.read(file)
  return reading.loaded()
}

class Reading {
  private readonly vulnerabilities = new Vulnerabilities()
  private readonly hash = createHash('sha256')
  private readonly problems: string[] = []
  private readonly buffer = Buffer.allocUnsafe(1 * MiB)
  private skipped = 0

  constructor(private readonly path: string) {}

  read(file: string): void {
    const values = new JsonValues(MAX_RECORD)
    let isFirst = true
    for (const piece of this.pieces(file)) {
      if (isFirst && packed.some((start) => piece.startsWith(start)))
        throw this.unusable(`${file} is packed; unpack it`)
      isFirst = false
      this.hash.update(piece)
      for (const value of values.push(piece)) this.take(file, value)
    }
    const open = values.end()
    if (open && values.isOneOfSeveral)
      throw this.unusable(`${file} is not whole: ${open.problem}, in line ${open.line}`)
    if (open) this.take(file, open)
  }

  /** UTF-8 as text. Nothing else happens in this thread meanwhile, and a stream for each of some 300,000 files takes minutes. */
  private *pieces(file: string): Generator<string> {
    const decoder = new StringDecoder('utf8')
    const descriptor = openSync(file, 'r')
    try {
      for (;;) {
        const bytes = readSync(descriptor, this.buffer)
        if (bytes === 0) break
        yield decoder.write(this.buffer.subarray(0, bytes))
      }
    } finally {
      closeSync(descriptor)
    }
    yield decoder.end()
  }

  loaded(): Loaded {
    const { vulnerabilities, hash, skipped, problems } = this
    if (vulnerabilities.records === 0)
      throw this.unusable(`no record of use is in it; ${[`${skipped} are none`, ...problems].join('; ')}`)
    return { vulnerabilities, version: hash.digest('hex').slice(0, 16), skipped, problems }
  }

  private take(file: string, { line, text, problem }: JsonValue): void {
    const record = text === undefined ? undefined : OsvRecord.safeParse(jsonOf(text))
    if (record?.success) {
      this.vulnerabilities.add(keptOf(record.data))
      return
    }
    this.skipped++
    if (this.problems.length === MAX_PROBLEMS) return
    const [issue] = record?.error.issues ?? []
    const why = issue ? `${issue.path.join('.')} ${issue.message}`.trim() : problem
    this.problems.push(`${file}:${line}: ${why}`.slice(0, 512))
  }

  private unusable(cause: string): Fault {
    return new Fault(`read vulnerabilities of ${this.path}`, { cause })
  }
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
      ...{ skipped: loaded.skipped, problems: loaded.problems },
    }
    say({ kind: 'ready', facts })
  } catch (error) {
    say({ kind: 'failed', message: reasonOf(error instanceof Fault ? error.cause : error) })
  }
}

const reasonOf = (error: unknown): string => (error instanceof Error ? error.message : String(error))

if (parentPort && workerData) void serve(parentPort, workerData.path)
