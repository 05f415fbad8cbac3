import { getSandboxTop, type Sandbox } from '@berth/contracts'
import { useCallback, useEffect } from 'react'
import { bytes, commandLine, duration } from '../format.js'
import { useApi, useLoaded, useVisible } from '../live.js'
import { Empty, Loading, Trouble } from '../ui.js'

const EVERY_MS = 3000

/** Name, and where it is shown: on a phone what matters most. */
const columns = [
  ['PID', ''],
  ['User', ''],
  ['State', 'wide-only'],
  ['CPU time', 'wide-only'],
  ['Memory', ''],
  ['Threads', 'wide-only'],
  ['Command', ''],
] as const

/** The processes of a running sandbox, looked at again every few seconds while they are seen. */
export function Processes({ sandbox }: { readonly sandbox: Sandbox }) {
  if (sandbox.state !== 'running') return <Empty>A sandbox that is {sandbox.state} has no processes to show.</Empty>
  return <ProcessTable id={sandbox.id} />
}

function ProcessTable({ id }: { readonly id: string }) {
  const api = useApi()
  const visible = useVisible()
  const load = useCallback(
    async (signal: AbortSignal) => (await api.call(getSandboxTop, { params: { sandbox: id } }, { signal })).items,
    [api, id],
  )
  const { value, error, loading, reload } = useLoaded(load)
  useEffect(() => {
    if (!visible || loading) return
    const timer = setTimeout(reload, EVERY_MS)
    return () => clearTimeout(timer)
  }, [visible, loading, reload])
  if (!value) return error === undefined ? <Loading /> : <Trouble error={error} retry={reload} />
  return (
    <>
      <Trouble error={error} retry={reload} />
      {/* biome-ignore lint/a11y/noNoninteractiveTabindex: a box that scrolls must be reachable by keyboard */}
      <section className="scroll" aria-label="Processes" tabIndex={0}>
        <table className="dense">
          <thead>
            <tr>
              {columns.map(([name, place]) => (
                <th key={name} scope="col" className={place}>
                  {name}
                </th>
              ))}
            </tr>
          </thead>
          <tbody>
            {value.map((process) => (
              <tr key={process.pid}>
                <td>{process.pid}</td>
                <td>{process.user ?? process.uid}</td>
                <td className="wide-only">{process.state}</td>
                <td className="wide-only">{duration(process.cpuMs)}</td>
                <td>{bytes(process.residentBytes)}</td>
                <td className="wide-only">{process.threads}</td>
                <td className="command">
                  <code>{commandLine(process.command)}</code>
                </td>
              </tr>
            ))}
          </tbody>
        </table>
      </section>
    </>
  )
}
