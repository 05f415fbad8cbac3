// image-sources.service.ts: how an image comes to a node that lacks it. The node asks here, and is passed what another
// node holds: nodes need not reach each other, and nothing but this decides who may read what. Else it is told how to
// ask the registry that the image came from (decision 014).
//
// A node may ask only for what something on it starts from: one that a tenant has escaped on reads no more images than
// those that are run there anyway. Where the API itself wants an image on a node, it gives the node a pass.
import {
  AttemptId,
  Failure,
  Fault,
  type ImageSources as Found,
  type HeldImage,
  invariant,
  type NodeId,
  SandboxId,
} from '@berth/contracts'
import type { ImageOwner } from '@berth/domain'
import type { NodeAnswer } from '@berth/node-rpc'
import { parseReference } from '@berth/oci'
import { Inject, Injectable } from '@nestjs/common'
import { z } from 'zod'
import type { NodePrincipal } from '../http/auth.js'
import { Secrets } from '../secrets.js'
import { CLOCK, type Clock, DATABASE, type Database } from '../tokens.js'
import { ownerOf } from './image-names.js'
import { ImageNodes, NO_LIMIT } from './image-nodes.js'
import type { ImagesCall } from './images.service.js'
import { RegistriesService } from './registries.service.js'

/** A node that asks for an image. */
export interface NodeCall {
  readonly principal: NodePrincipal
  /** Aborted when the node goes. */
  readonly signal: AbortSignal
}

/** As long as a node may take to bring an image, and some more. */
const PASS_MS = 10 * 60_000
const Pass = z.object({ digest: z.string(), owner: z.string(), until: z.number() })

@Injectable()
export class ImageSources {
  constructor(
    @Inject(DATABASE) private readonly database: Database,
    @Inject(CLOCK) private readonly clock: Clock,
    private readonly secrets: Secrets,
    private readonly nodes: ImageNodes,
    private readonly registries: RegistriesService,
  ) {}

  /**
   * Has a node hold an image that the caller may use. Nothing is fetched where it does.
   * @param digest of its configuration
   * @throws Failure image_unavailable when it is nowhere to be had, no_capacity, node_unreachable
   */
  async ensureOn(call: ImagesCall, nodeId: NodeId, digest: string): Promise<HeldImage> {
    const held = await this.nodes.held(call, nodeId, digest).catch((error: unknown) => {
      if (error instanceof Failure && error.code === 'image_not_found') return undefined
      throw error
    })
    return held ?? this.bring(call, nodeId, digest)
  }

  /** Where an image is to be had for a node. @throws image_not_found unless something on it needs the image */
  async find({ principal: { nodeId } }: NodeCall, digest: string, need: string): Promise<Found> {
    const owner = await this.neededFor(nodeId, digest, need)
    const holders = await this.database.images.holders(digest, nodeId)
    const origin = await this.database.images.origin(owner, digest)
    const access = origin && (await this.accessTo(origin.owner, origin.reference))
    // Its owner's quota was checked when the image became theirs.
    const registry = origin && access ? { reference: origin.reference, access, maxBytes: NO_LIMIT } : null
    return { nodes: holders.length > 0, registry }
  }

  /**
   * A part of an image, as another node has it.
   * @throws image_not_found as `find`, and where no other node has it; node_unreachable
   */
  async read(
    call: NodeCall,
    digest: string,
    blob: string,
    { for: need, from }: { readonly for: string; readonly from: number },
  ): Promise<NodeAnswer> {
    const { nodeId } = call.principal
    await this.neededFor(nodeId, digest, need)
    let failure = new Failure('image_not_found', `no other node has image ${digest}`)
    for (const holder of await this.database.images.holders(digest, nodeId)) {
      const request = { method: 'GET', rest: [digest, 'blobs', blob], query: { from } } as const
      const answer = await this.nodes.call(call, holder, request).catch((error: unknown) => {
        // Gone since its last sign of life, or it has dropped the image: the next one may have it.
        if (!(error instanceof Failure) || call.signal.aborted) throw error
        failure = error
      })
      if (answer) return answer
    }
    throw failure
  }

  private async bring(call: ImagesCall, nodeId: NodeId, digest: string): Promise<HeldImage> {
    const owner = ownerOf(call.principal)
    const until = this.clock.now().getTime() + PASS_MS
    const pass = this.secrets.seal(JSON.stringify({ digest, owner, until }), contextOf(nodeId))
    const request = { method: 'POST', rest: [digest, 'bring'], json: { pass, owner } } as const
    for await (const step of this.nodes.steps(call, nodeId, request)) {
      if (step.step === 'failed') throw new Failure(step.code, step.message)
      const [brought] = step.step === 'done' ? step.images : []
      if (brought) return brought.image
    }
    invariant(false, 'an operation of a node ends with done or failed')
  }

  /** Whose image it is to the node. @throws image_not_found where nothing on the node needs it, as if there were none */
  private async neededFor(nodeId: NodeId, digest: string, need: string): Promise<ImageOwner> {
    const subject = AttemptId.or(SandboxId).safeParse(need)
    const owner = subject.success
      ? await this.database.images.neededBy(nodeId, subject.data, digest)
      : this.passed(nodeId, digest, need)
    if (owner !== undefined) return owner
    throw new Failure('image_not_found', `nothing on the node starts from image ${digest}`)
  }

  private passed(nodeId: NodeId, digest: string, sealed: string): ImageOwner | undefined {
    const text = this.secrets.open(sealed, contextOf(nodeId))
    const pass = text === undefined ? undefined : Pass.parse(JSON.parse(text))
    return pass && pass.digest === digest && pass.until > this.clock.now().getTime() ? pass.owner : undefined
  }

  /** Undefined where the operator no longer lists the registry, or its login is lost: it is no source then. */
  private async accessTo(owner: ImageOwner, reference: string) {
    return this.registries.access(owner, parseReference(reference), 'pull').catch((error: unknown) => {
      if (error instanceof Failure || error instanceof Fault) return undefined
      throw error
    })
  }
}

/** Whom a pass is for: another node cannot open it. */
const contextOf = (nodeId: NodeId): string => `image pass ${nodeId}`
