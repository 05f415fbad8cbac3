import { listSandboxes, type Sandbox, SandboxState, sandboxStates } from '@berth/contracts'
import { useCallback, useState } from 'react'
import { Link, useSearchParams } from 'wouter'
import { ago, bytes, commandLine, counted, number, time } from '../format.js'
import { useApi, useLoaded, useNow, useReloadOn } from '../live.js'
import { Labels, titleOf } from '../spec-fields.js'
import { Empty, Heading, Loading, State, Trouble } from '../ui.js'
import { SandboxActions } from './actions.js'
import { CreateSandbox } from './create.js'

const PAGE = 50

export function SandboxesPage() {
  const api = useApi()
  const [search, setSearch] = useSearchParams()
  const state = SandboxState.safeParse(search.get('state')).data
  const label = search.get('label') ?? ''
  const [pages, setPages] = useState(1)
  const [creating, setCreating] = useState(false)
  const load = useCallback(
    async (signal: AbortSignal) => {
      const items: Sandbox[] = []
      let cursor: string | undefined
      for (let page = 0; page < pages; page++) {
        const query = { limit: PAGE, cursor, state, label: label || undefined }
        const answer = await api.call(listSandboxes, { query }, { signal })
        items.push(...answer.items)
        if (answer.nextCursor === null) return { items, more: false }
        cursor = answer.nextCursor
      }
      return { items, more: true }
    },
    [api, state, label, pages],
  )
  const loaded = useLoaded(load)
  useReloadOn(loaded, ({ type }) => type.startsWith('sandbox.'))
  const filter = (name: string, value: string) =>
    setSearch(
      (old) => {
        const next = new URLSearchParams(old)
        if (value) next.set(name, value)
        else next.delete(name)
        return next
      },
      { replace: true },
    )
  const { value, error } = loaded
  return (
    <>
      <Heading title="Sandboxes">
        <button type="button" className="primary" onClick={() => setCreating(true)}>
          New sandbox
        </button>
      </Heading>
      <search className="filters">
        <label>
          State
          <select value={state ?? ''} onChange={(event) => filter('state', event.target.value)}>
            <option value="">all that exist</option>
            {sandboxStates.map((one) => (
              <option key={one}>{one}</option>
            ))}
          </select>
        </label>
        <label>
          Label
          <input
            type="search"
            placeholder="key or key=value"
            defaultValue={label}
            onChange={(event) => filter('label', event.target.value.trim())}
          />
        </label>
      </search>
      <Trouble error={error} retry={loaded.reload} />
      {value === undefined && error === undefined && <Loading />}
      {value?.items.length === 0 && (
        <Empty>
          {state || label ? 'No sandbox matches.' : 'There is no sandbox yet. Create one to open a shell in it.'}
        </Empty>
      )}
      {value && value.items.length > 0 && <SandboxTable sandboxes={value.items} />}
      {value?.more && (
        <button type="button" onClick={() => setPages((old) => old + 1)}>
          Show more
        </button>
      )}
      {creating && <CreateSandbox onClose={() => setCreating(false)} />}
    </>
  )
}

function SandboxTable({ sandboxes }: { readonly sandboxes: readonly Sandbox[] }) {
  const now = useNow(5000)
  return (
    <table className="cards">
      <caption className="visually-hidden">{counted(sandboxes.length, 'sandbox', 'sandboxes')}</caption>
      <thead>
        <tr>
          <th scope="col">Name</th>
          <th scope="col">State</th>
          <th scope="col">Image</th>
          <th scope="col">Limits</th>
          <th scope="col">Created</th>
          <th scope="col">
            <span className="visually-hidden">Actions</span>
          </th>
        </tr>
      </thead>
      <tbody>
        {sandboxes.map((sandbox) => (
          <tr key={sandbox.id}>
            <th scope="row">
              <Link href={`/sandboxes/${sandbox.id}`} title={sandbox.id}>
                {titleOf(sandbox)}
              </Link>
              <Labels labels={sandbox.labels} />
            </th>
            <td data-label="State">
              <State state={sandbox.state} />
            </td>
            <td data-label="Image">
              {sandbox.spec.image}
              {sandbox.spec.command && <code className="clip">{commandLine(sandbox.spec.command)}</code>}
            </td>
            <td data-label="Limits" className="quiet">
              {number(sandbox.spec.limits.cpus)} CPU, {bytes(sandbox.spec.limits.memoryBytes)}
            </td>
            <td data-label="Created" className="quiet">
              <time dateTime={sandbox.createdAt} title={time(sandbox.createdAt)}>
                {ago(sandbox.createdAt, now)}
              </time>
            </td>
            <td className="last">
              <div className="row-actions">
                <SandboxActions sandbox={sandbox} brief />
              </div>
            </td>
          </tr>
        ))}
      </tbody>
    </table>
  )
}
