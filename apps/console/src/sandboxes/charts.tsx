// charts.tsx: use of CPU, memory and the rest, live, as lines over the last minutes.
import { type Sandbox, type SandboxStats, streamSandboxStats } from '@berth/contracts'
import { type PointerEvent, useCallback, useId, useState } from 'react'
import { bytes, number } from '../format.js'
import { useApi, useStream } from '../live.js'
import { type Box, keepSince, linePath, nearest, type Point, scaleOf } from '../scale.js'
import { Empty, Facts, Loading, Trouble } from '../ui.js'

const SPAN_MS = 5 * 60_000
const MiB = 1024 ** 2

interface Series {
  readonly last: SandboxStats | undefined
  readonly cpus: readonly Point[]
  readonly memory: readonly Point[]
  readonly received: readonly Point[]
  readonly sent: readonly Point[]
  readonly read: readonly Point[]
  readonly written: readonly Point[]
}

const nothing: Series = { last: undefined, cpus: [], memory: [], received: [], sent: [], read: [], written: [] }

/** One more sample. Counters become rates; they begin anew with every run, and a gap in time breaks the lines. */
function addSample(old: Series, now: SandboxStats): Series {
  const at = Date.parse(now.at)
  const before = old.last
  const seconds = before ? (at - Date.parse(before.at)) / 1000 : 0
  const fresh = !before || seconds <= 0 || seconds > 30 || now.cpuMs < before.cpuMs
  const rate = (name: 'receivedBytes' | 'sentBytes' | 'readBytes' | 'writtenBytes') =>
    fresh ? null : Math.max(0, now[name] - before[name]) / seconds
  const add = (points: readonly Point[], value: number | null) => [
    ...keepSince(points, at - SPAN_MS),
    ...(fresh && points.length > 0 ? [{ at: at - 1, value: null }] : []),
    { at, value },
  ]
  return {
    last: now,
    cpus: add(old.cpus, now.cpus),
    memory: add(old.memory, now.memoryBytes),
    received: add(old.received, rate('receivedBytes')),
    sent: add(old.sent, rate('sentBytes')),
    read: add(old.read, rate('readBytes')),
    written: add(old.written, rate('writtenBytes')),
  }
}

export function Charts({ sandbox }: { readonly sandbox: Sandbox }) {
  const api = useApi()
  const { id } = sandbox
  const [series, setSeries] = useState(nothing)
  const follow = useCallback(
    async (signal: AbortSignal, alive: () => void) => {
      for await (const sample of api.values(streamSandboxStats, { params: { sandbox: id } }, { signal, onOpen: alive }))
        setSeries((old) => addSample(old, sample))
    },
    [api, id],
  )
  const running = sandbox.state === 'running' || sandbox.state === 'paused'
  const { error } = useStream(running, follow)
  const { last } = series
  if (!last && !running) return <Empty>A sandbox that is {sandbox.state} uses nothing that could be shown.</Empty>
  if (!last) return error === undefined ? <Loading /> : <Trouble error={error} />
  const perSecond = (value: number) => `${bytes(value)}/s`
  return (
    <>
      <Trouble error={running ? error : undefined} />
      <div className="panels">
        <Chart
          title="CPU"
          lines={[{ name: 'CPUs in use', points: series.cpus }]}
          least={sandbox.spec.limits.cpus}
          limit={sandbox.spec.limits.cpus}
          show={(value) => `${number(value)} CPU`}
        />
        <Chart
          title="Memory"
          lines={[{ name: 'In use', points: series.memory }]}
          least={16 * MiB}
          limit={last.memoryLimitBytes}
          base={1024}
          show={bytes}
        />
        <Chart
          title="Disk access"
          lines={[
            { name: 'Read', points: series.read },
            { name: 'Written', points: series.written },
          ]}
          least={1024}
          base={1024}
          show={perSecond}
        />
        <Chart
          title="Network"
          lines={[
            { name: 'Received', points: series.received },
            { name: 'Sent', points: series.sent },
          ]}
          least={1024}
          base={1024}
          show={perSecond}
        />
      </div>
      <section className="card">
        <h2>Since the start</h2>
        <Facts
          facts={[
            ['CPU time', `${number(last.cpuMs / 1000)} s`],
            ['Throttled', last.cpuThrottledMs > 0 && `${number(last.cpuThrottledMs / 1000)} s`],
            ['Peak memory', bytes(last.memoryPeakBytes)],
            ['Killed for memory', last.oomKills > 0 && number(last.oomKills)],
            ['Processes', `${number(last.pids)} of ${number(last.pidsLimit)}`],
            ['Disk', last.diskBytes !== null && `${bytes(last.diskBytes)} of ${bytes(last.diskLimitBytes)}`],
          ]}
        />
      </section>
    </>
  )
}

