import {
  type ApiKey,
  createKey,
  listKeys,
  type NewApiKey,
  revokeKey,
  type Session,
  TenantScope,
} from '@berth/contracts'
import { useCallback, useState } from 'react'
import { ago, time } from '../format.js'
import { useApi, useLoaded, useNow } from '../live.js'
import type { Fields } from '../spec-form.js'
import { Confirm, Copy, Dialog, Field, Form, Heading, Loading, Notice, State, Trouble } from '../ui.js'

export function KeysPage({ session }: { readonly session: Session }) {
  const api = useApi()
  const now = useNow(10_000)
  const [creating, setCreating] = useState(false)
  const [revoking, setRevoking] = useState<ApiKey>()
  const load = useCallback(
    async (signal: AbortSignal) => {
      const items: ApiKey[] = []
      let cursor: string | undefined
      // A tenant has few keys; the bound is for one that makes them by program.
      for (let page = 0; page < 5; page++) {
        const answer = await api.call(listKeys, { query: { limit: 200, cursor } }, { signal })
        items.push(...answer.items)
        if (answer.nextCursor === null) break
        cursor = answer.nextCursor
      }
      return items
    },
    [api],
  )
  const { value, error, reload } = useLoaded(load)
  const mayWrite = session.scopes.includes('keys:write')
  return (
    <>
      <Heading title="API keys">
        {mayWrite && (
          <button type="button" className="primary" onClick={() => setCreating(true)}>
            New key
          </button>
        )}
      </Heading>
      <Trouble error={error} retry={reload} />
      {!value && error === undefined && <Loading />}
      {value && (
        <table className="cards">
          <thead>
            <tr>
              {['Name', 'State', 'Begins with', 'Scopes', 'Created', 'Last used', 'Expires'].map((name) => (
                <th key={name} scope="col">
                  {name}
                </th>
              ))}
              <th scope="col">
                <span className="visually-hidden">Actions</span>
              </th>
            </tr>
          </thead>
          <tbody>
            {value.map((key) => (
              <KeyRow
                key={key.id}
                apiKey={key}
                now={now}
                own={key.id === session.keyId}
                {...(mayWrite ? { revoke: () => setRevoking(key) } : {})}
              />
            ))}
          </tbody>
        </table>
      )}
      {creating && <CreateKey scopes={session.scopes} onMade={reload} onClose={() => setCreating(false)} />}
      {revoking && (
        <Confirm
          title={`Revoke ${revoking.name}?`}
          verb="Revoke"
          onClose={() => setRevoking(undefined)}
          act={() => api.call(revokeKey, { params: { keyId: revoking.id } }).then(reload)}
        >
          <p>
            Whoever uses it is refused within a second
            {revoking.id === session.keyId ? '. You are signed in with this key: your session ends too.' : '.'}
          </p>
        </Confirm>
      )}
    </>
  )
}

function KeyRow({
  apiKey: key,
  now,
  own,
  revoke,
}: {
  readonly apiKey: ApiKey
  readonly now: number
  readonly own: boolean
  readonly revoke?: () => void
}) {
  const expired = key.expiresAt !== null && Date.parse(key.expiresAt) <= now
  const state = key.revokedAt ? 'revoked' : expired ? 'expired' : 'active'
  const all = TenantScope.options.every((scope) => key.scopes.includes(scope))
  const at = (moment: string | null, none: string) =>
    moment ? <time title={time(moment)}>{ago(moment, now)}</time> : none
  return (
    <tr>
      <th scope="row">
        {key.name}
        {own && (
          <span className="labels">
            <span>this session</span>
          </span>
        )}
      </th>
      <td data-label="State">
        <State state={state} />
      </td>
      <td data-label="Begins with">
        <code>{key.hint}…</code>
      </td>
      <td data-label="Scopes" className="quiet wrap-cell">
        {all ? 'all' : key.scopes.join(', ')}
      </td>
      <td data-label="Created" className="quiet">
        {at(key.createdAt, '–')}
      </td>
      <td data-label="Last used" className="quiet">
        {at(key.lastUsedAt, 'never')}
      </td>
      <td data-label="Expires" className="quiet">
        {at(key.expiresAt, 'never')}
      </td>
      <td className="last">
        <div className="row-actions">
          {revoke && state === 'active' && (
            <button type="button" className="small" aria-label={`Revoke ${key.name}`} onClick={revoke}>
              Revoke
            </button>
          )}
        </div>
      </td>
    </tr>
  )
}

const days: Readonly<Record<string, number>> = { '7 days': 7, '30 days': 30, '90 days': 90, 'a year': 365 }

function CreateKey({
  scopes,
  onMade,
  onClose,
}: {
  readonly scopes: readonly TenantScope[]
  readonly onMade: () => void
  readonly onClose: () => void
}) {
  const api = useApi()
  const [made, setMade] = useState<NewApiKey>()
  const create = async (fields: Fields) => {
    const valid = days[fields.validFor ?? '']
    const expiresAt = valid === undefined ? undefined : new Date(Date.now() + valid * 86_400_000).toISOString()
    const chosen = scopes.filter((scope) => fields[scope] !== undefined)
    setMade(await api.call(createKey, { body: { name: fields.name ?? '', scopes: chosen, expiresAt } }))
    onMade()
  }
  if (made)
    return (
      <Dialog title={`Key ${made.name}`} onClose={onClose}>
        <div className="dialog-body">
          <Notice kind="good">The secret is shown once. Keep it where nobody else can read it.</Notice>
          <p className="copy-line">
            <input
              readOnly
              value={made.secret}
              aria-label="Secret"
              className="mono"
              onFocus={(event) => event.target.select()}
            />
            <Copy text={made.secret} />
          </p>
        </div>
        <footer>
          <button type="button" className="primary" onClick={onClose}>
            Done
          </button>
        </footer>
      </Dialog>
    )
  return (
    <Dialog title="New API key" onClose={onClose}>
      <Form send={create} submit="Create" onCancel={onClose} fields={['name', 'scopes']}>
        <Field label="Name" name="name">
          {(input) => <input {...input} required maxLength={63} spellCheck={false} autoComplete="off" />}
        </Field>
        <Field label="Good for" name="validFor">
          {(input) => (
            <select {...input}>
              <option>until it is revoked</option>
              {Object.keys(days).map((one) => (
                <option key={one}>{one}</option>
              ))}
            </select>
          )}
        </Field>
        <fieldset>
          <legend>Scopes</legend>
          <div className="checks">
            {scopes.map((scope) => (
              <label key={scope}>
                <input type="checkbox" name={scope} defaultChecked /> {scope}
              </label>
            ))}
          </div>
        </fieldset>
      </Form>
    </Dialog>
  )
}
