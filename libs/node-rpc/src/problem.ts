// problem.ts: how an error crosses the wire between a node and the API. A Failure arrives as the same Failure; of
// anything else only that it happened is told.
import { type ErrorCode, Failure, Fault, problems } from '@berth/contracts'
import { z } from 'zod'

/** Largest problem that is read, in bytes. */
export const MAX_PROBLEM = 64 * 1024

const isCode = (code: string): code is ErrorCode => Object.hasOwn(problems, code)

const Problem = z.object({
  code: z.string().refine(isCode),
  detail: z.string(),
  data: z.record(z.string(), z.unknown()),
})

export interface WireProblem {
  readonly status: number
  readonly body: string
}

export function problemOf(error: unknown): WireProblem {
  const [code, detail, data]: [ErrorCode, string, object] =
    error instanceof Failure
      ? [error.code, error.message, error.data]
      : ['internal_error', 'see the log of the node', {}]
  return { status: problems[code].status, body: JSON.stringify({ code, detail, data }) }
}

/** Codes that say something about the API's request or the node, not about what the caller asked for. */
const notTheCallers: ReadonlySet<ErrorCode> = new Set(['unauthenticated', 'route_not_found', 'internal_error'])

/** @returns the Failure that was thrown on the node, or a Fault where the answer is none of the caller's business */
export function errorFrom(asked: string, status: number, text: string): Failure | Fault {
  const problem = Problem.safeParse(parsed(text))
  if (!problem.success) return new Fault(asked, { cause: `status ${status}` })
  const { code, detail, data } = problem.data
  if (notTheCallers.has(code)) return new Fault(asked, { cause: `status ${status}: ${code}: ${detail}` })
  return new Failure(code, detail, data)
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return undefined // not of a node: told by its status
  }
}
