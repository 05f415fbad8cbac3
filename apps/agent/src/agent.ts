// agent.ts: the parts put together, in the order in which they may act: open → recover → serve → join → take work.

import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { statSync } from 'node:fs'
import { createServer } from 'node:net'
import { availableParallelism } from 'node:os'
import { join } from 'node:path'
import { setTimeout as pause } from 'node:timers/promises'
import {
  type AttemptFinished,
  type AttemptId,
  Failure,
  Fault,
  GiB,
  INLINE_OUTPUT_BYTES,
  invariant,
} from '@berth/contracts'
import { spawnThrough } from '@berth/host'
import { nodeCertificate, type StreamServerHandle, serveStreams } from '@berth/node-rpc'
import type { Logger } from '@berth/telemetry'
import { ApiClient, Refused } from './api-client.js'
import { Builds } from './build/builds.js'
import { cacheMountNames } from './build/cache.js'
import { capacityOf, poolOf } from './capacity.js'
import { carryOut } from './commands.js'
import type { Config } from './config.js'
import { type ExecDriver, InitDriver } from './exec/exec-driver.js'
import { Execs } from './exec/execs.js'
import { OciDriver } from './exec/oci-driver.js'
import { Bringing } from './images/bring.js'
import { type Findings, fsck } from './images/fsck.js'
import { Images, nodePlatform } from './images/images.js'
import { Journal } from './journal.js'
import { SandboxLogs } from './logs/sandbox-logs.js'
import { readHead } from './logs/store.js'
import { Membership } from './membership.js'
import { Reports } from './reports.js'
import type { OciRuntime } from './runtime/oci-runtime.js'
import { Copies } from './sandbox/copies.js'
import { HeldSnapshots } from './sandbox/held-snapshots.js'
import type { LiveSandbox } from './sandbox/live.js'
import { clean, recover } from './sandbox/recovery.js'
import { ResidentRecords } from './sandbox/resident-record.js'
import { Residents } from './sandbox/residents.js'
import type { RunnableImage, Surroundings } from './sandbox/sandbox.js'
import { SnapshotImages } from './sandbox/snapshot-images.js'
import { Supervisor } from './sandbox/supervisor.js'
import { Turns } from './sandbox/turns.js'
import { type OpenWorkshop, openWorkshop } from './sandbox/workshop.js'
import { scanAside } from './scan/scan-aside.js'
import { streamHandlers } from './streams.js'
import { Terminals } from './terminals/terminals.js'

export interface Agent {
  /** Lets go of everything; sandboxes run on and are taken over by the next agent. */
  stop(): Promise<void>
}

/** Writable layers that are there before they are asked for, with the limit that jobs have by default. */
const READY_LAYERS = { count: 4, limitBytes: GiB } as const
/** What is not reported by then is reported by the next agent. */
const LAST_REPORTS_MS = 2_000
const EXPIRY_MS = 600_000
/** What no image has any more goes within so long. */
const COLLECT_MS = 60_000
/** Copies that sandboxes have begun with go within so long. */
const SNAPSHOTS_MS = 5_000
/** How long a clean-up waits for another one. */
const CLEANS_MS = 30_000
const CLAIM_EVERY_MS = 100

