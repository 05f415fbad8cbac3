// run.ts: one RUN: a container of the tenant's, of the steps that every sandbox is made of, whose writable layer becomes a
// layer of the image. What a killed agent leaves of it is named like an attempt's, and removed by recovery, which knows no
// build: builds end with their agent.

import { lstatSync, mkdirSync, type Stats } from 'node:fs'
import { dirname, join } from 'node:path'
import {
  argumentsProblem,
  type BuildId,
  type BuildLimits,
  Failure,
  type IdRange,
  type ImageLayer,
  type SandboxSpec,
  type TenantId,
} from '@berth/contracts'
import type { Logger } from '@berth/telemetry'
import { orNoRoom } from '../images/content.js'
import type { Images } from '../images/images.js'
import { addLayer } from '../images/ingest.js'
import { packUpper } from '../images/pack.js'
import { type Attachment, attachedBinds, rootfsTarget } from '../rootfs/overlay.js'
import { identify, readAccounts, UserNotFound } from '../runtime/identity.js'
import type { SpawnRequest } from '../runtime/init-wire.js'
import { ContainerRefused } from '../runtime/oci-runtime.js'
import { MAIN, type MainEnd, type OutputSinks, Processes } from '../runtime/processes.js'
import { endedByMemory, ownReason, statusOf } from '../sandbox/ending.plan.js'
import { asErrand } from '../sandbox/errand.js'
import { buildRequest } from '../sandbox/process.plan.js'
import { buildShape } from '../sandbox/shape.plan.js'
import {
  type BuildCommandId,
  mountPoints,
  type Named,
  placedFiles,
  releaseAll,
  sandboxGroup,
  steps,
  type Workshop,
} from '../sandbox/steps.js'
import type { Turns } from '../sandbox/turns.js'
import type { Way } from './mounts.js'

export interface CommandParts {
  readonly shop: Workshop
  /** How many containers may be starting at once on this node. */
  readonly starts: Turns
  readonly images: Images
  readonly log: Logger
}

export interface Command {
  readonly buildId: BuildId
  readonly tenantId: TenantId
  readonly ids: IdRange
  /** Of the build, on the node; what is in it goes with it. */
  readonly directory: string
  /** A number that no other command of the build has. */
  readonly number: number
  readonly limits: BuildLimits
  readonly newPrivileges: boolean
  readonly timeoutMs: number
  /** Directories of the layers that it runs on, topmost first. */
  readonly layers: readonly string[]
  readonly argv: readonly string[]
  readonly env: Readonly<Record<string, string>>
  readonly workingDir: string
  readonly user: string
  readonly tmpfs: SandboxSpec['tmpfs']
  readonly attachments: readonly Attachment[]
  /** Where its mounts are, and what was on the way there. */
  readonly ways: readonly Way[]
  readonly output: OutputSinks
  /** Later times of files become this one, in Unix milliseconds. */
  readonly newestMs: number | undefined
  /** Most bytes that its layer may have. */
  readonly maxBytes: number
  /** Takes what goes on when the command is done; it does not fail. */
  readonly meanwhile: (work: Promise<void>) => void
  /** Ends it at once. */
  readonly signal: AbortSignal
}

/** Of a command that did not end with 0; `exitCode` is null where it has none. */
const failed = (message: string, exitCode: number | null) => new Failure('build_failed', message, { exitCode })

const HOSTNAME = 'build'
const CONNECT_TIMEOUT_MS = 10_000
/** The agent ends what berth-init should have ended this much earlier. */
const OVERDUE_MS = 5_000

/**
 * Runs a command to its end, and takes what it changed into the store.
 * @param silent called once nothing more of its output comes
 * @throws Failure build_failed where it did not end with 0, or its user is not there; quota_exceeded, no_capacity; the
 *   signal's reason
 */
