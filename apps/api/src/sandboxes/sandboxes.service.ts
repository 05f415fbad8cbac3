// sandboxes.service.ts: sandboxes, as tenants see them. A request changes what is wanted and is answered with that; the
// node is told in the background, and its reports make the state.
import {
  Failure,
  type Output,
  type pruneSandboxes,
  type Sandbox,
  type SandboxEnd,
  SandboxId,
  type SandboxSpec,
  type TenantId,
  Warnings,
} from '@berth/contracts'
import { type SandboxRequest, type SandboxUpdate, updatedSpec } from '@berth/domain'
import type { PageOf, PageRequest, SandboxFilter, SandboxFork } from '@berth/persistence'
import { Inject, Injectable } from '@nestjs/common'
import { z } from 'zod'
import type { Config } from '../config.js'
import type { TenantPrincipal } from '../http/auth.js'
import type { Once } from '../http/route.decorator.js'
import type { Specified } from '../images/templates.service.js'
import { ImageGate } from '../scan/image-gate.js'
import { Changes } from '../scheduling/changes.js'
import { CLOCK, type Clock, CONFIG, DATABASE, type Database } from '../tokens.js'
import { requireAllowed, sandboxPolicy } from './policy.js'

export interface Creating {
  readonly start: boolean
  readonly ifExists: 'fail' | 'get'
}

/** What a repeat is told; of earlier versions without warnings. */
const Created = z.object({ id: SandboxId, made: z.boolean(), warnings: Warnings.default([]) })
const Done = z.object({ id: SandboxId })

/** How often a name is looked for whose sandbox comes and goes between two looks. */
const LOOKS = 5

@Injectable()
export class SandboxesService {
  private readonly policy: ReturnType<typeof sandboxPolicy>

  constructor(
    @Inject(DATABASE) private readonly database: Database,
    @Inject(CONFIG) config: Config,
    @Inject(CLOCK) private readonly clock: Clock,
    private readonly images: ImageGate,
    private readonly changes: Changes,
  ) {
    this.policy = sandboxPolicy(config)
  }

  /**
   * @param specified not asked for again when a repeat has its answer
   * @returns the sandbox, whether it was made by this request (or by the first with its idempotency key), and what is
   * known against its image
   * @throws policy_forbidden, image_not_found, name_taken, quota_exceeded, no_capacity
   */
  async create(
    { tenantId, keyId }: TenantPrincipal,
    specified: () => Promise<Specified<SandboxSpec>>,
    { start, ifExists }: Creating,
    once: Once,
  ): Promise<{ readonly sandbox: Sandbox; readonly made: boolean; readonly warnings: string[] }> {
    let now: Sandbox | undefined
    const { id, made, warnings } = await once(Created, async () => {
      const { sandbox, made, warnings } = await this.findOrMake(tenantId, keyId, await specified(), start, ifExists)
      now = sandbox
      return { id: sandbox.id, made, warnings }
    })
    return { sandbox: now ?? (await this.get(tenantId, id)), made, warnings }
  }

  get(tenantId: TenantId, ref: string): Promise<Sandbox> {
    return this.database.sandboxes.get({ tenantId }, ref)
  }

  list(tenantId: TenantId, filter: SandboxFilter, page: PageRequest): Promise<PageOf<Sandbox>> {
    return this.database.sandboxes.list({ tenantId }, filter, page)
  }

  ends(tenantId: TenantId, ref: string, limit: number): Promise<readonly SandboxEnd[]> {
    return this.database.sandboxes.ends({ tenantId }, ref, limit)
  }

  /** A request that a repeat with the same idempotency key does not make again. */
  async request(principal: TenantPrincipal, ref: string, asked: SandboxRequest, once: Once): Promise<Sandbox> {
    let now: Sandbox | undefined
    const { id } = await once(Done, async () => {
      now = await this.ask(principal, ref, asked)
      return { id: now.id }
    })
    return now ?? this.get(principal.tenantId, id)
  }

  /** @throws policy_forbidden where it would be with the change; version_mismatch and others as `request` */
  async update(principal: TenantPrincipal, ref: string, change: SandboxUpdate, ifVersion?: number): Promise<Sandbox> {
    if (change.limits) {
      const { spec } = await this.get(principal.tenantId, ref)
      requireAllowed(this.policy, updatedSpec(spec, change))
    }
    return this.ask(principal, ref, { kind: 'update', ...change }, ifVersion)
  }

  /** @throws policy_forbidden */
  check(spec: SandboxSpec): void {
    requireAllowed(this.policy, spec)
  }

  /** @throws as `Sandboxes.fork` of persistence */
  async fork(asked: SandboxFork): Promise<readonly Sandbox[]> {
    const made = await this.database.sandboxes.fork(asked)
    this.changes.follow(made)
    return made.map(({ sandbox }) => sandbox)
  }

  async prune(
    { tenantId, keyId }: TenantPrincipal,
    label: readonly string[],
    endedBeforeMs: number,
  ): Promise<Output<typeof pruneSandboxes>> {
    const endedBefore = new Date(this.clock.now().getTime() - endedBeforeMs)
    const done = await this.database.sandboxes.prune(tenantId, { label, endedBefore }, keyId)
    this.changes.follow(done)
    const freedBytes = done.reduce((sum, { sandbox }) => sum + sandbox.spec.limits.diskBytes, 0)
    return { deleted: done.map(({ sandbox }) => sandbox.id), freedBytes }
  }

  private async ask(
    { tenantId, keyId }: TenantPrincipal,
    ref: string,
    asked: SandboxRequest,
    ifVersion?: number,
  ): Promise<Sandbox> {
    const changed = await this.database.sandboxes.request({ tenantId }, ref, asked, { by: keyId, ifVersion })
    this.changes.follow([changed])
    return changed.sandbox
  }

  private async findOrMake(
    tenantId: TenantId,
    by: string,
    { spec, image: text }: Specified<SandboxSpec>,
    start: boolean,
    ifExists: 'fail' | 'get',
  ) {
    requireAllowed(this.policy, spec)
    for (let look = 1; ; look++) {
      try {
        const { made, warnings } = await this.images.admitted(tenantId, [text], ([image]) =>
          this.database.sandboxes.create({ tenantId, spec, start, by, ...(image && { image }) }),
        )
        this.changes.follow([made])
        return { sandbox: made.sandbox, made: true, warnings }
      } catch (error) {
        const taken = error instanceof Failure && error.code === 'name_taken' && ifExists === 'get'
        if (!taken || look === LOOKS || spec.name === undefined) throw error
        // It may be deleted between the two.
        const found = await this.get(tenantId, spec.name).catch(unlessNotFound)
        if (found) return { sandbox: found, made: false, warnings: [] }
      }
    }
  }
}

function unlessNotFound(error: unknown): undefined {
  if (error instanceof Failure && error.code === 'sandbox_not_found') return undefined
  throw error
}
