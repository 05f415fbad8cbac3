// exec-handler.ts: what the API may ask about execs. Paths, queries and bodies are those of the public routes; the API has
// checked them, and they are checked again here, where they have an effect.

import { Readable } from 'node:stream'
import {
  createExec,
  deleteExec,
  type ExecFrame,
  ExecId,
  ExecSpec,
  Failure,
  getExec,
  getExecOutput,
  InvalidRequest,
  listExecs,
  OutputStream,
  type Route,
  resizeExec,
  runExec,
  type SandboxId,
  signalExec,
  streamExec,
  writeExecInput,
} from '@berth/contracts'
import type { NodeCall, SandboxHandler } from '@berth/node-rpc'
import type { Logger } from '@berth/telemetry'
import type { z } from 'zod'
import { type ExecPiece, type ReadOptions, readPieces, textFrames } from './exec-output.js'
import type { ExecSession } from './exec-session.js'
import { attach } from './exec-socket.js'
import type { SandboxExecs } from './sandbox-execs.js'
import { withEither, within } from './waiting.js'

/** Where the execs of a sandbox are. */
export interface ExecPlaces {
  /** Of a sandbox in whatever state. @throws Failure where the node has no such sandbox */
  of(id: SandboxId): SandboxExecs
  /** Of one that commands can be started in; resolves once they can. @throws Failure `wrong_state` and as `of` */
  up(id: SandboxId, signal: AbortSignal): Promise<SandboxExecs>
}

type Named = Readonly<Record<string, string>>
type Answer = (call: NodeCall, places: ExecPlaces, named: Named) => Promise<void>

/** A process that does not die of SIGKILL within this (it waits for a disk, say) does so later. */
const DELETE_WITHIN_MS = 5_000

export function execHandler(places: ExecPlaces, log: Logger): SandboxHandler {
  return {
    async request(call) {
      for (const [route, answer] of answers) {
        const named = route.method === call.method ? matchRoute(route, call.rest) : undefined
        if (named) return answer(call, places, named)
      }
      throw new Failure('route_not_found', 'no such request about execs')
    },
    socket: (call, accept) => attach(call, places.of(call.sandboxId), accept, log),
  }
}

const answers: readonly (readonly [Route, Answer])[] = [
  [createExec, create],
  [runExec, run],
  [listExecs, list],
  [getExec, get],
  [streamExec, stream],
  [getExecOutput, output],
  [writeExecInput, input],
  [signalExec, signal],
  [resizeExec, resize],
  [deleteExec, remove],
]

/** The words of a path below the sandbox, against a route's. @returns what its names stand for */
export function matchRoute(route: Route, rest: readonly string[]): Named | undefined {
  const words = route.path.split('/').slice(4) // '', v1, sandboxes, :sandbox
  if (words.length !== rest.length) return undefined
  const named: Record<string, string> = {}
  for (const [i, word] of words.entries()) {
    const given = rest[i] ?? ''
    if (word.startsWith(':')) named[word.slice(1)] = given
    else if (word !== given) return undefined
  }
  return named
}

async function create(call: NodeCall, places: ExecPlaces): Promise<void> {
  const query = queryOf(call, createExec.query)
  const spec = await call.json(ExecSpec)
  const execs = await places.up(call.sandboxId, call.signal)
  const id = execs.start(spec)
  await execs.use(id, async (session) => {
    if (query.wait) await ended(session, query.timeoutMs, call.signal)
    else await within(session.started(), call.signal)
    call.answer(201, query.output ? await session.viewWithOutput() : session.view())
  })
}

async function run(call: NodeCall, places: ExecPlaces): Promise<void> {
  const spec = await call.json(ExecSpec)
  const execs = await places.up(call.sandboxId, call.signal)
  const id = execs.start(spec)
  await execs.use(id, (session) => frames(call, session, { stdout: 0, stderr: 0, follow: true }))
}

async function list(call: NodeCall, places: ExecPlaces): Promise<void> {
  call.answer(200, { items: places.of(call.sandboxId).list(queryOf(call, listExecs.query).state) })
}

async function get(call: NodeCall, places: ExecPlaces, named: Named): Promise<void> {
  const query = queryOf(call, getExec.query)
  await places.of(call.sandboxId).use(execOf(named), async (session) => {
    if (query.wait) await ended(session, query.timeoutMs, call.signal)
    call.answer(200, query.output ? await session.viewWithOutput() : session.view())
  })
}

