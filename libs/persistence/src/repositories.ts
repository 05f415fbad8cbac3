// repositories.ts: all that others see of Postgres.
//
// Postgres is the truth about what is wanted and what has become of it. A row in an unfinished state is itself the
// pending command: whoever sends commands may crash at any time, because `jobs.reconcile` finds again what no node has
// acknowledged. So a method that answers with commands has already committed what they follow from; sending them is
// only a matter of latency.
//
// Every method that reads a tenant's rows takes an `Access`. What is outside of it does not exist: `…_not_found`.
// Methods throw `Failure` for what the caller got wrong, `Fault` where Postgres failed (worth another try).
import type {
  ApiKey,
  ApplySandbox,
  AttemptId,
  AttemptState,
  Batch,
  BatchId,
  BerthEvent,
  CancelAttempt,
  EventType,
  ForgetAttempt,
  heartbeat,
  IdKind,
  ImagePolicy,
  Input,
  Job,
  JobId,
  JobSpec,
  JobState,
  joinNode,
  KeyId,
  Node,
  NodeId,
  NodeReport,
  NodeState,
  Quota,
  ResourceUsage,
  RunAttempt,
  Sandbox,
  SandboxEnd,
  SandboxId,
  SandboxReport,
  SandboxSpec,
  SandboxState,
  ShareId,
  StreamServer,
  Tenant,
  TenantId,
  TenantLimits,
  TenantScope,
  TerminalId,
  TerminalMode,
  TerminalShare,
  Usage,
} from '@berth/contracts'
import type { ImageWanted, SandboxOrigin, SandboxRequest } from '@berth/domain'
import type { BuildRecord, Builds } from './build-repository.js'
import type { Images } from './image-repository.js'
import type { PageOf, PageRequest } from './page.js'
import type { Templates } from './template-repository.js'

export type * from './build-repository.js'
export type * from './image-repository.js'
export type { PageOf, PageRequest } from './page.js'
export type * from './template-repository.js'

export interface Clock {
  now(): Date
}

/** Mints ids; the result is parsed with the kind's schema before it is used. */
export interface Ids {
  mint(kind: IdKind): string
}

/** Whose rows a call may see. */
export type Access = { readonly tenantId: TenantId } | 'operator'

/** A command, and the node it is for. */
export interface Addressed<Command> {
  readonly nodeId: NodeId
  readonly command: Command
}

export type PlacedAttempt = Addressed<RunAttempt>

/** A job that changed, for those who wait for it. */
export interface JobChange {
  readonly jobId: JobId
  readonly tenantId: TenantId
  readonly batchId: BatchId | null
  /** Whether the job is in a final state now. */
  readonly finished: boolean
}

export interface Tenants {
  /** @throws name_taken */
  create(tenant: { readonly name: string; readonly quota?: Partial<Quota> | undefined }): Promise<Tenant>
  /** @throws tenant_not_found */
  get(id: TenantId): Promise<Tenant>
  list(filter: { readonly name?: string | undefined }, page: PageRequest): Promise<PageOf<Tenant>>
  /** @throws tenant_not_found */
  update(
    id: TenantId,
    change: {
      readonly quota?: Partial<Quota> | undefined
      readonly state?: Tenant['state'] | undefined
      readonly imagePolicy?: ImagePolicy | null | undefined
    },
  ): Promise<Tenant>
  /** Which images it may not start; null: as of the installation, and where there is no such tenant. */
  imagePolicy(id: TenantId): Promise<ImagePolicy | null>
}

/** What authentication needs of a key. Expiry and revocation are for the caller to judge, at its own time. */
export interface KeyRecord {
  readonly id: KeyId
  /** null: an operator's key. */
  readonly tenantId: TenantId | null
  readonly tenantState: Tenant['state'] | null
  readonly requestsPerMinute: number | null
  readonly scopes: ApiKey['scopes']
  readonly expiresAt: Date | null
  readonly revokedAt: Date | null
}

/** `hash` is the SHA-256 of the secret, 32 bytes; the secret itself never comes here. */
export interface NewKey {
  readonly tenantId: TenantId | null
  readonly name: string
  readonly hash: Uint8Array
  readonly hint: string
  readonly scopes: readonly (TenantScope | 'operator')[]
  readonly expiresAt?: Date | undefined
}

