// terminals.tsx: the terminals of a sandbox as tabs. What is open on the node is listed, whoever opened it; a tab that was
// chosen once stays connected until the page is left.
import {
  ApiError,
  closeTerminal,
  connectTerminal,
  createTerminal,
  getTerminal,
  listTerminals,
  type Sandbox,
  type Terminal,
  TerminalId,
} from '@berth/contracts'
import { useCallback, useState } from 'react'
import { messageOf, randomId, socketUrl } from '../api.js'
import { useApi, useLoaded } from '../live.js'
import { Action, Empty, Trouble } from '../ui.js'
import { ShareDialog } from './share.js'
import { TerminalView } from './terminal.js'

export default function Terminals({ sandbox, shown }: { readonly sandbox: Sandbox; readonly shown: boolean }) {
  const api = useApi()
  const { id } = sandbox
  const running = sandbox.state === 'running'
  // Loaded again with every run, which ends the terminals of the one before.
  const load = useCallback(
    async (signal: AbortSignal) => {
      if (!running) return []
      const { items } = await api.call(listTerminals, { params: { sandbox: id } }, { signal })
      return items.filter(({ state }) => state === 'open').reverse()
    },
    [api, id, running],
  )
  const { value, error, reload } = useLoaded(load)
  const [chosen, setChosen] = useState<TerminalId>()
  const [opened, setOpened] = useState<ReadonlySet<TerminalId>>(new Set())
  const [sharing, setSharing] = useState<TerminalId>()
  const listed = value ?? []
  // Ended ones are no longer listed; their last screen stays until the tab is closed.
  const ended = [...opened].filter((one) => !listed.some((terminal) => terminal.id === one))
  const tabs = [...listed.map((one) => one.id), ...ended]
  const current = chosen !== undefined && tabs.includes(chosen) ? chosen : tabs.at(-1)
  if (current !== undefined && !opened.has(current)) setOpened(new Set([...opened, current]))
  const open = async () => {
    const terminal = TerminalId.parse(`t-${randomId()}`)
    await api.call(createTerminal, { params: { sandbox: id }, body: { id: terminal } })
    setOpened((old) => new Set([...old, terminal]))
    setChosen(terminal)
    reload()
  }
  const close = async (terminal: TerminalId) => {
    if (listed.some((one) => one.id === terminal)) await api.call(closeTerminal, { params: { sandbox: id, terminal } })
    setOpened((old) => new Set([...old].filter((one) => one !== terminal)))
    reload()
  }
  if (!running && opened.size === 0)
    return <Empty>A terminal needs a running sandbox; this one is {sandbox.state}.</Empty>
  return (
    <>
      <div className="terminal-tabs">
        <div className="terminal-list">
          {tabs.map((terminal, i) => (
            <button
              key={terminal}
              type="button"
              aria-pressed={terminal === current}
              onClick={() => setChosen(terminal)}
            >
              {nameOf(
                listed.find((one) => one.id === terminal),
                i,
              )}
            </button>
          ))}
        </div>
        <div className="actions">
          <Action act={open} disabled={!running} className={tabs.length === 0 ? 'primary' : ''}>
            Open a shell
          </Action>
          {current !== undefined && (
            <>
              <button type="button" onClick={() => setSharing(current)}>
                Share
              </button>
              <Action act={() => close(current)}>Close</Action>
            </>
          )}
        </div>
      </div>
      <Trouble error={error} retry={reload} />
      {value && tabs.length === 0 && <Empty>No terminal is open in this sandbox.</Empty>}
      {[...opened].map((terminal) => (
        <div key={terminal} hidden={terminal !== current}>
          <OneTerminal sandbox={id} terminal={terminal} shown={shown && terminal === current} onEnded={reload} />
        </div>
      ))}
      {sharing !== undefined && <ShareDialog sandbox={id} terminal={sharing} onClose={() => setSharing(undefined)} />}
    </>
  )
}

const nameOf = (terminal: Terminal | undefined, i: number): string =>
  terminal?.title || terminal?.spec.command[0]?.replace(/^.*\//, '') || `terminal ${i + 1}`

function OneTerminal({
  sandbox,
  terminal,
  shown,
  onEnded,
}: {
  readonly sandbox: string
  readonly terminal: TerminalId
  readonly shown: boolean
  readonly onEnded: () => void
}) {
  const api = useApi()
  const url = (since: number | undefined) =>
    socketUrl(connectTerminal, { params: { sandbox, terminal }, query: { since } })
  const whyRefused = async () => {
    try {
      await api.call(getTerminal, { params: { sandbox, terminal } })
      return undefined
    } catch (error) {
      // Only what the API itself refuses is final; a node or a network comes back.
      return refused(error) ? messageOf(error) : undefined
    }
  }
  return <TerminalView url={url} whyRefused={whyRefused} shown={shown} label={terminal} onEnded={onEnded} />
}

const refused = (error: unknown): boolean => error instanceof ApiError && [401, 403, 404].includes(error.status)