const box: Box = { width: 600, height: 150 }

function Chart({
  title,
  lines,
  least,
  limit,
  base = 1000,
  show,
}: {
  readonly title: string
  readonly lines: readonly { readonly name: string; readonly points: readonly Point[] }[]
  /** Smallest upper end of the axis. */
  readonly least: number
  /** Drawn where it is not far above what is used. */
  readonly limit?: number
  readonly base?: 1000 | 1024
  readonly show: (value: number) => string
}) {
  const [pointed, setPointed] = useState<number | undefined>(undefined)
  const id = useId()
  const values = lines.flatMap(({ points }) => points.flatMap(({ value }) => value ?? []))
  const top = Math.max(0, ...values)
  const near = limit !== undefined && limit <= 4 * Math.max(top, least / 4)
  const { max, ticks } = scaleOf(
    near ? [...values, limit] : values,
    near ? least : Math.min(least, Math.max(top, least / 8)),
    base,
  )
  const to = Math.max(0, ...lines.flatMap(({ points }) => points.at(-1)?.at ?? []))
  const span = { from: to - SPAN_MS, to }
  const at = pointed === undefined ? to : span.from + pointed * SPAN_MS
  const y = (value: number) => box.height - (value / max) * box.height
  const onPointerMove = (event: PointerEvent<SVGSVGElement>) => {
    const { left, width } = event.currentTarget.getBoundingClientRect()
    setPointed(Math.min(1, Math.max(0, (event.clientX - left) / width)))
  }
  return (
    <section className="card chart" aria-labelledby={id}>
      <h2 id={id}>{title}</h2>
      <p className="legend">
        {lines.map(({ name, points }, i) => {
          const point = nearest(points, at)
          return (
            <span key={name} className={`line-${i}`}>
              {name} <strong>{point?.value === undefined || point.value === null ? '–' : show(point.value)}</strong>
            </span>
          )
        })}
        {limit !== undefined && <span className="quiet">limit {show(limit)}</span>}
      </p>
      <div className="plot">
        <ol className="axis" aria-hidden="true">
          {[...ticks].reverse().map((tick) => (
            <li key={tick}>{show(tick)}</li>
          ))}
        </ol>
        <svg
          viewBox={`0 0 ${box.width} ${box.height}`}
          preserveAspectRatio="none"
          role="img"
          aria-label={`${title} over the last five minutes`}
          onPointerMove={onPointerMove}
          onPointerLeave={() => setPointed(undefined)}
        >
          {ticks.map((tick) => (
            <line key={tick} className="grid" x1="0" x2={box.width} y1={y(tick)} y2={y(tick)} />
          ))}
          {near && limit <= max && <line className="limit" x1="0" x2={box.width} y1={y(limit)} y2={y(limit)} />}
          {lines.map(({ name, points }, i) => (
            <path key={name} className={`line-${i}`} d={linePath(points, span, max, box)} />
          ))}
          {pointed !== undefined && (
            <line className="pointer" x1={pointed * box.width} x2={pointed * box.width} y1="0" y2={box.height} />
          )}
        </svg>
      </div>
      <p className="span quiet" aria-hidden="true">
        <span>5 min ago</span>
        <span>{pointed === undefined ? 'now' : `${number((to - at) / 1000)} s ago`}</span>
      </p>
    </section>
  )
}
