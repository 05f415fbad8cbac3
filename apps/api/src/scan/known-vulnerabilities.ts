// known-vulnerabilities.ts: the operator's database as it is now. It is read again when its files change; until the new
// state is whole, and where it cannot be used, the old one holds.
import { Failure, Fault, invariant, type VulnerabilityDatabase } from '@berth/contracts'
import type { Clock, Logger } from '../tokens.js'
import type { Answers, KnownKind, Questions } from './questions.js'
import type { ScanThread } from './scan-thread.js'

/** How long a request waits for the first state to be read. */
const FIRST_MS = 30_000

export interface DatabaseSource {
  /** Undefined: the operator has given none. */
  readonly path: string | undefined
  readonly signature: (path: string) => Promise<string | undefined>
  readonly open: (path: string, signal: AbortSignal) => Promise<ScanThread>
  readonly clock: Clock
  readonly log: Logger
}

interface State {
  readonly database: VulnerabilityDatabase
  readonly thread: ScanThread
}

export class KnownVulnerabilities {
  private state: State | undefined
  /** Null before the first look. */
  private signature: string | undefined | null = null
  private problem = 'it has not been read yet'
  private readonly first: Promise<void>
  private tried: () => void = () => undefined
  private readonly ending = new AbortController()

  constructor(private readonly source: DatabaseSource) {
    this.first = new Promise((done) => {
      this.tried = done
    })
  }

  /** Whether the operator has given any. */
  get isGiven(): boolean {
    return this.source.path !== undefined
  }

  /** Reads the files if they are others than before. Call it every few seconds. Never rejects for what is in them. */
  async check(): Promise<void> {
    const { path, signature, log } = this.source
    if (path === undefined || this.ending.signal.aborted) return
    try {
      const now = await signature(path)
      const isLost = this.state?.thread.ended === true
      if (now === this.signature && !isLost) return
      if (isLost) this.state = undefined
      this.signature = now
      if (now === undefined) throw new Fault('read vulnerabilities', { cause: `there is no ${path}` })
      await this.read(path)
    } catch (err) {
      this.problem = err instanceof Error ? err.message : String(err)
      log.error({ err, path }, 'vulnerabilities.failed')
    } finally {
      this.tried()
    }
  }

  /** What is known of an image, and to which state of the database. @throws scan_unavailable where there is none */
  async ask<K extends KnownKind>(
    kind: K,
    question: Questions[K],
  ): Promise<{ readonly database: VulnerabilityDatabase; readonly answer: Answers[K] }> {
    for (;;) {
      const { database, thread } = await this.current()
      try {
        return { database, answer: await thread.ask(kind, question) }
      } catch (error) {
        // It may have ended because another state took its place.
        if (this.state === undefined || this.state.thread === thread) throw error
      }
    }
  }

  /** The database as it is now. @throws scan_unavailable */
  async database(): Promise<VulnerabilityDatabase> {
    return (await this.current()).database
  }

  /** Ends what is being read, too. */
  close(): void {
    this.ending.abort()
    this.state?.thread.close()
    this.state = undefined
    this.problem = 'the API ends'
  }

  private async read(path: string): Promise<void> {
    const { open, clock, log } = this.source
    const started = clock.now().getTime()
    const thread = await open(path, this.ending.signal)
    invariant(thread.facts, 'a thread that was given a database has one')
    const before = this.state
    const { version, records, skipped, problems } = thread.facts
    const loadedAt = clock.now()
    this.state = { thread, database: { version, records, loadedAt: loadedAt.toISOString() } }
    const told = { version, records, skipped, ...(skipped > 0 && { problems }) }
    log.info({ ...told, ms: loadedAt.getTime() - started }, 'vulnerabilities.loaded')
    before?.thread.close()
  }

  private async current(): Promise<State> {
    const { path } = this.source
    if (path === undefined)
      throw new Failure('scan_unavailable', 'the operator has given no database of vulnerabilities')
    if (!this.state) await this.firstTry()
    if (this.state) return this.state
    throw new Failure('scan_unavailable', `the database of vulnerabilities cannot be used now: ${this.problem}`)
  }

  private async firstTry(): Promise<void> {
    let timer: NodeJS.Timeout | undefined
    const late = new Promise<void>((done) => {
      timer = setTimeout(done, FIRST_MS)
    })
    await Promise.race([this.first, late])
    clearTimeout(timer)
  }
}
