import { getSandboxTop, type Sandbox } from '@berth/contracts'
import { useCallback, useEffect } from 'react'
import { bytes, commandLine, duration } from '../format.js'
import { useApi, useLoaded, useVisible } from '../live.js'
import { Empty, Loading, Trouble } from '../ui.js'

const EVERY_MS = 3000

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
      <div className="scroll">
        <table className="dense">
          <thead>
            <tr>
              {['PID', 'User', 'State', 'CPU time', 'Memory', 'Threads', 'Command'].map((name) => (
                <th key={name} scope="col">
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
                <td>{process.state}</td>
                <td>{duration(process.cpuMs)}</td>
                <td>{bytes(process.residentBytes)}</td>
                <td>{process.threads}</td>
                <td>
                  <code>{commandLine(process.command)}</code>
                </td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </>
  )
}
