import { type Attempt, cancelJob, deleteJob, finalJobStates, getJob, type Job, JobId } from '@berth/contracts'
import { useCallback, useState } from 'react'
import { Link, useLocation } from 'wouter'
import { actor, ago, bytes, commandLine, duration, number, time } from '../format.js'
import { useApi, useLoaded, useNow, useReloadOn } from '../live.js'
import { Labels } from '../spec-fields.js'
import { Action, Confirm, Copy, Facts, Heading, Loading, State, Trouble } from '../ui.js'
import { jobTitle } from './list.js'
import { JobOutput } from './output.js'

export function JobPage({ jobId: text }: { readonly jobId: string }) {
  const id = JobId.safeParse(text)
  return id.success ? <KnownJob jobId={id.data} /> : <NoJob error={new Error('That is not the id of a job.')} />
}

/** The page of a job that cannot be told. */
function NoJob(props: { readonly error: unknown; readonly retry?: () => void }) {
  return (
    <>
      <p className="crumbs">
        <Link href="/jobs">Jobs</Link>
      </p>
      <Heading title="Job" />
      <Trouble {...props} />
    </>
  )
}

const isFinal = ({ state }: Job): boolean => finalJobStates.some((one) => one === state)

function KnownJob({ jobId }: { readonly jobId: JobId }) {
  const api = useApi()
  const [, navigate] = useLocation()
  const [deleting, setDeleting] = useState(false)
  const load = useCallback((signal: AbortSignal) => api.call(getJob, { params: { jobId } }, { signal }), [api, jobId])
  const loaded = useLoaded(load)
  useReloadOn(loaded, ({ subject }) => subject === jobId)
  const { value: job, error } = loaded
  if (!job) return error === undefined ? <Loading /> : <NoJob error={error} retry={loaded.reload} />
  return (
    <>
      <p className="crumbs">
        <Link href="/jobs">Jobs</Link>
        {job.batchId && (
          <>
            {' / '}
            <Link href={`/jobs?batch=${job.batchId}`}>batch</Link>
          </>
        )}
      </p>
      <Heading
        title={
          <>
            {jobTitle(job)} <State state={job.state} />
          </>
        }
      >
        {isFinal(job) ? (
          <button type="button" className="danger" onClick={() => setDeleting(true)}>
            Delete
          </button>
        ) : (
          <Action className="danger" act={() => api.call(cancelJob, { params: { jobId } }).then(loaded.reload)}>
            Cancel job
          </Action>
        )}
      </Heading>
      <Trouble error={error} retry={loaded.reload} />
      <JobOutput key={job.attempts.length} job={job} />
      <About job={job} />
      <Attempts attempts={job.attempts} />
      {deleting && (
        <Confirm
          title="Delete this job?"
          verb="Delete"
          onClose={() => setDeleting(false)}
          act={() => api.call(deleteJob, { params: { jobId } }).then(() => navigate('/jobs'))}
        >
          <p>Its output is deleted with it.</p>
        </Confirm>
      )}
    </>
  )
}

function About({ job }: { readonly job: Job }) {
  const now = useNow(1000)
  const { spec, usage, reason } = job
  const since = (at: string | null) => at && <time title={time(at)}>{ago(at, now)}</time>
  return (
    <div className="panels">
      <section className="card">
        <h2>Result</h2>
        {reason && (
          <p>
            <strong>{reason.code.replaceAll('_', ' ')}</strong>
            {reason.message && `: ${reason.message}`}{' '}
            <span className="quiet">
              by <span title={reason.by}>{actor(reason.by)}</span>
            </span>
          </p>
        )}
        <Facts
          facts={[
            ['Exit code', job.exitCode],
            ['Signal', job.signal],
            ['Killed for memory', job.oomKilled && 'yes'],
            ['Created', since(job.createdAt)],
            ['Not before', since(job.notBefore)],
            ['Started', since(job.startedAt)],
            ['Finished', since(job.finishedAt)],
            ['Wall time', usage && duration(usage.wallMs)],
            ['CPU time', usage && duration(usage.cpuMs)],
            ['Peak memory', usage && bytes(usage.peakMemoryBytes)],
            ['Kept until', job.expiresAt && time(job.expiresAt)],
          ]}
        />
      </section>
      <section className="card">
        <h2>Specification</h2>
        <Facts
          facts={[
            [
              'Id',
              <>
                <code>{job.id}</code> <Copy text={job.id} />
              </>,
            ],
            ['Image', spec.image],
            [
              'Command',
              <code key="command" className="wrap">
                {commandLine(spec.command)}
              </code>,
            ],
            ['User', spec.user],
            [
              'Limits',
              `${number(spec.limits.cpus)} CPU, ${bytes(spec.limits.memoryBytes)}, ${bytes(spec.limits.diskBytes)} disk`,
            ],
            ['Time-out', duration(spec.timeoutMs)],
            ['Priority', number(spec.priority)],
            ['Input', spec.stdinBytes > 0 && bytes(spec.stdinBytes)],
            ['Labels', Object.keys(spec.labels).length > 0 && <Labels labels={spec.labels} />],
          ]}
        />
      </section>
    </div>
  )
}

function Attempts({ attempts }: { readonly attempts: readonly Attempt[] }) {
  if (attempts.length === 0) return null
  return (
    <section className="card wide">
      <h2>Attempts</h2>
      <table className="cards">
        <thead>
          <tr>
            {['Attempt', 'State', 'Reason', 'Exit', 'Placed', 'Queue', 'Start', 'Run'].map((name) => (
              <th key={name} scope="col">
                {name}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {attempts.map((attempt) => (
            <tr key={attempt.id}>
              <th scope="row">{attempt.number}</th>
              <td data-label="State">
                <State state={attempt.state} />
              </td>
              <td data-label="Reason">{attempt.reason?.code.replaceAll('_', ' ') ?? '–'}</td>
              <td data-label="Exit">{attempt.signal ?? attempt.exitCode ?? '–'}</td>
              <td data-label="Placed" className="quiet">
                {time(attempt.placedAt)}
              </td>
              <td data-label="Queue">{ms(attempt.phases.queueMs)}</td>
              <td data-label="Start">{ms(attempt.phases.startMs)}</td>
              <td data-label="Run">{ms(attempt.phases.runMs)}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </section>
  )
}

const ms = (value: number | null): string => (value === null ? '–' : duration(value))
