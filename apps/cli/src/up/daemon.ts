// daemon.ts: processes that outlive the command that started them. Each has a record `<runDir>/<name>.json` with its
// pid and start time, so that a pid which was given to another process in the meantime is never signalled, and a
// fingerprint of what it was started with, so that it is started again when that changes and left alone otherwise.
import { spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import {
  chownSync,
  closeSync,
  mkdirSync,
  openSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { dirname, join } from 'node:path'
import { Fault, ignore } from '@berth/contracts'
import { readJson } from '@berth/host'
import { z } from 'zod'
import { isAlive, processStart } from './process.js'

export interface DaemonPlaces {
  readonly runDir: string
  readonly logDir: string
}

export interface DaemonSpec {
  readonly name: string
  readonly argv: readonly [string, ...string[]]
  /** The whole environment besides PATH and LANG. */
  readonly env: Readonly<Record<string, string>>
  /** Another content of these (besides argv and env) means another process. */
  readonly dependsOn: readonly string[]
  readonly user?: { readonly uid: number; readonly gid: number }
  /** What ends it in good order. */
  readonly stopSignal: 'SIGTERM' | 'SIGINT'
  /** After this long a stop becomes SIGKILL. */
  readonly stopWithinMs: number
}

const Record = z.object({
  pid: z.number(),
  start: z.number(),
  fingerprint: z.string(),
  argv: z.array(z.string()),
  env: z.record(z.string(), z.string()),
  stopSignal: z.enum(['SIGTERM', 'SIGINT']),
  stopWithinMs: z.number(),
  startedAt: z.string(),
})
export type DaemonRecord = z.infer<typeof Record>

const recordPath = (places: DaemonPlaces, name: string) => join(places.runDir, `${name}.json`)
export const logPath = (places: DaemonPlaces, name: string) => join(places.logDir, `${name}.log`)

/** The record of a daemon that was started and not stopped, whether it still runs or not. */
export const readDaemon = (places: DaemonPlaces, name: string): Promise<DaemonRecord | undefined> =>
  readJson(recordPath(places, name), (value) => Record.parse(value))

/**
 * Has the daemon running as `spec` says: starts it, restarts it when it was started differently, or leaves it alone.
 * @returns its record, and whether it was started now
 */
export async function ensureDaemon(
  places: DaemonPlaces,
  spec: DaemonSpec,
): Promise<{ readonly record: DaemonRecord; readonly started: boolean }> {
  const fingerprint = fingerprintOf(spec)
  const current = await readDaemon(places, spec.name)
  if (current && isAlive(current) && current.fingerprint === fingerprint) return { record: current, started: false }
  await stopDaemon(places, spec.name)
  return { record: start(places, spec, fingerprint), started: true }
}

function fingerprintOf(spec: DaemonSpec): string {
  const text = JSON.stringify([spec.argv, Object.entries(spec.env).sort(), spec.dependsOn])
  return createHash('sha256').update(text).digest('hex')
}

/** A log larger than this at a start is set aside as `<name>.log.1`. */
const rotateBytes = 16 * 1024 * 1024

function start(places: DaemonPlaces, spec: DaemonSpec, fingerprint: string): DaemonRecord {
  const log = logPath(places, spec.name)
  for (const directory of [places.runDir, places.logDir]) mkdirSync(directory, { recursive: true, mode: 0o700 })
  if ((statSync(log, { throwIfNoEntry: false })?.size ?? 0) > rotateBytes) renameSync(log, `${log}.1`)
  const output = openSync(log, 'a', 0o600)
  try {
    const [program, ...args] = spec.argv
    const child = spawn(program, args, {
      cwd: '/',
      env: { PATH: '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin', LANG: 'C.UTF-8', ...spec.env },
      detached: true,
      stdio: ['ignore', output, output],
      ...spec.user,
    })
    // A program that cannot be started is told by `awaitReady`, which finds no process and an empty log.
    child.on('error', () => undefined)
    child.unref()
    return writeRecord(places, spec, fingerprint, child.pid)
  } finally {
    closeSync(output)
  }
}

/** Written at once and synchronously: a process without a record could not be stopped later. */
function writeRecord(
  places: DaemonPlaces,
  spec: DaemonSpec,
  fingerprint: string,
  pid: number | undefined,
): DaemonRecord {
  const startTime = pid === undefined ? undefined : processStart(pid)
  if (pid === undefined || startTime === undefined)
    throw new Fault(`start ${spec.name}`, { cause: new Error(`${spec.argv[0]} could not be executed`) })
  const { argv, env, stopSignal, stopWithinMs } = spec
  const startedAt = new Date().toISOString()
  const record = { pid, start: startTime, fingerprint, argv: [...argv], env, stopSignal, stopWithinMs, startedAt }
  const path = recordPath(places, spec.name)
  writeFileSync(`${path}.tmp`, JSON.stringify(record), { mode: 0o600 })
  renameSync(`${path}.tmp`, path)
  return record
}

/**
 * Stops a daemon and waits for its end; one that does not run is fine.
 * @returns whether it ran
 */
export async function stopDaemon(places: DaemonPlaces, name: string): Promise<boolean> {
  const running = await endDaemon(places, name)
  forgetDaemon(places, name)
  return running
}

/** As `stopDaemon`, but its record stays: what it leaves is not cleared away yet. */
export async function endDaemon(places: DaemonPlaces, name: string): Promise<boolean> {
  const record = await readDaemon(places, name)
  if (!record || !isAlive(record)) return false
  signal(record, record.stopSignal)
  if (await until(() => !isAlive(record), record.stopWithinMs)) return true
  signal(record, 'SIGKILL')
  if (await until(() => !isAlive(record), 10_000)) return true
  throw new Fault(`stop ${name}`, { cause: new Error(`process ${record.pid} does not end, not even by SIGKILL`) })
}

export const forgetDaemon = (places: DaemonPlaces, name: string): void =>
  rmSync(recordPath(places, name), { force: true })

function signal(record: DaemonRecord, name: NodeJS.Signals): void {
  try {
    if (isAlive(record)) process.kill(record.pid, name)
  } catch (error) {
    ignore(error, 'ESRCH')
  }
}

/**
 * Waits until a daemon answers.
 * @param ready true once it does
 * @throws Fault with the end of its log when it ended, or did not get ready in time
 */
export async function awaitReady(
  places: DaemonPlaces,
  name: string,
  record: DaemonRecord,
  ready: () => Promise<boolean>,
  withinMs: number,
): Promise<void> {
  const done = await until(async () => !isAlive(record) || (await ready()), withinMs)
  const log = logPath(places, name)
  const end = () => readFileSync(log, 'utf8').slice(-4000).trimEnd().split('\n').slice(-15).join('\n')
  if (!isAlive(record)) throw new Fault(`start ${name}`, { cause: new Error(`it ended; ${log} says:\n${end()}`) })
  if (!done)
    throw new Fault(`start ${name}`, {
      cause: new Error(`not ready after ${withinMs / 1000} s; ${log} says:\n${end()}`),
    })
}

/** Polls a condition. @returns false when it did not come true in time */
export async function until(condition: () => boolean | Promise<boolean>, withinMs: number): Promise<boolean> {
  const deadline = performance.now() + withinMs
  for (let pauseMs = 5; !(await condition()); pauseMs = Math.min(pauseMs * 1.5, 200)) {
    if (performance.now() > deadline) return false
    await new Promise((resolve) => setTimeout(resolve, pauseMs))
  }
  return true
}

export interface SystemUser {
  readonly name: string
  readonly uid: number
  readonly gid: number
}

/** Looks a system user up. @throws Fault when there is none, naming the package that makes it */
export function systemUser(name: string, fromPackage: string): SystemUser {
  const line = readFileSync('/etc/passwd', 'utf8')
    .split('\n')
    .find((entry) => entry.startsWith(`${name}:`))
  const [, , uid, gid] = line?.split(':') ?? []
  if (!uid || !gid) throw new Fault(`find user ${name}`, { cause: new Error(`install the package ${fromPackage}`) })
  return { name, uid: Number(uid), gid: Number(gid) }
}

/**
 * Makes a directory that only `user` can read, and checks that he can get to it through all directories above.
 * @throws Fault naming the directory that is in the way
 */
export function ownDirectory(path: string, user: SystemUser): void {
  mkdirSync(dirname(path), { recursive: true })
  mkdirSync(path, { recursive: true, mode: 0o700 })
  chownSync(path, user.uid, user.gid)
  for (let at = dirname(path); ; at = dirname(at)) {
    const { mode, uid, gid } = statSync(at)
    const needed = uid === user.uid ? 0o100 : gid === user.gid ? 0o010 : 0o001
    if ((mode & needed) === 0) {
      const why = `${at} has mode ${(mode & 0o777).toString(8)}: chmod o+x it, or set BERTH_DATA to another directory`
      throw new Fault(`give ${user.name} access to ${path}`, { cause: new Error(why) })
    }
    if (at === '/') return
  }
}

/** A unix socket's path is at most 107 bytes (unix(7)). @throws Fault naming a longer one */
export function requireSocketPath(path: string): void {
  if (Buffer.byteLength(path) > 107)
    throw new Fault(`listen on ${path}`, {
      cause: new Error('the path is too long for a socket; choose a shorter BERTH_DATA'),
    })
}
