// sandbox-fork.ts: sandboxes that begin with another one's files: what they are to be.
import {
  argumentsProblem,
  type ClocksChange,
  InvalidRequest,
  type RestartPolicy,
  type Sandbox,
  type SandboxLimitsChange,
  type SandboxSpec,
} from '@berth/contracts'
import { updatedSpec } from './sandbox-request.js'

export interface Fork {
  readonly count: number
  readonly name?: string | undefined
  readonly labels?: Readonly<Record<string, string>> | undefined
  readonly env?: Readonly<Record<string, string>> | undefined
  readonly limits?: SandboxLimitsChange | undefined
  readonly restart?: RestartPolicy | undefined
  readonly clocks?: ClocksChange | undefined
}

/**
 * The specs of the sandboxes of a fork, the first one first.
 * @throws InvalidRequest where what is asked for does not go together, or the files would not fit
 */
export function forkedSpecs(source: Pick<Sandbox, 'spec' | 'labels'>, fork: Fork): readonly SandboxSpec[] {
  const { count, name, labels = source.labels, env, limits, restart, clocks } = fork
  const changed = updatedSpec(source.spec, { limits, restart, clocks })
  const spec = { ...changed, labels: { ...labels }, env: { ...changed.env, ...env } }
  const problem = argumentsProblem([...(spec.entrypoint ?? []), ...(spec.command ?? [])], spec.env)
  if (problem) throw new InvalidRequest([{ field: 'env', message: problem.message }])
  const { diskBytes } = source.spec.limits
  if (spec.limits.diskBytes < diskBytes) {
    const message = `must be at least the ${diskBytes} of the sandbox, whose files they begin with`
    throw new InvalidRequest([{ field: 'limits.diskBytes', message }])
  }
  return Array.from({ length: count }, (_, i) => ({
    ...spec,
    ...(name !== undefined && { name: count === 1 ? name : `${name}-${i + 1}` }),
  }))
}