export interface Keys {
  /** @throws tenant_not_found */
  create(key: NewKey): Promise<ApiKey>
  /** Makes an operator's key unless one with this hash exists. */
  ensureOperator(key: { readonly name: string; readonly hash: Uint8Array; readonly hint: string }): Promise<void>
  byHash(hash: Uint8Array): Promise<KeyRecord | undefined>
  list(access: Access, page: PageRequest): Promise<PageOf<ApiKey>>
  /** Revoking a revoked key changes nothing. @throws key_not_found */
  revoke(access: Access, id: KeyId): Promise<ApiKey>
  /** Notes the keys as used at `at`; older notes only ever move forward. */
  touch(ids: readonly KeyId[], at: Date): Promise<void>
}

export type JoinBody = Input<typeof joinNode>['body']
export type HeartbeatBody = Input<typeof heartbeat>['body']
export interface Standing {
  /** Attempts that the node lists but must end and forget: unknown here, of another node, or given up as lost. */
  readonly unwanted: readonly AttemptId[]
  /** Sandboxes that the node lists but must delete: unknown here, of another node, or long deleted. */
  readonly unwantedSandboxes: readonly SandboxId[]
  /** Images that it has held for a while, and that nobody has. */
  readonly unwantedImages: readonly string[]
  /** Of the tenants that the node lists, those that are to be held to something else there. */
  readonly tenantLimits: readonly { readonly tenantId: TenantId; readonly limits: TenantLimits }[]
  /** Sandboxes that were lost while the node was silent. */
  readonly changed: readonly SandboxChange[]
}

export interface Nodes {
  /** `tokenHash` is the SHA-256 of the node's token. @throws name_taken */
  create(node: { readonly name: string; readonly tokenHash: Uint8Array }): Promise<Node>
  byToken(
    tokenHash: Uint8Array,
  ): Promise<{ readonly id: NodeId; readonly name: string; readonly state: NodeState } | undefined>
  /** @throws node_not_found */
  get(id: NodeId): Promise<Node>
  /** Whether there is such a node, lost or not. */
  exists(id: NodeId): Promise<boolean>
  list(page: PageRequest): Promise<PageOf<Node>>
  /** @throws node_not_found, wrong_state (of a pending or lost node) */
  update(id: NodeId, change: { readonly state: 'ready' | 'draining' }): Promise<Node>
  /** @throws node_not_found */
  rotateToken(id: NodeId, tokenHash: Uint8Array): Promise<Node>
  /** Its attempts are lost, and retried by their policy; its sandboxes are lost, its builds end. @throws node_not_found */
  delete(id: NodeId): Promise<{
    readonly jobs: readonly JobChange[]
    readonly sandboxes: readonly SandboxChange[]
    readonly builds: readonly BuildRecord[]
  }>
  /** @throws node_not_found */
  join(id: NodeId, body: JoinBody): Promise<Standing>
  /** Also acknowledges the commands that the list shows as arrived. @throws node_not_found */
  heartbeat(id: NodeId, body: HeartbeatBody): Promise<Standing>
  /** Where the node's streams are served; undefined for a node that is gone or never joined. */
  streams(id: NodeId): Promise<StreamServer | undefined>
}

export interface JobFilter {
  readonly state?: readonly JobState[] | undefined
  readonly batchId?: BatchId | undefined
  /** `key` or `key=value`; all must match. */
  readonly label?: readonly string[] | undefined
}

/** One attempt with the first 64 KiB of each stream, which are null until the attempt has ended. */
export interface AttemptOutput {
  readonly attemptId: AttemptId
  readonly number: number
  readonly nodeId: NodeId
  readonly state: AttemptState
  readonly usage: ResourceUsage | null
  readonly stdout: Buffer | null
  readonly stderr: Buffer | null
}

export interface Reconciled {
  /** Placed attempts that no node has acknowledged for 2 s. */
  readonly resend: readonly PlacedAttempt[]
  /** Cancels asked for, or due because a deadline passed, and not acknowledged. */
  readonly cancels: readonly Addressed<CancelAttempt>[]
  /** Attempts given up: their node is silent, or no longer knows of them. */
  readonly lost: number
  /** Queued jobs whose deadline passed. */
  readonly timedOut: number
  /** Every job that changed because of the above. */
  readonly changed: readonly JobChange[]
}

