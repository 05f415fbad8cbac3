// share.tsx: links to a terminal, made and revoked.
import {
  createTerminalShare,
  listTerminalShares,
  revokeTerminalShare,
  type TerminalId,
  TerminalMode,
} from '@berth/contracts'
import { useCallback, useState } from 'react'
import { ago } from '../format.js'
import { useApi, useLoaded, useNow } from '../live.js'
import type { Fields } from '../spec-form.js'
import { Action, Copy, Dialog, Empty, Field, Form, Notice, Trouble } from '../ui.js'

export function ShareDialog({
  sandbox,
  terminal,
  onClose,
}: {
  readonly sandbox: string
  readonly terminal: TerminalId
  readonly onClose: () => void
}) {
  const api = useApi()
  const now = useNow(10_000)
  const [link, setLink] = useState<string>()
  const load = useCallback(
    async (signal: AbortSignal) =>
      (await api.call(listTerminalShares, { params: { sandbox, terminal } }, { signal })).items,
    [api, sandbox, terminal],
  )
  const { value, error, reload } = useLoaded(load)
  const make = async ({ mode, validFor }: Fields) => {
    const body = { mode: TerminalMode.parse(mode), validForMs: validFor }
    const { path } = await api.call(createTerminalShare, { params: { sandbox, terminal }, body })
    setLink(new URL(path, location.origin).href)
    reload()
  }
  return (
    <Dialog title="Share this terminal" onClose={onClose}>
      {link === undefined ? (
        <Form send={make} submit="Make a link" onCancel={onClose} fields={[]}>
          <p className="hint">Whoever has the link sees the terminal, without signing in, until it expires.</p>
          <Field label="They may" name="mode">
            {(input) => (
              <select {...input}>
                <option value="read">look</option>
                <option value="write">look and type</option>
              </select>
            )}
          </Field>
          <Field label="Good for" name="validFor">
            {(input) => (
              <select {...input} defaultValue="30m">
                <option value="10m">10 minutes</option>
                <option value="30m">30 minutes</option>
                <option value="1h">an hour</option>
                <option value="1d">a day</option>
                <option value="7d">a week</option>
              </select>
            )}
          </Field>
        </Form>
      ) : (
        <div className="dialog-body">
          <Notice kind="good">This link is shown once.</Notice>
          <p className="copy-line">
            <input
              readOnly
              value={link}
              aria-label="Link"
              className="mono"
              onFocus={(event) => event.target.select()}
            />
            <Copy text={link} />
          </p>
        </div>
      )}
      <section className="dialog-body">
        <h3>Links that are good now</h3>
        <Trouble error={error} retry={reload} />
        {value?.length === 0 && <Empty>There are none.</Empty>}
        <ul className="plain-list">
          {value?.map((share) => (
            <li key={share.id}>
              <span>
                {share.mode === 'read' ? 'look' : 'look and type'}, expires {ago(share.expiresAt, now)}
              </span>
              <Action
                className="small"
                act={() =>
                  api.call(revokeTerminalShare, { params: { sandbox, terminal, share: share.id } }).then(reload)
                }
              >
                Revoke
              </Action>
            </li>
          ))}
        </ul>
      </section>
    </Dialog>
  )
}
