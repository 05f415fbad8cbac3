// transfers.service.ts: images that come and go: pull, load, import, push, save. The node does it while the caller is
// there; what it is done with becomes the caller's in one transaction, which counts the quota again. Killed anywhere
// before that, nothing is listed, and the node drops what nobody has.
import type { Readable } from 'node:stream'
import {
  Failure,
  type Image,
  type ImageProgress,
  type ImageStep,
  type ImportConfig,
  InvalidRequest,
  type NodeId,
} from '@berth/contracts'
import { FairTurns } from '@berth/domain'
import type { NodeAnswer } from '@berth/node-rpc'
import { parseReference, type Reference } from '@berth/oci'
import { Inject, Injectable } from '@nestjs/common'
import { ImageScans } from '../scan/image-scans.js'
import type { NodeRequest } from '../streams/node-calls.js'
import { DATABASE, type Database } from '../tokens.js'
import { ImageNames, ownerOf } from './image-names.js'
import { ImageNodes, NO_LIMIT } from './image-nodes.js'
import { ImageSources } from './image-sources.service.js'
import { imageView } from './image-views.js'
import type { ImagesCall } from './images.service.js'
import { inFull, namesOf, nameToGive, shortName } from './names.plan.js'
import { RegistriesService } from './registries.service.js'

/** What is told of an operation; a Failure ends it. */
export type Step = Exclude<ImageProgress, { readonly step: 'failed' }> | Failure

/** What becomes of images that came. */
interface Naming {
  /** Names in full of an image that came, by what the archive says of it. */
  readonly names: (told: readonly string[]) => readonly string[]
  /** Registry and repository, where it comes from one. */
  readonly from?: string
}

/** An operation that takes images in. */
interface Taking extends Naming {
  /** The name that it is for, which may lead to something already. */
  readonly reference: string | null
  readonly request: (limits: TakingLimits) => Promise<NodeRequest> | NodeRequest
  /** The node that is to take them; undefined: the one that is best for it. */
  readonly on?: NodeId | undefined
}

/** In bytes of unpacked layers. */
interface TakingLimits {
  /** What is left of the quota. */
  readonly maxBytes: number
  /** The whole of it: an archive may hold what is there already. */
  readonly quotaBytes: number
}

/** Has a node begin. */
type Beginning = (
  limits: TakingLimits,
) => Promise<{ readonly nodeId: NodeId; readonly steps: AsyncGenerator<ImageStep> }>

/**
 * Operations of one owner at once. What a tenant has under way on nodes is not counted against its quota before it is done, so
 * this bounds what it may take there for the moment.
 */
const AT_ONCE = { all: Number.POSITIVE_INFINITY, each: 4 }

/** Repositories that are asked for a blob, each by a request. */
const MAX_MOUNTED_FROM = 4

@Injectable()
export class TransfersService {
  private readonly turns = new FairTurns(AT_ONCE)

  constructor(
    @Inject(DATABASE) private readonly database: Database,
    private readonly names: ImageNames,
    private readonly nodes: ImageNodes,
    private readonly registries: RegistriesService,
    private readonly sources: ImageSources,
    private readonly scans: ImageScans,
  ) {}

  /**
   * @param on the node that is to have it. Default: the one that is best for it
   * @throws InvalidRequest, policy_forbidden
   */
  pull(call: ImagesCall, text: string, platform: string | undefined, on?: NodeId): AsyncGenerator<Step> {
    const reference = parseReference(text, 'reference')
    const name = inFull(reference)
    return this.take(call, {
      reference: reference.digest === undefined ? name : null,
      request: async ({ maxBytes }) => {
        const access = await this.registries.access(ownerOf(call.principal), reference, 'pull')
        return { method: 'POST', rest: ['pull'], json: { reference: name, platform, access, maxBytes } }
      },
      names: () => [name],
      on,
      from: `${reference.registry}/${reference.repository}`,
    })
  }

