// terminal.plan.ts: what is asked of a terminal and the sandbox it is for → the process to start; how that ended → what
// is told of it.

import type { SandboxSpec, TerminalSpec } from '@berth/contracts'
import { type Accounts, identify, shellOf } from '../runtime/identity.js'
import { type SpawnRequest, spawnFlags } from '../runtime/init-wire.js'
import type { MainEnd } from '../runtime/processes.js'
import { decideOutcome } from '../sandbox/outcome.plan.js'
import { environment, type ImageConfig, processRequest, sandboxConfinement } from '../sandbox/process.plan.js'

/** Output that berth-init keeps until it is on disk: what passes at once, and so what a flood costs, goes by this. */
const RING_BYTES = 256 * 1024

/** The sandbox as far as a process of it is made from it. */
export interface TerminalPlace {
  readonly spec: SandboxSpec
  readonly image: ImageConfig
  readonly hostname: string
  /** How many ids it has. */
  readonly ids: number
}

/**
 * The process of a terminal: what is asked for, else the user's shell from the sandbox's passwd, as a login shell where
 * it is one that knows how (`-l`).
 * @throws UserNotFound
 */
export function terminalRequest(spec: TerminalSpec, place: TerminalPlace, accounts: Accounts): SpawnRequest {
  const { image, hostname } = place
  const user = spec.user ?? place.spec.user ?? image.user
  const who = identify(user, accounts, place.ids, place.spec.groups)
  const shell = shellOf(user, accounts)
  const own = { TERM: 'xterm-256color', SHELL: shell }
  const request = processRequest({
    command: spec.command ?? loginShell(shell),
    env: environment(image, who.home, hostname, own, place.spec.env, spec.env),
    workingDir: spec.workingDir ?? place.spec.workingDir ?? (image.workingDir || '/'),
    who,
    confinement: sandboxConfinement(place.spec),
    flags: spawnFlags.tty,
    terminal: { rows: spec.rows, columns: spec.columns },
    timeoutMs: 0,
    graceMs: 0,
  })
  return { ...request, ringBytes: RING_BYTES }
}

/** Shells that take `-l`; any other program that passwd names is started as it is. */
const loginShell = (shell: string): readonly string[] =>
  /\/(ba|da|z|k|mk|a|fi)?sh$/.test(shell) ? [shell, '-l'] : [shell]

export interface TerminalEnd {
  readonly exitCode: number | null
  readonly signal: string | null
  readonly message: string | null
}

/** What is told of an end. */
export function terminalEnd(end: MainEnd): TerminalEnd {
  if (end.kind === 'gone') return sandboxEnded
  const about = { cancel: undefined, overdue: false, oomKills: 0, limits: { memoryBytes: 0, timeoutMs: 0 } }
  const { exitCode, signal, reason } = decideOutcome(end, about)
  if (end.kind === 'failed') return { exitCode, signal, message: reason.message }
  const withSandbox = end.exit.cause === 'shutdown' || end.exit.cause === 'mainEnded'
  return { exitCode, signal, message: withSandbox ? sandboxEnded.message : null }
}

export const sandboxEnded: TerminalEnd = {
  exitCode: null,
  signal: null,
  message: 'the sandbox ended, and everything in it',
}

/** The user that it was to run as is not known. */
export const neverRan = (message: string): TerminalEnd => ({
  exitCode: null,
  signal: null,
  message: message.slice(0, 2000),
})
