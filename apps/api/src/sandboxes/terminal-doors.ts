// terminal-doors.ts: who may connect to a terminal: whoever has a key or a session of its tenant, a ticket that was made
// with one (it is good once, and the connection ends with what it was made with), or a share that lasts.
import { type connectShare, type connectTerminal, Failure, type TerminalId, type TerminalMode } from '@berth/contracts'
import type { WebSocket } from '@berth/node-rpc'
import type { PassedTerminal } from '@berth/persistence'
import { Inject, Injectable } from '@nestjs/common'
import { Auth, checkScope, hashOf, type Principal, type TenantPrincipal } from '../http/auth.js'
import type { Call } from '../http/route.decorator.js'
import { Recent } from '../recent.js'
import { type Caller, SandboxCalls } from '../streams/sandbox-calls.js'
import { CLOCK, type Clock, DATABASE, type Database } from '../tokens.js'

/** What a look-up of a share is believed for, and how often those in use are looked up, in milliseconds. */
const BELIEVED_MS = 300
const CONFIRM_MS = 300
const MAX_KNOWN = 10_000

interface Connection {
  readonly sandbox: string
  readonly terminal: TerminalId
  readonly mode: TerminalMode
  readonly since: number | undefined
  readonly signal: AbortSignal
  readonly socket: () => Promise<WebSocket>
}

@Injectable()
export class TerminalDoors {
  private readonly shares: Recent<PassedTerminal | undefined>

  constructor(
    private readonly calls: SandboxCalls,
    private readonly auth: Auth,
    @Inject(DATABASE) private readonly database: Database,
    @Inject(CLOCK) clock: Clock,
  ) {
    this.shares = new Recent({ clock, forMs: BELIEVED_MS, atMost: MAX_KNOWN })
  }

  /** @throws ticket_invalid, unauthenticated, forbidden_scope, sandbox_not_found, terminal_not_found */
  async connect({ params, query, asking, signal, socket }: Call<typeof connectTerminal>): Promise<void> {
    const { ticket, since } = query
    const connection = { ...params, since, signal, socket }
    if (ticket === undefined) {
      const { mode } = query
      const caller = tenantOnly(await this.auth.authenticate(asking), mode)
      return this.open(caller, { ...connection, mode })
    }
    const passed = await this.database.passes.takeTicket(hashOf(ticket))
    if (!passed || passed.terminalId !== params.terminal)
      throw new Failure('ticket_invalid', 'the ticket is none, was used, has expired, or is for another terminal')
    const { mode, tenantId, credential } = passed
    const caller = tenantOnly(await this.auth.confirm({ credential }), mode)
    const { id } = await this.calls.locate(caller, params.sandbox)
    if (caller.tenantId !== tenantId || id !== passed.sandboxId)
      throw new Failure('ticket_invalid', 'the ticket is for a terminal of another sandbox')
    return this.open(caller, { ...connection, mode })
  }

  /** @throws share_not_found, terminal_not_found */
  async connectShare({ params, query, asking, signal, socket }: Call<typeof connectShare>): Promise<void> {
    const passed = await this.share(params.token)
    if (!passed) {
      // Pages are not told why a handshake was refused, but they are told a close code.
      if (asking.headers.origin !== undefined) await socket()
      throw new Failure('share_not_found', 'the link was revoked, has expired, or is none')
    }
    const { tenantId, sandboxId, terminalId, mode } = passed
    const ended = new AbortController()
    const end = () => ended.abort(signal.reason)
    signal.addEventListener('abort', end, { once: true })
    const timer = setInterval(() => void this.confirmShare(params.token, ended), CONFIRM_MS)
    try {
      const connection = { sandbox: sandboxId, terminal: terminalId, mode, since: query.since, socket }
      await this.open({ kind: 'guest', tenantId }, { ...connection, signal: ended.signal })
    } finally {
      clearInterval(timer)
      signal.removeEventListener('abort', end)
    }
  }

  private open(caller: Caller, { sandbox, terminal, mode, since, signal, socket }: Connection): Promise<void> {
    const target = { path: ['terminals', terminal, 'socket'], query: { mode, since }, signal } as const
    return this.calls.attach(caller, sandbox, target, socket)
  }

  private share(token: string): Promise<PassedTerminal | undefined> {
    const hash = hashOf(token)
    return this.shares.get(hash.toString('base64'), () => this.database.passes.share(hash))
  }

  private async confirmShare(token: string, ended: AbortController): Promise<void> {
    try {
      if (!(await this.share(token))) ended.abort(new Failure('ticket_invalid', 'the link was revoked or has expired'))
    } catch (error) {
      // That Postgres does not answer says nothing about the share.
      if (error instanceof Failure) ended.abort(error)
    }
  }
}

function tenantOnly(principal: Principal, mode: TerminalMode): TenantPrincipal {
  checkScope(principal, mode === 'write' ? 'sandboxes:write' : 'sandboxes:read')
  if (principal.kind === 'tenant') return principal
  throw new Failure('forbidden_scope', 'terminals belong to tenants')
}
