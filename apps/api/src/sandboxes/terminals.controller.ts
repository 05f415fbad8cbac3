import {
  closeTerminal,
  connectShare,
  connectTerminal,
  createTerminal,
  createTerminalShare,
  createTerminalTicket,
  getTerminal,
  getTerminalRecording,
  listTerminalShares,
  listTerminals,
  resizeTerminal,
  revokeTerminalShare,
  signalTerminal,
} from '@berth/contracts'
import { Controller } from '@nestjs/common'
import type { TenantPrincipal } from '../http/auth.js'
import { type Call, Route } from '../http/route.decorator.js'
import { passOn } from '../streams/sandbox-calls.js'
import { TerminalDoors } from './terminal-doors.js'
import { type TerminalCall, TerminalsService } from './terminals.service.js'

@Controller()
export class TerminalsController {
  constructor(
    private readonly terminals: TerminalsService,
    private readonly doors: TerminalDoors,
  ) {}

  @Route(createTerminal)
  create(call: Call<typeof createTerminal>) {
    return this.terminals.create(of(call), call.body)
  }

  @Route(listTerminals)
  list(call: Call<typeof listTerminals>) {
    return this.terminals.list(of(call))
  }

  @Route(getTerminal)
  get(call: Call<typeof getTerminal>) {
    return this.terminals.get(of(call), call.params.terminal)
  }

  @Route(closeTerminal)
  async close(call: Call<typeof closeTerminal>) {
    await this.terminals.close(of(call), call.params.terminal)
    return undefined
  }

  @Route(resizeTerminal)
  resize(call: Call<typeof resizeTerminal>) {
    return this.terminals.resize(of(call), call.params.terminal, call.body)
  }

  @Route(signalTerminal)
  signal(call: Call<typeof signalTerminal>) {
    return this.terminals.signal(of(call), call.params.terminal, call.body)
  }

  @Route(createTerminalTicket)
  ticket(call: Call<typeof createTerminalTicket>) {
    return this.terminals.ticket(of(call), call.params.terminal, call.body.mode)
  }

  @Route(createTerminalShare)
  share(call: Call<typeof createTerminalShare>) {
    return this.terminals.share(of(call), call.params.terminal, call.body)
  }

  @Route(listTerminalShares)
  shares(call: Call<typeof listTerminalShares>) {
    return this.terminals.shares(of(call), call.params.terminal)
  }

  @Route(revokeTerminalShare)
  async revoke(call: Call<typeof revokeTerminalShare>) {
    await this.terminals.revoke(of(call), call.params.terminal, call.params.share)
    return undefined
  }

  @Route(getTerminalRecording)
  async recording(call: Call<typeof getTerminalRecording>) {
    return passOn(call, await this.terminals.recording(of(call), call.params.terminal))
  }

  @Route(connectTerminal)
  connect(call: Call<typeof connectTerminal>) {
    return this.doors.connect(call)
  }

  @Route(connectShare)
  connectShare(call: Call<typeof connectShare>) {
    return this.doors.connectShare(call)
  }
}

interface Asked {
  readonly principal: TenantPrincipal
  readonly params: { readonly sandbox: string }
  readonly signal: AbortSignal
}

const of = ({ principal, params, signal }: Asked): TerminalCall => ({ principal, sandbox: params.sandbox, signal })
