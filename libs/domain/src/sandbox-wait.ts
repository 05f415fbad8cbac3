// sandbox-wait.ts: when a wait for a state of a sandbox is over.
import type { Sandbox, SandboxState } from '@berth/contracts'

type Waited = Pick<Sandbox, 'state' | 'desired' | 'nodeId' | 'reason'>

/** Lost with its node or its files, in contrast to one whose node is silent and may be back. */
const goneForGood = ({ state, nodeId, reason }: Waited): boolean =>
  state === 'lost' && (nodeId === null || reason?.code === 'sandbox_lost')

/** Whether the sandbox is in the state, or cannot come to it without another request. */
export function waitIsOver(sandbox: Waited, wanted: SandboxState): boolean {
  const { state, desired } = sandbox
  if (state === wanted || state === 'deleted') return true
  const resting = state === 'stopped' || state === 'failed' || goneForGood(sandbox)
  switch (wanted) {
    case 'running':
    case 'paused':
      return desired !== wanted || goneForGood(sandbox)
    case 'stopped':
    case 'failed':
      return resting && desired === 'stopped'
    case 'creating':
      return true
    case 'lost':
    case 'deleted':
      return false
  }
}