export interface Jobs {
  /** @throws job_not_found */
  get(access: Access, id: JobId): Promise<Job>
  list(access: Access, filter: JobFilter, page: PageRequest): Promise<PageOf<Job>>
  /** Of the given attempt, else of the last; undefined where there is none. @throws job_not_found */
  output(access: Access, id: JobId, attempt?: number): Promise<AttemptOutput | undefined>
  /** @param by id of the key that asked. @throws job_not_found */
  requestCancel(
    access: Access,
    id: JobId,
    by: string,
  ): Promise<{ readonly job: Job; readonly cancel?: Addressed<CancelAttempt> }>
  /** @throws job_not_found, wrong_state (unfinished) */
  delete(access: Access, id: JobId): Promise<readonly Addressed<ForgetAttempt>[]>
  /** Without those that are stale, unknown, repeated, or not placed on this node. */
  recordStarted(
    nodeId: NodeId,
    reports: readonly (NodeReport & { readonly kind: 'started' })[],
  ): Promise<readonly JobChange[]>
  /**
   * Frees what the attempt held, exactly once, and ends the job or queues it again by its policy.
   * @returns undefined where the report is stale, unknown, repeated, or not of this node
   */
  recordFinished(nodeId: NodeId, report: NodeReport & { readonly kind: 'finished' }): Promise<JobChange | undefined>
  /** Notes that the node has seen these generations; `nodes.heartbeat` does this too. */
  acknowledge(
    nodeId: NodeId,
    attempts: readonly { readonly id: AttemptId; readonly generation: number }[],
  ): Promise<void>
  /** Finds what is overdue and acts on it. Call it every second, on one replica. */
  reconcile(now: Date): Promise<Reconciled>
  /** Deletes up to `limit` jobs whose retention is over. */
  expire(limit: number): Promise<{ readonly jobs: number; readonly forgotten: readonly Addressed<ForgetAttempt>[] }>
}

export interface Batches {
  /** @throws batch_not_found */
  get(access: Access, id: BatchId): Promise<Batch>
  /** Cancels every unfinished job of it. @throws batch_not_found */
  cancel(
    access: Access,
    id: BatchId,
    by: string,
  ): Promise<{
    readonly batch: Batch
    readonly cancels: readonly Addressed<CancelAttempt>[]
    readonly changed: readonly JobChange[]
  }>
}

export interface Admission {
  /**
   * Reserves quota and stores the job in one statement; places it at once where nobody waits and a node has room.
   * @param by id of the key that asks, for the event
   * @param image what the spec's image means. Default: a base image of that name
   * @throws tenant_not_found, tenant_suspended, quota_exceeded (`QuotaExceeded`), image_not_found
   */
  admitJob(
    tenantId: TenantId,
    spec: JobSpec,
    by?: string,
    image?: ImageWanted,
  ): Promise<{
    readonly job: Job
    readonly placed?: PlacedAttempt
  }>
  /**
   * All of them or none, then places what can be placed (of any tenant, in fair order).
   * @param images of each spec. Default: base images
   * @throws as admitJob
   */
  admitBatch(
    tenantId: TenantId,
    name: string | undefined,
    specs: readonly JobSpec[],
    by?: string,
    images?: readonly ImageWanted[],
  ): Promise<{ readonly batch: Batch; readonly jobIds: readonly JobId[]; readonly placed: readonly PlacedAttempt[] }>
  /** Places up to `limit` queued jobs, fairly between tenants. Replicas may call it at the same time. */
  placeQueued(limit: number): Promise<readonly PlacedAttempt[]>
  /** Digest of what would be admitted now, of the tenant's own images and public ones; null: neither has it. */
  imageOf(tenantId: TenantId, wanted: ImageWanted): Promise<string | null>
}

/** Where a sandbox is: all that a call which its node answers needs to know. */
export interface LocatedSandbox {
  readonly id: SandboxId
  readonly tenantId: TenantId
  /** Null once its node was removed. */
  readonly nodeId: NodeId | null
  readonly state: SandboxState
}

/** A sandbox that changed, for those who wait for it. */
export interface SandboxChange {
  readonly sandboxId: SandboxId
  readonly tenantId: TenantId
  /** Whether an event tells of it. */
  readonly told: boolean
}

export interface ChangedSandbox {
  readonly sandbox: Sandbox
  readonly change: SandboxChange
  /** Whether its callers see a difference. */
  readonly changed: boolean
  /** Whether room was made that something else may take. */
  readonly freed: boolean
  /** What its node is to be told. */
  readonly command?: Addressed<ApplySandbox>
}

export interface NewSandbox {
  readonly tenantId: TenantId
  readonly spec: SandboxSpec
  readonly start: boolean
  /** Id of the key that asks. */
  readonly by: string
  /** What the spec's image means. Default: a base image of that name. */
  readonly image?: ImageWanted
}

export interface SandboxFork {
  readonly tenantId: TenantId
  readonly origin: SandboxOrigin
  readonly specs: readonly SandboxSpec[]
  readonly start: boolean
  /** Id of the key that asks. */
  readonly by: string
}

