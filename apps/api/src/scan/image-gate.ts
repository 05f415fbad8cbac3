// image-gate.ts: which images jobs, sandboxes and builds may start from: those of which nothing is known that the policy refuses.
// What passed is what is admitted: a name that leads elsewhere a moment later does not let another image in.
//
// It costs nothing where no policy holds but a look at the tenant's, every other second. Where one does, the verdict of an
// image is kept for as long as database and policy are the same; only the first use of an image may have to wait.
import { Failure, type ImagePolicy, MAX_WARNINGS, type PolicyVerdict, type TenantId } from '@berth/contracts'
import type { ImageWanted } from '@berth/domain'
import { Inject, Injectable } from '@nestjs/common'
import type { Config } from '../config.js'
import { ImageNames } from '../images/image-names.js'
import { Recent } from '../recent.js'
import { CLOCK, type Clock, CONFIG, DATABASE, type Database } from '../tokens.js'
import { ImageVerdicts } from './image-verdicts.js'
import { ImageWarnings, NAMED, reasonOf, type Warning } from './image-warnings.js'

/** How long a tenant's policy is believed, in milliseconds. */
const BELIEVED_MS = 2000
const MAX_TENANTS = 10_000

export interface Admitted<T> {
  readonly made: T
  /** What is known against the images, where the policy warns. */
  readonly warnings: string[]
}

@Injectable()
export class ImageGate {
  private readonly policies: Recent<ImagePolicy | null>
  private readonly standard: ImagePolicy

  constructor(
    @Inject(DATABASE) private readonly database: Database,
    @Inject(CONFIG) config: Config,
    @Inject(CLOCK) clock: Clock,
    private readonly names: ImageNames,
    private readonly verdicts: ImageVerdicts,
    private readonly warnings: ImageWarnings,
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
  ): Promise<Admitted<T>> {
    const policy = await this.policy(tenantId)
    return this.names.admitted(tenantId, texts, async (wanted) => {
      const { images, warnings } = await this.passed(tenantId, policy, wanted)
      return { made: await admit(images), warnings: await toldOf(warnings) }
    })
  }

  /** Lets an image pass whose digest is known. @returns as warnings of `admitted`. @throws as that */
  async pass(tenantId: TenantId, text: string, digest: string): Promise<string[]> {
    const policy = await this.policy(tenantId)
    const warning = policy.mode === 'off' ? undefined : await this.let(tenantId, policy, text, digest)
    return toldOf(warning ? [warning] : [])
  }

  private async passed(
    tenantId: TenantId,
    policy: ImagePolicy,
    wanted: readonly ImageWanted[],
  ): Promise<{ readonly images: readonly ImageWanted[]; readonly warnings: readonly Warning[] }> {
    if (policy.mode === 'off') return { images: wanted, warnings: [] }
    const passed = new Map<ImageWanted, ImageWanted>()
    const warnings: Warning[] = []
    for (const one of new Set(wanted)) {
      const digest = await this.database.admission.imageOf(tenantId, one)
      const digests = digest === null ? await this.names.baseDigests(one) : [digest]
      // It could wait for a node, and run what that has.
      if (digests.length === 0 && one.base && policy.mode === 'refuse')
        throw new Failure('no_capacity', `no node that is ready holds image ${one.text}, which has to be read first`)
      for (const each of digests) {
        const warning = await this.let(tenantId, policy, one.text, each)
        if (warning) warnings.push(warning)
      }
      // Where it is a base image, or none, it stays that: nothing else of this name is looked for.
      passed.set(
        one,
        digest === null ? { ...one, reference: null, digest: null } : { ...one, reference: null, digest, base: null },
      )
    }
    return { images: wanted.map((one) => passed.get(one) ?? one), warnings }
  }

  private async let(
    tenantId: TenantId,
    policy: ImagePolicy,
    text: string,
    digest: string,
  ): Promise<Warning | undefined> {
    if (policy.mode === 'warn') return this.warnings.begin(tenantId, policy, text, digest)
    const verdict = await this.verdicts.of(digest, policy, tenantId)
    if (!verdict.allowed) throw refusal(text, digest, policy, verdict)
    return undefined
  }
}

async function toldOf(warnings: readonly Warning[]): Promise<string[]> {
  const told = await Promise.all(warnings.map((warning) => warning()))
  return told.filter((text) => text !== undefined).slice(0, MAX_WARNINGS)
}

function refusal(text: string, image: string, policy: ImagePolicy, verdict: PolicyVerdict): Failure {
  const data = { policy: 'vulnerabilities', image, vulnerabilities: verdict.against.slice(0, NAMED) }
  return new Failure('policy_forbidden', `image ${text} may not be started: ${reasonOf(verdict, policy)}`, data)
}
