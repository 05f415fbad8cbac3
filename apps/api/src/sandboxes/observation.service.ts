// observation.service.ts: what a sandbox does and what became of it, as its node knows.
import { SandboxInspection, SandboxProcess, SandboxStats } from '@berth/contracts'
import type { NodeAnswer, Query } from '@berth/node-rpc'
import { Injectable } from '@nestjs/common'
import { z } from 'zod'
import type { TenantPrincipal } from '../http/auth.js'
import { SandboxCalls } from '../streams/sandbox-calls.js'

const Top = z.object({ items: z.array(SandboxProcess) })

/** Listing the processes of a sandbox that uses up its CPUs and its pids takes a while. */
const LISTED_WITHIN_MS = 30_000

@Injectable()
export class ObservationService {
  constructor(private readonly calls: SandboxCalls) {}

  /**
   * A stream of the node, as it comes.
   * @param words of the path at the node
   * @param signal aborted when the client goes
   * @throws sandbox_not_found, output_gone, wrong_state, node_unreachable
   */
  stream(
    principal: TenantPrincipal,
    ref: string,
    words: readonly string[],
    query: Query,
    signal: AbortSignal,
  ): Promise<NodeAnswer> {
    return this.calls.call(principal, ref, { ...looking(words, signal), query, answerWithinMs: LISTED_WITHIN_MS })
  }

  top(principal: TenantPrincipal, ref: string, signal: AbortSignal) {
    const request = { ...looking(['top'], signal), answerWithinMs: LISTED_WITHIN_MS }
    return this.calls.json(principal, ref, request, Top)
  }

  stats(principal: TenantPrincipal, ref: string, signal: AbortSignal): Promise<SandboxStats> {
    return this.calls.json(principal, ref, looking(['stats'], signal), SandboxStats)
  }

  inspect(principal: TenantPrincipal, ref: string, signal: AbortSignal): Promise<SandboxInspection> {
    return this.calls.json(principal, ref, looking(['inspect'], signal), SandboxInspection)
  }
}

/** Of a deleted sandbox nothing is left to look at, but it is known. */
const looking = (words: readonly string[], signal: AbortSignal) =>
  ({ method: 'GET', path: ['observation', ...words], whenDeleted: 'output_gone', signal }) as const
