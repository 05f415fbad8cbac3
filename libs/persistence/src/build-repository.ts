// build-repository.ts: what others see of the rows of builds; see repositories.ts.
import type {
  BuildId,
  BuildLimits,
  BuildOptions,
  BuildReason,
  BuildState,
  BuildStepSummary,
  Failure,
  HeldImage,
  IdRange,
  NodeId,
  TenantId,
  TenantLimits,
} from '@berth/contracts'
import type { BuildEvent, ImageWanted } from '@berth/domain'
import type { ImageRecord } from './image-repository.js'
import type { PageOf, PageRequest } from './page.js'

type Access = { readonly tenantId: TenantId } | 'operator'

/** A build; `names` are in full. */
export interface BuildRecord {
  readonly id: BuildId
  readonly tenantId: TenantId
  readonly state: BuildState
  readonly names: readonly string[]
  readonly options: BuildOptions
  readonly limits: BuildLimits
  readonly parallel: number
  readonly nodeId: NodeId
  readonly image: string | null
  readonly reason: BuildReason | null
  readonly createdAt: string
  readonly startedAt: string | null
  readonly endedAt: string | null
}

export interface NewBuild {
  readonly tenantId: TenantId
  /** Id of the key that asks. */
  readonly by: string
  readonly names: readonly string[]
  readonly options: BuildOptions
  /** Of each command. */
  readonly limits: BuildLimits
  /** Most commands at the same time that are asked for. */
  readonly parallel: number
}

export interface AdmittedBuild {
  readonly build: BuildRecord
  /** What a container of the tenant needs on its node. */
  readonly ids: IdRange
  readonly tenantLimits: TenantLimits
}

/** A build that finds no room now. */
export interface NotYet {
  /** quota_exceeded (`QuotaExceeded`) or no_capacity. */
  readonly refusal: Failure
  /** As of `NoPlace`. */
  readonly keep: NodeId | null
}

/** How far a build is. */
export interface BuildNote {
  readonly steps: readonly BuildStepSummary[]
  /** Once context and base images are there. */
  readonly startedAt: Date | null
  /** The next piece of its log; those before `keepFrom` go. */
  readonly log: { readonly number: number; readonly data: Uint8Array; readonly keepFrom: number } | null
}

/** What a name of an image means to a tenant, seen from a node. */
export interface ImageOnNode {
  /** Null: the tenant may use none such. */
  readonly digest: string | null
  readonly held: boolean
  /** Null where only the node knows. */
  readonly platform: string | null
}

export type BuildEnd = Omit<BuildReason, 'at'> & { readonly event: Exclude<BuildEvent, 'succeed'> }

export interface Builds {
  /**
   * Reserves quota and room on a node, stores the build and tells its first event, or does none of it.
   * @param kept nodes that are kept for others, for the moment
   * @returns what keeps it now and may not later
   * @throws as `check`
   */
  admit(asked: NewBuild, kept?: ReadonlySet<NodeId>): Promise<AdmittedBuild | NotYet>
  /**
   * Whether it can ever be admitted.
   * @throws quota_exceeded (`QuotaExceeded`) or no_capacity where it never will have room; platform_unsupported,
   * tenant_suspended, tenant_not_found
   */
  check(asked: NewBuild): Promise<void>
  /** How many builds of each of these tenants go on, of those that have some. */
  running(tenantIds: readonly TenantId[]): Promise<ReadonlyMap<TenantId, number>>
  /** @throws build_not_found */
  get(access: Access, id: BuildId): Promise<BuildRecord & { readonly steps: readonly BuildStepSummary[] }>
  list(
    access: Access,
    filter: { readonly state?: readonly BuildState[] | undefined },
    page: PageRequest,
  ): Promise<PageOf<BuildRecord>>
  /** What is kept of its log, oldest first, and the number of the first piece. @throws build_not_found */
  log(access: Access, id: BuildId): Promise<readonly { readonly number: number; readonly data: Uint8Array }[]>
  /** Nodes in service that did builds of a tenant, at most 100, those of the last ones. */
  nodes(tenantId: TenantId): Promise<readonly NodeId[]>
  /** In the order of what is wanted. */
  resolve(tenantId: TenantId, nodeId: NodeId, wanted: readonly ImageWanted[]): Promise<readonly ImageOnNode[]>
  /** Notes how far it is, and that its process lives. @returns whether it is still to go on */
  renew(id: BuildId, note: BuildNote): Promise<boolean>
  /**
   * Makes the image the tenant's under the build's names, and ends the build, both or none.
   * @returns undefined where it has ended otherwise
   * @throws as `images.add`
   */
  succeed(
    id: BuildId,
    image: HeldImage,
    by: string,
  ): Promise<{ readonly build: BuildRecord; readonly image: ImageRecord } | undefined>
  /** Ends it and gives back what it holds, exactly once. @returns undefined where it has ended, or is none */
  end(access: Access, id: BuildId, end: BuildEnd): Promise<BuildRecord | undefined>
  /** Ends what nobody carries out any more. Call it every second, on one replica. @returns what has ended */
  reconcile(now: Date): Promise<readonly BuildRecord[]>
  /** Deletes up to `limit` builds, and as many logs, that are too old or too many. @returns how many builds */
  expire(limit: number): Promise<number>
}
