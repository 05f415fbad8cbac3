// sandbox-waits.ts: waiting for a state of a sandbox, for as long as the caller likes. What is watched meanwhile is the
// caller's key: a wait may outlast it by hours.
import type { Sandbox, SandboxState } from '@berth/contracts'
import { waitIsOver } from '@berth/domain'
import { Inject, Injectable } from '@nestjs/common'
import type { TenantPrincipal } from '../http/auth.js'
import { Waiters } from '../jobs/waiters.js'
import { Watch } from '../streams/watch.js'
import { DATABASE, type Database } from '../tokens.js'

/** How a caller wants to wait; see the query of `getSandbox`. */
export interface Waiting {
  readonly wait?: SandboxState | undefined
  readonly timeoutMs: number
}

@Injectable()
export class SandboxWaits {
  constructor(
    @Inject(DATABASE) private readonly database: Database,
    private readonly waiters: Waiters,
    private readonly watch: Watch,
  ) {}

  /**
   * The sandbox once it is in the state, can no longer come to it, or the time is over.
   * @param known the sandbox as it was just now
   * @throws what ends the wait early: the client is gone, its key is revoked
   */
  async until(principal: TenantPrincipal, known: Sandbox, waiting: Waiting, signal: AbortSignal): Promise<Sandbox> {
    const { wait, timeoutMs } = waiting
    if (wait === undefined || timeoutMs === 0 || waitIsOver(known, wait)) return known
    const { tenantId } = principal
    const watched = this.watch.begin(principal, signal)
    try {
      return await this.waiters.until(
        known.id,
        () => this.database.sandboxes.get({ tenantId }, known.id),
        (sandbox) => waitIsOver(sandbox, wait),
        { timeoutMs, signal: watched.signal, known },
      )
    } finally {
      watched.stop()
    }
  }
}
