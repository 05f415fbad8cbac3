import { createSandbox } from '@berth/contracts'
import { useState } from 'react'
import { useLocation } from 'wouter'
import { useApi } from '../live.js'
import { ImageField, LimitFields } from '../spec-fields.js'
import { type Fields, sandboxBody } from '../spec-form.js'
import { Dialog, Field, Form } from '../ui.js'

const createFields = [
  ...['name', 'image', 'command', 'user', 'workingDir', 'env', 'labels', 'restart'],
  ...['limits.memoryBytes', 'limits.cpus', 'limits.diskBytes', 'limits.pids'],
  ...['clocks.maxLifetimeMs', 'clocks.idleTimeoutMs', 'clocks.pausedForMs', 'clocks.deleteAfterMs'],
]

export function CreateSandbox({ onClose }: { readonly onClose: () => void }) {
  const api = useApi()
  const [, navigate] = useLocation()
  const [run, setRun] = useState('none')
  const create = async (fields: Fields) => {
    const sandbox = await api.call(createSandbox, { body: sandboxBody(fields) })
    onClose()
    navigate(`/sandboxes/${sandbox.id}`)
  }
  return (
    <Dialog title="New sandbox" onClose={onClose} wide>
      <Form send={create} submit="Create" onCancel={onClose} fields={createFields}>
        <div className="columns">
          <Field label="Name" name="name" hint="Optional; unique among your sandboxes">
            {(input) => <input {...input} maxLength={63} spellCheck={false} autoComplete="off" />}
          </Field>
          <ImageField />
        </div>
        <Field label="Main process" name="run">
          {(input) => (
            <select {...input} value={run} onChange={(event) => setRun(event.target.value)}>
              <option value="none">none: it runs until it is stopped</option>
              <option value="shell">a shell script</option>
              <option value="words">a program with arguments</option>
              <option value="image">what the image starts</option>
            </select>
          )}
        </Field>
        {(run === 'shell' || run === 'words') && (
          <Field
            label="Command"
            name="command"
            hint={run === 'shell' ? 'For sh -c' : 'Quotes as in a shell; nothing is expanded'}
          >
            {(input) => <textarea {...input} rows={2} spellCheck={false} className="mono" />}
          </Field>
        )}
        <LimitFields />
        <div className="columns">
          <Field label="Environment" name="env" hint="NAME=value, one a line">
            {(input) => <textarea {...input} rows={3} spellCheck={false} className="mono" />}
          </Field>
          <Field label="Labels" name="labels" hint="key=value, one a line">
            {(input) => <textarea {...input} rows={3} spellCheck={false} className="mono" />}
          </Field>
        </div>
        <details>
          <summary>Clocks, restart, user</summary>
          <div className="columns">
            <Clock
              label="Longest life"
              name="maxLifetime"
              field="clocks.maxLifetimeMs"
              hint="From a start; then it is stopped"
            />
            <Clock
              label="Idle time-out"
              name="idleTimeout"
              field="clocks.idleTimeoutMs"
              hint="Without activity; then it is stopped"
            />
            <Clock label="Longest pause" name="pausedFor" field="clocks.pausedForMs" hint="Then it is stopped" />
            <Clock label="Delete after" name="deleteAfter" field="clocks.deleteAfterMs" hint="From its end" />
            <Field label="Restart" name="restart">
              {(input) => (
                <select {...input}>
                  <option>no</option>
                  <option>on-failure</option>
                  <option>always</option>
                  <option>unless-stopped</option>
                </select>
              )}
            </Field>
            <Field label="User" name="user" hint="Name or number, with an optional group">
              {(input) => <input {...input} spellCheck={false} autoComplete="off" />}
            </Field>
            <Field label="Working directory" name="workingDir">
              {(input) => <input {...input} spellCheck={false} className="mono" />}
            </Field>
          </div>
        </details>
      </Form>
    </Dialog>
  )
}

function Clock(props: {
  readonly label: string
  readonly name: string
  readonly field: string
  readonly hint: string
}) {
  return <Field {...props}>{(input) => <input {...input} placeholder="e.g. 1h30m" autoComplete="off" />}</Field>
}
