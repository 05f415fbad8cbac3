// ended-execs.ts: the execs of a sandbox that have ended, in the order of their ends, and which of them go when: those
// that ended too long ago, and the oldest where there are too many or they take too much. Their records are in the log;
// here is only what it takes to decide.

import { readdirSync } from 'node:fs'
import { rm } from 'node:fs/promises'
import { join } from 'node:path'
import type { ExecId } from '@berth/contracts'
import type { Logger } from '@berth/telemetry'
import type { ExecRecord } from './exec-record.js'
import type { RecordLog } from './record-log.js'

export interface EndedLimits {
  readonly ended: number
  readonly endedMs: number
  /** Records of all execs, which are mostly arguments. */
  readonly recordBytes: number
}

interface Entry {
  readonly endedAt: number
  /** Of its files; undefined where it has none. */
  readonly directory: string | undefined
  /** Bytes of output on disk. */
  readonly kept: number
}

/** Says of an exec that it cannot go now. */
type InUse = (id: ExecId) => boolean

export class EndedExecs {
  readonly #directory: string
  readonly #records: RecordLog
  readonly #limits: EndedLimits
  readonly #log: Logger
  readonly #entries = new Map<ExecId, Entry>()
  #removing: Promise<void> = Promise.resolve()

  constructor(directory: string, records: RecordLog, limits: EndedLimits, log: Logger) {
    this.#directory = directory
    this.#records = records
    this.#limits = limits
    this.#log = log
  }

  /** Takes over what was there before, and removes files of execs that are on no record. */
  load(records: readonly ExecRecord[]): void {
    for (const record of records.toSorted((a, b) => endedAt(a) - endedAt(b))) if (record.end) this.note(record)
    const known = new Set(records.map(({ directory }) => directory))
    // Dropped by an agent that was killed before it had removed them.
    for (const name of readdirSync(this.#directory))
      if (/^[0-9a-f]{16}$/.test(name) && !known.has(name)) this.removeFiles(name)
  }

  /** It has ended, or has more output than at its end. */
  note(record: ExecRecord): void {
    this.#entries.set(record.id, entryOf(record))
  }

  forget(id: ExecId): void {
    this.#entries.delete(id)
  }

  /** Drops what is too old or too much. */
  trim(nowMs: number, inUse: InUse): void {
    const { ended, endedMs, recordBytes } = this.#limits
    for (const [id, { endedAt }] of this.#entries) {
      const tooMany = this.#entries.size > ended || this.#records.bytes > recordBytes
      if (!tooMany && endedAt > nowMs - endedMs) return
      this.#drop(id, inUse)
    }
  }

  /** Bytes of output on disk, of those that are not in use. */
  outputBytes(inUse: InUse): number {
    let sum = 0
    for (const [id, { kept }] of this.#entries) if (!inUse(id)) sum += kept
    return sum
  }

  /** @returns false when there is none that can go */
  dropOldestOutput(inUse: InUse): boolean {
    for (const [id, { kept }] of this.#entries) if (kept > 0 && this.#drop(id, inUse)) return true
    return false
  }

  /** One after the other: many that expire at once should not take the disk from who waits for it. */
  removeFiles(directory: string): void {
    this.#removing = this.#removing
      .then(() => rm(join(this.#directory, directory), { recursive: true, force: true }))
      .catch((err: unknown) => this.#log.error({ directory, err }, 'exec.remove_failed'))
  }

  /** Resolves when files that were to be removed are. */
  async settled(): Promise<void> {
    await this.#removing
  }

  #drop(id: ExecId, inUse: InUse): boolean {
    const entry = this.#entries.get(id)
    if (!entry || inUse(id)) return false
    this.#records.delete(id)
    this.#entries.delete(id)
    if (entry.directory !== undefined) this.removeFiles(entry.directory)
    return true
  }
}

const endedAt = ({ end }: ExecRecord) => (end ? Date.parse(end.endedAt) : 0)

function entryOf(record: ExecRecord): Entry {
  const { end, directory, hasInput } = record
  const onDisk = (name: 'stdout' | 'stderr') => (end && !end.inline[name] ? end[name].bytes - end[name].from : 0)
  const kept = onDisk('stdout') + onDisk('stderr')
  return { endedAt: endedAt(record), directory: kept > 0 || hasInput ? directory : undefined, kept }
}
