import { type Job, JobState, jobStates, listJobs } from '@berth/contracts'
import { useCallback, useState } from 'react'
import { Link, useSearchParams } from 'wouter'
import { ago, commandLine, counted, duration, time } from '../format.js'
import { useApi, useLoaded, useNow, useReloadOn } from '../live.js'
import { Labels } from '../spec-fields.js'
import { Empty, Heading, Loading, State, Trouble } from '../ui.js'
import { CreateJob } from './create.js'

const PAGE = 50

export function JobsPage() {
  const api = useApi()
  const [search, setSearch] = useSearchParams()
  const state = JobState.safeParse(search.get('state')).data
  const label = search.get('label') ?? ''
  const batchId = search.get('batch') ?? undefined
  const [pages, setPages] = useState(1)
  const [creating, setCreating] = useState<'one' | 'many'>()
  const load = useCallback(
    async (signal: AbortSignal) => {
      const items: Job[] = []
      let cursor: string | undefined
      for (let page = 0; page < pages; page++) {
        const query = { limit: PAGE, cursor, state, batchId, label: label || undefined }
        const answer = await api.call(listJobs, { query }, { signal })
        items.push(...answer.items)
        if (answer.nextCursor === null) return { items, more: false }
        cursor = answer.nextCursor
      }
      return { items, more: true }
    },
    [api, state, label, batchId, pages],
  )
  const loaded = useLoaded(load)
  useReloadOn(loaded, ({ type }) => type.startsWith('job.'))
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
      <Heading title={batchId ? 'Jobs of a batch' : 'Jobs'}>
        {batchId && (
          <button type="button" onClick={() => filter('batch', '')}>
            All jobs
          </button>
        )}
        <button type="button" onClick={() => setCreating('many')}>
          New batch
        </button>
        <button type="button" className="primary" onClick={() => setCreating('one')}>
          New job
        </button>
      </Heading>
      <search className="filters">
        <label>
          State
          <select value={state ?? ''} onChange={(event) => filter('state', event.target.value)}>
            <option value="">all</option>
            {jobStates.map((one) => (
              <option key={one} value={one}>
                {one.replace('_', ' ')}
              </option>
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
          {state || label || batchId
            ? 'No job matches.'
            : 'There is no job yet. A job is a command that runs to its end.'}
        </Empty>
      )}
      {value && value.items.length > 0 && <JobTable jobs={value.items} />}
      {value?.more && (
        <button type="button" onClick={() => setPages((old) => old + 1)}>
          Show more
        </button>
      )}
      {creating && <CreateJob many={creating === 'many'} onClose={() => setCreating(undefined)} />}
    </>
  )
}

export const jobTitle = ({ id, spec }: Job): string => spec.name ?? `…${id.slice(-8)}`

function JobTable({ jobs }: { readonly jobs: readonly Job[] }) {
  const now = useNow(5000)
  return (
    <table className="cards">
      <caption className="visually-hidden">{counted(jobs.length, 'job')}</caption>
      <thead>
        <tr>
          <th scope="col">Name</th>
          <th scope="col">State</th>
          <th scope="col">Command</th>
          <th scope="col">Image</th>
          <th scope="col">Created</th>
          <th scope="col">Ran for</th>
        </tr>
      </thead>
      <tbody>
        {jobs.map((job) => (
          <tr key={job.id}>
            <th scope="row">
              <Link href={`/jobs/${job.id}`} title={job.id}>
                {jobTitle(job)}
              </Link>
              <Labels labels={job.spec.labels} />
            </th>
            <td data-label="State">
              <State state={job.state} />
            </td>
            <td data-label="Command">
              <code className="clip">{commandLine(job.spec.command)}</code>
            </td>
            <td data-label="Image">{job.spec.image}</td>
            <td data-label="Created" className="quiet">
              <time dateTime={job.createdAt} title={time(job.createdAt)}>
                {ago(job.createdAt, now)}
              </time>
            </td>
            <td data-label="Ran for" className="quiet">
              {job.usage ? duration(job.usage.wallMs) : job.startedAt ? duration(now - Date.parse(job.startedAt)) : '–'}
            </td>
          </tr>
        ))}
      </tbody>
    </table>
  )
}
