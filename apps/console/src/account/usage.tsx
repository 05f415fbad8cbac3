import { getUsage, type Usage } from '@berth/contracts'
import { useCallback, useEffect, useState } from 'react'
import { bytes, duration, number } from '../format.js'
import { useApi, useLoaded, useReloadOn } from '../live.js'
import { Facts, Heading, Loading, Trouble } from '../ui.js'

/** Memory by time, to a thousandth at least. */
function memoryHours(byteMs: number): string {
  const hours = byteMs / 1024 ** 3 / 3_600_000
  return hours > 0 && hours < 0.001 ? 'under 0.001 GiB hours' : `${number(hours)} GiB hours`
}

const DAY_MS = 86_400_000

export function UsagePage() {
  const api = useApi()
  const [days, setDays] = useState(1)
  const load = useCallback(
    (signal: AbortSignal) => {
      const from = new Date(Date.now() - days * DAY_MS).toISOString()
      return api.call(getUsage, { query: { from } }, { signal })
    },
    [api, days],
  )
  const loaded = useLoaded(load)
  const { value, error, reload } = loaded
  useReloadOn(loaded, () => true)
  useEffect(() => {
    const timer = setInterval(reload, 15_000)
    return () => clearInterval(timer)
  }, [reload])
  return (
    <>
      <Heading title="Usage" />
      <Trouble error={error} retry={reload} />
      {!value && error === undefined && <Loading />}
      {value && <Now usage={value} />}
      <section className="card">
        <header>
          <h2>Jobs of the last</h2>
          <select aria-label="Period" value={days} onChange={(event) => setDays(Number(event.target.value))}>
            <option value={1}>day</option>
            <option value={7}>7 days</option>
            <option value={30}>30 days</option>
          </select>
        </header>
        {value && (
          <Facts
            facts={[
              ['Jobs', number(value.period.jobs)],
              ['Attempts', number(value.period.attempts)],
              ['CPU time', duration(value.period.cpuMs)],
              ['Wall time', duration(value.period.wallMs)],
              ['Memory', memoryHours(value.period.memoryByteMs)],
              ['Output', bytes(value.period.outputBytes)],
            ]}
          />
        )}
      </section>
    </>
  )
}

function Now({ usage: { now, quota } }: { readonly usage: Usage }) {
  return (
    <section className="card">
      <h2>Now, against quota</h2>
      <div className="meters">
        <Meter name="Sandboxes" used={now.sandboxes} of={quota.sandboxes} show={number} />
        <Meter name="CPUs" used={now.cpus} of={quota.cpus} show={number} />
        <Meter name="Memory" used={now.memoryBytes} of={quota.memoryBytes} show={bytes} />
        <Meter name="Disk" used={now.diskBytes} of={quota.diskBytes} show={bytes} />
        <Meter name="Images" used={now.imageBytes} of={quota.imageBytes} show={bytes} />
        <Meter name="Jobs running" used={now.runningJobs} of={quota.concurrentJobs} show={number} />
        <Meter name="Jobs unfinished" used={now.unfinishedJobs} of={quota.unfinishedJobs} show={number} />
      </div>
      <p className="quiet">
        Besides: {number(quota.terminals)} terminals and {number(quota.pids)} processes on one node,{' '}
        {number(quota.requestsPerMinute)} requests a minute.
      </p>
    </section>
  )
}

function Meter({
  name,
  used,
  of,
  show,
}: {
  readonly name: string
  readonly used: number
  readonly of: number
  readonly show: (value: number) => string
}) {
  const share = of === 0 ? (used > 0 ? 1 : 0) : Math.min(1, used / of)
  return (
    <div className="meter">
      <span>{name}</span>
      <svg viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">
        <rect className="track" width="100" height="8" />
        <rect className={share >= 0.9 ? 'bar full' : 'bar'} width={share * 100} height="8" />
      </svg>
      <span className="amount">
        {show(used)} of {show(of)}
      </span>
    </div>
  )
}