export async function runCommand(
  parts: CommandParts,
  command: Command,
  silent: () => Promise<void>,
): Promise<ImageLayer> {
  const { shop, log } = parts
  const { buildId, tenantId, number, directory, signal } = command
  const id = `${buildId}_${number}` as BuildCommandId
  const own = join(directory, `run-${number}`)
  const named: Named = { id, tenantId, paths: { bundle: join(own, 'bundle'), socket: join(own, 'socket') } }
  signal.throwIfAborted()
  mkdirSync(own, { mode: 0o700 })
  try {
    const upper = join(shop.pool.path(id), 'upper')
    const etc = await ranToItsEnd(parts, command, named, () => placeOf(join(upper, 'etc'))).finally(silent)
    log.debug({ command: id }, 'command.ended')
    // What the node places in it is all that it is there for, unless the command has made another one of it.
    const untouched = etc !== '' && placeOf(join(upper, 'etc')) === etc ? ['etc'] : []
    return await changes(parts, command, upper, [...stubsOf(command, upper), ...mountPoints, ...untouched])
  } finally {
    // Nothing of it runs any more; what is left of it holds up nobody.
    const released = releaseAll(shop, named, log)
    command.meanwhile(released.catch((err: unknown) => log.error({ command: id, err }, 'command.release_failed')))
  }
}

/** @returns what `before` gave right before it began */
async function ranToItsEnd<T>(parts: CommandParts, command: Command, named: Named, before: () => T): Promise<T> {
  const { shop, starts, log } = parts
  const { ids, layers, attachments, signal } = command
  const { shape, openFiles } = buildShape(command, shop.abilities)
  const spawn = requestOf(command, openFiles)
  const wanted = { ...named, ids, shape, image: { layers }, hostname: HOSTNAME, attachments, signal }
  try {
    await starts
      .run(async () => {
        for (const step of steps) {
          signal.throwIfAborted()
          log.debug({ command: named.id, step: step.name }, 'step.acquire')
          await step.acquire(shop, wanted)
          log.debug({ command: named.id, step: step.name }, 'step.acquired')
        }
      })
      .catch((error: unknown) => {
        if (!(error instanceof ContainerRefused) || !isOfMounts(error, shop.stage.directory)) throw error
        if (orNoRoom(error) !== error) throw error
        log.warn({ command: named.id, err: error }, 'command.refused')
        throw failed(refusal(error, attachments, shop.stage.directory), null)
      })
    signal.throwIfAborted()
    log.debug({ command: named.id }, 'command.spawn')
    const found = before()
    const end = await followed(parts, command, named, spawn)
    signal.throwIfAborted()
    checkEnd(command, end, shop.cgroups.usage(sandboxGroup(shop, named))?.oomKills ?? 0)
    return found
  } catch (error) {
    throw signal.aborted ? signal.reason : error
  } finally {
    await shop.cgroups.kill(sandboxGroup(shop, named))
  }
}

/** Whether it is about the root and what is mounted in it, which are the tenant's; all else is the node's trouble. */
const isOfMounts = ({ said }: ContainerRefused, directory: string): boolean =>
  (said.includes(rootfsTarget(directory)) || /\b(mount|mkdir|target)/i.test(said)) && !/cgroup/i.test(said)

