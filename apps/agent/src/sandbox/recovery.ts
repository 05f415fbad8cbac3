// recovery.ts: what the agent does before it takes work. It compares its own records with what is on the node, goes on
// with what runs, ends what was half made, and removes what no record knows of. Safe to be killed in, and run again.

import { readdirSync, readFileSync } from 'node:fs'
import { setTimeout as delay } from 'node:timers/promises'
import { Fault, ignore } from '@berth/contracts'
import type { Logger } from '@berth/telemetry'
import type { AttemptRecord, Cancel, Journal } from '../journal.js'
import { answers } from './container-run.js'
import { type AttemptFacts, type Fate, fateOf, type Holdings, orphans } from './recovery.plan.js'
import type { ResidentRecord, ResidentRecords } from './resident-record.js'
import type { Residents } from './residents.js'
import type { Entry } from './sandbox.js'
import { releaseAll, sandboxGroup, type Workshop } from './steps.js'
import type { Supervisor } from './supervisor.js'
import { Turns } from './turns.js'

export interface RecoveryOptions {
  readonly shop: Workshop
  readonly journal: Journal
  readonly supervisor: Supervisor
  readonly records: ResidentRecords
  readonly residents: Residents
  /** Layers of the pool that are neither an attempt's nor a sandbox's, and stay: cache that builds mount. */
  readonly kept?: readonly string[]
  readonly log: Logger
}

/** A berth-init that does not answer for this long is taken for dead, and its sandbox is ended. */
const ANSWER_MS = 5_000
/** Sandboxes that are gone on with at once. */
const AT_ONCE = 16

/** @throws when something that must be gone cannot be removed: the agent does not take work on such a node */
export async function recover(options: RecoveryOptions): Promise<void> {
  const { shop, journal, log } = options
  await endStarters(shop.runtime.stateDirectory)
  const [attempts, sandboxes] = [await journal.load(), await options.records.load()]
  const known = [...attempts, ...sandboxes.filter(({ accepted }) => accepted !== undefined)].map(({ id }) => id)
  await removeOrphans(shop, orphans(await holdings(shop), [...known, ...(options.kept ?? [])]))
  for (const record of attempts) {
    const fate = fateOf(await factsOf(record, journal))
    log.info({ attempt: record.id, fate }, 'recovery.attempt')
    await carryOut(options, record, fate)
  }
  const turns = new Turns(AT_ONCE)
  await Promise.all(sandboxes.map((record) => turns.run(() => enter(options, record))))
  await removeEmptyTenants(shop)
  await journal.expire(new Date())
}

/** A sandbox that stays goes on from where it was; one whose first command was just being written will come again. */
async function enter({ shop, records, residents }: RecoveryOptions, record: ResidentRecord): Promise<void> {
  const { id, accepted } = record
  if (!accepted) return records.remove(id)
  const group = sandboxGroup(shop, { id, tenantId: accepted.command.tenantId })
  // What is frozen cannot answer, and is there.
  const frozen = shop.cgroups.frozen(group) && shop.cgroups.processes(group).length > 0
  await residents.enter(record, frozen || (await answers(records.paths(id).socket, ANSWER_MS)))
}

/**
 * Ends everything and removes every trace of it but records and output: `agent --clean`. What ran is lost, which the next
 * agent reports.
 * @param kept layers of the pool that are left as they are, by the names of the sandboxes that stay, and cache of builds
 */
export async function clean(shop: Workshop, kept: readonly string[] = []): Promise<void> {
  await endStarters(shop.runtime.stateDirectory)
  const found = await holdings(shop)
  const files = new Set(kept)
  await removeOrphans(shop, { ...found, layers: found.layers.filter((layer) => !files.has(layer)) })
  await shop.cgroups.kill(shop.cgroupParent)
  await shop.cgroups.remove(shop.cgroupParent)
}

