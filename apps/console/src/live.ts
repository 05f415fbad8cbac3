// live.ts: what pages show, kept up to date. A page loads what it shows and loads it again when an event says that it
// changed; one connection brings the events of all pages. Streams are closed while the tab is hidden: over HTTP/1.1 a
// browser has six connections to a host for all its tabs, and a hidden one needs none.
import type { BerthEvent } from '@berth/contracts'
import { createContext, useCallback, useContext, useEffect, useRef, useState, useSyncExternalStore } from 'react'
import { type Api, isAbort } from './api.js'
import { EventFeed, type EventListener } from './event-feed.js'
import { retryDelayMs } from './retry.js'

export const ApiContext = createContext<Api | undefined>(undefined)

export function useApi(): Api {
  const api = useContext(ApiContext)
  if (!api) throw new TypeError('useApi outside of ApiContext')
  return api
}

const onVisibility = (told: () => void) => {
  document.addEventListener('visibilitychange', told)
  return () => document.removeEventListener('visibilitychange', told)
}

/** Whether the tab can be seen. */
export const useVisible = (): boolean =>
  useSyncExternalStore(onVisibility, () => document.visibilityState === 'visible')

/** The time now, told anew every so many milliseconds. */
export function useNow(everyMs: number): number {
  const [now, setNow] = useState(() => Date.now())
  useEffect(() => {
    const timer = setInterval(() => setNow(Date.now()), everyMs)
    return () => clearInterval(timer)
  }, [everyMs])
  return now
}

export interface Loaded<T> {
  readonly value: T | undefined
  readonly error: unknown
  readonly loading: boolean
  reload(): void
}

/**
 * Loads a value, and again when `load` changes (wrap it in useCallback) or on `reload`. What was loaded stays while it is
 * loaded again, and when that fails; a reload that is asked for while one runs follows it, however often it is asked for.
 */
export function useLoaded<T>(load: (signal: AbortSignal) => Promise<T>): Loaded<T> {
  const [state, setState] = useState<{ of: unknown; value: T | undefined; error: unknown; loading: boolean }>({
    of: load,
    value: undefined,
    error: undefined,
    loading: true,
  })
  const again = useRef<() => void>(() => undefined)
  useEffect(() => {
    const ended = new AbortController()
    let running = false
    let wanted = false
    const run = async () => {
      if (running) {
        wanted = true
        return
      }
      running = true
      setState((old) =>
        old.of === load ? { ...old, loading: true } : { of: load, value: undefined, error: undefined, loading: true },
      )
      try {
        const value = await load(ended.signal)
        if (!ended.signal.aborted) setState({ of: load, value, error: undefined, loading: false })
      } catch (error) {
        if (!ended.signal.aborted) setState((old) => ({ ...old, error, loading: false }))
      }
      running = false
      if (wanted && !ended.signal.aborted) {
        wanted = false
        void run()
      }
    }
    again.current = () => void run()
    void run()
    return () => ended.abort()
  }, [load])
  const reload = useCallback(() => again.current(), [])
  const current = state.of === load
  return {
    value: current ? state.value : undefined,
    error: current ? state.error : undefined,
    loading: state.loading,
    reload,
  }
}

/**
 * Runs `open` for as long as the tab is seen and `active` holds, and again after a failure, with growing waits; not after
 * it has returned. `open` is to end when its signal is aborted, and tells with `alive` that it is connected.
 * @returns whether it is connected at present, and what it failed with last
 */
export function useStream(
  active: boolean,
  open: (signal: AbortSignal, alive: () => void) => Promise<void>,
): { readonly connected: boolean; readonly error: unknown } {
  const [state, setState] = useState<{ connected: boolean; error: unknown }>({ connected: false, error: undefined })
  const visible = useVisible()
  const running = active && visible
  useEffect(() => {
    if (!running) return
    const ended = new AbortController()
    const { signal } = ended
    const run = async () => {
      let failures = 0
      const alive = () => {
        failures = 0
        setState((old) => (old.connected ? old : { connected: true, error: undefined }))
      }
      while (!signal.aborted) {
        try {
          await open(signal, alive)
          break
        } catch (error) {
          if (signal.aborted || isAbort(error)) break
          setState({ connected: false, error })
          await sleep(retryDelayMs(++failures, Math.random()), signal)
        }
      }
      if (!signal.aborted) setState((old) => ({ ...old, connected: false }))
    }
    void run()
    return () => ended.abort()
  }, [running, open])
  return state
}

/** Resolves after so long, when the browser says that the network is back, or when it is aborted. */
function sleep(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const end = () => {
      clearTimeout(timer)
      removeEventListener('online', end)
      signal.removeEventListener('abort', end)
      resolve()
    }
    const timer = setTimeout(end, ms)
    addEventListener('online', end)
    signal.addEventListener('abort', end)
  })
}

/** Gathers what comes and hands it over once a frame: more often would be drawn by nobody. */
export function oncePerFrame<T>(take: (all: readonly T[]) => void): (one: T) => void {
  let waiting: T[] = []
  return (one) => {
    waiting.push(one)
    if (waiting.length > 1) return
    requestAnimationFrame(() => {
      const all = waiting
      waiting = []
      take(all)
    })
  }
}

export const EventContext = createContext<EventFeed>(new EventFeed())

/** Calls `onEvent` for each event; `onEvent` may change from render to render. */
export function useEvents(onEvent: EventListener): void {
  const feed = useContext(EventContext)
  const latest = useRef(onEvent)
  useEffect(() => {
    latest.current = onEvent
  })
  useEffect(() => feed.listen((event) => latest.current(event)), [feed])
}

/** Longest that a change is waited with, so that a burst of events is one reload. */
const GATHER_MS = 150

/** Loads again soon after an event that `concerns` it, once for many. */
export function useReloadOn(loaded: Pick<Loaded<unknown>, 'reload'>, concerns: (event: BerthEvent) => boolean): void {
  const timer = useRef<ReturnType<typeof setTimeout> | undefined>(undefined)
  useEffect(() => () => clearTimeout(timer.current), [])
  useEvents((event) => {
    if (event !== 'resumed' && !concerns(event)) return
    timer.current ??= setTimeout(() => {
      timer.current = undefined
      loaded.reload()
    }, GATHER_MS)
  })
}
