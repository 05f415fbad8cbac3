// image-repository.ts: what others see of the rows of images; see repositories.ts.
import type { AttemptId, HeldImage, NodeId, SandboxId, TenantId } from '@berth/contracts'
import type { ImageOwner, ImageWanted, PruneFilter } from '@berth/domain'
import type { PageOf, PageRequest } from './page.js'

/** A base image as nodes tell of it. */
export interface BaseImage {
  readonly reference: string
  readonly digest: string
  readonly sizeBytes: number
  /** Whether a node that has it takes work; one that is drained gives it to others still. */
  readonly ready: boolean
}

/** Whose images a call may see besides public ones, and the base images that there are, with their names in full. */
export interface ImageScope {
  readonly owner: ImageOwner
  readonly base: readonly {
    readonly digest: string
    readonly references: readonly string[]
    readonly sizeBytes: number
  }[]
}

export interface ImageFilter {
  /** A name in full. */
  readonly reference?: string | undefined
  /** The beginning of a name in full. */
  readonly prefix?: string | undefined
  /** Of the configuration, of the manifest, or what it was pulled by. */
  readonly digest?: string | undefined
  /** `key` or `key=value`; all must match. */
  readonly label?: readonly string[] | undefined
  readonly dangling?: boolean | undefined
  readonly digests?: readonly string[] | undefined
}

/** An image as its owner, or anybody where it is public, sees it; `references` are names in full. */
export interface ImageRecord {
  readonly digest: string
  readonly manifestDigest: string | null
  readonly references: readonly string[]
  readonly visibility: 'tenant' | 'public'
  readonly base: boolean
  readonly platform: string | null
  readonly labels: Readonly<Record<string, string>>
  readonly sizeBytes: number
  readonly uniqueBytes: number
  readonly sharedBytes: number
  readonly nodes: number
  readonly createdAt: string | null
  readonly addedAt: Date | null
}

export interface NewImages {
  readonly owner: ImageOwner
  /** With names in full. */
  readonly images: readonly {
    readonly image: HeldImage
    readonly references: readonly string[]
    /** Where it was pulled from: registry/repository@digest of its manifest. */
    readonly origin?: string
  }[]
  /** Where they are. */
  readonly nodeId: NodeId
  /** Id of the key that asks. */
  readonly by: string
}

/** Where an image was pulled from, and whose login opens it there. */
export interface ImageOrigin {
  readonly owner: ImageOwner
  /** registry/repository@digest of its manifest */
  readonly reference: string
}

/** A login whose password only the API can open. */
export interface SealedLogin {
  readonly registry: string
  readonly username: string
  readonly sealedPassword: string
  readonly updatedAt: string
}

export interface RegistryLogins {
  list(owner: ImageOwner): Promise<readonly SealedLogin[]>
  get(owner: ImageOwner, registry: string): Promise<SealedLogin | undefined>
  /** @throws quota_exceeded */
  put(owner: ImageOwner, login: Omit<SealedLogin, 'updatedAt'>, by: string): Promise<SealedLogin>
  /** @throws registry_not_found */
  delete(owner: ImageOwner, registry: string): Promise<void>
}

/** What is installed in an image, as a node told it. */
export interface ToldContents {
  readonly packed: Uint8Array
  readonly nodeId: NodeId
}

/** What is installed in images: a cache, of nobody's; who calls has made sure who may see the image. */
export interface KnownContents {
  /** @param format of what was packed; what another one was put with is not there */
  get(digest: string, format: number): Promise<ToldContents | undefined>
  /** Keeps it unless it is large, or its node is no more; the oldest go, and all that a node told when it is removed. */
  put(digest: string, format: number, told: ToldContents): Promise<void>
}

export interface Images {
  /** By when they were added, newest first; base images last. */
  list(scope: ImageScope, filter: ImageFilter, page: PageRequest): Promise<PageOf<ImageRecord>>
  /** `held` is null for a base image: its nodes know. @throws image_not_found */
  get(scope: ImageScope, wanted: ImageWanted): Promise<{ readonly image: ImageRecord; readonly held: HeldImage | null }>
  /**
   * Own and public images whose digest begins so, two at most; none where there is an image of that name.
   * @param reference name in full
   */
  beginning(owner: ImageOwner, reference: string, prefix: string): Promise<readonly string[]>
  /** Base images on ready and draining nodes, by reference; of one that nodes differ on, the oldest node's first. */
  base(): Promise<readonly BaseImage[]>
  /**
   * Makes images the owner's, and names lead to them, all or none. What is there already stays.
   * @throws quota_exceeded (`QuotaExceeded`), image_invalid, tenant_not_found
   */
  add(asked: NewImages): Promise<readonly ImageRecord[]>
  /** Unpacked bytes that an owner may have and has. @throws tenant_not_found */
  use(owner: ImageOwner): Promise<{ readonly limit: number; readonly used: number }>
  /** The node that takes an image in: one that has `digest` where there is one, else the one with most room. */
  taker(digest: string | null): Promise<NodeId | undefined>
  /** A node that has all of these. */
  holder(digests: readonly string[]): Promise<NodeId | undefined>
  /** Nodes that have it and can be asked for it, but for `except`; eight at most. */
  holders(digest: string, except: NodeId): Promise<readonly NodeId[]>
  /** Whose attempt or sandbox this is, where it is on the node and starts from the image. */
  neededBy(nodeId: NodeId, subject: AttemptId | SandboxId, digest: string): Promise<TenantId | undefined>
  /**
   * Names in full, or `registry/repository@digest`, of the owner's own images that share a layer with this one: where they
   * were pulled from first. Of one registry, ten at most.
   */
  relatives(owner: ImageOwner, digest: string, registry: string): Promise<readonly string[]>
  /** Where an image that the owner may use came from. */
  origin(owner: ImageOwner, digest: string): Promise<ImageOrigin | undefined>
  /**
   * Takes a name away, or all of an image given by its digest, and with the last one the image. A name with a digest is
   * one where the image has that name.
   * @param force what is used loses its names and stays
   * @param name in full, where a digest was given with one
   * @throws image_not_found, image_in_use naming the users, policy_forbidden (of a public image)
   */
  remove(
    scope: ImageScope,
    wanted: ImageWanted,
    force: boolean,
    name?: string,
  ): Promise<{
    readonly untagged: readonly string[]
    readonly deleted: string | null
    readonly freedBytes: number
  }>
  /** Takes one name away; the image stays. @returns its digest. @throws image_not_found, policy_forbidden */
  untag(scope: ImageScope, wanted: ImageWanted, reference: string): Promise<string>
  /** Removes what `domain/image` says. */
  prune(
    owner: ImageOwner,
    filter: PruneFilter,
  ): Promise<{ readonly deleted: readonly string[]; readonly freedBytes: number }>
  readonly logins: RegistryLogins
  readonly contents: KnownContents
}
