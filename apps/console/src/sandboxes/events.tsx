import { type BerthEvent, listEvents } from '@berth/contracts'
import { useCallback } from 'react'
import { z } from 'zod'
import { actor, commandLine, time } from '../format.js'
import { useApi, useLoaded, useReloadOn } from '../live.js'
import { Empty, Loading, Trouble } from '../ui.js'

const MOST = 1000

/** What happened to a sandbox or a job, newest first. */
export function SandboxEvents({ subject }: { readonly subject: string }) {
  const api = useApi()
  const load = useCallback(
    async (signal: AbortSignal) => {
      const found: BerthEvent[] = []
      let after: string | undefined
      // Oldest first is how they are listed; the newest are what is looked for.
      for (;;) {
        const { items } = await api.call(listEvents, { query: { subject, after, limit: MOST } }, { signal })
        found.push(...items)
        after = items.at(-1)?.id
        if (items.length < MOST || found.length >= 5 * MOST) return found.slice(-MOST).reverse()
      }
    },
    [api, subject],
  )
  const loaded = useLoaded(load)
  useReloadOn(loaded, (event) => event.subject === subject)
  const { value, error } = loaded
  if (!value) return error === undefined ? <Loading /> : <Trouble error={error} retry={loaded.reload} />
  if (value.length === 0) return <Empty>Nothing has happened yet.</Empty>
  return (
    <table className="cards">
      <thead>
        <tr>
          <th scope="col">When</th>
          <th scope="col">What</th>
          <th scope="col">By</th>
          <th scope="col">More</th>
        </tr>
      </thead>
      <tbody>
        {value.map((event) => (
          <tr key={event.id}>
            <td className="quiet">{time(event.at)}</td>
            <th scope="row">{event.type.replace(/^\w+\./, '').replaceAll('_', ' ')}</th>
            <td data-label="By" className="quiet">
              <span title={event.by}>{actor(event.by)}</span>
            </td>
            <td data-label="More">
              <More data={event.data} />
            </td>
          </tr>
        ))}
      </tbody>
    </table>
  )
}

function More({ data }: { readonly data: BerthEvent['data'] }) {
  return (
    <ul className="plain-list">
      {Object.entries(data)
        .filter(([, value]) => value !== null)
        .map(([name, value]) => (
          <li key={name}>
            <span className="quiet">{name}</span> {typeof value === 'string' ? value : <Value value={value} />}
          </li>
        ))}
    </ul>
  )
}

const Reason = z.object({ code: z.string(), message: z.string() })

function Value({ value }: { readonly value: unknown }) {
  const reason = Reason.safeParse(value).data
  if (reason) return <>{[reason.code.replaceAll('_', ' '), reason.message].filter(Boolean).join(': ')}</>
  const isArgv = Array.isArray(value) && value.every((one) => typeof one === 'string')
  return <code className="wrap">{isArgv ? commandLine(value) : JSON.stringify(value)}</code>
}
