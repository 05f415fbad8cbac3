// watch.ts: what ends a long answer: its client goes, its key is revoked, or the process shuts down.
//
// A key is asked about four times a second for as long as anything watches it, once for all that do; with what auth
// believes, whatever was opened with it ends within a second.
import { setMaxListeners } from 'node:events'
import { Failure } from '@berth/contracts'
import { Injectable } from '@nestjs/common'
import { Auth, type Principal } from '../http/auth.js'
import { Drain } from '../operations/drain.js'

const CONFIRM_MS = 250

export interface Watched {
  /** Aborted with what the client is to be told. */
  readonly signal: AbortSignal
  stop(): void
}

interface WatchedKey {
  readonly ends: Set<(reason: Failure) => void>
  readonly timer: NodeJS.Timeout
}

@Injectable()
export class Watch {
  private readonly keys = new Map<string, WatchedKey>()

  constructor(
    private readonly auth: Auth,
    private readonly drain: Drain,
  ) {}

  /**
   * Watches until `stop` is called, which must happen.
   * @param principal whose key it depends on; undefined where it depends on none
   * @param client aborted when the client goes, or for whatever else ends this answer
   */
  begin(principal: Principal | undefined, client: AbortSignal): Watched {
    const ended = new AbortController()
    setMaxListeners(0, ended.signal)
    const end = (reason: unknown) => ended.abort(reason)
    // Not AbortSignal.any: what it makes lives as long as the longest-lived of its sources, here the process.
    const releases = [client, this.drain.signal].map((source) => {
      const pass = () => end(source.reason)
      source.addEventListener('abort', pass, { once: true })
      if (source.aborted) pass()
      return () => source.removeEventListener('abort', pass)
    })
    if (principal) releases.push(this.watchKey(principal, end))
    const stop = () => {
      for (const release of releases.splice(0)) release()
    }
    return { signal: ended.signal, stop }
  }

  private watchKey(principal: Principal, end: (reason: Failure) => void): () => void {
    const { credential } = principal
    const watched = this.keys.get(credential) ?? this.newKey(principal)
    watched.ends.add(end)
    return () => {
      watched.ends.delete(end)
      if (watched.ends.size > 0) return
      clearInterval(watched.timer)
      if (this.keys.get(credential) === watched) this.keys.delete(credential)
    }
  }

  private newKey(principal: Principal): WatchedKey {
    const ends = new Set<(reason: Failure) => void>()
    const confirm = () =>
      this.auth.confirm(principal).catch((error: unknown) => {
        // That Postgres does not answer says nothing about the key.
        if (error instanceof Failure) for (const end of [...ends]) end(error)
      })
    const watched = { ends, timer: setInterval(confirm, CONFIRM_MS) }
    this.keys.set(principal.credential, watched)
    return watched
  }
}
