// execs.service.ts: commands in sandboxes. Everything about them lives on the sandbox's node; here they are only asked
// for, and nothing of them touches Postgres but the look-up of where the sandbox is.
import type { Readable } from 'node:stream'
import {
  Exec,
  type ExecId,
  type ExecSpec,
  type ExecState,
  type OutputStream,
  SECOND,
  type TerminalSize,
} from '@berth/contracts'
import type { NodeAnswer, Query, WebSocket } from '@berth/node-rpc'
import { Injectable } from '@nestjs/common'
import { z } from 'zod'
import type { TenantPrincipal } from '../http/auth.js'
import { SandboxCalls, type SandboxRequest } from '../streams/sandbox-calls.js'

/** Which exec, of which sandbox (id or name), for whom. */
export interface ExecCall {
  readonly principal: TenantPrincipal
  readonly sandbox: string
  /** Aborted when the client goes. */
  readonly signal: AbortSignal
}

export interface Waiting {
  readonly wait?: 'ended' | undefined
  readonly timeoutMs: number
  readonly output: boolean
}

/** How long a node may take to begin an answer: it waits for a sandbox that is being started, half a minute at most. */
const ANSWER_MS = 45 * SECOND

const List = z.object({ items: z.array(Exec) })
const Input = z.object({ stdinBytes: z.number().int() })

@Injectable()
export class ExecsService {
  constructor(private readonly calls: SandboxCalls) {}

  create(call: ExecCall, spec: ExecSpec, waiting: Waiting): Promise<Exec> {
    return this.exec(call, { method: 'POST', path: ['execs'], json: spec, ...waitingFor(waiting) })
  }

  /** Lines of JSON from its beginning to its end. */
  run(call: ExecCall, spec: ExecSpec): Promise<NodeAnswer> {
    return this.open(call, { method: 'POST', path: ['execs', 'stream'], json: spec, answerWithinMs: ANSWER_MS })
  }

  list(call: ExecCall, state: ExecState | undefined): Promise<z.infer<typeof List>> {
    const { principal, sandbox, signal } = call
    return this.calls.json(principal, sandbox, { method: 'GET', path: ['execs'], query: { state }, signal }, List)
  }

  get(call: ExecCall, id: ExecId, waiting: Waiting): Promise<Exec> {
    return this.exec(call, { method: 'GET', path: ['execs', id], ...waitingFor(waiting) })
  }

  stream(call: ExecCall, id: ExecId, query: Query): Promise<NodeAnswer> {
    return this.open(call, { method: 'GET', path: ['execs', id, 'stream'], query })
  }

  output(call: ExecCall, id: ExecId, stream: OutputStream, query: Query): Promise<NodeAnswer> {
    return this.open(call, { method: 'GET', path: ['execs', id, 'output', stream], query })
  }

  input(call: ExecCall, id: ExecId, query: Query, body: Readable): Promise<z.infer<typeof Input>> {
    const { principal, sandbox, signal } = call
    const request = { method: 'POST', path: ['execs', id, 'input'], query, body, signal } as const
    return this.calls.json(principal, sandbox, request, Input)
  }

  attach(call: ExecCall, id: ExecId, query: Query, accept: () => Promise<WebSocket>): Promise<void> {
    const { principal, sandbox, signal } = call
    return this.calls.attach(principal, sandbox, { path: ['execs', id, 'socket'], query, signal }, accept)
  }

  signal(call: ExecCall, id: ExecId, body: { readonly signal: number; readonly group: boolean }): Promise<Exec> {
    return this.exec(call, { method: 'POST', path: ['execs', id, 'signal'], json: body })
  }

  resize(call: ExecCall, id: ExecId, size: TerminalSize): Promise<Exec> {
    return this.exec(call, { method: 'POST', path: ['execs', id, 'resize'], json: size })
  }

  async delete(call: ExecCall, id: ExecId): Promise<void> {
    const { body } = await this.open(call, { method: 'DELETE', path: ['execs', id] })
    body.destroy()
  }

  private exec({ principal, sandbox, signal }: ExecCall, request: Omit<SandboxRequest, 'signal'>): Promise<Exec> {
    return this.calls.json(principal, sandbox, { ...request, signal }, Exec)
  }

  private open({ principal, sandbox, signal }: ExecCall, request: Omit<SandboxRequest, 'signal'>): Promise<NodeAnswer> {
    return this.calls.call(principal, sandbox, { ...request, signal })
  }
}

const waitingFor = ({ wait, timeoutMs, output }: Waiting): Pick<SandboxRequest, 'query' | 'answerWithinMs'> => ({
  query: { wait, timeoutMs: `${timeoutMs}ms`, output },
  answerWithinMs: ANSWER_MS + (wait ? timeoutMs : 0),
})