/** Starts the agent: returns once it has joined and takes work. @throws what the node lacks */
export async function startAgent(config: Config, log: Logger): Promise<Agent> {
  await claim(config.BERTH_AGENT_DATA)
  const spawning = await spawnThrough(join(config.BERTH_INIT_DIR, 'berth-run'))
  const shop = await openShop(config, READY_LAYERS.count, log)
  const journal = new Journal(config.BERTH_AGENT_DATA)
  const images = await openImages(config)
  const importImages = importer(images, log)
  await importImages()
  const api = new ApiClient(config.BERTH_API_URL, config.BERTH_NODE_TOKEN.reveal())
  const reports = new Reports({
    send: (batch) => api.report(batch),
    compose: (id) => compose(journal, id),
    composeSandbox: (id) => residents.report(id),
    onStored: (report) => residents.stored(report),
    isFinal: (error) => error instanceof Refused && error.final,
    log,
  })
  const bringing = new Bringing({ images, giver: api, log })
  const around = {
    shop,
    log,
    resolveImage: imagesOf(images, bringing),
    starts: new Turns(2 * availableParallelism()),
  }
  const supervisor = new Supervisor({
    ...around,
    journal,
    reports,
    maxSandboxes: config.BERTH_MAX_SANDBOXES + 2 * availableParallelism(),
  })
  const execs = new Execs({
    log,
    openDriver: (live) => execDriver(config.BERTH_EXEC_DRIVER, shop.runtime, live, log),
    oomKills: ({ group }) => shop.cgroups.usage(group)?.oomKills ?? 0,
  })
  const terminals = new Terminals(log)
  const logs = new SandboxLogs(log)
  const records = new ResidentRecords(config.BERTH_AGENT_DATA)
  const capacity = capacityOf(config)
  const { cacheBytes: mountBytes, filesBytes } = poolOf(capacity)
  const copies = new Copies(shop.pool, filesBytes)
  const held = await HeldSnapshots.open(config.BERTH_AGENT_DATA, shop.pool, copies)
  const residents = new Residents({ ...around, records, held, reports, companions: [logs, execs, terminals] })
  const kept = [...(await cacheMountNames(config.BERTH_AGENT_DATA)), ...held.layers()]
  await recover({ shop, journal, supervisor, records, residents, kept, log })
  const { starts } = around
  const builds = await Builds.open({ dataDirectory: config.BERTH_AGENT_DATA, shop, starts, images, mountBytes, log })

  const certificate = await nodeCertificate(config.BERTH_AGENT_DATA)
  let membership: Membership | undefined
  const observation = { logs, shop, diff: join(config.BERTH_INIT_DIR, 'berth-diff') }
  const inUse = () => new Set([...supervisor.layersInUse(), ...residents.layersInUse(), ...held.layersInUse()])
  const imageParts = { images, bringing, inUse, scan: scanAside, log }
  const snapshots = { held, images: new SnapshotImages({ residents, images, copies, shop, log }) }
  const handled = { journal, supervisor, residents, execs, terminals, observation, snapshots, builds, log }
  const parts = { ...handled, images: imageParts }
  const handlers = streamHandlers(parts)
  const streams = await serve(config, { ...certificate, log, handlers, joined: () => membership?.joined })
  membership = new Membership({
    api,
    log,
    standing: () => ({
      capacity,
      images: [...images.list()],
      attempts: [...supervisor.standing()],
      sandboxes: [...residents.standing()],
      tenants: [...shop.tenants.standing()],
    }),
    introduction: {
      runtime: shop.runtime.version,
      platform: nodePlatform,
      streams: { url: streams.url, certificate: certificate.certificate },
    },
    handle: (command) => carryOut(supervisor, residents, command),
    discard: (id) => supervisor.discard(id),
    discardSandbox: (id) => residents.discard(id),
    dropImages: (digests) => images.dropAll(digests),
    limitTenant: (id, limits) => shop.tenants.renew(id, limits),
    concurrency: 32,
  })
  await membership.start()
  const upkeep = everyNow(log, [
    { everyMs: 2_000, work: importImages },
    { everyMs: COLLECT_MS, work: () => collect(images, builds, inUse()) },
    { everyMs: SNAPSHOTS_MS, work: () => held.expire(Date.now()) },
    { everyMs: EXPIRY_MS, work: async () => void (await journal.expire(new Date())) },
    { everyMs: EXPIRY_MS, work: () => builds.cache.expire() },
  ])
  return {
    async stop() {
      upkeep()
      await membership.close()
      await streams.close()
      await builds.close()
      await reports.close(LAST_REPORTS_MS)
      await Promise.all([supervisor.close(), residents.close()])
      shop.tenants.close()
      await api.close()
      await spawning[Symbol.asyncDispose]()
    },
  }
}

const openImages = (config: Config) =>
  Images.open(config.BERTH_AGENT_DATA, config.BERTH_IMAGES_DIR, join(config.BERTH_INIT_DIR, 'berth-layer'))

/**
 * Checks the images of a node. Beside an agent that runs it leaves alone what that may be working on; without one it
 * first clears away what the last one left half-made, as the next start would.
 */
export async function checkImages(config: Config): Promise<Findings> {
  const busy = await claim(config.BERTH_AGENT_DATA).then(
    () => false,
    () => true,
  )
  const images = busy
    ? await Images.view(config.BERTH_AGENT_DATA, config.BERTH_IMAGES_DIR, join(config.BERTH_INIT_DIR, 'berth-layer'))
    : await openImages(config)
  return fsck(images, busy, new AbortController().signal)
}

/** Removes what no image has any more. Where the disk is short, builds lose as much of their cached steps before as is missing. */
async function collect(images: Images, builds: Builds, inUse: ReadonlySet<string>): Promise<void> {
  const missing = await images.content.room.missing()
  if (missing) await builds.cache.shrink(missing, inUse)
  await images.collect(inUse)
}

/** Starts commands in a run of a sandbox that is up. */
function execDriver(
  wanted: Config['BERTH_EXEC_DRIVER'],
  runtime: OciRuntime,
  live: LiveSandbox,
  log: Logger,
): ExecDriver {
  const { id, group, processes } = live
  if (wanted === 'oci') return OciDriver.open({ runtime, id, group, directory: join(live.directory, 'oci-execs'), log })
  invariant(processes, 'execs are attached to a run that is up')
  return new InitDriver(processes)
}