  load(call: ImagesCall, body: Readable): AsyncGenerator<Step> {
    const request = (limits: TakingLimits) => ({ method: 'POST', rest: ['load'], query: { ...limits }, body }) as const
    return this.take(call, { reference: null, request, names: namesOf })
  }

  /** @throws InvalidRequest */
  import(call: ImagesCall, text: string | undefined, config: ImportConfig, body: Readable): AsyncGenerator<Step> {
    const name = text === undefined ? [] : [nameToGive(text, 'reference')]
    return this.take(call, {
      reference: null,
      request: ({ maxBytes }) => ({
        ...{ method: 'POST', rest: ['import'], query: { config: JSON.stringify(config), maxBytes }, body },
      }),
      names: () => name,
    })
  }

  /** @param to where to; default: the name that was given. @throws InvalidRequest, image_not_found, policy_forbidden */
  async *push(call: ImagesCall, text: string, to: string | undefined): AsyncGenerator<Step> {
    const { scope, wanted } = await this.names.look(ownerOf(call.principal), text)
    const target = pushTarget(to ?? text, to === undefined && wanted.reference === null)
    const { image } = await this.database.images.get(scope, wanted)
    const access = await this.registries.access(ownerOf(call.principal), target, 'push')
    const nodeId = await this.holder([image.digest], text)
    const give = await this.turns.take(ownerOf(call.principal), call.signal)
    try {
      const mountFrom = await this.relatives(call, image.digest, target)
      const json = { digest: image.digest, reference: inFull(target), access, mountFrom }
      for await (const step of this.nodes.steps(call, nodeId, { method: 'POST', rest: ['push'], json }))
        yield step.step === 'done' ? { step: 'done', images: [imageView(image)] } : told(step)
    } finally {
      give()
    }
  }

  /** @throws image_not_found; no_capacity where no node that is ready has one */
  async archive(call: ImagesCall, texts: readonly string[], format: 'docker' | 'oci'): Promise<NodeAnswer> {
    const found = await Promise.all(
      texts.map(async (text) => {
        const { scope, wanted } = await this.names.look(ownerOf(call.principal), text)
        const { image } = await this.database.images.get(scope, wanted)
        const references = wanted.reference === null ? image.references : [wanted.reference]
        return { digest: image.digest, names: references.filter((name) => !name.includes('@')).map(shortName) }
      }),
    )
    const digests = [...new Set(found.map(({ digest }) => digest))]
    const nodeId = await this.together(call, digests, texts.join(', '))
    const pairs = found.flatMap(({ digest, names }) => names.map((name) => `${digest}=${name}`))
    const query = { image: digests, name: [...new Set(pairs)], format }
    return this.nodes.call(call, nodeId, { method: 'GET', rest: ['archive'], query })
  }

  /**
   * Has a node make an image of what it has, which then is the caller's.
   * @param text its name; undefined: none
   * @throws InvalidRequest for what is no name
   */
  make(
    call: ImagesCall,
    text: string | undefined,
    begin: (maxBytes: number) => ReturnType<Beginning>,
  ): AsyncGenerator<Step> {
    const names = text === undefined ? [] : [nameToGive(text, 'reference')]
    return this.taken(call, ({ maxBytes }) => begin(maxBytes), { names: () => names })
  }

  private take(call: ImagesCall, taking: Taking): AsyncGenerator<Step> {
    const begin = async (limits: TakingLimits) => {
      const request = await taking.request(limits)
      const nodeId = taking.on ?? (await this.taker(ownerOf(call.principal), taking.reference))
      return { nodeId, steps: this.nodes.steps(call, nodeId, request) }
    }
    return this.taken(call, begin, taking)
  }

