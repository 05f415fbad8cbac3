// terminal-handler.ts: what the API may ask about terminals. Paths and bodies are those of the public routes; the API has
// checked them, and they are checked again here, where they have an effect. Tickets and shares are the API's business: a
// node serves whoever has a grant, in the mode that the API says.

import { createReadStream, existsSync } from 'node:fs'
import {
  closeTerminal,
  createTerminal,
  Failure,
  getTerminal,
  getTerminalRecording,
  InvalidRequest,
  listTerminals,
  type Route,
  resizeTerminal,
  type SandboxId,
  signalTerminal,
  TerminalId,
  TerminalMode,
  TerminalSpec,
} from '@berth/contracts'
import type { NodeCall, SandboxHandler, WebSocket } from '@berth/node-rpc'
import { z } from 'zod'
import { matchRoute } from '../exec/exec-handler.js'
import { within } from '../exec/waiting.js'
import type { SandboxTerminals } from './sandbox-terminals.js'
import type { TerminalSession } from './terminal-session.js'

/** Where the terminals of a sandbox are. */
export interface TerminalPlaces {
  /** Of a sandbox in whatever state. @throws Failure where the node has no such sandbox */
  of(id: SandboxId): SandboxTerminals
  /** Of one that terminals can be opened in; resolves once they can. @throws Failure `wrong_state` and as `of` */
  up(id: SandboxId, signal: AbortSignal): Promise<SandboxTerminals>
}

type Answer = (call: NodeCall, places: TerminalPlaces, session: () => TerminalSession) => Promise<void>

/** A process that does not die of SIGKILL within this (it waits for a disk, say) does so later. */
const CLOSE_WITHIN_MS = 5_000

const SocketQuery = z.object({ mode: TerminalMode, since: z.coerce.number().int().min(0).optional() })

export function terminalHandler(places: TerminalPlaces): SandboxHandler {
  return {
    async request(call) {
      for (const [route, answer] of answers) {
        const named = route.method === call.method ? matchRoute(route, call.rest) : undefined
        if (named) return answer(call, places, () => places.of(call.sandboxId).get(idOf(named.terminal)))
      }
      throw new Failure('route_not_found', 'no such request about terminals')
    },
    socket: (call, accept) => connect(call, places, accept),
  }
}

const answers: readonly (readonly [Route, Answer])[] = [
  [createTerminal, create],
  [listTerminals, async (call, places) => call.answer(200, { items: places.of(call.sandboxId).list() })],
  [getTerminal, async (call, _, session) => call.answer(200, session().describe())],
  [closeTerminal, close],
  [resizeTerminal, resize],
  [signalTerminal, signal],
  [getTerminalRecording, recording],
]

async function create(call: NodeCall, places: TerminalPlaces): Promise<void> {
  const spec = await call.json(TerminalSpec)
  const session = (await places.up(call.sandboxId, call.signal)).create(spec)
  await within(session.started(), call.signal)
  call.answer(201, session.describe())
}

async function close(call: NodeCall, _: TerminalPlaces, session: () => TerminalSession): Promise<void> {
  await within(session().hangUp(), call.signal, CLOSE_WITHIN_MS)
  call.answer(204)
}

async function resize(call: NodeCall, _: TerminalPlaces, session: () => TerminalSession): Promise<void> {
  const size = await call.json(resizeTerminal.body)
  openOnly(session()).resize(size)
  call.answer(200, session().describe())
}

async function signal(call: NodeCall, _: TerminalPlaces, session: () => TerminalSession): Promise<void> {
  const body = await call.json(signalTerminal.body)
  session().signal(body.signal)
  call.answer(200, session().describe())
}

async function recording(call: NodeCall, _: TerminalPlaces, session: () => TerminalSession): Promise<void> {
  const path = session().recordingPath
  if (!existsSync(path)) throw new Failure('output_gone', `terminal ${session().record.id} is not recorded`)
  await call.bytes(createReadStream(path))
}

async function connect(call: NodeCall, places: TerminalPlaces, accept: () => Promise<WebSocket>): Promise<void> {
  const [, id, word, ...more] = call.rest
  if (word !== 'socket' || more.length > 0) throw new Failure('route_not_found', 'no such socket')
  const query = SocketQuery.safeParse(Object.fromEntries(call.query))
  if (!query.success) throw new InvalidRequest([{ field: 'query', message: query.error.message }])
  const session = places.of(call.sandboxId).get(idOf(id))
  const { mode, since } = query.data
  await session.serve(await accept(), { mode, since, signal: call.signal })
}

function openOnly(session: TerminalSession): TerminalSession {
  if (!session.over) return session
  throw new Failure('wrong_state', `terminal ${session.record.id} has ended: only an open one has a size to change`)
}

function idOf(text: string | undefined): TerminalId {
  const id = TerminalId.safeParse(text)
  if (id.success) return id.data
  throw new InvalidRequest([{ field: 'path.terminal', message: 'must be the id of a terminal' }])
}