/** What the node holds that carries the name of an attempt or a sandbox. */
export async function holdings(shop: Workshop): Promise<Holdings> {
  const tenants = shop.cgroups.children(shop.cgroupParent)
  return {
    containers: shop.runtime.list(),
    layers: await shop.pool.list(),
    groups: tenants.flatMap((tenant) =>
      shop.cgroups.children(`${shop.cgroupParent}/${tenant}`).map((name) => ({ tenant, name })),
    ),
  }
}

async function factsOf(record: AttemptRecord, journal: Journal): Promise<AttemptFacts> {
  const spawned = record.entries.some(({ event }) => event === 'spawn')
  const ended = record.result !== undefined
  return {
    id: record.id,
    accepted: record.accepted !== undefined,
    spawned,
    canceled: cancelOf(record) !== undefined,
    ended,
    alive: spawned && !ended && (await answers(journal.paths(record.id).socket, ANSWER_MS)),
  }
}

const cancelOf = (record: AttemptRecord): Cancel | undefined =>
  record.entries.flatMap((entry) => (entry.event === 'cancel' ? [entry.cancel] : [])).at(-1)

async function carryOut(options: RecoveryOptions, record: AttemptRecord, fate: Fate): Promise<void> {
  const { shop, journal, supervisor, log } = options
  const { id, accepted, result } = record
  if (!accepted) {
    // Nothing was made for it: either its command comes again, or it was canceled before it came, and that is kept.
    if (fate === 'report') journal.archive(id)
    else await journal.remove(id)
    return
  }
  if (fate === 'rerun' || fate === 'withdraw')
    await releaseAll(shop, { id, tenantId: accepted.command.tenantId, paths: journal.paths(id) }, log)
  supervisor.enter({
    accepted,
    entry: entryOf[fate],
    cancel: cancelOf(record),
    spawned: record.entries.findLast((entry) => entry.event === 'spawn'),
    result,
  })
}

const entryOf: Readonly<Record<Fate, Entry>> = {
  discard: 'withdraw',
  report: 'ended',
  adopt: 'adopt',
  rerun: 'begin',
  withdraw: 'withdraw',
  lose: 'lose',
}

async function removeOrphans(shop: Workshop, found: Holdings): Promise<void> {
  // Processes first: what they hold cannot be removed before.
  for (const { tenant, name } of found.groups) await shop.cgroups.kill(`${shop.cgroupParent}/${tenant}/${name}`)
  for (const { tenant, name } of found.groups) await shop.cgroups.remove(`${shop.cgroupParent}/${tenant}/${name}`)
  for (const name of found.containers) await shop.runtime.forget(name)
  for (const name of found.layers) await shop.pool.remove(name)
}

async function removeEmptyTenants(shop: Workshop): Promise<void> {
  for (const tenant of shop.cgroups.children(shop.cgroupParent)) {
    const group = `${shop.cgroupParent}/${tenant}`
    if (shop.cgroups.children(group).length === 0) await shop.cgroups.remove(group)
  }
}

/**
 * A runtime that a killed agent had just started goes on by itself, and would finish a container behind the back of
 * what follows. They are found by the state directory in their arguments, which no other program names.
 */
async function endStarters(stateDirectory: string): Promise<void> {
  const until = performance.now() + ANSWER_MS
  for (let alive = starters(stateDirectory); alive.length > 0; alive = starters(stateDirectory)) {
    if (performance.now() > until)
      throw new Fault('end leftover runtimes', { cause: new Error(`pids ${alive.join()}`) })
    for (const pid of alive) endProcess(pid)
    await delay(2)
  }
}

function starters(stateDirectory: string): readonly number[] {
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name))
    .filter((pid) => argvOf(pid).some((word, i, argv) => word === '--root' && argv[i + 1] === stateDirectory))
    .map(Number)
}

function argvOf(pid: string): readonly string[] {
  try {
    return readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0')
  } catch (error) {
    return ignore(error, 'ENOENT', 'ESRCH') ?? []
  }
}

function endProcess(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL')
  } catch (error) {
    ignore(error, 'ESRCH')
  }
}
