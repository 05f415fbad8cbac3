import { listSandboxEnds, type Sandbox, type SandboxEnd, type SandboxPhases } from '@berth/contracts'
import { useCallback } from 'react'
import { actor, ago, bytes, commandLine, duration, number, time } from '../format.js'
import { useApi, useLoaded, useNow, useReloadOn } from '../live.js'
import { Labels } from '../spec-fields.js'
import { Copy, Empty, Facts, Trouble } from '../ui.js'

export function Overview({ sandbox }: { readonly sandbox: Sandbox }) {
  const now = useNow(1000)
  const { spec, reason, endsAt } = sandbox
  const since = (at: string | null) => at && <time title={time(at)}>{ago(at, now)}</time>
  return (
    <div className="panels">
      <section className="card">
        <h2>State</h2>
        {reason && (
          <p>
            <strong>{reason.code.replaceAll('_', ' ')}</strong>
            {reason.message && `: ${reason.message}`}{' '}
            <span className="quiet">
              by <span title={reason.by}>{actor(reason.by)}</span>, {since(reason.at)}
            </span>
          </p>
        )}
        <Facts
          facts={[
            ['Phase', sandbox.phase.replaceAll('_', ' ')],
            ['Wanted', sandbox.desired],
            ['Health', sandbox.health === 'none' ? null : sandbox.health],
            ['Created', since(sandbox.createdAt)],
            ['Started', since(sandbox.startedAt)],
            ['Ended', since(sandbox.endedAt)],
            ['Last activity', since(sandbox.lastActivityAt)],
            ['Ends', endsAt && `${ago(endsAt.at, now)}, by ${clockNames[endsAt.clock]}`],
            ['Starts', `${number(sandbox.run)}${sandbox.restarts ? `, and ${number(sandbox.restarts)} restarts` : ''}`],
          ]}
        />
      </section>
      <section className="card">
        <h2>Latest start</h2>
        <Timeline phases={sandbox.phases} />
      </section>
      <section className="card">
        <h2>Specification</h2>
        <Facts
          facts={[
            [
              'Id',
              <>
                <code>{sandbox.id}</code> <Copy text={sandbox.id} />
              </>,
            ],
            ['Image', spec.image],
            ['Command', commandOf(spec)],
            ['User', spec.user],
            ['Directory', spec.workingDir],
            ['Host name', spec.hostname],
            ['Restart', spec.restart.policy === 'no' ? null : spec.restart.policy],
            ['Labels', Object.keys(sandbox.labels).length > 0 && <Labels labels={sandbox.labels} />],
            ...Object.entries(clockNames).map(([clock, name]): [string, string | null] => {
              const ms = clocksOf(spec)[clock]
              return [name[0]?.toUpperCase() + name.slice(1), ms === null || ms === undefined ? null : duration(ms)]
            }),
            ['Environment', Object.keys(spec.env).length > 0 && <EnvironmentList env={spec.env} />],
          ]}
        />
      </section>
      <section className="card">
        <h2>Limits</h2>
        <Facts
          facts={[
            ['Memory', bytes(spec.limits.memoryBytes)],
            ['CPUs', number(spec.limits.cpus)],
            ['Disk', bytes(spec.limits.diskBytes)],
            ['Processes', number(spec.limits.pids)],
            ['Shared memory', bytes(spec.limits.shmBytes)],
            ['Soft memory limit', optional(spec.limits.memoryReservationBytes, bytes)],
            ['Swap', spec.limits.swapBytes > 0 && bytes(spec.limits.swapBytes)],
            ['Runs on CPUs', spec.limits.cpuset],
            ['CPU weight', optional(spec.limits.cpuShares, number)],
            ['CPU period', optional(spec.limits.cpuPeriodUs, (us) => duration(us / 1000))],
            ['Disk weight', optional(spec.limits.ioWeight, number)],
            ['Node', sandbox.nodeId && <code>{sandbox.nodeId}</code>],
            ['Why there', sandbox.placedBecause],
          ]}
        />
      </section>
      <Ends sandbox={sandbox} />
    </div>
  )
}

const optional = (value: number | undefined, shown: (value: number) => string) =>
  value === undefined ? undefined : shown(value)

const clockNames = {
  maxLifetimeMs: 'longest life',
  idleTimeoutMs: 'idle time-out',
  pausedForMs: 'longest pause',
  deleteAfterMs: 'delete after',
} as const

