// images.service.ts: images as their owners see them. What of them is names and numbers is in Postgres; of base images,
// and of content, the nodes know.
import {
  Failure,
  type HeldImage,
  type Image,
  type ImageDetails,
  type ImageHistoryEntry,
  type Output,
  type pruneImages,
  type removeImage,
} from '@berth/contracts'
import type { ImageOwner } from '@berth/domain'
import { parseReference } from '@berth/oci'
import type { PageOf, PageRequest } from '@berth/persistence'
import { Inject, Injectable } from '@nestjs/common'
import { CLOCK, type Clock, DATABASE, type Database } from '../tokens.js'
import { historyOf } from './history.plan.js'
import { type ImageCaller, ImageNames, ownerOf } from './image-names.js'
import { ImageNodes } from './image-nodes.js'
import { imageView } from './image-views.js'
import { inFull, nameFilter, nameOf, nameToGive, shortName } from './names.plan.js'

/** A call about images, by whom. */
export interface ImagesCall {
  readonly principal: ImageCaller
  /** Aborted when the client goes. */
  readonly signal: AbortSignal
}

export interface ListFilter {
  readonly reference?: string | undefined
  readonly label?: readonly string[] | undefined
  readonly dangling?: boolean | undefined
}

@Injectable()
export class ImagesService {
  constructor(
    @Inject(DATABASE) private readonly database: Database,
    @Inject(CLOCK) private readonly clock: Clock,
    private readonly names: ImageNames,
    private readonly nodes: ImageNodes,
  ) {}

  /** @param owner whose images, besides public ones */
  async list(owner: ImageOwner, filter: ListFilter, page: PageRequest): Promise<PageOf<Image>> {
    const scope = await this.names.scope(owner)
    const { label, dangling } = filter
    const found = await this.database.images.list(scope, { label, dangling, ...nameFilter(filter.reference) }, page)
    return { ...found, items: found.items.map(imageView) }
  }

  async get(call: ImagesCall, text: string, owner: ImageOwner): Promise<ImageDetails> {
    const { image, held } = await this.inspect(call, text, owner)
    const { manifestDigest, platform, createdAt, layers, settings } = held
    return { ...image, manifestDigest, platform, createdAt, labels: settings.labels, layers, settings }
  }

  /** Of an image that an owner may see. @throws image_not_found */
  async digestOf(owner: ImageOwner, text: string): Promise<string> {
    const { scope, wanted } = await this.names.look(owner, text)
    return (await this.database.images.get(scope, wanted)).image.digest
  }

  async history(call: ImagesCall, text: string): Promise<{ items: ImageHistoryEntry[] }> {
    const { held } = await this.inspect(call, text)
    return { items: historyOf(held, this.clock.now()) }
  }

  /** One more name; what is not the caller's own becomes it. @throws image_not_found, quota_exceeded, no_capacity */
  async tag(call: ImagesCall, text: string, name: string): Promise<Image> {
    const reference = nameToGive(name, 'reference')
    const { image, held } = await this.inspect(call, text)
    const { keyId } = call.principal
    const nodeId = await this.database.images.holder([image.digest])
    if (!nodeId) throw new Failure('no_capacity', `no node that is ready holds image ${text}`)
    const images = [{ image: held, references: [reference] }]
    const [tagged] = await this.database.images.add({ owner: ownerOf(call.principal), images, nodeId, by: keyId })
    if (!tagged) throw new Failure('image_not_found', `image ${text} was removed meanwhile`)
    return imageView(tagged)
  }

  async untag({ principal }: ImagesCall, text: string, name: string): Promise<Image> {
    const { scope, wanted } = await this.names.look(ownerOf(principal), text)
    const digest = await this.database.images.untag(scope, wanted, inFull(parseReference(name, 'reference')))
    const { image } = await this.database.images.get(scope, { text: digest, reference: null, digest, base: null })
    return imageView(image)
  }

  async remove({ principal }: ImagesCall, text: string, force: boolean): Promise<Output<typeof removeImage>> {
    const { scope, wanted } = await this.names.look(ownerOf(principal), text)
    const name = text.includes('@') ? nameOf(text) : undefined
    const { untagged, deleted, freedBytes } = await this.database.images.remove(scope, wanted, force, name)
    return { untagged: untagged.map(shortName), deleted, freedBytes }
  }

  async prune(
    principal: ImageCaller,
    {
      all,
      olderThan,
      label,
    }: { readonly all: boolean; readonly olderThan?: number | undefined; readonly label: string[] },
  ): Promise<Output<typeof pruneImages>> {
    const before = olderThan === undefined ? null : new Date(this.clock.now().getTime() - olderThan)
    const pruned = await this.database.images.prune(ownerOf(principal), { all, before, labels: label })
    return { deleted: [...pruned.deleted], freedBytes: pruned.freedBytes }
  }

  private async inspect(
    call: ImagesCall,
    text: string,
    owner = ownerOf(call.principal),
  ): Promise<{ readonly image: Image; readonly held: HeldImage }> {
    const { scope, wanted } = await this.names.look(owner, text)
    const { image, held } = await this.database.images.get(scope, wanted)
    if (held) return { image: imageView(image), held }
    const nodeId = await this.database.images.holder([image.digest])
    if (!nodeId) throw new Failure('image_not_found', `no node has base image ${text} any more`)
    return { image: imageView(image), held: await this.nodes.held(call, nodeId, image.digest) }
  }
}