export interface SandboxFilter {
  /** Deleted ones only where they are named here. */
  readonly state?: readonly SandboxState[] | undefined
  /** `key` or `key=value`; all must match. */
  readonly label?: readonly string[] | undefined
  /** Only those whose last run ended before, or which were made before and never ran. */
  readonly endedBefore?: Date | undefined
}

export interface SandboxesReconciled {
  /** Commands that no node has acknowledged, or that did not get on. */
  readonly resend: readonly Addressed<ApplySandbox>[]
  /** New commands, because something was overdue. */
  readonly commands: readonly Addressed<ApplySandbox>[]
  readonly changed: readonly SandboxChange[]
  readonly freed: boolean
}

/** Everywhere `ref` is the id of a sandbox, or the name of one that exists. */
export interface Sandboxes {
  /** @throws sandbox_not_found */
  locate(access: Access, ref: string): Promise<LocatedSandbox>
  /** @throws sandbox_not_found */
  get(access: Access, ref: string): Promise<Sandbox>
  list(access: Access, filter: SandboxFilter, page: PageRequest): Promise<PageOf<Sandbox>>
  /**
   * Reserves quota and room on a node, stores the sandbox and tells its first event, or does none of it.
   * @throws name_taken, quota_exceeded (`QuotaExceeded`), no_capacity, tenant_suspended, tenant_not_found, image_not_found
   */
  create(asked: NewSandbox): Promise<ChangedSandbox>
  /**
   * Stores sandboxes that begin with the files of another, on its node: all of them or none.
   * @throws sandbox_not_found, name_taken, quota_exceeded (`QuotaExceeded`), no_capacity, tenant_suspended; OutcomeUnknown
   *   where they may have been stored, and Postgres does not answer any more
   */
  fork(asked: SandboxFork): Promise<readonly ChangedSandbox[]>
  /**
   * Changes what is wanted of it, and what it holds with that.
   * @throws sandbox_not_found, wrong_state, version_mismatch, name_taken, quota_exceeded, no_capacity, tenant_suspended
   */
  request(
    access: Access,
    ref: string,
    asked: SandboxRequest,
    options: { readonly by: string; readonly ifVersion?: number | undefined },
  ): Promise<ChangedSandbox>
  /** Deletes up to 1,000 of the tenant's stopped and failed sandboxes. */
  prune(
    tenantId: TenantId,
    filter: Pick<SandboxFilter, 'label' | 'endedBefore'>,
    by: string,
  ): Promise<readonly ChangedSandbox[]>
  /** How its runs ended, newest first. @throws sandbox_not_found */
  ends(access: Access, ref: string, limit: number): Promise<readonly SandboxEnd[]>
  /** undefined: overtaken, repeated, or not of a sandbox on this node. */
  recordReport(nodeId: NodeId, report: SandboxReport): Promise<ChangedSandbox | undefined>
  /** Finds what is overdue and acts on it. Call it every second, on one replica, after `jobs.reconcile`. */
  reconcile(now: Date): Promise<SandboxesReconciled>
  /** Deletes up to `limit` records of deleted sandboxes that are over 30 days old. @returns how many */
  expire(limit: number): Promise<number>
}

export interface EventFilter {
  readonly type?: readonly EventType[] | undefined
  readonly subject?: string | undefined
}

/** What a tenant is told of an image where the policy warns. */
export interface ImageWarning {
  /** As it was named. */
  readonly image: string
  /** The least that counts. */
  readonly severity: string
  /** Ids of the worst ones that count. */
  readonly vulnerabilities: readonly string[]
  /** Whether all of it was looked at. */
  readonly complete: boolean
}

/** The append-only log of each tenant. Numbers grow by one with every event, in the order of commits. */
export interface Events {
  /** Up to `limit` events after the number `after`, oldest first. */
  list(tenantId: TenantId, after: number, filter: EventFilter, limit: number): Promise<readonly BerthEvent[]>
  /** Number of the last event; 0 where there was none. @throws tenant_not_found */
  last(tenantId: TenantId): Promise<number>
  /**
   * Tells a tenant what is known against an image that it has used, unless it was told the same within a day.
   * @returns whether it was told now
   */
  warned(tenantId: TenantId, digest: string, warning: ImageWarning): Promise<boolean>
  /** Deletes up to `limit` events that are over 30 days old. @returns how many */
  expire(limit: number): Promise<number>
}

export interface UsageTotals {
  /** The period is widened to whole UTC hours, and says so in the answer. @throws tenant_not_found */
  get(tenantId: TenantId, from: Date, to: Date): Promise<Usage>
}

