// actions.tsx: what can be done to a sandbox as a whole, by the state that it is in.
import {
  deleteSandbox,
  pauseSandbox,
  restartSandbox,
  resumeSandbox,
  type Sandbox,
  type SandboxState,
  startSandbox,
  stopSandbox,
  updateSandbox,
} from '@berth/contracts'
import { useState } from 'react'
import { useApi } from '../live.js'
import { LimitFields, OptionalLimitFields, titleOf } from '../spec-fields.js'
import { type Fields, limitsBody } from '../spec-form.js'
import { Action, Confirm, Dialog, Form, useTell } from '../ui.js'

const calls = {
  Start: startSandbox,
  Stop: stopSandbox,
  Restart: restartSandbox,
  Pause: pauseSandbox,
  Resume: resumeSandbox,
} as const
type Verb = keyof typeof calls

/** What makes sense in a state; whether it is allowed is for the API to say. */
const verbs: Readonly<Record<SandboxState, readonly Verb[]>> = {
  creating: ['Stop'],
  running: ['Stop', 'Restart', 'Pause'],
  paused: ['Resume', 'Stop'],
  stopped: ['Start'],
  failed: ['Start'],
  lost: [],
  deleted: [],
}

/** @param brief only the first verb, for a line of a list */
export function SandboxActions({ sandbox, brief = false }: { readonly sandbox: Sandbox; readonly brief?: boolean }) {
  const api = useApi()
  const [deleting, setDeleting] = useState(false)
  const [limiting, setLimiting] = useState(false)
  const params = { sandbox: sandbox.id }
  const offered = verbs[sandbox.state].slice(0, brief ? 1 : undefined)
  const title = titleOf(sandbox)
  if (sandbox.state === 'deleted') return null
  return (
    <>
      {offered.map((verb) => (
        <Action
          key={verb}
          className={brief ? 'small' : ''}
          act={() => api.call(calls[verb], { params })}
          aria-label={brief ? `${verb} ${title}` : undefined}
        >
          {verb}
        </Action>
      ))}
      {!brief && (
        <button type="button" onClick={() => setLimiting(true)}>
          Limits
        </button>
      )}
      <button
        type="button"
        className={brief ? 'small' : 'danger'}
        onClick={() => setDeleting(true)}
        aria-label={brief ? `Delete ${title}` : undefined}
      >
        Delete
      </button>
      {deleting && (
        <Confirm
          title={`Delete ${title}?`}
          verb="Delete"
          act={() => api.call(deleteSandbox, { params, query: { force: 'true' } })}
          onClose={() => setDeleting(false)}
        >
          <p>
            Its files are deleted with it{sandbox.state === 'running' ? ', and whatever runs in it is killed' : ''}.
          </p>
        </Confirm>
      )}
      {limiting && <ChangeLimits sandbox={sandbox} onClose={() => setLimiting(false)} />}
    </>
  )
}

const limitFields = [
  ...['limits.memoryBytes', 'limits.cpus', 'limits.diskBytes', 'limits.pids', 'limits.memoryReservationBytes'],
  ...['limits.cpuset', 'limits.cpuShares', 'limits.cpuPeriodUs', 'limits.ioWeight'],
]

function ChangeLimits({ sandbox, onClose }: { readonly sandbox: Sandbox; readonly onClose: () => void }) {
  const api = useApi()
  const tell = useTell()
  const { limits } = sandbox.spec
  const change = async (fields: Fields) => {
    await api.call(
      updateSandbox,
      { params: { sandbox: sandbox.id }, body: limitsBody(fields, limits) },
      // What is shown is what is changed: not what somebody else has made of it meanwhile.
      { headers: { 'if-match': `"${sandbox.version}"` } },
    )
    tell('The limits are changed.')
    onClose()
  }
  return (
    <Dialog title={`Limits of ${titleOf(sandbox)}`} onClose={onClose}>
      <Form send={change} submit="Change" onCancel={onClose} fields={limitFields}>
        <p className="hint">
          Fields that are left empty stay as they are. A running sandbox gets the new limits at once.
        </p>
        <LimitFields now={limits} />
        <OptionalLimitFields now={limits} />
      </Form>
    </Dialog>
  )
}
