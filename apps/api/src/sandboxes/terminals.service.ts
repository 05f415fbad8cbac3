// terminals.service.ts: terminals in sandboxes. They live on the sandbox's node; here they are asked for, and the passes
// that let browsers connect to them are made.
import {
  SECOND,
  type ShareId,
  Terminal,
  type TerminalId,
  type TerminalMode,
  type TerminalShare,
  type TerminalSize,
  type TerminalSpec,
  type TerminalTicket,
} from '@berth/contracts'
import type { NodeAnswer } from '@berth/node-rpc'
import { Inject, Injectable } from '@nestjs/common'
import { z } from 'zod'
import { hashOf, newSecret, type TenantPrincipal } from '../http/auth.js'
import { SandboxCalls, type SandboxRequest } from '../streams/sandbox-calls.js'
import { DATABASE, type Database } from '../tokens.js'

/** Which sandbox (id or name), for whom. */
export interface TerminalCall {
  readonly principal: TenantPrincipal
  readonly sandbox: string
  /** Aborted when the client goes. */
  readonly signal: AbortSignal
}

/** How long a node may take to begin an answer: it waits for a sandbox that is being started, half a minute at most. */
const ANSWER_MS = 45 * SECOND

const List = z.object({ items: z.array(Terminal) })

@Injectable()
export class TerminalsService {
  constructor(
    private readonly calls: SandboxCalls,
    @Inject(DATABASE) private readonly database: Database,
  ) {}

  async create(call: TerminalCall, spec: TerminalSpec): Promise<Terminal & { ticket: TerminalTicket }> {
    const request = { method: 'POST', path: ['terminals'], json: spec, answerWithinMs: ANSWER_MS } as const
    const terminal = await this.terminal(call, request)
    return { ...terminal, ticket: await this.newTicket(call, terminal.id, 'write') }
  }

  list({ principal, sandbox, signal }: TerminalCall): Promise<z.infer<typeof List>> {
    return this.calls.json(principal, sandbox, { method: 'GET', path: ['terminals'], signal }, List)
  }

  get(call: TerminalCall, id: TerminalId): Promise<Terminal> {
    return this.terminal(call, { method: 'GET', path: ['terminals', id] })
  }

  async close(call: TerminalCall, id: TerminalId): Promise<void> {
    const { body } = await this.open(call, { method: 'DELETE', path: ['terminals', id] })
    body.destroy()
  }

  resize(call: TerminalCall, id: TerminalId, size: TerminalSize): Promise<Terminal> {
    return this.terminal(call, { method: 'POST', path: ['terminals', id, 'resize'], json: size })
  }

  signal(call: TerminalCall, id: TerminalId, body: { readonly signal: number }): Promise<Terminal> {
    return this.terminal(call, { method: 'POST', path: ['terminals', id, 'signal'], json: body })
  }

  recording(call: TerminalCall, id: TerminalId): Promise<NodeAnswer> {
    return this.open(call, { method: 'GET', path: ['terminals', id, 'recording'] })
  }

  /** @throws terminal_not_found */
  async ticket(call: TerminalCall, id: TerminalId, mode: TerminalMode): Promise<TerminalTicket> {
    await this.get(call, id)
    return this.newTicket(call, id, mode)
  }

  /** @throws terminal_not_found */
  async share(
    call: TerminalCall,
    id: TerminalId,
    { mode, validForMs }: { readonly mode: TerminalMode; readonly validForMs: number },
  ): Promise<TerminalShare & { token: string; path: string }> {
    await this.get(call, id)
    const token = newSecret('brl')
    const terminal = { ...(await this.place(call)), terminalId: id, mode }
    const share = await this.database.passes.createShare({
      ...terminal,
      hash: hashOf(token),
      by: call.principal.keyId,
      validForMs,
    })
    return { ...share, token, path: `/console/share#${token}` }
  }

  async shares(call: TerminalCall, id: TerminalId): Promise<{ items: TerminalShare[] }> {
    await this.get(call, id)
    const { tenantId, sandboxId } = await this.place(call)
    return { items: [...(await this.database.passes.shares({ tenantId }, sandboxId, id))] }
  }

  /** @throws share_not_found */
  async revoke(call: TerminalCall, id: TerminalId, share: ShareId): Promise<void> {
    const { tenantId, sandboxId } = await this.place(call)
    await this.database.passes.revokeShare({ tenantId }, sandboxId, id, share)
  }

  private async newTicket(call: TerminalCall, terminalId: TerminalId, mode: TerminalMode): Promise<TerminalTicket> {
    const ticket = newSecret('brk')
    const { keyId: by, credential } = call.principal
    const terminal = { ...(await this.place(call)), terminalId, mode }
    const { expiresAt } = await this.database.passes.createTicket({ ...terminal, hash: hashOf(ticket), by, credential })
    return { ticket, expiresAt: expiresAt.toISOString(), mode }
  }

  private async place({ principal, sandbox }: TerminalCall) {
    const { id, tenantId } = await this.calls.locate(principal, sandbox)
    return { tenantId, sandboxId: id }
  }

  private terminal(call: TerminalCall, request: Omit<SandboxRequest, 'signal'>): Promise<Terminal> {
    const { principal, sandbox, signal } = call
    return this.calls.json(principal, sandbox, { ...request, signal }, Terminal)
  }

  private open(call: TerminalCall, request: Omit<SandboxRequest, 'signal'>): Promise<NodeAnswer> {
    const { principal, sandbox, signal } = call
    return this.calls.call(principal, sandbox, { ...request, signal })
  }
}
