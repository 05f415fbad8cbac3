// live.ts: a sandbox that stays, as the rest of the agent sees it, and what others may attach to it. `Residents` owns the
// sandboxes; execs, terminals and the log are companions of each, with directories of their own in its directory.

import type { IdRange, SandboxId, SandboxSpec, SandboxState, TenantId } from '@berth/contracts'
import type { OutputSinks, Processes, SandboxProcess } from '../runtime/processes.js'
import type { NodeClock } from './clocks.plan.js'
import type { RunnableImage } from './sandbox.js'

/** A sandbox now. The same object for as long as the sandbox exists; its fields change with it. */
export interface LiveSandbox {
  readonly id: SandboxId
  readonly tenantId: TenantId
  readonly ids: IdRange
  /** As it was wanted last. */
  readonly spec: SandboxSpec
  /** What its present or last run was started from; undefined before the first one found it. */
  readonly image: RunnableImage | undefined
  readonly hostname: string
  /** Its data directory on the node, private to the agent; companions have sub-directories in it. */
  readonly directory: string
  /** Its control group, as `Cgroups` names it. */
  readonly group: string
  /** What it has written: the upper directory of its overlay. There from the first start to the deletion. */
  readonly upper: string
  readonly state: Exclude<SandboxState, 'lost'>
  /** Starts by request so far, and starts by policy since the last of them: together they name a run. */
  readonly run: number
  readonly restart: number
  /** While a container is up, also a frozen one. */
  readonly processes: Processes | undefined
  /** The main process of the present run, where it has one and it was started. */
  readonly main: SandboxProcess | undefined
  /** Aborted when the present run ends; of a stopped sandbox it is aborted already. */
  readonly runEnded: AbortSignal
  /** How many terminals its tenant may have open on this node. */
  readonly tenantTerminals: number
  /** There was activity just now: the idle clock begins anew. */
  touch(): void
  /** There is activity (an exec that runs) until the returned function is called, or the run ends. */
  occupy(): () => void
}

/** What runs beside the main process of every sandbox, or keeps something of it. */
export interface Companion {
  readonly name: string
  /**
   * A run is up, before its main process is started; or `adopted` by this agent process, and then it goes on with its own
   * processes by their numbers. Must not wait for a process: those of a frozen sandbox answer when it goes on.
   */
  attach(live: LiveSandbox, adopted: boolean): Promise<void>
  /** The run has ended, and every process of it. Also called where `attach` was not, or failed. */
  detach(live: LiveSandbox): Promise<void>
  /** Something of it is new: its state, or that there is it. */
  changed?(live: LiveSandbox): void
  /** The sandbox is deleted: its directory goes after this. */
  remove(id: SandboxId): Promise<void>
  /** Takes the output of the main process; asked after `attach`. One companion at most answers. */
  mainOutput?(live: LiveSandbox): OutputSinks | undefined
  /** A clock will end the run: whoever sits in front of it is told. */
  warn?(live: LiveSandbox, clock: NodeClock, endsAt: Date): void
  /** This agent process ends, and the sandboxes run on: lets go of everything as it is. Its processes are gone after. */
  close?(): Promise<void>
}

/** The processes of a sandbox, for as long as it is held: to be disposed of. */
export interface Lease extends AsyncDisposable {
  readonly live: LiveSandbox
  readonly processes: Processes
}
