// image-gate.ts: which images jobs, sandboxes and builds may start from: those of which nothing is known that the policy refuses.
// What passed is what is admitted: a name that leads elsewhere a moment later does not let another image in.
//
// It costs nothing where no policy holds but a look at the tenant's, every other second. Where one does, the verdict of an
// image is kept for as long as database and policy are the same; only the first use of an image may have to wait.
import { Failure, type ImagePolicy, type PolicyVerdict, type TenantId } from '@berth/contracts'
import type { ImageWanted } from '@berth/domain'
import { Inject, Injectable } from '@nestjs/common'
import type { Config } from '../config.js'
import { ImageNames } from '../images/image-names.js'
import { Recent } from '../recent.js'
import { CLOCK, type Clock, CONFIG, DATABASE, type Database, LOG, type Logger } from '../tokens.js'
import { ImageVerdicts } from './image-verdicts.js'

/** How long a tenant's policy is believed, in milliseconds. */
const BELIEVED_MS = 2000
const MAX_TENANTS = 10_000
/** Ids that a refusal names. */
const NAMED = 10

@Injectable()
export class ImageGate {
  private readonly policies: Recent<ImagePolicy | null>
  private readonly standard: ImagePolicy

  constructor(
    @Inject(DATABASE) private readonly database: Database,
    @Inject(CONFIG) config: Config,
    @Inject(CLOCK) clock: Clock,
    @Inject(LOG) private readonly log: Logger,
    private readonly names: ImageNames,
    private readonly verdicts: ImageVerdicts,
  ) {
    this.policies = new Recent({ clock, forMs: BELIEVED_MS, atMost: MAX_TENANTS })
    this.standard = {
      mode: config.BERTH_IMAGE_POLICY,
      severity: config.BERTH_IMAGE_POLICY_SEVERITY,
      fixableOnly: config.BERTH_IMAGE_POLICY_FIXABLE_ONLY,
      exempt: [...config.BERTH_IMAGE_POLICY_EXEMPT],
    }
  }

  /** What holds for a tenant; of the operator, what holds for those that have none of their own. */
  async policy(tenantId?: TenantId): Promise<ImagePolicy> {
    if (tenantId === undefined) return this.standard
    const own = await this.policies.get(tenantId, () => this.database.tenants.imagePolicy(tenantId))
    return own ?? this.standard
  }

  /**
   * Admits something that starts from images, if it may.
   * @param texts names as written
   * @param admit told what they mean, in the same order
   * @throws policy_forbidden naming image and vulnerabilities; scan_unavailable and no_capacity where a policy refuses and
   * nothing can be told of the image; InvalidRequest, image_not_found
   */
  async admitted<T>(
    tenantId: TenantId,
    texts: readonly string[],
    admit: (images: readonly ImageWanted[]) => Promise<T>,
  ): Promise<T> {
    const policy = await this.policy(tenantId)
    return this.names.admitted(tenantId, texts, async (wanted) =>
      admit(policy.mode === 'off' ? wanted : await this.passed(tenantId, policy, wanted)),
    )
  }

  /** Lets an image pass whose digest is known. @throws as `admitted` */
  async pass(tenantId: TenantId, text: string, digest: string): Promise<void> {
    const policy = await this.policy(tenantId)
    if (policy.mode !== 'off') await this.let(tenantId, policy, text, digest)
  }

  private async passed(
    tenantId: TenantId,
    policy: ImagePolicy,
    wanted: readonly ImageWanted[],
  ): Promise<readonly ImageWanted[]> {
    const passed = new Map<ImageWanted, ImageWanted>()
    for (const one of new Set(wanted)) {
      const digest = await this.database.admission.imageOf(tenantId, one)
      const digests = digest === null ? await this.names.baseDigests(one) : [digest]
      // It could wait for a node, and run what that has.
      if (digests.length === 0 && one.base && policy.mode === 'refuse')
        throw new Failure('no_capacity', `no node that is ready holds image ${one.text}, which has to be read first`)
      for (const each of digests) await this.let(tenantId, policy, one.text, each)
      // Where it is a base image, or none, it stays that: nothing else of this name is looked for.
      passed.set(
        one,
        digest === null ? { ...one, reference: null, digest: null } : { ...one, reference: null, digest, base: null },
      )
    }
    return wanted.map((one) => passed.get(one) ?? one)
  }

  private async let(tenantId: TenantId, policy: ImagePolicy, text: string, digest: string): Promise<void> {
    const judging = this.verdicts.of(digest, policy)
    if (policy.mode === 'refuse') {
      const verdict = await judging
      if (!verdict.allowed) throw refusal(text, digest, policy, verdict)
      return
    }
    // Nobody waits for a warning.
    judging.then(
      ({ against, isNew }) =>
        isNew && against.length > 0 && this.log.warn({ tenant: tenantId, digest, against }, 'image.vulnerable'),
      (err: unknown) => this.log.warn({ err, digest }, 'image.not_scanned'),
    )
  }
}

function refusal(text: string, image: string, { severity }: ImagePolicy, { against }: PolicyVerdict): Failure {
  const more = against.length > NAMED ? ` and ${against.length - NAMED} more` : ''
  const why =
    against.length === 0
      ? 'it could not be looked at whole'
      : `of ${severity} severity or worse it has ${against.slice(0, NAMED).join(', ')}${more}`
  const data = { policy: 'vulnerabilities', image, vulnerabilities: against.slice(0, NAMED) }
  return new Failure('policy_forbidden', `image ${text} may not be started: ${why}`, data)
}