/** Ends all sandboxes of this data directory and removes what they hold, the pool's mount included. */
export async function cleanNode(config: Config, log: Logger): Promise<void> {
  // Another clean-up may be at it still: one whose caller was killed.
  await claim(config.BERTH_AGENT_DATA, CLEANS_MS)
  const shop = await openShop(config, 0, log)
  const sandboxes = await new ResidentRecords(config.BERTH_AGENT_DATA).load()
  await clean(shop, [...sandboxes.map(({ id }) => id), ...(await cacheMountNames(config.BERTH_AGENT_DATA))])
  await shop.pool.close()
}

const openShop = (config: Config, ready: number, log: Logger): Promise<OpenWorkshop> =>
  openWorkshop({
    dataDirectory: config.BERTH_AGENT_DATA,
    cgroupParent: config.BERTH_CGROUP_PARENT,
    runtime: config.BERTH_RUNTIME,
    initDirectory: config.BERTH_INIT_DIR,
    poolBytes: poolOf(capacityOf(config)).bytes,
    ready: { ...READY_LAYERS, count: ready },
    log,
  })

/**
 * Makes this process the only agent of the directory, until it ends in whatever way: the kernel drops an abstract
 * socket with its owner (unix(7)), so there is no stale lock file.
 * @param waitMs for another process to end
 */
async function claim(directory: string, waitMs = 0): Promise<void> {
  const name = createHash('sha256').update(directory).digest('hex').slice(0, 32)
  for (const until = performance.now() + waitMs; ; await pause(CLAIM_EVERY_MS)) {
    const lock = createServer((socket) => socket.destroy()).listen(`\0berth-agent-${name}`)
    try {
      await once(lock, 'listening')
      lock.unref()
      return
    } catch (cause) {
      if (performance.now() > until) throw new Fault(`be the only agent of ${directory}`, { cause })
    }
  }
}

function serve(
  config: Config,
  parts: {
    readonly certificate: string
    readonly key: string
    readonly log: Logger
    readonly handlers: ReturnType<typeof streamHandlers>
    readonly joined: () => Membership['joined']
  },
): Promise<StreamServerHandle> {
  const { certificate, key, log, handlers, joined } = parts
  return serveStreams({
    host: config.BERTH_AGENT_HOST,
    port: config.BERTH_AGENT_PORT,
    certificate,
    key,
    log,
    // Read for each request, after `grantKey`: before the first join there is none, and everything is refused.
    get nodeId() {
      const nodeId = joined()?.nodeId
      invariant(nodeId, 'a grant is checked only once the node has joined')
      return nodeId
    },
    grantKey: () => joined()?.grantKey,
    ...handlers,
  })
}

/** The report of an end: the result on disk with the first bytes of the output. */
async function compose(journal: Journal, id: AttemptId): Promise<AttemptFinished | undefined> {
  const [result, paths] = [await journal.result(id), journal.locate(id)]
  if (!result || !paths) return undefined
  const { keepUntil, ...report } = result
  const [stdout, stderr] = await Promise.all(
    [paths.stdout, paths.stderr].map((path) => readHead(path, INLINE_OUTPUT_BYTES)),
  )
  return { ...report, stdout: stdout?.toString('base64') ?? '', stderr: stderr?.toString('base64') ?? '' }
}

/** Finds what is to be started from; brings what the API has resolved and this node lacks. */
function imagesOf(images: Images, bringing: Bringing): Surroundings['resolveImage'] {
  return async ({ reference, digest, need, signal }) => {
    const found = resolve(images, reference, digest)
    if (found || digest === undefined) return found
    await bringing.ensure(digest, need, signal)
    return resolve(images, reference, digest)
  }
}

/** A reference that is none names no image. */
function resolve(images: Images, reference: string, digest: string | undefined): RunnableImage | undefined {
  try {
    return images.resolve(reference, digest)
  } catch (error) {
    if (error instanceof Failure) return undefined
    throw error
  }
}

/** Imports the layout whenever its index has changed. One that is not there yet may come. */
function importer(images: Images, log: Logger): () => Promise<void> {
  const { layout } = images.content
  let seen: number | undefined
  return async () => {
    const changedAt = statSync(join(layout, 'index.json'), { throwIfNoEntry: false })?.mtimeMs
    if (changedAt === undefined || changedAt === seen) return
    try {
      const changed = await images.importLayout()
      seen = changedAt
      log.info({ layout, images: changed }, 'images.imported')
    } catch (err) {
      log.error({ layout, err }, 'images.import_failed')
    }
  }
}

/** Repeats work, each piece never beside itself. @returns what ends it */
function everyNow(log: Logger, jobs: readonly { readonly everyMs: number; readonly work: () => Promise<void> }[]) {
  let running = true
  const timers = jobs.map(({ everyMs, work }) => {
    const next = async () => {
      await work().catch((err: unknown) => log.error({ err }, 'upkeep.failed'))
      if (running) timer = setTimeout(next, everyMs)
    }
    let timer = setTimeout(next, everyMs)
    return () => clearTimeout(timer)
  })
  return () => {
    running = false
    for (const stop of timers) stop()
  }
}
