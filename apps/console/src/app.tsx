// app.tsx: who is signed in, and which page is shown. The page of a shared terminal needs no session.
import { type ApiError, deleteSession, getSession, type Session, streamEvents } from '@berth/contracts'
import { lazy, Suspense, useCallback, useContext, useEffect, useMemo, useState } from 'react'
import { Link, Redirect, Route, Router, Switch, useLocation } from 'wouter'
import { KeysPage } from './account/keys.js'
import { SignIn } from './account/sign-in.js'
import { UsagePage } from './account/usage.js'
import { Api, isAbort } from './api.js'
import { EventFeed } from './event-feed.js'
import { JobPage } from './jobs/detail.js'
import { JobsPage } from './jobs/list.js'
import { ApiContext, EventContext, useApi, useStream } from './live.js'
import { SandboxPage } from './sandboxes/detail.js'
import { SandboxesPage } from './sandboxes/list.js'
import { ThemeButton } from './theme.js'
import { Fallback, Loading, Telling, Trouble } from './ui.js'

const SharePage = lazy(() => import('./sandboxes/share-page.js'))

export function App() {
  return (
    <Telling>
      <Router base="/console">
        <Switch>
          <Route path="/share">
            <Fallback>
              <Suspense fallback={<Loading />}>
                <SharePage />
              </Suspense>
            </Fallback>
          </Route>
          <Route>
            <Gate />
          </Route>
        </Switch>
      </Router>
    </Telling>
  )
}

type Standing =
  | { readonly name: 'unknown'; readonly error?: unknown }
  | { readonly name: 'out'; readonly why: string | undefined }
  | { readonly name: 'in'; readonly session: Session }

/** A revoked key or a suspended tenant is worth a word; a cookie that is gone, in another tab or by time, is not. */
const whyOver = (error: ApiError): string =>
  error.is('unauthenticated') ? 'The session is over; sign in again.' : error.message

/** Shows the sign-in page until there is a session, and again when it is over. */
function Gate() {
  const [standing, setStanding] = useState<Standing>({ name: 'unknown' })
  const api = useMemo(
    () =>
      new Api((error: ApiError) =>
        // Who was never signed in has no need to be told that they are not; of several answers the first one tells.
        setStanding((old) =>
          old.name === 'out' ? old : { name: 'out', why: old.name === 'in' ? whyOver(error) : undefined },
        ),
      ),
    [],
  )
  const look = useCallback(
    (signal?: AbortSignal) => {
      setStanding({ name: 'unknown' })
      api.call(getSession, {}, { signal }).then(
        (session) => setStanding({ name: 'in', session }),
        (error: unknown) => {
          if (!isAbort(error)) setStanding((old) => (old.name === 'unknown' ? { name: 'unknown', error } : old))
        },
      )
    },
    [api],
  )
  useEffect(() => {
    const ended = new AbortController()
    look(ended.signal)
    return () => ended.abort()
  }, [look])
  switch (standing.name) {
    case 'unknown':
      return standing.error === undefined ? <Loading /> : <Trouble error={standing.error} retry={() => look()} />
    case 'out':
      return <SignIn api={api} why={standing.why} onSession={(session) => setStanding({ name: 'in', session })} />
    case 'in':
      return (
        <ApiContext value={api}>
          <Shell session={standing.session} onSignOut={() => setStanding({ name: 'out', why: undefined })} />
        </ApiContext>
      )
  }
}

/** The frame around all pages of a session, and the one stream of events that they share. */
function Shell({ session, onSignOut }: { readonly session: Session; readonly onSignOut: () => void }) {
  const feed = useMemo(() => new EventFeed(), [])
  const [location] = useLocation()
  return (
    <EventContext value={feed}>
      <a className="skip" href="#main">
        Skip to content
      </a>
      <Header session={session} onSignOut={onSignOut} />
      <main id="main" tabIndex={-1}>
        <Fallback key={location.split('/', 3).join('/')}>
          <Switch>
            <Route path="/">
              <Redirect to="/sandboxes" replace />
            </Route>
            <Route path="/sandboxes">
              <SandboxesPage />
            </Route>
            <Route path="/sandboxes/:sandbox/:tab?">
              {({ sandbox, tab }) => <SandboxPage key={sandbox} sandbox={sandbox} tab={tab ?? 'overview'} />}
            </Route>
            <Route path="/jobs">
              <JobsPage />
            </Route>
            <Route path="/jobs/:job">{({ job }) => <JobPage key={job} jobId={job} />}</Route>
            <Route path="/usage">
              <UsagePage />
            </Route>
            <Route path="/keys">
              <KeysPage session={session} />
            </Route>
            <Route>
              <h1>There is no such page</h1>
              <p>
                <Link href="/sandboxes">To the sandboxes</Link>
              </p>
            </Route>
          </Switch>
        </Fallback>
      </main>
    </EventContext>
  )
}

const places = [
  { path: '/sandboxes', label: 'Sandboxes', scope: 'sandboxes:read' },
  { path: '/jobs', label: 'Jobs', scope: 'jobs:read' },
  { path: '/usage', label: 'Usage', scope: 'usage:read' },
  { path: '/keys', label: 'Keys', scope: 'keys:read' },
] as const

function Header({ session, onSignOut }: { readonly session: Session; readonly onSignOut: () => void }) {
  const api = useApi()
  const feed = useContext(EventContext)
  const follow = useCallback(
    (signal: AbortSignal, alive: () => void) =>
      feed.follow((after) => api.values(streamEvents, { query: { after } }, { signal, onOpen: alive })),
    [api, feed],
  )
  const { error } = useStream(true, follow)
  const [location] = useLocation()
  const signOut = () => {
    // Where the API cannot be reached the cookie stays; the page forgets all it shows in any case.
    api.call(deleteSession, {}).then(onSignOut, onSignOut)
  }
  return (
    <header className="top">
      <Link href="/sandboxes" className="brand">
        <img src={`${import.meta.env.BASE_URL}icon.svg`} alt="" width="24" height="24" />
        Berth
      </Link>
      <nav aria-label="Main">
        {places
          .filter(({ scope }) => session.scopes.includes(scope))
          .map(({ path, label }) => (
            <Link key={path} href={path} aria-current={location.startsWith(path) ? 'page' : undefined}>
              {label}
            </Link>
          ))}
      </nav>
      <div className="top-end">
        {error !== undefined && (
          <span className="offline" role="status">
            Reconnecting …
          </span>
        )}
        <span className="tenant" title={`Tenant ${session.tenant.id}`}>
          {session.tenant.name}
        </span>
        <ThemeButton />
        <button type="button" className="small" onClick={signOut}>
          Sign out
        </button>
      </div>
    </header>
  )
}