/** What the runtime said, in words of the Dockerfile: of the node's own paths only what is mounted there is told. */
function refusal({ said }: ContainerRefused, attachments: readonly Attachment[], directory: string): string {
  const binds = attachedBinds(attachments, directory).toSorted((a, b) => b.source.length - a.source.length)
  const told = binds.reduce((text, { source, path }) => text.replaceAll(source, `what is mounted at ${path}`), said)
  const why = told
    .replaceAll(rootfsTarget(directory), '')
    .replaceAll(/\/[^\s`'":]*/g, (path) => (path.startsWith(dirname(directory)) ? '…' : path))
    .slice(0, 1000)
  const isMissing = /read-only file system|no such file/i.test(why)
  const hint = isMissing ? ' (make the place before, or mount with rw what it is in)' : ''
  return `its container could not be started: ${why}${hint}`
}

function requestOf(command: Command, openFiles: number): SpawnRequest {
  const { argv, env, workingDir, timeoutMs, newPrivileges, user, layers, ids } = command
  const problem = argumentsProblem(argv, env)
  if (problem) throw failed(problem.message, null)
  try {
    const who = identify(user, readAccounts(layers), ids.count)
    const process = { command: argv, env, workingDir, who, hostname: HOSTNAME, openFiles, timeoutMs, newPrivileges }
    return buildRequest(process)
  } catch (error) {
    throw error instanceof UserNotFound ? failed(error.message, null) : error
  }
}

async function followed(
  { shop, log }: CommandParts,
  { output, timeoutMs, signal }: Command,
  named: Named,
  spawn: SpawnRequest,
): Promise<MainEnd> {
  const kill = () =>
    void shop.cgroups
      .kill(sandboxGroup(shop, named))
      .catch((err: unknown) => log.error({ command: named.id, err }, 'build.kill_failed'))
  const processes = Processes.open({ socket: named.paths.socket, log, timeoutMs: CONNECT_TIMEOUT_MS })
  const main = processes.run(MAIN, spawn, output)
  processes.endOthers()
  const overdue = setTimeout(kill, timeoutMs + OVERDUE_MS)
  signal.addEventListener('abort', kill, { once: true })
  if (signal.aborted) kill()
  try {
    return await main.ended
  } finally {
    clearTimeout(overdue)
    signal.removeEventListener('abort', kill)
    processes.close()
  }
}

/** A signal is told as a shell and Docker do: by the exit code 128 and its number. */
function checkEnd({ argv, limits, timeoutMs }: Command, end: MainEnd, oomKills: number): void {
  if (end.kind === 'exited' && end.exit.exitCode === 0) return
  const number = end.kind === 'exited' ? end.exit.signal : undefined
  const { exitCode: code, signal } = statusOf(end)
  const exitCode = number === undefined ? code : 128 + number
  if (end.kind === 'exited' && end.exit.cause === 'timeout')
    throw failed(`ran longer than the ${timeoutMs} ms that a command of this build may`, exitCode)
  const what = end.kind === 'failed' && end.stage === 'exec' ? `${JSON.stringify((argv[0] ?? '').slice(0, 200))}: ` : ''
  const why = signal === null ? what + ownReason(end).message : `exit code ${exitCode} (${signal})`
  if (!endedByMemory(end, oomKills)) throw failed(why, exitCode)
  const limit = `the limit is ${limits.memoryBytes} bytes, and less if its tenant's is reached`
  throw failed(`${exitCode === null ? '' : `${why}: `}ran out of memory (OOM): ${limit}`, exitCode)
}

/** What the command has left in its writable layer. Nothing of it runs any more. */
function changes(
  parts: CommandParts,
  { tenantId, ids, newestMs, maxBytes, signal }: Command,
  upper: string,
  stubs: readonly string[],
): Promise<ImageLayer> {
  const { images } = parts
  return asErrand(parts, tenantId, signal, (groups) => {
    const { tar } = packUpper({
      ...{ program: images.program, upper, ids, without: placedFiles, stubs, groups, signal },
      ...(newestMs === undefined ? {} : { newestMs }),
    })
    // What packing fails with comes by the tar. That the tar is read no more is the end of packing too, and no reason.
    return addLayer(images, tar, { maxBytes, groups, signal })
  })
}

/**
 * What there may be in the writable layer for no other reason than that something was mounted there: places that are new,
 * and directories that hold them and are as they were, but for their time.
 */
function stubsOf({ ways, ids }: Command, upper: string): readonly string[] {
  return ways.flatMap(({ path, was }) => {
    const now = lstatBeneath(upper, path)
    const isSame = now && was && (now.mode & 0o7777) === was.mode && now.uid - ids.base === was.uid
    return now && (!was || (isSame && now.gid - ids.base === was.gid)) ? [path] : []
  })
}

/** What is there by a way that leads through no link; the command may have made any. */
function lstatBeneath(upper: string, path: string): Stats | undefined {
  let found: Stats | undefined
  for (let at = path.indexOf('/'); ; at = path.indexOf('/', at + 1)) {
    found = lstatSync(join(upper, at < 0 ? path : path.slice(0, at)), { throwIfNoEntry: false })
    if (at < 0 || !found?.isDirectory()) return at < 0 ? found : undefined
  }
}

/** Which directory it is, and whose; '' where there is none. */
function placeOf(directory: string): string {
  const found = lstatSync(directory, { throwIfNoEntry: false })
  return found?.isDirectory() ? [found.ino, found.mode, found.uid, found.gid].join(' ') : ''
}
