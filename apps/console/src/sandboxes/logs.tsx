import { getSandboxLogs, type LogEntry, type Sandbox } from '@berth/contracts'
import { useCallback, useEffect, useRef, useState } from 'react'
import { saveAs } from '../api.js'
import { number, time } from '../format.js'
import { oncePerFrame, useApi, useStream } from '../live.js'
import { titleOf } from '../spec-fields.js'
import { Action, Empty, Trouble } from '../ui.js'
import { addEntries, type LogLine, marked, noLines, shownText } from './log-lines.js'

/** Lines asked for at first; and those shown at once, for the sake of the browser. */
const TAIL = 1000
const SHOWN = 2000

/** The output of the main process, live, with search. */
export function Logs({ sandbox }: { readonly sandbox: Sandbox }) {
  const api = useApi()
  const { id } = sandbox
  const [log, setLog] = useState(noLines)
  const [search, setSearch] = useState('')
  const [stream, setStream] = useState<'' | LogEntry['stream']>('')
  const since = useRef<number | undefined>(undefined)
  const follow = useCallback(
    async (signal: AbortSignal, alive: () => void) => {
      const from = since.current
      const query = { follow: 'true', ...(from === undefined ? { tail: TAIL } : { since: from }) } as const
      const draw = oncePerFrame<LogEntry>((entries) => setLog((old) => addEntries(old, entries)))
      for await (const entry of api.values(
        getSandboxLogs,
        { params: { sandbox: id }, query },
        { signal, onOpen: alive },
      )) {
        since.current = entry.offset
        draw(entry)
      }
    },
    [api, id],
  )
  const { error } = useStream(sandbox.state !== 'deleted', follow)
  const lines = log.lines.filter(
    (line) =>
      (stream === '' || line.stream === stream) &&
      (search === '' || shownText(line).toLowerCase().includes(search.toLowerCase())),
  )
  const shown = lines.slice(-SHOWN)
  const download = () => {
    const query = { follow: 'false' } as const
    const text = textOf(api.values(getSandboxLogs, { params: { sandbox: id }, query }))
    return saveAs(`${titleOf(sandbox)}.log`, text, () => undefined)
  }
  return (
    <>
      <search className="filters">
        <label>
          Search
          <input type="search" value={search} onChange={(event) => setSearch(event.target.value)} spellCheck={false} />
        </label>
        <label>
          Stream
          <select value={stream} onChange={(event) => setStream(streamOf(event.target.value))}>
            <option value="">both</option>
            <option>stdout</option>
            <option>stderr</option>
          </select>
        </label>
        <span className="quiet" role="status">
          {search !== '' && `${number(lines.length)} of ${number(log.lines.length)} lines`}
        </span>
        <Action act={download}>Download</Action>
      </search>
      <Trouble error={error} />
      {log.lines.length === 0 && error === undefined ? (
        <Empty>The main process has written nothing yet.</Empty>
      ) : (
        <Lines lines={shown} search={search} more={log.dropped + lines.length - shown.length > 0} />
      )}
    </>
  )
}

const streamOf = (value: string): '' | LogEntry['stream'] => (value === 'stdout' || value === 'stderr' ? value : '')

/** Lines that scroll by themselves for as long as the end is seen. */
function Lines({
  lines,
  search,
  more,
}: {
  readonly lines: readonly LogLine[]
  readonly search: string
  readonly more: boolean
}) {
  const box = useRef<HTMLDivElement>(null)
  const [following, setFollowing] = useState(true)
  // biome-ignore lint/correctness/useExhaustiveDependencies: to the end whenever there are more lines
  useEffect(() => {
    if (following && box.current) box.current.scrollTop = box.current.scrollHeight
  }, [lines, following])
  const onScroll = () => {
    const { scrollTop, scrollHeight, clientHeight } = box.current ?? { scrollTop: 0, scrollHeight: 0, clientHeight: 0 }
    setFollowing(scrollHeight - scrollTop - clientHeight < 30)
  }
  return (
    <div className="log-frame">
      {/* biome-ignore lint/a11y/noNoninteractiveTabindex: a box that scrolls must be reachable by keyboard */}
      <div className="log" ref={box} onScroll={onScroll} tabIndex={0} role="log" aria-label="Output">
        {more && <p className="quiet">Earlier lines are not shown; the download has them.</p>}
        {lines.map((line) => (
          <div key={line.id} className={`line ${line.stream}`}>
            <time dateTime={line.at} title={time(line.at)}>
              {line.at.slice(11, 19)}
            </time>
            <span>
              {marked(shownText(line), search).map((part, i) =>
                // biome-ignore lint/suspicious/noArrayIndexKey: parts have no other identity
                part.hit ? <mark key={i}>{part.text}</mark> : part.text,
              )}
            </span>
          </div>
        ))}
      </div>
      {!following && (
        <button type="button" className="to-end" onClick={() => setFollowing(true)}>
          To the end ↓
        </button>
      )}
    </div>
  )
}

async function* textOf(entries: AsyncIterable<LogEntry>): AsyncGenerator<Uint8Array> {
  const encoder = new TextEncoder()
  for await (const { text } of entries) yield encoder.encode(text)
}
