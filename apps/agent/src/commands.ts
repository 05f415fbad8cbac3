import { type NodeCommand, unreachable } from '@berth/contracts'
import type { Residents } from './sandbox/residents.js'
import type { Supervisor } from './sandbox/supervisor.js'

/** Carries out a command of the API. Returns once it is the agent's own: written down, or needing nothing. */
export function carryOut(supervisor: Supervisor, residents: Residents, command: NodeCommand): Promise<void> {
  switch (command.kind) {
    case 'run':
      return supervisor.run(command)
    case 'cancel':
      return supervisor.cancel(command)
    case 'forget':
      return supervisor.forget(command)
    case 'sandbox':
      return residents.apply(command)
    default:
      return unreachable(command)
  }
}
