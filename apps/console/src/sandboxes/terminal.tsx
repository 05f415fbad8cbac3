// terminal.tsx: a terminal as a part of a page, with its connection's state, search, and keys for touch screens.
import '@xterm/xterm/css/xterm.css'
import { type FormEvent, useEffect, useRef, useState, useSyncExternalStore } from 'react'
import { duration } from '../format.js'
import { useDark } from '../theme.js'
import type { Phase } from './terminal-link.js'
import { type TerminalOptions, TerminalSession } from './terminal-session.js'

export interface TerminalViewProps extends Omit<TerminalOptions, 'dark'> {
  readonly label: string
  /** Gets the keyboard when it is shown. */
  readonly shown: boolean
  /** Told when the program ended. */
  readonly onEnded?: () => void
}

export function TerminalView({ url, whyRefused, label, shown, onEnded }: TerminalViewProps) {
  const place = useRef<HTMLDivElement>(null)
  const bar = useRef<HTMLDivElement>(null)
  const dark = useDark()
  const [session, setSession] = useState<TerminalSession>()
  const [searching, setSearching] = useState(false)
  const options = useRef({ url, whyRefused, dark })
  useEffect(() => {
    options.current = { url, whyRefused, dark }
  })
  useEffect(() => {
    if (!place.current) return
    const { current } = options
    const made = new TerminalSession(place.current, {
      dark: current.dark,
      url: (since) => options.current.url(since),
      whyRefused: async () => options.current.whyRefused?.(),
    })
    made.onSearch = () => setSearching(true)
    made.onLeave = () => bar.current?.focus()
    setSession(made)
    return () => {
      setSession(undefined)
      made.dispose()
    }
  }, [])
  useEffect(() => session?.setDark(dark), [session, dark])
  useEffect(() => {
    if (!shown || !session) return
    session.focus()
    // On a telephone the frame is as high as the screen.
    bar.current?.parentElement?.scrollIntoView({ block: 'nearest' })
  }, [session, shown])
  return (
    <div className="terminal-frame">
      {session && (
        <Bar session={session} bar={bar} search={() => setSearching((old) => !old)} onEnded={onEnded} label={label} />
      )}
      {searching && session && (
        <Search
          session={session}
          onClose={() => {
            setSearching(false)
            session.focus()
          }}
        />
      )}
      <div className="terminal-place" ref={place} />
      {session && <Keys session={session} />}
    </div>
  )
}

function Bar({
  session,
  bar,
  label,
  search,
  onEnded,
}: {
  readonly session: TerminalSession
  readonly bar: React.RefObject<HTMLDivElement | null>
  readonly label: string
  readonly search: () => void
  readonly onEnded: (() => void) | undefined
}) {
  const link = useSyncExternalStore(
    (told) => session.listen(told),
    () => session.link,
  )
  const { phase, title } = link
  const ended = phase.name === 'ended'
  useEffect(() => {
    if (ended) onEnded?.()
  }, [ended, onEnded])
  return (
    <div className="terminal-bar" ref={bar} tabIndex={-1}>
      <span className={`link link-${phase.name}`} role="status">
        {phaseText(phase)}
      </span>
      {phase.name === 'waiting' && (
        <button type="button" className="small" onClick={() => session.retry()}>
          Now
        </button>
      )}
      {phase.name === 'refused' && (
        <button type="button" className="small" onClick={() => session.again()}>
          Try again
        </button>
      )}
      <span className="title clip">{title || label}</span>
      {session.notice && <span className="notice-text">{session.notice}</span>}
      <span className="hint wide-only">Ctrl+Shift+↑ leaves the terminal</span>
      <button type="button" className="small" onClick={search}>
        Search
      </button>
    </div>
  )
}

function phaseText(phase: Phase): string {
  switch (phase.name) {
    case 'connecting':
      return 'Connecting …'
    case 'open':
      return phase.mode === 'write' ? 'Connected' : 'Connected, to read only'
    case 'waiting':
      return `Connection lost, trying again in ${duration(Math.max(1000, Math.round(phase.retryMs / 1000) * 1000))}`
    case 'ended':
      return phase.message || `Ended, ${phase.signal ?? `exit code ${phase.exitCode ?? '?'}`}`
    case 'refused':
      return phase.message
  }
}

function Search({ session, onClose }: { readonly session: TerminalSession; readonly onClose: () => void }) {
  const [text, setText] = useState('')
  const [found, setFound] = useState(true)
  const find = (direction: 'next' | 'previous') => setFound(text === '' || session.find(text, direction))
  const onSubmit = (event: FormEvent) => {
    event.preventDefault()
    find('previous')
  }
  return (
    <search className="terminal-search">
      <form onSubmit={onSubmit}>
        <input
          type="search"
          aria-label="Search in the terminal"
          value={text}
          onChange={(event) => setText(event.target.value)}
          onKeyDown={(event) => event.key === 'Escape' && onClose()}
          // biome-ignore lint/a11y/noAutofocus: it was asked for a moment ago
          autoFocus
        />
        <button type="submit" className="small">
          ↑ Up
        </button>
        <button type="button" className="small" onClick={() => find('next')}>
          ↓ Down
        </button>
        <button type="button" className="small" onClick={onClose}>
          Close
        </button>
        <span role="status">{found ? '' : 'Not found'}</span>
      </form>
    </search>
  )
}

/** Keys that touch screens lack; the style sheet shows them there only. */
function Keys({ session }: { readonly session: TerminalSession }) {
  const control = useSyncExternalStore(
    (told) => session.listen(told),
    () => session.control,
  )
  const key = (name: string, label: string, press: () => void, pressed?: boolean) => (
    <button
      key={name}
      type="button"
      aria-label={label}
      aria-pressed={pressed}
      // The terminal keeps the focus, and with it the keyboard of the screen.
      onPointerDown={(event) => event.preventDefault()}
      onClick={press}
    >
      {name}
    </button>
  )
  return (
    <div className="touch-keys" role="toolbar" aria-label="Keys">
      {key('Esc', 'Esc', () => session.type('\x1b'))}
      {key('Tab', 'Tab', () => session.type('\t'))}
      {key('Ctrl', 'Ctrl for the next key', () => session.setControl(!control), control)}
      {key('←', 'Left', () => session.arrow('D'))}
      {key('↓', 'Down', () => session.arrow('B'))}
      {key('↑', 'Up', () => session.arrow('A'))}
      {key('→', 'Right', () => session.arrow('C'))}
      {key('^C', 'Control C', () => session.type('\x03'))}
    </div>
  )
}