const clocksOf = ({ clocks }: Sandbox['spec']): Readonly<Record<string, number | null>> => clocks

function commandOf({ entrypoint = [], command = [], runImage }: Sandbox['spec']) {
  const argv = [...entrypoint, ...command]
  if (argv.length > 0) return <code>{commandLine(argv)}</code>
  return runImage ? 'what the image starts' : 'none: it runs until it is stopped'
}

function EnvironmentList({ env }: { readonly env: Readonly<Record<string, string>> }) {
  return (
    <ul className="plain-list">
      {Object.entries(env).map(([name, value]) => (
        <li key={name}>
          <code>
            {name}={value}
          </code>
        </li>
      ))}
    </ul>
  )
}

const phaseNames = {
  placeMs: 'To the node',
  imageMs: 'Image',
  rootfsMs: 'File system',
  networkMs: 'Network',
  startMs: 'Start',
} as const satisfies Partial<Record<keyof SandboxPhases, string>>

/** How long each phase of the latest start took, as bars one after the other. */
function Timeline({ phases }: { readonly phases: SandboxPhases }) {
  const parts = Object.entries(phaseNames).map(([key, name]) => ({ name, ms: valuesOf(phases)[key] ?? null }))
  const known = parts.filter((part): part is { name: (typeof part)['name']; ms: number } => part.ms !== null)
  const total = Math.max(
    phases.readyMs ?? 0,
    known.reduce((sum, { ms }) => sum + ms, 0),
  )
  if (known.length === 0 || total === 0) return <Empty>It has not been started yet.</Empty>
  let at = 0
  return (
    <>
      <ol className="timeline">
        {known.map(({ name, ms }) => {
          const from = at
          at += ms
          return (
            <li key={name}>
              <span>{name}</span>
              <svg viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">
                <rect className="track" width="100" height="8" />
                <rect className="bar" x={(from / total) * 100} width={Math.max(0.7, (ms / total) * 100)} height="8" />
              </svg>
              <span className="amount">{duration(ms)}</span>
            </li>
          )
        })}
      </ol>
      {phases.readyMs !== null && <p className="quiet">Ready after {duration(phases.readyMs)}.</p>}
    </>
  )
}

const valuesOf = (phases: SandboxPhases): Readonly<Record<string, number | null>> => phases

function Ends({ sandbox }: { readonly sandbox: Sandbox }) {
  const api = useApi()
  const { id } = sandbox
  const load = useCallback(
    async (signal: AbortSignal) =>
      (await api.call(listSandboxEnds, { params: { sandbox: id }, query: { limit: 20 } }, { signal })).items,
    [api, id],
  )
  const loaded = useLoaded(load)
  useReloadOn(loaded, ({ type, subject }) => subject === id && type !== 'sandbox.updated')
  return (
    <section className="card wide">
      <h2>How its runs ended</h2>
      <Trouble error={loaded.error} retry={loaded.reload} />
      {loaded.value?.length === 0 && <Empty>None has ended yet.</Empty>}
      {loaded.value && loaded.value.length > 0 && (
        <table className="cards">
          <thead>
            <tr>
              {['Run', 'Reason', 'Exit', 'Ended', 'Wall time', 'CPU time', 'Peak memory'].map((name) => (
                <th key={name} scope="col">
                  {name}
                </th>
              ))}
            </tr>
          </thead>
          <tbody>
            {loaded.value.map((end) => (
              <EndRow key={`${end.run}.${end.restart}`} end={end} />
            ))}
          </tbody>
        </table>
      )}
    </section>
  )
}

function EndRow({ end }: { readonly end: SandboxEnd }) {
  const { usage } = end
  return (
    <tr>
      <th scope="row">
        {end.run}
        {end.restart > 0 && `.${end.restart}`}
      </th>
      <td data-label="Reason">
        {end.reason.code.replaceAll('_', ' ')} <span className="quiet">{end.reason.message}</span>
      </td>
      <td data-label="Exit">{end.signal ?? end.exitCode ?? '–'}</td>
      <td data-label="Ended" className="quiet">
        {time(end.endedAt)}
      </td>
      <td data-label="Wall time">{usage ? duration(usage.wallMs) : '–'}</td>
      <td data-label="CPU time">{usage ? duration(usage.cpuMs) : '–'}</td>
      <td data-label="Peak memory">{usage ? bytes(usage.peakMemoryBytes) : '–'}</td>
    </tr>
  )
}
