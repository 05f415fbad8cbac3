// snapshots.service.ts: what is made of a sandbox's files by its node: images, more sandboxes, and tars.
import { randomBytes } from 'node:crypto'
import {
  Failure,
  HeldFiles,
  type HoldSnapshot,
  ImageStep,
  mintId,
  type NodeCommit,
  type Sandbox,
  SandboxId,
  SnapshotId,
} from '@berth/contracts'
import { type Fork, forkedSpecs } from '@berth/domain'
import type { NodeAnswer } from '@berth/node-rpc'
import { OutcomeUnknown } from '@berth/persistence'
import type { Logger } from '@berth/telemetry'
import { Inject, Injectable } from '@nestjs/common'
import { z } from 'zod'
import { checkScope, type TenantPrincipal } from '../http/auth.js'
import type { Once } from '../http/route.decorator.js'
import { isLastStep } from '../images/image-nodes.js'
import { type Step, TransfersService } from '../images/transfers.service.js'
import { ImageGate } from '../scan/image-gate.js'
import { valuesIn } from '../streams/node-calls.js'
import { SandboxCalls } from '../streams/sandbox-calls.js'
import { LOG } from '../tokens.js'
import { SandboxesService } from './sandboxes.service.js'

/** Files of which sandbox (id or name), for whom. */
export interface SnapshotCall {
  readonly principal: TenantPrincipal
  readonly sandbox: string
  /** Aborted when the client goes. */
  readonly signal: AbortSignal
}

interface Forking extends Fork {
  readonly start: boolean
  readonly pause: boolean
}

const Forked = z.object({ ids: z.array(SandboxId) })
/** A copy takes milliseconds, unless what runs in the sandbox does not stand still. */
const HOLD_MS = 60_000

@Injectable()
export class SnapshotsService {
  constructor(
    private readonly calls: SandboxCalls,
    private readonly transfers: TransfersService,
    private readonly sandboxes: SandboxesService,
    private readonly images: ImageGate,
    @Inject(LOG) private readonly log: Logger,
  ) {}

  /** @throws InvalidRequest, forbidden_scope; what else fails comes as a step */
  commit(
    { principal, sandbox, signal }: SnapshotCall,
    { reference, ...asked }: Omit<NodeCommit, 'maxBytes'> & { readonly reference?: string | undefined },
  ): AsyncGenerator<Step> {
    // Whoever has the image has the files.
    checkScope(principal, 'sandboxes:read')
    return this.transfers.make({ principal, signal }, reference, async (maxBytes) => {
      const json: NodeCommit = { ...asked, maxBytes }
      const path = ['snapshot', 'commit'] as const
      const request = { method: 'POST', path, json, signal, answerWithinMs: 0 } as const
      const { nodeId } = await this.calls.locate(principal, sandbox)
      if (!nodeId) throw new Failure('node_unreachable', `the node that held sandbox ${sandbox} is no more`)
      const { body } = await this.calls.call(principal, sandbox, request)
      return { nodeId, steps: valuesIn(body, nodeId, ImageStep, isLastStep) }
    })
  }

  /**
   * Creates sandboxes that begin with the files of another: its node keeps a copy of them, and makes each of the sandboxes
   * of it once they are admitted. Killed in between, the node forgets the copy after a while.
   * @throws sandbox_not_found, wrong_state, InvalidRequest, policy_forbidden, name_taken, quota_exceeded, no_capacity,
   *   scan_unavailable
   */
  async fork(call: SnapshotCall, { start, pause, ...fork }: Forking, once: Once): Promise<readonly Sandbox[]> {
    const { tenantId, keyId } = call.principal
    let now: readonly Sandbox[] | undefined
    const { ids } = await once(Forked, async () => {
      const source = await this.sandboxes.get(tenantId, call.sandbox)
      const specs = forkedSpecs(source, fork)
      for (const spec of specs.slice(0, 1)) this.sandboxes.check(spec)
      const snapshot = SnapshotId.parse(mintId('snapshot', Date.now(), randomBytes(10)))
      const origin = { sandbox: source.id, snapshot }
      const of = { ...call, sandbox: source.id }
      const { image } = await this.hold(of, { id: snapshot, pause, clones: specs.length })
      try {
        await this.images.pass(tenantId, source.spec.image, image)
        now = await this.sandboxes.fork({ tenantId, origin, specs, start, by: keyId })
      } catch (error) {
        // Those that may have been admitted begin with it; where there are none it goes when its time is over.
        if (!(error instanceof OutcomeUnknown)) await this.release(of, snapshot)
        throw error
      }
      return { ids: now.map(({ id }) => id) }
    })
    return now ?? Promise.all(ids.map((id) => this.sandboxes.get(tenantId, id)))
  }

  private async hold(call: SnapshotCall, json: HoldSnapshot): Promise<HeldFiles> {
    const { principal, sandbox, signal } = call
    const request = { method: 'POST', path: ['snapshot', 'hold'], json, signal, answerWithinMs: HOLD_MS } as const
    try {
      return await this.calls.json(principal, sandbox, request, HeldFiles)
    } catch (error) {
      // The node lets go of what nobody waits for, but for an answer that is lost. Nobody waits for this one either.
      const answered = error instanceof Failure && error.code !== 'node_unreachable'
      if (!answered) void this.release(call, json.id)
      throw error
    }
  }

  /** The node forgets it by itself as well. The sandbox may have been deleted meanwhile: its copy is another thing. */
  private async release({ principal, sandbox }: SnapshotCall, id: SnapshotId): Promise<void> {
    const signal = AbortSignal.timeout(HOLD_MS)
    const request = { method: 'DELETE', path: ['snapshot', 'hold', id], alsoDeleted: true, signal } as const
    await this.calls.call(principal, sandbox, request).then(
      ({ body }) => body.destroy(),
      (err: unknown) => this.log.warn({ err, snapshot: id }, 'snapshot.release_failed'),
    )
  }

  /** A tar of all its files. */
  export({ principal, sandbox, signal }: SnapshotCall): Promise<NodeAnswer> {
    return this.calls.call(principal, sandbox, {
      ...{ method: 'GET', path: ['snapshot', 'export'], signal, answerWithinMs: 0 },
    })
  }
}
