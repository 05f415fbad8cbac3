import { createBatch, createJob } from '@berth/contracts'
import { useState } from 'react'
import { useLocation } from 'wouter'
import { counted } from '../format.js'
import { useApi } from '../live.js'
import { ImageField, LimitFields } from '../spec-fields.js'
import { batchBodies, type Fields, jobBody } from '../spec-form.js'
import { Dialog, Field, Form, useTell } from '../ui.js'

const fields = [
  ...['name', 'image', 'command', 'user', 'env', 'labels', 'timeoutMs', 'retry.maxAttempts'],
  ...['limits.memoryBytes', 'limits.cpus', 'limits.diskBytes', 'limits.pids'],
]

/** @param many a job for each line of the command */
export function CreateJob({ many, onClose }: { readonly many: boolean; readonly onClose: () => void }) {
  const api = useApi()
  const tell = useTell()
  const [, navigate] = useLocation()
  const [run, setRun] = useState('shell')
  const createOne = async (typed: Fields) => {
    const job = await api.call(createJob, { body: jobBody(typed) })
    onClose()
    navigate(`/jobs/${job.id}`)
  }
  const createMany = async (typed: Fields) => {
    const jobs = batchBodies(typed)
    const batch = await api.call(createBatch, { body: { ...(typed.name ? { name: typed.name } : {}), jobs } })
    tell(`${counted(batch.total, 'job')} created.`)
    onClose()
    navigate(`/jobs?batch=${batch.id}`)
  }
  return (
    <Dialog title={many ? 'New batch of jobs' : 'New job'} onClose={onClose} wide>
      <Form send={many ? createMany : createOne} submit="Create" onCancel={onClose} fields={fields}>
        <div className="columns">
          <Field label="Name" name="name" hint="Optional">
            {(input) => <input {...input} maxLength={63} spellCheck={false} autoComplete="off" />}
          </Field>
          <ImageField />
        </div>
        <Field label="Run as" name="run">
          {(input) => (
            <select {...input} value={run} onChange={(event) => setRun(event.target.value)}>
              <option value="shell">a shell script</option>
              <option value="words">a program with arguments</option>
            </select>
          )}
        </Field>
        <Field
          label={many ? 'Commands' : 'Command'}
          name="command"
          hint={
            many
              ? 'One a line; each line is a job, up to 1,000'
              : run === 'shell'
                ? 'For sh -c'
                : 'Quotes as in a shell; nothing is expanded'
          }
        >
          {(input) => <textarea {...input} rows={many ? 6 : 3} spellCheck={false} className="mono" required />}
        </Field>
        <LimitFields />
        <div className="columns narrow">
          <Field label="Time-out" name="timeout" field="timeoutMs" hint="Of one attempt">
            {(input) => <input {...input} placeholder="10m" autoComplete="off" />}
          </Field>
          <Field label="Attempts" name="attempts" field="retry.maxAttempts" hint="At most">
            {(input) => <input {...input} placeholder="1" inputMode="numeric" autoComplete="off" />}
          </Field>
          <Field label="User" name="user">
            {(input) => <input {...input} spellCheck={false} autoComplete="off" />}
          </Field>
        </div>
        <div className="columns">
          <Field label="Environment" name="env" hint="NAME=value, one a line">
            {(input) => <textarea {...input} rows={2} spellCheck={false} className="mono" />}
          </Field>
          <Field label="Labels" name="labels" hint="key=value, one a line">
            {(input) => <textarea {...input} rows={2} spellCheck={false} className="mono" />}
          </Field>
        </div>
      </Form>
    </Dialog>
  )
}
