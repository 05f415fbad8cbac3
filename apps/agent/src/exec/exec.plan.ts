// exec.plan.ts: what is asked of an exec and the sandbox it is for → the process to start; how that process ended → what
// is told of it.

import { createHash } from 'node:crypto'
import type { Exec, ExecSpec, SandboxSpec } from '@berth/contracts'
import { type Accounts, identify } from '../runtime/identity.js'
import { type SpawnRequest, spawnFlags } from '../runtime/init-wire.js'
import type { MainEnd } from '../runtime/processes.js'
import { decideOutcome } from '../sandbox/outcome.plan.js'
import { environment, type ImageConfig, processRequest, sandboxConfinement } from '../sandbox/process.plan.js'

/** The sandbox as far as a process of it is made from it. */
export interface ExecPlace {
  readonly spec: SandboxSpec
  readonly image: ImageConfig
  readonly hostname: string
  /** How many ids it has. */
  readonly ids: number
}

/** An exec is given the sandbox's environment, user and directory where it has none of its own, and its groups in any case. */
export function execRequest(spec: ExecSpec, place: ExecPlace, accounts: Accounts): SpawnRequest {
  const { image, hostname } = place
  const user = spec.user ?? place.spec.user ?? image.user
  const who = identify(user, accounts, place.ids, [...place.spec.groups, ...spec.groups])
  const terminal: Readonly<Record<string, string>> = spec.tty ? { TERM: 'xterm-256color' } : {}
  return processRequest({
    command: spec.command,
    env: environment(image, who.home, hostname, terminal, place.spec.env, spec.env),
    workingDir: spec.workingDir ?? place.spec.workingDir ?? (image.workingDir || '/'),
    who,
    confinement: sandboxConfinement(place.spec),
    flags: (spec.tty ? spawnFlags.tty : 0) | (takesInput(spec) ? spawnFlags.stdin : 0),
    terminal: spec.tty,
    timeoutMs: spec.timeoutMs,
    graceMs: spec.graceMs,
  })
}

/** What its arguments and environment take in memory, about. */
export const argumentBytes = ({ command, env }: Pick<ExecSpec, 'command' | 'env'>): number =>
  command.reduce((sum, word) => sum + word.length, 0) +
  Object.entries(env).reduce((sum, [name, value]) => sum + name.length + value.length, 0)

const takesInput = (spec: ExecSpec) => spec.stdin || spec.input !== undefined

/** Same digest, same request: what tells a repeat from another exec that wants the same id. */
export const specDigest = ({ id: _, ...spec }: { readonly id?: string | undefined }): string =>
  createHash('sha256').update(canonical(spec)).digest('base64url')

/** JSON whose members are in the order of their names, so that the order in a request means nothing. */
function canonical(value: unknown): string {
  if (Array.isArray(value)) return `[${value.map(canonical).join(',')}]`
  if (typeof value !== 'object' || value === null) return JSON.stringify(value) ?? 'null'
  const members = Object.entries(value)
    .filter(([, member]) => member !== undefined)
    .sort(([a], [b]) => (a < b ? -1 : 1))
  return `{${members.map(([name, member]) => `${JSON.stringify(name)}:${canonical(member)}`).join(',')}}`
}

export type ExecOutcome = Pick<Exec, 'state' | 'exitCode' | 'signal' | 'timedOut' | 'oomKilled' | 'message' | 'usage'>

/** What is told of an end. @param oomKills processes of the sandbox that were killed for memory since it began */
export function execOutcome(
  end: MainEnd,
  about: { readonly timeoutMs: number; readonly memoryBytes: number; readonly oomKills: number },
): ExecOutcome {
  const { timeoutMs, memoryBytes } = about
  // Another exec may have met the limit, and this one have failed for a reason of its own.
  const oomKills = wasKilled(end) ? about.oomKills : 0
  const limits = { timeoutMs, memoryBytes }
  const outcome = decideOutcome(end, { cancel: undefined, overdue: false, oomKills, limits })
  const { exitCode, signal, oomKilled } = outcome
  const timedOut = outcome.reason.code === 'timeout'
  const status = { exitCode, signal, oomKilled, timedOut }
  const { message } = outcome.reason
  if (end.kind === 'gone') return { state: 'lost', ...status, message: sandboxEnded, usage: null }
  if (end.kind === 'failed') return { state: 'failed', ...status, message, usage: null }
  const { cpuMs, peakMemoryBytes, wallMs, cause } = end.exit
  const usage = { wallMs, cpuMs, peakMemoryBytes }
  const withSandbox = cause === 'shutdown' || cause === 'mainEnded'
  const told = withSandbox ? sandboxEnded : timedOut || oomKilled ? message : null
  return { state: 'exited', ...status, message: told, usage }
}

/** The user or group that it was to run as is not known. */
export const userNotFound = (message: string): ExecOutcome => ({
  ...{ state: 'failed', exitCode: null, signal: null, timedOut: false, oomKilled: false, usage: null },
  message: message.slice(0, 2000),
})

const sandboxEnded = 'the sandbox ended, and everything in it'

const SIGKILL = 9

/** By SIGKILL, or telling as a shell does that a child of it was. */
export const wasKilled = (end: MainEnd): boolean =>
  end.kind === 'exited' && (end.exit.signal === SIGKILL || end.exit.exitCode === 128 + SIGKILL)
