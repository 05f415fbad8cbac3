// observation-handler.ts: what the API may ask to look at a sandbox. Queries are those of the public routes; the API has
// checked them, and they are checked again here, where they have an effect.
import { Readable } from 'node:stream'
import {
  Failure,
  getSandboxLogs,
  InvalidRequest,
  type LogEntry,
  type SandboxId,
  streamSandboxStats,
} from '@berth/contracts'
import type { NodeCall, SandboxHandler } from '@berth/node-rpc'
import type { z } from 'zod'
import { type LogPart, type LogQuery, readLog } from '../logs/log-reader.js'
import type { SandboxLogs } from '../logs/sandbox-logs.js'
import { readAccounts, userNames } from '../runtime/identity.js'
import type { LiveSandbox } from '../sandbox/live.js'
import type { Workshop } from '../sandbox/steps.js'
import { Diffs } from './diff.js'
import { inspect } from './inspect.js'
import { Stats } from './stats.js'
import { listProcesses } from './top.js'

export interface ObservationParts {
  /** @throws Failure where the node has no such sandbox */
  readonly find: (id: SandboxId) => LiveSandbox
  readonly logs: Pick<SandboxLogs, 'of'>
  readonly shop: Pick<Workshop, 'cgroups' | 'pool' | 'runtime'>
  /** Path of berth-diff. */
  readonly diff: string
}

/** Paths below the sandbox, as the API writes them: `observation/…`. */
export function observationHandler({ find, logs, shop, diff }: ObservationParts): SandboxHandler {
  const stats = new Stats(shop)
  const diffs = new Diffs(diff)
  const answers: Readonly<Record<string, (call: NodeCall, live: LiveSandbox) => Promise<void> | void>> = {
    logs: async (call, live) => call.lines(entries(await partsOf(call, live))),
    'logs/raw': async (call, live) =>
      call.bytes(Readable.from(bytes(await partsOf(call, live)), { objectMode: false })),
    top: async (call, live) => {
      const hostPids = shop.cgroups.processes(running(live).group)
      const users = userNames(readAccounts([live.upper, ...(live.image?.layers ?? [])]).passwd)
      call.answer(200, { items: await listProcesses(hostPids, live.ids, users) })
    },
    stats: async (call, live) => call.answer(200, await stats.sample(running(live))),
    'stats/stream': async (call, live) => {
      const { intervalMs } = queryOf(call, streamSandboxStats.query)
      running(live)
      await whileUp(live, call.signal, (signal) => call.lines(stats.samples(live, intervalMs, signal)))
    },
    diff: (call, live) => call.lines(diffs.of(live, call.signal)),
    inspect: (call, live) => call.answer(200, inspect(live, shop.runtime.version)),
  }
  const partsOf = async (call: NodeCall, live: LiveSandbox) => {
    const query = logQueryOf(queryOf(call, getSandboxLogs.query))
    return readLog(await logs.of(live), query, call.signal)
  }
  return {
    async request(call) {
      const name = call.rest.slice(1).join('/')
      const answer = call.method === 'GET' && Object.hasOwn(answers, name) ? answers[name] : undefined
      if (!answer) throw new Failure('route_not_found', 'no such request to look at a sandbox')
      await answer(call, find(call.sandboxId))
    },
  }
}

/** A frozen one too: its processes are there. */
function running(live: LiveSandbox): LiveSandbox {
  if (live.state === 'running' || live.state === 'paused') return live
  throw new Failure('wrong_state', `sandbox ${live.id} is ${live.state}: nothing runs in it`, { state: live.state })
}

/** Work on a signal that is aborted with the caller, or when the run ends. */
async function whileUp(live: LiveSandbox, caller: AbortSignal, work: (signal: AbortSignal) => Promise<void>) {
  const over = new AbortController()
  const end = () => over.abort()
  const sources = [caller, live.runEnded]
  for (const source of sources) source.addEventListener('abort', end, { once: true })
  if (sources.some(({ aborted }) => aborted)) end()
  try {
    await work(over.signal)
  } finally {
    for (const source of sources) source.removeEventListener('abort', end)
  }
}

function queryOf<S extends z.ZodType>(call: NodeCall, schema: S): z.output<S> {
  const parsed = schema.safeParse(Object.fromEntries(call.query))
  if (parsed.success) return parsed.data
  throw new InvalidRequest(
    parsed.error.issues.map(({ path, message }) => ({ field: path.map(String).join('.'), message })),
  )
}

function logQueryOf({ stream, follow, tail, since, until }: z.output<typeof getSandboxLogs.query>): LogQuery {
  return {
    streams: stream ? [stream] : ['stdout', 'stderr'],
    follow,
    tail,
    since: since === undefined ? undefined : typeof since === 'number' ? { offset: since } : { at: Date.parse(since) },
    until: until === undefined ? undefined : Date.parse(until),
  }
}

async function* entries(parts: AsyncIterable<LogPart>): AsyncGenerator<LogEntry> {
  for await (const { stream, at, offset, bytes } of parts)
    yield { stream, at: new Date(at).toISOString(), offset: offset + bytes.length, text: bytes.toString() }
}

async function* bytes(parts: AsyncIterable<LogPart>): AsyncGenerator<Buffer> {
  for await (const part of parts) yield part.bytes
}
