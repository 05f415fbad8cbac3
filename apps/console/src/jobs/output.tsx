// output.tsx: both output streams of a job, live. Each is followed as raw bytes from the offset that was reached.
import { type Job, type JobId, type OutputStream, streamJobOutput } from '@berth/contracts'
import { useCallback, useRef, useState } from 'react'
import { saveAs } from '../api.js'
import { plainText } from '../format.js'
import { oncePerFrame, useApi, useStream } from '../live.js'
import { Action, Empty, Trouble } from '../ui.js'
import { jobTitle } from './list.js'

/** Characters of a stream that are shown; the download has all. */
const SHOWN = 256 * 1024

export function JobOutput({ job }: { readonly job: Job }) {
  const started = job.startedAt !== null || job.attempts.length > 0
  if (!started) return <Empty>It waits in the queue. Its output shows here as it comes.</Empty>
  return (
    <div className="panels">
      <Stream job={job} stream="stdout" />
      <Stream job={job} stream="stderr" />
    </div>
  )
}

function Stream({ job, stream }: { readonly job: Job; readonly stream: OutputStream }) {
  const api = useApi()
  const { text, cut, error } = useOutput(job.id, stream)
  const params = { jobId: job.id, stream }
  const download = () => saveAs(`${jobTitle(job)}.${stream}`, api.bytes(streamJobOutput, { params }), () => undefined)
  return (
    <section className="card output">
      <header>
        <h2>{stream}</h2>
        <Action className="small" act={download} aria-label={`Download ${stream}`}>
          Download
        </Action>
      </header>
      <Trouble error={error} />
      {cut && <p className="quiet">Only the end is shown.</p>}
      {text === '' ? (
        <Empty>Nothing was written.</Empty>
      ) : (
        // biome-ignore lint/a11y/noNoninteractiveTabindex: a box that scrolls must be reachable by keyboard
        <pre tabIndex={0}>{text}</pre>
      )}
    </section>
  )
}

function useOutput(jobId: JobId, stream: OutputStream) {
  const api = useApi()
  const [shown, setShown] = useState({ text: '', cut: false })
  const reached = useRef({ offset: 0, decoder: new TextDecoder() })
  const follow = useCallback(
    async (signal: AbortSignal, alive: () => void) => {
      const { current } = reached
      const draw = oncePerFrame<string>((parts) => {
        const added = plainText(parts.join(''))
        setShown((old) => {
          const text = old.text + added
          return { text: text.slice(-SHOWN), cut: old.cut || text.length > SHOWN }
        })
      })
      const query = { since: current.offset, follow: 'true' } as const
      for await (const chunk of api.bytes(
        streamJobOutput,
        { params: { jobId, stream }, query },
        { signal, onOpen: alive },
      )) {
        current.offset += chunk.length
        draw(current.decoder.decode(chunk, { stream: true }))
      }
    },
    [api, jobId, stream],
  )
  const { error } = useStream(true, follow)
  return { ...shown, error }
}