async function stream(call: NodeCall, places: ExecPlaces, named: Named): Promise<void> {
  const query = queryOf(call, streamExec.query)
  await places.of(call.sandboxId).use(execOf(named), (session) => frames(call, session, query))
}

async function output(call: NodeCall, places: ExecPlaces, named: Named): Promise<void> {
  const { since, follow } = queryOf(call, getExecOutput.query)
  const name = parsed('path', OutputStream, named.stream)
  await places.of(call.sandboxId).use(execOf(named), async (session) => {
    const place = session[name].locate(since)
    const from = place && 'gap' in place ? place.gap : since
    await withEither([call.signal, session.gone], async (signal) => {
      const pieces = readPieces(session, { stdout: from, stderr: from, follow, only: name, signal })
      const bytes = Readable.from(rawBytes(session, pieces), { objectMode: false })
      await call.bytes(bytes, { headers: { 'berth-offset': from } })
    })
  })
}

async function input(call: NodeCall, places: ExecPlaces, named: Named): Promise<void> {
  const { offset, end } = queryOf(call, writeExecInput.query)
  await places.of(call.sandboxId).use(execOf(named), async (session) => {
    let at = offset
    for await (const chunk of call.body) {
      await session.write(at, chunk)
      if (at !== undefined) at += chunk.length
    }
    if (end) await session.endInput(at)
    call.answer(200, { stdinBytes: session.stdinBytes })
  })
}

async function signal(call: NodeCall, places: ExecPlaces, named: Named): Promise<void> {
  const body = await call.json(signalExec.body)
  await places.of(call.sandboxId).use(execOf(named), async (session) => {
    session.signal(body.signal, body.group ? 'group' : 'process')
    call.answer(200, session.view())
  })
}

async function resize(call: NodeCall, places: ExecPlaces, named: Named): Promise<void> {
  const { rows, columns } = await call.json(resizeExec.body)
  await places.of(call.sandboxId).use(execOf(named), async (session) => {
    session.resize(rows, columns)
    call.answer(200, session.view())
  })
}

async function remove(call: NodeCall, places: ExecPlaces, named: Named): Promise<void> {
  await within(places.of(call.sandboxId).delete(execOf(named)), call.signal, DELETE_WITHIN_MS)
  call.answer(204)
}

/** Resolves when it has ended, the time is over or the caller has gone. @throws Failure when it was deleted meanwhile */
async function ended(session: ExecSession, timeoutMs: number, caller: AbortSignal): Promise<void> {
  if (!session.over) await withEither([caller, session.gone], (signal) => within(session.ended, signal, timeoutMs))
  mustBeThere(session)
}

async function frames(
  call: NodeCall,
  session: ExecSession,
  options: Pick<ReadOptions, 'stdout' | 'stderr' | 'follow'>,
): Promise<void> {
  await withEither([call.signal, session.gone], (signal) => call.lines(allFrames(session, { ...options, signal })))
}

async function* allFrames(session: ExecSession, options: ReadOptions): AsyncGenerator<ExecFrame> {
  await within(session.started(), options.signal)
  yield { type: 'started', exec: session.record.id, pid: session.pid }
  yield* textFrames(readPieces(session, options))
  mustBeThere(session)
  if (!options.signal.aborted && session.over) yield { type: 'end', exec: session.view() }
}

/** Raw bytes have no way to tell of a gap: the answer breaks off, and its reader goes on with `since`. */
async function* rawBytes(session: ExecSession, pieces: AsyncIterable<ExecPiece>): AsyncGenerator<Buffer> {
  for await (const piece of pieces) {
    if (piece.kind === 'gap') throw new Failure('output_gone', `it goes on at ${piece.offset}`)
    yield piece.bytes
  }
  mustBeThere(session)
}

function mustBeThere(session: ExecSession): void {
  if (session.gone.aborted) throw new Failure('exec_not_found', `exec ${session.record.id} was deleted`)
}

const execOf = (named: Named): ExecId => parsed('path', ExecId, named.exec)

const queryOf = <S extends z.ZodType>(call: NodeCall, schema: S): z.output<S> =>
  parsed('query', schema, Object.fromEntries(call.query))

function parsed<S extends z.ZodType>(where: string, schema: S, value: unknown): z.output<S> {
  const result = schema.safeParse(value)
  if (result.success) return result.data
  const violations = result.error.issues.map(({ path, message }) => ({ field: [where, ...path].join('.'), message }))
  throw new InvalidRequest(violations)
}
