// detail.tsx: one sandbox: what it is and does, and the tabs to work with it.
import { getSandbox, type Sandbox } from '@berth/contracts'
import { lazy, Suspense, useCallback, useEffect, useRef, useState } from 'react'
import { Link } from 'wouter'
import { useApi, useLoaded, useReloadOn } from '../live.js'
import { titleOf } from '../spec-fields.js'
import { Heading, Loading, Notice, State, Trouble } from '../ui.js'
import { SandboxActions } from './actions.js'
import { Charts } from './charts.js'
import { SandboxEvents } from './events.js'
import { Files } from './files.js'
import { Logs } from './logs.js'
import { Overview } from './overview.js'
import { Processes } from './processes.js'

// xterm.js is more than half of all code: it comes with the first terminal.
const Terminals = lazy(() => import('./terminals.js'))

const tabs = [
  ['overview', 'Overview'],
  ['terminal', 'Terminal'],
  ['logs', 'Logs'],
  ['charts', 'Charts'],
  ['files', 'Files'],
  ['processes', 'Processes'],
  ['events', 'Events'],
] as const

export function SandboxPage({ sandbox: ref, tab }: { readonly sandbox: string; readonly tab: string }) {
  const api = useApi()
  const load = useCallback(
    (signal: AbortSignal) => api.call(getSandbox, { params: { sandbox: ref } }, { signal }),
    [api, ref],
  )
  const loaded = useLoaded(load)
  const { value: sandbox, error } = loaded
  const tabBar = useRef<HTMLElement>(null)
  const there = sandbox !== undefined
  // On a phone not all tabs fit: the one that is shown is moved to where it is seen.
  // biome-ignore lint/correctness/useExhaustiveDependencies: whenever another tab is shown, and once there are tabs
  useEffect(() => {
    const [bar, current] = [tabBar.current, tabBar.current?.querySelector<HTMLElement>('[aria-current]')]
    if (bar && current) bar.scrollLeft = current.offsetLeft - (bar.clientWidth - current.offsetWidth) / 2
  }, [tab, there])
  useReloadOn(loaded, ({ subject }) => subject === (sandbox?.id ?? ref))
  const crumbs = (
    <p className="crumbs">
      <Link href="/sandboxes">Sandboxes</Link>
    </p>
  )
  if (!sandbox)
    return error === undefined ? (
      <Loading />
    ) : (
      <>
        {crumbs}
        <Heading title="Sandbox" />
        <Trouble error={error} retry={loaded.reload} />
      </>
    )
  return (
    <>
      {crumbs}
      <Heading
        title={
          <>
            {titleOf(sandbox)} <State state={sandbox.state} />
          </>
        }
      >
        <SandboxActions sandbox={sandbox} />
      </Heading>
      <Trouble error={error} retry={loaded.reload} />
      {sandbox.state === 'deleted' && <Notice>This sandbox is deleted. Its record stays for 30 days.</Notice>}
      <nav className="tabs" aria-label="Sandbox" ref={tabBar}>
        {tabs.map(([name, label]) => (
          <Link
            key={name}
            href={`/sandboxes/${sandbox.id}/${name}`}
            replace
            aria-current={name === tab ? 'page' : undefined}
          >
            {label}
          </Link>
        ))}
      </nav>
      <Content sandbox={sandbox} tab={tab} />
    </>
  )
}

/** The tab that is shown; terminals stay connected behind the others once they were opened. */
function Content({ sandbox, tab }: { readonly sandbox: Sandbox; readonly tab: string }) {
  const [opened, setOpened] = useState(tab === 'terminal')
  if (tab === 'terminal' && !opened) setOpened(true)
  return (
    <>
      {opened && (
        <section hidden={tab !== 'terminal'} aria-label="Terminal">
          <Suspense fallback={<Loading />}>
            <Terminals sandbox={sandbox} shown={tab === 'terminal'} />
          </Suspense>
        </section>
      )}
      {tab === 'overview' && <Overview sandbox={sandbox} />}
      {tab === 'logs' && <Logs sandbox={sandbox} />}
      {tab === 'charts' && <Charts sandbox={sandbox} />}
      {tab === 'files' && <Files sandbox={sandbox} />}
      {tab === 'processes' && <Processes sandbox={sandbox} />}
      {tab === 'events' && <SandboxEvents subject={sandbox.id} />}
    </>
  )
}
