// plain-thread.ts: the thread that answers what needs no database: started when it is first asked, ended when nobody has
// asked for a while.
import { Injectable } from '@nestjs/common'
import { Drain } from '../operations/drain.js'
import type { Answers, Kind, KnownKind, Questions } from './questions.js'
import { type ScanThread, startScanThread } from './scan-thread.js'

const IDLE_MS = 60_000

@Injectable()
export class PlainThread {
  private thread: Promise<ScanThread> | undefined
  private idle: NodeJS.Timeout | undefined

  constructor(private readonly drain: Drain) {}

  /** @throws Fault where the thread ends before it has answered */
  async ask<K extends Exclude<Kind, KnownKind>>(kind: K, question: Questions[K]): Promise<Answers[K]> {
    clearTimeout(this.idle)
    this.idle = setTimeout(() => this.end(), IDLE_MS).unref()
    this.thread ??= startScanThread(null, this.drain.signal)
    const mine = this.thread
    try {
      const thread = await mine
      return await thread.ask(kind, question)
    } catch (error) {
      // The next question is asked of another.
      if (this.thread === mine) this.end()
      throw error
    }
  }

  private end(): void {
    const ended = this.thread
    this.thread = undefined
    // One that did not start has told who asked.
    ended?.then(
      (thread) => thread.close(),
      () => undefined,
    )
  }
}