export type IdempotencyStart =
  | { readonly kind: 'new' }
  | { readonly kind: 'stored'; readonly status: number; readonly body: string | null }
  | { readonly kind: 'in_progress' }
  | { readonly kind: 'mismatch' }

export interface Idempotency {
  /**
   * @param principal who asks: keys of different principals never meet
   * @param requestHash SHA-256 over method, path and body
   * @returns `new` also where the first request began over 60 s ago and never finished: its replica has crashed
   */
  begin(principal: string, key: string, requestHash: Uint8Array): Promise<IdempotencyStart>
  /** Keeps the answer for 24 h. `body` is repeated byte for byte. */
  finish(
    principal: string,
    key: string,
    answer: { readonly status: number; readonly body: string | null },
  ): Promise<void>
  /** Frees the key: the request failed in a way that a repeat may mend. */
  abandon(principal: string, key: string): Promise<void>
  /** @returns how many were past their 24 h and are deleted now */
  expire(limit: number): Promise<number>
}

/** A session with the key it was begun with, and when it ends by itself; for the caller to judge, at its own time. */
export interface SessionRecord {
  readonly key: KeyRecord
  /** Twelve hours after its beginning. */
  readonly expiresAt: Date
  /** An hour after its last use that was noted. */
  readonly idleAt: Date
}

/** Sessions of browsers. `hash` is the SHA-256 of the cookie's token, 32 bytes. */
export interface Sessions {
  /** Begins a session. A key has at most 100; the oldest makes room. @throws Fault where there is no such key */
  create(session: { readonly hash: Uint8Array; readonly keyId: KeyId }): Promise<{ readonly expiresAt: Date }>
  byHash(hash: Uint8Array): Promise<SessionRecord | undefined>
  /** Ends a session; of one that is none nothing changes. */
  end(hash: Uint8Array): Promise<void>
  /** Notes the sessions as used at `at`; older notes only ever move forward. */
  touch(hashes: readonly Uint8Array[], at: Date): Promise<void>
  /** @returns how many were over and are deleted now, at most `limit` */
  expire(limit: number): Promise<number>
}

/** A terminal that somebody may connect to, and how. */
export interface PassedTerminal {
  readonly tenantId: TenantId
  readonly sandboxId: SandboxId
  readonly terminalId: TerminalId
  readonly mode: TerminalMode
}

/** Tickets and shares of terminals. `hash` is the SHA-256 of the token, 32 bytes; `by` the key that asked. */
export interface Passes {
  /** Good once, for a minute. @param ticket `credential`: what the connection depends on, as principals have it */
  createTicket(
    ticket: PassedTerminal & { readonly hash: Uint8Array; readonly by: string; readonly credential: string },
  ): Promise<{ readonly expiresAt: Date }>
  /** Takes a ticket: nobody finds it afterwards. */
  takeTicket(hash: Uint8Array): Promise<(PassedTerminal & { readonly credential: string }) | undefined>
  /** @throws quota_exceeded where the terminal has a hundred */
  createShare(
    share: PassedTerminal & { readonly hash: Uint8Array; readonly by: string; readonly validForMs: number },
  ): Promise<TerminalShare>
  /** undefined: revoked, over, of a suspended tenant, or none. */
  share(hash: Uint8Array): Promise<PassedTerminal | undefined>
  shares(
    tenant: { readonly tenantId: TenantId },
    sandboxId: SandboxId,
    terminalId: TerminalId,
  ): Promise<readonly TerminalShare[]>
  /** @throws share_not_found */
  revokeShare(
    tenant: { readonly tenantId: TenantId },
    sandboxId: SandboxId,
    terminalId: TerminalId,
    id: ShareId,
  ): Promise<void>
  /** @returns how many were over and are deleted now, at most `limit` */
  expire(limit: number): Promise<number>
}

export interface Database {
  readonly tenants: Tenants
  readonly keys: Keys
  readonly sessions: Sessions
  readonly passes: Passes
  readonly nodes: Nodes
  readonly jobs: Jobs
  readonly batches: Batches
  readonly sandboxes: Sandboxes
  readonly events: Events
  readonly admission: Admission
  readonly images: Images
  readonly templates: Templates
  readonly builds: Builds
  readonly usage: UsageTotals
  readonly idempotency: Idempotency
  /** Runs `work` unless another replica is running work of the same name; then undefined. */
  exclusively<T>(name: string, work: () => Promise<T>): Promise<T | undefined>
  /** One round trip. @throws Fault */
  ping(): Promise<void>
  close(): Promise<void>
}
