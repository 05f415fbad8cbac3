// journal.ts: what the agent remembers, as files, so that a kill -9 at any instant loses nothing.
//
//   attempts/<id>/attempt.json   the command, written before anything is done for it
//                 journal        one JSON line per step, appended before the step is taken
//                 stdout stderr  output (logs/store.ts)
//                 result.json    the end, written before it is told to anyone
//   ended/<id>/                  the same directory, renamed once the end was reported and all was released
//
// Whole files are written and renamed; the journal is appended to, and a torn last line is what did not happen. Nothing
// is fsynced: a killed process loses no page cache, and a crash of the machine ends every sandbox anyway.
// The presence of a directory is also what makes a repeated command a repeat.

import {
  appendFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { AttemptFinished, AttemptId, ignore, RunAttempt } from '@berth/contracts'
import { readJson, removeTree } from '@berth/host'
import { z } from 'zod'

const AcceptedAttempt = z.object({ command: RunAttempt, acceptedAt: z.iso.datetime() })
export type AcceptedAttempt = z.infer<typeof AcceptedAttempt>

/** What an attempt came to. The first bytes of its output are added when it is reported. */
const AttemptResult = AttemptFinished.omit({ stdout: true, stderr: true }).extend({
  /** When the agent may drop all of it even if nobody asks for that. */
  keepUntil: z.iso.datetime(),
})
export type AttemptResult = z.infer<typeof AttemptResult>

const Cancel = z.object({
  cause: z.enum(['canceled', 'deadline_exceeded']),
  by: z.string(),
  generation: z.number().int(),
})
export type Cancel = z.infer<typeof Cancel>

const JournalEntry = z.discriminatedUnion('event', [
  z.object({ event: z.literal('acquire'), step: z.string() }),
  /** The command may run from here on. `startingAt`, Unix milliseconds: when the container's start began. */
  z.object({
    event: z.literal('spawn'),
    imageMs: z.number().default(0),
    rootfsMs: z.number(),
    startingAt: z.number(),
  }),
  z.object({ event: z.literal('cancel'), cancel: Cancel }),
])
export type JournalEntry = z.infer<typeof JournalEntry>

/** All that is on disk about an unfinished attempt. Without `accepted` the agent was killed while accepting it. */
export interface AttemptRecord {
  readonly id: AttemptId
  readonly accepted: AcceptedAttempt | undefined
  readonly entries: readonly JournalEntry[]
  readonly result: AttemptResult | undefined
}

export interface AttemptPaths {
  readonly directory: string
  readonly bundle: string
  readonly socket: string
  readonly stdout: string
  readonly stderr: string
}

const DAY_MS = 86_400_000

export class Journal {
  readonly #live: string
  readonly #ended: string

  /** @param directory the agent's data directory */
  constructor(directory: string) {
    this.#live = join(directory, 'attempts')
    this.#ended = join(directory, 'ended')
    for (const path of [this.#live, this.#ended]) mkdirSync(path, { recursive: true, mode: 0o700 })
  }

  paths(id: AttemptId): AttemptPaths {
    return pathsIn(join(this.#live, id))
  }

  /** Where an attempt's output lies now; undefined when nothing is kept of it. */
  locate(id: AttemptId): AttemptPaths | undefined {
    const directory = [this.#live, this.#ended].map((parent) => join(parent, id)).find((path) => existsSync(path))
    return directory === undefined ? undefined : pathsIn(directory)
  }

  /** True when the attempt has ended, was reported and is only kept. */
  hasEnded(id: AttemptId): boolean {
    return existsSync(join(this.#ended, id))
  }

  accept(accepted: AcceptedAttempt): void {
    const { directory } = this.paths(accepted.command.attemptId)
    mkdirSync(directory, { recursive: true, mode: 0o700 })
    writeWhole(join(directory, 'attempt.json'), accepted)
  }

  /** Synchronous: when it returns, the line is there whatever happens next. */
  append(id: AttemptId, entry: JournalEntry): void {
    appendFileSync(join(this.paths(id).directory, 'journal'), `${JSON.stringify(entry)}\n`, { mode: 0o600 })
  }

  /** Also for an attempt that was never accepted: its end is then all that is known of it. */
  finish(result: AttemptResult): void {
    const { directory } = this.paths(result.attemptId)
    mkdirSync(directory, { recursive: true, mode: 0o700 })
    writeWhole(join(directory, 'result.json'), result)
  }

  /** The end of a live or ended attempt. */
  async result(id: AttemptId): Promise<AttemptResult | undefined> {
    const paths = this.locate(id)
    return paths && readJson(join(paths.directory, 'result.json'), (value) => AttemptResult.parse(value))
  }

  /** Keeps output and end only: what a command was given (environment, input) may be secret. */
  archive(id: AttemptId): void {
    const { directory } = this.paths(id)
    for (const name of ['attempt.json', 'journal']) rmSync(join(directory, name), { force: true })
    renameSync(directory, join(this.#ended, id))
  }

  /** Forgets everything about an attempt. */
  async remove(id: AttemptId): Promise<void> {
    await Promise.all([this.#live, this.#ended].map((parent) => removeTree(join(parent, id))))
  }

  /** Every attempt that was not archived. @throws Fault when a file is damaged: that is not for guessing */
  async load(): Promise<readonly AttemptRecord[]> {
    return Promise.all(attemptsIn(this.#live).map((id) => this.#read(id)))
  }

  /** Drops ended attempts whose time is over. @returns how many */
  async expire(now: Date): Promise<number> {
    let expired = 0
    for (const id of attemptsIn(this.#ended)) {
      const result = await this.result(id)
      if (result && new Date(result.keepUntil) > now) continue
      await this.remove(id)
      expired += 1
    }
    return expired
  }

  async #read(id: AttemptId): Promise<AttemptRecord> {
    const { directory } = this.paths(id)
    const read = <T>(name: string, parse: (value: unknown) => T) => readJson(join(directory, name), parse)
    return {
      id,
      accepted: await read('attempt.json', (value) => AcceptedAttempt.parse(value)),
      entries: parseEntries(readText(join(directory, 'journal'))),
      result: await read('result.json', (value) => AttemptResult.parse(value)),
    }
  }
}

/**
 * Synchronous like all small writes here: measured on the way of every job, 0.2 ms instead of 1.1 ms, since each
 * asynchronous call waits for a thread to wake. The one writer of a file is its sandbox, so the name is enough.
 */
export function writeWhole(path: string, value: unknown): void {
  writeFileSync(`${path}.new`, JSON.stringify(value), { mode: 0o600 })
  renameSync(`${path}.new`, path)
}

/** Past its job's retention nobody asks for the output; a day more, in case clocks differ. */
export const keepUntil = (finishedAt: Date, retentionMs: number) =>
  new Date(finishedAt.getTime() + retentionMs + DAY_MS).toISOString()

const pathsIn = (directory: string): AttemptPaths => ({
  directory,
  bundle: join(directory, 'bundle'),
  socket: join(directory, 'init.sock'),
  stdout: join(directory, 'stdout'),
  stderr: join(directory, 'stderr'),
})

const attemptsIn = (directory: string): readonly AttemptId[] =>
  readdirSync(directory).flatMap((name) => {
    const id = AttemptId.safeParse(name)
    return id.success ? [id.data] : []
  })

function readText(path: string): string {
  try {
    return readFileSync(path, 'utf8')
  } catch (error) {
    return ignore(error, 'ENOENT') ?? ''
  }
}

/** A last line without its newline was being written when the agent was killed: the step was not taken. */
const parseEntries = (text: string): readonly JournalEntry[] =>
  text
    .split('\n')
    .slice(0, -1)
    .map((line) => JournalEntry.parse(JSON.parse(line)))