  private async *taken(call: ImagesCall, begin: Beginning, naming: Naming): AsyncGenerator<Step> {
    const { principal, signal } = call
    const owner = ownerOf(principal)
    const give = await this.turns.take(owner, signal)
    try {
      const { limit, used } = await this.database.images.use(owner)
      const { nodeId, steps } = await begin({
        maxBytes: Math.max(0, Math.min(limit - used, NO_LIMIT)),
        quotaBytes: Math.min(limit, NO_LIMIT),
      })
      for await (const step of steps) {
        if (step.step === 'failed' && step.code === 'quota_exceeded') yield tooMuch(step.message, limit, used)
        else if (step.step !== 'done') yield told(step)
        else yield { step: 'done', images: await this.keep(call, nodeId, step, naming) }
      }
    } finally {
      give()
    }
  }

  private async keep(
    { principal }: ImagesCall,
    nodeId: NodeId,
    done: ImageStep & { readonly step: 'done' },
    { names, from }: Naming,
  ): Promise<Image[]> {
    const images = done.images.map(({ image, references }) => ({
      ...{ image, references: names(references) },
      ...(from === undefined ? {} : { origin: `${from}@${image.manifestDigest}` }),
    }))
    const kept = await this.database.images.add({ owner: ownerOf(principal), images, nodeId, by: principal.keyId })
    this.scans.soon(
      kept.map(({ digest }) => digest),
      ownerOf(principal),
    )
    return kept.map(imageView)
  }

  /**
   * Repositories where the target's registry may have blobs of the image already. The caller's own only: that somebody else
   * had something there is told to nobody, not to the registry either.
   */
  private async relatives(call: ImagesCall, digest: string, { registry, repository }: Reference): Promise<string[]> {
    const references = await this.database.images.relatives(ownerOf(call.principal), digest, registry.toLowerCase())
    const repositories = new Set(references.map((reference) => parseReference(reference).repository))
    repositories.delete(repository)
    return [...repositories].slice(0, MAX_MOUNTED_FROM)
  }

  /** A node to take an image in: one that has it, or what its name leads to now, saves the most. @throws no_capacity */
  private async taker(owner: string, reference: string | null): Promise<NodeId> {
    const scope = await this.names.scope(owner)
    const now = reference === null ? [] : (await this.database.images.list(scope, { reference }, { limit: 1 })).items
    const nodeId = await this.database.images.taker(now[0]?.digest ?? null)
    if (!nodeId) throw new Failure('no_capacity', 'no node is ready to take an image in')
    return nodeId
  }

  /** A node that has all of these, by now. @throws no_capacity, image_unavailable */
  private async together(call: ImagesCall, digests: readonly string[], text: string): Promise<NodeId> {
    const [first, ...others] = digests
    const found = await this.database.images.holder(digests)
    if (found || first === undefined || others.length === 0) return found ?? this.holder(digests, text)
    const nodeId = await this.holder([first], text)
    for (const digest of others) await this.sources.ensureOn(call, nodeId, digest)
    return nodeId
  }

  private async holder(digests: readonly string[], text: string): Promise<NodeId> {
    const nodeId = await this.database.images.holder(digests)
    if (!nodeId) throw new Failure('no_capacity', `no node that is ready holds ${text}`)
    return nodeId
  }
}

/** @param isDigest whether it is what the image was asked for by. @throws InvalidRequest for what names no tag to push to */
function pushTarget(text: string, isDigest: boolean): Reference {
  const reference = isDigest && !text.includes('@') ? undefined : parseReference(text, 'reference')
  if (reference?.tag !== undefined) return { ...reference, digest: undefined }
  const message = 'say where to: a registry and a repository with a tag'
  throw new InvalidRequest([{ field: 'reference', message: `${text}: ${message}` }])
}

/** What the node says, which knows only what is left, with what that is of. */
const tooMuch = (message: string, limit: number, used: number): Failure =>
  new Failure('quota_exceeded', `${message}: ${used} of ${limit} bytes are in use`, {
    quota: 'imageBytes',
    limit,
    used,
  })

function told(step: Exclude<ImageStep, { readonly step: 'done' }>): Step {
  return step.step === 'failed' ? new Failure(step.code, step.message) : step
}
