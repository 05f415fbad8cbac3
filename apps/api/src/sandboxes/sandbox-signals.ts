// sandbox-signals.ts: signals to the main process of a sandbox. SIGKILL is a way of stopping it, which Postgres keeps
// and the node is told until it has heard; any other signal is passed to the node once, and is gone with the answer.
import { type Sandbox, SandboxId, signalNumber } from '@berth/contracts'
import { sandboxLifecycle } from '@berth/domain'
import { Inject, Injectable } from '@nestjs/common'
import { z } from 'zod'
import type { TenantPrincipal } from '../http/auth.js'
import type { Once } from '../http/route.decorator.js'
import { SandboxCalls } from '../streams/sandbox-calls.js'
import { DATABASE, type Database } from '../tokens.js'

const Sent = z.object({ id: SandboxId })

@Injectable()
export class SandboxSignals {
  constructor(
    @Inject(DATABASE) private readonly database: Database,
    private readonly calls: SandboxCalls,
  ) {}

  kills(signal: number): boolean {
    return signal === signalNumber('SIGKILL')
  }

  /** @throws sandbox_not_found, wrong_state, node_unreachable */
  async send(
    principal: TenantPrincipal,
    ref: string,
    signal: number,
    once: Once,
    client: AbortSignal,
  ): Promise<Sandbox> {
    const { tenantId } = principal
    const sandbox = await this.database.sandboxes.get({ tenantId }, ref)
    await once(Sent, async () => {
      sandboxLifecycle.next(sandbox.state, 'signal', `sandbox ${sandbox.id}`)
      const answer = await this.calls.call(principal, sandbox.id, {
        ...{ method: 'POST', path: ['signal'], json: { signal }, signal: client },
      })
      answer.body.destroy()
      return { id: sandbox.id }
    })
    return sandbox
  }
}
