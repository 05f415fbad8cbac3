// resident-record.ts: what the agent remembers of sandboxes that stay, as files, so that a kill -9 at any instant loses
// nothing:
//
//   sandboxes/<id>/sandbox.json  what is wanted of it: the newest command, written before it is acted upon
//                  journal       what is: one JSON value, written anew before each step and after it
//                  init.sock bundle/          of the present container
//                  execs/ terminals/ log/     of the companions
//
// Both are written whole and renamed. As with attempts nothing is fsynced: a killed process loses no page cache, and a
// crash of the machine ends every container; what was written until a moment before is there then too.

import { mkdirSync, readdirSync } from 'node:fs'
import { join } from 'node:path'
import {
  ApplySandbox,
  LimitHit,
  SandboxEnd,
  SandboxId,
  SandboxNote,
  SandboxPhases,
  SandboxReason,
  SandboxReasonCode,
} from '@berth/contracts'
import { readJson, removeTree } from '@berth/host'
import { z } from 'zod'
import { writeWhole } from '../journal.js'
import { residentPhases } from './resident.plan.js'
import type { RunnableImage } from './sandbox.js'

const AcceptedSandbox = z.object({ command: ApplySandbox, acceptedAt: z.iso.datetime() })
export type AcceptedSandbox = z.infer<typeof AcceptedSandbox>

/** The image that its files are on: it stays the same for as long as the sandbox exists. */
export const PinnedImage = z.object({
  reference: z.string(),
  digest: z.string(),
  layers: z.array(z.string()),
  config: z.object({
    env: z.array(z.string()).optional(),
    workingDir: z.string().optional(),
    user: z.string().optional(),
    entrypoint: z.array(z.string()).optional(),
    command: z.array(z.string()).optional(),
    stopSignal: z.string().optional(),
  }),
})

/** An image as it is written down. */
export function pin({ reference, digest, layers, config }: RunnableImage): z.infer<typeof PinnedImage> {
  const { env, workingDir, user, entrypoint, command, stopSignal } = config
  return PinnedImage.parse({
    ...{ reference, digest, layers },
    config: { env, workingDir, user, entrypoint, command, stopSignal },
  })
}

const time = z.number().nullable()

/** Times are Unix milliseconds. */
const ResidentState = z.object({
  sequence: z.number().int(),
  noteNumber: z.number().int(),
  phase: z.enum(residentPhases),
  hidden: z.boolean(),
  image: PinnedImage.nullable(),
  diskBytes: z.number().int(),
  run: z.number().int(),
  restart: z.number().int(),
  /** Restarts in a row, see domain/restart. */
  inRow: z.number().int(),
  failedRun: z.number().int().nullable(),
  /** The main process may have begun to run. */
  spawned: z.boolean(),
  next: z.object({ run: z.number().int(), restart: z.number().int() }).nullable(),
  retryAt: z.number(),
  stop: z
    .object({
      reason: z.object({ code: SandboxReasonCode, message: z.string(), by: z.string() }),
      signal: z.number().int(),
      killAt: z.number(),
      generation: z.number().int(),
    })
    .nullable(),
  /** What the sandbox is while nothing of it runs; null before its first end. */
  outcome: z.object({ state: z.enum(['stopped', 'failed']), reason: SandboxReason }).nullable(),
  /** When the present run by request came up, and the present start of it. */
  begunAt: time,
  startedAt: time,
  endedAt: time,
  lastActivityAt: time,
  pausedAt: time,
  phases: SandboxPhases,
  ends: z.array(SandboxEnd),
  notes: z.array(SandboxNote),
  warnedOf: time,
  /** Limits that were hit in the present run. */
  hits: z.array(LimitHit),
})
export type ResidentState = z.infer<typeof ResidentState>

export const noPhases: SandboxPhases = {
  ...{ placeMs: null, imageMs: null, rootfsMs: null, networkMs: null, startMs: null, readyMs: null },
}

export const freshState: ResidentState = {
  ...{ sequence: 0, noteNumber: 0, phase: 'fresh', hidden: false, image: null, diskBytes: 0 },
  ...{ run: 0, restart: 0, inRow: 0, failedRun: null, spawned: false, next: null, retryAt: 0, stop: null },
  ...{ outcome: null, begunAt: null, startedAt: null, endedAt: null, lastActivityAt: null, pausedAt: null },
  ...{ phases: noPhases, ends: [], notes: [], warnedOf: null, hits: [] },
}

export interface ResidentPaths {
  readonly directory: string
  readonly bundle: string
  readonly socket: string
}

export interface ResidentRecord {
  readonly id: SandboxId
  /** Undefined where the agent was killed while it wrote the first command down: that will come again. */
  readonly accepted: AcceptedSandbox | undefined
  readonly state: ResidentState
}

export class ResidentRecords {
  readonly #root: string

  /** @param directory the agent's data directory */
  constructor(directory: string) {
    this.#root = join(directory, 'sandboxes')
    mkdirSync(this.#root, { recursive: true, mode: 0o700 })
  }

  paths(id: SandboxId): ResidentPaths {
    const directory = join(this.#root, id)
    return { directory, bundle: join(directory, 'bundle'), socket: join(directory, 'init.sock') }
  }

  accept(accepted: AcceptedSandbox): void {
    const { directory } = this.paths(accepted.command.sandboxId)
    mkdirSync(directory, { recursive: true, mode: 0o700 })
    writeWhole(join(directory, 'sandbox.json'), accepted)
  }

  save(id: SandboxId, state: ResidentState): void {
    writeWhole(join(this.paths(id).directory, 'journal'), state)
  }

  /** Forgets a sandbox, with all that its companions kept. */
  async remove(id: SandboxId): Promise<void> {
    await removeTree(this.paths(id).directory)
  }

  /** @throws Fault when a file is damaged: that is not for guessing */
  async load(): Promise<readonly ResidentRecord[]> {
    const ids = readdirSync(this.#root).flatMap((name) => SandboxId.safeParse(name).data ?? [])
    return Promise.all(ids.map((id) => this.#read(id)))
  }

  async #read(id: SandboxId): Promise<ResidentRecord> {
    const { directory } = this.paths(id)
    const [accepted, state] = await Promise.all([
      readJson(join(directory, 'sandbox.json'), (value) => AcceptedSandbox.parse(value)),
      readJson(join(directory, 'journal'), (value) => ResidentState.parse(value)),
    ])
    return { id, accepted, state: state ?? freshState }
  }
}
