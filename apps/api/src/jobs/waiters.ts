// waiters.ts: requests that wait for a job or a batch to change.
//
// A waiter looks, and if it has not seen what it waits for, sleeps until it is woken: by a report that this replica
// stored, by another replica over Redis, or by its own slow clock, which is what makes lost messages harmless. It is
// registered before it looks, so that a change between the look and the sleep wakes it. What it holds is freed when
// it ends, for whatever reason: found, time over, client gone, shutdown.
import { Fault } from '@berth/contracts'
import { Injectable } from '@nestjs/common'
import { Drain } from '../operations/drain.js'

/** First and longest wait between looks that nobody asked for, in milliseconds. */
const FIRST_LOOK_MS = 1000
const LAST_LOOK_MS = 5000

export interface WaitOptions {
  /** Milliseconds until the wait is given up; Infinity for as long as `signal` lasts. */
  readonly timeoutMs: number
  /** Ends the wait, which then throws the signal's reason. */
  readonly signal: AbortSignal
  /** Least time between two looks, for what is woken often. */
  readonly paceMs?: number
}

interface Waiter {
  wake(): void
}

@Injectable()
export class Waiters {
  private readonly waiting = new Map<string, Set<Waiter>>()

  constructor(private readonly drain: Drain) {}

  /** How many wait now. */
  get size(): number {
    let count = 0
    for (const waiters of this.waiting.values()) count += waiters.size
    return count
  }

  /** Lets everyone who waits for one of these ids look again. */
  wake(ids: Iterable<string>): void {
    for (const id of ids) for (const waiter of this.waiting.get(id) ?? []) waiter.wake()
  }

  /**
   * Looks until `seen` says yes or the time is over. Once something has been seen, or `known` was given, a look that
   * fails for a Fault is only one that saw nothing new: Postgres may be back before the time is over.
   * @returns what was seen last
   * @throws what `look` throws otherwise, and the reason of `signal`; a shutdown only ends the wait
   */
  async until<T>(
    id: string,
    look: () => Promise<T>,
    seen: (value: T) => boolean,
    options: WaitOptions & { readonly known?: T | undefined },
  ): Promise<T> {
    const end = Date.now() + options.timeoutMs
    let last = options.known
    const bell = new Bell()
    this.register(id, bell)
    try {
      for (let nap = FIRST_LOOK_MS; ; nap = Math.min(nap * 1.5, LAST_LOOK_MS)) {
        bell.reset()
        const value = await look().catch(unlessKnown(last))
        last = value
        const left = end - Date.now()
        if (seen(value) || left <= 0 || this.drain.signal.aborted) return value
        if (options.paceMs) await pause(options.paceMs, options.signal)
        await bell.rung(Math.min(nap, left), [options.signal, this.drain.signal])
        options.signal.throwIfAborted()
      }
    } finally {
      this.unregister(id, bell)
    }
  }

  private register(id: string, waiter: Waiter): void {
    const others = this.waiting.get(id)
    if (others) others.add(waiter)
    else this.waiting.set(id, new Set([waiter]))
  }

  private unregister(id: string, waiter: Waiter): void {
    const waiters = this.waiting.get(id)
    waiters?.delete(waiter)
    if (waiters?.size === 0) this.waiting.delete(id)
  }
}

const unlessKnown =
  <T>(last: T | undefined) =>
  (error: unknown): T => {
    if (last !== undefined && error instanceof Fault) return last
    throw error
  }

/** Remembers that it was rung until it is reset; at most one sleeper at a time. */
class Bell implements Waiter {
  private rang = false
  private sleeper: (() => void) | undefined

  reset(): void {
    this.rang = false
  }

  wake(): void {
    this.rang = true
    this.sleeper?.()
  }

  rung(timeoutMs: number, signals: readonly AbortSignal[]): Promise<void> {
    if (this.rang || signals.some((signal) => signal.aborted)) return Promise.resolve()
    return new Promise((resolve) => {
      const done = () => {
        clearTimeout(timer)
        for (const signal of signals) signal.removeEventListener('abort', done)
        this.sleeper = undefined
        resolve()
      }
      const timer = setTimeout(done, timeoutMs)
      for (const signal of signals) signal.addEventListener('abort', done, { once: true })
      this.sleeper = done
    })
  }
}

/** Sleeps, or until the signal is aborted. */
export function pause(ms: number, signal: AbortSignal): Promise<void> {
  return new Bell().rung(ms, [signal])
}
